"""One range for every quantized tensor: by one estimator, or the one with which its layers err least.

It knows nothing of placement or hardware. It may import errors, engines, machine, quant.graph, quant.plan,
quant.ranges and quant.collect.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgetune.engines.onnxruntime import Feed, Session
from edgetune.errors import ConfigError, nearest
from edgetune.machine import cores
from edgetune.quant.collect import Batch, Collected, Tapped, collect
from edgetune.quant.graph import Graph, opset_of
from edgetune.quant.plan import ACTIVATIONS, Plan, Scale, quantize_weights, weight_axis
from edgetune.quant.ranges import RANGES, Range, Statistics

AUTO = "auto"
METHODS = (*RANGES, AUTO)
# Inputs on which layers are tried.
TRIED = 16
# Of two ranges closer than this, one is tried.
ALIKE = 0.01
# Ranges have settled when 19 of 20 scales stay within this share of the last ones.
SETTLED = 0.05


class Pick(NamedTuple):
    """Where a group's range comes from.

    Attributes:
        estimator: a key of `RANGES`.
        tensor: of whose statistics; empty: all of the group's, the widest range that is found.
    """

    estimator: str
    tensor: str = ""


@dataclass(frozen=True)
class Grid:
    """What ranges become.

    Attributes:
        scales: gives the scale of every range.
        symmetric: signed integers with zero point 0, or unsigned ones with a zero point.
        largest: magnitude of the largest integer weight.
    """

    scales: Callable[[dict[str, Range]], dict[str, Scale]]
    symmetric: bool
    largest: int = 127


@dataclass(frozen=True)
class Found:
    """Ranges, and what there is to tell of them.

    Attributes:
        ranges: of every quantized tensor; those of a group are equal.
        estimators: which one gave it, by tensor.
        collected: the statistics.
        convergence: after so many `images`, the relative distance of scales from their final values:
            `median` and `p95` over groups of tensors.
        enough_images: from how many images on the p95 stayed within `SETTLED`; None: it did not.
        warnings: what a person should know.
    """

    ranges: dict[str, Range]
    estimators: dict[str, str]
    collected: Collected
    convergence: list[dict[str, Any]]
    enough_images: int | None
    warnings: list[str]


def find_ranges(graph: Graph, plan: Plan, batches: Iterable[Batch], method: str, grid: Grid) -> Found:
    """Find a range for every quantized tensor.

    Args:
        graph: the prepared network.
        plan: what is quantized, and which tensors share a scale.
        batches: calibration inputs, see `collect.Batch`; gone through once.
        method: one of `METHODS`.
        grid: what ranges become.

    Raises:
        ConfigError: an unknown method, or an input does not fit the network.
        StageError: no input, or activations that are NaN or infinite.
    """
    if method not in METHODS:
        raise ConfigError(f"ranges: unknown {method!r}", hint=nearest(method, METHODS))
    counts = method not in ("minmax", "mean")
    collected = collect(graph, plan.reads, batches, counts=counts, keep=TRIED)
    groups = groups_of(plan)
    if method == AUTO:
        picks = pick(graph, plan, collected.statistics, collected.kept, grid)
    else:
        picks = dict.fromkeys(groups, Pick(method))
    ranges = {g: range_of(collected.statistics, groups[g], picks[g], grid.symmetric) for g in groups}
    convergence = _convergence(collected, groups, picks, ranges, grid)
    enough = _enough(convergence)
    return Found(
        ranges={tensor: ranges[plan.groups[tensor]] for tensor in plan.reads},
        estimators={tensor: picks[plan.groups[tensor]].estimator for tensor in plan.reads},
        collected=collected,
        convergence=convergence,
        enough_images=enough,
        warnings=[*_constant(collected.statistics), *_unsettled(collected.images, enough, convergence)],
    )


def groups_of(plan: Plan) -> dict[str, list[str]]:
    """Return the tensors that share a scale, by their representative."""
    groups: dict[str, list[str]] = {}
    for tensor in plan.reads:
        groups.setdefault(plan.groups[tensor], []).append(tensor)
    return groups


def range_of(statistics: dict[str, Statistics], members: list[str], pick: Pick, symmetric: bool) -> Range:
    """Return a group's range."""
    tensors = [pick.tensor] if pick.tensor else members
    found = [RANGES[pick.estimator](statistics[tensor], symmetric) for tensor in tensors]
    return min(low for low, _ in found), max(high for _, high in found)


