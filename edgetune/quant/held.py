"""Calibration inputs for the ladder: which of them judge, and all of them as torch takes them.

It may import errors, artifact, engines and quant.collect.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgetune.artifact import TensorSpec
from edgetune.engines.onnxruntime import Feed
from edgetune.errors import ConfigError
from edgetune.quant.collect import Batch, parts

if TYPE_CHECKING:
    from torch import Tensor

# Every fourth calibration input judges the rungs instead: at least and at most so many.
HELD_SHARE, HELD_LEAST, HELD_MOST = 4, 4, 128


def tensors(feeds: Sequence[Feed]) -> "dict[str, Tensor]":
    """Return inputs as torch takes them, `[N, ...]` each.

    Raises:
        ConfigError: the inputs of the network have no dimension in common along which there are several.
    """
    import torch

    lengths = {values.shape[:1] for values in feeds[0].values()}
    if len(lengths) > 1 or () in lengths:
        raise ConfigError("the network's inputs have no batch dimension in common")
    return {name: torch.from_numpy(np.concatenate([feed[name] for feed in feeds])) for name in feeds[0]}


def split(batches: Iterable[Batch], inputs: tuple[TensorSpec, ...]) -> tuple[list[Feed], list[Feed]]:
    """Part calibration inputs into those that calibrate and those that judge, one run of the network each.

    Returns:
        Both; none to judge where there are too few of them for it.
    """
    feeds = [part.feed for part in parts(batches, inputs)]
    if len(feeds) < HELD_SHARE * HELD_LEAST:
        return feeds, []
    held = feeds[HELD_SHARE - 1 :: HELD_SHARE][:HELD_MOST]
    chosen = {id(feed) for feed in held}
    return [feed for feed in feeds if id(feed) not in chosen], held
