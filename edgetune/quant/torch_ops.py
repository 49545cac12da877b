"""ONNX's operators in torch, differentiable: one function per operator, one row each in `OPS`.

A function takes the node's attributes and its inputs (None where one is left out) and returns a tensor, or
a tuple of them. What cannot be done raises ValueError. It knows no graph. It may import quant.torch_shapes,
quant.torch_resize and torch.
"""

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from edgetune.quant.torch_resize import resize
from edgetune.quant.torch_shapes import (
    Attributes,
    Inputs,
    Operator,
    axes_of,
    concat,
    constant_of_shape,
    depth_to_space,
    expand,
    flatten,
    gather,
    given,
    needed,
    pad,
    reshape,
    shape,
    slice_,
    space_to_depth,
    split,
    squeeze,
    tile,
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
    x, bias = needed(inputs), given(inputs, 2)
    axis = attributes.get("axis", -1) % x.ndim
    result = F.layer_norm(x, list(x.shape[axis:]), eps=attributes.get("epsilon", 1e-5)) * needed(inputs, 1)
    return result if bias is None else result + bias


def instance_norm(attributes: Attributes, inputs: Inputs) -> Tensor:
    """Normalise each channel of each input by itself."""
    return F.instance_norm(
        needed(inputs), weight=needed(inputs, 1), bias=needed(inputs, 2), eps=attributes.get("epsilon", 1e-5)
    )


def response_norm(attributes: Attributes, inputs: Inputs) -> Tensor:
    """Divide by the sum of squares over neighbouring channels; torch centres windows of odd sizes alike."""
    size = attributes["size"]
    if size % 2 == 0:
        raise ValueError("LRN of an even size")
    return F.local_response_norm(
        needed(inputs), size, attributes.get("alpha", 1e-4), attributes.get("beta", 0.75), attributes.get("bias", 1.0)
    )  # fmt: skip


def _fits_torch(pads: Sequence[int], kernel: Sequence[int]) -> bool:
    """Whether torch pads by itself: the same at both ends, and by half a window at most."""
    half = len(pads) // 2
    return list(pads[:half]) == list(pads[half:]) and all(
        2 * p <= k for p, k in zip(pads, kernel, strict=False)
    )


def _windows(pool: Callable[..., Tensor], x: Tensor, pads: Sequence[int], strides: Sequence[int]) -> Tensor:
    """Apply a pooling to what is padded already; windows that begin in the padding at the end do not count."""
    made = pool(x)
    half = len(pads) // 2
    for axis in range(half):
        length = x.shape[2 + axis] - pads[half + axis]
        made = made.narrow(2 + axis, 0, min(made.shape[2 + axis], -(-length // strides[axis])))
    return made


def max_pool(attributes: Attributes, inputs: Inputs) -> Tensor:
    """Maximum over a window; the second output (indices) is not made."""
    x, kernel = needed(inputs), attributes["kernel_shape"]
    pads = pads_of(x, kernel, attributes)
    strides = attributes.get("strides", [1] * len(kernel))
    pool = functools.partial(
        _MAX_POOL[len(kernel)], kernel_size=kernel, stride=strides,
        dilation=attributes.get("dilations", 1), ceil_mode=bool(attributes.get("ceil_mode", 0)),
    )  # fmt: skip
    if _fits_torch(pads, kernel):
        return pool(x, padding=pads[: len(kernel)])
    return _windows(pool, F.pad(x, torch_pads(pads), value=-math.inf), pads, strides)


def average_pool(attributes: Attributes, inputs: Inputs) -> Tensor:
    """Mean over a window, of the padding too where `count_include_pad` says so."""
    x, kernel = needed(inputs), attributes["kernel_shape"]
    if any(step != 1 for step in attributes.get("dilations", [])):
        raise ValueError("AveragePool with dilations")
    include = bool(attributes.get("count_include_pad", 0))
    strides = attributes.get("strides", [1] * len(kernel))
    pads = pads_of(x, kernel, attributes)
    pool = functools.partial(
        _AVERAGE_POOL[len(kernel)], kernel_size=kernel, stride=strides,
        ceil_mode=bool(attributes.get("ceil_mode", 0)),
    )  # fmt: skip
    if _fits_torch(pads, kernel):
        return pool(x, padding=pads[: len(kernel)], count_include_pad=include)
    result = _windows(pool, F.pad(x, torch_pads(pads)), pads, strides)
    if include:
        return result
    return result / _windows(pool, F.pad(torch.ones_like(x), torch_pads(pads)), pads, strides)


def clip(attributes: Attributes, inputs: Inputs) -> Tensor:
    """Limits as inputs (opset 11 on), either of which may be left out."""
    x, low, high = needed(inputs), given(inputs, 1), given(inputs, 2)
    return x if low is None and high is None else torch.clamp(x, low, high)


def softmax(attributes: Attributes, inputs: Inputs) -> Tensor:
    """Over one axis (opset 13 on)."""
    return torch.softmax(needed(inputs), attributes.get("axis", -1))


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
    2: torch.uint8,
    3: torch.int8,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
}


def cast(attributes: Attributes, inputs: Inputs) -> Tensor:
    """To another type of elements."""
    return needed(inputs).to(TYPES[attributes["to"]])


def arg(kind: Callable[..., Tensor]) -> Operator:
    """Make argmax or argmin of torch one of ONNX; of equal values torch may name another one."""

    def operator(attributes: Attributes, inputs: Inputs) -> Tensor:
        keep = bool(attributes.get("keepdims", 1))
        return kind(needed(inputs), dim=attributes.get("axis", 0), keepdim=keep)

    return operator


_SELU = (1.67326319217681884765625, 1.05070102214813232421875)


def _unary(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda attributes, inputs: function(needed(inputs))


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    """Make a function of two tensors an operator; shapes, which are on the CPU, may meet other values."""

    def operator(attributes: Attributes, inputs: Inputs) -> Tensor:
        a, b = needed(inputs), needed(inputs, 1)
        device = b.device if a.device.type == "cpu" else a.device
        return function(a.to(device), b.to(device))

    return operator


def _several(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda attributes, inputs: functools.reduce(function, [x for x in inputs if x is not None])


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _where(attributes: Attributes, inputs: Inputs) -> Tensor:
    condition, a, b = (needed(inputs, index) for index in range(3))
    device = next((x.device for x in (condition, a, b) if x.device.type != "cpu"), a.device)
    return torch.where(condition.to(device), a.to(device), b.to(device))


def _prelu(attributes: Attributes, inputs: Inputs) -> Tensor:
    x = needed(inputs)
    return torch.where(x < 0, x * needed(inputs, 1), x)


def _thresholded(attributes: Attributes, inputs: Inputs) -> Tensor:
    x = needed(inputs)
    return torch.where(x > attributes.get("alpha", 1.0), x, torch.zeros_like(x))


OPS: dict[str, Operator] = {
    "Abs": _unary(torch.abs),
    "Add": _binary(torch.add),
    "And": _binary(torch.logical_and),
    "ArgMax": arg(torch.argmax),
    "ArgMin": arg(torch.argmin),
    "AveragePool": average_pool,
    "BatchNormalization": batch_norm,
    "Cast": cast,
    "Ceil": _unary(torch.ceil),
    "Celu": lambda a, i: F.celu(needed(i), a.get("alpha", 1.0)),
    "Clip": clip,
    "Concat": concat,
    "ConstantOfShape": constant_of_shape,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Cos": _unary(torch.cos),
    "DepthToSpace": depth_to_space,
    "Div": _binary(_divide),
    "Dropout": _unary(lambda x: x),
    "Einsum": lambda a, i: torch.einsum(a["equation"].decode(), *(needed(i, k) for k in range(len(i)))),
    "Elu": lambda a, i: F.elu(needed(i), a.get("alpha", 1.0)),
    "Equal": _binary(torch.eq),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Expand": expand,
    "Flatten": flatten,
    "Floor": _unary(torch.floor),
    "Gather": gather,
    "Gelu": gelu,
    "Gemm": gemm,
    "GlobalAveragePool": _unary(lambda x: x.mean(tuple(range(2, x.ndim)), keepdim=True)),
    "GlobalMaxPool": _unary(lambda x: x.amax(tuple(range(2, x.ndim)), keepdim=True)),
    "Greater": _binary(torch.gt),
    "GreaterOrEqual": _binary(torch.ge),
    "HardSigmoid": lambda a, i: torch.clamp(a.get("alpha", 0.2) * needed(i) + a.get("beta", 0.5), 0, 1),
    "HardSwish": _unary(F.hardswish),
    "Identity": _unary(lambda x: x),
    "InstanceNormalization": instance_norm,
    "LRN": response_norm,
    "LayerNormalization": layer_norm,
    "LeakyRelu": lambda a, i: F.leaky_relu(needed(i), a.get("alpha", 0.01)),
    "Less": _binary(torch.lt),
    "LessOrEqual": _binary(torch.le),
    "Log": _unary(torch.log),
    "LogSoftmax": lambda a, i: torch.log_softmax(needed(i), a.get("axis", -1)),
    "MatMul": _binary(torch.matmul),
    "Max": _several(torch.maximum),
    "MaxPool": max_pool,
    "Min": _several(torch.minimum),
    "Mish": _unary(F.mish),
    "Mul": _binary(torch.mul),
    "Neg": _unary(torch.neg),
    "Not": _unary(torch.logical_not),
    "Or": _binary(torch.logical_or),
    "PRelu": _prelu,
    "Pad": pad,
    "Pow": _binary(torch.pow),
    "Reciprocal": _unary(torch.reciprocal),
    "ReduceL2": reduce(torch.linalg.vector_norm),
    "ReduceMax": reduce(torch.amax),
    "ReduceMean": reduce(torch.mean),
    "ReduceMin": reduce(torch.amin),
    "ReduceSum": reduce(torch.sum),
    "Relu": _unary(torch.relu),
    "Reshape": reshape,
    "Resize": resize,
    "Round": _unary(torch.round),
    "Selu": lambda a, i: a.get("gamma", _SELU[1]) * F.elu(needed(i), a.get("alpha", _SELU[0])),
    "Shape": shape,
    "Sigmoid": _unary(torch.sigmoid),
    "Sign": _unary(torch.sign),
    "Sin": _unary(torch.sin),
    "Slice": slice_,
    "Softmax": softmax,
    "Softplus": _unary(F.softplus),
    "Softsign": _unary(F.softsign),
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Sqrt": _unary(torch.sqrt),
    "Squeeze": squeeze,
    "Sub": _binary(torch.sub),
    "Sum": _several(torch.add),
    "Tanh": _unary(torch.tanh),
    "ThresholdedRelu": _thresholded,
    "Tile": tile,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
    "Where": _where,
}
