"""Rules of the lint about the Deep Learning Accelerator of Jetson Xavier and Orin.

Its limits are those of TensorRT's guide ("DLA Supported Layers and Restrictions"); which ONNX operators reach
it is the matrix of NVIDIA's Deep-Learning-Accelerator-SW repository for Orin with TensorRT 8.5 and 8.6. What
it does not take runs on the GPU, where fallback is allowed, and costs a transfer both ways; else the build
fails. It may import quant.graph, quant.plan and quant.lint_view.
"""

from collections.abc import Callable, Iterator

import numpy as np
from onnx import NodeProto

from edgetune.quant.graph import Graph, attribute, is_standard
from edgetune.quant.lint_view import Hit, View
from edgetune.quant.plan import is_copy

_BATCH, _SIZE = 4096, 8192
_LOADABLES = 16
_NATIVE = frozenset(
    {
        *("Abs", "Add", "AveragePool", "BatchNormalization", "Clip", "Concat", "Constant", "Conv"),
        *("ConvTranspose", "Equal", "Gemm", "LeakyRelu", "LRN", "MatMul", "Max", "MaxPool", "Mul", "PRelu"),
        *("Relu", "Reshape", "Resize", "Sigmoid", "Slice", "Softmax", "Split", "Sub", "Sum", "Tanh"),
        *("Transpose", "Upsample"),
    }
)
# Vanish while the engine is built.
_FREE = frozenset({"Identity", "Dropout", "Shape", "ConstantOfShape", "Flatten", "Squeeze", "Unsqueeze"})
_REMEDIES = {
    "GlobalAveragePool": "; an AveragePool with a window up to 8x8 is taken",
    "ReduceMean": "; an AveragePool with a window up to 8x8 is taken",
    "HardSwish": "; Relu is taken",
    "HardSigmoid": "; Sigmoid is taken",
}


def absent(view: View) -> Iterator[Hit]:
    """Targets without a DLA, and versions that do not drive it."""
    if not view.reader.dla_cores:
        yield Hit("", f"{view.reader.label} has no DLA")
    elif (10, 8) <= view.reader.version < (11, 4):
        yield Hit("", f"{view.reader.name} does not support DLA: 10.7 was the last before 11.4.1")


def explicit(view: View) -> Iterator[Hit]:
    """Q/DQ, which DLAs do not take before TensorRT 11.4."""
    if view.stored and view.reader.version < (11, 4):
        count = len(view.stored)
        yield Hit("", f"Q/DQ on {count} tensors, which {view.reader.name} does not run on a DLA")


def dynamic(view: View) -> Iterator[Hit]:
    """Sizes that are not fixed."""
    for name in view.graph.inputs:
        shape = view.graph.shape(name)
        if shape is None or any(isinstance(size, str) for size in shape):
            yield Hit("", f"input {name!r} has no fixed shape, which a DLA needs")


def sizes(view: View) -> Iterator[Hit]:
    """Tensors larger than the DLA's counters."""
    for node in view.bare.nodes:
        shape = view.bare.shape(node.output[0]) if node.output else None
        numbers = [size if isinstance(size, int) else 0 for size in shape or ()]
        if len(numbers) > 1 and (numbers[0] > _BATCH or max(numbers[1:]) > _SIZE):
            found = "x".join(map(str, numbers))
            yield Hit(node.name, f"its result is {found}; a DLA counts to {_BATCH} inputs and {_SIZE} a side")


def operators(view: View) -> Iterator[Hit]:
    """Operators and forms of them that a DLA does not have."""
    for node in view.bare.nodes:
        reason = why_gpu(view.bare, node)
        if reason:
            yield Hit(node.name, reason)


def why_gpu(graph: Graph, node: NodeProto) -> str:
    """Return why a node cannot run on a DLA, or nothing."""
    if not is_standard(node):
        return f"{node.op_type} of the domain {node.domain!r} has no way onto a DLA"
    if node.op_type in _FREE:
        return ""
    if node.op_type == "ReduceMax":
        return ""
    if node.op_type not in _NATIVE:
        return f"TensorRT does not run {node.op_type} on a DLA{_REMEDIES.get(node.op_type, '')}"
    check = _CHECKS.get(node.op_type)
    return "" if check is None else check(graph, node)


