"""FP16 written into a graph: types, names, what stays FP32 and why, and that the numbers stay near."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgetune.errors import ConfigError
from edgetune.quant import half
from edgetune.quant.graph import Graph, infer_types
from edgetune.quant.plan import fits_half, half_scale, quantize_weights
from edgetune.quant.prepare import prepare

Nets = Callable[..., Any]
F16, F32 = TensorProto.FLOAT16, TensorProto.FLOAT


def types(model: ModelProto) -> dict[str, int]:
    """The element type of every tensor of a model."""
    onnx.checker.check_model(model, full_check=True)
    copy = ModelProto()
    copy.CopyFrom(model)
    shaped = infer_types(copy).graph
    values = {
        v.name: v.type.tensor_type.elem_type for v in [*shaped.input, *shaped.value_info, *shaped.output]
    }
    return values | {item.name: item.data_type for item in model.graph.initializer}


def node(model: ModelProto, name: str) -> onnx.NodeProto:
    return next(item for item in model.graph.node if item.name == name)


def kind(model: ModelProto, name: str) -> int:
    """The type of what a node gives."""
    return types(model)[node(model, name).output[0]]


def casts(model: ModelProto) -> list[str]:
    return sorted(item.output[0] for item in model.graph.node if item.op_type == "Cast")


def residual(net: Nets, **more: Any) -> Any:
    n = net(opset=19, **more)
    start = n.op("Relu", n.conv("x", name="stem"), name="start")
    total = n.op("Add", n.conv(start, name="body"), start, name="add")
    pooled = n.op("GlobalAveragePool", n.op("HardSwish", total, name="act"), name="pool")
    return n, n.gemm(n.op("Flatten", pooled, name="flat"), 16, 20, name="head")


def test_the_baseline_is_fp16_between_fp32_ends(net: Nets, kit: SimpleNamespace) -> None:
    n, out = residual(net)
    model = n.model(out)
    made = half.render(prepare(model))
    assert casts(made) == ["head_out", "x/half"]
    found = types(made)
    assert (found["x"], found["head_out"]) == (F32, F32)
    assert all(kind == F16 for name, kind in found.items() if name not in ("x", "head_out"))
    assert [i.name for i in made.graph.node if i.op_type != "Cast"] == [i.name for i in model.graph.node]
    assert len(made.SerializeToString()) < 0.6 * len(model.SerializeToString())
    (a,), (b,) = (kit.run(m, kit.feeds(model)) for m in (model, made))
    assert 0 < np.abs(a - b).max() < 5e-3 * np.abs(a).max()


def test_the_strong_rendering_has_fp16_scales_and_an_fp16_rest(net: Nets, kit: SimpleNamespace) -> None:
    n, out = residual(net)
    model = n.model(out)
    graph, feed = prepare(model), kit.feeds(model)
    made = kit.write(graph, "strong", feed)
    assert casts(made) == ["head_out", "x/half"]
    found = types(made)
    scales = [name for name in found if name.endswith("/scale")]
    assert len(scales) == 7
    assert all(found[name] == F16 for name in scales)
    assert {k for name, k in found.items() if name not in ("x", "head_out")} == {F16, TensorProto.INT8}
    stored = {item.name: numpy_helper.to_array(item) for item in made.graph.initializer}
    assert all(not v.any() for name, v in stored.items() if name.endswith("/zero_point"))
    (a,), (b,), (c,) = (kit.run(m, feed) for m in (model, kit.write(graph, "weak", feed), made))
    noise = np.square(a - b).mean()
    assert np.square(a - c).mean() < 3 * noise + 1e-9
    assert np.square(b - c).mean() < 3 * noise + 1e-9


def test_integers_fit_the_scale_that_is_in_the_file(net: Nets, kit: SimpleNamespace) -> None:
    n, out = residual(net)
    made = kit.write(prepare(n.model(out)), "strong", kit.feeds(n.model(out)))
    stored = {item.name: numpy_helper.to_array(item) for item in made.graph.initializer}
    weights = [name for name in stored if name.endswith("/quantized")]
    assert len(weights) == 3
    for name in weights:
        stem = name.removesuffix("/quantized")
        scale = stored[f"{stem}/scale"].astype(np.float64)
        spread = scale.reshape(-1, *[1] * (stored[name].ndim - 1))
        assert (np.abs(stored[name] * spread - n.constants[stem]) <= spread * 0.5001 + 1e-12).all()


def norm(n: Any, x: str, kind: str) -> str:
    """A LayerNorm as the opset-17 operator, or as exporters wrote it before."""
    gamma, beta = n.constant(np.ones(8, np.float32)), n.constant(np.zeros(8, np.float32))
    if kind == "operator":
        return n.op("LayerNormalization", x, gamma, beta, name="norm")
    axes = n.constant(np.array([-1]))
    centred = n.op("Sub", x, n.op("ReduceMean", x, axes, name="mean"), name="centred")
    square = n.op("Pow", centred, n.constant(np.array(2, np.float32)), name="square")
    variance = n.op("ReduceMean", square, axes, name="variance")
    shifted = n.op("Add", variance, n.constant(np.array(1e-12, np.float32)), name="shifted")
    unit = n.op("Div", centred, n.op("Sqrt", shifted, name="deviation"), name="unit")
    return n.op("Add", n.op("Mul", unit, gamma, name="scaled"), beta, name="norm")


@pytest.mark.parametrize("written", ["operator", "parts"])
def test_layer_norm_stays_fp32_with_one_cast_at_each_end(
    net: Nets, kit: SimpleNamespace, written: str
) -> None:
    n = net(opset=19)
    model = n.model(n.op("Relu", norm(n, n.conv("x", name="conv"), written), name="last"))
    made = half.render(prepare(model))
    assert kind(made, "conv") == F16
    if written == "parts":
        inside = ["mean", "centred", "square", "variance", "shifted", "deviation", "unit"]
        assert {kind(made, name) for name in inside} == {F32}
        assert kind(made, "scaled") == F16
    assert len(casts(made)) == 4
    feed = {"x": 300 * kit.feeds(model)["x"]}  # squares beyond FP16
    (a,), (b,) = (kit.run(m, feed) for m in (model, made))
    np.testing.assert_allclose(a, b, atol=2e-2)


def test_what_fp16_cannot_hold_stays_fp32_and_is_told(net: Nets, kit: SimpleNamespace) -> None:
    n = net(opset=19)
    large = n.op("Mul", "x", n.constant(np.array(1e5, np.float32), "large"), name="up")
    small = n.op("Mul", large, n.constant(np.array(1e-5, np.float32), "small"), name="down")
    limits = n.constant(np.float32(0)), n.constant(np.float32(3.4e38))
    model = n.model(n.conv(n.op("Clip", small, *limits, name="clip"), name="conv"))
    made, warnings = half.to_half(prepare(model).model)
    assert [kind(made, name) for name in ("up", "down", "clip")] == [F32, F32, F16]
    assert len(warnings) == 1
    for part in ("up (constant 'large' of 1e+05)", "down (constant 'small' of 1e-05)"):
        assert part in warnings[0]
    (a,), (b,) = (kit.run(m, kit.feeds(model)) for m in (model, made))
    assert np.abs(a - b).max() < 5e-3 * np.abs(a).max()


@pytest.mark.parametrize("factor", [1e7, 1e-7])
def test_a_pair_whose_scale_fp16_cannot_hold_is_fp32_with_its_kernel(
    net: Nets, kit: SimpleNamespace, factor: float
) -> None:
    n = net(opset=19)
    first = n.conv("x", name="first")
    n.constants[n.nodes[0].input[1]] *= factor
    n.constants[n.nodes[0].input[2]] *= factor
    second = n.conv(n.op("Relu", first, name="act"), name="second")
    n.constants[n.nodes[2].input[1]] /= factor
    model = n.model(n.op("Relu", n.conv(second, name="third"), name="end"))
    graph, feed = prepare(model), kit.feeds(model)
    made = kit.write(graph, "strong", feed)
    found = types(made)
    assert {found[f"act_out/{part}"] for part in ("scale", "dequantized")} == {F32}
    assert kind(made, "second") == F32
    assert (kind(made, "third"), kind(made, "end")) == (F16, F16)
    # No Cast between a DequantizeLinear and what reads it.
    sources = {name: item.op_type for item in made.graph.node for name in item.output}
    for item in made.graph.node:
        if item.op_type == "Conv":
            assert [sources[name] for name in item.input[:2]] == ["DequantizeLinear"] * 2
    (a,), (b,) = (kit.run(m, feed) for m in (model, made))
    assert np.isfinite(b).all()
    assert np.square(a - b).mean() < 0.02 * np.square(a).mean()


def test_known_peaks_beyond_fp16_stay_fp32(net: Nets) -> None:
    n = net(opset=19)
    act = n.op("Relu", n.conv("x", name="conv"), name="act")
    model = prepare(n.model(n.op("Sigmoid", n.op("Tanh", act, name="after"), name="end"))).model
    made, warnings = half.to_half(model, {"act_out": 1e6})
    assert [kind(made, name) for name in ("conv", "act", "after")] == [F32] * 3
    assert node(made, "end").input[0] == "after_out/half"
    assert "'act_out' reaches 1e+06" in warnings[0]


def test_a_constant_of_both_types_is_there_twice(net: Nets) -> None:
    n = net(opset=19)
    shared = n.constant(np.full(8, 2, np.float32), "shared")
    out = n.op("Mul", n.op("Pow", "x", shared, name="pow"), shared, name="mul")
    made = half.render(prepare(n.model(out)))
    found = types(made)
    assert (found["shared"], found["shared/half"]) == (F32, F16)
    assert node(made, "mul").input[1] == "shared/half"


def test_resize_reads_its_scales_in_fp32(net: Nets, kit: SimpleNamespace) -> None:
    n = net(opset=19)
    scales = n.constant(np.array([1, 1, 2, 2], np.float32), "scales")
    model = n.model(n.op("Resize", n.conv("x"), "", scales, name="resize", mode="linear"))
    made = half.render(prepare(model))
    assert types(made)["scales"] == F32
    assert node(made, "resize").output[0] == "resize_out/half"
    assert kit.run(made, kit.feeds(model))[0].dtype == np.float32


def test_what_subgraphs_and_outputs_read_keeps_name_and_type(net: Nets, kit: SimpleNamespace) -> None:
    n = net(opset=19)
    a = n.op("Relu", n.conv("x"), name="act")
    branches = [
        helper.make_graph(
            [helper.make_node(kind, [a], [kind])], kind, [], [helper.make_tensor_value_info(kind, F32, None)]
        )
        for kind in ("Exp", "Neg")
    ]
    flag = n.op("Greater", n.op("ReduceMax", a, keepdims=0), n.constant(np.array(0, np.float32)))
    chosen = n.op("If", flag, name="if", then_branch=branches[0], else_branch=branches[1])
    model = n.model(n.op("Relu", n.op("Add", chosen, a, name="sum"), name="end"), a)
    made = half.render(prepare(model))
    assert kind(made, "if") == F32
    assert kind(made, "sum") == F16
    for found, wanted in zip(kit.run(made, kit.feeds(model)), kit.run(model, kit.feeds(model)), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-2, atol=1e-2)


def test_a_custom_operator_is_fed_fp32(net: Nets) -> None:
    n = net(opset=19)
    odd = n.op("Magic", n.conv("x", name="conv"), name="magic", domain="my.own")
    made = half.render(prepare(n.model(n.op("Relu", odd, name="end"))))
    assert node(made, "magic").input[0] == "conv_out/float"
    # What it gives is not known, so nothing assumes FP16.
    assert node(made, "end").input[0] == "magic_out"


def test_scales_in_fp16_need_opset_19(net: Nets, kit: SimpleNamespace) -> None:
    n = net(opset=17)
    graph = prepare(n.model(n.conv("x")))
    with pytest.raises(ConfigError, match="opset 17"):
        kit.write(graph, "strong", kit.feeds(graph.model))
    assert types(half.render(graph))["x/half"] == F16


def test_every_operator_that_becomes_fp16_may_be() -> None:
    checked = 0
    for name in sorted(half.HALF_OPS):
        schema = onnx.defs.get_schema(name, 19 if name != "Gelu" else 20)
        allowed = {kind for formal in schema.inputs for kind in formal.types}
        assert "tensor(float16)" in allowed, name
        checked += 1
    assert checked > 60


def test_scales_are_numbers_that_fp16_has() -> None:
    noise = np.random.default_rng(0)
    scale = np.exp(noise.uniform(np.log(1e-8), np.log(500), 1000)).astype(np.float32)
    assert fits_half(scale)
    found = half_scale(scale)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, found.astype(np.float16).astype(np.float32))
    normal = scale > 2.0**-14
    np.testing.assert_allclose(found[normal], scale[normal], rtol=2.0**-11)
    assert found.min() == 2.0**-20
    for beyond in (np.array([600.0, 1.0], np.float32), np.array([1e-7], np.float32)):
        assert not fits_half(beyond)
        np.testing.assert_array_equal(half_scale(beyond), beyond)


def test_weights_of_nothing_but_zeros_survive() -> None:
    levels, scale = quantize_weights(np.zeros((16, 4, 3, 3), np.float32), 0, half=True)
    assert fits_half(scale)
    assert not levels.any()


def test_bytes_repeat_and_the_model_given_stays(net: Nets) -> None:
    n, out = residual(net)
    model = prepare(n.model(out, "start_out", "act_out")).model
    before = model.SerializeToString(deterministic=True)
    first, second = (half.to_half(model)[0].SerializeToString(deterministic=True) for _ in range(2))
    assert first == second
    assert model.SerializeToString(deterministic=True) == before
    assert Graph(model).outputs == ("head_out", "start_out", "act_out")
