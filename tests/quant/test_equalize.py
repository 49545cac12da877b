"""Equalized networks compute what they did, and stop where scaling would change something."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ModelProto

from edgetune.engines.onnxruntime import Session
from edgetune.quant.collect import Tapped
from edgetune.quant.draft import RENDERINGS, draft
from edgetune.quant.equalize import LARGEST_FACTOR, Channelwise, channelwise, clip_limit, equalize
from edgetune.quant.graph import Graph
from edgetune.quant.plan import readers
from edgetune.quant.prepare import prepare

Nets = Callable[..., Any]


def images(count: int = 4, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 16, 8, 8)).astype(np.float32)


def uneven(n: Any, x: str, kind: str = "Conv", seed: int = 0, **more: Any) -> str:
    """A convolution whose channels differ by a factor of a hundred."""
    made = n.conv(x, **more) if kind == "Conv" else n.gemm(x, more["into"], more["out"])
    node = n.nodes[-1]
    factors = np.exp(np.random.default_rng(seed + len(n.nodes)).uniform(-2.3, 2.3, more.get("out", 16)))
    for name in node.input[1:]:
        value = n.constants[name]
        n.constants[name] = (value / 3 * factors.reshape(-1, *[1] * (value.ndim - 1))).astype(np.float32)
    return made


def equalized(model: ModelProto) -> tuple[Graph, ModelProto, int]:
    graph = prepare(model)
    read = RENDERINGS["weak"].place(graph, frozenset()).reads
    made, count = equalize(graph, channelwise(graph, list(read), [images()]))
    return graph, made, count


def is_the_same(graph: Graph, made: ModelProto, x: np.ndarray) -> bool:
    pairs = zip(
        Session(graph.model.SerializeToString()).run(x), Session(made.SerializeToString()).run(x), strict=True
    )
    return all(np.abs(a - b).max() <= 1e-4 * np.abs(a).max() for a, b in pairs)


def between(n: Any, t: str, kind: str) -> str:
    """What may stand between two layers: 16 channels of 8 by 8 in, 16 channels out."""
    if kind in ("Relu", "LeakyRelu", "Identity"):
        return n.op(kind, t)
    if kind == "PRelu":
        return n.op(kind, t, n.constant(np.linspace(-0.5, 0.5, 16, dtype=np.float32).reshape(16, 1, 1)))
    if kind == "ReLU6":
        return n.op("Clip", t, n.constant(np.float32(0)), n.constant(np.float32(60)))
    if kind in ("MaxPool", "AveragePool"):
        return n.op(kind, t, kernel_shape=[3, 3], pads=[1] * 4)
    if kind == "Add":
        return n.op("Add", n.op("Relu", uneven(n, t)), n.op("Relu", uneven(n, t)))
    if kind == "Concat":
        halves = [n.op("Relu", uneven(n, t, out=8)) for _ in range(2)]
        return n.op("Concat", *halves, axis=1)
    if kind == "depthwise":
        return n.op("Relu", uneven(n, t, group=16))
    if kind == "grouped":
        return n.op("Relu", uneven(n, t, group=4))
    if kind == "ConvTranspose":
        weight = n.constant(n.noise.standard_normal((16, 8, 3, 3)).astype(np.float32))
        return n.op(kind, t, weight, n.constant(np.ones(16, np.float32)), group=2, pads=[1] * 4)
    if kind == "SiLU":
        return n.op("Mul", t, n.op("Sigmoid", t))
    if kind == "gate":
        return n.op("Mul", t, n.op("Sigmoid", n.conv(n.op("GlobalAveragePool", t), kernel=1)))
    if kind == "Reshape":
        split = n.op("Reshape", t, n.constant(np.array([0, 2, 8, 8, 8])))
        turned = n.op("Transpose", split, perm=[0, 2, 1, 3, 4])
        return n.op("Reshape", turned, n.constant(np.array([0, 16, 8, 8])))
    return n.op(kind, t)


SCALED = [
    "Relu",
    "LeakyRelu",
    "Identity",
    "PRelu",
    "ReLU6",
    "MaxPool",
    "AveragePool",
    "Add",
    "Concat",
    "depthwise",
]
SCALED += ["grouped", "ConvTranspose"]
UNSCALED = ["SiLU", "gate", "Sigmoid", "HardSwish", "Tanh", "Reshape"]


@pytest.mark.parametrize("kind", [*SCALED, *UNSCALED])
def test_nothing_changes_and_channels_are_scaled_where_they_can_be(net: Nets, kind: str) -> None:
    n = net()
    model = n.model(n.conv(between(n, uneven(n, "x"), kind)))
    graph, made, count = equalized(model)
    assert is_the_same(graph, made, images())
    assert (count > 0) == (kind in SCALED), count
    names = [node.name for node in graph.nodes]
    assert [node.name for node in made.graph.node] == names
    assert {item.name for item in made.graph.initializer} == {
        name for node in made.graph.node for name in node.input if name in Graph(made).constants
    }


@pytest.mark.parametrize("head", ["Gemm", "transposed", "MatMul"])
@pytest.mark.parametrize("flat", ["Flatten", "Flatten2"])
def test_a_head_behind_a_pool_takes_factors(net: Nets, head: str, flat: str) -> None:
    n = net()
    pooled = n.op("GlobalAveragePool", n.op("Relu", uneven(n, "x")))
    vector = (
        n.op("Flatten", pooled) if flat == "Flatten" else n.op("Flatten", n.op("Identity", pooled), axis=1)
    )
    weight = n.noise.standard_normal((16, 24)).astype(np.float32)
    if head == "MatMul":
        out = n.op("MatMul", vector, n.constant(weight))
    elif head == "Gemm":
        out = n.op("Gemm", vector, n.constant(weight), n.constant(np.ones(24, np.float32)))
    else:
        out = n.gemm(vector, 16, 24)
    graph, made, count = equalized(n.model(out))
    assert count > 0
    assert is_the_same(graph, made, images())


def test_channels_that_flattening_mixes_stay(net: Nets) -> None:
    """As many columns as channels do not make columns channels."""
    n = net(size=4)
    flat = n.op("Flatten", n.op("Relu", uneven(n, "x")), axis=2)
    model = n.model(n.gemm(flat, 16, 24))
    graph = prepare(model)
    x = np.random.default_rng(0).standard_normal((1, 16, 4, 4)).astype(np.float32)
    made, count = equalize(graph, channelwise(graph, ["relu1_out", "flatten2_out"], [x]))
    assert count == 0
    assert is_the_same(graph, made, x)


def test_outputs_and_inputs_stay(net: Nets) -> None:
    n = net()
    middle = n.op("Relu", uneven(n, "x"))
    graph, made, count = equalized(n.model(n.conv(middle), middle))
    assert count == 0
    assert is_the_same(graph, made, images())


def test_products_with_factors_of_their_own_stay(net: Nets) -> None:
    n = net()
    vector = n.op("Flatten", n.op("GlobalAveragePool", n.op("Relu", uneven(n, "x"))))
    weight, bias = (n.constant(n.noise.standard_normal(s).astype(np.float32)) for s in ((16, 24), (24,)))
    graph, made, count = equalized(n.model(n.op("Gemm", vector, weight, bias, alpha=0.5, beta=2.0)))
    assert count == 0
    assert is_the_same(graph, made, images())


def test_weights_that_two_nodes_share_part(net: Nets) -> None:
    n = net()
    weight, bias = (
        n.constant(n.noise.standard_normal(s).astype(np.float32)) for s in ((16, 16, 3, 3), (16,))
    )
    t = n.op("Relu", n.op("Conv", n.op("Relu", uneven(n, "x")), weight, bias, pads=[1] * 4))
    graph, made, count = equalized(n.model(n.op("Conv", t, weight, bias, pads=[1] * 4)))
    assert count > 0
    assert is_the_same(graph, made, images())


@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.sampled_from([*SCALED, *UNSCALED]), min_size=1, max_size=5),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
@pytest.mark.slow
def test_any_network_computes_the_same(net: Nets, kinds: list[str], seed: int, several: bool) -> None:
    n = net()
    made_here = [uneven(n, "x", seed=seed)]
    for kind in kinds:
        made_here.append(uneven(n, between(n, made_here[-1], kind), seed=seed))
    out = n.conv(n.op("Relu", made_here[-1]))
    extra = {made_here[len(made_here) // 2]} if several else set()
    graph, made, _ = equalized(n.model(out, *extra))
    assert is_the_same(graph, made, images())


@pytest.mark.slow
@settings(deadline=None, max_examples=20, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32 - 1))
def test_factors_stay_within_bounds_and_ranges_do_not_grow(net: Nets, seed: int) -> None:
    n = net()
    model = n.model(n.conv(n.op("Relu", uneven(n, "x", seed=seed))))
    graph, made, _ = equalized(model)
    inner = [node.output[0] for node in graph.nodes[:-1]]
    before, after = (Tapped(g, inner).run({"x": images(1)}) for g in (graph, Graph(made)))
    for name in inner:
        ratio = np.abs(after[name]).max(axis=(0, 2, 3)) / np.maximum(
            np.abs(before[name]).max(axis=(0, 2, 3)), 1e-9
        )
        assert (ratio <= LARGEST_FACTOR * 1.001).all()
        assert (ratio >= 0.999).all() or (ratio[ratio < 0.999] == 0).all()


def test_uneven_channels_quantize_better_afterwards(net: Nets) -> None:
    n = net()
    model = n.model(n.conv(n.op("Relu", uneven(n, n.op("Relu", uneven(n, "x"))))))
    graph, made, _ = equalized(model)
    errors = []
    for prepared in (graph, prepare(made)):
        quantized = draft(prepared, RENDERINGS["weak"], [images()], "minmax", frozenset()).model
        (right,) = Session(graph.model.SerializeToString()).run(images(4, 8))
        (found,) = Session(quantized.SerializeToString(), exact=True).run(images(4, 8))
        errors.append(float(np.square(found - right).mean()))
    assert errors[1] < 0.95 * errors[0]


def test_what_is_seen_of_channels(net: Nets) -> None:
    n = net()
    graph = prepare(n.model(n.op("Relu", "x")))
    x = images(5)
    seen = channelwise(graph, ["x", "relu0_out"], [x[:2], x[2:]])
    np.testing.assert_allclose(seen["x"].peak, np.abs(x).max(axis=(0, 2, 3)))
    np.testing.assert_allclose(seen["x"].rms, np.sqrt(np.square(x).mean(axis=(0, 2, 3))), rtol=1e-5)
    np.testing.assert_allclose(seen["relu0_out"].peak, np.maximum(x, 0).max(axis=(0, 2, 3)))


@pytest.mark.parametrize(
    ("limits", "expected"),
    [((0, 6), 6), ((-1, 6), None), ((0, None), None), ((None, 6), None), ((0, -1), None)],
)
def test_limits_of_clip(net: Nets, limits: tuple[float | None, float | None], expected: float | None) -> None:
    n = net()
    names = ["" if value is None else n.constant(np.float32(value)) for value in limits]
    node = Graph(n.model(n.op("Clip", "x", *names))).nodes[0]
    assert clip_limit(Graph(n.model("clip0_out")), node) == expected


def test_a_clip_is_never_reached(net: Nets) -> None:
    """A channel grows no further than what was seen allows, even where its layer wants more."""
    n = net()
    t = n.op("Clip", uneven(n, "x"), n.constant(np.float32(0)), n.constant(np.float32(6)))
    graph = prepare(n.model(n.conv(t)))
    assert len(readers(graph, t)) == 1
    peak = np.linspace(0.1, 6, 16, dtype=np.float32)
    made, _ = equalize(graph, {t: Channelwise(peak, peak / 10)})
    scaled = Graph(made).constants[next(node for node in made.graph.node if node.op_type == "Conv").input[1]]
    own = graph.constants[graph.nodes[0].input[1]]
    factors = np.abs(scaled).max(axis=(1, 2, 3)) / np.abs(own).max(axis=(1, 2, 3))
    assert (factors * peak <= 6.0001).all()
    assert factors.max() > 1.5
