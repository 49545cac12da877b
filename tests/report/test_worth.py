"""Whose fault a loss is, and which engine wins: only where intervals allow it."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.recipe import Gates
from edgetune.report.worth import diagnosis, worth

Device = dict[str, Any]


def drop(points: float, half: float = 0.4, images: int = 2000) -> dict[str, Any]:
    return {"images": images, "points": points, "low": points - half, "high": points + half}


def device(
    agreement: float = 0.998,
    host: float = 0.2,
    engine: float = 0.2,
    speedup: float = 1.9,
    samples: int = 2000,
) -> Device:
    low, high = max(agreement - 0.004, 0), min(agreement + 0.001, 1)
    shares = {"agreement": agreement, "agreement_low": low, "agreement_high": high, "samples": samples}
    ratio = {"value": speedup, "low": speedup - 0.02, "high": speedup + 0.02}
    return {
        "engines": {"int8": shares, "fp16": shares | {"agreement": 1.0}},
        "host": {"agreement": 0.99, "drop": drop(host)},
        "drop": drop(engine),
        "timing": {"copies": {"speedup": ratio, "trusted": True, "why": ""}},
    }


def told(found: Device, gates: Gates | None = None) -> tuple[dict[str, str], dict[str, str]]:
    limits = gates or Gates()
    why = diagnosis(found, limits)
    return why, worth(found, limits, why)


@pytest.mark.parametrize(("agreement", "host", "status", "words"), [
    (0.998, 0.2, "fine", "The engine computes what ONNX Runtime does"),
    (0.998, 4.0, "model", "The quantized model is bad, not the runtime"),
    (0.90, 0.2, "runtime", "The runtime differs"),
    (0.90, 4.0, "both", "ONNX Runtime's INT8 is not good either"),
])  # fmt: skip
def test_a_bad_model_is_told_from_a_runtime_that_differs(
    agreement: float, host: float, status: str, words: str
) -> None:
    why, _ = told(device(agreement, host))
    assert why["status"] == status
    assert words in why["sentence"]
    assert ("FP16 engine agrees" in why["sentence"]) == (status in ("runtime", "both"))


def test_without_int8_fp16_is_what_runs_and_what_is_looked_at() -> None:
    found = device() | {"wanted": {"no_int8": "the Nano has no INT8 path"}, "host": None, "drop": None}
    del found["engines"]["int8"]
    why, said = told(found)
    assert said == {"winner": "fp16", "sentence": "No: the Nano has no INT8 path. FP16 is what runs there."}
    assert why["status"] == "fine"
    assert (
        "The engine computes what ONNX Runtime does: same class on 100.0% of 2,000 samples" in why["sentence"]
    )
    found["engines"]["fp16"] = device(0.9)["engines"]["int8"]
    why, said = told(found)
    assert (why["status"], said["winner"]) == ("runtime", "fp16")
    assert "the FP16 engine names the same class as ONNX Runtime on 90.0% of 2,000" in why["sentence"]
    assert why["sentence"].count("FP16") == 1


def test_a_difference_that_may_be_chance_says_so() -> None:
    assert "it may be chance" not in told(device(0.90))[0]["sentence"]
    found = device(0.9895)
    found["engines"]["int8"]["agreement_high"] = 0.996
    assert "it may be chance" in told(found)[0]["sentence"]


def test_without_labels_the_model_is_judged_by_fp32() -> None:
    found = device()
    found["host"] = {"agreement": 0.90, "drop": None}
    assert told(found)[0]["status"] == "model"
    found["host"] = {"agreement": 0.97, "drop": None}
    assert told(found)[0]["status"] == "fine"


@pytest.mark.parametrize("samples", [0, 99])
def test_few_samples_say_nothing(samples: int) -> None:
    why, _ = told(device(samples=samples))
    assert why["status"] == "not known"
    assert "it takes 100" in why["sentence"]


@pytest.mark.parametrize(("change", "winner", "words"), [
    ({}, "int8", "Yes, INT8 is worth it here. INT8 is 1.90× as fast as FP16 (1.88 to 1.92×), and loses 0.20 points"),
    ({"engine": -0.3}, "int8", "gains 0.30 points of accuracy"),
    ({"engine": 0.0}, "int8", "loses no accuracy"),
    ({"speedup": 0.8}, "fp16", "INT8 is not faster here"),
    ({"speedup": 1.01}, "fp16", "INT8 is not faster here"),
    ({"engine": 3.0}, "fp16", "INT8 loses too much accuracy"),
    ({"engine": 0.8}, "undecided", "takes more labelled samples"),
    ({"agreement": 0.9}, "undecided", "Not before the runtime's difference is found"),
])  # fmt: skip
def test_a_winner_only_where_intervals_allow(change: dict[str, float], winner: str, words: str) -> None:
    _, found = told(device(**change))
    assert found["winner"] == winner, found
    assert words in found["sentence"]


def _without(*places: str) -> Device:
    found = copy.deepcopy(device())
    for place in places:
        inner = found
        *path, last = place.split(".")
        for key in path:
            inner = inner[key]
        inner[last] = None
    return found


@pytest.mark.parametrize(("found", "words"), [
    (_without("drop"), "no labelled sample says what accuracy it costs"),
    (_without("timing.copies"), "was not timed against FP16"),
    (_without("timing.copies.speedup"), "was not timed against FP16"),
    (device() | {"drop": drop(0.0, images=50)}, "fewer than 100 decide nothing"),
    (device() | {"timing": {"copies": device()["timing"]["copies"] | {"trusted": False}}}, "not to be trusted"),
    ({}, "was not timed"),
])  # fmt: skip
def test_what_was_not_measured_names_no_winner(found: Device, words: str) -> None:
    assert told(found)[1]["winner"] == "undecided"
    assert words in told(found)[1]["sentence"]


@given(st.floats(0.5, 3), st.floats(0, 1), st.floats(-3, 3), st.floats(0.01, 3))
def test_a_winner_has_its_whole_intervals_on_one_side(
    speedup: float, spread: float, points: float, half: float
) -> None:
    found = device()
    found["timing"]["copies"]["speedup"] = {
        "value": speedup,
        "low": speedup - spread,
        "high": speedup + spread,
    }
    found["drop"] = drop(points, half)
    winner = told(found)[1]["winner"]
    if winner == "int8":
        assert speedup - spread > 1
        assert points + half <= 1.0
    elif winner == "fp16":
        assert speedup + spread < 1.05 or points - half > 1.0
    else:
        assert speedup - spread <= 1 or points + half > 1.0


def test_the_recipe_says_how_much_may_be_lost() -> None:
    found = device(host=1.5, engine=1.5)
    assert told(found)[0]["status"] == "model"
    strict, lax = Gates(top1_drop_points=0.5), Gates(top1_drop_points=3.0)
    assert told(found, strict)[1]["winner"] == "fp16"
    assert told(found, lax)[1]["winner"] == "int8"
    assert told(found, lax)[0]["status"] == "fine"
