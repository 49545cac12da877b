"""Every rule finds what is planted for it, and none finds fault with what the quantizer itself writes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgetune.profile import load_target
from edgetune.quant.lint import RULES, Finding, examine, repair
from edgetune.quant.lint_fix import FIXES
from edgetune.quant.lint_view import reader_of
from edgetune.quant.quantizer import quantize_model

Nets = Callable[..., Any]
ORIN = "jetson-agx-orin-64gb"
HALF = np.float16


def found(model: ModelProto, spec: str = f"{ORIN}@6.2", dla: bool = False) -> tuple[Finding, ...]:
    return examine(model, reader_of(load_target(spec), dla))


def faults(model: ModelProto, spec: str = f"{ORIN}@6.2", dla: bool = False) -> dict[str, list[str]]:
    """Return nodes by rule, of errors and warnings."""
    nodes: dict[str, list[str]] = {}
    for item in found(model, spec, dla):
        if item.severity != "info":
            nodes.setdefault(item.rule, []).append(item.node)
    return nodes


def good(n: Any) -> str:
    """Two convolutions with Q/DQ where it belongs."""
    a = n.op("Relu", n.qconv(n.pair("x"), name="first"), name="act")
    return n.qconv(n.pair(a), name="second")


def bump(model: ModelProto, **fields: Any) -> ModelProto:
    if "opset" in fields:
        model.opset_import[0].version = fields["opset"]
    if "ir" in fields:
        model.ir_version = fields["ir"]
    return model


def typed(n: Any, out: str, shape: list[Any]) -> ModelProto:
    model = n.model(out)
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, shape))
    return model


def plant_invalid(n: Any) -> Any:
    return n.model(n.op("Conv", "x", name="bad")), ""


def plant_opset(n: Any) -> Any:
    return bump(n.model(good(n)), opset=22), ""


def plant_ir(n: Any) -> Any:
    return bump(n.model(good(n)), ir=11), ""


def plant_file_size(n: Any) -> Any:
    return n.model(good(n)), ""


def plant_unsupported(n: Any) -> Any:
    return n.model(n.op("Det", good(n), name="det")), "det"


def plant_unknown(n: Any) -> Any:
    n.opset = 18
    return n.model(n.op("Mish", good(n), name="mish")), "mish"


def plant_custom(n: Any) -> Any:
    return n.model(n.op("Magic", good(n), name="magic", domain="my.own")), "magic"


def plant_function(n: Any) -> Any:
    model = n.model(n.op("Twice", good(n), name="twice", domain="my.own"))
    body = [helper.make_node("Add", ["a", "a"], ["b"], name="sum")]
    model.functions.append(
        helper.make_function("my.own", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    )
    return model, ""


def plant_form(n: Any) -> Any:
    maxima = n.op("MaxPool", good(n), name="pool", kernel_shape=[2, 2])
    n.nodes[-1].output.append("where")
    return n.model(maxima, n.op("Cast", "where", to=TensorProto.FLOAT)), "pool"


def plant_dynamic(n: Any) -> Any:
    return typed(n, good(n), ["N", 16, 8, 8]), ""


def plant_long(n: Any) -> Any:
    far = n.constant(np.array([1, 16, 8, 8 + 2**40], np.int64))
    ends = n.op("Min", far, n.constant(np.array([1, 16, 8, 8], np.int64)))
    return n.model(n.op("Reshape", good(n), ends, name="shape")), ""


def plant_not_finite(n: Any) -> Any:
    out = n.conv("x", name="conv")
    n.constants[n.nodes[-1].input[1]][0, 0, 0, 0] = np.inf
    return n.model(out), "conv"


def plant_zero_point(n: Any) -> Any:
    return n.model(n.qconv(n.pair("x", zero=np.int8(3), name="odd"))), "odd_q"


def plant_uint8(n: Any) -> Any:
    return n.model(n.qconv(n.pair("x", zero=np.uint8(0), name="odd"))), "odd_q"


def plant_bias(n: Any) -> Any:
    bias = n.stored(np.arange(16, dtype=np.int32), np.full(16, 1e-3, np.float32), name="bias", axis=0)
    return n.model(n.qconv(n.pair("x"), bias=bias)), "bias"


def plant_stored_type(n: Any) -> Any:
    n.opset = 21
    return n.model(n.qconv(n.pair("x", zero=np.int16(0), name="odd"))), "odd_q"


def plant_no_zero(n: Any) -> Any:
    return n.model(n.qconv(n.pair("x", zero=None, name="odd"))), "odd_q"


def plant_scale_value(n: Any) -> Any:
    return n.model(n.qconv(n.pair("x", scale=np.float32(0), name="odd"))), "odd_q"


def plant_computed(n: Any) -> Any:
    largest = n.op("ReduceMax", "x", keepdims=0, name="largest")
    return n.model(n.qconv(n.pair("x", scale=largest, name="odd"))), "odd_q"


def plant_scale_size(n: Any) -> Any:
    out = n.qconv(n.pair("x"), name="conv", scale=np.full(15, 1e-3, np.float32))
    return n.model(out), "conv_weight"


def plant_half_scale(n: Any) -> Any:
    n.opset = 18
    half = n.op("Cast", "x", to=TensorProto.FLOAT16)
    return n.model(n.op("Cast", n.pair(half, HALF(0.05), name="odd"), to=TensorProto.FLOAT)), "odd_q"


def plant_pair(n: Any) -> Any:
    return n.model(n.qconv(n.pair("x", ahead=np.float32(0.04), name="odd"))), "odd_dq"


def plant_channels(n: Any) -> Any:
    scales = np.linspace(0.01, 0.1, 16, dtype=np.float32)
    return n.model(n.qconv(n.pair("x", scales, np.zeros(16, np.int8), name="odd", axis=1))), "odd_q"


def plant_weight_axis(n: Any) -> Any:
    return n.model(n.qconv(n.pair("x"), out=24, name="conv", axis=1)), "conv_weight"


def plant_weight_tensor(n: Any) -> Any:
    return n.model(n.qconv(n.pair("x"), name="conv", scale=np.float32(1e-3))), "conv_weight"


def plant_half_quantized(n: Any) -> Any:
    return n.model(n.qconv("x", name="conv")), "conv"


def plant_output(n: Any) -> Any:
    c = n.pair(n.qconv(n.pair("x"), name="conv"), name="early")
    return n.model(n.qconv(n.pair(n.op("HardSwish", c)), name="next")), "early_q"


def plant_skip(n: Any) -> Any:
    start = n.op("Relu", n.qconv(n.pair("x")), name="start")
    inner = n.op("Relu", n.qconv(n.pair(start)))
    total = n.op("Add", n.qconv(n.pair(inner)), start, name="add")
    return n.model(n.qconv(n.pair(total))), "add"


def plant_unequal(n: Any) -> Any:
    parts = [
        n.pair(n.op("Relu", n.qconv(n.pair("x"))), scale=np.float32(s), name=f"p{s}") for s in (0.1, 0.2)
    ]
    joined = n.op("Concat", *parts, axis=1, name="cat")
    return n.model(n.qconv(n.pair(joined, scale=np.float32(0.2)), into=32)), "cat"


def plant_isolated(n: Any) -> Any:
    return n.model(n.op("Softmax", n.pair(good(n), name="lonely"))), "lonely_dq"


def plant_repeated(n: Any) -> Any:
    left, right = (n.qconv(n.pair("x", name=name)) for name in ("left", "right"))
    return n.model(left, right), "right_q"


def plant_no_kernel(n: Any) -> Any:
    return n.model(n.qconv(n.pair("x"), kernel=1, group=4, name="conv")), "conv"


def plant_one_row(n: Any) -> Any:
    levels = n.noise.integers(-127, 128, (20, 1024)).astype(np.int8)
    weight = n.stored(levels, np.full(20, 1e-3, np.float32), name="weight", axis=0)
    flat = n.op("Flatten", n.op("Relu", n.qconv(n.pair("x"))))
    return n.model(n.op("Gemm", n.pair(flat), weight, name="head", transB=1)), "head"


def plant_depthwise(n: Any) -> Any:
    out = n.op("HardSwish", n.qconv(n.pair("x"), group=16, name="conv"))
    return n.model(n.qconv(n.pair(out))), "conv"


def plant_left_float(n: Any) -> Any:
    return n.model(n.conv(good(n), name="late")), "late"


def plant_plain(n: Any) -> Any:
    return n.model(n.conv("x")), ""


def plant_good(n: Any) -> Any:
    return n.model(good(n)), ""


def plant_old(n: Any) -> Any:
    """At the opset of JetPack 4."""
    return bump(n.model(good(n)), opset=13, ir=7), "pair0_q"


def plant_half_weak(n: Any) -> Any:
    half = n.op("Cast", "x", to=TensorProto.FLOAT16)
    total = n.op("Add", half, n.constant(np.ones(1, HALF)))
    return n.model(n.op("Cast", total, to=TensorProto.FLOAT)), ""


def plant_dla_size(n: Any) -> Any:
    return n.model(n.op("Reshape", "x", n.constant(np.array([1, 1024, 1])), name="flat"),
                   n.op("Concat", *["x"] * 600, axis=1, name="cat")), "cat"  # fmt: skip


def plant_dla_op(n: Any) -> Any:
    return n.model(n.op("HardSwish", n.conv("x"), name="act")), "act"


def plant_pieces(n: Any) -> Any:
    t = "x"
    for _ in range(17):
        t = n.op("HardSwish", n.conv(t))
    return n.model(t), ""


# What is planted; where it is to run; what else is rightly found, beside the rule itself.
PLANTED: dict[str, tuple[Callable[[Any], Any], str, set[str]]] = {
    "invalid": (plant_invalid, "6.2", set()),
    "opset": (plant_opset, "6.2", set()),
    "ir-version": (plant_ir, "6.2", set()),
    "file-size": (plant_file_size, "6.2", set()),
    "unsupported-op": (plant_unsupported, "6.2", set()),
    "unknown-op": (plant_unknown, "6.2", set()),
    "custom-op": (plant_custom, "6.2", set()),
    "local-function": (plant_function, "6.0", set()),
    "op-form": (plant_form, "6.2", set()),
    "dynamic-shape": (plant_dynamic, "6.2", set()),
    "long-integers": (plant_long, "5.1", set()),
    "not-finite": (plant_not_finite, "6.2", set()),
    "no-int8": (plant_old, "nano", set()),
    "zero-point": (plant_zero_point, "6.2", set()),
    "uint8": (plant_uint8, "6.2", set()),
    "int32-bias": (plant_bias, "6.2", set()),
    "stored-type": (plant_stored_type, "7.2", {"fp32-rest"}),
    "no-zero-point": (plant_no_zero, "6.2", set()),
    "scale-value": (plant_scale_value, "6.2", set()),
    "scale-computed": (plant_computed, "6.2", set()),
    "scale-size": (plant_scale_size, "6.2", set()),
    "fp16-scale": (plant_half_scale, "6.2", {"invalid", "isolated", "fp16-weak"}),
    "pair-differs": (plant_pair, "6.2", set()),
    "activation-channels": (plant_channels, "6.2", set()),
    "weight-axis": (plant_weight_axis, "6.2", set()),
    "weight-tensor": (plant_weight_tensor, "6.2", set()),
    "half-quantized": (plant_half_quantized, "6.2", set()),
    "output-quantized": (plant_output, "6.2", set()),
    "skip-unquantized": (plant_skip, "6.2", set()),
    "unequal-scales": (plant_unequal, "6.2", set()),
    "isolated": (plant_isolated, "6.2", set()),
    "repeated": (plant_repeated, "6.2", set()),
    "no-kernel": (plant_no_kernel, "6.2", set()),
    "one-row": (plant_one_row, "6.2", set()),
    "depthwise": (plant_depthwise, "5.1", set()),
    "left-float": (plant_left_float, "6.2", set()),
    "not-quantized": (plant_plain, "6.2", set()),
    "fp32-rest": (plant_good, "7.2", set()),
    "fp16-weak": (plant_half_weak, "6.2", set()),
    "signed-on-cpu": (plant_good, "cpu", set()),
    "dla-absent": (plant_plain, "7.2 dla", {"fp32-rest"}),
    "dla-explicit": (plant_good, "6.2 dla", set()),
    "dla-dynamic": (plant_dynamic, "6.2 dla", {"dynamic-shape", "dla-explicit"}),
    "dla-size": (plant_dla_size, "6.2 dla", set()),
    "dla-op": (plant_dla_op, "6.2 dla", set()),
    "dla-pieces": (plant_pieces, "6.2 dla", {"dla-op"}),
}


def target_of(where: str) -> str:
    whole = {"cpu": "host-cpu", "nano": "jetson-nano-4gb"}
    return whole.get(where, f"{ORIN}@{where.removesuffix(' dla')}")


def test_every_rule_is_planted_somewhere() -> None:
    assert set(PLANTED) == set(RULES)


@pytest.mark.parametrize("rule", PLANTED)
def test_what_is_planted_is_found_and_nothing_else(
    rule: str, qnet: Nets, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant, where, also = PLANTED[rule]
    model, node = plant(qnet())
    if rule == "file-size":
        monkeypatch.setattr("edgetune.quant.lint_model.LARGEST_BYTES", 1000)
    spec = target_of(where)
    items = found(model, spec, where.endswith("dla"))
    hits = [item for item in items if item.rule == rule]
    assert node in [item.node for item in hits], [(item.rule, item.node, item.reason) for item in items]
    worse = {item.rule for item in items if item.severity != "info"}
    assert worse <= {rule} | also, [(item.rule, item.node, item.reason) for item in items]
    assert all(item.reason and item.source and item.remedy for item in items)


def test_without_int8_a_float_network_lacks_nothing(qnet: Nets) -> None:
    model, _ = plant_plain(qnet())
    bump(model, opset=13, ir=7)
    assert [item.rule for item in found(model, f"{ORIN}@6.2")] == ["not-quantized"]
    assert found(model, "jetson-nano-4gb") == found(model, "jetson-tx2") == ()


@pytest.mark.parametrize("rule", PLANTED)
def test_repairing_never_makes_it_worse(rule: str, qnet: Nets) -> None:
    plant, where, _ = PLANTED[rule]
    model, _ = plant(qnet())
    before = model.SerializeToString()
    spec = target_of(where)
    reader = reader_of(load_target(spec), where.endswith("dla"))
    items = examine(model, reader)
    _, fixed, left = repair(model, reader)
    assert model.SerializeToString() == before, "the file given stays as it is"
    assert {item.rule for item in left} <= {item.rule for item in items}
    assert all(item.rule in RULES and item.what for item in fixed)
    promised = {(item.rule, item.node) for item in items if item.fixable}
    assert not promised & {(item.rule, item.node) for item in left}


def test_rows_are_complete() -> None:
    assert set(FIXES) <= set(RULES)
    for name, rule in RULES.items():
        assert rule.check.__doc__, name
        assert rule.severity in ("error", "warning", "info")
        assert rule.concerns <= {"weak", "strong", "cpu", "dla"}
        assert rule.concerns, name
        if name in FIXES:
            assert "--fix" in rule.remedy, name


def test_good_graphs_are_left_in_peace(qnet: Nets) -> None:
    n = qnet()
    for spec in ("6.2", "6.0", "5.1"):
        assert not faults(n.model(good(n)), f"{ORIN}@{spec}")
        n = qnet()


STEPS = [
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


def build(n: Any, steps: list[str]) -> str:
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
            t = n.op(kind, t, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        elif step == "skip":
            t = n.op("Relu", n.op("Add", n.conv(n.op("Relu", n.conv(t))), t))
        elif step == "cat":
            joined = n.op("Concat", n.op("Relu", n.conv(t)), t, axis=1)
            t = n.op("Relu", n.conv(joined, into=32))
        else:
            gate = n.op("Sigmoid", n.conv(n.op("GlobalAveragePool", t), kernel=1))
            t = n.op("Mul", t, gate)
    return n.conv(t)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(STEPS), min_size=1, max_size=5), st.sampled_from(["weak", "strong"]))
def test_nothing_is_wrong_with_what_the_quantizer_writes(net: Nets, steps: list[str], typing: str) -> None:
    n = net(opset=19 if typing == "strong" else 17)
    model = n.model(build(n, steps))
    made, _ = quantize_model(model, [n.inputs()], typing, "minmax")
    made.ir_version = 9 if typing == "strong" else 8
    for version in ("7.2",) if typing == "strong" else ("6.2", "5.1"):
        wrong = faults(made, f"{ORIN}@{version}")
        if "silu" in steps or "hardswish" in steps:
            wrong.pop("depthwise", None) if version == "5.1" else None
        assert not wrong, (steps, wrong)


def test_the_cpu_file_is_right_on_a_cpu_and_wrong_on_a_jetson(net: Nets) -> None:
    n = net()
    made, _ = quantize_model(n.model(build(n, ["conv", "skip"])), [n.inputs()], "cpu", "minmax")
    assert not faults(made, "host-cpu")
    assert {"uint8", "int32-bias"} <= set(faults(made))


@pytest.mark.parametrize(
    ("where", "named"), [("5.1", {"swish"}), ("6.0", {"swish", "plain"}), ("6.2", set())]
)
def test_depthwise_is_a_matter_of_the_version(qnet: Nets, where: str, named: set[str]) -> None:
    n = qnet()
    a = n.op("Relu", n.qconv(n.pair("x"), group=16, name="plain"))
    b = n.qconv(n.pair(a), group=16, name="swish")
    model = n.model(n.qconv(n.pair(n.op("Mul", b, n.op("Sigmoid", b)))))
    assert set(faults(model, f"{ORIN}@{where}").get("depthwise", [])) == named


def test_a_skip_quantized_on_either_side_of_two_convolutions_will_do(qnet: Nets) -> None:
    for side in (0, 1):
        n = qnet()
        start = n.pair(n.op("Relu", n.qconv(n.pair("x"))))
        branches = [n.qconv(n.pair(n.op("Relu", n.qconv(start)))), n.qconv(start, kernel=1)]
        branches[side] = n.pair(branches[side])
        model = n.model(n.qconv(n.pair(n.op("Relu", n.op("Add", *branches, name="add")))))
        assert "skip-unquantized" not in faults(model), side


def test_pairs_are_seen_through_copies(qnet: Nets) -> None:
    n = qnet()
    moved = n.op("MaxPool", n.pair(n.op("Relu", n.qconv(n.pair("x")))), kernel_shape=[2, 2], strides=[2, 2])
    assert not faults(n.model(n.qconv(moved)))


def test_pairs_are_seen_through_a_concat_of_equal_scales(qnet: Nets) -> None:
    for other in (0.05, 0.06):
        n = qnet()
        parts = [
            n.pair(n.op("Relu", n.qconv(n.pair("x"))), np.float32(s), name=f"p{s}{i}")
            for i, s in enumerate((0.05, other))
        ]
        told = faults(n.model(n.qconv(n.op("Concat", *parts, axis=1), into=32, name="conv")))
        assert told == ({} if other == 0.05 else {"half-quantized": ["conv"]})


def test_equal_scales_around_copies_are_right_and_others_are_told(qnet: Nets) -> None:
    for scale in (0.05, 0.07):
        n = qnet()
        moved = n.op("MaxPool", n.pair(n.op("Relu", n.qconv(n.pair("x")))), kernel_shape=[2, 2], name="pool")
        told = faults(n.model(n.qconv(n.pair(moved, scale=np.float32(scale)))))
        assert told == ({} if scale == 0.05 else {"unequal-scales": ["pool"]})


def test_constants_as_nodes_are_constants(qnet: Nets) -> None:
    n = qnet()
    model = n.model(good(n))
    values = list(model.graph.initializer)
    del model.graph.initializer[:]
    for item in reversed(values):
        model.graph.node.insert(0, helper.make_node("Constant", [], [item.name], value=item))
    assert not faults(model)


def test_nodes_without_names_get_some(qnet: Nets) -> None:
    n = qnet()
    model, _ = plant_bias(n)
    for node in model.graph.node:
        node.name = ""
    (item,) = [item for item in found(model) if item.rule == "int32-bias"]
    assert item.node.startswith("DequantizeLinear_")


def test_a_quantized_bias_of_onnxruntime_names_its_convolution(qnet: Nets) -> None:
    model, _ = plant_bias(qnet())
    (item,) = [item for item in found(model) if item.rule == "int32-bias"]
    assert "conv" in item.reason
    assert "17738" in item.source
    assert item.fixable


@pytest.mark.parametrize("kind", ["QLinearConv", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"])
def test_integer_operators_are_refused(qnet: Nets, kind: str) -> None:
    n = qnet()
    assert "odd" in faults(n.model(n.op(kind, "x", name="odd")))["unsupported-op"]


def test_operators_are_parsed_from_a_version_on(qnet: Nets) -> None:
    n = qnet()
    ones = n.constant(np.ones(8, np.float32))
    model = n.model(n.op("LayerNormalization", "x", ones, ones, name="norm"))
    assert faults(model, f"{ORIN}@5.1")["unsupported-op"] == ["norm"]
    assert "unsupported-op" not in faults(model, f"{ORIN}@6.0")


def test_contradictory_shapes_do_not_stop_the_lint(qnet: Nets) -> None:
    n = qnet()
    odd = n.op("Add", n.pair("x"), n.constant(np.ones((1, 16, 5, 5), np.float32)), name="sum")
    (item,) = [item for item in found(n.model(odd)) if item.rule == "invalid"]
    assert "sum" in item.reason


def test_an_empty_and_a_huge_network_are_looked_at(qnet: Nets) -> None:
    n = qnet()
    t = "x"
    for _ in range(150):
        t = n.op("Relu", n.qconv(n.pair(t)))
    assert not faults(n.model(t))


def test_weights_may_be_quantized_in_the_file(qnet: Nets) -> None:
    """As NVIDIA's Model-Optimizer writes them: float weights, then Q and DQ."""
    n = qnet()
    weight = n.constant(n.noise.standard_normal((16, 16, 3, 3)).astype(np.float32), "w")
    scales = np.abs(n.constants["w"]).max(axis=(1, 2, 3)) / 127
    pair = n.pair(weight, scales, np.zeros(16, np.int8), axis=0)
    assert not faults(n.model(n.op("Conv", n.pair("x"), pair, name="conv", pads=[1] * 4)))


