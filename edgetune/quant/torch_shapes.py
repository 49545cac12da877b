"""Operators of ONNX that move values about, in torch; and what all operators share.

A function takes the node's attributes and its inputs (None where one is left out). It knows no graph. It may
import onnx and torch.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from onnx import numpy_helper
from torch import Tensor
from torch.nn import functional as F

Attributes = dict[str, Any]
Inputs = Sequence[Tensor | None]
Operator = Callable[[Attributes, Inputs], "Tensor | tuple[Tensor, ...]"]


def given(inputs: Inputs, index: int) -> Tensor | None:
    """Return an input, None where it is left out."""
    return inputs[index] if len(inputs) > index else None


def needed(inputs: Inputs, index: int = 0) -> Tensor:
    """Return an input that has to be there."""
    value = inputs[index]
    if value is None:
        raise ValueError(f"input {index} is left out")
    return value


def ints(value: Tensor | None) -> list[int]:
    """Return the values of a tensor of integers."""
    return [] if value is None else [int(item) for item in value.flatten().tolist()]


def axes_of(attributes: Attributes, inputs: Inputs) -> list[int]:
    """Axes as an attribute (older opsets) or as the second input."""
    return list(attributes["axes"]) if "axes" in attributes else ints(given(inputs, 1))


def torch_pads(pads: Sequence[int]) -> list[int]:
    """ONNX lists all beginnings, then all ends; torch lists pairs from the last dimension on."""
    half = len(pads) // 2
    return [value for axis in reversed(range(half)) for value in (pads[axis], pads[half + axis])]


def reshape(attributes: Attributes, inputs: Inputs) -> Tensor:
    """To the shape of the second input: 0 keeps a dimension, unless `allowzero`."""
    x, shape = needed(inputs), ints(given(inputs, 1))
    if not attributes.get("allowzero", 0):
        shape = [x.shape[axis] if size == 0 else size for axis, size in enumerate(shape)]
    return x.reshape(shape)


def flatten(attributes: Attributes, inputs: Inputs) -> Tensor:
    """To a matrix, cut at `axis`."""
    x = needed(inputs)
    axis = attributes.get("axis", 1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


def transpose(attributes: Attributes, inputs: Inputs) -> Tensor:
    """Reorder dimensions; reversed where no order is given."""
    x = needed(inputs)
    return x.permute(attributes.get("perm", list(reversed(range(x.ndim)))))


def squeeze(attributes: Attributes, inputs: Inputs) -> Tensor:
    """Drop dimensions of size 1, the named ones or all."""
    x, axes = needed(inputs), axes_of(attributes, inputs)
    return x.squeeze(tuple(axes)) if axes else x.squeeze()


def unsqueeze(attributes: Attributes, inputs: Inputs) -> Tensor:
    """Add dimensions of size 1 at places of the result."""
    x, axes = needed(inputs), axes_of(attributes, inputs)
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def slice_(attributes: Attributes, inputs: Inputs) -> Tensor:
    """Cut along axes, steps of either sign."""
    x, starts, ends = needed(inputs), ints(given(inputs, 1)), ints(given(inputs, 2))
    axes = ints(given(inputs, 3)) or list(range(len(starts)))
    steps = ints(given(inputs, 4)) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        places = range(x.shape[axis])[start:end:step]
        x = x.index_select(axis, torch.tensor(list(places), dtype=torch.long, device=x.device))
    return x


def split(attributes: Attributes, inputs: Inputs) -> tuple[Tensor, ...]:
    """Cut along an axis into given sizes, or into equal ones (`_outputs` of them)."""
    x, axis = needed(inputs), attributes.get("axis", 0)
    sizes = list(attributes["split"]) if "split" in attributes else ints(given(inputs, 1))
    if not sizes:
        return torch.split(x, math.ceil(x.shape[axis] / attributes["_outputs"]), axis)
    return torch.split(x, sizes, axis)


def gather(attributes: Attributes, inputs: Inputs) -> Tensor:
    """Pick entries along an axis; indices of any shape."""
    x, indices, axis = needed(inputs), needed(inputs, 1).long(), attributes.get("axis", 0)
    axis %= x.ndim
    indices = indices.to(x.device)
    indices = torch.where(indices < 0, indices + x.shape[axis], indices)
    picked = x.index_select(axis, indices.flatten())
    return picked.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


def pad(attributes: Attributes, inputs: Inputs) -> Tensor:
    """Constant, reflecting or repeating borders."""
    x, pads, fill = needed(inputs), ints(given(inputs, 1)), given(inputs, 2)
    axes = ints(given(inputs, 3)) or list(range(x.ndim))
    full = [0] * 2 * x.ndim
    for place, axis in enumerate(axes):
        full[axis % x.ndim] = pads[place]
        full[x.ndim + axis % x.ndim] = pads[len(axes) + place]
    mode = attributes.get("mode", b"constant").decode()
    if mode == "constant":
        return F.pad(x, torch_pads(full), value=0.0 if fill is None else float(fill))
    outer, spatial = full[:2] + full[x.ndim : x.ndim + 2], full[2 : x.ndim] + full[x.ndim + 2 :]
    if any(outer) or mode not in ("reflect", "edge"):
        raise ValueError(f"Pad with mode {mode}, or of batch or channels")
    return F.pad(x, torch_pads(spatial), mode={"reflect": "reflect", "edge": "replicate"}[mode])


def concat(attributes: Attributes, inputs: Inputs) -> Tensor:
    """Join along an axis; a constant made for a batch of one is repeated."""
    parts = [part for part in inputs if part is not None]
    axis = attributes["axis"] % parts[0].ndim
    rows = max(part.shape[0] for part in parts)
    if axis and rows > 1 and parts[0].ndim > 1:
        parts = [p.expand(rows, *p.shape[1:]) if p.shape[0] == 1 else p for p in parts]
    return torch.cat(parts, axis)


def depth_to_space(attributes: Attributes, inputs: Inputs) -> Tensor:
    """Channels into pixels, in either order."""
    x, block = needed(inputs), attributes["blocksize"]
    if attributes.get("mode", b"DCR") == b"CRD":
        return F.pixel_shuffle(x, block)
    n, c, h, w = x.shape
    x = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(n, c // block**2, h * block, w * block)


def space_to_depth(attributes: Attributes, inputs: Inputs) -> Tensor:
    """Pixels into channels; the place inside of a block comes first."""
    x, block = needed(inputs), attributes["blocksize"]
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(n, c * block**2, h // block, w // block)


def expand(attributes: Attributes, inputs: Inputs) -> Tensor:
    """Repeat along dimensions of size 1; sizes of 1 keep what is there."""
    x = needed(inputs)
    return x.expand(np.broadcast_shapes(tuple(x.shape), tuple(ints(given(inputs, 1)))))


def tile(attributes: Attributes, inputs: Inputs) -> Tensor:
    """Repeat the whole along each dimension."""
    return needed(inputs).repeat(ints(given(inputs, 1)))


def shape(attributes: Attributes, inputs: Inputs) -> Tensor:
    """The sizes of a tensor, int64; on the CPU, wherever the tensor is, since sizes are read there."""
    sizes = list(needed(inputs).shape)[attributes.get("start", 0) : attributes.get("end")]
    return torch.tensor(sizes, dtype=torch.int64)


def constant_of_shape(attributes: Attributes, inputs: Inputs) -> Tensor:
    """One value everywhere."""
    value = numpy_helper.to_array(attributes["value"]).item() if "value" in attributes else 0.0
    kind = {float: torch.float32, bool: torch.bool, int: torch.int64}[type(value)]
    return torch.full(ints(needed(inputs)), value, dtype=kind)
