"""Choosing: one range per group, by what the layers behind it make of it; how ranges settle is told."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgetune.errors import ConfigError
from edgetune.quant import choose, cpu, placement, tensorrt
from edgetune.quant.choose import METHODS, Found, Grid, Pick, find_ranges, groups_of, pick, range_of
from edgetune.quant.collect import collect
from edgetune.quant.draft import RENDERINGS
from edgetune.quant.graph import Graph
from edgetune.quant.plan import Plan
from edgetune.quant.prepare import prepare
from edgetune.quant.ranges import RANGES
from edgetune.quant.trials import trials_of
from edgetune.recipe import QuantizeSection

Nets = Callable[..., Any]
SIGNED = Grid(tensorrt.scales_of, symmetric=True)
UNSIGNED = Grid(cpu.scales_of, symmetric=False)


def found_for(graph: Graph, inputs: np.ndarray, method: str, grid: Grid = SIGNED) -> tuple[Plan, Found]:
    plan = (placement if grid.symmetric else cpu).place(graph)
    return plan, find_ranges(graph, plan, [inputs], method, grid)


def branched(net: Nets) -> tuple[Graph, np.ndarray]:
    """Residual add, pooling, concat and a head, so that there are groups and readers of every kind."""
    made = net()
    first = made.op("Relu", made.conv("x"))
    second = made.op("Add", made.conv(first), first)
    joined = made.op(
        "Concat",
        made.op("Relu", made.conv(second)),
        made.op("MaxPool", second, kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        axis=1,
    )
    third = made.op("HardSwish", made.conv(joined, into=32))
    pooled = made.op("Flatten", made.op("GlobalAveragePool", third))
    return prepare(made.model(made.gemm(pooled, 16, 20))), made.inputs(24)


def outlying(net: Nets, weight: float) -> tuple[Graph, np.ndarray]:
    """A network whose one layer weighs channel 0 like this; that channel holds rare, far outliers."""
    made = net()
    kernel = made.noise.standard_normal((16, 16, 1, 1)).astype(np.float32)
    kernel[:, 0] = weight
    graph = prepare(made.model(made.op("Conv", "x", made.constant(kernel))))
    inputs = made.inputs(24)
    inputs[:, 0, 0, 0] = 400
    return graph, inputs


@pytest.mark.slow
@pytest.mark.parametrize("grid", [SIGNED, UNSIGNED])
@pytest.mark.parametrize("method", METHODS)
def test_every_quantized_tensor_has_a_range_and_a_group_has_one(net: Nets, method: str, grid: Grid) -> None:
    plan, found = found_for(*branched(net), method, grid)
    assert found.ranges.keys() == plan.reads.keys() == found.estimators.keys()
    groups = groups_of(plan)
    assert any(len(members) > 1 for members in groups.values())
    for members in groups.values():
        assert len({found.ranges[tensor] for tensor in members}) == 1
    for tensor, (low, high) in found.ranges.items():
        assert low < high
        assert found.estimators[tensor] in RANGES
        if method != "auto":
            assert found.estimators[tensor] == method
            own = RANGES[method](found.collected.statistics[tensor], grid.symmetric)
            assert low <= own[0]
            assert high >= own[1]


def test_methods_are_those_of_the_recipe() -> None:
    for method in METHODS:
        assert QuantizeSection(ranges=method).ranges == method


def test_an_unknown_method_is_answered_with_the_known(net: Nets) -> None:
    with pytest.raises(ConfigError, match="minmx") as caught:
        found_for(*branched(net), "minmx")
    assert "minmax" in caught.value.hint


@pytest.mark.parametrize("grid", [SIGNED, UNSIGNED])
def test_auto_clips_outliers_that_no_layer_looks_at_and_keeps_those_that_count(net: Nets, grid: Grid) -> None:
    _, ignored = found_for(*outlying(net, 0.0), "auto", grid)
    _, counted = found_for(*outlying(net, 1.0), "auto", grid)
    assert ignored.ranges["x"][1] < 100
    assert counted.ranges["x"][1] == 400


@pytest.mark.slow
def test_picks_are_at_least_as_true_to_each_layer_as_any_one_estimator(net: Nets) -> None:
    graph, inputs = branched(net)
    plan = placement.place(graph)
    network = choose.Tapped(graph, [t for node in graph.nodes for t in node.output])
    collected = collect(graph, plan.reads, [inputs], keep=24)
    statistics = collected.statistics
    picks = pick(graph, plan, statistics, collected.kept, SIGNED)
    compared = 0
    for group, members in groups_of(plan).items():
        trials = trials_of(graph, plan, group, members, SIGNED)
        assert trials

        def error(what: tuple[float, float], own: list[Any] = trials, name: str = group) -> float:
            scale = SIGNED.scales({name: what})[name]
            total = 0.0
            for feed in collected.kept:
                values = network.run(feed)
                noise = [t.error(values, scale, True) / np.square(values[t.result]).sum() for t in own]
                total += np.sqrt(sum(noise))
            return total

        reached = error(range_of(statistics, members, picks[group], symmetric=True))
        for estimator in RANGES:
            other = range_of(statistics, members, Pick(estimator), symmetric=True)
            # Ranges that hardly differ are not all tried.
            assert reached <= 1.02 * error(other), (group, estimator)
            compared += 1
    assert compared >= 20


def test_a_layer_alone_errs_as_it_does_in_the_quantized_network(net: Nets, kit: Any) -> None:
    """The first layer, weights quantized as well: the rendered network must show the very same error."""
    made = net()
    graph = prepare(made.model(made.op("Relu", made.conv("x"))))
    inputs = made.inputs(1)
    plan, found = found_for(graph, inputs, "percentile")
    scales = tensorrt.scales_of(found.ranges)
    (trial,) = trials_of(graph, plan, "x", ["x"], SIGNED)
    result = graph.outputs[0]
    assert trial.result == result
    reference = kit.run(graph.model, {"x": inputs})[0]
    int8 = kit.run(tensorrt.render(graph, plan, scales), {"x": inputs})[0]
    wanted = np.square(reference - int8).sum()
    assert wanted > 0
    assert trial.error({"x": inputs, result: reference}, scales["x"], True) == pytest.approx(wanted, rel=1e-3)


def test_a_group_takes_the_range_of_one_member_where_the_others_do_not_matter(net: Nets) -> None:
    made = net()
    wide = made.op("Mul", "x", made.constant(np.float32([100.0])))
    joined = made.op("Concat", "x", wide, axis=1)
    kernel = made.noise.standard_normal((16, 32, 1, 1)).astype(np.float32)
    kernel[:, 16:] = 0
    graph = prepare(made.model(made.op("Conv", joined, made.constant(kernel))))
    plan, found = found_for(graph, made.inputs(16), "auto")
    assert {joined, wide, "x"} <= plan.reads.keys()
    assert len(groups_of(plan)) == 1
    assert found.ranges[joined][1] < 10
    assert found_for(graph, made.inputs(16), "minmax")[1].ranges[joined][1] > 100


def test_zeros_and_constants_are_no_obstacle_and_are_told(net: Nets) -> None:
    made = net()
    zeros = made.op("Mul", "x", made.constant(np.float32([0])), name="zeros")
    weight = made.constant(made.noise.standard_normal((16, 16, 1, 1)).astype(np.float32))
    last = made.op("Conv", made.op("Conv", zeros, weight, name="first"), weight, name="second")
    for method in METHODS:
        _, found = found_for(prepare(made.model(last)), made.inputs(3), method)
        assert found.ranges["zeros_out"] == found.ranges["first_out"] == (0, 0)
        assert any("one and the same value" in text and "zeros_out" in text for text in found.warnings)


@pytest.mark.slow
def test_twice_gives_the_same(net: Nets) -> None:
    once, again = (found_for(*branched(net), "auto")[1] for _ in range(2))
    assert once.ranges == again.ranges
    assert once.estimators == again.estimators


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_how_ranges_settle_is_recorded_at_doubling_counts(net: Nets, method: str) -> None:
    _, found = found_for(*branched(net), method)
    assert [entry["images"] for entry in found.convergence] == [1, 2, 4, 8, 16, 24]
    assert all(0 <= entry["median"] <= entry["p95"] for entry in found.convergence)
    assert found.convergence[0]["p95"] > 0
    assert found.convergence[-1]["p95"] == 0


def test_enough_is_the_count_from_which_on_scales_stay(net: Nets) -> None:
    def entries(*p95: float) -> list[dict[str, float]]:
        return [{"images": 2**i, "median": 0, "p95": value} for i, value in enumerate(p95)]

    assert choose._enough(entries(0.3, 0.04, 0.2, 0.03, 0.01, 0)) == 8
    assert choose._enough(entries(0.3, 0.2, 0)) is None
    assert choose._enough(entries(0.01, 0)) == 1
    assert choose._enough(entries(0)) is None
    graph, inputs = branched(net)
    same = np.repeat(inputs[:1], 20, axis=0)
    assert found_for(graph, same, "minmax")[1].enough_images == 1
    assert found_for(graph, same, "minmax")[1].warnings == []


def test_too_few_images_are_told(net: Nets) -> None:
    graph, inputs = branched(net)
    growing = inputs[:8] * np.geomspace(1, 50, 8, dtype=np.float32)[:, None, None, None]
    _, found = found_for(graph, growing, "minmax")
    assert found.enough_images is None
    assert any("8 inputs are not enough for ranges to settle" in text for text in found.warnings)
    _, single = found_for(graph, inputs[:1], "minmax")
    assert any("one input" in text for text in single.warnings)


@pytest.mark.slow
@pytest.mark.parametrize("rendering", ["weak", "cpu"])
def test_auto_is_no_worse_at_the_outputs_than_one_estimator_for_all(
    net: Nets, kit: Any, rendering: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "ROUNDS", (24,))
    graph, inputs = branched(net)
    how = RENDERINGS[rendering]
    plan = how.place(graph, frozenset())
    grid = Grid(how.scales, how.symmetric)
    errors = {}
    for method in METHODS:
        found = find_ranges(graph, plan, [inputs], method, grid)
        model = how.render(graph, plan, how.scales(found.ranges))
        errors[method] = 0.0
        for own in inputs:
            wanted, given = (kit.run(m, {"x": own[None]})[0] for m in (graph.model, model))
            errors[method] += np.linalg.norm(given - wanted) / np.linalg.norm(wanted)
    assert errors["auto"] <= 1.01 * min(errors.values())


def test_one_estimator_for_all_is_taken_where_single_layers_mislead(
    net: Nets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers are made to favour what is worst for the network; what comes out at its end decides."""
    graph, inputs = branched(net)
    how = RENDERINGS["weak"]
    plan = how.place(graph, frozenset())
    monkeypatch.setattr(
        choose, "pick", lambda graph, plan, *rest: dict.fromkeys(groups_of(plan), Pick("worst"))
    )
    monkeypatch.setitem(RANGES, "worst", lambda statistics, symmetric: (-1000.0, 1000.0))
    found = find_ranges(graph, plan, [inputs], "auto", Grid(how.scales, True))
    assert set(found.estimators.values()) <= RANGES.keys() - {"worst"}
