"""Centering: tensors that are never negative are shifted so that signed integers use all of their levels.

After ReLU or ReLU6, signed integers with zero point 0, which are all that TensorRT takes, have half of their
levels to spare. Subtracting the middle of the range is undone by nothing but biases: the layer before takes
it off its bias and the activation clips from -c instead of 0, the layer behind adds `c * sum(weights)` to
its own, and the network computes what it did. It is an asymmetric quantization whose zero point lies in the
biases (Nagel et al. 2021, arXiv:2106.08295, section 2.2, folds the same term there).

A convolution that pads with zeros would have to pad with -c, so what one of those reads stays. TensorRT
fuses a convolution with a Clip of any limits as it does with ReLU (developer guide, layer fusions); a DLA
clips from 0 alone. It may import quant's draft, graph, parameters, plan, prepare and torch_graph.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from edgetune.quant.draft import Draft, Rendering
from edgetune.quant.graph import Graph, attribute, is_standard
from edgetune.quant.parameters import (
    bias_values,
    channel_sums,
    put,
    real_bias,
    shift_of,
    spread,
    weights_of,
    written,
)
from edgetune.quant.plan import Plan, Scale, weight_axis
from edgetune.quant.prepare import drop_dead
from edgetune.quant.torch_graph import TorchGraph

# f(x - c) = f(x) - c.
CARRYING = frozenset(
    {
        *("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Concat"),
        *("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Slice", "Split"),
    }
)
# A shift below this share of the middle of the widest range is not worth a Clip.
LEAST_SHARE = 0.25


def center(drafted: Draft, rendering: Rendering) -> tuple[Draft, int]:
    """Shift what can be shifted in a draft of which no weights are corrected yet.

    Args:
        drafted: quantized with signed integers.
        rendering: how it is written down.

    Returns:
        The draft of a network that computes the same, and how many tensors are shifted in it.
    """
    shift = shifts(drafted.graph, {name: (s.low, s.high) for name, s in drafted.scales.items()})
    graph = Graph(centered(drafted.graph, shift))
    plan = rendering.place(graph, drafted.excluded, drafted.products)
    scales = dict(drafted.scales) | _scales(rendering, plan, drafted.scales, shift)
    model = rendering.render(graph, plan, scales)
    model = _exact_sums(model, graph, shift)
    made = replace(drafted, graph=graph, plan=plan, scales=scales, model=model, shift=shift)
    return made, sum(name in shift for name in plan.reads)


def _scales(
    rendering: Rendering, plan: Plan, before: Mapping[str, Scale], shift: Mapping[str, float]
) -> dict[str, Scale]:
    """Return the scales of shifted tensors, at which what was 0 is a level: most values of a ReLU are."""
    found = {}
    for tensor in plan.reads:
        if tensor in shift:
            by, high = shift[tensor], before[tensor].high
            levels = max(1, math.floor(127 * by / max(high - by, by) + 1e-6))
            limit = by * 127 / levels
            (scale,) = rendering.scales({tensor: (-limit, limit)}).values()
            found[tensor] = replace(scale, low=-by, high=high - by)
    return found


def _exact_sums(model: ModelProto, graph: Graph, shift: Mapping[str, float]) -> ModelProto:
    """Let the biases make good for a shift times the integers' sums, instead of the real weights'.

    A shift is large beside most values, and so would be what rounding the weights makes of it.
    """
    net = TorchGraph(model)
    for weight in weights_of(net, graph):
        by, bias = shift_of(weight, shift), real_bias(net, weight)
        if not by or bias is None:
            continue
        rounding = (
            net.constants[weight.levels].double() * spread(net.constants[weight.scale].double(), weight)
            - weight.real
        )
        shifted = by * channel_sums(weight, rounding).to(torch.float32)
        put(net, bias_values(net, weight, bias + shifted))
    return written(model, net)


def shifts(graph: Graph, ranges: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Return how far tensors can be shifted down, and pay for it.

    Args:
        graph: a prepared network.
        ranges: of the tensors that will be quantized.
    """
    found: dict[str, float] = {}
    seen: set[str] = set()
    for tensor in ranges:
        if tensor in seen:
            continue
        together = _together(graph, tensor)
        seen |= together
        middles = [sum(ranges[name]) / 2 for name in together if name in ranges]
        # The least of them makes no other tensor's range wider.
        if middles and min(middles) > LEAST_SHARE * max(middles):
            found |= dict.fromkeys(together, min(middles))
    return found


def centered(graph: Graph, shift: Mapping[str, float]) -> ModelProto:
    """Return the network with some tensors shifted down, computing the same.

    Args:
        graph: a prepared network.
        shift: from `shifts`.
    """
    model = ModelProto()
    model.CopyFrom(graph.model)
    nodes = {node.name: node for node in model.graph.node}
    bias: dict[str, NDArray[np.float64]] = {}
    for tensor, by in shift.items():
        source = graph.producers[tensor]
        if source.op_type in ("Relu", "Clip"):
            made = graph.producers[source.input[0]]
            bias[made.name] = bias.get(made.name, 0.0) - np.full(_outputs(graph, made), by)
            _clip_lower(graph, model, nodes[source.name], by)
        for reader in graph.consumers[tensor]:
            if reader.op_type not in CARRYING:
                bias[reader.name] = bias.get(reader.name, 0.0) + by * _sums(graph, reader)
    for name, change in bias.items():
        _add_bias(graph, model, nodes[name], change)
    drop_dead(model)
    return model


