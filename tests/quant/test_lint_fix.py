"""What is repaired computes the same in ONNX Runtime, and what would not is left alone."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgetune.profile import load_target
from edgetune.quant.lint import examine, repair
from edgetune.quant.lint_fix import FIXES
from edgetune.quant.lint_view import reader_of
from edgetune.quant.quantizer import quantize_model

Nets = Callable[..., Any]
ORIN = "jetson-agx-orin-64gb"
PLAIN_READER = reader_of(load_target(f"{ORIN}@6.2"))
OLD_READER = reader_of(load_target(f"{ORIN}@5.1"))
DLA_READER = reader_of(load_target(f"{ORIN}@6.2"), dla=True)


def run(model: ModelProto, batch: np.ndarray) -> list[np.ndarray]:
    """Run operator by operator, as the file says: what ONNX Runtime fuses rounds elsewhere."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {session.get_inputs()[0].name: batch}))


def same(before: ModelProto, after: ModelProto, batch: np.ndarray) -> None:
    for a, b in zip(run(before, batch), run(after, batch), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * max(1.0, float(np.abs(a).max())))


def rules(model: ModelProto, reader: Any = PLAIN_READER) -> set[str]:
    return {item.rule for item in examine(model, reader) if item.severity != "info"}


def broken_bias(n: Any) -> tuple[ModelProto, Any]:
    bias = n.stored(
        np.arange(-8, 8, dtype=np.int32) * 100, np.full(16, 1e-3, np.float32), name="bias", axis=0
    )
    return n.model(n.qconv(n.pair("x"), bias=bias)), PLAIN_READER


def broken_uint8(n: Any) -> tuple[ModelProto, Any]:
    levels = n.noise.integers(0, 256, (16, 16, 3, 3)).astype(np.uint8)
    middle = np.full(16, 128, np.uint8)
    weight = n.stored(levels, np.full(16, 1e-3, np.float32), middle, axis=0)
    x = n.pair("x", zero=np.uint8(128))
    moved = n.op("MaxPool", n.op("Conv", x, weight, pads=[1] * 4), kernel_shape=[2, 2])
    return n.model(n.qconv(n.pair(moved))), PLAIN_READER


def broken_zero_constant(n: Any) -> tuple[ModelProto, Any]:
    levels = n.noise.integers(5, 120, (16, 16, 3, 3)).astype(np.int8)
    weight = n.stored(levels, np.full(16, 1e-3, np.float32), np.arange(16, dtype=np.int8), axis=0)
    return n.model(n.op("Conv", n.pair("x"), weight, pads=[1] * 4)), PLAIN_READER


def broken_no_zero(n: Any) -> tuple[ModelProto, Any]:
    out = n.qconv(n.pair("x"), name="conv")
    weight = next(node for node in n.nodes if node.name == "conv_weight")
    del weight.input[2:]
    return n.model(out), OLD_READER


def broken_channels(n: Any) -> tuple[ModelProto, Any]:
    scales = np.full(16, 0.05, np.float32)
    return n.model(n.qconv(n.pair("x", scales, np.zeros(16, np.int8), axis=1))), PLAIN_READER


def broken_weight_tensor(n: Any) -> tuple[ModelProto, Any]:
    a = n.op("Relu", n.qconv(n.pair("x"), scale=np.float32(1e-3)))
    weight = n.constant(n.noise.standard_normal((16, 24, 2, 2)).astype(np.float32), "w")
    pair = n.pair(weight, np.float32(0.03))
    return n.model(n.op("ConvTranspose", n.pair(a), pair)), PLAIN_READER


def broken_order(n: Any) -> tuple[ModelProto, Any]:
    c = n.pair(n.qconv(n.pair("x"), name="conv"), name="early")
    a = n.op("Relu", c, name="act")
    return n.model(n.qconv(n.pair(a)), a), PLAIN_READER


def broken_twice(n: Any) -> tuple[ModelProto, Any]:
    left, right = (n.qconv(n.pair("x", name=name)) for name in ("left", "right"))
    again = n.pair(n.pair(n.op("Relu", n.op("Add", left, right))))
    return n.model(n.qconv(again)), PLAIN_READER


def broken_domain(n: Any) -> tuple[ModelProto, Any]:
    model = n.model(n.qconv(n.pair("x")))
    for node in model.graph.node:
        if node.op_type.endswith("Linear"):
            node.domain = "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model, PLAIN_READER


def broken_pool(n: Any) -> tuple[ModelProto, Any]:
    return n.model(n.op("GlobalAveragePool", n.op("Relu", n.conv("x")))), DLA_READER


def broken_opset(n: Any) -> tuple[ModelProto, Any]:
    a = n.op("Relu", n.qconv(n.pair("x")))
    pooled = n.op("AveragePool", a, kernel_shape=[2, 2])
    shape = n.constant(np.array([1, -1], np.int64))
    model = n.model(n.op("Softmax", n.op("Reshape", pooled, shape)))
    model.opset_import[0].version = 21
    model.ir_version = 10
    return model, OLD_READER


