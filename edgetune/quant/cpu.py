"""The rendering for ONNX Runtime's CPU kernels: unsigned activations with a zero point, integer biases.

ONNX Runtime fuses an operator into INT8 where DequantizeLinear stands on all of its inputs and
QuantizeLinear on its output, and lets Relu and Clip vanish in the latter where its range says the same
(so nothing stands between a convolution and its Relu). TensorRT refuses such files.
It may import quant.graph, quant.plan and quant.qdq.
"""

import numpy as np
from onnx import ModelProto, NodeProto

from edgetune.quant.graph import Graph, attribute
from edgetune.quant.plan import (
    ARITHMETIC,
    Groups,
    Layer,
    Plan,
    Scale,
    asymmetric,
    copied_from,
    is_copy,
    quantize_weights,
    readers,
    weight_axis,
    why_no_weights,
)
from edgetune.quant.qdq import Writer, insert_activations, write

WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
# With two computed inputs (Add, Mul), or one: what has an 8-bit kernel.
KERNELS = frozenset({"Add", "Mul", "AveragePool", "GlobalAveragePool", "Sigmoid", "LeakyRelu", "Concat"})
VANISHING = frozenset({"Relu", "Clip"})
FULL_WEIGHT = 127
# Two products of 255 and 64 fit into 16 bits, which is where kernels without VNNI add them up.
REDUCED_WEIGHT = 64
_LARGEST_BIAS = float(2**30)


def place(
    graph: Graph, excluded: frozenset[str] = frozenset(), products: frozenset[str] = frozenset()
) -> Plan:
    """Decide where Q/DQ goes for ONNX Runtime.

    Args:
        graph: a prepared network.
        excluded: names of nodes that stay in float.
        products: none: ONNX Runtime has INT8 kernels for products of weights.
    """
    del products
    reasons = {
        node.name: "excluded" if node.name in excluded else _why_float(graph, node) for node in graph.nodes
    }
    int8 = [node for node in graph.nodes if not reasons[node.name]]
    int8 = [node for node in int8 if node.op_type in WEIGHTED or _pays(graph, node, int8)]
    for name in _without_successor(graph, int8):
        reasons[name] = "its result leaves the network in float, and its INT8 kernel gives integers alone"
    int8 = [node for node in int8 if not reasons[node.name]]
    names = {node.name for node in int8}
    tensors: dict[str, None] = {}
    for node in int8:
        inputs = [node.input[0]] if node.op_type in WEIGHTED else graph.variables(node)
        tensors.update(dict.fromkeys(inputs))
        result = _after_vanishing(graph, node)
        if result is not None and not _goes_on_in_float(graph, node, names):
            tensors[result] = None
    groups = Groups()
    for node in graph.nodes:
        # A copy runs on integers when both sides have the same scale; INT8 before it is INT8 after it.
        if is_copy(graph, node) and node.name not in excluded and graph.is_float(node.input[0]):
            if node.input[0] in tensors and not set(node.output) & set(graph.outputs):
                tensors.update(dict.fromkeys(name for name in node.output if name))
            groups.join(node.input[0], *[name for name in node.output if name])
    reads = {t: frozenset(reader.name for reader in graph.consumers.get(t, [])) for t in tensors}
    return Plan(
        layers=tuple(_layer(graph, node, names, reasons[node.name], reads) for node in graph.nodes),
        reads=reads,
        weighted=frozenset(node.name for node in int8 if node.op_type in WEIGHTED),
        groups={tensor: groups.of(tensor) for tensor in tensors},
        results=frozenset(tensors) & frozenset(graph.outputs),
    )


def _why_float(graph: Graph, node: NodeProto) -> str:
    """Return why a node cannot run in INT8, or nothing."""
    if node.domain not in ("", "ai.onnx"):
        return f"an operator of {node.domain}, unknown here"
    if node.op_type in WEIGHTED:
        return _why_float_weighted(graph, node)
    if node.op_type not in KERNELS:
        return "ONNX Runtime has no INT8 kernel for it"
    if len(graph.variables(node)) != len(node.input):
        return "one of its inputs is constant"
    return "" if all(graph.is_float(name) for name in node.input) else "its inputs are not float32"


def _why_float_weighted(graph: Graph, node: NodeProto) -> str:
    if weight_axis(graph, node) is None:
        return why_no_weights(graph, node)
    if not graph.variables(node) or not graph.is_float(node.input[0]):
        return "its input is not a computed float32 tensor"
    if node.op_type == "MatMul" and graph.constants[node.input[1]].ndim != 2:
        return "its weights are no matrix"
    if node.op_type == "Gemm" and any(attribute(node, key, 1.0) != 1.0 for key in ("alpha", "beta")):
        return "alpha or beta is not 1"
    if len(node.input) > 2 and node.input[2]:
        bias = graph.constants.get(node.input[2])
        channels = graph.constants[node.input[1]].shape[weight_axis(graph, node) or 0]
        if bias is None or bias.shape != (channels,):
            return "its bias is not one constant per channel"
    return ""


def _pays(graph: Graph, node: NodeProto, int8: list[NodeProto]) -> bool:
    """Whether a node has an INT8 node before it; alone, converting costs more than it saves."""
    names = {other.name for other in int8}
    for tensor in graph.variables(node):
        source = graph.producers.get(copied_from(graph, tensor))
        while source is not None and source.op_type in VANISHING:
            source = graph.producers.get(source.input[0])
        if source is not None and source.name in names:
            return True
    return False


