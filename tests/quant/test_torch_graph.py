"""Whole graphs in torch: what ONNX Runtime gives, for any batch, with gradients through Q/DQ."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ModelProto

from edgetune.engines.onnxruntime import Session
from edgetune.errors import ConfigError, StageError
from edgetune.quant.draft import RENDERINGS, draft
from edgetune.quant.graph import Graph
from edgetune.quant.prepare import prepare
from edgetune.quant.torch_graph import TorchGraph, nodes_between, unsupported

Nets = Callable[..., Any]


def small(net: Nets, batch: int | str = 1) -> ModelProto:
    """Convolutions of all kinds, a residual, a gate and a head."""
    n = net(batch=batch, opset=19)
    first = n.op("Relu", n.conv("x", name="stem"))
    side = n.op("Clip", n.conv(first, group=16, name="depthwise"), n.constant(f32(0)), n.constant(f32(6)))
    joined = n.op("Add", n.conv(side, kernel=1, name="project"), first)
    gate = n.op("Sigmoid", n.conv(n.op("GlobalAveragePool", joined), kernel=1, name="gate"))
    both = n.op("Concat", n.op("Mul", joined, gate), n.op("MaxPool", side, kernel_shape=[1, 1]), axis=1)
    pooled = n.op("GlobalAveragePool", n.conv(both, into=32, name="late"))
    return n.model(n.gemm(n.op("Flatten", pooled), 16, 10, name="head"))


def f32(value: float) -> np.ndarray:
    return np.array(value, np.float32)


def rendered(model: ModelProto, how: str, x: np.ndarray | None = None) -> ModelProto:
    """With Q/DQ as a rendering writes it, and FP32 outside of it."""
    x = np.random.default_rng(3).standard_normal((2, 16, 8, 8)).astype(np.float32) if x is None else x
    return draft(prepare(model), RENDERINGS[how], [x], "minmax", frozenset()).model


@pytest.mark.parametrize("how", RENDERINGS)
def test_every_rendering_gives_what_onnx_runtime_gives(net: Nets, kit: SimpleNamespace, how: str) -> None:
    model = small(net)
    made = rendered(model, how)
    feed = kit.feeds(model, seed=5)
    (right,) = kit.run(made, feed)
    (name,) = [value.name for value in made.graph.output]
    found = TorchGraph(made).run({"x": torch.from_numpy(feed["x"])})[name].numpy()
    np.testing.assert_allclose(found, right, atol=1e-4 * np.abs(right).max())


@settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3), st.sampled_from(list(RENDERINGS)))
def test_one_pair_is_off_by_a_step_at_most(net: Nets, seed: int, size: float, how: str) -> None:
    n = net(size=4)
    model = n.model(n.conv("x"))
    x = np.random.default_rng(seed).standard_normal((1, 16, 4, 4)).astype(np.float32) * np.float32(size)
    made = rendered(model, how, x)
    graph = TorchGraph(made)
    wanted = next(
        node.output[0]
        for node in graph.steps
        if node.op_type == "DequantizeLinear" and node.input[0] not in graph.constants
    )
    with_tap = Graph(made)
    with_tap.model.graph.output.append(with_tap.model.graph.output[0])
    with_tap.model.graph.output[-1].name = wanted
    right = Session(with_tap.model.SerializeToString(), threads=1, exact=True).run_once({"x": x})[-1]
    found = graph.run({"x": torch.from_numpy(x)}, [wanted])[wanted].numpy()
    step = float(graph.constants["x/scale"])
    assert np.abs(found - right).max() <= step * 1.001
    # Ties aside, everything is the same.
    assert (np.abs(found - right) < step / 2).mean() > 0.98


@pytest.mark.parametrize("batch", [1, 2, "N"])
@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_any_batch_size(net: Nets, batch: int | str, rows: int) -> None:
    n = net(batch=batch)
    split = n.op("Reshape", n.conv("x"), n.constant(np.array([batch if batch != "N" else -1, 2, 8, 8, 8])))
    shuffled = n.op("Transpose", split, perm=[0, 2, 1, 3, 4])
    joined = n.op("Reshape", shuffled, n.constant(np.array([batch if batch != "N" else -1, 16, 8, 8])))
    model = n.model(n.gemm(n.op("Reshape", joined, n.constant(np.array([0, -1]))), 1024, 4))
    x = np.random.default_rng(0).standard_normal((rows, 16, 8, 8)).astype(np.float32)
    (right,) = Session(model.SerializeToString(), threads=1).run(x)
    (found,) = TorchGraph(prepare(model).model).run({"x": torch.from_numpy(x)}).values()
    np.testing.assert_allclose(found.numpy(), right, rtol=1e-3, atol=1e-3)


def test_a_graph_whose_first_dimension_is_another_one_runs_batch_by_batch(net: Nets) -> None:
    """Attention over [length, batch * heads, width]: what is written into the graph holds for a batch of one."""
    n = net(channels=8, size=4)
    flat = n.op("Reshape", n.conv("x", into=8, out=8), n.constant(np.array([1, 8, 16])))
    length_first = n.op("Transpose", flat, perm=[2, 0, 1])
    heads = n.op("Transpose", n.op("Reshape", length_first, n.constant(np.array([16, 2, 4]))), perm=[1, 0, 2])
    mixed = n.op("Softmax", n.op("MatMul", heads, n.op("Transpose", heads, perm=[0, 2, 1])), axis=-1)
    back = n.op("Transpose", n.op("MatMul", mixed, heads), perm=[1, 0, 2])
    model = n.model(n.op("Reshape", back, n.constant(np.array([1, 16, 8]))))
    x = np.random.default_rng(0).standard_normal((3, 8, 4, 4)).astype(np.float32)
    right = np.concatenate([Session(model.SerializeToString(), threads=1).run(row[None])[0] for row in x])
    graph = TorchGraph(prepare(model).model)
    assert graph.at_once(3) == 1
    (found,) = graph.run({"x": torch.from_numpy(x)}).values()
    np.testing.assert_allclose(found.numpy(), right, rtol=1e-3, atol=1e-4)


def pair(net: Nets, kind: type, scale: float, zero: int) -> TorchGraph:
    n = net(channels=1, size=1)
    names = [n.constant(np.array(scale, np.float32), "scale"), n.constant(np.array(zero, kind), "zero")]
    model = n.model(n.op("DequantizeLinear", n.op("QuantizeLinear", "x", *names), *names))
    return TorchGraph(Graph(model).model)


@pytest.mark.parametrize(
    ("kind", "zero", "low", "high"), [(np.int8, 0, -128, 127), (np.uint8, 100, -100, 155)]
)
def test_gradients_pass_inside_the_range_and_not_outside(
    net: Nets, kind: type, zero: int, low: int, high: int
) -> None:
    graph = pair(net, kind, 0.5, zero)
    inside = torch.tensor([-40.0, 0.1, 20.3, 40.2])
    outside = torch.tensor([(low - 3) * 0.5, (high + 3) * 0.5])
    x = torch.cat([inside, outside]).reshape(-1, 1, 1, 1).requires_grad_()
    scale = torch.tensor(0.5, requires_grad=True)
    (made,) = graph.run({"x": x}, replaced={"scale": scale}).values()
    made.sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [1, 1, 1, 1, 0, 0]
    # Learned step size: round(v) - v inside, the limit outside (arXiv:1902.08153, equation 3).
    v = inside / 0.5
    expected = float((v.round() - v).sum()) + low + high
    assert scale.grad is not None
    assert float(scale.grad) == pytest.approx(expected, abs=1e-3)
    stepped = made.detach().flatten()
    assert stepped[-2:].tolist() == [low * 0.5, high * 0.5]


def test_replaced_tensors_take_the_place_of_weights(net: Nets) -> None:
    graph = TorchGraph(rendered(small(net), "weak"))
    (made,) = [n.input[1] for n in graph.steps if n.name == "head"]
    x = torch.from_numpy(net().inputs(2))
    zeros = torch.zeros(10, 16)
    (found,) = graph.run({"x": x}, replaced={made: zeros}).values()
    bias = graph.constants[next(n.input[2] for n in graph.steps if n.name == "head")]
    torch.testing.assert_close(found, bias.expand(2, 10))


def test_unknown_operators_are_refused_by_name(net: Nets) -> None:
    n = net()
    model = n.model(n.op("Foo", n.op("Det", n.conv("x"), name="volume"), domain="mine", name="bar"))
    assert unsupported(Graph(model)) == ["Det (volume)", "Foo (bar)"]
    with pytest.raises(ConfigError, match=r"torch cannot execute Det \(volume\), Foo \(bar\)"):
        TorchGraph(model)


def test_a_node_that_stops_is_named(net: Nets) -> None:
    n = net()
    model = n.model(n.conv("x", name="first"))
    with pytest.raises(StageError, match="node 'first' \\(Conv\\): torch stopped"):
        TorchGraph(model).run({"x": torch.zeros(1, 3, 8, 8)})


def test_inner_tensors_and_stretches(net: Nets) -> None:
    n = net()
    first = n.op("Relu", n.conv("x"))
    last = n.op("Relu", n.conv(first))
    graph = TorchGraph(n.model(last))
    x = torch.from_numpy(n.inputs(2))
    found = graph.run({"x": x}, [first, last])
    steps = list(nodes_between(graph.graph, [first], [last]))
    assert [node.op_type for node in steps] == ["Conv", "Relu"]
    again = graph.execute(steps, {first: found[first]}, [last], 2)
    torch.testing.assert_close(again[last], found[last])


@pytest.mark.parametrize("dynamic", [False, True])
def test_everything_lives_on_the_device(net: Nets, dynamic: bool) -> None:
    """`meta` stands in for a GPU: a tensor that is made elsewhere, or read on the way, stops it."""
    model = small(net, "N" if dynamic else 1)
    n = net(batch="N" if dynamic else 1, opset=19)
    sizes = n.op("Shape", "x")
    rows = n.op("Gather", sizes, n.constant(np.array([0])))
    grown = n.op(
        "Expand",
        n.constant(np.ones((1, 16, 1, 1), np.float32)),
        n.op("Concat", rows, n.constant(np.array([16, 8, 8])), axis=0),
    )
    some = n.op("Slice", n.op("Add", grown, "x"), *(n.constant(np.array([v])) for v in (0, 8, 1)))
    picked = n.op("Gather", some, n.constant(np.array([3, -1, 0])), axis=1)
    larger = n.op("Resize", picked, "", n.constant(np.array([1, 1, 2, 2], np.float32)), mode="linear")
    padded = n.op("Pad", larger, n.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1])), n.constant(f32(2)))
    scaled = n.op("Mul", padded, n.op("Cast", rows, to=1))
    moving = n.model(
        n.op("Pow", scaled, n.constant(f32(2))),
        n.op("Where", n.op("Greater", scaled, n.constant(f32(0))), scaled, n.constant(f32(1))),
    )
    for made in (rendered(model, "weak"), rendered(model, "cpu"), moving):
        graph = TorchGraph(made, "meta")
        for value in graph.run({"x": torch.zeros(1, 16, 8, 8, device="meta")}).values():
            assert value.device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_what_the_cpu_gives(net: Nets) -> None:
    made = rendered(small(net), "weak")
    x = torch.from_numpy(net().inputs(3))
    (here,) = TorchGraph(made).run({"x": x}).values()
    (there,) = TorchGraph(made, "cuda").run({"x": x.cuda()}).values()
    assert float((there.cpu() - here).norm()) <= 0.02 * float(here.norm())
