"""Preparation: what is folded, what is refused, and that nothing else changes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from edgetune.engines.onnxruntime import Session
from edgetune.errors import ConfigError
from edgetune.quant.prepare import prepare

Nets = Callable[..., Any]


def same(net: Any, *outputs: str) -> list[str]:
    """Check that preparation keeps the numbers; return the kinds of nodes that are left."""
    model = net.model(*outputs)
    before = model.SerializeToString()
    graph = prepare(model)
    assert model.SerializeToString() == before
    data = net.inputs(1)
    for a, b in zip(
        Session(before, threads=1).run(data),
        Session(graph.model.SerializeToString(), threads=1).run(data),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    return [node.op_type for node in graph.nodes]


def test_constants_and_shapes_are_folded(net: Nets) -> None:
    n = net()
    weight = n.op("Identity", n.constant(n.noise.standard_normal((8, 16, 1, 1)).astype(np.float32)))
    three = n.op("Constant", value=numpy_helper.from_array(np.array(3, np.float32)))
    shape = n.op("Shape", "x", end=2)
    tail = n.constant(np.array([-1]))
    flat = n.op("Reshape", n.op("Add", "x", three), n.op("Concat", shape, tail, axis=0))
    assert same(n, n.op("Conv", "x", weight), flat) == ["Add", "Reshape", "Conv"]


def test_dynamic_shapes_are_not_folded(net: Nets) -> None:
    n = net(batch="N")
    assert same(n, n.op("Cast", n.op("Shape", "x", end=1), to=1)) == ["Shape", "Cast"]


def test_batch_norm_is_folded_into_its_convolution(net: Nets) -> None:
    n = net()
    values = [n.constant(np.abs(n.noise.standard_normal(16)).astype(np.float32) + 0.1) for _ in range(4)]
    normed = n.op("BatchNormalization", n.conv("x"), *values)
    assert same(n, n.op("Relu", normed)) == ["Conv", "Relu"]


def test_batch_norm_stays_where_the_convolution_has_other_readers(net: Nets) -> None:
    n = net()
    c = n.conv("x")
    values = [n.constant(np.ones(16, np.float32)) for _ in range(4)]
    assert same(n, n.op("BatchNormalization", c, *values), n.op("Relu", c)).count("BatchNormalization") == 1


def test_dead_nodes_go_and_every_node_gets_its_own_name(net: Nets) -> None:
    n = net()
    n.op("Exp", "x")
    kept = n.op("Relu", n.op("Relu", "x", name="same"))
    model = n.model(kept)
    for node in model.graph.node:
        node.name = "same" if node.op_type == "Relu" else ""
    names = [node.name for node in prepare(model).nodes]
    assert len(names) == len(set(names)) == 2


def test_a_quantized_graph_is_refused(net: Nets) -> None:
    n = net()
    zero = n.constant(np.array(0, np.int8))
    q = n.op("QuantizeLinear", "x", n.constant(np.array(1, np.float32)), zero, name="q")
    with pytest.raises(ConfigError, match="quantized already: node 'q'"):
        prepare(n.model(q))


def test_readers_inside_subgraphs_count(net: Nets) -> None:
    n = net()
    a = n.op("Relu", "x", name="act")
    then = helper.make_graph(
        [helper.make_node("Exp", [a], ["t"])], "then", [], [helper.make_empty_tensor_value_info("t")]
    )
    other = helper.make_graph(
        [helper.make_node("Neg", [a], ["e"])], "else", [], [helper.make_empty_tensor_value_info("e")]
    )
    flag = n.op("Greater", n.op("ReduceMax", "x", keepdims=0), n.constant(np.array(0, np.float32)))
    graph = prepare(n.model(n.op("If", flag, name="if", then_branch=then, else_branch=other)))
    assert [node.name for node in graph.consumers[a]] == ["if"]


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axes", [[2, 3], [-1, -2]])
def test_a_mean_over_height_and_width_is_global_pooling(
    net: Nets, opset: int, keepdims: int, axes: list[int]
) -> None:
    n = net(opset=opset, batch="N")
    given = {"axes": axes} if opset < 18 else {}
    extra = [n.constant(np.array(axes))] if opset >= 18 else []
    mean = n.op("ReduceMean", n.op("Relu", "x"), *extra, name="mean", keepdims=keepdims, **given)
    kinds = same(n, n.op("Exp", mean))
    assert kinds == ["Relu", "GlobalAveragePool", *([] if keepdims else ["Flatten"]), "Exp"]
    assert "mean" in [node.name for node in prepare(n.model(n.nodes[-1].output[0])).nodes]


@pytest.mark.parametrize("axes", [[1], [1, 2], [1, 2, 3]])
def test_other_means_stay(net: Nets, axes: list[int]) -> None:
    n = net()
    assert same(n, n.op("ReduceMean", "x", axes=axes)) == ["ReduceMean"]