def _why_conv(graph: Graph, node: NodeProto) -> str:
    weight = graph.constants.get(node.input[1])
    if weight is None:
        return "its weights are computed"
    kernel = weight.shape[2:]
    if len(kernel) != 2:
        return f"{len(kernel)} dimensions; a DLA has 2"
    strides, dilations = attribute(node, "strides", [1, 1]), attribute(node, "dilations", [1, 1])
    pads = attribute(node, "pads", [0, 0, 0, 0])
    transposed = node.op_type == "ConvTranspose"
    limits = (
        (max(kernel) > 32, f"a kernel of {max(kernel)}; a DLA has 32 at most"),
        (max(strides) > 8, f"a stride of {max(strides)}; a DLA has 8 at most"),
        (max(pads) > 31, f"a padding of {max(pads)}; a DLA has 31 at most"),
        (max(dilations) > 32, f"a dilation of {max(dilations)}; a DLA has 32 at most"),
        (max(weight.shape[:2]) > _SIZE, f"{max(weight.shape[:2])} channels; a DLA has {_SIZE} at most"),
        (transposed and attribute(node, "group", 1) > 1, "a transposed convolution with groups"),
        (transposed and max(dilations) > 1, "a dilated transposed convolution"),
        (transposed and max(pads) > 0, "a padded transposed convolution"),
    )
    return next((reason for exceeded, reason in limits if exceeded), "")


def _why_pool(_: Graph, node: NodeProto) -> str:
    kernel = attribute(node, "kernel_shape", [1, 1])
    strides, pads = attribute(node, "strides", [1, 1]), attribute(node, "pads", [0, 0, 0, 0])
    if len(kernel) != 2:
        return f"{len(kernel)} dimensions; a DLA has 2"
    limits = (
        (max(kernel) > 8, f"a window of {max(kernel)}; a DLA has 8 at most"),
        (max(strides) > 16, f"a stride of {max(strides)}; a DLA has 16 at most"),
        (max(pads) > 7, f"a padding of {max(pads)}; a DLA has 7 at most"),
        (
            node.op_type == "AveragePool" and max(pads) > 0 and not attribute(node, "count_include_pad", 0),
            "an average that leaves its padding out, which a DLA counts in",
        ),
    )
    return next((reason for exceeded, reason in limits if exceeded), "")


def _why_concat(graph: Graph, node: NodeProto) -> str:
    rank = len(graph.shape(node.output[0]) or (0, 0, 0, 0))
    axis = attribute(node, "axis", 1) % rank
    return "" if rank == 4 and axis == 1 else f"a Concat along axis {axis}; a DLA joins channels (axis 1)"


def _why_product(graph: Graph, node: NodeProto) -> str:
    return "" if node.input[1] in graph.constants else "a product of two computed tensors"


def _why_clip(graph: Graph, node: NodeProto) -> str:
    bounds = [graph.constants.get(name) if name else None for name in [*node.input[1:], "", ""][:2]]
    low, high = (None if value is None else float(np.reshape(value, -1)[0]) for value in bounds)
    if low == 0 and high is not None and 1 <= high <= 127:
        return ""
    return f"a Clip from {low} to {high}; a DLA clips from 0, to between 1 and 127"


def _why_resize(graph: Graph, node: NodeProto) -> str:
    mode = attribute(node, "mode", b"nearest")
    if mode == b"cubic":
        return "a cubic Resize; a DLA has nearest and linear"
    scales = graph.constants.get(node.input[2]) if len(node.input) > 2 else None
    if scales is None or scales.size != 4:
        return ""
    most = 32 if mode == b"nearest" else 4
    whole = np.array_equal(scales, np.rint(scales))
    fits = scales[0] == scales[1] == 1 and scales[2:].max() <= most and (whole or mode != b"nearest")
    return (
        ""
        if fits
        else f"a Resize by {scales.tolist()}; a DLA takes whole factors up to {most}, not of channels"
    )


def _why_elementwise(graph: Graph, node: NodeProto) -> str:
    ranks = {len(graph.shape(name) or ()) for name in graph.variables(node)} - {0, 4}
    return f"tensors of {max(ranks)} dimensions; a DLA has 4" if ranks else ""


_CHECKS: dict[str, Callable[[Graph, NodeProto], str]] = {
    **dict.fromkeys(("Conv", "ConvTranspose"), _why_conv),
    **dict.fromkeys(("MaxPool", "AveragePool"), _why_pool),
    **dict.fromkeys(("Gemm", "MatMul"), _why_product),
    **dict.fromkeys(("Add", "Mul", "Sub", "Max", "Sum"), _why_elementwise),
    "Concat": _why_concat,
    "Clip": _why_clip,
    "Resize": _why_resize,
}


def loadables(view: View) -> Iterator[Hit]:
    """More pieces than a DLA core loads at once."""
    pieces, inside = 0, False
    for node in view.bare.nodes:
        if is_copy(view.bare, node) and node.op_type in _FREE:
            continue
        on_dla = not why_gpu(view.bare, node)
        pieces += on_dla and not inside
        inside = on_dla
    if pieces > _LOADABLES:
        yield Hit("", f"about {pieces} pieces between operators on the GPU; a DLA core loads {_LOADABLES}")
