"""Cross-layer equalization: the channels of a tensor are scaled to like ranges, and nothing else changes.

A tensor has one scale for all of its channels, so a channel whose values stay small is left with few levels.
Multiplying it by a factor where it is made, in the weights of one layer, and dividing by it where it is
read, in the weights of the next, is undone by nothing in between but ReLU, pooling, concatenation and
addition, and leaves the network as it was (Nagel et al. 2019, arXiv:1906.04721). Factors come from observed
activations, as in SmoothQuant (arXiv:2211.10438). It may import quant.collect,
quant.graph and quant.plan.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from edgetune.quant.collect import Batch, Tapped, parts
from edgetune.quant.graph import Graph, attribute
from edgetune.quant.plan import readers, weight_axis
from edgetune.quant.prepare import drop_dead

# f(s x) = s f(x) for s > 0, channel by channel.
HOMOGENEOUS = frozenset(
    {
        *("Relu", "LeakyRelu", "PRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"),
        *("Identity", "Dropout"),
    }
)
LARGEST_FACTOR = 32.0
# A limit of Clip stays this far above everything that was seen. At 1.05, other images of mobilenet_v2 were
# clipped so much more that FP32 itself was left at 18 dB; at 2 at 26 to 40 dB.
MARGIN = 3.0


@dataclass(frozen=True)
class Channelwise:
    """What was seen of a tensor's channels: largest magnitude and root mean square, `[C]` each."""

    peak: NDArray[np.float32]
    rms: NDArray[np.float32]


def channelwise(
    graph: Graph, tensors: Sequence[str], batches: Iterable[Batch], axis: int = 1
) -> dict[str, Channelwise]:
    """Run the FP32 network and look at the channels (the dimension `axis`) of some of its tensors."""
    network = Tapped(graph, [name for name in tensors if name not in graph.inputs])
    peaks: dict[str, NDArray[np.float32]] = {}
    squares: dict[str, NDArray[np.float32]] = {}
    count = 0
    for part in parts(batches, network.inputs):
        values = network.run(part.feed)
        count += 1
        for name in tensors:
            if values[name].ndim < 2:
                continue
            rank = values[name].ndim
            others = tuple(other for other in range(rank) if other != axis % rank)
            peak = np.abs(values[name]).max(axis=others)
            peaks[name] = np.maximum(peaks[name], peak) if name in peaks else peak
            squares[name] = squares.get(name, np.float32(0)) + np.square(values[name]).mean(axis=others)
    return {name: Channelwise(peak, np.sqrt(squares[name] / count)) for name, peak in peaks.items()}


