"""What may change in a Q/DQ graph, found by name and written back."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, numpy_helper

from edgetune.quant.draft import RENDERINGS, Draft, draft
from edgetune.quant.parameters import (
    Weight,
    bias_values,
    dequantized,
    fp16,
    put,
    real_bias,
    tied_scales,
    weights_of,
    written,
)
from edgetune.quant.prepare import prepare
from edgetune.quant.torch_graph import TorchGraph

Nets = Callable[..., Any]


def drafted(model: ModelProto, how: str = "weak") -> Draft:
    graph = prepare(model)
    x = np.random.default_rng(3).standard_normal((4, 16, 8, 8)).astype(np.float32)
    return draft(graph, RENDERINGS[how], [x], "minmax", frozenset())


def found(made: Draft) -> tuple[TorchGraph, dict[str, Weight]]:
    net = TorchGraph(made.model)
    return net, {weight.node.name: weight for weight in weights_of(net, made.graph)}


def kinds(net: Nets) -> ModelProto:
    """Every kind of weighted node, each with its bias in another place."""
    n = net(opset=19)
    a = n.op("Relu", n.conv("x", name="conv"))
    up = n.constant(n.noise.standard_normal((16, 16, 2, 2)).astype(np.float32) / 4)
    a = n.op("ConvTranspose", a, up, n.constant(np.ones(16, np.float32)), strides=[2, 2], name="up")
    a = n.op("Flatten", n.op("GlobalAveragePool", n.op("Relu", a)))
    product = n.op(
        "MatMul", a, n.constant(n.noise.standard_normal((16, 32)).astype(np.float32)), name="matmul"
    )
    a = n.op("Relu", n.op("Add", product, n.constant(np.ones(32, np.float32), "added")))
    wide = n.constant(n.noise.standard_normal((32, 24)).astype(np.float32))
    a = n.op("Gemm", a, wide, n.constant(np.ones((1, 24), np.float32)), name="flat")
    a = n.op("Gemm", n.op("Relu", a), n.constant(n.noise.standard_normal((24, 20)).astype(np.float32)),
             n.constant(np.ones(20, np.float32)), alpha=0.5, beta=2.0, name="scaled")  # fmt: skip
    return n.model(n.gemm(n.op("Relu", a), 20, 24, name="head"))


@pytest.mark.parametrize("how", RENDERINGS)
def test_every_weight_is_found_with_its_bias(net: Nets, how: str) -> None:
    graph, weights = found(drafted(kinds(net), how))
    quantized = {"conv", "up", "matmul", "flat", "scaled", "head"}
    if how == "cpu":
        quantized = weights.keys() & quantized
        assert {"conv", "head"} <= quantized
    assert weights.keys() == quantized
    lengths = {"conv": 16, "up": 16, "matmul": 32, "flat": 24, "head": 24}
    for name, weight in weights.items():
        bias = real_bias(graph, weight)
        assert weight.alone
        assert weight.input_scale in graph.constants
        assert bool(weight.bias_levels) == (how == "cpu" and name not in ("matmul",))
        # A bias that counts twice, or that stands for all channels at once, is left alone.
        assert (None if bias is None else bias.shape) == (None if name == "scaled" else (lengths[name],))
        levels = graph.constants[weight.levels].float()
        scale = graph.constants[weight.scale]
        made = graph.run({"x": torch.zeros(1, 16, 8, 8)}, [weight.made])[weight.made]
        torch.testing.assert_close(dequantized(weight, levels, scale), made)
        # At most half a step from the real weights.
        assert float(((made - weight.real).abs() / made.abs().max()).max()) < 0.02


def test_weights_that_two_nodes_read_are_told(net: Nets) -> None:
    n = net()
    weight = n.constant(n.noise.standard_normal((16, 16, 3, 3)).astype(np.float32))
    bias = n.constant(np.ones(16, np.float32))
    first = n.op("Conv", "x", weight, bias, pads=[1] * 4, name="first")
    other = n.conv(n.op("Relu", first), name="other")
    second = n.op("Conv", n.op("Relu", other), weight, bias, pads=[1] * 4, name="second")
    _, weights = found(drafted(n.model(second)))
    assert {name: weight.alone for name, weight in weights.items()} == {
        "first": False, "other": True, "second": False,
    }  # fmt: skip


def test_a_constant_that_is_added_along_another_axis_is_no_bias(net: Nets) -> None:
    n = net(channels=16, size=16)
    made = n.op("Add", n.conv("x", name="conv"), n.constant(np.ones(16, np.float32)))
    model = n.model(made)
    # A convolution of its own without a bias, followed by an Add over its last dimension.
    next(node for node in model.graph.node if node.name == "conv").input.pop()
    graph = prepare(model)
    x = np.random.default_rng(3).standard_normal((2, 16, 16, 16)).astype(np.float32)
    made_draft = draft(graph, RENDERINGS["weak"], [x], "minmax", frozenset())
    _, weights = found(made_draft)
    assert weights["conv"].bias == ""


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["weak", "cpu"]))
def test_biases_come_back_as_they_went(net: Nets, seed: int, how: str) -> None:
    graph, weights = found(drafted(kinds(net), how))
    noise = torch.Generator().manual_seed(seed)
    for weight in weights.values():
        old = real_bias(graph, weight)
        if old is not None:
            bias = old + torch.randn(old.shape, generator=noise)
            put(graph, bias_values(graph, weight, bias))
            step = graph.constants[weight.bias_scale].max() if weight.bias_scale else 1e-6
            again = real_bias(graph, weight)
            assert again is not None
            assert float((again - bias).abs().max()) <= 0.51 * float(step) + 1e-6


def test_integers_are_rounded_and_stay_within_their_type(net: Nets) -> None:
    graph, weights = found(drafted(kinds(net)))
    name = weights["head"].levels
    values = torch.full(graph.constants[name].shape, 300.0)
    values[0, :4] = torch.tensor([-300.0, 0.5, 1.5, -1.4])
    put(graph, {name: values})
    now = graph.constants[name]
    assert now.dtype == torch.int8
    assert now[0, :5].tolist() == [-127, 0, 2, -1, 127]


def test_tied_scales_are_those_of_a_group(net: Nets) -> None:
    n = net()
    a, b = n.op("Relu", n.conv("x", name="a")), n.op("Relu", n.conv("x", name="b"))
    made = drafted(n.model(n.conv(n.op("Concat", a, b, axis=1), into=32)))
    ties = tied_scales(TorchGraph(made.model), made.plan.groups)
    names = sorted(name for tied in ties.values() for name in tied)
    assert sorted(f"{t}/scale" for t in made.plan.reads) == names
    for group, tied in ties.items():
        assert {made.plan.groups[name.removesuffix("/scale")] for name in tied} == {group}
    assert len(ties) == len(set(made.plan.groups.values()))


@settings(deadline=None, max_examples=50)
@given(st.floats(2.0**-19, 100))
def test_fp16_is_the_nearest_number_that_fp16_holds(value: float) -> None:
    made = fp16(torch.tensor(value))
    assert made.dtype == torch.float32
    assert float(made.half().float()) == float(made)
    assert abs(float(made) - value) <= value * 2**-5
    assert float(fp16(made)) == float(made)


def test_what_is_written_is_what_was_put_and_nothing_else(net: Nets) -> None:
    made = drafted(kinds(net), "cpu")
    graph, weights = found(made)
    assert written(made.model, graph) == made.model
    name = weights["conv"].levels
    put(graph, {name: -graph.constants[name]})
    after = written(made.model, graph)
    before = {item.name: numpy_helper.to_array(item) for item in made.model.graph.initializer}
    for item in after.graph.initializer:
        value = numpy_helper.to_array(item)
        assert value.dtype == before[item.name].dtype
        np.testing.assert_array_equal(value, -before[item.name] if item.name == name else before[item.name])
