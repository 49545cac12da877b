"""Gates: every limit has a row, the point value decides, the interval doubts, what is missing says why."""

import copy
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from edgetune.errors import EdgetuneError
from edgetune.latency.protocol import PRESETS
from edgetune.recipe import Gates
from edgetune.report.gate_rows import GATES, Row, Value
from edgetune.report.gates import (
    EXIT_FAILED,
    P99_QUERIES,
    GateResult,
    exit_code,
    judge,
    verdict,
)

OFF = dict.fromkeys(Gates.model_fields)

# One wanted value per gate, in the gate's unit: what the measures below say.
EXPECTED = {
    "top1_drop_points": Value(0.5, -0.2, 1.8),
    "top1_percent_min": Value(97.0, 94.2, 98.5),
    "fp32_difference": Value(2e-6),
    "int8_cosine_min": Value(0.998, 0.997, 0.999),
    "int8_agreement_percent_min": Value(98.5, 96.1, 99.4),
    "latency_p50_ms": Value(4.0, 3.9, 4.2),
    "latency_p99_ms": Value(6.0, 5.5, 7.0),
    "speedup_min": Value(1.9, 1.8, 2.0),
    "memory_mb": Value(85.5),
    "size_mb": Value(2.5),
}


def measures() -> dict[str, Any]:
    model = {"p50_ms": 4.0, "p50_low_ms": 3.9, "p50_high_ms": 4.2, "peak_memory_mb": 85.5, "count": 720}
    tail = {"p99_ms": 6.0, "p99_low_ms": 5.5, "p99_high_ms": 7.0}
    return {
        "parity": {
            "fp32_vs_torch": {"difference_over_std": 2e-6},
            "int8_vs_fp32": {
                "cosine_mean": 0.998, "cosine_low": 0.997, "cosine_high": 0.999,
                "agreement": 0.985, "agreement_low": 0.961, "agreement_high": 0.994,
            },
        },
        "accuracy": {
            "images": 200,
            "models": {
                "fp32": {"top1": 0.975, "low": 0.944, "high": 0.989},
                "int8": {"top1": 0.97, "low": 0.942, "high": 0.985},
            },
            "drop": {"points": 0.5, "low": -0.2, "high": 1.8},
        },
        "latency": {
            "models": {"int8": model | tail}, "speedup": {"value": 1.9, "low": 1.8, "high": 2.0},
            "trusted": True, "why": "", "preset": "standard",
        },
        "size": {"int8_bytes": 2_500_000},
    }  # fmt: skip


def only(**limits: float) -> Gates:
    return Gates(**(OFF | limits))


def drop(points: float, low: float, high: float) -> GateResult:
    found = measures() | {"accuracy": {"drop": {"points": points, "low": low, "high": high}}}
    return judge(only(top1_drop_points=1.0), found)[0]


def test_every_limit_has_a_row_and_every_row_a_limit() -> None:
    assert list(GATES) == list(Gates.model_fields)


@pytest.mark.parametrize(("name", "row"), GATES.items())
def test_every_row_finds_its_value(name: str, row: Row) -> None:
    value = EXPECTED[name]
    assert row.fetch(measures()) == value
    good, bad = (
        (value.value + 1e-3, value.value - 1e-3)
        if row.direction == "max"
        else (value.value - 1e-3, value.value + 1e-3)
    )
    if name == "fp32_difference":
        good, bad = 1e-3, 1e-6
    passed, failed = (judge(only(**{name: limit}), measures())[0] for limit in (good, bad))
    assert (passed.status, failed.status) == ("pass", "fail")
    assert passed.name == name
    assert passed.title
    assert json.loads(passed.model_dump_json())["label"] == passed.label


