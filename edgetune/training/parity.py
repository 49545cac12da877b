"""Whether an ONNX file computes what torch does, on real inputs, of every length of texts.

It may import errors, artifact, data, engines.onnxruntime and progress.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgetune.artifact import How
from edgetune.data.folders import Dataset
from edgetune.data.reader import Bucket, at, buckets, for_file, for_torch, frames
from edgetune.data.subset import spaced
from edgetune.engines.onnxruntime import Session
from edgetune.errors import StageError
from edgetune.progress import Progress

IMAGES = 32
# Another network, in standard deviations of the logits; what rounding may do is for the gate to judge.
LARGEST_DIFFERENCE = 0.1
TINY = 1e-30


def parity(net: nn.Module, session: Session, data: Dataset, how: How, progress: Progress) -> dict[str, Any]:
    """Compare the file with torch on real inputs, evenly spaced over the test split, and over each length of texts.

    A length that no text has is compared on others, filled up or cut.
    """
    test = data.splits["test"] or data.splits["train"]
    shares = buckets(data.root, test, how, IMAGES)
    outputs = []
    for share in shares:
        parts: list[tuple[NDArray[Any], NDArray[Any]]] = []
        chosen = spaced(share.samples, IMAGES)
        for batch in frames(data.root, chosen, at(how, share.length), 8, progress):
            with torch.inference_mode():
                right = net(torch.from_numpy(for_torch(batch, how))).numpy()
            parts.append((right, session.run(for_file(batch, how, session.inputs))[0]))
        outputs.append([np.concatenate(side).astype(np.float64) for side in zip(*parts, strict=True)])
    each = [_distance(one, other, share) for (one, other), share in zip(outputs, shares, strict=True)]
    if len(each) == 1:
        return each[0]
    expected, got = (np.concatenate(side) for side in zip(*outputs, strict=True))
    together = _distance(expected, got)
    of_lengths = zip(each, shares, strict=True)
    return together | {"lengths": [{"length": s.length, "own": s.own} | found for found, s in of_lengths]}


def _distance(
    expected: NDArray[np.float64], got: NDArray[np.float64], share: Bucket | None = None
) -> dict[str, Any]:
    """Return how far logits are from torch's.

    Raises:
        StageError: they are none, or another network's.
    """
    if not (np.isfinite(expected).all() and np.isfinite(got).all()):
        raise StageError(
            "the network's logits are not finite", hint="its training diverged: lower learning_rate"
        )
    difference = float(np.abs(expected - got).max())
    relative = difference / max(float(expected.std()), TINY)
    if relative > LARGEST_DIFFERENCE:
        kind = f"texts of {share.length} tokens" if share and share.length else "inputs"
        raise StageError(
            f"the ONNX file does not compute what torch computes: on {len(expected)} {kind} the logits "
            f"differ by up to {relative:.3g} of their standard deviation (limit {LARGEST_DIFFERENCE:g})",
            hint="write forward() without branches on values, random numbers and state of its own",
        )
    norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(got, axis=1)
    cosine = (expected * got).sum(1) / np.maximum(norms, TINY)
    return {
        "images": len(expected),
        "difference": difference,
        "difference_over_std": relative,
        "cosine_mean": float(cosine.mean()),
        "agreement": float((expected.argmax(1) == got.argmax(1)).mean()),
    }
