"""Which layers hurt, and which of them to leave in float.

It may import errors, and quant's draft, collect, compare and graph.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto

from edgetune.errors import StageError
from edgetune.quant.collect import Batch, Tapped, parts
from edgetune.quant.compare import compare
from edgetune.quant.draft import Draft, Rendering
from edgetune.quant.graph import Graph
from edgetune.quant.macs import multiply_accumulates

CEILING_DB = 200.0


@dataclass(frozen=True)
class Layer:
    """A weighted node that runs in INT8.

    Attributes:
        name: the node.
        sqnr_db: of its output inside the quantized network: everything up to it.
        gain_db: what the network's outputs gain where it alone stays in float; None: not tried.
        operations: multiply-accumulates of one input; 0 where shapes are not known.
    """

    name: str
    sqnr_db: float
    gain_db: float | None
    operations: int


def noise_by_layer(drafted: Draft, batches: Iterable[Batch]) -> list[Layer]:
    """Compare the outputs of all quantized layers with those of FP32, in running order."""
    graph = drafted.graph
    nodes = [node for node in graph.nodes if node.name in drafted.plan.weighted]
    tensors = [node.output[0] for node in nodes]
    exact, rounded = Tapped(graph, tensors), Tapped(Graph(drafted.model), tensors)
    signal, noise = np.zeros(len(nodes)), np.zeros(len(nodes))
    for part in parts(batches, exact.inputs):
        right, found = exact.run(part.feed), rounded.run(part.feed)
        for place, name in enumerate(tensors):
            signal[place] += float(np.square(right[name], dtype=np.float64).sum())
            noise[place] += float(np.square(right[name] - found[name], dtype=np.float64).sum())
    return [
        Layer(node.name, _decibel(signal[place], noise[place]), None, operations(graph, node))
        for place, node in enumerate(nodes)
    ]


def _decibel(signal: float, noise: float) -> float:
    if noise == 0:
        return CEILING_DB
    return float(10 * np.log10(max(signal / noise, 1e-20)))


def operations(graph: Graph, node: NodeProto) -> int:
    """Return the multiply-accumulates of a weighted node for one input."""
    shape = graph.shape(node.output[0]) or ()
    batch = shape[0] if len(shape) > 1 and isinstance(shape[0], int) else 1
    return multiply_accumulates(graph, node) // max(batch, 1)


def leave_out(drafted: Draft, rendering: Rendering, names: Iterable[str]) -> Draft:
    """Return the draft with more nodes in float; what was corrected in the others stays.

    Raises:
        StageError: a tensor whose range was never found would have to be quantized.
    """
    excluded = drafted.excluded | frozenset(names)
    plan = rendering.place(drafted.graph, excluded, drafted.products)
    scales = {tensor: drafted.scales[tensor] for tensor in plan.reads if tensor in drafted.scales}
    if len(scales) < len(plan.reads):
        # A float neighbour can make a tensor cross into INT8 where it did not before: its range is known
        # from the members of its group, or not at all, and then the node takes its readers along.
        missing = [tensor for tensor in plan.reads if tensor not in scales]
        more = {name for tensor in missing for name in plan.reads[tensor]}
        more |= {drafted.graph.producers[t].name for t in missing if t in drafted.graph.producers}
        if more <= excluded:
            raise StageError(f"no range is known of {missing[0]!r}, which now crosses into INT8")
        return leave_out(drafted, rendering, excluded | more)
    model = rendering.render(drafted.graph, plan, scales)
    return replace(
        drafted,
        plan=plan,
        scales=scales,
        excluded=excluded,
        model=carried(drafted.model, model, drafted.graph),
    )


def carried(old: ModelProto, new: ModelProto, fp32: Graph) -> ModelProto:
    """Take over corrected constants, but for those of layers that are in float now: they get FP32's."""
    known = {item.name: item for item in old.graph.initializer}
    dropped = _with_integers(old) - _with_integers(new)
    float_now = {name for node in fp32.nodes if node.name in dropped for name in _own(fp32, node)}
    for item in new.graph.initializer:
        before = known.get(item.name)
        if before is not None and item.name not in float_now and list(before.dims) == list(item.dims):
            item.CopyFrom(before)
    return new