def broken_function(n: Any) -> tuple[ModelProto, Any]:
    model = n.model(n.op("Twice", n.qconv(n.pair("x")), name="twice", domain="my.own"))
    body = [helper.make_node("Add", ["a", "a"], ["b"], name="sum")]
    model.functions.append(
        helper.make_function("my.own", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    )
    return model, OLD_READER


def broken_ir(n: Any) -> tuple[ModelProto, Any]:
    model = n.model(n.qconv(n.pair("x")))
    model.ir_version = 10
    return model, PLAIN_READER


# By the rule that is satisfied again.
BROKEN: dict[str, list[Callable[[Any], tuple[ModelProto, Any]]]] = {
    "int32-bias": [broken_bias],
    "uint8": [broken_uint8],
    "zero-point": [broken_uint8, broken_zero_constant],
    "no-zero-point": [broken_no_zero],
    "activation-channels": [broken_channels],
    "weight-tensor": [broken_weight_tensor],
    "output-quantized": [broken_order],
    "repeated": [broken_twice],
    "custom-op": [broken_domain],
    "dla-op": [broken_pool],
    "opset": [broken_opset],
    "ir-version": [broken_ir],
    "local-function": [broken_function],
}


@pytest.mark.parametrize(("rule", "make"), [(rule, make) for rule, all_ in BROKEN.items() for make in all_])
def test_the_repaired_file_computes_the_same(rule: str, make: Any, qnet: Nets) -> None:
    n = qnet()
    model, reader = make(n)
    assert any(item.rule == rule and item.fixable for item in examine(model, reader))
    made, fixed, left = repair(model, reader)
    assert fixed
    assert rule not in {item.rule for item in left}
    same(model, made, n.inputs(1))
    again, more, _ = repair(made, reader)
    assert not more, "a second repair finds nothing to do"
    assert again == made


def test_every_repair_is_tried() -> None:
    # A zero point repeated to the scales' number: ONNX Runtime does not open the file before.
    assert set(FIXES) - set(BROKEN) == {"scale-size"}


def test_a_single_zero_point_beside_many_scales(qnet: Nets) -> None:
    n = qnet()
    out = n.qconv(n.pair("x"), name="conv")
    n.constants["conv_weight_2"] = np.zeros((), np.int8)
    made, fixed, left = repair(n.model(out), PLAIN_READER)
    assert [item.rule for item in fixed] == ["scale-size"]
    assert not [item for item in left if item.severity != "info"]
    assert np.isfinite(run(made, n.inputs(1))[0]).all()


def test_what_would_change_numbers_is_left_alone(qnet: Nets) -> None:
    for zero in (np.uint8(0), np.uint8(100), np.int8(3)):
        n = qnet()
        model = n.model(n.qconv(n.pair("x", zero=zero)))
        made, fixed, left = repair(model, PLAIN_READER)
        assert not fixed
        assert made == model
        assert {item.rule for item in left} & {"uint8", "zero-point"}


def test_unequal_channel_scales_of_activations_stay(qnet: Nets) -> None:
    n = qnet()
    scales = np.linspace(0.01, 0.1, 16, dtype=np.float32)
    model = n.model(n.qconv(n.pair("x", scales, np.zeros(16, np.int8), axis=1)))
    assert not repair(model, PLAIN_READER)[1]


def test_a_pair_before_another_activation_than_relu_stays(qnet: Nets) -> None:
    n = qnet()
    c = n.pair(n.qconv(n.pair("x")))
    model = n.model(n.qconv(n.pair(n.op("HardSwish", c))))
    assert not repair(model, PLAIN_READER)[1]


def test_a_pair_that_others_read_stays_before_its_relu(qnet: Nets) -> None:
    n = qnet()
    c = n.pair(n.qconv(n.pair("x")))
    model = n.model(n.qconv(n.pair(n.op("Relu", c))), n.op("Exp", c))
    assert "output-quantized" in rules(repair(model, PLAIN_READER)[0])


@pytest.mark.parametrize("kind", ["GroupNormalization", "attribute", "operator", "half"])
def test_an_opset_that_means_something_else_stays(kind: str, qnet: Nets) -> None:
    n = qnet(opset=21)
    if kind == "GroupNormalization":
        ones = n.constant(np.ones(16, np.float32))
        out = n.op("GroupNormalization", "x", ones, ones, num_groups=2)
    elif kind == "attribute":
        out = n.op("AveragePool", "x", kernel_shape=[2, 2], dilations=[2, 2])
    elif kind == "operator":
        out = n.op("Gelu", "x")
    else:
        out = n.op(
            "Cast", n.pair(n.op("Cast", "x", to=TensorProto.FLOAT16), np.float16(0.1)), to=TensorProto.FLOAT
        )
    made, _, left = repair(n.model(out), OLD_READER)
    assert made.opset_import[0].version == 21
    assert "opset" in {item.rule for item in left}


def test_attributes_at_their_defaults_do_not_keep_an_opset(qnet: Nets) -> None:
    n = qnet(opset=19)
    model = n.model(n.op("AveragePool", n.qconv(n.pair("x")), kernel_shape=[2, 2]))
    model.graph.node[0].attribute.append(helper.make_attribute("saturate", 1))
    made, fixed, _ = repair(model, OLD_READER)
    assert "opset" in {item.rule for item in fixed}
    assert made.opset_import[0].version == 17
    left = {item.name for node in made.graph.node for item in node.attribute}
    assert "saturate" not in left
    same(model, made, n.inputs(1))


def test_types_told_of_repaired_tensors_are_true(qnet: Nets) -> None:
    n = qnet()
    model, _ = broken_uint8(n)
    shaped = onnx.shape_inference.infer_shapes(model)
    made, _, _ = repair(shaped, PLAIN_READER)
    told = {value.name: value.type.tensor_type.elem_type for value in made.graph.value_info}
    assert TensorProto.UINT8 not in told.values()
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(made), full_check=True)
    same(model, made, n.inputs(1))