def pick(
    graph: Graph, plan: Plan, statistics: dict[str, Statistics], inputs: list[Feed], grid: Grid
) -> dict[str, Pick]:
    """Choose for every group the range with the least error behind the layers that read it.

    Each layer is run with its input and its weights quantized, and its result (after its activation) compared
    with the FP32 network's: the mean over the inputs of the error's norm over the result's, several layers of
    a group taken together. (With squares summed over all inputs instead, a few inputs with extreme values
    decide for all: that cost squeezenet1_0 1.1 dB.)

    Args:
        graph: the prepared network.
        plan: what is quantized.
        statistics: of every quantized tensor.
        inputs: those that are tried.
        grid: what ranges become.
    """
    groups = groups_of(plan)
    candidates = {group: _candidates(statistics, groups[group], grid) for group in groups}
    trials = {g: _trials(graph, plan, g, groups[g], grid) for g in groups if len(candidates[g]) > 1}
    if not trials:
        return {group: next(iter(candidates[group])) for group in groups}
    needed = {name for own in trials.values() for trial in own for name in (*trial.inputs, trial.result)}
    network = Tapped(graph, sorted(needed - set(graph.inputs)))
    errors = {group: np.zeros(len(candidates[group])) for group in trials}

    def run(group: str, values: Feed) -> None:
        scales = [grid.scales({group: found})[group] for found in candidates[group].values()]
        noise = np.zeros(len(scales))
        for trial in trials[group]:
            power = float(np.square(values[trial.result], dtype=np.float64).sum())
            if power:  # a layer that gives nothing but zeros has no say
                noise += [trial.error(values, scale, grid.symmetric) / power for scale in scales]
        errors[group] += np.sqrt(noise)

    with ThreadPoolExecutor(cores()) as pool:
        for feed in inputs:
            list(pool.map(partial(run, values=network.run(feed)), trials))
    chosen = {group: int(np.argmin(errors[group])) if group in errors else 0 for group in groups}
    return {group: list(candidates[group])[chosen[group]] for group in groups}


def _candidates(statistics: dict[str, Statistics], members: list[str], grid: Grid) -> dict[Pick, Range]:
    """Return what is tried for a group, without what makes no difference."""
    kept: dict[Pick, Range] = {}
    for tensor in ["", *members] if len(members) > 1 else [""]:
        for estimator in RANGES:
            low, high = range_of(statistics, members, Pick(estimator, tensor), grid.symmetric)
            near = ALIKE * max(high - low, abs(low), abs(high))
            if not any(abs(low - a) <= near and abs(high - b) <= near for a, b in kept.values()):
                kept[Pick(estimator, tensor)] = low, high
    return kept


@dataclass(frozen=True)
class Trial:
    """A layer by itself.

    Attributes:
        session: takes the layer's inputs, `scale`, `zero` and `reference`, and gives the squared error.
        inputs: names of the layer's inputs.
        result: the tensor that stands for it, behind its activation.
    """

    session: Session
    inputs: tuple[str, ...]
    result: str

    def error(self, values: Feed, scale: Scale, symmetric: bool) -> float:
        """Return the sum of the squared error."""
        stored = np.int8 if symmetric else np.uint8
        feed: dict[str, Any] = {name: values[name] for name in self.inputs}
        feed |= {"/scale": np.array(scale.scale, np.float32), "/zero": np.array(scale.zero_point, stored)}
        return float(self.session.run_once(feed | {"/reference": values[self.result]})[0])


def _trials(graph: Graph, plan: Plan, group: str, members: list[str], grid: Grid) -> list[Trial]:
    readers = {
        node.name: node
        for tensor in members
        for node in graph.consumers.get(tensor, [])
        # What only moves values within the group is judged where they are read.
        if node.name in plan.reads[tensor] and not any(plan.groups.get(n) == group for n in node.output)
    }
    found = [
        _trial(graph, plan, [node, *_activations(graph, plan, node)], members, grid)
        for node in readers.values()
        if _runs_alone(graph, node)
    ]
    # Nothing to be run: the tensor itself is the result.
    copies = [helper.make_node("Identity", [t], [t], name="/itself") for t in members]
    return found or [_trial(graph, plan, [node], members, grid) for node in copies]


def _runs_alone(graph: Graph, node: NodeProto) -> bool:
    nested = any(item.HasField("g") or item.graphs for item in node.attribute)
    standard = node.domain in ("", "ai.onnx")
    return standard and not nested and all(map(graph.is_float, (*graph.variables(node), node.output[0])))


def _activations(graph: Graph, plan: Plan, node: NodeProto) -> list[NodeProto]:
    """Return what is fused behind a layer."""
    found: list[NodeProto] = []
    while node.output[0] not in plan.reads:
        follower = graph.sole_consumer(node.output[0])
        if follower is None or follower.op_type not in ACTIVATIONS or len(graph.variables(follower)) != 1:
            break
        found.append(follower)
        node = follower
    return found


