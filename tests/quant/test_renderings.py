"""Both renderings: what is in the file, that it loads, and how near its numbers are."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, numpy_helper

from edgetune.engines.onnxruntime import Session
from edgetune.errors import ConfigError, StageError
from edgetune.quant import cpu
from edgetune.quant.graph import attribute
from edgetune.quant.plan import asymmetric, quantize_weights, symmetric
from edgetune.quant.prepare import prepare
from edgetune.quant.quantizer import quantize_model

Nets = Callable[..., Any]


def constants(model: ModelProto) -> dict[str, np.ndarray]:
    return {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}


def nodes(model: ModelProto, kind: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == kind]


def producer(model: ModelProto, tensor: str) -> str:
    return next((node.op_type for node in model.graph.node if tensor in node.output), "")


def block(net: Nets, **more: Any) -> Any:
    """Residual block with a small and a depthwise convolution, pooling and a head."""
    n = net(**more)
    start = n.op("Relu", n.conv("x", name="stem"), name="start")
    depthwise = n.op(
        "Clip", n.conv(start, group=16, name="dw"), n.constant(np.float32(0)), n.constant(np.float32(6))
    )
    total = n.op("Add", n.conv(depthwise, kernel=1, name="project"), start, name="add")
    pooled = n.op("GlobalAveragePool", n.op("Relu", total, name="end"), name="pool")
    return n, n.gemm(n.op("Flatten", pooled, name="flat"), 16, 20, name="head")


def test_tensorrt_file_is_symmetric_signed_and_per_channel(net: Nets) -> None:
    n, out = block(net)
    made, details = quantize_model(n.model(out), [n.inputs()], "weak", "minmax")
    onnx.checker.check_model(made, full_check=True)
    stored = constants(made)
    pairs = nodes(made, "QuantizeLinear") + nodes(made, "DequantizeLinear")
    assert len(pairs) > 10
    for node in pairs:
        assert node.input[1] in stored
        assert stored[node.input[2]].dtype == np.int8
        assert not stored[node.input[2]].any()
    for conv in nodes(made, "Conv"):
        weight = next(d for d in nodes(made, "DequantizeLinear") if d.output[0] == conv.input[1])
        assert stored[weight.input[0]].dtype == np.int8
        assert stored[weight.input[1]].shape == (stored[weight.input[0]].shape[0],)
        assert attribute(weight, "axis", None) == 0
        assert stored[conv.input[2]].dtype == np.float32  # TensorRT's parsers refuse integer biases
    assert not [c for c in stored.values() if c.dtype in (np.uint8, np.int32)]
    assert {p.key: p.value for p in made.metadata_props}["edgetune.rendering"] == "weak"
    assert details["float_ops"] == 0


def test_transposed_convolution_counts_channels_on_axis_one(net: Nets) -> None:
    n = net()
    weight = n.constant(n.noise.standard_normal((16, 24, 2, 2)).astype(np.float32), "w")
    made, _ = quantize_model(n.model(n.op("ConvTranspose", "x", weight)), [n.inputs()], "weak", "minmax")
    (dequantize,) = [d for d in nodes(made, "DequantizeLinear") if d.input[0] == "w/quantized"]
    assert attribute(dequantize, "axis", None) == 1
    assert constants(made)["w/scale"].shape == (24,)


def test_concat_in_the_tensorrt_file_has_one_scale(net: Nets) -> None:
    n = net()
    parts = [n.op("Relu", n.conv("x"), name=f"part{i}") for i in range(2)]
    out = n.conv(n.op("Concat", *parts, axis=1, name="cat"), into=32)
    stored = constants(quantize_model(n.model(out), [n.inputs()], "weak", "minmax")[0])
    assert len({float(stored[f"{t}/scale"]) for t in ("part0_out", "part1_out", "cat_out")}) == 1


def test_cpu_file_quantizes_around_every_operator(net: Nets) -> None:
    n, out = block(net)
    made, details = quantize_model(n.model(out), [n.inputs()], "cpu", "minmax")
    onnx.checker.check_model(made, full_check=True)
    stored = constants(made)
    for node in nodes(made, "QuantizeLinear"):
        assert stored[node.input[2]].dtype == np.uint8
    for conv in nodes(made, "Conv"):
        assert [producer(made, name) for name in conv.input] == ["DequantizeLinear"] * 3
        data, weight, bias = (
            next(d for d in nodes(made, "DequantizeLinear") if d.output[0] == name) for name in conv.input
        )
        assert stored[bias.input[0]].dtype == np.int32
        np.testing.assert_array_equal(stored[bias.input[1]], stored[data.input[1]] * stored[weight.input[1]])
    # Nothing between a convolution and its Relu or Clip; a Q after it.
    for activation in nodes(made, "Relu") + nodes(made, "Clip"):
        assert producer(made, activation.input[0]) in ("Conv", "Add")
        readers = [node.op_type for node in made.graph.node if activation.output[0] in node.input]
        assert readers == ["QuantizeLinear"]
    assert details["float_ops"] == 0


def optimized(made: ModelProto, path: Any) -> list[str]:
    """Return what ONNX Runtime makes of a file: the kinds of operators that it runs."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    ort.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(path).graph.node]


