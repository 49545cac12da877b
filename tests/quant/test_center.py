"""Centering: the network computes the same, shifted tensors use all levels, and what pads is left alone."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from edgetune.engines.onnxruntime import Session
from edgetune.profile import load_target
from edgetune.quant import implicit
from edgetune.quant.center import center, centered, shifts
from edgetune.quant.compare import compare
from edgetune.quant.draft import RENDERINGS, Draft, draft
from edgetune.quant.graph import Graph
from edgetune.quant.lint import examine
from edgetune.quant.lint_view import reader_of, view_of
from edgetune.quant.prepare import prepare
from edgetune.quant.sensitivity import leave_out, sqnr_of

Nets = Callable[..., Any]
Build = Callable[[Any], ModelProto]
READER = reader_of(load_target("jetson-agx-orin-64gb@6.2"), dla=True)


def relu6(n: Any, x: str) -> str:
    return str(n.op("Clip", x, *(n.constant(np.array(value, np.float32)) for value in (0, 6))))


def pointwise(n: Any) -> ModelProto:
    """Nothing pads: both activations can be shifted."""
    a = n.op("Relu", n.conv("x", name="first"))
    b = relu6(n, n.conv(a, name="second", kernel=1))
    return n.model(n.conv(b, name="third", kernel=1))


def without_biases(n: Any) -> ModelProto:
    weights = [n.constant(n.noise.standard_normal((16, 16, 1, 1)).astype(np.float32)) for _ in range(2)]
    a = n.op("Relu", n.op("Conv", "x", weights[0], name="first"))
    return n.model(n.op("Conv", a, weights[1], name="second"))


def pooled(n: Any) -> ModelProto:
    """A shift goes through pooling, and a head takes it."""
    a = n.op("MaxPool", n.op("Relu", n.conv("x", name="first")), kernel_shape=[3, 3], pads=[1] * 4)
    a = n.op("Relu", n.conv(a, name="second", kernel=1))
    a = n.op("Flatten", n.op("GlobalAveragePool", n.op("AveragePool", a, kernel_shape=[2, 2])))
    return n.model(n.gemm(a, 16, 24, name="head"))


def joined(n: Any) -> ModelProto:
    """Both sides of a Concat are shifted alike."""
    a, b = (n.op("Relu", n.conv("x", name=name)) for name in ("left", "right"))
    weight = n.constant(n.noise.standard_normal((16, 32, 1, 1)).astype(np.float32))
    return n.model(n.op("Conv", n.op("Concat", a, b, axis=1), weight, name="last"))


SHIFTED: dict[str, tuple[Build, int]] = {
    "pointwise": (pointwise, 2),
    "without biases": (without_biases, 1),
    "pooled": (pooled, 6),
    "joined": (joined, 3),
}


def padded(n: Any) -> ModelProto:
    return n.model(n.conv(n.op("Relu", n.conv("x", name="first")), name="second"))


def skipped(n: Any) -> ModelProto:
    a = n.op("Relu", n.conv("x", name="first"))
    return n.model(n.op("Add", n.conv(a, name="second", kernel=1), a))


def given_out(n: Any) -> ModelProto:
    a = n.op("Relu", n.conv("x", name="first"))
    return n.model(n.conv(a, name="second", kernel=1), a)


def one_reader_pads(n: Any) -> ModelProto:
    a = n.op("Relu", n.conv("x", name="first"))
    return n.model(n.conv(a, name="second", kernel=1), n.conv(a, name="third"))


def smooth(n: Any) -> ModelProto:
    return n.model(n.conv(n.op("Sigmoid", n.conv("x", name="first")), name="second", kernel=1))


def average_pads(n: Any) -> ModelProto:
    a = n.op("AveragePool", n.op("Relu", n.conv("x", name="first")), kernel_shape=[3, 3], pads=[1] * 4)
    return n.model(n.conv(a, name="second", kernel=1))


def read_twice_before(n: Any) -> ModelProto:
    made = n.conv("x", name="first")
    return n.model(n.conv(n.op("Relu", made), name="second", kernel=1), n.op("Sigmoid", made))


LEFT = (padded, skipped, given_out, one_reader_pads, smooth, average_pads, read_twice_before)


def images(count: int = 12, seed: int = 3) -> np.ndarray:
    noise = np.random.default_rng(seed)
    return noise.standard_normal((count, 16, 8, 8)).astype(np.float32)


def drafted(model: ModelProto, how: str = "weak") -> Draft:
    return draft(prepare(model), RENDERINGS[how], [images()], "minmax", frozenset())


@pytest.mark.parametrize("kind", SHIFTED)
def test_what_is_shifted_computes_the_same(net: Nets, kind: str) -> None:
    build, count = SHIFTED[kind]
    graph = prepare(build(net()))
    found = shifts(graph, {name: (0.0, 4.0) for node in graph.nodes for name in node.output})
    assert len(found) == count
    assert set(found.values()) == {2.0}
    made = centered(graph, found)
    before, after = (Session(m.SerializeToString(), threads=1).run(images()) for m in (graph.model, made))
    for one, other in zip(before, after, strict=True):
        np.testing.assert_allclose(other, one, atol=1e-4 * float(np.abs(one).max()))
    # Its tensors really are lower.
    assert "Relu" not in {node.op_type for node in made.graph.node}


@pytest.mark.parametrize("build", LEFT, ids=lambda build: build.__name__)
def test_what_cannot_be_shifted_is_left_alone(net: Nets, build: Build) -> None:
    graph = prepare(build(net()))
    assert shifts(graph, {name: (0.0, 4.0) for node in graph.nodes for name in node.output}) == {}


@pytest.mark.parametrize("how", ["weak", "strong"])
@pytest.mark.parametrize("kind", ["pointwise", "pooled", "joined"])
def test_errors_get_smaller(net: Nets, kind: str, how: str) -> None:
    made = drafted(SHIFTED[kind][0](net(opset=19 if how == "strong" else 17)), how)
    better, count = center(made, RENDERINGS[how])
    assert count
    other = [images(seed=9)]
    before, after = (sqnr_of(compare(made.graph.model, m.model, other, exact=True)) for m in (made, better))
    assert after > before + 0.5
    values = {item.name: numpy_helper.to_array(item) for item in better.model.graph.initializer}
    assert all(not value.any() for name, value in values.items() if name.endswith("zero_point"))
    reader = reader_of(
        load_target("jetson-orin-nano-8gb@6.2" if how == "weak" else "jetson-orin-nano-8gb@7.2")
    )
    wrong = examine(RENDERINGS[how].finish(better.model, better.peaks)[0], reader)
    assert [item for item in wrong if item.severity == "error"] == []
    # What was 0 is a level.
    for tensor in better.plan.reads:
        shift = -better.scales[tensor].low
        if tensor in shifts(made.graph, {n: (s.low, s.high) for n, s in made.scales.items()}):
            levels = shift / float(values[f"{tensor}/scale"])
            assert levels == pytest.approx(round(levels), abs=0.1 if how == "strong" else 1e-3)
            assert levels <= 127.5


def test_a_layer_in_float_still_computes_the_same(net: Nets) -> None:
    made, _ = center(drafted(pointwise(net())), RENDERINGS["weak"])
    freed = leave_out(made, RENDERINGS["weak"], ["third"])
    found = compare(made.graph.model, freed.model, [images(seed=9)], exact=True)
    assert sqnr_of(found) > sqnr_of(compare(made.graph.model, made.model, [images(seed=9)], exact=True))


def test_ranges_that_are_centered_already_stay(net: Nets) -> None:
    graph = prepare(pointwise(net()))
    names = [name for node in graph.nodes for name in node.output]
    assert shifts(graph, dict.fromkeys(names, (-3.0, 3.0))) == {}
    assert Graph(centered(graph, {})).nodes == graph.nodes


@pytest.mark.parametrize("kind", SHIFTED)
def test_centering_is_taken_back(net: Nets, kit: SimpleNamespace, kind: str) -> None:
    drawn = drafted(SHIFTED[kind][0](net()))
    shifted, count = center(drawn, RENDERINGS["weak"])
    assert count
    made, scales = implicit.render(shifted.model, READER, [images()])
    onnx.checker.check_model(made, full_check=True)
    feed = {"x": images(1)}
    # The same without taking it back.
    bare = view_of(shifted.model, READER).bare.model
    for a, b in zip(kit.run(bare, feed), kit.run(made, feed), strict=True):
        np.testing.assert_allclose(b, a, atol=2e-5 * float(np.abs(a).max()))
    names = [item.name for item in made.graph.initializer]
    assert len(names) == len(set(names))
    graph = Graph(made)
    for node in graph.nodes:
        assert node.op_type != "Clip" or float(graph.constants[node.input[1]]) == 0
    assert not [item for item in examine(made, READER) if item.rule == "dla-op" and "Clip" in item.reason]
    for name, by in shifted.shift.items():
        if name in shifted.plan.reads:
            # What was represented still is: the top, less the shift.
            top = by + 127 * float(shifted.scales[name].scale)
            assert 127 * scales[name] == pytest.approx(top, rel=1e-5)
            assert scales[name] == pytest.approx(float(drawn.scales[name].scale), rel=0.03)
