"""Gates: every limit has a row, the point value decides, the interval doubts, what is missing says why."""

import copy
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from edgetune.errors import EdgetuneError
from edgetune.latency.protocol import PRESETS
from edgetune.recipe import Gates
from edgetune.report.gate_rows import ENGINE_GATES, GATES, Row, Value
from edgetune.report.gates import (
    EXIT_FAILED,
    FEWEST_SAMPLES,
    P99_QUERIES,
    GateResult,
    exit_code,
    judge,
    verdict,
)
from edgetune.report.schema import Gate

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
    "engine_agreement_percent_min": Value(99.5, 98.2, 99.9),
    "energy_mj": Value(12.0, 11.5, 12.5),
}
# The same of the engines, where a gate holds for both.
ON_DEVICE = {
    "top1_drop_points": Value(0.75, -0.1, 2.0),
    "top1_percent_min": Value(96.0, 93.5, 97.6),
    "latency_p50_ms": Value(1.1, 1.0, 1.2),
    "latency_p99_ms": Value(1.4, 1.3, 1.6),
    "speedup_min": Value(2.1, 2.0, 2.2),
    "memory_mb": Value(9.5),
    "size_mb": Value(2.75),
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
        "device": device(),
    }  # fmt: skip


def device() -> dict[str, Any]:
    model = {"p50_ms": 1.1, "p50_low_ms": 1.0, "p50_high_ms": 1.2, "count": 5000}
    tail = {"p99_ms": 1.4, "p99_low_ms": 1.3, "p99_high_ms": 1.6}
    return {
        "engines": {"int8": {
            "samples": 400, "agreement": 0.995, "agreement_low": 0.982, "agreement_high": 0.999, "memory_mb": 9.5,
            "plan_bytes": 2_750_000,
            "accuracy": {"images": 400, "top1": 0.96, "low": 0.935, "high": 0.976},
        }},
        "drop_from_fp32": {"points": 0.75, "low": -0.1, "high": 2.0},
        "timing": {"copies": {
            "models": {"int8": model | tail}, "speedup": {"value": 2.1, "low": 2.0, "high": 2.2},
            "trusted": True, "why": "", "energy_why": "",
            "energy": {"int8": {"mj": 12.0, "low": 11.5, "high": 12.5, "estimated": False}},
        }},
        "errors": {},
    }  # fmt: skip


def here() -> dict[str, Any]:
    return _without("device")


def only(**limits: float) -> Gates:
    return Gates(**(OFF | limits))


def drop(points: float, low: float, high: float) -> GateResult:
    found = here() | {"accuracy": {"drop": {"points": points, "low": low, "high": high}}}
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
        found = judge(only(**{name: 1.0}), here() | absent if absent else _without(row.part))[0]
        assert (found.status, found.value, found.uncertain) == ("not judged", None, False)
        assert found.why
    found = judge(only(**{name: 1.0}), _without(row.part), why_not={row.part: "run it on the device"})[0]
    assert found.why == "run it on the device"


def _without(part: str) -> dict[str, Any]:
    return {name: value for name, value in measures().items() if name not in (part, "device")}


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
        # Of a bundle alone, the engines are judged; a device without measures is none.
        there = bool(hole.get("device"))
        assert len(results) == len(GATES) + there * (len(ENGINE_GATES) - _replaced(hole))
        assert all(gate.why for gate in results if gate.status == "not judged")


def _replaced(found: dict[str, Any]) -> int:
    return 0 if found.get("latency") else sum(GATES[name].part == "latency" for name in ENGINE_GATES)


def test_an_untrusted_timing_judges_no_latency_but_memory() -> None:
    found = here()
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
    found = here()
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
    found = here()
    for percent in range(101):
        found["parity"]["int8_vs_fp32"]["agreement"] = percent / 100
        assert judge(only(int8_agreement_percent_min=float(percent)), found)[0].status == "pass", percent


def test_nothing_is_judged_that_nobody_limits() -> None:
    assert judge(only(), measures()) == []
    assert [gate.name for gate in judge(Gates(), here())] == [
        "top1_drop_points", "fp32_difference", "int8_cosine_min", "int8_agreement_percent_min",
    ]  # fmt: skip


def test_verdict_of_a_good_run() -> None:
    results = judge(Gates(), here())
    assert verdict(results, measures=here()) == {
        "status": "uncertain",
        "sentence": "INT8 keeps 97.0% of 97.5% top-1 on 200 inputs and is 1.9x faster on this CPU; "
        "all 4 gates passed, 1 uncertain.",
    }
    assert exit_code(results, strict=True) == 0


def test_verdict_of_a_failed_run() -> None:
    results = judge(only(top1_drop_points=0.1, size_mb=3.0), here())
    found = verdict(results, measures=here())
    assert found["status"] == "fail"
    assert "1 of 2 judged gates failed (top-1 drop, FP32 to INT8), 1 uncertain." in found["sentence"]
    assert exit_code(results) == EXIT_FAILED


