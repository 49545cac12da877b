"""The samples that a bundle carries: which, in what order, and what the networks here make of them.

A device that is slow at it compares the first few alone, so any first part holds every class in its share, and
of texts every length. It may import artifact, data, engines.onnxruntime and progress.
"""

from collections.abc import Iterator, Mapping
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgetune.artifact import Artifact, How, Tokens
from edgetune.data.folders import Dataset, Sample
from edgetune.data.images import normalise
from edgetune.data.reader import at, buckets, for_file, frames
from edgetune.data.subset import chosen, interleaved, relabelled
from edgetune.engines.onnxruntime import Session
from edgetune.progress import Progress

INPUTS, TABLE = "samples.bin", "table.bin"
# Texts that are filled up or cut to a length that none of the samples has.
LENT = 16
# What expected outputs are of; in the plan of work, for whoever reads it.
MEANT = {"fp16": "the FP32 network", "int8": "the INT8 network with Q/DQ"}


class Picked(NamedTuple):
    """A sample of the bundle.

    Attributes:
        sample: the image or text.
        length: of several lengths of texts the one that it takes; 0: there is one.
        label: None where it was filled up or cut to another length than its own: there again, it is no sample.
    """

    sample: Sample
    length: int
    label: int | None


def lengths_of(how: How) -> tuple[int, ...]:
    """Return the lengths of texts, where there are several."""
    return how.lengths if isinstance(how, Tokens) and len(how.lengths) > 1 else ()


def pick(data: Dataset, network: Artifact, how: How, most: int) -> list[Picked]:
    """Return samples of the test split: at most so many, and some more where a length has none; 0: all."""
    order = interleaved(chosen(data.splits["test"], most))
    own = relabelled(order, data.classes, network.classes)
    if not lengths_of(how):
        return [Picked(sample, 0, sample.label) for sample in own]
    shares = buckets(data.root, own, how, LENT)
    turns = zip_longest(
        *(
            [Picked(one, share.length, one.label if share.own else None) for one in share.samples]
            for share in shares
        )
    )
    return [one for turn in turns for one in turn if one]


def write(
    folder: Path,
    root: Path,
    picked: list[Picked],
    network: Artifact,
    how: How,
    right: Mapping[str, Session],
    progress: Progress,
) -> dict[str, Any]:
    """Write inputs, and what each network makes of them as float32 `[N, K]`; return what the plan of work says of it.

    Pixels as uint8: where networks take that, as they take it, `[N, H, W, C]`; else `[N, C, H, W]`, with a table of
    what they become. Of a text, one network's input after the other.
    """
    expected = {name: f"{name}.expected.bin" for name in right}
    opened = {name: (folder / file).open("wb") for name, file in expected.items()}
    progress.begin("bundle", len(picked), "sample")
    with (folder / INPUTS).open("wb") as inputs:
        for one in _read(root, picked, how):
            given = for_file(one, how, network.inputs)
            if isinstance(given, np.ndarray):
                inputs.write((given if given.dtype == np.uint8 else one).tobytes())
            else:
                inputs.write(b"".join(given[spec.name].tobytes() for spec in network.inputs))
            for name, session in right.items():
                outputs = session.run(given)
                opened[name].write(outputs[0].astype("<f4").tobytes())
            progress.advance()
    progress.end()
    for handle in opened.values():
        handle.close()
    table = not isinstance(how, Tokens) and network.inputs[0].dtype != "uint8"
    if table:
        levels = np.tile(np.arange(256, dtype=np.uint8), (network.of_images().channels, 1))
        values = normalise(levels[None, :, :, None], network.of_images())
        (folder / TABLE).write_bytes(values.astype("<f4").tobytes())
    several = {"lengths": [one.length for one in picked]} if lengths_of(how) else {}
    return {
        "number": len(picked), "inputs": INPUTS, "table": TABLE if table else "", "expected": expected,
        "expected_of": MEANT, "labels": [one.label for one in picked], **several,
    }  # fmt: skip


def tensors(network: Artifact, how: How) -> dict[str, Any]:
    """Return what the plan of work says of what goes in and comes out."""
    # Open is nothing but the length of texts.
    takes, *more = (
        spec.model_dump()
        | {"shape": [size if isinstance(size, int) else lengths_of(how)[-1] for size in spec.shape]}
        for spec in network.inputs
    )
    several = lengths_of(how)
    return {
        "input": takes, **({"more_inputs": more} if more else {}), **({"lengths": several} if several else {}),
        "outputs": [spec.model_dump() for spec in network.outputs],
    }  # fmt: skip


def _read(root: Path, picked: list[Picked], how: How) -> Iterator[NDArray[Any]]:
    """Give one sample after another."""
    if not lengths_of(how):
        return frames(root, [one.sample for one in picked], how, 1)
    return chain.from_iterable(frames(root, [one.sample], at(how, one.length), 1) for one in picked)
