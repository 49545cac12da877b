"""Climbing: rungs are kept where they help on held-out inputs, and none of them is fatal."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgetune.errors import ConfigError, StageError
from edgetune.quant import ladder, qat
from edgetune.quant.compare import compare
from edgetune.quant.draft import RENDERINGS, Draft, draft
from edgetune.quant.held import split, tensors
from edgetune.quant.ladder import RUNGS, Climb, Limits, climb
from edgetune.quant.prepare import prepare
from edgetune.quant.quantizer import quantize_model
from edgetune.quant.sensitivity import noise_by_layer, sqnr_of

Nets = Callable[..., Any]
NEVER = Limits(agreement=1.1, cosine=1.1)


def images(count: int = 16, seed: int = 3) -> np.ndarray:
    noise = np.random.default_rng(seed)
    shape = (count, 16, 8, 8)
    return (0.5 + noise.standard_normal(shape) + noise.standard_normal((count, 1, 8, 8))).astype(np.float32)


def feeds(count: int = 16, seed: int = 3) -> list[dict[str, np.ndarray]]:
    return [{"x": row[None]} for row in images(count, seed)]


def network(net: Nets) -> ModelProto:
    """One layer has a huge weight per channel; channels of another differ by a factor of a hundred."""
    n = net(opset=19)
    a = n.op("Relu", n.conv("x", name="first"))
    uneven = n.nodes[-2]
    for name in uneven.input[1:]:
        value = n.constants[name]
        factors = np.exp(np.linspace(-2, 2, 16)).reshape(-1, *[1] * (value.ndim - 1))
        n.constants[name] = (value * factors).astype(np.float32)
    a = n.op("Relu", n.conv(a, name="second", kernel=1))
    a = n.op("Add", n.conv(a, name="bad", kernel=1), a)
    weight = n.constants[next(node for node in n.nodes if node.name == "bad").input[1]]
    weight[:, 0] = 30 * np.abs(weight).max()
    pooled = n.op("GlobalAveragePool", n.op("Relu", n.conv(a, name="last")))
    return n.model(n.gemm(n.op("Flatten", pooled), 16, 24, name="head"))


def drafted(model: ModelProto, how: str = "weak") -> Draft:
    return draft(prepare(model), RENDERINGS[how], feeds(), "minmax", frozenset())


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = qat.train
    settings = qat.Training(epochs=2, batch=8, weight_rate=0.01)

    def short(*args: Any, **more: Any) -> Any:
        return inner(*args, settings=settings, **more)

    monkeypatch.setattr(qat, "train", short)


def climbed(
    made: Draft, how: str = "weak", method: str = "auto", limits: Limits = NEVER, **more: Any
) -> Climb:
    return climb(made, RENDERINGS[how], feeds(), feeds(8, 9), "minmax", method, limits, **more)


@pytest.mark.slow
@pytest.mark.parametrize("how", RENDERINGS)
def test_climbing_helps_on_inputs_that_nobody_saw(
    net: Nets, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    made = drafted(network(net), how)
    state = climbed(made, how)
    assert [row["rung"] for row in state.rungs] == ["ranges", *RUNGS]
    kept = [row for row in state.rungs if row["kept"]]
    assert len(kept) > 1
    gained = [row["sqnr_db"] for row in kept]
    assert all(b >= a + ladder.LEAST_GAIN_DB for a, b in pairwise(gained))
    assert sqnr_of(state.comparison) == gained[-1]
    other = [images(8, 11)]
    before, after = (
        sqnr_of(compare(made.graph.model, m, other, exact=True)) for m in (made.model, state.best.model)
    )
    assert after > before + 1
    # What is kept is what was judged.
    again = compare(made.graph.model, state.best.model, feeds(8, 9), exact=RENDERINGS[how].symmetric)
    assert sqnr_of(again) == pytest.approx(gained[-1], abs=1e-6)
    assert all(row["why"] for row in state.rungs if row["sqnr_db"] is None)
    assert all(row["seconds"] >= 0 for row in state.rungs)


def test_auto_stops_where_limits_are_met(net: Nets) -> None:
    made = drafted(network(net))
    easy = climbed(made, limits=Limits(agreement=0.0, cosine=0.5))
    assert [row["rung"] for row in easy.rungs] == ["ranges"]
    assert easy.best is made
    some = climbed(made, limits=Limits(agreement=None, cosine=None))
    assert [row["rung"] for row in some.rungs] == ["ranges"]


def test_best_tries_everything_that_costs_next_to_no_speed(
    net: Nets, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    made = drafted(network(net))
    state = climbed(made, method="best", limits=Limits(agreement=0.0, cosine=0.0))
    assert [row["rung"] for row in state.rungs] == ["ranges", *(name for name in RUNGS if name != "mixed")]
    work = {layer.name: layer.operations for layer in noise_by_layer(made, feeds(8, 9))}
    in_float = sum(work[name] for name in state.best.excluded)
    assert in_float <= ladder.RELIEF_SHARE * sum(work.values())


def test_a_rung_that_does_not_help_is_not_kept(net: Nets, monkeypatch: pytest.MonkeyPatch) -> None:
    made = drafted(network(net))

    def worse(state: Climb, limits: Limits) -> tuple[Draft, str]:
        model = ModelProto()
        model.CopyFrom(state.best.model)
        for item in model.graph.initializer:
            value = numpy_helper.to_array(item)
            if item.name.endswith("/scale") and value.ndim == 0:
                item.CopyFrom(numpy_helper.from_array(value * np.float32(3), item.name))
        return replace(state.best, model=model), "worse"

    def same(state: Climb, limits: Limits) -> tuple[Draft, str]:
        return replace(state.best), "same"

    monkeypatch.setattr(ladder, "RUNGS", {"worse": worse, "same": same})
    state = climbed(made)
    assert [(row["rung"], row["kept"]) for row in state.rungs] == [
        ("ranges", True),
        ("worse", False),
        ("same", False),
    ]
    assert state.best is made
    assert state.rungs[1]["sqnr_db"] < state.rungs[0]["sqnr_db"]


def unknown_to_torch(net: Nets) -> ModelProto:
    """Has an operator that ONNX Runtime runs and torch does not."""
    n = net()
    hidden = n.op("Relu", n.conv("x", name="first"))
    return n.model(n.op("Hardmax", n.conv(hidden, name="last"), name="hard"), hidden)


def with_if(net: Nets) -> ModelProto:
    n = net()
    hidden = n.op("Relu", n.conv("x", name="first"))
    yes = n.constant(np.array(True))
    last = n.conv(hidden, name="last")
    branches = [
        helper.make_graph(
            [helper.make_node("Identity", [last], [f"{name}_out"], name=name)],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)],
        )
        for name in ("then", "else")
    ]
    return n.model(n.op("If", yes, then_branch=branches[0], else_branch=branches[1], name="choice"))


@pytest.mark.parametrize("build", [unknown_to_torch, with_if])
def test_what_torch_cannot_execute_is_told_and_not_fatal(
    net: Nets, build: Callable[[Nets], ModelProto]
) -> None:
    state = climbed(drafted(build(net)), method="best")
    rows = {row["rung"]: row for row in state.rungs}
    for rung in ("bias", "rounding", "reconstruction", "training"):
        assert not rows[rung]["kept"]
        assert "torch cannot execute" in rows[rung]["why"]
    assert state.best.model is not None


def test_a_training_that_fails_leaves_what_was_there(net: Nets, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: Any, **more: Any) -> Any:
        raise StageError("the loss is not a number")

    monkeypatch.setattr(qat, "train", failing)
    monkeypatch.setattr(ladder, "RUNGS", {"training": RUNGS["training"]})
    made = drafted(network(net))
    state = climbed(made)
    assert state.best is made
    assert state.rungs[-1]["why"] == "the loss is not a number"


def test_mixed_precision_leaves_the_bad_layer_in_float(net: Nets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder, "RUNGS", {"mixed": RUNGS["mixed"]})
    made = drafted(network(net))
    state = climbed(made)
    assert "bad" in state.best.excluded
    assert "bad" in state.rungs[-1]["why"]
    # A quarter of the layers at most, however far the limits are.
    assert len(made.plan.weighted - state.best.plan.weighted) <= max(
        1, int(ladder.FLOAT_SHARE * len(made.plan.weighted))
    )
    assert {layer.name for layer in state.layers} == made.plan.weighted


def test_relief_leaves_the_bad_layer_in_float_where_it_is_cheap(
    net: Nets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ladder, "RUNGS", {name: RUNGS[name] for name in ("relief", "bias")})
    monkeypatch.setattr(ladder, "RELIEF_SHARE", 1e-6)
    made = drafted(network(net))
    dear = climbed(made, method="best")
    assert not dear.best.excluded
    assert "no layer with less than 0% of the operations" in dear.rungs[1]["why"]
    monkeypatch.setattr(ladder, "RELIEF_SHARE", 0.5)
    state = climbed(made, method="best")
    assert state.rungs[1]["kept"]
    assert "bad" in state.best.excluded
    assert "bad" in state.rungs[1]["why"].removeprefix("in float: ").split(", ")
    assert state.rungs[1]["sqnr_db"] > state.rungs[0]["sqnr_db"] + 5
    # What is corrected afterwards keeps it there.
    assert state.rungs[2]["rung"] == "bias"
    assert "bad" in state.base.excluded


def test_a_cpu_is_not_slowed_down_by_relief(net: Nets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder, "RUNGS", {"relief": RUNGS["relief"]})
    monkeypatch.setattr(ladder, "RELIEF_SHARE", 0.5)
    state = climbed(drafted(network(net), "cpu"), "cpu")
    assert not state.best.excluded
    assert "CPU" in state.rungs[1]["why"]


def test_inputs_of_both_kinds(net: Nets) -> None:
    """Every fourth input judges; a network's input of its own length cannot be stacked."""
    inputs = [type("Spec", (), {"name": "x", "shape": (1, 16, 8, 8)})]
    some, held = split([images(18)], inputs)
    assert (len(some), len(held)) == (14, 4)
    np.testing.assert_array_equal(held[0]["x"], images(18)[3:4])
    assert tensors(some)["x"].shape == (14, 16, 8, 8)
    few, nobody = split([images(15)], inputs)
    assert (len(few), len(nobody)) == (15, 0), "too few to judge by: all of them calibrate"
    mixed: list[dict[str, Any]] = [{"x": images(1), "sizes": np.zeros(3, np.float32)}]
    with pytest.raises(ConfigError, match="no batch dimension in common"):
        tensors(mixed)
    with pytest.raises(ConfigError, match="no batch dimension in common"):
        tensors([{"x": images(1), "size": np.array(3, np.float32)}])


