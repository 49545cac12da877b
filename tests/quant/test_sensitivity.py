"""Which layers hurt, what they cost, and leaving them in float without losing what was corrected."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from onnx import ModelProto, numpy_helper

from edgetune.engines.onnxruntime import Session
from edgetune.quant.corrections import correct_bias
from edgetune.quant.draft import RENDERINGS, Draft, draft
from edgetune.quant.prepare import prepare
from edgetune.quant.quantizer import quantize_model
from edgetune.quant.sensitivity import (
    CEILING_DB,
    Layer,
    leave_out,
    noise_by_layer,
    operations,
    rank,
    relieving,
    sqnr_of,
)

Nets = Callable[..., Any]


def images(count: int = 4) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((count, 16, 8, 8)).astype(np.float32)


def network(net: Nets) -> ModelProto:
    """The layer `bad` has one huge weight per channel, beside which the others vanish."""
    n = net(opset=19)
    a = n.op("Relu", n.conv("x", name="first"))
    a = n.op("Relu", n.conv(a, name="bad"))
    weight = n.constants[n.nodes[-2].input[1]]
    weight[:, 0, 0, 0] = 40 * np.abs(weight).max()
    a = n.op("Add", n.conv(a, kernel=1, name="last"), n.conv(a, group=16, name="depthwise"))
    pooled = n.op("Flatten", n.op("GlobalAveragePool", n.op("Relu", a)))
    product = n.op(
        "MatMul", pooled, n.constant(n.noise.standard_normal((16, 32)).astype(np.float32)), name="head"
    )
    return n.model(n.op("Add", product, n.constant(n.noise.standard_normal(32).astype(np.float32))))


def drafted(net: Nets, how: str = "weak") -> Draft:
    return draft(prepare(network(net)), RENDERINGS[how], [images()], "minmax", frozenset())


@pytest.mark.parametrize("how", RENDERINGS)
def test_noise_grows_at_the_bad_layer(net: Nets, how: str) -> None:
    made = drafted(net, how)
    layers = {layer.name: layer for layer in noise_by_layer(made, [images()])}
    assert layers.keys() == made.plan.weighted
    assert list(layers) == [node.name for node in made.graph.nodes if node.name in layers]
    assert layers["first"].sqnr_db > 30
    assert layers["bad"].sqnr_db < layers["first"].sqnr_db - 5
    assert all(layer.gain_db is None for layer in layers.values())


def test_a_network_without_noise_is_at_the_ceiling(net: Nets) -> None:
    n = net()
    eye = n.constant(np.eye(16, dtype=np.float32)[:, :, None, None] * 127)
    made = draft(
        prepare(n.model(n.op("Conv", "x", eye, name="eye"))),
        RENDERINGS["weak"],
        [images()],
        "minmax",
        frozenset(),
    )
    x = np.sign(images()) * float(np.abs(images()).max())
    assert [layer.sqnr_db for layer in noise_by_layer(made, [x])] == [pytest.approx(CEILING_DB, abs=80)]


def test_operations_are_multiply_accumulates_of_one_input(net: Nets) -> None:
    made = drafted(net)
    found = {
        node.name: operations(made.graph, node)
        for node in made.graph.nodes
        if node.name in made.plan.weighted
    }
    assert found == {
        "first": 64 * 16 * 16 * 9,
        "bad": 64 * 16 * 16 * 9,
        "last": 64 * 16 * 16,
        "depthwise": 64 * 16 * 9,
        "head": 16 * 32,
    }


def test_operations_of_other_kinds(net: Nets) -> None:
    n = net(batch="N")
    up = n.op("ConvTranspose", "x", n.constant(np.ones((16, 8, 2, 2), np.float32)), strides=[2, 2], name="up")
    rows = n.op("Transpose", "x", perm=[0, 2, 3, 1])
    wide = n.op("MatMul", rows, n.constant(np.ones((16, 5), np.float32)), name="wide")
    flat = n.gemm(n.op("Flatten", n.op("GlobalAveragePool", "x")), 16, 7, name="flat")
    graph = prepare(n.model(up, wide, flat))
    nodes = {
        node.name: operations(graph, node) for node in graph.nodes if node.name in ("up", "wide", "flat")
    }
    assert nodes == {"up": 16 * 64 * 8 * 4, "wide": 64 * 16 * 5, "flat": 16 * 7}


@pytest.mark.parametrize("how", RENDERINGS)
@pytest.mark.parametrize("names", [["bad"], ["first", "depthwise"], ["head"]])
def test_what_is_left_out_is_fp32_and_the_rest_stays_corrected(net: Nets, how: str, names: list[str]) -> None:
    made = drafted(net, how)
    corrected = correct_bias(made.model, made.graph, {"x": torch.from_numpy(images() + 1)})
    made = Draft(made.graph, made.plan, made.found, made.scales, corrected, made.excluded)
    after = leave_out(made, RENDERINGS[how], names)
    assert after.excluded >= set(names)
    assert not after.plan.weighted & set(names)
    assert after.plan.weighted == made.plan.weighted - after.excluded
    float_now = {node.name: node for node in after.model.graph.node if node.name in after.excluded}
    values = {item.name: numpy_helper.to_array(item) for item in after.model.graph.initializer}
    old = {item.name: numpy_helper.to_array(item) for item in corrected.graph.initializer}
    for node in float_now.values():
        for name in node.input[1:]:
            np.testing.assert_array_equal(values[name], made.graph.constants[name])
    # Corrected: biases, those in an Add behind the product included.
    kept = 0
    for node in made.graph.nodes:
        if node.name in after.excluded or (node.op_type == "Add" and "head" in after.excluded):
            continue
        for name in node.input:
            for shown in (name, f"{name}/quantized", f"{name}/scale"):
                if shown in values and shown in old:
                    np.testing.assert_array_equal(values[shown], old[shown])
                    kept += 1
    assert kept > 5
    if "head" in names:
        adds = [node for node in made.graph.nodes if node.op_type == "Add"]
        (constant,) = [name for node in adds for name in node.input if name in made.graph.constants]
        np.testing.assert_array_equal(values[constant], made.graph.constants[constant])
    Session(RENDERINGS[how].finish(after.model, {})[0].SerializeToString(), exact=True).run(images())


@pytest.mark.parametrize("how", ["weak", "strong"])
def test_leaving_everything_out_leaves_fp32(net: Nets, how: str) -> None:
    made = drafted(net, how)
    after = leave_out(made, RENDERINGS[how], made.plan.weighted)
    assert not after.plan.weighted
    (right,) = Session(made.graph.model.SerializeToString()).run(images())
    (found,) = Session(after.model.SerializeToString(), exact=True).run(images())
    np.testing.assert_allclose(found, right, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_what_relieves_most_comes_first_within_its_budget(net: Nets) -> None:
    made = drafted(net)
    layers = noise_by_layer(made, [images()])
    everything = sum(layer.operations for layer in layers)

    def chosen(budget: float, least_db: float) -> list[str]:
        return relieving(made, RENDERINGS["weak"], layers, [images()], budget, least_db)

    assert chosen(everything, 3.0) == ["bad"]
    assert chosen(everything, 0.0)[0] == "bad"
    assert len(chosen(everything, 0.0)) > 1
    (bad,) = [layer for layer in layers if layer.name == "bad"]
    assert chosen(bad.operations, 0.01) == ["bad"]
    assert "bad" not in chosen(bad.operations - 1, 0.0)
    assert chosen(0, 0.0) == []


def test_the_worst_layer_comes_first_and_dear_ones_later(net: Nets) -> None:
    made, batches = drafted(net), [images()]
    layers = noise_by_layer(made, batches)
    ranked = rank(made, RENDERINGS["weak"], layers, batches, {})
    assert {layer.name for layer in ranked} == {layer.name for layer in layers}
    gains = {layer.name: layer.gain_db or 0 for layer in ranked}
    assert max(gains, key=lambda name: gains[name]) == "bad"
    assert gains["bad"] > 1
    # Where all gain the same, the cheap one comes first.
    even = rank(
        made,
        RENDERINGS["weak"],
        [Layer("bad", 0, None, 10**9), Layer("first", 0, None, 1)],
        batches,
        {"bad": 1.0},
    )
    shares = {"bad": 1.0, "first": 1e-9}
    worth = {layer.name: (layer.gain_db or 0) / (shares[layer.name] + 1e-3) for layer in even}
    assert [layer.name for layer in even] == sorted(worth, key=lambda name: -worth[name])


def test_the_least_of_several_outputs_counts() -> None:
    outputs = {"a": {"sqnr_mean_db": 12.0}, "b": {"sqnr_mean_db": 7.5}, "kinds": {"same": 1.0}}
    assert sqnr_of({"outputs": outputs}) == 7.5
    assert sqnr_of({"outputs": {"kinds": {"same": 0.5}}}) == 0.0


def test_the_layer_that_is_the_output_is_compared_too(net: Callable[..., Any]) -> None:
    n = net()
    pooled = n.op("GlobalAveragePool", n.op("Relu", n.conv("x", name="first"), name="act"), name="pool")
    out = n.gemm(n.op("Flatten", pooled, name="flat"), 16, 20, name="last")
    _, details = quantize_model(n.model(out), [n.inputs()], "weak", "minmax")
    heard = {layer["name"]: layer["sqnr_db"] for layer in details["layers"] if "sqnr_db" in layer}
    assert set(heard) == {"first", "last"}
    assert all(np.isfinite(sqnr) and sqnr < CEILING_DB for sqnr in heard.values())
