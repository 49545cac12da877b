"""Rules of the lint about single Q/DQ nodes: types, zero points, scales, axes.

What TensorRT's ONNX parser checks when it meets QuantizeLinear or DequantizeLinear (onnx-tensorrt,
`QuantDequantLinearHelper` in `onnxOpImporters.cpp`), and what it takes without saying what it makes of it.
It may import quant.graph, quant.plan and quant.lint_view.
"""

from collections.abc import Iterator

import numpy as np
from onnx import NodeProto, TensorProto, helper

from edgetune.quant.graph import attribute, opset_of
from edgetune.quant.lint_view import Hit, Severity, View, is_qdq
from edgetune.quant.plan import copied_from, weight_axis

# Types beside INT8 that TensorRT's Q/DQ has, and the version from which it has them.
_LATER_TYPES: dict[int, tuple[int, int]] = {
    TensorProto.FLOAT8E4M3FN: (9, 0),
    TensorProto.INT4: (10, 0),
    TensorProto.FLOAT4E2M1: (10, 8),
}
# From here on a DLA can be told to take unsigned integers and zero points.
_DLA_ASYMMETRIC = (11, 4)


def _severity(view: View) -> Severity:
    on_dla = view.reader.dla and view.reader.version >= _DLA_ASYMMETRIC
    return "warning" if on_dla else "error"


def no_path(view: View) -> Iterator[Hit]:
    """Q/DQ where nothing runs in INT8: said once, at the first."""
    if view.stored and view.reader.no_int8:
        count = len(view.stored)
        stored = "a tensor is stored as integers" if count == 1 else f"{count} tensors are stored as integers"
        yield Hit(view.stored[0].node.name, f"{stored}, and {view.reader.no_int8}")


def zero_point(view: View) -> Iterator[Hit]:
    """Zero points other than 0."""
    for item in view.stored:
        if item.zero_point is not None and item.zero_point.astype(np.int64).any():
            found = item.zero_point.astype(np.int64).ravel()
            shown = f"zero point {found[0]}" if found.size == 1 else f"{np.count_nonzero(found)} zero points"
            yield Hit(item.node.name, f"{shown} for {item.what}, where only 0 is taken", _severity(view))


def unsigned(view: View) -> Iterator[Hit]:
    """Unsigned integers: read as signed ones, values above 127 are lost."""
    for item in view.stored:
        if item.kind == TensorProto.UINT8 and not _lacks_zero_point(item.node):
            reason = f"{item.what} is uint8; TensorRT stores int8, and would cut it off at 127"
            yield Hit(item.node.name, reason, _severity(view))


def _lacks_zero_point(node: NodeProto) -> bool:
    return len(node.input) < 3 or not node.input[2]


def integer_bias(view: View) -> Iterator[Hit]:
    """Biases stored as 32-bit integers."""
    for item in view.stored:
        if item.kind == TensorProto.INT32:
            owners = [node.name for node in view.graph.consumers.get(item.node.output[0], [])]
            reason = (
                f"{item.what} ({', '.join(owners) or 'unread'}) is int32; DequantizeLinear takes int8 alone"
            )
            yield Hit(item.node.name, reason)


def other_type(view: View) -> Iterator[Hit]:
    """Quantized types that this version does not have."""
    known = {TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32, TensorProto.UNDEFINED}
    for item in view.stored:
        since = _LATER_TYPES.get(item.kind)
        if item.kind not in known and (since is None or view.reader.version < since):
            name = helper.tensor_dtype_to_string(item.kind).removeprefix("TensorProto.")
            later = f"; TensorRT {since[0]}.{since[1]} has it" if since else ""
            yield Hit(
                item.node.name, f"{item.what} is {name}, which {view.reader.name} has no Q/DQ for{later}"
            )


def no_zero_point(view: View) -> Iterator[Hit]:
    """Zero points left out."""
    for node in view.graph.nodes:
        if not is_qdq(node) or not _lacks_zero_point(node):
            continue
        if node.op_type == "QuantizeLinear" and not attribute(node, "output_dtype", 0):
            yield Hit(node.name, "no zero point: uint8 by ONNX's definition, int8 by TensorRT's")
        elif view.reader.version < (9,):
            yield Hit(node.name, f"no zero point, where {view.reader.name}'s parser wants three inputs")


