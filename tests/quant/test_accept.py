"""Networks from anywhere: each is brought into the one form, computing the same, or refused with the reason."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgetune.errors import ArtifactError, ConfigError
from edgetune.quant import accept as accepting
from edgetune.quant import large
from edgetune.quant.accept import accept, name_nodes, raise_opset
from edgetune.quant.graph import opset_of
from edgetune.quant.placement import place
from edgetune.quant.prepare import prepare

Nets = Callable[..., Any]
HOWS = ["weak", "strong", "cpu"]


def same(model: ModelProto, kit: SimpleNamespace, opset: int = 13) -> Any:
    """Prepare a model; check that it computes what it did and stays as it is."""
    before = model.SerializeToString()
    graph = prepare(model, opset)
    assert model.SerializeToString() == before
    feed = kit.feeds(model)
    for a, b in zip(kit.run(model, feed), kit.run(graph.model, feed), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    return graph


def old(nodes: list[onnx.NodeProto], out: list[int], opset: int, **constants: np.ndarray) -> ModelProto:
    """A network as exporters wrote them years ago: IR 3, where constants are inputs too."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 8, 8])]
    inputs += [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, v.shape) for name, v in constants.items()
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, out)
    initializers = [numpy_helper.from_array(v.astype(np.float32), name) for name, v in constants.items()]
    graph = helper.make_graph(nodes, "old", inputs, [output], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=3)


WEIGHT = np.random.default_rng(0).standard_normal((16, 4, 3, 3))
OLD = {
    "Clip with attributes": (
        9,
        [("Conv", ["x", "w"], "c", {"pads": [1] * 4}), ("Clip", ["c"], "y", {"min": 0.0, "max": 6.0})],
        [1, 16, 8, 8],
    ),
    "Pad with attributes": (
        10,
        [("Pad", ["x"], "p", {"pads": [0, 0, 1, 1, 0, 0, 1, 1]}), ("Conv", ["p", "w"], "y", {})],
        [1, 16, 8, 8],
    ),
    "Upsample": (
        9,
        [("Conv", ["x", "w"], "c", {"pads": [1] * 4}), ("Upsample", ["c", "s"], "y", {"mode": "nearest"})],
        [1, 16, 16, 16],
    ),
    "Dropout": (
        7,
        [("Conv", ["x", "w"], "c", {"pads": [1] * 4}), ("Dropout", ["c"], "y", {"ratio": 0.5})],
        [1, 16, 8, 8],
    ),
    "Squeeze with attributes": (
        11,
        [
            ("Conv", ["x", "w"], "c", {}),
            ("Unsqueeze", ["c"], "u", {"axes": [0]}),
            ("Squeeze", ["u"], "y", {"axes": [0]}),
        ],
        [1, 16, 6, 6],
    ),
    "Softmax over all behind an axis": (
        11,
        [("Conv", ["x", "w"], "c", {}), ("Softmax", ["c"], "y", {"axis": 1})],
        [1, 16, 6, 6],
    ),
}


@pytest.mark.parametrize("least", [13, 19])
@pytest.mark.parametrize("case", OLD)
def test_an_old_opset_is_raised(kit: SimpleNamespace, case: str, least: int) -> None:
    opset, nodes, out = OLD[case]
    constants = {"w": WEIGHT} | ({"s": np.array([1, 1, 2, 2])} if case == "Upsample" else {})
    made = [helper.make_node(kind, ins, [result], **more) for kind, ins, result, more in nodes]
    model = old(made, out, opset, **constants)
    graph = same(model, kit, least)
    assert opset_of(graph.model) == least
    assert graph.inputs == ("x",)
    assert place(graph).weighted
    onnx.checker.check_model(graph.model, full_check=True)


def test_a_later_opset_stays(net: Nets) -> None:
    n = net(opset=17)
    assert opset_of(accept(n.model(n.conv("x")))) == 17


def test_an_opset_that_cannot_be_raised_is_refused(net: Nets) -> None:
    n = net(opset=6)
    model = n.model(n.op("Upsample", n.op("Relu", "x"), scales=[1.0, 1.0, 2.0, 2.0], name="up"))
    with pytest.raises(ConfigError, match="opset 6, and 13 is needed; converting it failed") as caught:
        accept(model)
    assert "export it again" in caught.value.hint


