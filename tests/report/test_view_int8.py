"""How INT8 was made: which layers stand out, what each correction brought, and the sentences about it."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.report import sentences, view_int8, wording
from edgetune.report.schema import Accuracy, Drop, Report, Right, read_report
from edgetune.report.schema_int8 import Calibration, Layer, Quantization, Rung, Settling

Samples = dict[str, Callable[[], dict[str, Any]]]

LADDER = (
    Rung(rung="ranges", kept=True, seconds=0.0, sqnr_db=20.0, agreement_expected=0.9),
    Rung(rung="bias", kept=False, seconds=2.0, sqnr_db=19.0, agreement_expected=0.9),
    Rung(rung="rounding", kept=True, seconds=70.0, sqnr_db=23.5, agreement_expected=0.95, why="told"),
    Rung(rung="training", kept=False, seconds=0.0, why="torch has no Einsum"),
)


def conv(name: str, sqnr: float | None = None, **more: Any) -> Layer:
    return Layer(name=name, op="Conv", precision=more.pop("precision", "INT8"), sqnr_db=sqnr, **more)


def test_each_correction_is_held_against_the_best_before_it() -> None:
    rows = view_int8.ladder_rows(Quantization(ladder=LADDER))
    assert [(row.title, row.outcome, row.gain, row.time) for row in rows] == [
        ("ranges alone", "start", "", wording.NONE),
        ("bias correction", "dropped", "−1.0 dB", "2.0 s"),
        ("rounding (AdaRound)", "kept", "+3.5 dB", "1 min 10 s"),
        ("training (QAT)", "not tried", "", wording.NONE),
    ]
    assert [row.what for row in rows][2:] == ["told", "torch has no Einsum"]
    assert [row.agreement for row in rows] == ["90.0%", "90.0%", "95.0%", wording.NONE]


def test_of_many_layers_left_in_float_the_first_are_named() -> None:
    for count, said in ((3, "in float: n0, n1, n2"), (5, "in float: n0, n1, n2 and 2 more")):
        why = f"in float: {', '.join(f'n{index}' for index in range(count))}"
        mixed = Quantization(ladder=(Rung(rung="mixed", sqnr_db=1.0, why=why),))
        assert view_int8.ladder_rows(mixed)[0].what == said
    told = Quantization(ladder=(Rung(rung="bias", why="a, b, c, d"),))
    assert view_int8.ladder_rows(told)[0].what == "a, b, c, d"


def test_every_rung_of_the_ladder_has_words() -> None:
    from edgetune.quant.ladder import ATTENTION, RUNGS

    assert {"ranges", ATTENTION, *RUNGS} == set(view_int8.RUNGS)


@pytest.mark.parametrize(("made", "said"), [
    (Quantization(), ""),
    (Quantization(method="plain"), "Corrections were not asked for (quantize.method: plain)."),
    (Quantization(method="auto", ladder=LADDER[:1]),
     "Ranges alone met the limits on held-out training inputs, so nothing was corrected."),
    (Quantization(method="best", held_images=32, seconds=80.0, ladder=LADDER),
     "1 of 3 corrections helped on 32 held-out training inputs and was kept: signal to noise "
     "went from 20.0 dB to 23.5 dB; quantizing took 1 min 20 s."),
    (Quantization(method="best", ladder=LADDER[:2]), "None of 1 correction helped."),
])  # fmt: skip
def test_corrections_in_a_sentence(made: Quantization, said: str) -> None:
    assert sentences.ladder_sentence(made) == said


def test_the_worst_layers_are_those_furthest_from_fp32() -> None:
    layers = [conv("a", 30.0, operations=3), conv("b", 12.0, operations=1, gain_db=0.4), conv("c", 200.0),
              conv("d", precision="FP32"), Layer(name="e", op="Softmax", precision="FP32")]  # fmt: skip
    assert [layer.name for layer in view_int8.worst_layers(layers)] == ["b", "a"]
    assert [layer.name for layer in view_int8.measured(layers)] == ["a", "b", "c", "d"]
    assert view_int8.measured(layers[3:]) == []
    assert [tuple(row) for row in view_int8.layer_rows(layers)] == [
        ("b", "Conv", "12.0 dB", "25.0%", "+0.4 dB"), ("a", "Conv", "30.0 dB", "75.0%", None),
    ]  # fmt: skip
    assert view_int8.decibels(layers[2].sqnr_db) == "no error"
    assert "Lowest: b, 12.0 dB." in sentences.noise_sentence(Report(layers=tuple(layers)))
    assert sentences.noise_sentence(Report(layers=tuple(layers[2:]))) == ""


@pytest.mark.parametrize(("name", "short"), [
    ("/features/features.2/conv/conv.1/conv.1.0/Conv", "features.2/conv.1.0"),
    ("/layer1/layer1.0/conv1/Conv", "layer1.0/conv1"),
    ("/blocks.0/attn/Conv_3", "blocks.0/attn/Conv_3"),
    ("Conv", "Conv"), ("/Conv", "Conv"), ("", ""), ("conv", "conv"),
])  # fmt: skip
def test_paths_are_shortened(name: str, short: str) -> None:
    assert view_int8.short_name(conv(name)) == short


def test_folders_that_all_layers_share_are_left_out() -> None:
    layers = [conv(f"/net/body/{name}/Conv") for name in ("a/one", "a/two", "b")]
    assert view_int8.short_names(layers) == ["a/one", "a/two", "b"]
    assert view_int8.short_names(layers[:2]) == ["one", "two"]
    assert view_int8.short_names(layers[:1]) == ["one"]
    assert view_int8.short_names([]) == []


@given(st.text())
def test_no_layer_loses_its_name(name: str) -> None:
    assert bool(view_int8.short_name(conv(name))) == bool(name)


@given(st.floats(-300, 300))
def test_a_change_has_a_sign_and_nothing_is_plus(value: float) -> None:
    text = view_int8.difference(value, 0.0)
    assert text[0] in ("+", wording.MINUS)
    assert float(text.removesuffix(" dB").replace(wording.MINUS, "-")) == pytest.approx(value, abs=0.051)


def test_ranges_in_a_sentence() -> None:
    steps = tuple(
        Settling(images=n, median=d / 2, p95=d) for n, d in ((1, 0.4), (2, 0.04), (4, 0.02), (8, 0))
    )
    found = Calibration(images=8, ranges="minmax", convergence=steps, enough_images=2)
    assert sentences.calibration_sentence(found) == (
        "Ranges come from 8 training inputs, by minmax. 2 were enough: from there on, 95 of 100 scales stayed "
        "within 4.0% of the final ones."
    )
    unsettled = found.model_copy(update={"enough_images": None})
    assert sentences.calibration_sentence(unsettled).endswith("by minmax.")
    assert sentences.calibration_sentence(found.model_copy(update={"convergence": ()})).endswith("by minmax.")
    assert view_int8.settling_rows(steps)[1] == ("2", "2.0%", "4.0%")


def test_the_drop_names_its_test_and_confidence_its_measure() -> None:
    drop = Drop(points=1.25, low=-0.1, high=2.5, p_value=0.125, worse=7, better=2)
    models = {"fp32": Right(ece=0.02), "int8": Right(ece=0.031, confidence=0.97, top1=0.942)}
    found = Accuracy(images=400, drop=drop, models=models)
    assert sentences.drop_sentence(found) == (
        "Of 400 test inputs, INT8 gets 7 wrong that FP32 gets right, and 2 right that FP32 gets wrong: a drop of "
        "1.25 points (95%: −0.10 to 2.50). McNemar's exact test: p = 0.12, how likely chance alone brings a "
        "difference this large."
    )
    assert sentences.confidence_sentence(found) == (
        "Expected calibration error (how far confidence lies from accuracy, mean over 15 bins): 2.0% with FP32, "
        "3.1% with INT8. INT8 is 97.0% sure on average, and right in 94.2%."
    )
    assert sentences.drop_sentence(Accuracy()) == sentences.confidence_sentence(Accuracy()) == ""


def test_a_report_shows_what_the_samples_know(samples: Samples) -> None:
    known = {name: read_report(make()) for name, make in samples.items()}
    assert view_int8.worst_layers(known["jetson"].layers) == []
    assert len(view_int8.worst_layers(known["quickstart"].layers)) == view_int8.WORST
    assert sum(map(view_int8.is_float, known["failed"].layers)) == 3