def test_verdict_with_a_gate_for_the_device() -> None:
    results = judge(
        only(latency_p50_ms=5.0, size_mb=3.0), _without("latency"),
        why_not={"latency": "no engine was built here: run it on the device"},
    )  # fmt: skip
    assert verdict(results, measures=_without("latency"))["sentence"] == (
        "INT8 keeps 97.0% of 97.5% top-1 on 200 inputs; the one judged gate passed, 1 not judged."
    )
    assert (exit_code(results), exit_code(results, strict=True)) == (0, EXIT_FAILED)
    strict = verdict(results, strict=True)
    assert strict["status"] == "fail"
    assert "--strict" in strict["sentence"]


def test_without_int8_all_but_fp32_is_not_judged_and_says_why() -> None:
    found = here()
    found["parity"].pop("int8_vs_fp32")
    found["accuracy"] = {"images": 200, "models": {"fp32": {"top1": 0.975}}}
    found["size"], found["latency"] = {}, None
    whys = {"latency": "no engine was built here"}
    for more in ({}, {"device": device() | {"engines": {"fp16": {"samples": 400}}, "drop_from_fp32": None}}):
        results = judge(
            Gates(**dict.fromkeys(OFF, 1.0)), found | more, why_not=whys, no_int8="it has no INT8 path"
        )
        states = {gate.name: gate.status for gate in results}
        assert states.pop("fp32_difference") == "pass"
        assert set(states.values()) == {"not judged"}
        assert {gate.why for gate in results} == {"", "it has no INT8 path"}
    said = verdict(judge(Gates(), found, no_int8="it has none"), measures=found)
    assert said["status"] == "pass"
    assert said["sentence"].startswith("FP32 gets 97.5% top-1 on 200 inputs; the one judged gate passed")


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
    found = here()
    found["latency"] |= {"speedup": {"value": value, "low": low, "high": high}, "trusted": trusted}
    assert said in verdict(judge(Gates(), found), measures=found)["sentence"]


def test_less_than_all_is_never_a_hundred() -> None:
    found = copy.deepcopy(here())
    found["accuracy"]["models"] = {"fp32": {"top1": 1.0}, "int8": {"top1": 0.99999}}
    assert "keeps 99.9% of 100.0%" in verdict([], measures=found)["sentence"]


def test_the_exit_code_of_a_failed_gate_is_no_error_s() -> None:
    assert EXIT_FAILED not in {kind.exit_code for kind in EdgetuneError.__subclasses__()}


@pytest.mark.parametrize("row", [*GATES.values(), *ENGINE_GATES.values()])
def test_titles_are_plain(row: Row) -> None:
    assert re.fullmatch(r"[\w ,-]+", row.title)


@pytest.mark.parametrize("name", ENGINE_GATES)
def test_every_row_of_the_engines_finds_its_value(name: str) -> None:
    value, row = ON_DEVICE[name], ENGINE_GATES[name]
    assert row.fetch(measures()) == value
    assert (row.unit, row.direction) == (GATES[name].unit, GATES[name].direction)
    sign = 1 if row.direction == "max" else -1
    for step, status in ((1e-3, "pass"), (-1e-3, "fail")):
        found = {gate.name: gate for gate in judge(only(**{name: value.value + sign * step}), measures())}
        assert found[f"engine_{name}"].status == status
        assert name in found, "what was measured here is still judged"


def test_engines_take_the_place_of_what_was_not_timed_here() -> None:
    found = {name: value for name, value in measures().items() if name != "latency"}
    limits = {
        "latency_p99_ms": 9.0,
        "speedup_min": 1.5,
        "memory_mb": 20.0,
        "top1_drop_points": 1.0,
        "size_mb": 9.0,
    }
    assert [gate.name for gate in judge(only(**limits), found)] == [
        "top1_drop_points", "engine_top1_drop_points", "engine_latency_p99_ms", "engine_speedup_min",
        "engine_memory_mb", "size_mb", "engine_size_mb",
    ]  # fmt: skip


def test_a_bundle_alone_is_judged_by_its_engines() -> None:
    names = [gate.name for gate in judge(Gates(latency_p50_ms=2.0), {"device": device()})]
    assert names == ["engine_top1_drop_points", "engine_latency_p50_ms", "engine_agreement_percent_min"]


def test_what_nobody_asked_for_waits_for_a_device() -> None:
    assert "engine_agreement_percent_min" not in [gate.name for gate in judge(Gates(), here())]
    asked = judge(only(engine_agreement_percent_min=98.0, energy_mj=3.0), here())
    assert [gate.status for gate in asked] == ["not judged", "not judged"]
    assert all("edgetune verify" in gate.why for gate in asked)


Change = Callable[[dict[str, Any]], Any]