@pytest.mark.parametrize("name", GATES)
def test_a_part_that_is_missing_is_not_judged_and_says_why(name: str) -> None:
    row = GATES[name]
    for absent in ({}, {row.part: None}):
        found = judge(only(**{name: 1.0}), measures() | absent if absent else _without(row.part))[0]
        assert (found.status, found.value, found.uncertain) == ("not judged", None, False)
        assert found.why
    found = judge(only(**{name: 1.0}), _without(row.part), why_not={row.part: "run it on the device"})[0]
    assert found.why == "run it on the device"


def _without(part: str) -> dict[str, Any]:
    return {name: value for name, value in measures().items() if name != part}


def _mutilated(value: Any) -> list[Any]:
    """Every way of leaving one inner key out."""
    if not isinstance(value, dict):
        return []
    ways = []
    for key in value:
        ways.append({name: inner for name, inner in value.items() if name != key})
        ways += [value | {key: inner} for inner in _mutilated(value[key])]
    return ways


def test_measures_with_a_hole_are_not_judged_and_never_a_crash() -> None:
    holes = _mutilated(measures())
    assert len(holes) > 30
    everything = Gates(**dict.fromkeys(Gates.model_fields, 1.0))
    for hole in holes:
        results = judge(everything, hole)
        assert len(results) == len(GATES)
        assert all(gate.why for gate in results if gate.status == "not judged")


def test_an_untrusted_timing_judges_no_latency_but_memory() -> None:
    found = measures()
    found["latency"] |= {"trusted": False, "why": "int8: the median drifted"}
    limits = {"latency_p50_ms": 1.0, "latency_p99_ms": 1.0, "speedup_min": 9.0, "memory_mb": 100.0}
    results = judge(only(**limits), found)
    assert [gate.status for gate in results] == ["not judged"] * 3 + ["pass"]
    assert "the median drifted" in results[0].why


@pytest.mark.parametrize(("count", "preset", "status", "way_out"), [
    (60, "quick", "not judged", "60 queries timed: set bench.preset: standard"),
    (661, "standard", "not judged", "661 queries fit into the time of bench.preset standard: judge"),
    (662, "quick", "pass", ""),
])  # fmt: skip
def test_a_p99_of_few_queries_is_not_judged(count: int, preset: str, status: str, way_out: str) -> None:
    found = measures()
    found["latency"]["preset"] = preset
    found["latency"]["models"]["int8"]["count"] = count
    p50, p99 = judge(only(latency_p50_ms=9.0, latency_p99_ms=9.0), found)
    assert (p50.status, p99.status) == ("pass", status)
    assert way_out in p99.why
    assert ("at least 662 queries (MLPerf inference rules)" in p99.why) is (status == "not judged")


def test_a_p99_needs_two_queries_beyond_it_with_confidence() -> None:
    assert binom.cdf(1, P99_QUERIES, 0.01) <= 0.01 < binom.cdf(1, P99_QUERIES - 1, 0.01)
    assert PRESETS["standard"].queries >= 700 > P99_QUERIES


@pytest.mark.parametrize(
    ("points", "low", "high", "label"),
    [
        (0.3, -0.2, 0.8, "pass"),
        (0.3, -0.8, 1.4, "pass (uncertain)"),
        (1.0, 1.0, 1.0, "pass"),
        (1.0, 0.5, 1.5, "pass (uncertain)"),
        (1.2, 0.4, 2.0, "fail (uncertain)"),
        (2.5, 1.2, 4.0, "fail"),
        (-0.5, -1.0, 0.5, "pass"),
    ],
)
def test_point_decides_and_interval_doubts(points: float, low: float, high: float, label: str) -> None:
    assert drop(points, low, high).label == label


@given(st.floats(-5, 5), st.floats(0, 3), st.floats(0, 3))
def test_uncertain_exactly_where_the_other_outcome_lies_inside(points: float, down: float, up: float) -> None:
    gate = drop(points, points - down, points + up)
    assert (gate.status == "pass") == (points <= 1.0)
    assert gate.uncertain == (points - down <= 1.0 < points + up)