def _without_successor(graph: Graph, int8: list[NodeProto]) -> set[str]:
    """Return the names of nodes without weights after which no Q would stand; those run in float.

    Products of weights have kernels that take integers and give float.
    """
    kept = {node.name for node in int8}
    for node in reversed(int8):
        if node.op_type in WEIGHTED or _after_vanishing(graph, node) is not None:
            continue
        if not any(reader.name in kept for reader in readers(graph, node.output[0])):
            kept.remove(node.name)
    return {node.name for node in int8} - kept


def _goes_on_in_float(graph: Graph, node: NodeProto, names: set[str]) -> bool:
    """Whether a matrix product's result is read in float alone: rounding it to 8 bits would be for nothing.

    So it is in transformers, where a bias is added behind the product. Its kernel then gives float.
    """
    after = readers(graph, node.output[0])
    return node.op_type == "MatMul" and not any(n.name in names or n.op_type in VANISHING for n in after)


def _after_vanishing(graph: Graph, node: NodeProto) -> str | None:
    """Return the tensor on which a node's Q stands: its output, or the one behind its Relu or Clip.

    None where the result leaves the network (through copies): there, rounding would be for nothing. A
    convolution's is rounded all the same, since its kernel gives nothing but integers.
    """
    tensor = node.output[0]
    follower = graph.sole_consumer(tensor)
    if follower is not None and follower.op_type in VANISHING and graph.variables(follower) == [tensor]:
        tensor = follower.output[0]
    end = tensor
    while (reader := graph.sole_consumer(end)) is not None and is_copy(graph, reader):
        end = reader.output[0]
    return None if end in graph.outputs and node.op_type != "Conv" else tensor


def _layer(
    graph: Graph, node: NodeProto, names: set[str], reason: str, reads: dict[str, frozenset[str]]
) -> Layer:
    size = sum(graph.constants[name].nbytes for name in set(node.input) if name in graph.constants)
    if node.name in names:
        axis = weight_axis(graph, node)
        if axis is not None:
            weight = graph.constants[node.input[1]]
            size += weight.size - weight.nbytes + 9 * weight.shape[axis]
        return Layer(node.name, node.op_type, "INT8", "", size)
    result = reads.keys() & set(node.output)
    if node.op_type in VANISHING and result and not reads.keys() & set(node.input):
        source = graph.producers.get(node.input[0])
        if source is not None and source.name in names:
            return Layer(
                node.name, node.op_type, "INT8", f"part of {source.name}: its limits are the scale's", size
            )
    if is_copy(graph, node) and node.input[0] in reads and result:
        return Layer(node.name, node.op_type, "INT8", "moves values of a quantized tensor", size)
    return Layer(node.name, node.op_type, "FP32", reason or _beside(node), size)


def _beside(node: NodeProto) -> str:
    kind = "its inputs are" if node.op_type in ARITHMETIC | {"Concat"} else "its input is"
    return f"{kind} float, and converting would cost more than it saves"


def scales_of(ranges: dict[str, tuple[float, float]]) -> dict[str, Scale]:
    """Return scale and zero point of every range."""
    return {tensor: asymmetric(low, high) for tensor, (low, high) in ranges.items()}


def render(graph: Graph, plan: Plan, scales: dict[str, Scale], largest: int = FULL_WEIGHT) -> ModelProto:
    """Return the network with the Q/DQ that ONNX Runtime's CPU kernels fuse.

    Args:
        graph: the prepared network.
        plan: from `place`.
        scales: of every tensor in `plan.reads`.
        largest: magnitude of the largest integer weight; `REDUCED_WEIGHT` for a CPU without VNNI.
    """
    writer = Writer(graph, np.uint8)
    pairs = insert_activations(writer, plan, scales)
    for node in graph.nodes:
        axis = weight_axis(graph, node) if node.name in plan.weighted else None
        if axis is not None:
            _render_weights(writer, node, axis, float(scales[node.input[0]].scale), largest)
            _keep_apart(writer, node, plan)
    return write(writer, pairs)


def _keep_apart(writer: Writer, node: NodeProto, plan: Plan) -> None:
    """Keep ONNX Runtime from joining a product that gives float with its bias into a Gemm, which it runs in float.

    It joins those whose bias is a vector (MatMulAddFusion, before it looks at Q/DQ); as [1, 1, N] it adds the same.
    """
    graph = writer.graph
    after = graph.sole_consumer(node.output[0])
    rank = len(graph.shape(node.output[0]) or ())
    if node.op_type != "MatMul" or node.output[0] in plan.reads or after is None or after.op_type != "Add":
        return
    for index, name in enumerate(after.input):
        bias = graph.constants.get(name)
        if bias is not None and bias.ndim == 1 and rank > 2:
            wide = writer.constant(f"{name}/wide", bias.reshape([1] * (rank - 1) + [-1]))
            writer.rewire(after, index, wide)


def _render_weights(writer: Writer, node: NodeProto, axis: int, input_scale: float, largest: int) -> None:
    constants = writer.graph.constants
    bias = constants[node.input[2]] if len(node.input) > 2 and node.input[2] else None
    # A bias far above what a channel's weights can add to must still fit into 32 bits of their common scale.
    floor = None if bias is None else np.abs(bias).astype(np.float64) / (input_scale * _LARGEST_BIAS)
    levels, scale = quantize_weights(constants[node.input[1]], axis, largest, floor)
    writer.dequantized(node, 1, levels, scale, axis)
    if bias is not None:
        bias_scale = (np.float32(input_scale) * scale).astype(np.float32)
        whole = np.rint(bias.astype(np.float64) / bias_scale).astype(np.int32)
        writer.dequantized(node, 2, whole, bias_scale, 0)
