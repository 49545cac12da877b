"""Each rule of placement for TensorRT, on a graph that shows it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgetune.quant import cpu
from edgetune.quant.placement import missing_kernels, place
from edgetune.quant.plan import Plan
from edgetune.quant.prepare import prepare

Nets = Callable[..., Any]


def plan_of(net: Any, *outputs: str, exclude: tuple[str, ...] = ()) -> Plan:
    return place(prepare(net.model(*outputs)), frozenset(exclude))


def layer(plan: Plan, name: str) -> Any:
    return next(item for item in plan.layers if item.name == name)


def test_inputs_of_weighted_operators_and_not_their_outputs(net: Nets) -> None:
    n = net()
    a = n.op("Relu", n.conv("x", name="first"), name="relu")
    plan = plan_of(n, n.conv(a, name="second"))
    assert plan.reads == {"x": {"first"}, "relu_out": {"second"}}
    assert plan.weighted == {"first", "second"}
    assert layer(plan, "relu").precision == "INT8"
    assert layer(plan, "relu").why == "fused with first"


def test_one_pair_is_shared_by_all_who_read_a_tensor(net: Nets) -> None:
    n = net()
    plan = plan_of(n, n.conv("x", name="left"), n.conv("x", name="right"))
    assert plan.reads == {"x": {"left", "right"}}


@pytest.mark.parametrize("activation", ["silu", "hardswish", "written out", "clip"])
def test_an_activation_stays_with_its_convolution(net: Nets, activation: str) -> None:
    n = net()
    c = n.conv("x", name="first")
    if activation == "silu":
        a = n.op("Mul", n.op("Sigmoid", c), c, name="act")
    elif activation == "hardswish":
        a = n.op("HardSwish", c, name="act")
    elif activation == "clip":
        a = n.op("Clip", c, n.constant(np.float32(0)), n.constant(np.float32(6)), name="act")
    else:
        shifted = n.op("Add", c, n.constant(np.array(3, np.float32)))
        gate = n.op("Clip", shifted, n.constant(np.float32(0)), n.constant(np.float32(6)))
        a = n.op("Div", n.op("Mul", c, gate), n.constant(np.array(6, np.float32)), name="act")
    plan = plan_of(n, n.conv(a, name="second"))
    assert set(plan.reads) == {"x", "act_out"}
    assert all(item.precision == "INT8" for item in plan.layers)


@pytest.mark.parametrize("normalised", [True, False])
def test_what_is_fed_may_be_normalised_first(net: Nets, normalised: bool) -> None:
    n = net(channels=8)
    x = n.op("Div", "x", n.constant(np.array(255, np.float32)), name="scaled")
    x = n.op("Sub", x, n.constant(np.full((1, 8, 1, 1), 0.5, np.float32)) if normalised else "x", name="less")
    x = n.op("Transpose", n.op("Transpose", x, perm=[0, 2, 3, 1]), name="moved", perm=[0, 3, 1, 2])
    plan = plan_of(n, n.conv(x, out=8, into=8, name="first"))
    # Small channels have INT8 kernels in the first layer alone.
    assert layer(plan, "first").precision == ("INT8" if normalised else "FP32")
    assert set(plan.reads) == ({"moved_out"} if normalised else set())
    if normalised:
        assert layer(plan, "less").why == "prepares the input, in front of the first Q/DQ"


def test_only_the_skip_side_of_a_residual_add(net: Nets) -> None:
    n = net()
    start = n.op("Relu", n.conv("x", name="stem"), name="start")
    main = n.conv(n.op("Relu", n.conv(start, name="a"), name="mid"), name="b")
    total = n.op("Add", main, start, name="add")
    plan = plan_of(n, n.conv(n.op("Relu", total, name="end"), name="next"))
    assert plan.reads == {
        "x": {"stem"},
        "start_out": {"a", "add"},
        "mid_out": {"b"},
        "end_out": {"next"},
    }
    assert layer(plan, "add").why.startswith("fused with b")


@pytest.mark.parametrize("swap", [False, True])
def test_with_convolutions_on_both_sides_the_shorter_is_the_skip(net: Nets, swap: bool) -> None:
    n = net()
    start = n.op("Relu", n.conv("x"), name="start")
    long = n.conv(n.op("Relu", n.conv(start), name="mid"), name="long")
    short = n.conv(start, kernel=1, name="short")
    total = n.op("Add", *((short, long) if swap else (long, short)), name="add")
    plan = plan_of(n, n.conv(total, name="next"))
    assert plan.reads["short_out"] == {"add"}
    assert "long_out" not in plan.reads


def test_a_skip_beside_a_float_convolution_stays_float(net: Nets) -> None:
    n = net()
    start = n.op("Relu", n.conv("x"), name="start")
    total = n.op("Add", n.conv(start, name="main"), start, name="add")
    plan = plan_of(n, total, exclude=("main",))
    assert plan.reads == {"x": {"conv0"}}
    assert layer(plan, "main").why == "excluded"
    assert layer(plan, "add").precision == "FP32"


def test_a_gate_of_squeeze_and_excitation_has_both_inputs_quantized(net: Nets) -> None:
    n = net()
    a = n.op("HardSwish", n.conv("x"), name="act")
    squeezed = n.op(
        "Relu", n.conv(n.op("GlobalAveragePool", a, name="pool"), kernel=1, name="fc1"), name="mid"
    )
    gate = n.op("HardSigmoid", n.conv(squeezed, kernel=1, name="fc2"), name="gate")
    plan = plan_of(n, n.conv(n.op("Mul", gate, a, name="scale"), name="next"))
    assert plan.reads["act_out"] == {"pool", "scale"}
    assert plan.reads["gate_out"] == {"scale"}
    assert plan.reads["scale_out"] == {"next"}
    assert "fc2_out" not in plan.reads


def test_pooling_is_quantized_beside_int8_only(net: Nets) -> None:
    n = net()
    near = n.op("GlobalAveragePool", n.op("Relu", n.conv("x"), name="act"), name="near")
    far = n.op("AveragePool", n.op("Exp", n.op("Exp", "x")), name="far", kernel_shape=[2, 2])
    after = n.op("GlobalAveragePool", n.conv(n.op("Softmax", far), name="last"), name="after")
    plan = plan_of(n, n.conv(near), after)
    assert plan.reads["act_out"] == {"near"}
    assert layer(plan, "far").why == "neither what is before it nor what is after it runs in INT8"
    assert layer(plan, "after").why == "no INT8 operator with weights comes after it"


def test_concat_shares_one_scale(net: Nets) -> None:
    n = net()
    parts = [n.op("Relu", n.conv("x"), name=f"part{i}") for i in range(2)]
    joined = n.op("Concat", *parts, name="cat", axis=1)
    plan = plan_of(n, n.conv(joined, into=32, name="next"))
    assert plan.reads["part0_out"] == plan.reads["part1_out"] == {"cat"}
    assert plan.reads["cat_out"] == {"next"}
    assert len({plan.groups[t] for t in ("part0_out", "part1_out", "cat_out")}) == 1
    assert plan.groups["x"] != plan.groups["cat_out"]


def test_concat_before_float_is_left_alone(net: Nets) -> None:
    n = net()
    parts = [n.op("Relu", n.conv("x")) for _ in range(2)]
    plan = plan_of(n, n.op("Softmax", n.op("Concat", *parts, name="cat", axis=1)))
    assert set(plan.reads) == {"x"}
    assert layer(plan, "cat").precision == "FP32"


@pytest.mark.parametrize("kind", ["MaxPool", "Transpose", "Reshape", "chain"])
def test_scales_are_equal_through_copies(net: Nets, kind: str) -> None:
    n = net()
    a = n.op("Relu", n.conv("x"), name="act")
    if kind == "MaxPool":
        moved = n.op("MaxPool", a, kernel_shape=[1, 1])
    elif kind == "Transpose":
        moved = n.op("Transpose", a, perm=[0, 1, 3, 2])
    else:
        moved = n.op("Reshape", a, n.constant(np.array([1, 16, 4, 16])))
        if kind == "chain":
            moved = n.op("MaxPool", n.op("Transpose", moved, perm=[0, 1, 3, 2]), kernel_shape=[1, 1])
    plan = plan_of(n, n.conv(moved, name="after"), n.conv(a, name="beside"))
    assert plan.groups[moved] == plan.groups["act_out"]
    assert plan.reads[moved] == {"after"}
    assert all(item.precision == "INT8" for item in plan.layers)


@pytest.mark.parametrize(
    ("out", "into", "kernel", "group", "int8"),
    [
        (16, 3, 3, 1, True),  # a first layer
        (8, 8, 3, 1, True),  # small, but first
        (10, 3, 3, 1, False),  # no multiple of 8
        (16, 16, 3, 16, True),  # depthwise
        (16, 16, 5, 16, True),
        (16, 16, 1, 2, False),  # grouped 1x1
        (12, 12, 3, 12, False),  # depthwise, no multiple of 8
    ],
)
def test_small_convolutions(net: Nets, out: int, into: int, kernel: int, group: int, int8: bool) -> None:
    n = net(channels=into)
    plan = plan_of(n, n.conv("x", out, into, kernel, group, name="conv"))
    assert ("conv" in plan.weighted) == int8
    assert bool(layer(plan, "conv").why) != int8


def test_few_channels_inside_a_network_have_no_kernel(net: Nets) -> None:
    n = net(channels=3)
    inner = n.op("Relu", n.conv("x", 8, 3))
    plan = plan_of(n, n.conv(inner, 8, 8, name="inner"))
    assert "8 input and 8 output channels" in layer(plan, "inner").why


@pytest.mark.parametrize(("into", "out", "int8"), [(1024, 16, True), (1024, 10, False)])
def test_small_heads_stay_float_and_say_so(net: Nets, into: int, out: int, int8: bool) -> None:
    n = net()
    plan = plan_of(n, n.gemm(n.op("Flatten", n.op("Relu", n.conv("x"))), into, out, name="head"))
    assert ("head" in plan.weighted) == int8
    assert ("below 16" in layer(plan, "head").why) != int8
    if int8:
        assert "one row at a time" in layer(plan, "head").why
        assert "FP16 where the engine allows it" in layer(plan, "head").why


def test_computed_weights_stay_float(net: Nets) -> None:
    n = net()
    a = n.conv("x")
    plan = plan_of(n, n.op("MatMul", a, n.op("Transpose", a, perm=[0, 1, 3, 2]), name="attention"))
    assert layer(plan, "attention").why == "both of its inputs are computed"


@pytest.mark.parametrize("placed", [place, cpu.place])
@pytest.mark.parametrize(
    ("shape", "left", "why"),
    [
        ((8, 8), True, "its constant is on the left, and weights are looked for on the right"),
        ((8,), False, "its weights are a vector"),
    ],
)
def test_why_a_constant_is_no_weight(
    net: Nets, placed: Any, shape: tuple[int, ...], left: bool, why: str
) -> None:
    n = net()
    a, c = n.conv("x"), n.constant(np.ones(shape, np.float32))
    out = n.op("MatMul", *((c, a) if left else (a, c)), name="product")
    assert layer(placed(prepare(n.model(out))), "product").why == why


def depthwise_net(net: Nets) -> Any:
    n = net()
    a = n.conv("x", group=16, name="plain")
    b = n.conv(n.op("Relu", a), group=16, name="silu")
    c = n.conv(n.op("Mul", b, n.op("Sigmoid", b)), group=16, name="hardswish")
    d = n.conv(n.op("HardSwish", c), group=16, name="gated")
    gate = n.op("Sigmoid", n.conv(n.op("GlobalAveragePool", d), kernel=1, name="fc"))
    return prepare(n.model(n.conv(n.op("Mul", d, gate), name="last")))


@pytest.mark.parametrize(
    ("tensorrt", "named"),
    [
        ("8.5.2", ["silu", "hardswish"]),
        ("8.6.2", ["plain", "silu", "hardswish", "gated"]),
        ("10.3.0", []),
        ("", []),
    ],
)
def test_depthwise_convolutions_that_old_versions_cannot_build(
    net: Nets, tensorrt: str, named: list[str]
) -> None:
    graph = depthwise_net(net)
    warnings = missing_kernels(graph, place(graph), tensorrt)
    assert len(warnings) == bool(named)
    for warning in warnings:
        assert f"TensorRT {tensorrt} " in warning
        assert "3385" in warning
        assert "4060" in warning
        assert f"quantize.exclude: [{', '.join(named)}]" in warning


def test_following_the_warning_silences_it(net: Nets) -> None:
    graph = depthwise_net(net)
    assert missing_kernels(graph, place(graph, frozenset({"silu", "hardswish"})), "8.5.2") == []


def test_every_float_node_has_a_reason_and_custom_operators_are_named(net: Nets) -> None:
    n = net()
    odd = n.op("Magic", n.conv("x"), name="magic", domain="my.own")
    plan = plan_of(n, n.op("Softmax", n.conv(odd)))
    floats = [item for item in plan.layers if item.precision == "FP32"]
    assert {item.name for item in floats} == {"magic", "softmax3"}
    assert all(item.why for item in floats)
    assert "my.own" in layer(plan, "magic").why


def test_transposed_convolution_and_resize(net: Nets) -> None:
    n = net()
    weight = n.constant(n.noise.standard_normal((16, 24, 2, 2)).astype(np.float32))
    up = n.op("ConvTranspose", "x", weight, name="up", strides=[2, 2])
    scales = n.constant(np.array([1, 1, 2, 2], np.float32))
    larger = n.op("Resize", up, "", scales, name="resize", mode="nearest")
    plan = plan_of(n, n.conv(larger, into=24, name="next"))
    assert plan.weighted == {"up", "next"}
    assert plan.reads["up_out"] == {"resize"}
    assert plan.groups["up_out"] == plan.groups["resize_out"]