def test_a_bias_may_be_shared_and_scaled_by_one_number(qnet: Nets) -> None:
    n = qnet()
    bias = n.stored(np.arange(16, dtype=np.int32), np.float32(0.25), name="bias")
    model = n.model(n.qconv(n.pair("x", name="one"), bias=bias), n.qconv(n.pair("x", name="two"), bias=bias))
    made, _, left = repair(model, PLAIN_READER)
    assert not [item for item in left if item.severity == "error"]
    values = {item.name: numpy_helper.to_array(item) for item in made.graph.initializer}
    np.testing.assert_array_equal(values["bias_out"], np.arange(16, dtype=np.float32) / 4)
    same(model, made, n.inputs(1))


def test_a_q_that_two_read_keeps_its_one_scale(qnet: Nets) -> None:
    n = qnet()
    weight = n.constant(n.noise.standard_normal((16, 16, 3, 3)).astype(np.float32), "w")
    n.pair(weight, np.float32(0.03), name="both")
    second = n.op("DequantizeLinear", "both_q_out", "both_scale", "both_zero", name="second")
    outs = [n.op("Conv", n.pair("x", name=f"x{i}"), w) for i, w in enumerate(("both_dq_out", second))]
    model = n.model(*outs)
    made, _, _ = repair(model, PLAIN_READER)
    same(model, made, n.inputs(1))


def spoil_uint8(model: ModelProto) -> None:
    """Write every int8 activation around 128."""
    values = {item.name: item for item in model.graph.initializer}
    zeros = {node.input[2] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    for name in zeros:
        values[name].CopyFrom(numpy_helper.from_array(np.array(128, np.uint8), name))


def spoil_bias(model: ModelProto) -> None:
    """Store every bias of a convolution as integers."""
    values = {item.name: item for item in model.graph.initializer}
    for node in [n for n in model.graph.node if n.op_type in ("Conv", "Gemm")]:
        bias = values.get(node.input[2])
        if bias is None:
            continue
        whole = np.rint(numpy_helper.to_array(bias) * 1000).astype(np.int32)
        parts = [whole, np.array(1e-3, np.float32), np.array(0, np.int32)]
        names = [f"{node.name}/bias{i}" for i in range(3)]
        model.graph.initializer.extend(
            numpy_helper.from_array(v, name) for v, name in zip(parts, names, strict=True)
        )
        made = helper.make_node("DequantizeLinear", names, [f"{node.name}/bias"], name=f"{node.name}/bias")
        model.graph.node.insert(list(model.graph.node).index(node), made)
        node.input[2] = f"{node.name}/bias"


def spoil_version(model: ModelProto) -> None:
    model.opset_import[0].version = 21
    model.ir_version = 10


SPOIL = {"uint8": spoil_uint8, "bias": spoil_bias, "version": spoil_version}
# No averages: those of whole levels lie on the border between two, where the last bit decides.
STEPS = ["conv", "relu", "maxpool", "skip"]


def build(n: Any, steps: list[str]) -> str:
    t = n.op("Relu", n.conv("x"))
    for step in steps:
        if step == "conv":
            t = n.conv(t)
        elif step == "relu":
            t = n.op("Relu", t)
        elif step == "skip":
            t = n.op("Add", n.conv(n.op("Relu", n.conv(t))), t)
        else:
            t = n.op("MaxPool", t, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    return n.conv(t)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.sampled_from(STEPS), max_size=4),
    st.sets(st.sampled_from(sorted(SPOIL)), min_size=1),
)
@pytest.mark.slow
def test_a_spoiled_file_is_repaired_whole(net: Nets, steps: list[str], spoils: set[str]) -> None:
    n = net()
    model, _ = quantize_model(n.model(build(n, steps)), [n.inputs()], "weak", "minmax")
    for name in sorted(spoils):
        SPOIL[name](model)
    assert rules(model, OLD_READER)
    made, _, left = repair(model, OLD_READER)
    assert not [item for item in left if item.severity != "info"], left
    same(model, made, n.inputs(1))
