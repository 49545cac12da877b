"""What holds for every network of supported operators, in all three renderings."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, numpy_helper

from edgetune.engines.onnxruntime import Session
from edgetune.profile import load_target
from edgetune.quant import half, implicit, tensorrt
from edgetune.quant.center import centered, shifts
from edgetune.quant.graph import Graph, opset_of
from edgetune.quant.lint_view import reader_of
from edgetune.quant.placement import place
from edgetune.quant.plan import quantize_weights, symmetric, weight_axis
from edgetune.quant.prepare import prepare

Nets = Callable[..., Any]
HOWS = ["weak", "strong", "cpu"]
PAIRS = ("QuantizeLinear", "DequantizeLinear")
READER = reader_of(load_target("jetson-agx-orin-64gb@6.2"), dla=True)
RELAXED = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


def activation(n: Any, t: str, kind: str) -> str:
    if kind == "SiLU":
        return n.op("Mul", t, n.op("Sigmoid", t))
    if kind == "Gelu":
        inner = n.op("Erf", n.op("Mul", t, n.constant(np.array(0.7071, np.float32))))
        doubled = n.op("Mul", t, n.op("Add", inner, n.constant(np.array(1, np.float32))))
        return n.op("Mul", doubled, n.constant(np.array(0.5, np.float32)))
    if kind == "Clip":
        return n.op("Clip", t, n.constant(np.float32(0)), n.constant(np.float32(6)))
    if kind == "PRelu":
        return n.op("PRelu", t, n.constant(np.full((16, 1, 1), 0.2, np.float32)))
    return n.op(kind, t)


def along_channels(n: Any, t: str, kind: str) -> str:
    """A LayerNorm, a matrix product or a Softmax over channels."""
    last = n.op("Transpose", t, perm=[0, 2, 3, 1])
    if kind == "LayerNormalization":
        done = n.op(kind, last, *(n.constant(np.ones(16, np.float32)) for _ in range(2)))
    elif kind == "MatMul":
        done = n.op(kind, last, n.constant(n.noise.standard_normal((16, 16)).astype(np.float32) / 4))
    else:
        done = n.op("Softmax", last, axis=-1)
    return n.op("Transpose", done, perm=[0, 3, 1, 2])


def step(n: Any, t: str, earlier: list[str], kind: str) -> str:
    """Add one operator, or a pattern of some, that keeps 16 channels of 8 by 8."""
    if kind == "Conv":
        return n.conv(t)
    if kind == "pointwise":
        return n.conv(t, kernel=1)
    if kind == "depthwise":
        return n.conv(t, group=16)
    if kind == "grouped":
        return n.conv(t, group=2, kernel=1)
    if kind == "narrow":
        return n.conv(n.conv(t, out=6, kernel=1), into=6)
    if kind == "ConvTranspose":
        small = n.conv(t, strides=[2, 2])
        weight = n.constant(n.noise.standard_normal((16, 16, 2, 2)).astype(np.float32) / 8)
        return n.op(kind, small, weight, strides=[2, 2])
    if kind in ("nearest", "linear"):
        small = n.op("MaxPool", t, kernel_shape=[2, 2], strides=[2, 2])
        return n.op("Resize", small, "", n.constant(np.array([1, 1, 2, 2], np.float32)), mode=kind)
    if kind in ("MaxPool", "AveragePool"):
        return n.op(kind, t, kernel_shape=[3, 3], pads=[1] * 4)
    if kind in ("Add", "Mul", "Sub"):
        return n.op(kind, t, earlier[len(earlier) // 2])
    if kind == "residual":
        return n.op("Add", n.conv(n.op("Relu", n.conv(t))), t)
    if kind == "gate":
        return n.op("Mul", t, n.op("Sigmoid", n.conv(n.op("GlobalAveragePool", t), kernel=1)))
    if kind == "Concat":
        return n.conv(n.op(kind, t, earlier[0], axis=1), into=32, kernel=1)
    if kind == "shuffle":
        split = n.op("Reshape", t, n.constant(np.array([0, 2, 8, 8, 8])))
        return n.op(
            "Reshape", n.op("Transpose", split, perm=[0, 2, 1, 3, 4]), n.constant(np.array([0, 16, 8, 8]))
        )
    if kind in ("LayerNormalization", "MatMul", "Softmax"):
        return along_channels(n, t, kind)
    return activation(n, t, kind)


STEPS = [
    *(
        "Conv",
        "depthwise",
        "grouped",
        "narrow",
        "ConvTranspose",
        "nearest",
        "linear",
        "MaxPool",
        "AveragePool",
    ),
    *(
        "Add",
        "Mul",
        "Sub",
        "residual",
        "gate",
        "Concat",
        "shuffle",
        "LayerNormalization",
        "MatMul",
        "Softmax",
    ),
    *("Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "SiLU", "Gelu", "Clip", "PRelu"),
]


def network(net: Nets, kinds: list[str], head: bool, batch: int | str = 1) -> ModelProto:
    n = net(opset=19, batch=batch)
    made = [n.conv("x")]
    for kind in kinds:
        made.append(step(n, made[-1], made, kind))
    out = made[-1]
    if head:
        out = n.gemm(n.op("Flatten", n.op("GlobalAveragePool", out)), 16, 24)
    # A second output in the middle must survive whatever happens around it.
    return n.model(out, *({made[len(made) // 2]} - {out}))


def pairs(model: ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type in PAIRS]


@pytest.mark.slow
@RELAXED
@given(st.lists(st.sampled_from(STEPS), max_size=6), st.booleans(), st.sampled_from([1, 3, "N"]))
@pytest.mark.parametrize("how", HOWS)
def test_names_shapes_and_types_stay(
    net: Nets, kit: SimpleNamespace, how: str, kinds: list[str], head: bool, batch: int | str
) -> None:
    model = network(net, kinds, head, batch)
    before = model.SerializeToString()
    graph, feed = prepare(model), kit.feeds(model)
    made = kit.write(graph, how, feed)
    assert model.SerializeToString() == before
    onnx.checker.check_model(made, full_check=True)
    assert (opset_of(made), made.ir_version) == (opset_of(model), model.ir_version)
    for kept, own in ((made.graph.input, model.graph.input), (made.graph.output, model.graph.output)):
        assert [value.name for value in kept] == [value.name for value in own]
        assert {value.type.tensor_type.elem_type for value in kept} == {TensorProto.FLOAT}
    names = [node.name for node in made.graph.node]
    assert len(names) == len(set(names))
    assert {node.name for node in graph.nodes} <= set(names)
    # ONNX Runtime's own fusions do not take FP16 scales: it gives QLinear operators what they do not read.
    fused = Session(made.SerializeToString(), threads=1, exact=how == "strong").run_once(feed)
    for a, b, c in zip(kit.run(model, feed), kit.run(made, feed), fused, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype) == (c.shape, c.dtype)
        assert np.isfinite(b).all()


@pytest.mark.slow
@RELAXED
@given(st.lists(st.sampled_from(STEPS), max_size=6), st.booleans())
@pytest.mark.parametrize("how", ["weak", "strong"])
def test_tensorrt_takes_every_pair(
    net: Nets, kit: SimpleNamespace, how: str, kinds: list[str], head: bool
) -> None:
    model = network(net, kinds, head)
    graph = prepare(model)
    made = kit.write(graph, how, kit.feeds(model))
    stored = {item.name: numpy_helper.to_array(item) for item in made.graph.initializer}
    plan = place(graph)
    found = pairs(made)
    assert len(found) == 2 * len(plan.reads) + len(
        {graph.producers[n + "_out"].input[1] for n in plan.weighted}
    )
    for node in found:
        scale, zero = (stored[name] for name in node.input[1:])
        assert zero.dtype == np.int8
        assert not zero.any()
        assert zero.shape == scale.shape
        assert (scale > 0).all()
    for tensor, group in plan.groups.items():
        others = [t for t, g in plan.groups.items() if g == group]
        assert len({float(stored[f"{t}/scale"]) for t in others}) == 1, tensor
    # Integers everywhere else, and no integer bias.
    assert {v.dtype for v in stored.values() if v.ndim} <= {
        np.dtype(kind) for kind in (np.int8, np.int64, np.float16, np.float32)
    }


@RELAXED
@given(st.lists(st.sampled_from([*STEPS, *3 * ("pointwise", "Relu")]), max_size=8), st.booleans())
def test_a_shifted_network_computes_the_same(
    net: Nets, kit: SimpleNamespace, kinds: list[str], head: bool
) -> None:
    graph = prepare(network(net, kinds, head))
    shift = shifts(graph, {name: (0.0, 2.0) for node in graph.nodes for name in node.output})
    made = centered(graph, shift)
    onnx.checker.check_model(made, full_check=True)
    feed = kit.feeds(graph.model)
    for one, other in zip(kit.run(graph.model, feed), kit.run(made, feed), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-3 * max(float(np.abs(one).max()), 1.0))


def rounded_weights(graph: Graph) -> ModelProto:
    """The FP32 network with the weights that the integers stand for: what is left without activations' Q/DQ."""
    made, weighted = ModelProto(), place(graph).weighted
    made.CopyFrom(graph.model)
    for node in made.graph.node:
        axis = weight_axis(graph, node) if node.name in weighted else None
        if axis is not None:
            levels, scale = quantize_weights(graph.constants[node.input[1]], axis)
            spread = scale.reshape([-1 if place == axis else 1 for place in range(levels.ndim)])
            made.graph.initializer.append(
                numpy_helper.from_array(levels.astype(np.float32) * spread, f"{node.name}/rounded")
            )
            node.input[1] = f"{node.name}/rounded"
    return made


