"""Collecting: however inputs are batched, statistics are the same; what does not fit or is broken is named."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgetune.errors import ConfigError, StageError
from edgetune.quant.collect import Collected, collect
from edgetune.quant.graph import Graph
from edgetune.quant.prepare import prepare

Nets = Callable[..., Any]


def small(net: Nets, batch: int | str = 1) -> tuple[Graph, list[str]]:
    made = net(batch=batch)
    first = made.op("Relu", made.conv("x", name="first"))
    made.conv(first, name="second")
    return prepare(made.model("second_out")), ["x", first, "second_out"]


def same(one: Collected, other: Collected) -> None:
    assert one.images == other.images
    assert one.statistics.keys() == other.statistics.keys()
    for name, item in one.statistics.items():
        again = other.statistics[name]
        assert (item.low, item.high, item.inputs) == pytest.approx(
            (again.low, again.high, again.inputs), rel=1e-5
        )
        assert (item.lows, item.highs) == pytest.approx((again.lows, again.highs), rel=1e-5)
        assert item.positive.sum() == again.positive.sum()
        assert abs(item.positive.cumsum()[-500:] - again.positive.cumsum()[-500:]).max() < 5


@pytest.mark.parametrize("batch", [1, 4, "N"])
@pytest.mark.parametrize("cuts", [[1, 2, 3, 4, 5, 6, 7, 8, 9], [4, 8], [3]])
def test_how_inputs_are_batched_makes_no_difference(net: Nets, batch: int | str, cuts: list[int]) -> None:
    inputs = net().inputs(10)
    whole = collect(*small(net), [inputs])
    assert whole.images == 10
    if batch == 4:  # the network itself takes four: they arrive as they are cut, the last ones filled up
        same(whole, collect(*small(net, batch), [inputs[:4], inputs[4:8], inputs[8:]]))
    else:
        same(whole, collect(*small(net, batch), np.split(inputs, cuts)))


def test_statistics_are_those_of_the_tensors(net: Nets) -> None:
    graph, tensors = small(net)
    inputs = net().inputs(3)
    found = collect(graph, tensors, [inputs]).statistics
    assert (found["x"].low, found["x"].high) == (inputs.min(), inputs.max())
    assert found["x"].lows == pytest.approx(sum(own.min() for own in inputs))
    assert found[tensors[1]].low == 0
    assert {item.inputs for item in found.values()} == {3}


def test_earlier_statistics_are_kept_at_doubling_counts(net: Nets) -> None:
    graph, tensors = small(net)
    inputs = net().inputs(11)
    found = collect(graph, tensors, [inputs])
    assert list(found.earlier) == [1, 2, 4, 8]
    for images, statistics in found.earlier.items():
        assert statistics["x"].high == inputs[:images].max()
        assert statistics["x"].positive.sum() == (inputs[:images] >= 0).sum()


def test_the_first_inputs_are_kept_on_request(net: Nets) -> None:
    inputs = net().inputs(5)
    found = collect(*small(net), [inputs[:2], inputs[2:]], keep=3)
    np.testing.assert_array_equal(np.concatenate([feed["x"] for feed in found.kept]), inputs[:3])
    assert collect(*small(net), [inputs]).kept == []


def test_no_inputs_are_refused(net: Nets) -> None:
    for nothing in ([], [net().inputs(0)]):
        with pytest.raises(StageError, match="no calibration inputs"):
            collect(*small(net), nothing)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((1, 16, 9, 8), np.float32),
        np.zeros((1, 8, 8), np.float32),
        np.zeros((1, 16, 8, 8), np.float64),
    ],
)
def test_inputs_that_do_not_fit_are_refused_with_both_shapes(net: Nets, wrong: np.ndarray) -> None:
    with pytest.raises(ConfigError, match=r"'x' takes float32 \[1, 16, 8, 8\], not float"):
        collect(*small(net), [net().inputs(1), wrong])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_broken_input_is_named(net: Nets, value: float) -> None:
    inputs = net().inputs(5)
    inputs[3, 0, 0, 0] = value
    with pytest.raises(StageError, match="'x' holds NaN or infinite values for input 4"):
        collect(*small(net), [inputs[:2], inputs[2:]])


def test_overflow_inside_of_the_network_is_named(net: Nets) -> None:
    made = net()
    large = made.op("Mul", "x", made.constant(np.float32([3e38])), name="large")
    graph = prepare(made.model(made.conv(large)))
    with pytest.raises(StageError, match="'large_out' holds NaN or infinite values for input 1"):
        collect(graph, ["x", "large_out"], [made.inputs(1) * 100])


def two_inputs(batch: int | str) -> onnx.ModelProto:
    shapes = {"a": [batch, 3], "b": [batch, 5]}
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]
    joined = helper.make_node("Concat", ["a", "b"], ["joined"], axis=1)
    doubled = helper.make_node("Add", ["joined", "joined"], ["doubled"])
    result = helper.make_tensor_value_info("doubled", TensorProto.FLOAT, None)
    graph = helper.make_graph([joined, doubled], "g", values, [result])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("batch", [1, 2, "N"])
def test_networks_with_two_inputs_take_an_array_by_each_name(batch: int | str) -> None:
    noise = np.random.default_rng(0)
    feed = {
        "b": noise.normal(size=(6, 5)).astype(np.float32),
        "a": noise.normal(size=(6, 3)).astype(np.float32),
    }
    found = collect(prepare(two_inputs(batch)), ["a", "joined", "doubled"], [feed])
    assert found.images == found.statistics["joined"].inputs == 6
    assert found.statistics["a"].high == feed["a"].max()
    rows = [max(a.max(), b.max()) for a, b in zip(feed["a"], feed["b"], strict=True)]
    assert found.statistics["doubled"].highs == pytest.approx(2 * sum(rows))


def test_networks_with_two_inputs_refuse_one_array_and_other_names() -> None:
    graph = prepare(two_inputs(1))
    with pytest.raises(ConfigError, match=r"2 inputs \(a, b\), and was given one array"):
        collect(graph, ["joined"], [np.zeros((1, 3), np.float32)])
    with pytest.raises(ConfigError, match="takes a, b, not a, c"):
        collect(graph, ["joined"], [{"a": np.zeros((1, 3), np.float32), "c": np.zeros((1, 5), np.float32)}])


def test_inputs_without_a_common_batch_dimension_are_fed_as_they_are() -> None:
    values = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 3]),
        helper.make_tensor_value_info("factor", TensorProto.FLOAT, []),
    ]
    nodes = [helper.make_node("Mul", ["x", "factor"], ["y"])]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    model = helper.make_model(
        helper.make_graph(nodes, "g", values, [result]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    feed = {"x": np.ones((4, 3), np.float32), "factor": np.array(7, np.float32)}
    found = collect(prepare(model), ["y"], [feed, feed])
    assert found.images == 2
    assert found.statistics["y"].high == 7


def test_huge_outliers_constants_and_zeros_are_taken_in(net: Nets) -> None:
    made = net()
    zeros = made.op("Mul", "x", made.constant(np.float32([0])), name="zeros")
    ones = made.op("Add", zeros, made.constant(np.float32([1])), name="ones")
    graph = prepare(made.model(made.op("Add", made.conv("x"), made.conv(ones))))
    inputs = made.inputs(2)
    inputs[0, 0, 0, 0] = 1e30
    found = collect(graph, ["x", "zeros_out", "ones_out"], [inputs]).statistics
    assert found["x"].high == np.float32(1e30)
    assert (found["zeros_out"].low, found["zeros_out"].high) == (0, 0)
    assert (found["ones_out"].low, found["ones_out"].high) == (1, 1)