def test_a_share_that_meets_its_limit_passes() -> None:
    found = measures()
    for percent in range(101):
        found["parity"]["int8_vs_fp32"]["agreement"] = percent / 100
        assert judge(only(int8_agreement_percent_min=float(percent)), found)[0].status == "pass", percent


def test_nothing_is_judged_that_nobody_limits() -> None:
    assert judge(only(), measures()) == []
    assert [gate.name for gate in judge(Gates(), measures())] == [
        "top1_drop_points", "fp32_difference", "int8_cosine_min", "int8_agreement_percent_min",
    ]  # fmt: skip


def test_verdict_of_a_good_run() -> None:
    results = judge(Gates(), measures())
    assert verdict(results, measures=measures()) == {
        "status": "uncertain",
        "sentence": "INT8 keeps 97.0% of 97.5% top-1 on 200 images and is 1.9x faster on this CPU; "
        "all 4 gates passed, 1 uncertain.",
    }
    assert exit_code(results, strict=True) == 0


def test_verdict_of_a_failed_run() -> None:
    results = judge(only(top1_drop_points=0.1, size_mb=3.0), measures())
    found = verdict(results, measures=measures())
    assert found["status"] == "fail"
    assert "1 of 2 judged gates failed (top-1 drop, FP32 to INT8), 1 uncertain." in found["sentence"]
    assert exit_code(results) == EXIT_FAILED


def test_verdict_with_a_gate_for_the_device() -> None:
    results = judge(
        only(latency_p50_ms=5.0, size_mb=3.0), _without("latency"),
        why_not={"latency": "no engine was built here: run it on the device"},
    )  # fmt: skip
    assert verdict(results, measures=_without("latency"))["sentence"] == (
        "INT8 keeps 97.0% of 97.5% top-1 on 200 images; the one judged gate passed, 1 not judged."
    )
    assert (exit_code(results), exit_code(results, strict=True)) == (0, EXIT_FAILED)
    strict = verdict(results, strict=True)
    assert strict["status"] == "fail"
    assert "--strict" in strict["sentence"]


def test_verdict_of_nothing() -> None:
    assert verdict([]) == {"status": "not judged", "sentence": "No gate was set."}
    assert exit_code([], strict=True) == 0
    unjudged = judge(Gates(), {})
    assert verdict(unjudged) == {"status": "not judged", "sentence": "No gate could be judged."}
    assert (exit_code(unjudged), exit_code(unjudged, strict=True)) == (0, EXIT_FAILED)


@pytest.mark.parametrize(
    ("value", "low", "high", "trusted", "said"),
    [
        (2.04, 1.9, 2.1, True, "is 2.0x faster on this CPU;"),
        (0.5, 0.4, 0.6, True, "is 2.0x slower on this CPU;"),
        (1.02, 0.97, 1.05, True, "is as fast as FP32 within the measurement on this CPU;"),
        (2.0, 1.9, 2.1, False, "is 2.0x faster (the timing is not to be trusted) on this CPU;"),
    ],
)
def test_speed_in_words(value: float, low: float, high: float, trusted: bool, said: str) -> None:
    found = measures()
    found["latency"] |= {"speedup": {"value": value, "low": low, "high": high}, "trusted": trusted}
    assert said in verdict(judge(Gates(), found), measures=found)["sentence"]


def test_less_than_all_is_never_a_hundred() -> None:
    found = copy.deepcopy(measures())
    found["accuracy"]["models"] = {"fp32": {"top1": 1.0}, "int8": {"top1": 0.99999}}
    assert "keeps 99.9% of 100.0%" in verdict([], measures=found)["sentence"]


def test_the_exit_code_of_a_failed_gate_is_no_error_s() -> None:
    assert EXIT_FAILED not in {kind.exit_code for kind in EdgetuneError.__subclasses__()}


@pytest.mark.parametrize("row", GATES.values())
def test_titles_are_plain(row: Row) -> None:
    assert re.fullmatch(r"[\w ,-]+", row.title)
