"""Holds measures against limits, and puts the outcome into one sentence.

The point value decides: at the limit or on its good side passes, beyond it fails. Where the value's interval
(95%) has the limit inside, the same few images could have said the opposite: the outcome stands and is marked
uncertain. What was not measured, or was measured with too much spread, is "not judged", with the reason.
It knows nothing of how anything was measured. It may import recipe.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import computed_field

from edgetune.recipe import Gates, Section

Measures = Mapping[str, Any]
Status = Literal["pass", "fail", "not judged"]

EXIT_FAILED = 7
# Queries that a 99th percentile needs: the fewest for which, with confidence 0.99, at least two queries lie
# beyond it (MLPerf inference rules, early stopping).
P99_QUERIES = 662
NOT_MEASURED = {
    "parity": "parity was not checked",
    "accuracy": "accuracy was not checked",
    "latency": "latency was not measured",
    "size": "there is no INT8 file",
}


class Value(NamedTuple):
    """A measured value and the ends of its interval, if it has one, in the gate's unit."""

    value: float
    low: float | None = None
    high: float | None = None


class Row(NamedTuple):
    """How a gate reads.

    Attributes:
        title: for people.
        unit: of value and limit; empty for pure numbers.
        direction: the limit is a `max` or a `min`.
        part: of the measures, without which it cannot be judged.
        fetch: takes the value from the measures; None, or a missing key, where it is not there.
    """

    title: str
    unit: str
    direction: Literal["max", "min"]
    part: str
    fetch: Callable[[Measures], Value | None]


class GateResult(Section):
    """A gate, judged."""

    name: str
    title: str
    value: float | None
    limit: float
    direction: Literal["max", "min"]
    unit: str
    low: float | None
    high: float | None
    status: Status
    uncertain: bool
    why: str

    @computed_field  # type: ignore[prop-decorator]
    @property
    def label(self) -> str:
        """The status in full: `pass (uncertain)`."""
        return f"{self.status} (uncertain)" if self.uncertain else self.status


def _share(part: Mapping[str, Any], key: str, low: str, high: str) -> Value:
    # Rounded, because 100 * 0.57 is a hair below 57 and a limit of 57 is met.
    return Value(*(round(100 * part[name], 9) for name in (key, low, high)))


def _drop(measures: Measures) -> Value:
    drop = measures["accuracy"]["drop"]
    return Value(drop["points"], drop["low"], drop["high"])


def _cosine(measures: Measures) -> Value:
    parity = measures["parity"]["int8_vs_fp32"]
    return Value(parity["cosine_mean"], parity.get("cosine_low"), parity.get("cosine_high"))


def _latency(measures: Measures, quantile: str) -> Value:
    model = measures["latency"]["models"]["int8"]
    return Value(model[f"{quantile}_ms"], model.get(f"{quantile}_low_ms"), model.get(f"{quantile}_high_ms"))


def _speedup(measures: Measures) -> Value | None:
    speedup = measures["latency"]["speedup"]
    return Value(speedup["value"], speedup["low"], speedup["high"]) if speedup else None


def _memory(measures: Measures) -> Value | None:
    peak = measures["latency"]["models"]["int8"]["peak_memory_mb"]
    return None if peak is None else Value(peak)


GATES: dict[str, Row] = {
    "top1_drop_points": Row("top-1 drop, FP32 to INT8", "points", "max", "accuracy", _drop),
    "top1_percent_min": Row(
        "top-1 of INT8", "%", "min", "accuracy",
        lambda m: _share(m["accuracy"]["models"]["int8"], "top1", "low", "high"),
    ),
    "fp32_difference": Row(
        "FP32 ONNX against torch, largest difference", "of the logits' deviation", "max", "parity",
        lambda m: Value(m["parity"]["fp32_vs_torch"]["difference_over_std"]),
    ),
    "int8_cosine_min": Row("INT8 against FP32, mean cosine", "", "min", "parity", _cosine),
    "int8_agreement_percent_min": Row(
        "INT8 against FP32, same top-1", "%", "min", "parity",
        lambda m: _share(m["parity"]["int8_vs_fp32"], "agreement", "agreement_low", "agreement_high"),
    ),
    "latency_p50_ms": Row("INT8 latency, median", "ms", "max", "latency", lambda m: _latency(m, "p50")),
    "latency_p99_ms": Row("INT8 latency, p99", "ms", "max", "latency", lambda m: _latency(m, "p99")),
    "speedup_min": Row("INT8 against FP32, speed", "times", "min", "latency", _speedup),
    "memory_mb": Row("INT8 process, peak memory", "MB", "max", "latency", _memory),
    "size_mb": Row(
        "INT8 file", "MB", "max", "size", lambda m: Value(m["size"]["int8_bytes"] / 1e6)
    ),
}  # fmt: skip

# Load costs an interrupted query a whole time slice, so the slower network's median suffers first: a ratio
# is as little to be trusted as what it is made of.
TIMED = ("latency_p50_ms", "latency_p99_ms", "speedup_min")


def judge(gates: Gates, measures: Measures, *, why_not: Mapping[str, str] | None = None) -> list[GateResult]:
    """Hold measures against limits, in the order of `GATES`.

    Args:
        gates: the limits in force; one that is None is left out.
        measures: the parts of the report: parity, accuracy, latency, size. Parts may be missing or None.
        why_not: why a gate or a part of the measures is missing, by its name.
    """
    reasons = why_not or {}
    results = []
    for name, row in GATES.items():
        limit = getattr(gates, name)
        if limit is None:
            continue
        value, why = _fetch(name, row, measures)
        if value is None:
            why = reasons.get(name) or reasons.get(row.part) or why
        results.append(_result(name, row, limit, value, why))
    return results


