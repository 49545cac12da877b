"""Rules of the lint about where Q/DQ stands: what keeps TensorRT from fusing, or makes it convert back and forth.

What is expected comes from `quant.placement`, asked about the same network without Q/DQ: its float nodes are
those of the file, so that only the difference in placement is told. It may import quant.graph, quant.plan,
quant.placement and quant.lint_view.
"""

from collections.abc import Iterator

import numpy as np
from onnx import NodeProto, TensorProto

from edgetune.quant.graph import is_standard
from edgetune.quant.half import HALF_OPS
from edgetune.quant.lint_view import Hit, View, is_qdq
from edgetune.quant.placement import POOLS, kernels_missing, place, why_float
from edgetune.quant.plan import ACTIVATIONS, ARITHMETIC, COPIES, WEIGHTED, is_copy

# What has INT8 kernels; a Q/DQ pair that feeds none of these is a round trip.
INT8_OPS = (
    WEIGHTED
    | POOLS
    | ARITHMETIC
    | (ACTIVATIONS - {"Erf", "Gelu", "Mish"})
    | {"Concat", "Resize", "Upsample", "Pad", "Max", "Min", "Sum", "GlobalMaxPool"}
)
# What TensorRT runs inside a convolution's kernel, and so wants to stand right behind it.
_FUSED = ACTIVATIONS - {"Erf", "Softplus", "Softsign", "Gelu", "Mish"}


def output_quantized(view: View) -> Iterator[Hit]:
    """Q/DQ between a weighted operator and its activation."""
    for node in view.graph.nodes:
        if node.op_type not in WEIGHTED or not is_standard(node):
            continue
        for quantize in view.graph.consumers.get(node.output[0], []):
            if not is_qdq(quantize, "QuantizeLinear"):
                continue
            for behind in _behind_pair(view, quantize):
                if behind.op_type in _FUSED:
                    reason = (
                        f"Q/DQ between {node.name!r} and its {behind.op_type}, which then cannot be fused"
                    )
                    yield Hit(quantize.name, reason)
                    break


def _behind_pair(view: View, quantize: NodeProto) -> list[NodeProto]:
    """Return the nodes that read a Q's tensor through its DQ."""
    dequantizers = [
        n for n in view.graph.consumers.get(quantize.output[0], []) if is_qdq(n, "DequantizeLinear")
    ]
    return [reader for n in dequantizers for reader in view.graph.consumers.get(n.output[0], [])]


def skip_unquantized(view: View) -> Iterator[Hit]:
    """Residual additions whose skip side stays in float."""
    if not view.int8:
        return
    floats = frozenset(n.name for n in view.bare.nodes if n.op_type in WEIGHTED) - view.int8
    plan = place(view.bare, floats)
    for node in view.bare.nodes:
        if node.op_type != "Add":
            continue
        wanted = [i for i, name in enumerate(node.input) if node.name in plan.reads.get(name, ())]
        if len(wanted) != 1:
            continue
        (skip,) = wanted
        own = view.written(node)
        sides = [view.dequantizer(name) is not None for name in own.input]
        # Between two convolutions either may be the one that is fused.
        if not sides[skip] and not (sides[1 - skip] and _from_weights(view, node.input[skip])):
            yield Hit(node.name, f"its skip side {own.input[skip]!r} is float beside an INT8 convolution")


def _from_weights(view: View, tensor: str) -> bool:
    """Say whether a weighted operator makes a tensor, with an activation or without."""
    node = view.bare.producers.get(tensor)
    while node is not None and node.op_type in ACTIVATIONS and len(view.bare.variables(node)) == 1:
        node = view.bare.producers.get(view.bare.variables(node)[0])
    return node is not None and node.op_type in WEIGHTED


def unequal_scales(view: View) -> Iterator[Hit]:
    """Operators that only move bytes, between different scales."""
    graph = view.graph
    for node in graph.nodes:
        moves = node.op_type == "Concat" or is_copy(graph, node)
        if not moves or not is_standard(node) or _moves_levels(view, node):
            continue
        inputs = list(node.input) if node.op_type == "Concat" else [node.input[0]]
        before = [view.scale_of(name) for name in inputs]
        after = [
            graph.constants.get(reader.input[1])
            for name in node.output
            for reader in graph.consumers.get(name, [])
            if is_qdq(reader, "QuantizeLinear")
        ]
        known = [np.asarray(scale, np.float64) for scale in before + after if scale is not None]
        if len(known) < 2 or not after or any(scale is None for scale in before):
            continue
        if any(not np.array_equal(scale, known[0]) for scale in known[1:]):
            found = ", ".join(f"{float(scale.flat[0]):.4g}" for scale in known[:4])
            reason = f"scales {found}{' ...' if len(known) > 4 else ''} around a {node.op_type}"
            yield Hit(node.name, f"{reason}: every side with another scale is converted")


def _moves_levels(view: View, node: NodeProto) -> bool:
    return view.types.get(node.input[0]) in (TensorProto.INT8, TensorProto.UINT8)


