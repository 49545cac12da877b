"""ONNX's operators in torch, differentiable: one function per operator, one row each in `OPS`.

A function takes the node's attributes and its inputs (None where one is left out) and returns a tensor, or
a tuple of them. It knows no graph. It may import quant.torch_shapes and torch.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from edgetune.quant.torch_shapes import (
    Attributes,
    Inputs,
    Operator,
    axes_of,
    concat,
    depth_to_space,
    flatten,
    gather,
    given,
    ints,
    needed,
    pad,
    reshape,
    shape,
    slice_,
    split,
    squeeze,
    torch_pads,
    transpose,
    unsqueeze,
)


def _same_pads(size: Sequence[int], kernel: Sequence[int], attributes: Attributes) -> list[int]:
    """Pads of `auto_pad`, as ONNX defines them: ceil(size / stride) results, the odd one at one end."""
    strides = attributes.get("strides", [1] * len(kernel))
    dilations = attributes.get("dilations", [1] * len(kernel))
    begin, end = [], []
    for length, k, stride, dilation in zip(size, kernel, strides, dilations, strict=True):
        total = max(0, (math.ceil(length / stride) - 1) * stride + (k - 1) * dilation + 1 - length)
        less, more = total // 2, total - total // 2
        upper = attributes["auto_pad"] == b"SAME_UPPER"
        begin.append(less if upper else more)
        end.append(more if upper else less)
    return begin + end


def pads_of(x: Tensor, kernel: Sequence[int], attributes: Attributes) -> list[int]:
    if attributes.get("auto_pad", b"NOTSET") in (b"SAME_UPPER", b"SAME_LOWER"):
        return _same_pads(x.shape[2:], kernel, attributes)
    return list(attributes.get("pads", [0] * 2 * len(kernel)))


def _padded(x: Tensor, pads: Sequence[int], fill: float = 0.0) -> tuple[Tensor, list[int]]:
    """Pad where torch's own symmetric padding cannot say it; return what is left to pad."""
    half = len(pads) // 2
    if list(pads[:half]) == list(pads[half:]):
        return x, list(pads[:half])
    return F.pad(x, torch_pads(pads), value=fill), [0] * half


_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def conv(attributes: Attributes, inputs: Inputs) -> Tensor:
    """Convolution of any rank, group and padding."""
    x, weight, bias = needed(inputs), needed(inputs, 1), given(inputs, 2)
    rank = weight.ndim - 2
    x, left = _padded(x, pads_of(x, weight.shape[2:], attributes))
    result: Tensor = _CONV[rank](
        x, weight, bias, attributes.get("strides", 1), left,
        attributes.get("dilations", 1), attributes.get("group", 1),
    )  # fmt: skip
    return result


def conv_transpose(attributes: Attributes, inputs: Inputs) -> Tensor:
    """Transposed convolution with symmetric or asymmetric pads; `output_shape` is not supported."""
    if "output_shape" in attributes or attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise ValueError("ConvTranspose with output_shape or auto_pad")
    x, weight, bias = needed(inputs), needed(inputs, 1), given(inputs, 2)
    rank = weight.ndim - 2
    pads = list(attributes.get("pads", [0] * 2 * rank))
    result: Tensor = _CONV_TRANSPOSE[rank](
        x, weight, bias, attributes.get("strides", 1), 0, attributes.get("output_padding", 0),
        attributes.get("group", 1), attributes.get("dilations", 1),
    )  # fmt: skip
    # Pads of a transposed convolution cut the result.
    for axis in range(rank):
        length = result.shape[2 + axis] - pads[axis] - pads[rank + axis]
        result = result.narrow(2 + axis, pads[axis], length)
    return result


def gemm(attributes: Attributes, inputs: Inputs) -> Tensor:
    """alpha A B + beta C, either one transposed."""
    a, b, c = needed(inputs), needed(inputs, 1), given(inputs, 2)
    a = a.t() if attributes.get("transA") else a
    b = b.t() if attributes.get("transB") else b
    result: Tensor = attributes.get("alpha", 1.0) * (a @ b)
    return result if c is None else result + attributes.get("beta", 1.0) * c