def verdict(
    results: Sequence[GateResult], *, strict: bool = False, measures: Measures | None = None
) -> dict[str, str]:
    """Return the outcome of all gates: `status` and a `sentence` for people.

    The status is `fail` where a gate failed (strict: or was not judged), `not judged` where none could be
    judged, `uncertain` where all passed and one is uncertain, else `pass`.
    """
    failed, unjudged = _of(results, "fail"), _of(results, "not judged")
    uncertain = [gate for gate in results if gate.uncertain]
    if failed or (strict and unjudged):
        status = "fail"
    elif len(unjudged) == len(results):
        status = "not judged"
    else:
        status = "uncertain" if uncertain else "pass"
    facts = _facts(measures or {})
    gates = _counted(results, failed, unjudged, uncertain, strict)
    return {
        "status": status,
        "sentence": f"{facts}; {gates}." if facts else f"{gates[0].upper()}{gates[1:]}.",
    }


def exit_code(results: Sequence[GateResult], *, strict: bool = False) -> int:
    """Return 7 where a gate failed (strict: or was not judged), else 0."""
    return EXIT_FAILED if _of(results, "fail") or (strict and _of(results, "not judged")) else 0


def _fetch(name: str, row: Row, measures: Measures) -> tuple[Value | None, str]:
    """Return the value, or None and why there is none."""
    if not measures.get(row.part):
        return None, NOT_MEASURED[row.part]
    if name in TIMED and not measures["latency"].get("trusted", True):
        return None, f"the timing is not to be trusted: {measures['latency'].get('why', '')}"
    try:
        if name == "latency_p99_ms" and (why := _few_queries(measures["latency"])):
            return None, why
        value = row.fetch(measures)
    except (KeyError, TypeError):
        # A measure of another shape: a part that was made without INT8, or by an older version.
        value = None
    return value, "" if value else "this was not measured"


def _few_queries(latency: Mapping[str, Any]) -> str:
    """Say why there are too few queries for a 99th percentile, and what to do; empty where they suffice."""
    count = latency["models"]["int8"]["count"]
    if count >= P99_QUERIES:
        return ""
    why = f"p99 takes at least {P99_QUERIES} queries (MLPerf inference rules), {count:,} queries "
    if latency.get("preset") == "standard":
        return f"{why}fit into the time of bench.preset standard: judge latency_p50_ms instead"
    return f"{why}timed: set bench.preset: standard"


def _result(name: str, row: Row, limit: float, value: Value | None, why: str) -> GateResult:
    status: Status = "not judged"
    uncertain = False
    if value is not None:
        sign = 1 if row.direction == "max" else -1
        status = "pass" if sign * value.value <= sign * limit else "fail"
        ends = [sign * end <= sign * limit for end in (value.low, value.high) if end is not None]
        uncertain = any(end != (status == "pass") for end in ends)
    return GateResult(
        name=name,
        title=row.title,
        value=value.value if value else None,
        limit=limit,
        direction=row.direction,
        unit=row.unit,
        low=value.low if value else None,
        high=value.high if value else None,
        status=status,
        uncertain=uncertain,
        why=why,
    )


def _of(results: Sequence[GateResult], status: Status) -> list[GateResult]:
    return [gate for gate in results if gate.status == status]


def _facts(measures: Measures) -> str:
    """Say what INT8 keeps and how fast it is, as far as that is known."""
    parts = []
    accuracy, latency = measures.get("accuracy"), measures.get("latency")
    if accuracy:
        kept, had = (_percent(accuracy["models"][name]["top1"]) for name in ("int8", "fp32"))
        parts.append(f"INT8 keeps {kept} of {had} top-1 on {_counted_noun(accuracy['images'], 'image')}")
    if latency and latency.get("speedup"):
        subject = "is" if parts else "INT8 is"
        parts.append(f"{subject} {_speed(latency['speedup'], latency.get('trusted', True))} on this CPU")
    return " and ".join(parts)


def _speed(speedup: Mapping[str, float], trusted: bool) -> str:
    value = speedup["value"]
    if speedup["low"] <= 1 <= speedup["high"]:
        said = "as fast as FP32 within the measurement"
    else:
        said = f"{value:.1f}x faster" if value > 1 else f"{1 / value:.1f}x slower"
    return said if trusted else f"{said} (the timing is not to be trusted)"


def _percent(share: float) -> str:
    # What is not all of them never reads as 100.0%.
    return f"{min(100 * share, 99.9) if share < 1 else 100.0:.1f}%"


def _counted(
    results: Sequence[GateResult],
    failed: Sequence[GateResult],
    unjudged: Sequence[GateResult],
    uncertain: Sequence[GateResult],
    strict: bool,
) -> str:
    if not results:
        return "no gate was set"
    judged = len(results) - len(unjudged)
    if failed:
        names = ", ".join(gate.title for gate in failed)
        said = f"{len(failed)} of {_counted_noun(judged, 'judged gate')} failed ({names})"
    elif judged:
        said = "the one judged gate passed" if judged == 1 else f"all {judged} judged gates passed"
        said = said if unjudged else said.replace("judged ", "")
    else:
        said = "no gate could be judged"
    if uncertain:
        said += f", {len(uncertain)} uncertain"
    if unjudged and judged:
        said += f", {len(unjudged)} not judged"
    if unjudged and strict:
        said += ", which counts as a failure here (--strict)"
    return said


def _counted_noun(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