def test_a_conversion_that_changes_the_numbers_is_refused(net: Nets, monkeypatch: pytest.MonkeyPatch) -> None:
    n = net(opset=11)
    model = n.model(n.op("Relu", n.conv("x", name="conv"), name="relu"))

    def wrong(given: ModelProto, opset: int) -> ModelProto:
        made = converted(given, opset)
        made.graph.node[1].op_type = "Abs"
        return made

    converted = onnx.version_converter.convert_version
    monkeypatch.setattr(onnx.version_converter, "convert_version", wrong)
    with pytest.raises(ArtifactError, match="made another network"):
        raise_opset(model, 13)


def test_raising_keeps_names_and_what_is_written_about_the_model(net: Nets) -> None:
    n = net(opset=12)
    model = n.model(n.op("Relu", n.conv("x", name="conv"), name="relu"))
    helper.set_model_props(model, {"made by": "somebody"})
    made = raise_opset(model, 17)
    assert [node.name for node in made.graph.node] == ["conv", "relu"]
    assert {item.key: item.value for item in made.metadata_props} == {"made by": "somebody"}


@pytest.mark.parametrize("how", HOWS)
def test_weights_in_another_file(net: Nets, kit: SimpleNamespace, tmp_path: Path, how: str) -> None:
    n = net(opset=19)
    model = n.model(n.conv(n.op("Relu", n.conv("x")), name="end"))
    feed, wanted = kit.feeds(model), kit.run(model, kit.feeds(model))
    path = tmp_path / "model.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="weights", size_threshold=0)
    made = kit.write(prepare(onnx.load(path)), how, feed)
    assert not any(item.external_data for item in made.graph.initializer)
    assert np.abs(kit.run(made, feed)[0] - wanted[0]).max() < 0.1 * np.abs(wanted[0]).max()
    with pytest.raises(ConfigError, match="lie in another file"):
        prepare(onnx.load(path, load_external_data=False))


