"""Biases: the squared error behind the activation is what gets smaller, channel by channel."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ModelProto
from torch import Tensor

from edgetune.quant.bias import activated, fitted_bias
from edgetune.quant.corrections import product
from edgetune.quant.draft import RENDERINGS, draft
from edgetune.quant.graph import Graph
from edgetune.quant.parameters import Weight, bias_values, put, real_bias, weights_of
from edgetune.quant.prepare import prepare
from edgetune.quant.torch_graph import TorchGraph

Nets = Callable[..., Any]


def silu(n: Any, x: str) -> str:
    return str(n.op("Mul", x, n.op("Sigmoid", x)))


def clip(n: Any, x: str) -> str:
    return str(n.op("Clip", x, *(n.constant(np.array(value, np.float32)) for value in (0, 2))))


ACTIVATIONS: dict[str, Callable[[Any, str], str]] = {
    "none": lambda n, x: x,
    "relu": lambda n, x: str(n.op("Relu", x)),
    "clip": clip,
    "leaky": lambda n, x: str(n.op("LeakyRelu", x, alpha=0.1)),
    "sigmoid": lambda n, x: str(n.op("Sigmoid", x)),
    "hardswish": lambda n, x: str(n.op("HardSwish", x)),
    "silu": silu,
}


def network(net: Nets, kind: str) -> ModelProto:
    n = net(opset=19)
    return n.model(n.op("GlobalAveragePool", ACTIVATIONS[kind](n, n.conv("x", name="layer"))))


def layer(model: ModelProto, x: np.ndarray) -> tuple[TorchGraph, TorchGraph, Weight, Tensor]:
    made = draft(prepare(model), RENDERINGS["weak"], [x], "minmax", frozenset())
    net, fp32 = TorchGraph(made.model), TorchGraph(made.graph.model)
    (weight,) = weights_of(net, made.graph)
    return (
        net,
        fp32,
        weight,
        fp32.run({"x": torch.from_numpy(x)}, [weight.node.output[0]])[weight.node.output[0]],
    )


def behind(kind: str, y: Tensor) -> Tensor:
    made: dict[str, Callable[[Tensor], Tensor]] = {
        "none": lambda v: v,
        "relu": torch.relu,
        "clip": lambda v: v.clamp(0, 2),
        "leaky": lambda v: torch.nn.functional.leaky_relu(v, 0.1),
        "sigmoid": torch.sigmoid,
        "hardswish": torch.nn.functional.hardswish,
        "silu": torch.nn.functional.silu,
    }
    return made[kind](y)


@settings(deadline=None, max_examples=8, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32 - 1), off=st.floats(-2, 2))
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_no_channel_gets_worse_and_together_they_gain(net: Nets, kind: str, seed: int, off: float) -> None:
    noise = np.random.default_rng(seed)
    x = noise.standard_normal((4, 16, 8, 8)).astype(np.float32)
    graph, fp32, weight, wanted = layer(network(net, kind), x)
    read = torch.from_numpy(x)
    start = real_bias(graph, weight)
    assert start is not None
    put(graph, bias_values(graph, weight, start + off * wanted.std()))
    errors = []
    for _ in range(2):
        given_now = product(graph, weight, read)
        errors.append((behind(kind, given_now) - behind(kind, wanted)).square().mean((0, 2, 3)))
        bias = fitted_bias(graph, fp32, weight, [(given_now[:3], wanted[:3]), (given_now[3:], wanted[3:])])
        assert bias is not None
        put(graph, bias_values(graph, weight, bias))
    before, after = errors
    assert (after <= before + 1e-6).all()
    if abs(off) > 0.3:
        assert float(after.sum()) < 0.7 * float(before.sum())


def test_without_an_activation_means_are_met(net: Nets) -> None:
    x = np.random.default_rng(0).standard_normal((4, 16, 8, 8)).astype(np.float32)
    graph, fp32, weight, wanted = layer(network(net, "none"), x)
    given_now = product(graph, weight, torch.from_numpy(x))
    bias, start = fitted_bias(graph, fp32, weight, [(given_now, wanted)]), real_bias(graph, weight)
    assert bias is not None
    assert start is not None
    torch.testing.assert_close(bias - start, (wanted - given_now).mean((0, 2, 3)), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_where_an_activation_ends(net: Nets, kind: str) -> None:
    graph = Graph(prepare(network(net, kind)).model)
    made = next(node.output[0] for node in graph.nodes if node.name == "layer")
    (pool,) = (node for node in graph.nodes if node.op_type == "GlobalAveragePool")
    assert activated(graph, made) == pool.input[0]


def test_a_gate_and_a_second_reader_end_it(net: Nets) -> None:
    n = net(opset=19)
    first, second = n.conv("x", name="a"), n.conv("x", name="b")
    graph = Graph(prepare(n.model(n.op("Mul", first, n.op("Sigmoid", second)), n.op("Relu", first))).model)
    assert activated(graph, first) == first
    assert activated(graph, second) == n.nodes[-3].output[0]


def test_a_layer_without_a_bias_has_none_to_shift(net: Nets) -> None:
    n = net()
    weight = n.constant(n.noise.standard_normal((16, 16, 3, 3)).astype(np.float32))
    x = np.random.default_rng(0).standard_normal((2, 16, 8, 8)).astype(np.float32)
    graph, fp32, found, wanted = layer(n.model(n.op("Conv", "x", weight, pads=[1] * 4, name="layer")), x)
    assert fitted_bias(graph, fp32, found, [(wanted, wanted)]) is None