def test_onnxruntime_fuses_the_cpu_file_completely(net: Nets, tmp_path: Any) -> None:
    n, out = block(net)
    made, _ = quantize_model(n.model(out), [n.inputs()], "cpu", "minmax")
    kinds = optimized(made, tmp_path / "optimized.onnx")
    assert kinds.count("QLinearConv") == 3
    assert not {"Conv", "Add", "Gemm", "Relu", "Clip", "GlobalAveragePool"} & set(kinds)
    assert kinds.count("QuantizeLinear") == 1


@pytest.mark.parametrize("last", ["GlobalAveragePool", "Sigmoid", "chain", "Add", "read twice"])
def test_what_ends_the_network_is_called_what_onnxruntime_runs_it_in(
    net: Nets, tmp_path: Any, last: str
) -> None:
    n = net()
    a = n.op("Relu", n.conv("x"), name="act")
    outputs = []
    if last == "chain":
        out = n.op("Flatten", n.op("Sigmoid", n.op("GlobalAveragePool", a)))
    elif last == "Add":
        out = n.op("Relu", n.op("Add", a, n.conv("x")))
    elif last == "read twice":
        outputs = [n.op("Sigmoid", a)]
        out = n.conv(outputs[0])
    else:
        out = n.op("Flatten", n.op(last, a))
    made, details = quantize_model(n.model(out, *outputs), [n.inputs()], "cpu", "minmax")
    kinds = optimized(made, tmp_path / "optimized.onnx")
    told = [(item["op"], item["precision"]) for item in details["layers"]]
    for kind in ("Conv", "GlobalAveragePool", "Sigmoid", "Add"):
        assert told.count((kind, "FP32")) == kinds.count(kind), kind
        assert told.count((kind, "INT8")) == kinds.count(f"QLinear{kind}"), kind
    assert all(item["why"] for item in details["layers"] if item["precision"] == "FP32")


def test_a_global_mean_is_pooled_in_int8(net: Nets, tmp_path: Any) -> None:
    n = net()
    mean = n.op("ReduceMean", n.op("Relu", n.conv("x")), axes=[2, 3], keepdims=0, name="mean")
    made, details = quantize_model(n.model(n.gemm(mean, 16, 20)), [n.inputs()], "cpu", "minmax")
    assert "QLinearGlobalAveragePool" in optimized(made, tmp_path / "optimized.onnx")
    assert details["float_ops"] == 0


