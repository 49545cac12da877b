"""What stands out of a report, and the sentences about it."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.errors import ArtifactError
from edgetune.report import sentences, view
from edgetune.report.part import visible
from edgetune.report.schema import (
    Accuracy,
    ClassRow,
    Comparison,
    Confusion,
    Data,
    Epoch,
    Flip,
    Gate,
    Pair,
    Report,
    Right,
    Size,
    Target,
    Transfer,
    read_report,
)
from edgetune.report.schema_int8 import Layer

Samples = dict[str, Callable[[], dict[str, Any]]]

NUMBERS = st.floats(-1e6, 1e6)


@given(NUMBERS, NUMBERS, st.tuples(NUMBERS, NUMBERS) | st.none(), st.sampled_from(["max", "min"]))
def test_a_gate_s_mark_keeps_the_order(
    value: float, limit: float, span: tuple[float, float] | None, direction: Any
) -> None:
    low, high = sorted(span) if span else (None, None)
    scale = view.scale(Gate(value=value, limit=limit, low=low, high=high, direction=direction))
    assert scale is not None
    places = [scale.value, scale.limit, *([scale.low, scale.high] if span else [])]
    assert all(p is not None and 0 <= p <= 100 for p in places)
    assert (scale.value <= scale.limit) or value > limit
    assert (scale.value >= scale.limit) or value < limit
    assert (scale.good_from, scale.good_to) == (
        (0, scale.limit) if direction == "max" else (scale.limit, 100)
    )


def test_no_value_has_no_mark() -> None:
    assert view.scale(Gate(limit=1.0)) is None


def test_a_reason_is_said_once_with_all_its_gates() -> None:
    gates = (
        Gate(title="a", why="late"),
        Gate(title="b"),
        Gate(name="c", why="late"),
        Gate(title="d", why="x"),
    )
    assert view.whys(Report(gates=gates)) == [("a; c", "late"), ("d", "x")]


def test_without_int8_there_is_fp32_to_show() -> None:
    found = Report(
        accuracy=Accuracy(
            images=9, models={"fp32": Right(top1=0.5)}, per_class=(ClassRow(name="a", images=9),)
        ),
        size=Size(fp32_bytes=2_000_000),
    )
    tiles = [(tile.title, tile.before, tile.after, tile.note) for tile in view.tiles(found)]
    assert tiles == [("Top-1 accuracy", "", "50.0%", "FP32"), ("File size", "", "2.00 MB", "FP32")]
    assert found.accuracy
    assert sentences.no_matrix(found.accuracy) == ""
    right = Accuracy(images=9, models={"fp32": Right(right=7, low=0.45, high=0.93)})
    assert sentences.drop_sentence(right) == "Of 9 test inputs, FP32 gets 7 right (95%: 45.00 to 93.00%)."


def test_the_most_confused_come_first() -> None:
    pairs = [Pair(truth=str(count), predicted="x", int8=count) for count in (9, 3, 1)]
    assert view.confused(Report(accuracy=Accuracy(confused=tuple(pairs))), most=2) == pairs[:2]
    assert view.confused(Report()) == []


def test_the_flips_are_counted_not_those_that_are_listed() -> None:
    flips = tuple(Flip(path=str(index)) for index in range(50))
    assert view.flipped(Comparison(images=600, agreed=480, flips=flips)) == 120
    assert view.flipped(Comparison(images=600, flips=flips)) == 50
    assert view.flipped(Comparison(images=600, agreed=600)) == 0


def test_no_matrix_says_why() -> None:
    rows = tuple(ClassRow(name=str(label)) for label in range(1000))
    assert sentences.no_matrix(Accuracy(per_class=rows)) == (
        "A confusion matrix of 1,000 classes would be unreadable, so none is drawn."
    )
    some = Confusion(int8=((0,) * 30,) * 30)
    assert sentences.no_matrix(Accuracy(confusion=some)).endswith("none is drawn; report.json holds it.")
    assert sentences.no_matrix(Accuracy(confusion=Confusion(int8=((1,),)))) == ""
    assert "missing" in sentences.no_matrix(Accuracy(per_class=rows[:3]))


@pytest.mark.parametrize(("rendering", "precision", "said"), [
    ("cpu", "FP32", "1 of 2 operations run in INT8; in float: 1 Softmax."),
    ("weak", "float (FP16 in the engine)", "1 of 2 operations are planned in INT8; "
     "in float (FP16 in the engine): 1 Softmax. TensorRT decides when it builds the engine on the device."),
    ("strong", "FP32", "1 of 2 operations are planned in INT8; in float: 1 Softmax."),
])  # fmt: skip
def test_layers_of_an_engine_that_is_to_be_built_are_a_plan(
    rendering: str, precision: str, said: str
) -> None:
    layers = (Layer(op="Conv", precision="INT8"), Layer(op="Softmax", precision="FP32"))
    report = Report(profile=Target(rendering=rendering), layers=layers)
    assert [view.precision(layer, report) for layer in layers] == ["INT8", precision]
    assert sentences.layer_sentence(report) == said


def test_few_classes_keep_their_order_and_of_many_the_worst_stand() -> None:
    rows = [ClassRow(name=str(i), images=10, fp32=9, int8=i % 10) for i in range(40)]
    assert view.worst_classes(rows[:20]) == rows[:20]
    worst = view.worst_classes(rows)
    assert len(worst) == 20
    assert [row.int8 for row in worst] == sorted(row.int8 or 0 for row in rows)[:20]
    poor = [
        ClassRow(name="hard", images=10, fp32=1, int8=1),
        ClassRow(name="lost", images=10, fp32=10, int8=8),
    ]
    kept = [ClassRow(name=str(i), images=10, fp32=9, int8=9) for i in range(30)]
    assert [row.name for row in view.worst_classes([*kept, *poor])[:2]] == ["lost", "hard"]


def test_a_class_without_images_is_not_among_the_worst() -> None:
    rows = [ClassRow(name=str(i), images=10 * (i % 2), fp32=9 * (i % 2), int8=8 * (i % 2)) for i in range(60)]
    worst = view.worst_classes(rows)
    assert len(worst) == 20
    assert all(row.images for row in worst)
    assert sentences.classes_sentence(rows, worst) == (
        "the 20 of 30 classes with test inputs that lose most from FP32 to INT8"
    )
    few = view.worst_classes(rows[:30])
    assert sentences.classes_sentence(rows[:30], few) == "the 15 of 30 classes with test inputs"
    full = [row.model_copy(update={"images": 10}) for row in rows]
    assert sentences.classes_sentence(full, view.worst_classes(full)) == (
        "the 20 of 60 classes that lose most from FP32 to INT8"
    )
    assert sentences.classes_sentence(rows[:20], view.worst_classes(rows[:20])) == ""


def test_tiles_show_what_is_known(samples: Samples) -> None:
    titles = [tile.title for tile in view.tiles(read_report(samples["jetson"]()))]
    assert titles == ["Top-1 accuracy", "Agreement", "File size"]
    assert view.tiles(Report()) == []
    latency = view.tiles(read_report(samples["failed"]()))[2]
    assert latency.before == "0.513"
    assert latency.note.endswith("not to be trusted")


def test_a_drop_is_a_change_below_zero(samples: Samples) -> None:
    report = samples["quickstart"]()
    report["accuracy"]["drop"] |= {"points": 0.28, "low": -0.2, "high": 0.8}
    assert view.comparison(read_report(report))[0].change == "−0.28 points (−0.80 to 0.20)"


def test_sentences_say_it_in_full() -> None:
    transfer = Transfer(images=360, split="test", pretrained_top1=0.99, scratch_top1=0.953)
    assert sentences.transfer_sentence(transfer) == (
        "Starting from pretrained weights, the network reaches 99.0% on 360 test inputs; from random "
        "weights, with the same budget, 95.3%. Transfer bought 3.70 points."
    )
    ours = [Epoch(epoch=i, val_top1=v) for i, v in enumerate((0.5, 0.985, 0.99), 1)]
    bare = [Epoch(epoch=i, val_top1=v) for i, v in enumerate((0.1, None, 0.6, 0.95), 1)]
    curves = transfer.model_copy(update={"epochs_pretrained": tuple(ours), "epochs_scratch": tuple(bare)})
    assert sentences.transfer_sentence(curves).endswith(
        " It came within a point of 95.0% validation accuracy after 2 epochs, from scratch after 4."
    )
    gate = Gate(name="latency_p50_ms", why="no engine was built here")
    assert (
        sentences.no_latency(Report(gates=(gate,))) == "Latency was not measured: no engine was built here."
    )


def test_commands_are_told_from_sentences(samples: Samples) -> None:
    steps = samples["jetson"]()["left_to_do"]
    assert [view.is_command(step) for step in steps] == [False, True, True, False]


def test_splits_stand_in_the_order_of_their_use() -> None:
    data = Data(counts={"test": {}, "extra": {}, "train": {}, "val": {}})
    assert list(view.splits(data)) == ["train", "val", "test", "extra"]


@pytest.mark.parametrize(("text", "shown"), [
    ("plain", "plain"), ("名前 é 🙂", "名前 é 🙂"), ("می\u200cخواهم", "می\u200cخواهم"),
    ("a\u00a0b", "a\u00a0b"),
    ("a\tb\n", r"a\tb\n"), ("\x1b[0m", r"\x1b[0m"), ("\u202e\u2066", r"\u202e\u2066"), ("\udcff", r"\udcff"),
    ("\u2028\ufffe", r"\u2028\ufffe"),
])  # fmt: skip
def test_visible(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.text(st.characters(exclude_categories=())))
def test_visible_text_can_always_be_written(text: str) -> None:
    shown = visible(text)
    assert shown.encode().decode() == shown
    assert visible(shown) == shown


def test_a_newer_report_is_refused_with_a_way_out() -> None:
    with pytest.raises(ArtifactError, match="schema_version 7") as caught:
        read_report({"schema_version": 7})
    assert "edgetune that wrote it" in caught.value.hint