def test_half_precision_is_seen_through(qnet: Nets) -> None:
    """Casts between floats hide nothing: the same rules hold in an FP16 file."""
    n = qnet(opset=19)
    x = n.op("Cast", "x", to=TensorProto.FLOAT16)
    c = n.op("Conv", n.pair(x, HALF(0.05)), half_weight(n), name="conv", pads=[1] * 4)
    early = n.pair(c, HALF(0.1), name="early")
    d = n.op("Conv", n.pair(n.op("Relu", early), HALF(0.1)), half_weight(n), name="next", pads=[1] * 4)
    model = bump(n.model(n.op("Cast", d, to=TensorProto.FLOAT)), ir=9)
    assert set(faults(model, f"{ORIN}@7.2")) == {"output-quantized"}


def half_weight(n: Any) -> str:
    levels = n.noise.integers(-127, 128, (16, 16, 3, 3)).astype(np.int8)
    return str(n.stored(levels, np.full(16, 0.002, HALF), axis=0))


def test_the_input_of_examine_is_left_alone(qnet: Nets) -> None:
    model, _ = plant_unequal(qnet())
    before = model.SerializeToString()
    found(model)
    assert model.SerializeToString() == before
    assert onnx.load_from_string(before) == model
    assert numpy_helper.to_array(model.graph.initializer[0]) is not None