def _trial(graph: Graph, plan: Plan, nodes: list[NodeProto], members: list[str], grid: Grid) -> Trial:
    """Make a network of a layer and its activation, its inputs from the group quantized ahead of it."""
    layer, *rest = nodes
    result = nodes[-1].output[0]
    inputs = graph.variables(layer)
    constants = {
        name: graph.constants[name] for node in nodes for name in node.input if name in graph.constants
    }
    axis = weight_axis(graph, layer) if layer.name in plan.weighted else None
    if axis is not None:
        levels, scale = quantize_weights(constants[layer.input[1]], axis, grid.largest)
        shape = [-1 if dim == axis else 1 for dim in range(levels.ndim)]
        constants[layer.input[1]] = levels * scale.reshape(shape)
    made: list[NodeProto] = []
    renamed = {}
    for name in dict.fromkeys(inputs):
        if name in members:
            integers, renamed[name] = f"/{name}/integers", f"/{name}/quantized"
            made.append(helper.make_node("QuantizeLinear", [name, "/scale", "/zero"], [integers]))
            made.append(helper.make_node("DequantizeLinear", [integers, "/scale", "/zero"], [renamed[name]]))
    alone = NodeProto()
    alone.CopyFrom(layer)
    alone.input[:] = [renamed.get(name, name) for name in layer.input]
    alone.output[0] = f"/{layer.output[0]}"
    followers = [NodeProto.FromString(node.SerializeToString()) for node in rest]
    for before, node in zip([alone, *followers], followers, strict=False):
        node.input[:] = [f"/{name}" if f"/{name}" == before.output[0] else name for name in node.input]
        node.output[0] = f"/{node.output[0]}"
    made += [
        alone,
        *followers,
        helper.make_node("Sub", [f"/{result}", "/reference"], ["/difference"]),
        helper.make_node("ReduceSumSquare", ["/difference"], ["/error"], keepdims=0),
    ]
    stored = TensorProto.INT8 if grid.symmetric else TensorProto.UINT8
    fed = [*dict.fromkeys(inputs), "/reference"]
    body = helper.make_graph(
        made,
        "layer",
        [
            *(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in fed),
            helper.make_tensor_value_info("/scale", TensorProto.FLOAT, []),
            helper.make_tensor_value_info("/zero", stored, []),
        ],
        [helper.make_tensor_value_info("/error", TensorProto.FLOAT, [])],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    return Trial(Session(_model(graph, body).SerializeToString(), threads=1), tuple(fed[:-1]), result)


def _model(graph: Graph, body: Any) -> ModelProto:
    imports = [helper.make_opsetid("", opset_of(graph.model))]
    return helper.make_model(body, opset_imports=imports, ir_version=graph.model.ir_version)


def _convergence(
    collected: Collected,
    groups: dict[str, list[str]],
    picks: dict[str, Pick],
    final: dict[str, Range],
    grid: Grid,
) -> list[dict[str, Any]]:
    last = grid.scales(final)
    settling = []
    for images, statistics in collected.earlier.items():
        ranges = {g: range_of(statistics, groups[g], picks[g], grid.symmetric) for g in groups}
        scales = grid.scales(ranges)
        away = [abs(float(scales[g].scale) / float(last[g].scale) - 1) for g in groups]
        median, p95 = np.percentile(away, [50, 95])
        settling.append({"images": images, "median": float(median), "p95": float(p95)})
    if collected.images not in collected.earlier:
        settling.append({"images": collected.images, "median": 0.0, "p95": 0.0})
    return settling


def _enough(convergence: list[dict[str, Any]]) -> int | None:
    """Return the first count from which on all earlier scales stayed near the final ones."""
    enough = None
    for entry in reversed(convergence[:-1]):
        if entry["p95"] > SETTLED:
            break
        enough = int(entry["images"])
    return enough


def _constant(statistics: dict[str, Statistics]) -> list[str]:
    constant = [name for name, item in statistics.items() if item.low == item.high]
    if not constant:
        return []
    more = f" and {len(constant) - 3} more" if len(constant) > 3 else ""
    return [f"one and the same value on every calibration image: {', '.join(constant[:3])}{more}"]


def _unsettled(images: int, enough: int | None, convergence: list[dict[str, Any]]) -> list[str]:
    if enough is not None:
        return []
    if len(convergence) < 2:
        return ["ranges come from one image, and cannot be said to have settled; use more"]
    before, moved = convergence[-2]["images"], convergence[-2]["p95"]
    return [
        f"{images} images are not enough for ranges to settle: from {before} to {images} images, "
        f"5% of the scales moved by more than {moved:.0%}; use more"
    ]