def batch_norm(attributes: Attributes, inputs: Inputs) -> Tensor:
    """Normalise with the statistics that the graph holds."""
    x, gamma, beta, mean, variance = (needed(inputs, index) for index in range(5))
    return F.batch_norm(x, mean, variance, gamma, beta, eps=attributes.get("epsilon", 1e-5))


def layer_norm(attributes: Attributes, inputs: Inputs) -> Tensor:
    """Normalise over all dimensions from `axis` on."""
    x = needed(inputs)
    axis = attributes.get("axis", -1) % x.ndim
    shape = list(x.shape[axis:])
    return F.layer_norm(x, shape, needed(inputs, 1), given(inputs, 2), attributes.get("epsilon", 1e-5))


def instance_norm(attributes: Attributes, inputs: Inputs) -> Tensor:
    """Normalise each channel of each input by itself."""
    return F.instance_norm(
        needed(inputs), weight=needed(inputs, 1), bias=needed(inputs, 2), eps=attributes.get("epsilon", 1e-5)
    )


def max_pool(attributes: Attributes, inputs: Inputs) -> Tensor:
    """Maximum over a window; the second output (indices) is not made."""
    x, kernel = needed(inputs), attributes["kernel_shape"]
    pads = pads_of(x, kernel, attributes)
    if any(pads):
        x = F.pad(x, torch_pads(pads), value=-math.inf)
    result: Tensor = _MAX_POOL[len(kernel)](
        x, kernel, attributes.get("strides", [1] * len(kernel)), 0,
        attributes.get("dilations", 1), bool(attributes.get("ceil_mode", 0)),
    )  # fmt: skip
    return result


def average_pool(attributes: Attributes, inputs: Inputs) -> Tensor:
    """Mean over a window, of the padding too where `count_include_pad` says so."""
    x, kernel = needed(inputs), attributes["kernel_shape"]
    include = bool(attributes.get("count_include_pad", 0))
    pads = pads_of(x, kernel, attributes)
    half = len(pads) // 2
    if pads[:half] != pads[half:]:
        if not include:
            raise ValueError("AveragePool with asymmetric pads that do not count")
        x, pads = F.pad(x, torch_pads(pads)), [0] * 2 * half
    result: Tensor = _AVERAGE_POOL[len(kernel)](
        x, kernel, attributes.get("strides", [1] * len(kernel)), pads[:half],
        bool(attributes.get("ceil_mode", 0)), include,
    )  # fmt: skip
    return result


def clip(attributes: Attributes, inputs: Inputs) -> Tensor:
    """Limits as inputs (opset 11 on), either of which may be left out."""
    x, low, high = needed(inputs), given(inputs, 1), given(inputs, 2)
    return x if low is None and high is None else torch.clamp(x, low, high)


def softmax(attributes: Attributes, inputs: Inputs) -> Tensor:
    """Over one axis (opset 13 on)."""
    return torch.softmax(needed(inputs), attributes.get("axis", -1))


def resize(attributes: Attributes, inputs: Inputs) -> Tensor:
    """Nearest (asymmetric, floor) and linear (half pixel or aligned corners) over the spatial dimensions."""
    x, scales, sizes = needed(inputs), given(inputs, 2), ints(given(inputs, 3))
    mode = attributes.get("mode", b"nearest").decode()
    place = attributes.get("coordinate_transformation_mode", b"half_pixel").decode()
    target = sizes[2:] if sizes else None
    factors = None if target or scales is None else [float(value) for value in scales.tolist()[2:]]
    if mode == "nearest" and place == "asymmetric" and attributes.get("nearest_mode") == b"floor":
        return F.interpolate(x, target, factors, mode="nearest")
    if mode == "linear" and place in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        kind = {1: "linear", 2: "bilinear", 3: "trilinear"}[x.ndim - 2]
        return F.interpolate(x, target, factors, mode=kind, align_corners=place == "align_corners")
    if mode == "nearest" and factors and all(value == int(value) for value in factors):
        # Whole factors: every way to place pixels repeats each one as often.
        return F.interpolate(x, target, factors, mode="nearest")
    raise ValueError(f"Resize with mode {mode}, coordinates {place}")