def _with_integers(model: ModelProto) -> set[str]:
    """Return the names of nodes whose weights are integers."""
    constants = {item.name for item in model.graph.initializer}
    made = {
        node.output[0]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in constants
    }
    return {node.name for node in model.graph.node if len(node.input) > 1 and node.input[1] in made}


def _own(fp32: Graph, node: NodeProto) -> Iterator[str]:
    """Give the constants of a layer, and the one that alone is added to its result."""
    yield from (name for name in node.input if name in fp32.constants)
    follower = fp32.sole_consumer(node.output[0])
    if follower is not None and follower.op_type == "Add":
        yield from (name for name in follower.input if name in fp32.constants)


def rank(
    drafted: Draft,
    rendering: Rendering,
    layers: Sequence[Layer],
    batches: Sequence[Batch],
    seconds: dict[str, float],
) -> list[Layer]:
    """Try every layer in float by itself; the most gain for its cost comes first.

    The cost of leaving a layer in float is the mean of its shares of the network's operations and of the
    FP32 network's time on this machine.

    Args:
        drafted: quantized.
        rendering: how it is written down.
        layers: from `noise_by_layer`.
        batches: held-out inputs; a few are enough.
        seconds: time of each node of the FP32 network here, by name.
    """
    base = network_sqnr(drafted, batches)
    all_operations = max(sum(layer.operations for layer in layers), 1)
    all_seconds = max(sum(seconds.values()), 1e-12)
    tried = []
    for layer in layers:
        gain = network_sqnr(leave_out(drafted, rendering, [layer.name]), batches) - base
        tried.append(replace(layer, gain_db=gain))

    def worth(layer: Layer) -> float:
        share = 0.5 * layer.operations / all_operations + 0.5 * seconds.get(layer.name, 0.0) / all_seconds
        return (layer.gain_db or 0.0) / (share + 1e-3)

    return sorted(tried, key=worth, reverse=True)


def relieving(
    drafted: Draft,
    rendering: Rendering,
    layers: Iterable[Layer],
    batches: Sequence[Batch],
    budget: float,
    least_db: float,
) -> list[str]:
    """Choose layers that gain much by staying in float and together cost little, the best first.

    The noise of a layer is measured with all others in float. Leaving it out of the quantized network would
    tell the same, were it not for the noises of all the others, which happen to add up to more or less
    without it: on 8 inputs of mobilenet_v2 that hid all layers but the first few, where what they make alone
    was the same on 32 inputs to a tenth. Noise powers add up, so what a layer gains beside those already
    chosen follows from its own.

    Args:
        drafted: quantized.
        rendering: how it is written down.
        layers: that may be chosen.
        batches: held-out inputs; a few are enough.
        budget: multiply-accumulates that those chosen may have together.
        least_db: what every one of them has to gain.
    """
    weighted, base = drafted.plan.weighted, network_sqnr(drafted, batches)
    share = {}
    for layer in layers:
        alone = network_sqnr(leave_out(drafted, rendering, weighted - {layer.name}), batches)
        share[layer] = 10 ** ((base - alone) / 10)
    chosen, left = [], 1.0
    for layer in sorted(share, key=lambda layer: share[layer], reverse=True):
        after = max(left - share[layer], 1e-6)
        if 10 * np.log10(left / after) < least_db:
            break
        if layer.operations <= budget:
            chosen.append(layer.name)
            budget, left = budget - layer.operations, after
    return chosen


def network_sqnr(drafted: Draft, batches: Sequence[Batch]) -> float:
    """Return the signal-to-noise ratio of a draft's outputs against FP32's, in dB."""
    return _of_outputs(compare(drafted.graph.model, drafted.model, batches, exact=True))


def sqnr_of(comparison: dict[str, Any]) -> float:
    """Return the signal-to-noise ratio that counts, in dB.

    For a classifier that of what decides (`compare.Decisions`); otherwise the least over a network's float
    outputs, the mean of the inputs' own.
    """
    return float(comparison["decision_db"]) if "decision_db" in comparison else _of_outputs(comparison)


def _of_outputs(comparison: dict[str, Any]) -> float:
    found = comparison["outputs"].values()
    return min((entry["sqnr_mean_db"] for entry in found if "sqnr_mean_db" in entry), default=0.0)