def uncentered(graph: Graph) -> tuple[ModelProto, dict[str, float]]:
    """Return a centered network with every shift taken back, computing the same, and what was taken back.

    Args:
        graph: a network without Q/DQ that `centered` has made.

    Returns:
        The network, which clips from 0, and by tensor how far it was shifted down.
    """
    shift: dict[str, float] = {}
    for node in graph.nodes:
        if node.op_type == "Clip" and len(node.input) > 1 and node.input[1] == _name(node, 1):
            by = -float(graph.constants[node.input[1]])
            shift |= dict.fromkeys(_together(graph, node.output[0]), by)
    model = centered(graph, {tensor: -by for tensor, by in shift.items()})
    for node in model.graph.node:
        if node.op_type == "Clip" and node.output[0] in shift and len(node.input) == 2:
            node.op_type = "Relu"
            del node.input[1:]
    drop_dead(model)
    return model, shift


def _together(graph: Graph, tensor: str) -> set[str]:
    """Return the tensors that can only be shifted together; none where something stands in the way."""
    tensors, waiting = {tensor}, [tensor]
    while waiting:
        name = waiting.pop()
        made = graph.producers.get(name)
        if made is None or name in graph.outputs:
            return set()
        readers = graph.consumers.get(name, [])
        carrying = [node for node in (made, *readers) if _carries(graph, node)]
        ends = [node for node in readers if node not in carrying]
        if not (made in carrying or _is_source(graph, made)) or not all(
            _is_sink(graph, n, name) for n in ends
        ):
            return set()
        tied = {other for node in carrying for other in (*graph.variables(node), *node.output) if other}
        waiting += sorted(tied - tensors)
        tensors |= tied
    return tensors


def _carries(graph: Graph, node: NodeProto) -> bool:
    if node.op_type not in CARRYING or not is_standard(node):
        return False
    if node.op_type == "Concat":
        return all(name not in graph.constants for name in node.input)
    # What an average takes in beside the tensor would have to be shifted as well.
    padded = node.op_type == "AveragePool" and (_pads(node) or attribute(node, "ceil_mode", 0))
    return graph.variables(node) == [node.input[0]] and not padded


def _is_source(graph: Graph, node: NodeProto) -> bool:
    """Whether a node clips what an operator with weights of its own makes."""
    if node.op_type not in ("Relu", "Clip") or not is_standard(node):
        return False
    made = graph.producers.get(node.input[0])
    return (
        graph.variables(node) == [node.input[0]]
        and made is not None
        and graph.sole_consumer(node.input[0]) is not None
        and weight_axis(graph, made) is not None
        and _takes_bias(graph, made)
    )


def _is_sink(graph: Graph, node: NodeProto, tensor: str) -> bool:
    """Whether a node's bias can take the shift of what it reads: it must read nothing but that."""
    if weight_axis(graph, node) is None or not _takes_bias(graph, node) or node.op_type == "ConvTranspose":
        return False
    return graph.variables(node) == [tensor] == [node.input[0]] and not _pads(node)


def _takes_bias(graph: Graph, node: NodeProto) -> bool:
    """Whether a node has a bias, or can get one, one number for each of its outputs."""
    if node.op_type == "Gemm":
        plain = all(attribute(node, key, 1.0) == 1.0 for key in ("alpha", "beta"))
        if not plain or attribute(node, "transA", 0):
            return False
    elif node.op_type not in ("Conv", "ConvTranspose"):
        return False
    name = node.input[2] if len(node.input) > 2 else ""
    return not name or graph.constants.get(name, np.zeros(0)).shape == (_outputs(graph, node),)


def _pads(node: NodeProto) -> bool:
    said = attribute(node, "auto_pad", b"NOTSET")
    return said not in (b"NOTSET", b"VALID") or any(attribute(node, "pads", [0]))


def _outputs(graph: Graph, node: NodeProto) -> int:
    shape = graph.constants[node.input[1]].shape
    if node.op_type == "ConvTranspose":
        return int(shape[1] * attribute(node, "group", 1))
    return int(shape[weight_axis(graph, node) or 0])


def _sums(graph: Graph, node: NodeProto) -> NDArray[np.float64]:
    """Return what every output of a node gains where each of its inputs grows by 1."""
    weight = graph.constants[node.input[1]].astype(np.float64)
    axis = weight_axis(graph, node)
    sums: NDArray[np.float64] = weight.sum(axis=tuple(i for i in range(weight.ndim) if i != axis))
    return sums


def _add_bias(graph: Graph, model: ModelProto, node: NodeProto, change: NDArray[np.float64]) -> None:
    known = graph.constants[node.input[2]] if len(node.input) > 2 and node.input[2] else 0.0
    _constant(model, node, 2, (known + change).astype(np.float32))


def _clip_lower(graph: Graph, model: ModelProto, node: NodeProto, by: float) -> None:
    """Make an activation clip between limits that lie lower."""
    limits = [0.0] if node.op_type == "Relu" else [
        float(graph.constants[name]) if name else None for name in node.input[1:3]
    ]  # fmt: skip
    node.op_type = "Clip"
    for index, limit in enumerate(limits, 1):
        if limit is not None:
            _constant(model, node, index, np.array(limit - by, np.float32))


def _constant(model: ModelProto, node: NodeProto, index: int, value: NDArray[np.float32]) -> None:
    name = _name(node, index)
    known = [item for item in model.graph.initializer if item.name == name]
    (known[0] if known else model.graph.initializer.add()).CopyFrom(numpy_helper.from_array(value, name))
    while len(node.input) <= index:
        node.input.append("")
    node.input[index] = name


def _name(node: NodeProto, index: int) -> str:
    """Return what a node's input is called that centering has written."""
    return f"{node.name}/centered/{index}"