def test_above_the_limit_weights_go_beside_the_file(
    net: Nets, kit: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = net()
    model = n.model(n.conv("x"))
    feed = kit.feeds(model)
    wanted, before = kit.run(model, feed), model.SerializeToString()
    monkeypatch.setattr(large, "LARGEST_BYTES", 4096)
    assert not large.fits(model)
    serialize = ModelProto.SerializeToString

    def limited(self: ModelProto, **more: Any) -> bytes:
        found = serialize(self, **more)
        assert len(found) < 4096
        return found

    monkeypatch.setattr(ModelProto, "SerializeToString", limited)
    np.testing.assert_array_equal(large.open_model(model, threads=1, exact=True).run_once(feed), wanted)
    graph = prepare(model)  # needs no message of the whole
    monkeypatch.undo()
    assert model.SerializeToString() == before
    assert place(graph).weighted
    path = tmp_path / "model.onnx"
    for _ in range(2):
        large.save_beside(model, path)
    assert model.SerializeToString() == before
    assert 9216 <= (tmp_path / "model.onnx.data").stat().st_size < 2 * 9216
    assert path.stat().st_size < 4096
    np.testing.assert_array_equal(kit.run(onnx.load(path), feed), wanted)


def test_above_the_limit_nothing_is_converted(net: Nets, monkeypatch: pytest.MonkeyPatch) -> None:
    n = net(opset=11)
    model = n.model(n.conv("x"))
    monkeypatch.setattr(large, "LARGEST_BYTES", 4096)
    with pytest.raises(ConfigError, match="above 2 GB ONNX cannot convert it"):
        accept(model)


def function_of(body: list[onnx.NodeProto], name: str = "Block") -> Any:
    imports = [helper.make_opsetid("", 17)]
    return helper.make_function("my", name, ["x", "w"], ["y"], body, imports)


def test_functions_are_written_out(net: Nets, kit: SimpleNamespace) -> None:
    n = net(channels=4)
    weight = n.constant(WEIGHT.astype(np.float32))
    model = n.model(n.op("Relu", n.op("Block", "x", weight, domain="my", name="block"), name="end"))
    body = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Relu", ["c"], ["y"])]
    model.functions.append(function_of(body))
    graph = same(model, kit)
    assert [node.op_type for node in graph.nodes] == ["Conv", "Relu", "Relu"]
    assert len(place(graph).weighted) == 1


def test_a_quantized_function_or_branch_is_refused(net: Nets) -> None:
    n = net()
    weight = n.constant(np.array(1, np.float32))
    model = n.model(n.op("Block", "x", weight, domain="my"))
    model.functions.append(function_of([helper.make_node("QuantizeLinear", ["x", "w"], ["y"])]))
    with pytest.raises(ConfigError, match="QuantizeLinear"):
        accept(model)
    m = net()
    branch = helper.make_graph(
        [helper.make_node("DynamicQuantizeLinear", ["x"], ["t", "s", "z"], name="inside")],
        "branch",
        [],
        [helper.make_tensor_value_info("t", TensorProto.UINT8, None)],
    )
    flag = m.constant(np.array(True))
    with pytest.raises(ConfigError, match="'inside'"):
        accept(m.model(m.op("If", flag, then_branch=branch, else_branch=branch)))


@pytest.mark.parametrize("kind", ["QLinearConv", "QLinearAdd", "QLinearGlobalAveragePool"])
def test_integer_operators_of_any_domain_are_refused(net: Nets, kind: str) -> None:
    n = net()
    with pytest.raises(ConfigError, match=kind):
        accept(n.model(n.op(kind, "x", domain="com.microsoft")))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_weights_of_other_floats_are_refused(net: Nets, dtype: type) -> None:
    n = net()
    model = n.model(n.conv("x"))
    for item in model.graph.initializer:
        item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item).astype(dtype), item.name))
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    with pytest.raises(ConfigError, match=np.dtype(dtype).name) as caught:
        prepare(model)
    assert "FP32" in caught.value.hint


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.UINT8])
def test_inputs_of_other_types_are_cast_by_the_network_itself(
    net: Nets, kit: SimpleNamespace, how: str, kind: int
) -> None:
    n = net(opset=19)
    model = n.model(n.conv(n.op("Cast", "x", to=TensorProto.FLOAT, name="cast")))
    model.graph.input[0].type.tensor_type.elem_type = kind
    feed = {"x": np.abs(n.inputs(1) * 20).astype(helper.tensor_dtype_to_np_dtype(kind))}
    made = kit.write(prepare(model), how, feed)
    assert made.graph.input[0].type.tensor_type.elem_type == kind
    (a,), (b,) = (kit.run(m, feed) for m in (model, made))
    assert np.abs(a - b).max() < 0.05 * np.abs(a).max()


def test_sparse_constants_become_dense(net: Nets, kit: SimpleNamespace) -> None:
    n = net(channels=4)
    model = n.model(n.op("Conv", "x", "w", name="conv"))
    weight = WEIGHT.astype(np.float32) * (np.abs(WEIGHT) > 1.5)
    dense = ModelProto()
    dense.CopyFrom(model)
    dense.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    places = np.flatnonzero(weight)
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(weight.reshape(-1)[places], "w"),
        numpy_helper.from_array(places.astype(np.int64), "places"),
        weight.shape,
    )
    model.graph.sparse_initializer.append(sparse)
    for columns in (False, True):
        if columns:
            index = np.stack(np.unravel_index(places, weight.shape), 1).astype(np.int64)
            model.graph.sparse_initializer[0].indices.CopyFrom(numpy_helper.from_array(index, "places"))
        made = prepare(model)
        np.testing.assert_array_equal(made.constants["w"], weight)
        np.testing.assert_allclose(
            kit.run(made.model, kit.feeds(model)), kit.run(dense, kit.feeds(model)), atol=1e-5
        )


def test_given_node_names_stay_where_they_can(net: Nets) -> None:
    n = net()
    for _ in range(4):
        n.op("Relu", "x")
    model = n.model("relu0_out")
    for node, name in zip(model.graph.node, ["", "Relu_0", "Relu_0", "Relu_0_"], strict=True):
        node.name = name
    name_nodes(model)
    assert [node.name for node in model.graph.node] == ["Relu_0__", "Relu_0", "Relu_0___", "Relu_0_"]