def test_progress_begins_and_ends_for_each_rung(net: Nets, monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    told: list[str] = []
    lines: list[str] = []

    class Watcher:
        def begin(self, what: str, total: int, unit: str = "") -> None:
            told.append(f"begin {what}")

        def advance(self, count: int = 1) -> None:
            pass

        def end(self) -> None:
            told.append("end")

        def line(self, text: str) -> None:
            lines.append(text)

    climbed(drafted(network(net)), method="best", progress=Watcher())  # type: ignore[arg-type]
    assert told[0::2].count("begin round weights") == 1
    assert {text.removeprefix("begin ") for text in told[0::2]} == {
        "correct biases", "round weights", "reconstruct ranges", "train",
    }  # fmt: skip
    assert set(told[1::2]) == {"end"}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["auto", "best"])
def test_the_account_tells_of_every_rung(net: Nets, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    quick(monkeypatch)
    model = network(net)
    limits = Limits(agreement=1.1, cosine=1.1)
    made, details = quantize_model(model, [images(16)], "weak", "minmax", method=method, limits=limits)
    assert details["held_images"] == 4
    assert details["ladder"][0]["rung"] == "ranges"
    assert len(details["ladder"]) == len(RUNGS) + (method == "auto")
    assert made.graph.node
    again, _ = quantize_model(model, [images(16)], "weak", "minmax", method=method, limits=limits)
    if method == "best":
        # Mixed precision weighs measured times, so it may choose otherwise.
        assert again == made


def test_the_plain_path_never_loads_torch() -> None:
    code = """
import sys
import numpy as np
from onnx import TensorProto, helper, numpy_helper
from edgetune.quant.quantizer import quantize_model
weight = numpy_helper.from_array(np.ones((16, 16, 3, 3), np.float32), "w")
node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv")
info = lambda name, size: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 16, size, size])
graph = helper.make_graph([node], "g", [info("x", 8)], [info("y", 6)], [weight])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
for how in ("weak", "cpu"):
    quantize_model(model, [np.ones((4, 16, 8, 8), np.float32)], how, "minmax")
assert "torch" not in sys.modules, "torch was loaded"
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def several(net: Nets) -> tuple[ModelProto, Sequence[dict[str, np.ndarray]]]:
    n = net()
    a, b = n.conv("x", name="a"), n.conv("y", name="b")
    mixed = n.op("Relu", n.op("Add", a, b))
    model = n.model(n.conv(mixed, name="c"), n.op("Mul", a, b))
    model.graph.input.append(helper.make_tensor_value_info("y", 1, [1, 16, 8, 8]))
    rows = [{"x": images(1, seed), "y": images(1, seed + 100)} for seed in range(8)]
    return model, rows


def test_several_inputs_and_outputs_climb_too(net: Nets, monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    model, rows = several(net)
    made, details = quantize_model(model, rows, "weak", "minmax", method="best")
    assert all(
        row["sqnr_db"] is not None or "channels" in row["why"] or "error" in row["why"]
        for row in details["ladder"]
    )
    assert [value.name for value in made.graph.output] == [value.name for value in model.graph.output]
