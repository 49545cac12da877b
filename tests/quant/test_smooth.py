"""Smoothing behind LayerNorms: the network computes the same, and INT8 of it is nearer to FP32."""

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgetune.engines.onnxruntime import Session
from edgetune.quant.compare import compare
from edgetune.quant.draft import RENDERINGS, draft
from edgetune.quant.graph import Graph
from edgetune.quant.prepare import prepare
from edgetune.quant.smooth import smooth, smoothable, smoothed

WIDTH = 32
Batches = list[dict[str, np.ndarray]]


def network(seed: int, outliers: float, written_out: bool = False, skip: bool = True) -> onnx.ModelProto:
    """LayerNorm, a product, and an addition that skips the product, as in BERT; some channels are large."""
    dice = np.random.default_rng(seed)
    gamma = dice.uniform(0.5, 1.5, WIDTH).astype(np.float32)
    gamma[:2] *= outliers
    weights = {
        "gamma": gamma,
        "beta": dice.normal(0, 0.1, WIDTH).astype(np.float32),
        "w": dice.normal(0, 0.2, (WIDTH, WIDTH)).astype(np.float32),
        "v": dice.normal(0, 0.2, (WIDTH, WIDTH)).astype(np.float32),
        "eps": np.array(1e-5, np.float32),
    }
    # What large channels mean is mostly small in the products that read them.
    weights["w"][:2] /= outliers
    node = helper.make_node
    if written_out:
        norm = [
            node("ReduceMean", ["x"], ["m"], axes=[-1], name="mean"), node("Sub", ["x", "m"], ["d"], name="sub"),
            node("Mul", ["d", "d"], ["q"], name="square"), node("ReduceMean", ["q"], ["s"], axes=[-1], name="var"),
            node("Add", ["s", "eps"], ["e"], name="add_eps"), node("Sqrt", ["e"], ["r"], name="sqrt"),
            node("Div", ["d", "r"], ["z"], name="div"), node("Mul", ["gamma", "z"], ["g"], name="mul"),
            node("Add", ["g", "beta"], ["n"], name="norm"),
        ]  # fmt: skip
    else:
        norm = [node("LayerNormalization", ["x", "gamma", "beta"], ["n"], name="norm", axis=-1)]
    rest = [node("MatMul", ["n", "w"], ["p"], name="product"), node("Relu", ["p"], ["a"], name="relu")]
    rest += [node("MatMul", ["a", "v"], ["y" if not skip else "b"], name="second")]
    rest += [node("Add", ["b", "n"], ["y"], name="residual")] if skip else []
    shape = [1, 6, WIDTH]
    graph = helper.make_graph(
        [*norm, *rest], "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def batches(count: int = 8) -> Batches:
    dice = np.random.default_rng(1)
    return [{"x": dice.standard_normal((1, 6, WIDTH), np.float32)} for _ in range(count)]


@given(st.integers(0, 50), st.sampled_from([1.0, 8.0, 60.0]), st.booleans(), st.booleans())
def test_the_network_computes_the_same(seed: int, outliers: float, written_out: bool, skip: bool) -> None:
    graph = prepare(network(seed, outliers, written_out, skip))
    assert smoothable(graph) == ["n"]
    model, factors = smoothed(graph, ["n"], batches())
    onnx.checker.check_model(model, full_check=True)
    before, after = (Session(m.SerializeToString()) for m in (graph.model, model))
    for feed in batches(3):
        one, other = before.run(feed)[0], after.run(feed)[0]
        np.testing.assert_allclose(one, other, atol=2e-5 * float(np.abs(one).max()))
    assert factors or outliers == 1.0
    # Only where something else reads it too is there one operator more.
    assert len(model.graph.node) == len(graph.nodes) + (skip and factors > 0)


@pytest.mark.parametrize("name", ["weak", "cpu"])
def test_outliers_cost_less_with_it(name: str) -> None:
    graph, rendering = prepare(network(0, 60.0)), RENDERINGS[name]
    plain = draft(graph, rendering, batches(32), "minmax", frozenset())
    model, _ = smoothed(graph, plain.plan.reads, batches(32))
    better = draft(Graph(model), rendering, batches(32), "minmax", frozenset())
    found = [
        compare(graph.model, made.model, batches(8), exact=True)["outputs"]["y"]["sqnr_db"]
        for made in (plain, better)
    ]
    assert found[1] > found[0] + 3


def test_what_is_not_quantized_or_no_layernorm_stays() -> None:
    graph = prepare(network(0, 60.0))
    assert smoothed(graph, [], batches())[1] == 0
    assert smooth(graph, {})[1] == 0
    bare = network(0, 60.0)
    bare.graph.output[0].name = "n"
    assert smoothable(prepare(bare)) == []