def _int8(**change: Any) -> Change:
    return lambda found: found["engines"]["int8"].update(change)


def _copies(**change: Any) -> Change:
    return lambda found: found["timing"]["copies"].update(change)


@pytest.mark.parametrize(("gate", "change", "why"), [
    ("engine_agreement_percent_min", _int8(samples=FEWEST_SAMPLES - 1), "99 samples compared, and fewer than 100"),
    ("engine_top1_drop_points", _int8(accuracy={"images": 12}), "12 labelled samples compared"),
    ("engine_top1_percent_min", _int8(accuracy=None), "0 labelled samples compared"),
    ("engine_agreement_percent_min", lambda f: (_int8(samples=0)(f), f["errors"].update(
        {"compare-int8": {"message": "the GPU fell off"}})), "compare-int8 failed on the device: the GPU fell off"),
    ("engine_latency_p50_ms", lambda f: f["engines"].clear(), "no INT8 engine"),
    ("engine_latency_p50_ms", lambda f: f["timing"].clear(), "the engines were not timed"),
    ("engine_speedup_min", _copies(trusted=False, why="int8: the median drifted"), "the median drifted"),
    ("energy_mj", _copies(trusted=False, why="int8: the median drifted"), "the median drifted"),
    ("engine_latency_p99_ms", _copies(models={"int8": {"count": 661}}), "at least 662 queries"),
    ("engine_memory_mb", _int8(memory_mb=None), "does not tell"),
    ("engine_size_mb", _int8(plan_bytes=None), "not measured"),
    ("energy_mj", _copies(energy={}, energy_why="no power rails were read on the device"), "no power rails"),
    ("energy_mj", _copies(energy={"int8": {"mj": 1.0, "estimated": True}}), "only be estimated"),
])  # fmt: skip
def test_what_a_device_does_not_tell_is_not_judged(gate: str, change: Change, why: str) -> None:
    there = device()
    change(there)
    limits = Gates(**dict.fromkeys(Gates.model_fields, 1.0))
    found = {result.name: result for result in judge(limits, {"device": there})}[gate]
    assert (found.status, found.value) == ("not judged", None)
    assert why in found.why


def test_the_verdict_tells_of_the_device() -> None:
    found = measures()
    said = verdict(judge(Gates(), found), measures=found)["sentence"]
    assert "is 1.9x faster on this CPU and is 2.1x faster than FP16 on the device" in said


ESTIMATE = {
    "ms": 4.0,
    "low_ms": 3.2,
    "high_ms": 5.2,
    "engine_mb": 2.0,
    "activations_mb": 1.5,
    "basis": "related",
}


def estimated(**limits: float) -> dict[str, Any]:
    found = {name: value for name, value in here().items() if name != "latency"} | {"estimate": ESTIMATE}
    return {gate.name: gate for gate in judge(only(**limits), found)}


@pytest.mark.parametrize(
    ("limit", "label"),
    [(6.0, "pass (estimated)"), (4.5, "pass (uncertain, estimated)"), (3.0, "fail (estimated)")],
)
def test_an_estimate_is_held_against_a_limit_and_marked(limit: float, label: str) -> None:
    gate = estimated(latency_p50_ms=limit)["estimated_latency_p50_ms"]
    assert (gate.label, gate.value, gate.low, gate.high) == (label, 4.0, 3.2, 5.2)
    assert "estimated, not measured, from published measurements of other modules" in gate.why
    shown = Gate.model_validate(gate.model_dump(mode="json"))
    assert shown.label == label
    assert shown.mark != "pass", "an estimate is never a plain pass"


def test_memory_is_estimated_and_p99_is_not() -> None:
    found = estimated(memory_mb=3.0, latency_p99_ms=9.0)
    assert found["estimated_memory_mb"].label == "fail (estimated)"
    assert found["latency_p99_ms"].status == "not judged"


def test_a_verdict_counts_estimates_and_is_no_plain_pass() -> None:
    results = list(estimated(latency_p50_ms=6.0, size_mb=3.0).values())
    said = verdict(results)
    assert said["status"] == "uncertain"
    assert said["sentence"] == "All 2 gates passed, 1 by an estimate."
    assert exit_code(results, strict=True) == 0


def test_why_there_is_no_estimate_is_said() -> None:
    found = {"estimate": {"why_not": "its profile does not state clocks"}}
    (gate,) = judge(only(latency_p50_ms=6.0), found)
    assert (gate.label, gate.why) == ("not judged", "there is no estimate: its profile does not state clocks")


def test_a_measurement_takes_the_place_of_an_estimate() -> None:
    both = measures() | {"estimate": ESTIMATE}
    assert not [gate for gate in judge(only(latency_p50_ms=6.0), both) if gate.estimated]
    timed_here = here() | {"estimate": ESTIMATE}
    assert [gate.name for gate in judge(only(latency_p50_ms=6.0), timed_here)] == ["latency_p50_ms"]