def half_quantized(view: View) -> Iterator[Hit]:
    """Weighted operators of which only one input is quantized."""
    for name, (data, weight) in view.weighted.items():
        if data != weight:
            yield Hit(
                name,
                f"its {'data' if data else 'weights'} come from Q/DQ, its {'weights' if data else 'data'} do not",
            )
    for node in view.graph.nodes:
        if (
            node.op_type == "MatMul"
            and len(view.bare.variables(node)) == 2
            and node.name not in view.weighted
        ):
            first, second = (view.dequantizer(item) is not None for item in node.input)
            if first != second:
                yield Hit(node.name, "one of its two computed inputs comes from Q/DQ, the other does not")


def isolated(view: View) -> Iterator[Hit]:
    """Q/DQ pairs around nothing that runs in INT8."""
    for node in view.activations:
        used = view.uses(node)
        if any(is_qdq(n, "QuantizeLinear") or (n.op_type in INT8_OPS and is_standard(n)) for n in used):
            continue
        kinds = ", ".join(dict.fromkeys(n.op_type for n in used))
        reason = (
            f"it feeds {kinds}, which runs in float" if kinds else "it only rounds a result of the network"
        )
        yield Hit(node.name, f"a Q/DQ pair that nothing is fused with: {reason}")


def repeated(view: View) -> Iterator[Hit]:
    """Tensors that are quantized twice: again behind their own DQ, or in two pairs."""
    first: dict[str, NodeProto] = {}
    for node in view.graph.nodes:
        if not is_qdq(node, "QuantizeLinear"):
            continue
        tensor = node.input[0]
        source, other = view.graph.producers.get(tensor), first.setdefault(tensor, node)
        if other is not node:
            which = "the same scale" if _equal_scales(view, node, other) else "another scale"
            yield Hit(node.name, f"{tensor!r} is quantized by {other.name!r} already, with {which}")
        elif source is not None and is_qdq(source, "DequantizeLinear") and _equal_scales(view, node, source):
            yield Hit(node.name, f"{tensor!r} is what {source.name!r} has just made of the same integers")


def _equal_scales(view: View, first: NodeProto, second: NodeProto) -> bool:
    ours, theirs = (view.graph.constants.get(node.input[1]) for node in (first, second))
    return ours is not None and theirs is not None and np.array_equal(ours, theirs)


def no_kernel(view: View) -> Iterator[Hit]:
    """Quantized operators of a size that TensorRT has no INT8 kernel for."""
    for node in view.bare.nodes:
        if node.name in view.int8:
            reason, _ = why_float(view.bare, node)
            if reason:
                yield Hit(node.name, f"quantized, but {reason}")


def one_row(view: View) -> Iterator[Hit]:
    """Quantized products of one row."""
    for node in view.bare.nodes:
        if node.name in view.int8:
            reason, remark = why_float(view.bare, node)
            if remark and not reason:
                yield Hit(node.name, remark)


def left_float(view: View) -> Iterator[Hit]:
    """Weighted operators that are not quantized, in a file where others are."""
    if not view.stored:
        return
    for node in view.bare.nodes:
        if node.op_type in WEIGHTED and is_standard(node) and not any(view.weighted.get(node.name, ())):
            if all(view.dequantizer(name) is not None for name in view.written(node).input[:2]):
                # Of attention: no weights, and both of its inputs are quantized.
                continue
            reason, _ = why_float(view.bare, node)
            yield Hit(node.name, reason or "not quantized, though nothing here speaks against it")


def not_quantized(view: View) -> Iterator[Hit]:
    """A file without any Q/DQ."""
    if not view.stored and not view.reader.no_int8:
        yield Hit("", "no Q/DQ: everything runs in floating point")


def depthwise(view: View) -> Iterator[Hit]:
    """Depthwise convolutions that old versions find no INT8 kernel for."""
    for name, swish in kernels_missing(view.bare, view.int8, view.reader.tensorrt).items():
        before = " before SiLU or HardSwish" if swish else ""
        yield Hit(name, f"a quantized depthwise convolution{before}, on {view.reader.name}")


def runs_fp32(view: View) -> Iterator[Hit]:
    """Operators that a strongly typed engine runs in FP32 because the file says so."""
    if view.reader.typing != "strong":
        return
    found = [
        node.name
        for node in view.graph.nodes
        if node.op_type in HALF_OPS - COPIES
        and is_standard(node)
        and not is_qdq(node)
        and view.types.get(node.output[0]) == TensorProto.FLOAT
    ]
    if found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        yield Hit("", f"types are what the file says, and it says FP32 for {found[0]!r}{more}")


def half_in_weak(view: View) -> Iterator[Hit]:
    """FP16 written into a file whose reader takes types from the builder's flags."""
    if view.reader.typing == "weak":
        count = sum(item.data_type == TensorProto.FLOAT16 for item in view.graph.model.graph.initializer)
        if count:
            yield Hit("", f"FP16 is written into the file ({count} constants), for a weakly typed engine")


def signed_on_cpu(view: View) -> Iterator[Hit]:
    """Signed activations, which keep ONNX Runtime from folding Relu and Clip into Q."""
    signed = [item for item in view.stored if not item.weight and item.kind == TensorProto.INT8]
    if signed:
        yield Hit("", f"{len(signed)} activations are int8: Relu and Clip do not fold into a Q around 0")