@dataclass
class _Channels:
    """Which channels of which tensors must share a factor (union-find over numbered channels)."""

    graph: Graph
    ids: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    parent: list[int] = field(default_factory=list)
    fixed: set[int] = field(default_factory=set)

    def of(self, tensor: str) -> NDArray[np.int64] | None:
        """Number the channels of a tensor, `[C]`; None where their count is not known."""
        if tensor not in self.ids:
            shape = self.graph.shape(tensor)
            if shape is None or len(shape) < 2 or not isinstance(shape[1], int):
                return None
            first = len(self.parent)
            self.parent += range(first, first + shape[1])
            self.ids[tensor] = np.arange(first, first + shape[1])
        return self.ids[tensor]

    def root(self, channel: int) -> int:
        while self.parent[channel] != channel:
            self.parent[channel] = self.parent[self.parent[channel]]
            channel = self.parent[channel]
        return channel

    def join(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> None:
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            self.parent[self.root(b)] = self.root(a)

    def fix(self, tensor: str) -> None:
        ids = self.of(tensor)
        if ids is not None:
            self.fixed.update(ids.tolist())

    def roots(self, tensor: str) -> NDArray[np.int64]:
        ids = self.ids[tensor]
        return np.array([self.root(channel) for channel in ids.tolist()], np.int64)


def equalize(graph: Graph, seen: Mapping[str, Channelwise]) -> tuple[ModelProto, int]:
    """Return the network with equalized channels, computing the same, and how many factors it took.

    Args:
        graph: a prepared network.
        seen: of the tensors that will be quantized.
    """
    channels = _connect(graph)
    factors = _factors(channels, seen)
    model = ModelProto()
    model.CopyFrom(graph.model)
    changed = {
        node.name: made
        for node in graph.nodes
        if (made := _scaled(graph, node, channels, factors)) is not None
    }
    for node in model.graph.node:
        for index, value in changed.get(node.name, {}).items():
            name = f"{node.name}/equalized/{index}"
            model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
            node.input[index] = name
    drop_dead(model)
    return model, sum(factor != 1 for factor in factors.values())


def _is_weighted(graph: Graph, node: NodeProto) -> bool:
    axis = weight_axis(graph, node)
    return axis is not None and (node.op_type != "MatMul" or graph.constants[node.input[1]].ndim == 2)


def _connect(graph: Graph) -> _Channels:
    """Find out which channels go together, and which cannot be scaled."""
    channels = _Channels(graph)
    for name in (*graph.inputs, *graph.outputs):
        channels.fix(name)
    for node in graph.nodes:
        if _is_weighted(graph, node):
            _connect_weighted(channels, node)
        elif not _joined(channels, node):
            for name in [*graph.variables(node), *node.output]:
                channels.fix(name)
    return channels


def _connect_weighted(channels: _Channels, node: NodeProto) -> None:
    """A product of weights takes factors on either side, unless something else stands in the way."""
    graph = channels.graph
    rank = len(graph.shape(node.output[0]) or ())
    fits = node.op_type in ("Conv", "ConvTranspose") or rank == 2
    plain = all(attribute(node, key, 1.0) == 1.0 for key in ("alpha", "beta"))
    constant = all(name in graph.constants for name in node.input[1:] if name)
    if not fits or not plain or not constant or attribute(node, "transA", 0):
        for name in (node.input[0], node.output[0]):
            channels.fix(name)
    channels.of(node.input[0])
    channels.of(node.output[0])


def _joined(channels: _Channels, node: NodeProto) -> bool:
    """Join the channels of a node's inputs and output; False where its operator is not homogeneous."""
    graph = channels.graph
    inputs = [channels.of(name) for name in graph.variables(node)]
    result = channels.of(node.output[0])
    if result is None or any(ids is None for ids in inputs) or node.domain not in ("", "ai.onnx"):
        return False
    known = [ids for ids in inputs if ids is not None]
    if node.op_type == "Concat":
        return _joined_concat(channels, node, known, result)
    if node.op_type == "Add":
        same = len(known) == 2 and all(graph.shape(n) == graph.shape(node.output[0]) for n in node.input)
    elif node.op_type == "Flatten":
        same = attribute(node, "axis", 1) == 1 and len(known) == 1 and len(known[0]) == len(result)
    elif node.op_type == "Clip":
        same = len(known) == 1 and clip_limit(graph, node) is not None
    else:
        same = node.op_type in HOMOGENEOUS and len(known) == 1 and len(known[0]) == len(result)
    if same:
        for ids in known:
            channels.join(result, ids)
    return same


def _joined_concat(
    channels: _Channels, node: NodeProto, inputs: list[NDArray[np.int64]], result: NDArray[np.int64]
) -> bool:
    rank = len(channels.graph.shape(node.output[0]) or ())
    if attribute(node, "axis", 0) % rank != 1 or len(inputs) != len(node.input):
        return False
    channels.join(result, np.concatenate(inputs))
    return True


def clip_limit(graph: Graph, node: NodeProto) -> float | None:
    """Return the upper limit of a Clip whose lower limit is 0 (ReLU6); None for any other."""
    limits = [graph.constants.get(name) for name in [*node.input[1:], "", ""][:2]]
    if limits[0] is None or limits[1] is None or float(limits[0]) != 0 or float(limits[1]) <= 0:
        return None
    return float(limits[1])


def _factors(channels: _Channels, seen: Mapping[str, Channelwise]) -> dict[int, float]:
    """Return the factor of every group of channels; 1 where there is nothing to gain or it cannot be."""
    wanted: dict[int, float] = {}
    fixed = {channels.root(channel) for channel in channels.fixed}
    for tensor, statistics in seen.items():
        if tensor not in channels.ids or len(statistics.peak) != len(channels.ids[tensor]):
            continue
        best = best_factors(channels.graph, tensor, statistics)
        # A channel that two tensors share takes the smaller of their factors.
        for root, factor in zip(channels.roots(tensor).tolist(), best.tolist(), strict=True):
            wanted[root] = min(wanted.get(root, LARGEST_FACTOR), factor)
    limits = _clip_limits(channels, seen)
    return {root: min(f, limits.get(root, f)) for root, f in wanted.items() if root not in fixed}


def best_factors(graph: Graph, tensor: str, seen: Channelwise) -> NDArray[np.float64]:
    """Return the factors at which rounding the tensor and rounding the weights cost the same.

    A factor s divides what rounding the activation adds, `step_x |w| / s`, and multiplies what rounding
    the weights adds, `step_w rms(x) s`. Nothing is scaled beyond the tensor's range.
    """
    peak, rms = seen.peak.astype(np.float64), seen.rms.astype(np.float64)
    top = peak.max()
    most = np.where(peak > 0, np.minimum(top / np.maximum(peak, 1e-12), LARGEST_FACTOR), 1.0)
    from_x, from_w = np.zeros(len(peak)), np.zeros(len(peak))
    for node in readers(graph, tensor):
        if not _is_weighted(graph, node):
            # What it hands on is a tensor of its own, with factors of its own.
            continue
        rows = _by_input(graph, node)
        if rows.shape[0] != len(peak):
            return np.ones(len(peak))
        from_x += (top / 127) ** 2 * (rows**2).sum(1)
        if not _is_depthwise(graph, node):
            steps = np.abs(rows).max(0) / 127
            from_w += (steps**2).sum() * rms**2
    with np.errstate(divide="ignore", invalid="ignore"):
        balanced = np.where(from_w > 0, (from_x / from_w) ** 0.25, most)
    factors: NDArray[np.float64] = np.clip(np.nan_to_num(balanced, nan=1.0), 1.0, most)
    return factors


def _by_input(graph: Graph, node: NodeProto) -> NDArray[np.float64]:
    """Return weights as [inputs, the rest]."""
    weight = graph.constants[node.input[1]].astype(np.float64)
    if node.op_type == "Conv":
        group = attribute(node, "group", 1)
        parts = weight.reshape(group, weight.shape[0] // group, weight.shape[1], -1)
        return parts.transpose(0, 2, 1, 3).reshape(group * weight.shape[1], -1)
    if node.op_type == "ConvTranspose":
        return weight.reshape(weight.shape[0], -1)
    return np.moveaxis(weight, 1 - (weight_axis(graph, node) or 0), 0).reshape(
        -1, weight.shape[weight_axis(graph, node) or 0]
    )


def _clip_limits(channels: _Channels, seen: Mapping[str, Channelwise]) -> dict[int, float]:
    """Return how far channels may grow without reaching the upper limit of a Clip."""
    graph = channels.graph
    limits: dict[int, float] = {}
    for node in graph.nodes:
        limit = clip_limit(graph, node) if node.op_type == "Clip" else None
        if limit is None or node.output[0] not in channels.ids:
            continue
        statistics = seen.get(node.output[0])
        for place, root in enumerate(channels.roots(node.output[0]).tolist()):
            peak = np.inf if statistics is None else float(statistics.peak[place])
            limits[root] = min(limits.get(root, np.inf), max(1.0, limit / max(MARGIN * peak, 1e-9)))
    return limits


def _is_depthwise(graph: Graph, node: NodeProto) -> bool:
    """Whether each output reads one input only: its weights have a scale per channel anyhow."""
    shape = graph.constants[node.input[1]].shape
    return node.op_type == "Conv" and attribute(node, "group", 1) > 1 and shape[1] == 1


def _scaled(
    graph: Graph, node: NodeProto, channels: _Channels, factors: Mapping[int, float]
) -> dict[int, NDArray[np.float64]] | None:
    """Return a weighted node's new constants by input place; None where they stay."""
    if not _is_weighted(graph, node) or not {node.input[0], node.output[0]} <= channels.ids.keys():
        return None
    before = np.array([factors.get(root, 1.0) for root in channels.roots(node.input[0]).tolist()])
    after = np.array([factors.get(root, 1.0) for root in channels.roots(node.output[0]).tolist()])
    if (before == 1).all() and (after == 1).all():
        return None
    weight = graph.constants[node.input[1]].astype(np.float64)
    made = {1: _scale_weight(graph, node, weight, before, after)}
    if len(node.input) > 2 and node.input[2]:
        made[2] = graph.constants[node.input[2]].astype(np.float64) * after
    return made


def _scale_weight(
    graph: Graph, node: NodeProto, weight: NDArray[np.float64], before: NDArray[np.float64],
    after: NDArray[np.float64],
) -> NDArray[np.float64]:  # fmt: skip
    """Divide by the factors of what is read, multiply by those of what is made."""
    group = attribute(node, "group", 1)
    rest = [1] * (weight.ndim - 2)
    if node.op_type == "Conv":
        # [O, I / group, ...]: each group of outputs reads its own inputs.
        read = np.repeat(before.reshape(group, -1), len(after) // group, axis=0)
        return weight / read.reshape(*weight.shape[:2], *rest) * after.reshape(-1, 1, *rest)
    if node.op_type == "ConvTranspose":
        # [I, O / group, ...]
        made = np.repeat(after.reshape(group, -1), len(before) // group, axis=0)
        return weight / before.reshape(-1, 1, *rest) * made.reshape(*weight.shape[:2], *rest)
    axis = weight_axis(graph, node)
    return weight / np.expand_dims(before, axis or 0) * np.expand_dims(after, 1 - (axis or 0))
