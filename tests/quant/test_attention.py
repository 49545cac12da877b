"""Attention goes into INT8 where it costs next to nothing, both products of it or none."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetune.profile import load_target
from edgetune.quant import attention
from edgetune.quant.attention import attentions
from edgetune.quant.ladder import ATTENTION, Limits
from edgetune.quant.lint import examine
from edgetune.quant.lint_view import reader_of
from edgetune.quant.prepare import prepare
from edgetune.quant.quantizer import quantize_model

WIDTH, LENGTH = 32, 16
Feeds = list[dict[str, np.ndarray]]


def network(blocks: int = 2, sharp: float = 1.0) -> onnx.ModelProto:
    """Attentions with a mask, one behind the other; `sharp` makes the first one's scores hang on single steps."""
    dice = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {"scale": np.array(WIDTH**-0.5, np.float32)}
    nodes, last = [], "x"
    node = helper.make_node
    for block in range(blocks):
        for name in "qkvo":
            weights[f"{name}{block}w"] = dice.normal(0, WIDTH**-0.5, (WIDTH, WIDTH)).astype(np.float32)
            source = f"a{block}" if name == "o" else last
            nodes.append(
                node("MatMul", [source, f"{name}{block}w"], [f"{name}{block}"], name=f"{name}{block}")
            )
            if name == "v":
                nodes += [
                    node("Transpose", [f"k{block}"], [f"t{block}"], name=f"turn{block}", perm=[0, 2, 1]),
                    node("MatMul", [f"q{block}", f"t{block}"], [f"s{block}"], name=f"scores{block}"),
                    node("Mul", [f"s{block}", "scale"], [f"d{block}"], name=f"divide{block}"),
                    node("Add", [f"d{block}", "mask"], [f"m{block}"], name=f"mask{block}"),
                    node("Softmax", [f"m{block}"], [f"p{block}"], name=f"softmax{block}", axis=-1),
                    node("MatMul", [f"p{block}", f"v{block}"], [f"a{block}"], name=f"weigh{block}"),
                ]
        nodes.append(node("Add", [f"o{block}", last], [f"r{block}"], name=f"add{block}"))
        last = f"r{block}"
    weights["q0w"] *= sharp
    nodes += [
        node("ReduceMean", [last], ["mean"], name="mean", axes=[1], keepdims=0),
        node("MatMul", ["mean", "head"], ["logits"], name="head"),
    ]
    weights["head"] = dice.normal(0, 1, (WIDTH, WIDTH)).astype(np.float32)
    shapes = {"x": [1, LENGTH, WIDTH], "mask": [1, 1, LENGTH]}
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, WIDTH])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def feeds(count: int = 24) -> Feeds:
    dice = np.random.default_rng(1)
    made = []
    for _ in range(count):
        mask = np.zeros((1, 1, LENGTH), np.float32)
        mask[..., dice.integers(4, LENGTH + 1) :] = -1e4
        made.append({"x": dice.standard_normal((1, LENGTH, WIDTH)).astype(np.float32), "mask": mask})
    return made


def test_both_products_are_found_through_scale_and_mask() -> None:
    found = attentions(prepare(network()))
    assert found == [frozenset({f"scores{block}", f"weigh{block}"}) for block in range(2)]


@pytest.fixture(autouse=True)
def cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """In two layers attention is much of the network: 0.8 dB each."""
    monkeypatch.setattr(attention, "COST_DB", 3.0)


@pytest.mark.parametrize("rendering", ["weak", "strong"])
def test_attention_goes_into_int8_where_it_costs_little(rendering: str) -> None:
    made, told = quantize_model(
        network(), feeds(), rendering, "minmax", method="auto", limits=Limits(0.5, 0.9)
    )
    rung = next(rung for rung in told["ladder"] if rung["rung"] == ATTENTION)
    assert (rung["kept"], rung["why"]) == (True, "2 of 2 attentions in INT8")
    layers = {layer["name"]: layer["precision"] for layer in told["layers"]}
    assert {layers[f"{name}{block}"] for name in ("scores", "weigh") for block in range(2)} == {"INT8"}
    producers = {name: node for node in made.graph.node for name in node.output}
    for node in made.graph.node:
        if node.name.startswith(("scores", "weigh")):
            assert {producers[name].op_type for name in node.input} == {"DequantizeLinear"}
    # Softmax, mask and scale are untouched.
    assert all(
        producers[name].op_type != "DequantizeLinear"
        for node in made.graph.node
        if node.op_type == "Softmax"
        for name in node.input
    )
    target = load_target("jetson-orin-nano-8gb" + ("@7.2" if rendering == "strong" else "@6.2"))
    findings = examine(made, reader_of(target), False)
    assert not [found for found in findings if found.severity != "info" and "scores" in found.reason]


def test_an_attention_that_int8_would_spoil_stays_in_float(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "COST_DB", 1.2)
    _, told = quantize_model(
        network(sharp=40.0), feeds(), "weak", "minmax", method="auto", limits=Limits(0.0, 0.0)
    )
    rung = next(rung for rung in told["ladder"] if rung["rung"] == ATTENTION)
    assert rung["why"].startswith("1 of 2 attentions in INT8")
    layers = {layer["name"]: layer["precision"] for layer in told["layers"]}
    assert (layers["scores0"], layers["weigh0"]) == ("FP32", "FP32")
    assert (layers["scores1"], layers["weigh1"]) == ("INT8", "INT8")


def test_what_is_excluded_or_for_a_cpu_is_not_tried() -> None:
    for rendering, exclude in (("weak", ("scores0", "weigh1")), ("cpu", ())):
        _, told = quantize_model(
            network(), feeds(), rendering, "minmax", exclude, method="auto", limits=Limits(0.0, 0.0)
        )
        assert ATTENTION not in {rung["rung"] for rung in told["ladder"]}


def test_where_int8_is_not_good_enough_attention_stays_in_float(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgetune.quant import ladder

    monkeypatch.setattr(ladder, "RUNGS", {})
    _, told = quantize_model(network(), feeds(), "weak", "minmax", method="auto", limits=Limits(1.1, 1.1))
    assert told["ladder"][-1]["why"] == "INT8 is not good enough as it is: they stay in float"