@pytest.mark.slow
@RELAXED
@given(st.lists(st.sampled_from(STEPS), max_size=6), st.booleans())
def test_any_network_without_qdq(net: Nets, kit: SimpleNamespace, kinds: list[str], head: bool) -> None:
    model = network(net, kinds, head)
    graph, feed = prepare(model), kit.feeds(model)
    paired = kit.write(graph, "weak", feed)
    before = paired.SerializeToString()
    made, scales = implicit.render(paired, READER, [feed["x"]])
    assert paired.SerializeToString() == before
    onnx.checker.check_model(made, full_check=True)
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in made.graph.node}
    assert [value.name for value in made.graph.output] == [value.name for value in model.graph.output]
    for a, b in zip(kit.run(rounded_weights(graph), feed), kit.run(made, feed), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5 * max(1.0, float(np.abs(a).max())))
    kit.check_scales(made, scales, paired)


@pytest.mark.slow
@RELAXED
@given(st.lists(st.sampled_from(STEPS), max_size=6), st.booleans())
def test_fp16_is_everywhere_but_where_it_must_not_be(
    net: Nets, kit: SimpleNamespace, kinds: list[str], head: bool
) -> None:
    model = network(net, kinds, head)
    graph, feed = prepare(model), kit.feeds(model)
    made, warnings = half.to_half(graph.model, kit.magnitudes(graph, feed))
    onnx.checker.check_model(made, full_check=True)
    types = {v.name: v.type.tensor_type.elem_type for v in made.graph.value_info}
    for node in made.graph.node:
        if node.op_type not in ("Cast", "LayerNormalization") and not warnings:
            made_types = {types[name] for name in node.output if name in types}
            assert TensorProto.FLOAT not in made_types, node.op_type
    for a, b in zip(kit.run(model, feed), kit.run(made, feed), strict=True):
        assert np.square(a - b).mean() <= 1e-3 * np.square(a).mean() + 1e-6