def test_names_that_quantizing_needs_are_freed(net: Nets, kit: SimpleNamespace) -> None:
    n = net(opset=19)
    act = n.op("Relu", n.conv("x"), name="act")
    odd = n.op("Mul", act, n.constant(np.array(2, np.float32), "act_out/scale"), name="odd")
    model = n.model(n.op("Add", n.conv(act), n.conv(odd), name="end"))
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = ["act_out/dequantized" if name == "odd_out" else name for name in names]
    graph = same(model, kit)
    for how in HOWS:
        made = kit.write(graph, how, kit.feeds(model))
        onnx.checker.check_model(made, full_check=True)
        (a,), (b,) = (kit.run(m, kit.feeds(model)) for m in (model, made))
        assert np.abs(a - b).max() < 0.1 * np.abs(a).max()


def test_names_that_cannot_be_freed_are_refused(net: Nets) -> None:
    n = net()
    act = n.op("Relu", "x", name="act")
    model = n.model(n.op("Exp", act, name="end"))
    for names in (model.graph.node[1].output, [model.graph.output[0]]):
        if isinstance(names, list):
            names[0].name = "act_out/half"
        else:
            names[:] = ["act_out/half"]
    with pytest.raises(ConfigError, match="'act_out/half' is an input or output"):
        accept(model)


def test_optional_inputs_may_be_left_out(net: Nets, kit: SimpleNamespace) -> None:
    n = net(opset=19)
    a = n.op("Clip", n.conv("x"), "", n.constant(np.float32(1)), name="upper")
    weight = n.constant(n.noise.standard_normal((16, 16, 1, 1)).astype(np.float32))
    model = n.model(n.op("Conv", a, weight, "", name="no bias"))
    for how in HOWS:
        made = kit.write(prepare(model), how, kit.feeds(model))
        onnx.checker.check_model(made, full_check=True)
        (x,), (y,) = (kit.run(m, kit.feeds(model)) for m in (model, made))
        assert np.abs(x - y).max() < 0.05 * np.abs(x).max()


@pytest.mark.parametrize("how", HOWS)
def test_two_inputs_and_several_outputs(net: Nets, kit: SimpleNamespace, how: str) -> None:
    n = net(opset=19)
    left = n.op("Relu", n.conv("x"), name="left")
    right = n.op("Relu", n.conv("second"), name="right")
    joined = n.conv(n.op("Concat", left, right, axis=1), into=32, name="joined")
    model = n.model(joined, n.op("Sigmoid", n.conv(left, name="aux"), name="end"), left)
    second = model.graph.input.add()
    second.CopyFrom(model.graph.input[0])
    second.name = "second"
    feed = kit.feeds(model)
    made = kit.write(same(model, kit), how, feed)
    onnx.checker.check_model(made, full_check=True)
    assert [v.name for v in made.graph.input] == ["x", "second"]
    assert [v.name for v in made.graph.output] == ["joined_out", "end_out", "left_out"]
    for a, b in zip(kit.run(model, feed), kit.run(made, feed), strict=True):
        assert np.abs(a - b).max() < 0.1 * np.abs(a).max()


@pytest.mark.parametrize("how", HOWS)
def test_operators_with_subgraphs_stay_float(net: Nets, kit: SimpleNamespace, how: str) -> None:
    n = net(opset=19)
    act = n.op("Relu", n.conv("x", name="before"), name="act")
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Add", ["state", act], ["sum"]),
            helper.make_node("Identity", ["on"], ["still"]),
            helper.make_node("Conv", ["sum", "inner"], ["next"], pads=[1] * 4),
        ],
        "body",
        [value("i", TensorProto.INT64, []), value("on", TensorProto.BOOL, []), value("state", 1, None)],
        [value("still", TensorProto.BOOL, []), value("next", 1, None)],
    )
    inner = n.noise.standard_normal((16, 16, 3, 3)).astype(np.float32) / 12
    body.initializer.append(numpy_helper.from_array(inner, "inner"))
    trips, on = n.constant(np.array(2, np.int64)), n.constant(np.array(True))
    loop = n.op("Loop", trips, on, act, name="loop", body=body)
    model = n.model(n.conv(loop, name="after"))
    graph = prepare(model)
    made = kit.write(graph, how, kit.feeds(model))
    (kept,) = [node for node in made.graph.node if node.op_type == "Loop"]
    assert {node.op_type for node in accepting.all_nodes(kept.attribute[0].g)} == {"Add", "Identity", "Conv"}
    plan = place(graph)
    assert next(layer for layer in plan.layers if layer.name == "loop").precision == "FP32"
    assert plan.weighted == {"before", "after"}
    (a,), (b,) = (kit.run(m, kit.feeds(model)) for m in (model, made))
    assert np.abs(a - b).max() < 0.1 * np.abs(a).max()