def test_weights_have_seven_bits_where_kernels_would_overflow(
    net: Nets, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, out = block(net)
    largest = {}
    for vnni in (True, False):
        monkeypatch.setattr("edgetune.quant.draft.has_vnni", lambda found=vnni: found)
        made, details = quantize_model(n.model(out), [n.inputs()], "cpu", "minmax")
        integers = [v for v in constants(made).values() if v.dtype == np.int8 and v.size > 1]
        largest[vnni] = max(int(np.abs(v.astype(int)).max()) for v in integers)
        assert any("VNNI" in warning for warning in details["warnings"]) != vnni
    assert largest == {True: 127, False: 64}


def test_a_convolution_that_ends_the_network_keeps_the_output_name(net: Nets) -> None:
    n = net()
    c = n.conv("x", name="last")
    model = n.model(c, n.op("Exp", c, name="also"))
    for rendering in ("cpu", "weak"):
        made, _ = quantize_model(model, [n.inputs()], rendering, "minmax")
        session = Session(made.SerializeToString(), threads=1)
        assert [spec.name for spec in session.outputs] == ["last_out", "also_out"]
        found, also = session.run(n.inputs(1))
        np.testing.assert_allclose(also, np.exp(found), rtol=1e-5)


def test_details_tell_of_every_layer_and_activation(net: Nets) -> None:
    n, out = block(net)
    made, details = quantize_model(n.model(out), [n.inputs(3), n.inputs(2)], "weak", "percentile")
    assert details["images"] == 5
    assert [item["name"] for item in details["layers"]] == [node.name for node in prepare(n.model(out)).nodes]
    stem = details["layers"][0]
    assert stem["weight_bytes"] == 16 * 16 * 9 + 16 * 4 + 16 * 5
    scales = {item["tensor"]: item["scale"] for item in details["activations"]}
    assert np.float32(scales["start_out"]) == constants(made)["start_out/scale"]


def test_bytes_repeat(net: Nets) -> None:
    n, out = block(net)
    first, second = (
        quantize_model(n.model(out), [n.inputs()], "cpu", "entropy")[0].SerializeToString(deterministic=True)
        for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize("rendering", ["weak", "cpu"])
def test_empty_channels_and_constant_tensors_do_no_harm(net: Nets, rendering: str) -> None:
    n = net()
    out = n.conv(n.op("Relu", n.conv("x", name="first")), name="second")
    weight, bias = n.nodes[0].input[1:]
    n.constants[weight][:4] = 0
    n.constants[bias][:2] = -1e3  # dead after Relu
    n.constants[bias][2] = 0.75
    model = n.model(out)
    made, _ = quantize_model(model, [n.inputs()], rendering, "minmax")
    (a,), (b,) = (Session(m.SerializeToString(), threads=1).run(n.inputs(1)) for m in (model, made))
    assert np.isfinite(b).all()
    assert np.abs(a - b).max() < 0.05 * np.abs(a).max()
    n.constants[weight][:] = 0
    n.constants[bias][:] = -1
    made, details = quantize_model(n.model(out), [n.inputs()], rendering, "entropy")
    assert any("one and the same value" in warning for warning in details["warnings"])
    assert np.isfinite(Session(made.SerializeToString(), threads=1).run(n.inputs(1))[0]).all()


def test_excluded_nodes_stay_and_unknown_ones_are_named(net: Nets) -> None:
    n, out = block(net)
    for rendering in ("weak", "cpu"):
        made, details = quantize_model(n.model(out), [n.inputs()], rendering, "minmax", ["dw"])
        kept = next(node for node in made.graph.node if node.name == "dw")
        assert constants(made)[kept.input[1]].dtype == np.float32
        assert next(item for item in details["layers"] if item["name"] == "dw")["why"] == "excluded"
    with pytest.raises(ConfigError, match="no node 'stemm'") as caught:
        quantize_model(n.model(out), [n.inputs()], "weak", "minmax", ["stemm"])
    assert "'stem'" in caught.value.hint


def test_bad_requests_are_answered(net: Nets) -> None:
    n, out = block(net)
    with pytest.raises(StageError, match="no calibration inputs"):
        quantize_model(n.model(out), [], "weak", "minmax")
    for rendering, ranges in (("wek", "minmax"), ("weak", "minmaks")):
        with pytest.raises(ConfigError) as caught:
            quantize_model(n.model(out), [n.inputs()], rendering, ranges)
        assert "did you mean" in caught.value.hint
    with pytest.raises(StageError, match="NaN"):
        quantize_model(n.model(out), [n.inputs() * np.nan], "weak", "minmax")
    with pytest.raises(ConfigError, match="nothing to quantize"):
        quantize_model(n.model(n.op("Softmax", "x")), [n.inputs()], "weak", "minmax")


def test_a_dynamic_batch_stays_dynamic(net: Nets) -> None:
    n, out = block(net, batch="N")
    for rendering in ("weak", "cpu"):
        made, _ = quantize_model(n.model(out), [n.inputs(6)], rendering, "minmax")
        assert Session(made.SerializeToString(), threads=1).run(n.inputs(5))[0].shape == (5, 20)


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_scales_cover_their_range_and_represent_zero(low: float, width: float) -> None:
    high = low + width
    s = symmetric(low, high)
    assert s.zero_point == 0
    assert float(s.scale) * 127 >= max(abs(low), abs(high)) * (1 - 1e-6)
    a = asymmetric(low, high)
    step = float(a.scale)
    assert 0 <= a.zero_point <= 255
    assert -a.zero_point * step <= min(low, 0) + step * 0.51
    assert (255 - a.zero_point) * step >= max(high, 0) - step * 0.51


def test_weights_round_to_the_nearest_level() -> None:
    weight = np.random.default_rng(0).standard_normal((8, 4, 3, 3)).astype(np.float32)
    levels, scale = quantize_weights(weight, 0)
    error = np.abs(levels * scale.reshape(-1, 1, 1, 1) - weight)
    assert (error <= scale.reshape(-1, 1, 1, 1) * 0.5001).all()
    assert (np.abs(levels).max(axis=(1, 2, 3)) == 127).all()


def test_a_large_bias_fits_into_32_bits(net: Nets) -> None:
    n = net()
    out = n.op("Relu", n.conv("x", name="conv"))
    weight, bias = n.nodes[0].input[1:]
    n.constants[weight][0] *= 1e-9
    n.constants[bias][0] = 50.0
    made, _ = quantize_model(n.model(out), [n.inputs()], "cpu", "minmax")
    integers = constants(made)[f"{bias}/quantized"]
    assert abs(int(integers[0])) < 2**31 - 1
    assert cpu.FULL_WEIGHT == 127
    found = Session(made.SerializeToString(), threads=1).run(n.inputs(1))[0]
    assert abs(float(found[0, 0].mean()) - 50) < 0.5


@st.composite
def layouts(draw: st.DrawFn) -> list[str]:
    steps = [
        "conv",
        "depthwise",
        "relu",
        "clip",
        "silu",
        "hardswish",
        "maxpool",
        "avgpool",
        "skip",
        "cat",
        "gate",
    ]
    return draw(st.lists(st.sampled_from(steps), min_size=1, max_size=6))


def random_net(net: Nets, steps: list[str]) -> tuple[Any, str]:
    n = net()
    t = n.op("Relu", n.conv("x"))
    for step in steps:
        if step in ("conv", "depthwise"):
            t = n.conv(t, group=16 if step == "depthwise" else 1)
        elif step in ("relu", "hardswish"):
            t = n.op({"relu": "Relu", "hardswish": "HardSwish"}[step], t)
        elif step == "clip":
            t = n.op("Clip", t, n.constant(np.float32(0)), n.constant(np.float32(6)))
        elif step == "silu":
            t = n.op("Mul", t, n.op("Sigmoid", t))
        elif step in ("maxpool", "avgpool"):
            kind = {"maxpool": "MaxPool", "avgpool": "AveragePool"}[step]
            t = n.op(kind, t, kernel_shape=[3, 3], pads=[1] * 4)
        elif step == "skip":
            t = n.op("Add", t, n.conv(n.op("Relu", n.conv(t))))
        elif step == "cat":
            joined = n.op("Concat", n.op("Relu", n.conv(t)), t, axis=1)
            t = n.conv(joined, into=32, kernel=1)
        else:
            t = n.op("Mul", t, n.op("Sigmoid", n.conv(n.op("GlobalAveragePool", t), kernel=1)))
    return n, n.gemm(n.op("Flatten", n.op("GlobalAveragePool", t)), 16, 24)


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(layouts(), st.sampled_from(["weak", "cpu"]), st.sampled_from(["minmax", "percentile", "entropy"]))
def test_random_networks_keep_names_and_shapes_and_stay_near(
    net: Nets, steps: list[str], rendering: str, ranges: str
) -> None:
    n, out = random_net(net, steps)
    model = n.model(out)
    made, details = quantize_model(model, [n.inputs(8)], rendering, ranges)
    onnx.checker.check_model(made, full_check=True)
    own = {name for node in model.graph.node for name in node.output}
    assert own <= {name for node in made.graph.node for name in node.output} | set(constants(made))
    assert all(item["why"] for item in details["layers"] if item["precision"] == "FP32")
    before, after = (Session(m.SerializeToString(), threads=1, exact=True) for m in (model, made))
    assert (before.inputs, before.outputs) == (after.inputs, after.outputs)
    (a,), (b,) = (session.run(n.inputs(8)) for session in (before, after))
    assert np.square(a - b).mean() < 0.05 * np.square(a).mean() + 1e-9
