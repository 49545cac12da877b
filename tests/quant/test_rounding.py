"""Integers chosen by a layer's output are never worse there than the nearest ones."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ModelProto
from torch import Tensor

from edgetune.quant.corrections import product
from edgetune.quant.draft import RENDERINGS, draft
from edgetune.quant.parameters import Weight, dequantized, put, real_bias, weights_of
from edgetune.quant.prepare import prepare
from edgetune.quant.rounding import can_round, rounded
from edgetune.quant.torch_graph import TorchGraph

Nets = Callable[..., Any]
LAYERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "strides": {"strides": [2, 2]},
    "grouped": {"group": 4},
    "depthwise": {"group": 16},
    "pointwise": {"kernel": 1},
    "dilated": {"dilations": [2, 2]},
}


def conv(net: Nets, kind: str) -> ModelProto:
    n = net()
    return n.model(n.conv("x", name="layer", **LAYERS[kind]))


def own_pads(net: Nets, bias: bool = True, **more: Any) -> ModelProto:
    n = net()
    weight = n.constant(n.noise.standard_normal((16, 16, 3, 3)).astype(np.float32))
    rest = [n.constant(n.noise.standard_normal(16).astype(np.float32))] if bias else []
    return n.model(n.op("Conv", "x", weight, *rest, name="layer", **more))


def product_of(net: Nets, kind: str) -> ModelProto:
    n = net(size=1)
    flat = n.op("Flatten", "x")
    if kind == "gemm":
        return n.model(n.gemm(flat, 16, 24, name="layer"))
    weight = n.constant(n.noise.standard_normal((16, 24)).astype(np.float32))
    if kind == "untransposed":
        return n.model(n.op("Gemm", flat, weight, n.constant(np.ones(24, np.float32)), name="layer"))
    return n.model(
        n.op("Add", n.op("MatMul", flat, weight, name="layer"), n.constant(np.ones(24, np.float32)))
    )


NETS: dict[str, Callable[[Nets], ModelProto]] = {
    **{kind: lambda net, kind=kind: conv(net, kind) for kind in LAYERS},
    "pads": lambda net: own_pads(net, pads=[0, 1, 2, 1]),
    "auto pads": lambda net: own_pads(net, auto_pad="SAME_UPPER", strides=[2, 2]),
    "no bias": lambda net: own_pads(net, bias=False),
    **{kind: lambda net, kind=kind: product_of(net, kind) for kind in ("gemm", "untransposed", "matmul")},
}


def layer(model: ModelProto, x: np.ndarray, how: str) -> tuple[TorchGraph, Weight, Tensor, Tensor]:
    """The graph, its layer, what that reads there, and what its real weights make of that."""
    made = draft(prepare(model), RENDERINGS[how], [x], "minmax", frozenset())
    net, fp32 = TorchGraph(made.model), TorchGraph(made.graph.model)
    (weight,) = weights_of(net, made.graph)
    read = net.run({"x": torch.from_numpy(x)}, [weight.node.input[0]])[weight.node.input[0]]
    node = next(node for node in fp32.steps if node.name == "layer")
    given = {node.input[0]: read}
    return net, weight, read, fp32.execute([node], given, [node.output[0]], len(read))[node.output[0]]


def error(net: TorchGraph, weight: Weight, x: Tensor, y: Tensor) -> Tensor:
    """Squared error of each output, the means apart where there is a bias to shift."""
    axis = 1 if weight.node.op_type == "Conv" else -1
    missing = (product(net, weight, x) - y).double().movedim(axis, 0).flatten(1)
    if real_bias(net, weight) is not None:
        missing = missing - missing.mean(1, keepdim=True)
    return missing.square().sum(1)


@settings(deadline=None, max_examples=8, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 6), alike=st.booleans())
@pytest.mark.parametrize("how", ["weak", "cpu"])
@pytest.mark.parametrize("kind", NETS)
def test_no_output_gets_worse(net: Nets, kind: str, how: str, seed: int, count: int, alike: bool) -> None:
    model = NETS[kind](net)
    shape = [count, *(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:])]
    noise = np.random.default_rng(seed)
    x = noise.standard_normal(shape).astype(np.float32)
    if alike:
        # Inputs that go together are where rounding has something to gain.
        x = x + 3 * noise.standard_normal((count, 1, *shape[2:])).astype(np.float32)
    graph, weight, read, aim = layer(model, x, how)
    before = error(graph, weight, read, aim)
    put(graph, rounded(graph, weight, [read]))
    after = error(graph, weight, read, aim)
    assert (after <= before * 1.001 + 1e-4 * aim.double().square().mean()).all()


@pytest.mark.parametrize("kind", ["plain", "pointwise", "gemm"])
def test_inputs_that_go_together_gain_much(net: Nets, kind: str) -> None:
    model = NETS[kind](net)
    shape = [64, *(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:])]
    noise = np.random.default_rng(0)
    x = (noise.standard_normal(shape) + 3 * noise.standard_normal((64, 1, *shape[2:]))).astype(np.float32)
    graph, weight, read, aim = layer(model, x, "weak")
    before = float(error(graph, weight, read, aim).sum())
    put(graph, rounded(graph, weight, [read[:40], read[40:]]))
    assert float(error(graph, weight, read, aim).sum()) < 0.85 * before


def test_integers_stay_within_what_kernels_take(net: Nets) -> None:
    model = conv(net, "plain")
    graph, weight, read, _ = layer(model, net().inputs(3) * 5, "weak")
    small = weight.__class__(**{**weight.__dict__, "largest": 64, "real": 4 * weight.real})
    levels = rounded(graph, small, [read])[weight.levels]
    assert float(levels.abs().max()) <= 127
    assert (levels == levels.round()).all()
    # What is not better than the integers that are there leaves those.
    changed = (levels.flatten(1) != graph.constants[weight.levels].flatten(1)).any(1)
    assert float(levels[changed].abs().max()) <= 64


def test_an_input_that_is_always_zero_does_no_harm(net: Nets) -> None:
    model = conv(net, "plain")
    x = net().inputs(2)
    x[:, 3] = 0
    graph, weight, read, _ = layer(model, x, "weak")
    values = rounded(graph, weight, [read])
    assert all(torch.isfinite(value).all() for value in values.values())
    nothing = rounded(graph, weight, [torch.zeros_like(read)])
    assert all(torch.isfinite(value).all() for value in nothing.values())


@pytest.mark.parametrize("kind", ["plain", "depthwise", "pointwise"])
def test_weights_that_are_integers_already_stay_whatever_is_read(net: Nets, kind: str) -> None:
    model = conv(net, kind)
    graph, weight, read, _ = layer(model, net().inputs(8), "weak")
    exact = weight.__class__(
        **{
            **weight.__dict__,
            "real": dequantized(
                weight, graph.constants[weight.levels].float(), graph.constants[weight.scale]
            ),
        }
    )
    # Nearly constant channels far from 0: sums of squares of which nothing is left but their last digits.
    read = 6 + 1e-3 * read
    levels = rounded(graph, exact, [read, read[:1]]).get(weight.levels, graph.constants[weight.levels])
    assert (levels == graph.constants[weight.levels]).all()


def test_transposed_convolutions_and_scaled_products_are_left_alone(net: Nets) -> None:
    n = net()
    a = n.op("Relu", n.conv("x", name="conv"))
    up = n.constant(n.noise.standard_normal((16, 16, 2, 2)).astype(np.float32))
    a = n.op("ConvTranspose", a, up, strides=[2, 2], name="up")
    a = n.op("Flatten", n.op("GlobalAveragePool", n.op("Relu", a)))
    wide = n.constant(n.noise.standard_normal((16, 24)).astype(np.float32))
    a = n.op("Gemm", a, wide, n.constant(np.ones(24, np.float32)), alpha=0.5, name="scaled")
    model = n.model(n.gemm(n.op("Relu", a), 24, 20, name="head"))
    made = draft(prepare(model), RENDERINGS["weak"], [n.inputs(2)], "minmax", frozenset())
    kinds = {w.node.name: can_round(w) for w in weights_of(TorchGraph(made.model), made.graph)}
    assert kinds == {"conv": True, "up": False, "scaled": False, "head": True}