def reduce(kind: Callable[..., Tensor]) -> Operator:
    """Make a reduction of torch one of ONNX: axes as attribute or input, all where none are given."""

    def operator(attributes: Attributes, inputs: Inputs) -> Tensor:
        x, axes = needed(inputs), axes_of(attributes, inputs)
        if not axes and attributes.get("noop_with_empty_axes", 0):
            return x
        return kind(x, dim=axes or list(range(x.ndim)), keepdim=bool(attributes.get("keepdims", 1)))

    return operator


def gelu(attributes: Attributes, inputs: Inputs) -> Tensor:
    """Exact, or by tanh."""
    return F.gelu(needed(inputs), approximate=attributes.get("approximate", b"none").decode())


# ONNX's numbers of element types that occur in graphs of networks.
TYPES = {
    1: torch.float32,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
}


def cast(attributes: Attributes, inputs: Inputs) -> Tensor:
    """To another type of elements."""
    return needed(inputs).to(TYPES[attributes["to"]])


def _unary(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda attributes, inputs: function(needed(inputs))


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda attributes, inputs: function(needed(inputs), needed(inputs, 1))


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


OPS: dict[str, Operator] = {
    "Abs": _unary(torch.abs),
    "Add": _binary(torch.add),
    "AveragePool": average_pool,
    "BatchNormalization": batch_norm,
    "Cast": cast,
    "Celu": lambda a, i: F.celu(needed(i), a.get("alpha", 1.0)),
    "Clip": clip,
    "Concat": concat,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "DepthToSpace": depth_to_space,
    "Div": _binary(_divide),
    "Dropout": _unary(lambda x: x),
    "Elu": lambda a, i: F.elu(needed(i), a.get("alpha", 1.0)),
    "Equal": _binary(torch.eq),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Expand": lambda a, i: needed(i) * torch.ones(ints(given(i, 1)), dtype=needed(i).dtype),
    "Flatten": flatten,
    "Gather": gather,
    "Gelu": gelu,
    "Gemm": gemm,
    "GlobalAveragePool": _unary(lambda x: x.mean(tuple(range(2, x.ndim)), keepdim=True)),
    "GlobalMaxPool": _unary(lambda x: x.amax(tuple(range(2, x.ndim)), keepdim=True)),
    "HardSigmoid": lambda a, i: torch.clamp(a.get("alpha", 0.2) * needed(i) + a.get("beta", 0.5), 0, 1),
    "HardSwish": _unary(F.hardswish),
    "Identity": _unary(lambda x: x),
    "InstanceNormalization": instance_norm,
    "LayerNormalization": layer_norm,
    "LeakyRelu": lambda a, i: F.leaky_relu(needed(i), a.get("alpha", 0.01)),
    "Log": _unary(torch.log),
    "MatMul": _binary(torch.matmul),
    "Max": _binary(torch.maximum),
    "MaxPool": max_pool,
    "Min": _binary(torch.minimum),
    "Mish": _unary(F.mish),
    "Mul": _binary(torch.mul),
    "Neg": _unary(torch.neg),
    "PRelu": lambda a, i: torch.where(needed(i) < 0, needed(i) * needed(i, 1), needed(i)),
    "Pad": pad,
    "Pow": _binary(torch.pow),
    "ReduceMax": reduce(torch.amax),
    "ReduceMean": reduce(torch.mean),
    "ReduceMin": reduce(torch.amin),
    "ReduceSum": reduce(torch.sum),
    "Reciprocal": _unary(torch.reciprocal),
    "Relu": _unary(torch.relu),
    "Reshape": reshape,
    "Resize": resize,
    "Selu": _unary(F.selu),
    "Shape": shape,
    "Sigmoid": _unary(torch.sigmoid),
    "Slice": slice_,
    "Softmax": softmax,
    "Softplus": _unary(F.softplus),
    "Softsign": _unary(F.softsign),
    "Split": split,
    "Sqrt": _unary(torch.sqrt),
    "Squeeze": squeeze,
    "Sub": _binary(torch.sub),
    "Tanh": _unary(torch.tanh),
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
    "Where": lambda a, i: torch.where(needed(i).bool(), needed(i, 1), needed(i, 2)),
}