def scale_value(view: View) -> Iterator[Hit]:
    """Scales that are zero, negative, infinite or NaN."""
    for item in view.stored:
        if item.scale is None:
            continue
        scale = item.scale.astype(np.float64)
        wrong = scale[~(np.isfinite(scale) & (scale > 0))]
        if wrong.size:
            many = f"{wrong.size} of {scale.size} scales" if scale.size > 1 else "a scale"
            yield Hit(item.node.name, f"{many} of {item.what} not finite and above 0: {wrong.flat[0]:g}")


def scale_computed(view: View) -> Iterator[Hit]:
    """Scales and zero points that are no initializers."""
    for node in view.graph.nodes:
        if is_qdq(node):
            for name, what in zip(node.input[1:3], ("scale", "zero point"), strict=False):
                if name and name not in view.graph.constants:
                    yield Hit(node.name, f"its {what} {name!r} is computed, not an initializer")


def scale_size(view: View) -> Iterator[Hit]:
    """Scales that are not as many as channels, or not as many as zero points."""
    for item in view.stored:
        if item.scale is None:
            continue
        size = item.scale.size
        if item.zero_point is not None and item.zero_point.size != size:
            yield Hit(item.node.name, f"{size} scales and {item.zero_point.size} zero points for {item.what}")
        shape = view.graph.shape(item.node.input[0])
        if size == 1 or not shape or attribute(item.node, "block_size", 0):
            continue
        axis = attribute(item.node, "axis", 1)
        channels = shape[axis] if -len(shape) <= axis < len(shape) else 0
        if isinstance(channels, int) and channels != size:
            yield Hit(
                item.node.name, f"{size} scales, but {channels} channels on axis {axis}, of {item.what}"
            )


def half_scale(view: View) -> Iterator[Hit]:
    """FP16 scales where Q/DQ does not have them yet."""
    opset = opset_of(view.source)
    for item in view.stored:
        if view.types.get(item.node.input[1]) != TensorProto.FLOAT16:
            continue
        if opset < 19:
            yield Hit(item.node.name, f"an FP16 scale at opset {opset}; Q/DQ has them from opset 19 on")
        elif view.reader.version < (9,):
            yield Hit(item.node.name, f"an FP16 scale, which {view.reader.name}'s parser reads as FP32")


def pair_differs(view: View) -> Iterator[Hit]:
    """Pairs whose DQ does not undo what its Q did."""
    for item in view.stored:
        before = view.graph.producers.get(copied_from(view.graph, item.node.input[0]))
        if (
            item.node.op_type == "DequantizeLinear"
            and before is not None
            and is_qdq(before, "QuantizeLinear")
        ):
            yield Hit(
                item.node.name,
                f"its scale or zero point is not that of {before.name!r}, whose integers it reads",
            )


def activation_channels(view: View) -> Iterator[Hit]:
    """Activations with a scale per channel."""
    for item in view.stored:
        if not item.weight and item.scale is not None and item.scale.size > 1:
            yield Hit(item.node.name, f"{item.scale.size} scales for {item.what}; activations have one")


def weight_scales(view: View) -> Iterator[tuple[NodeProto, NodeProto, int, int]]:
    """Give `bare`'s nodes whose weights come from DQ, with the DQ, the number of scales, and the axis of channels."""
    for node in view.bare.nodes:
        axis = weight_axis(view.bare, node)
        if axis is None:
            continue
        dequantize = view.dequantizer(view.written(node).input[1])
        scale = None if dequantize is None else view.graph.constants.get(dequantize.input[1])
        # Behind a Transpose the axis is another one.
        if (
            dequantize is not None
            and scale is not None
            and dequantize.output[0] == view.written(node).input[1]
        ):
            yield node, dequantize, scale.size, axis


def weight_tensor(view: View) -> Iterator[Hit]:
    """Weights with one scale for all output channels."""
    for node, dequantize, count, axis in weight_scales(view):
        channels = view.bare.constants[node.input[1]].shape[axis]
        if count == 1 and channels > 1:
            weak: Severity = "info" if node.op_type in ("Gemm", "MatMul") else "warning"
            reason = f"one scale for all {channels} output channels of {node.name!r}"
            yield Hit(dequantize.name, reason, weak)


def weight_channels(view: View) -> Iterator[Hit]:
    """Weights with scales along another axis than that of output channels."""
    for node, dequantize, count, axis in weight_scales(view):
        rank = view.bare.constants[node.input[1]].ndim
        found = attribute(dequantize, "axis", 1) % rank
        if count > 1 and found != axis and not attribute(dequantize, "block_size", 0):
            reason = f"scales along axis {found} of the weights of {node.name!r}, whose output channels are on {axis}"
            yield Hit(dequantize.name, reason)