@RELAXED
@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3), st.floats(1, 4))
def test_the_error_of_a_product_is_bounded_by_its_steps(
    net: Nets, kit: SimpleNamespace, seed: int, size: float, wider: float
) -> None:
    """Narrower ranges that still cover everything lower the bound in proportion."""
    n = net()
    model = n.model(n.conv("x", name="conv"))
    graph = prepare(model)
    feed = {"x": np.random.default_rng(seed).standard_normal((1, 16, 8, 8)).astype(np.float32) * size}
    peak = float(np.abs(feed["x"]).max())
    weight = np.abs(graph.constants[n.nodes[0].input[1]]).astype(np.float64)
    (right,) = kit.run(model, feed)
    for factor in (1.0, wider):
        scale = symmetric(-peak * factor, peak * factor)
        made = tensorrt.render(graph, place(graph), {"x": scale})
        (found,) = kit.run(made, feed)
        per_weight = weight.max(axis=(1, 2, 3)) / 254
        of_inputs = weight.sum(axis=(1, 2, 3)) * float(scale.scale) / 2
        of_weights = per_weight * 144 * (peak + float(scale.scale) / 2)
        error = np.abs(found.astype(np.float64) - right).max(axis=(0, 2, 3))
        assert (error <= (of_inputs + of_weights) * 1.001 + 1e-4 * peak).all()


@RELAXED
@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3), st.integers(2, 8))
def test_finer_steps_never_make_a_value_worse(
    net: Nets, kit: SimpleNamespace, seed: int, size: float, times: int
) -> None:
    """Where the wider range's steps are a multiple of the narrower one's, every level of it is one of those."""
    n = net()
    identity = np.eye(16, dtype=np.float32)[:, :, None, None]
    model = n.model(n.op("Conv", "x", n.constant(identity), name="conv"))
    graph = prepare(model)
    feed = {"x": np.random.default_rng(seed).standard_normal((1, 16, 8, 8)).astype(np.float32) * size}
    peak = float(np.abs(feed["x"]).max())
    errors = []
    for factor in (1, times):
        scale = symmetric(-peak * factor, peak * factor)
        (found,) = kit.run(tensorrt.render(graph, place(graph), {"x": scale}), feed)
        errors.append(np.abs(found.astype(np.float64) - feed["x"]))
    fine, coarse = errors
    assert (fine <= coarse + 1e-5 * peak).all()