@pytest.mark.parametrize("how", HOWS)
def test_operators_of_other_domains_stay_float_and_are_named(
    net: Nets, kit: SimpleNamespace, how: str
) -> None:
    n = net(opset=19)
    odd = n.op("QuickGelu", n.conv("x", name="before"), name="odd", domain="com.microsoft")
    model = n.model(n.conv(odd, name="after"))
    graph = prepare(model)
    layer = next(layer for layer in place(graph).layers if layer.name == "odd")
    assert layer.precision == "FP32"
    assert "com.microsoft" in layer.why
    made = kit.write(graph, how, kit.feeds(model))
    (a,), (b,) = (kit.run(m, kit.feeds(model)) for m in (model, made))
    assert np.abs(a - b).max() < 0.1 * np.abs(a).max()


@pytest.mark.parametrize("how", HOWS)
def test_dynamic_batch_and_size(net: Nets, kit: SimpleNamespace, how: str) -> None:
    n = net(opset=19, batch="N")
    pooled = n.op("GlobalAveragePool", n.op("HardSwish", n.conv("x")))
    model = n.model(n.gemm(n.op("Flatten", pooled), 16, 20))
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = "S"
    made = kit.write(prepare(model), how, kit.feeds(model))
    for shape in ((1, 16, 8, 8), (3, 16, 12, 12)):
        feed = {"x": np.random.default_rng(2).standard_normal(shape).astype(np.float32)}
        (a,), (b,) = (kit.run(m, feed) for m in (model, made))
        assert b.shape == (shape[0], 20)
        assert np.abs(a - b).max() < 0.1 * np.abs(a).max()


@pytest.mark.parametrize("how", HOWS)
def test_outliers_constant_tensors_and_empty_channels_keep_the_numbers_finite(
    net: Nets, kit: SimpleNamespace, how: str
) -> None:
    n = net(opset=19)
    act = n.op("Relu", n.conv("x", name="first"), name="act")
    still = n.op("Sub", act, act, name="zero")
    total = n.op("Add", n.conv(act, name="second"), n.conv(still, name="of zeros"), name="sum")
    weight, bias = n.nodes[0].input[1:]
    n.constants[weight][0] *= 1e4
    n.constants[weight][1] = 0
    n.constants[bias][2] = 3e4
    n.constants[weight][3] = 1e-12
    model = n.model(n.conv(total, name="last"))
    made = kit.write(prepare(model), how, kit.feeds(model))
    onnx.checker.check_model(made, full_check=True)
    (a,), (b,) = (kit.run(m, kit.feeds(model)) for m in (model, made))
    assert np.isfinite(b).all()
    assert np.square(a - b).mean() < 0.02 * np.square(a).mean()


@pytest.mark.parametrize("how", HOWS)
def test_weights_that_are_not_finite_stay_float(net: Nets, how: str) -> None:
    n = net(opset=19)
    model = n.model(n.conv(n.conv("x", name="good"), name="bad"))
    n.constants[n.nodes[1].input[1]][0, 0, 0, 0] = np.inf
    plan = place(prepare(n.model("bad_out")))
    assert plan.weighted == {"good"}
    assert (
        next(layer for layer in plan.layers if layer.name == "bad").why
        == "its weights are not finite float32"
    )
    assert model.graph.node[1].name == "bad"
