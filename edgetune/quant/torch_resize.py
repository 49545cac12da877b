"""ONNX's Resize in torch, for every way to place samples but cubic ones.

Interpolation is done one axis after the other, by indices and weights that depend on sizes alone, so gradients
pass. It knows no graph. It may import quant.torch_shapes and torch.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgetune.quant.torch_shapes import Attributes, Inputs, given, ints, needed

Places = NDArray[np.float32]


def resize(attributes: Attributes, inputs: Inputs) -> Tensor:
    """Nearest or linear, by factors or to sizes; the batch stays as it is."""
    x, scales, sizes = needed(inputs), given(inputs, 2), ints(given(inputs, 3))
    mode = attributes.get("mode", b"nearest").decode()
    policy = attributes.get("keep_aspect_ratio_policy", b"stretch").decode()
    if mode not in ("nearest", "linear") or attributes.get("antialias", 0) or policy != "stretch":
        raise ValueError(f"Resize with mode {mode}, antialias or a kept aspect ratio")
    axes = [axis % x.ndim for axis in attributes.get("axes", range(x.ndim))]
    factors = [] if scales is None else [float(value) for value in scales.flatten().tolist()]
    for place, axis in enumerate(axes):
        length = x.shape[axis]
        size = sizes[place] if sizes else math.floor(length * factors[place])
        factor = size / length if sizes else factors[place]
        if axis and (size != length or factor != 1):
            found = _places(attributes, length, size, np.float32(factor))
            x = _nearest(x, axis, found, attributes) if mode == "nearest" else _linear(x, axis, found)
    return x


def _places(attributes: Attributes, length: int, size: int, factor: np.float32) -> Places:
    """Return where in the input each sample of the output lies, in float32 as ONNX Runtime does."""
    kind = attributes.get("coordinate_transformation_mode", b"half_pixel").decode()
    to, half = np.arange(size, dtype=np.float32), np.float32(0.5)
    if kind == "asymmetric":
        return to / factor
    if kind == "align_corners":
        return to * np.float32(length - 1) / np.float32(max(size - 1, 1))
    if kind == "half_pixel" or (kind == "pytorch_half_pixel" and size > 1):
        return (to + half) / factor - half
    if kind == "pytorch_half_pixel":
        return np.zeros(1, np.float32)
    if kind == "half_pixel_symmetric":
        offset = np.float32(length / 2) * (1 - np.float32(size) / (np.float32(length) * factor))
        return offset + (to + half) / factor - half
    raise ValueError(f"Resize with coordinates {kind}")


# From a place to the sample that is taken.
_WHOLE: dict[str, Callable[[Places], Places]] = {
    "floor": np.floor,
    "ceil": np.ceil,
    "round_prefer_floor": lambda places: np.ceil(places - np.float32(0.5)),
    "round_prefer_ceil": lambda places: np.floor(places + np.float32(0.5)),
}


def _nearest(x: Tensor, axis: int, places: Places, attributes: Attributes) -> Tensor:
    whole = _WHOLE[attributes.get("nearest_mode", b"round_prefer_floor").decode()]
    return _picked(x, axis, np.clip(whole(places), 0, x.shape[axis] - 1))


def _linear(x: Tensor, axis: int, places: Places) -> Tensor:
    last = x.shape[axis] - 1
    inside = np.clip(places, 0, last)
    first = np.floor(inside)
    share = torch.from_numpy(inside - first).to(x.device, x.dtype)
    share = share.reshape([-1 if place == axis else 1 for place in range(x.ndim)])
    low, high = _picked(x, axis, first), _picked(x, axis, np.minimum(first + 1, last))
    return low * (1 - share) + high * share


def _picked(x: Tensor, axis: int, places: Places) -> Tensor:
    return x.index_select(axis, torch.from_numpy(places.astype(np.int64)).to(x.device))
