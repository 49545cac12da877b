"""Holds measures against limits, and puts the outcome into one sentence.

The point value decides: at the limit or on its good side passes, beyond it fails. Where the value's interval
(95%) has the limit inside, the same few images could have said the opposite: the outcome stands and is marked
uncertain. What was not measured, or was measured with too much spread, is "not judged", with the reason. An
estimate is held against a limit only where a recipe says so, and its outcome is marked.
It knows nothing of how anything was measured. It may import recipe and the gates' rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import computed_field

from edgetune.recipe import Gates, Section
from edgetune.report.gate_rows import (
    ENGINE_GATES,
    ESTIMATED_GATES,
    GATES,
    TIMED_BY,
    Measures,
    Row,
    Value,
    marked,
)

Status = Literal["pass", "fail", "not judged"]

EXIT_FAILED = 7
# Queries that a 99th percentile needs: the fewest for which, with confidence 0.99, at least two queries lie
# beyond it (MLPerf inference rules, early stopping).
P99_QUERIES = 662
# Fewer samples than this say nothing about an engine: of 50, one is 2%.
FEWEST_SAMPLES = 100
NOT_MEASURED = {
    "parity": "parity was not checked",
    "accuracy": "accuracy was not checked",
    "latency": "latency was not measured",
    "size": "there is no INT8 file",
    "device": "no engine was measured: edgetune bundle RUN, then edgetune verify",
}
# What an estimate rests on.
BASES = {
    "measured": ", from published measurements of this mode",
    "related": ", from published measurements of other modules with such a GPU",
    "guess": ", and no published measurement says how far off it may be",
}
# What is judged without an INT8 network.
OF_FP32 = ("fp32_difference",)
# Of a device's measures, these count samples.
COUNTED = ("top1_drop_points", "top1_percent_min", "engine_agreement_percent_min")


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
    estimated: bool = False
    why: str

    @computed_field  # type: ignore[prop-decorator]
    @property
    def label(self) -> str:
        """The status in full: `pass (uncertain)`, `fail (estimated)`."""
        return marked(self.status, self.uncertain, self.estimated)


# Load costs an interrupted query a whole time slice, so the slower network's median suffers first: a ratio
# is as little to be trusted as what it is made of.
TIMED = ("latency_p50_ms", "latency_p99_ms", "speedup_min")


def judge(
    gates: Gates, measures: Measures, *, why_not: Mapping[str, str] | None = None, no_int8: str = ""
) -> list[GateResult]:
    """Hold measures against limits, in the order of `GATES`.

    Args:
        gates: the limits in force; one that is None is left out.
        measures: the parts of the report: parity, accuracy, latency, size, device. Parts may be missing or None;
            limits for engines that nobody has changed are left out until a device was measured.
        why_not: why a gate or a part of the measures is missing, by its name.
        no_int8: why there is no INT8 network, and so nothing that most gates judge.
    """
    reasons = why_not or {}
    results = []
    for name, row in GATES.items():
        limit = getattr(gates, name)
        if limit is None:
            continue
        for called, asked in _asked(name, row, limit, measures):
            value, why = _fetch(name, asked, measures)
            if value is None:
                why = (
                    (no_int8 if name not in OF_FP32 else "")
                    or reasons.get(called)
                    or reasons.get(asked.part)
                    or why
                )
            results.append(_result(called, asked, limit, value, why))
    return results


def verdict(
    results: Sequence[GateResult], *, strict: bool = False, measures: Measures | None = None
) -> dict[str, str]:
    """Return the outcome of all gates: `status` and a `sentence` for people.

    The status is `fail` where a gate failed (strict: or was not judged), `not judged` where none could be
    judged, `uncertain` where all passed and one is uncertain or only estimated, else `pass`.
    """
    failed, unjudged = _of(results, "fail"), _of(results, "not judged")
    uncertain = [gate for gate in results if gate.uncertain]
    if failed or (strict and unjudged):
        status = "fail"
    elif len(unjudged) == len(results):
        status = "not judged"
    else:
        status = "uncertain" if uncertain or any(gate.estimated for gate in results) else "pass"
    facts = _facts(measures or {})
    gates = _counted(results, failed, unjudged, uncertain, strict)
    return {
        "status": status,
        "sentence": f"{facts}; {gates}." if facts else f"{gates[0].upper()}{gates[1:]}.",
    }


def exit_code(results: Sequence[GateResult], *, strict: bool = False) -> int:
    """Return 7 where a gate failed (strict: or was not judged), else 0."""
    return EXIT_FAILED if _of(results, "fail") or (strict and _of(results, "not judged")) else 0


def _asked(name: str, row: Row, limit: float, measures: Measures) -> list[tuple[str, Row]]:
    """Return what a limit is held against, by the name of the outcome: this machine, the engines, or both."""
    if not measures.get("device"):
        # A recipe that lets no estimate stand in for a measurement leads to none here.
        if name in ESTIMATED_GATES and measures.get("estimate") and not measures.get("latency"):
            return [(f"estimated_{name}", ESTIMATED_GATES[name])]
        unasked = row.part == "device" and limit == Gates.model_fields[name].default
        return [] if unasked else [(name, row)]
    engines = [(f"engine_{name}", ENGINE_GATES[name])] if name in ENGINE_GATES else []
    replaced = bool(engines) and row.part == "latency" and not measures.get("latency")
    # A bundle that lies in no run tells of its engines alone.
    foreign = set(measures) == {"device"} and row.part != "device"
    return engines if replaced or foreign else [(name, row), *engines]


def _fetch(name: str, row: Row, measures: Measures) -> tuple[Value | None, str]:
    """Return the value, or None and why there is none."""
    if not measures.get(row.part):
        return None, NOT_MEASURED[row.part]
    if row.part == "estimate" and (why := measures["estimate"].get("why_not")):
        return None, f"there is no estimate: {why}"
    if row.part == "device" and (why := _not_on_device(name, measures["device"])):
        return None, why
    if row.part == "latency" and name in TIMED and not measures["latency"].get("trusted", True):
        return None, f"the timing is not to be trusted: {measures['latency'].get('why', '')}"
    try:
        if row.part == "latency" and name == "latency_p99_ms" and (why := _few_queries(measures["latency"])):
            return None, why
        value = row.fetch(measures)
    except (KeyError, TypeError):
        # A measure of another shape: a part that was made without INT8, or by an older version.
        value = None
    if value and row.part == "estimate":
        basis = BASES.get(measures["estimate"].get("basis"), "")
        how = f"{basis}; the interval is of 90%" if value.low is not None else ": weights and activations"
        return value, f"estimated, not measured{how}"
    return value, "" if value else "this was not measured"


def _not_on_device(name: str, device: Mapping[str, Any]) -> str:
    """Say why a device's measures do not judge a gate; empty where they do, or where a figure is missing."""
    errors, timing = device.get("errors") or {}, (device.get("timing") or {}).get(TIMED_BY)
    engine = (device.get("engines") or {}).get("int8")
    if not engine:
        return _failed(errors, "build-int8") or "no INT8 engine was built"
    if name in COUNTED:
        failed = "" if engine.get("samples") else _failed(errors, "compare-int8")
        return failed or _few_samples(name, engine)
    if name == "size_mb":
        return ""
    if name == "memory_mb":
        return "" if engine.get("memory_mb") is not None else "this device's tool does not tell it"
    if not timing:
        return _failed(errors, f"time-{TIMED_BY}") or "the engines were not timed"
    if not timing.get("trusted"):
        return f"the timing is not to be trusted: {timing.get('why') or ''}"
    count = ((timing.get("models") or {}).get("int8") or {}).get("count") or 0
    if name == "latency_p99_ms" and count < P99_QUERIES:
        return (
            f"p99 takes at least {P99_QUERIES} queries (MLPerf inference rules), {count:,} timed: time longer"
        )
    if name == "energy_mj" and ((timing.get("energy") or {}).get("int8") or {}).get("estimated"):
        return "with trtexec it can only be estimated: install TensorRT's Python bindings there"
    return (timing.get("energy_why") or "") if name == "energy_mj" else ""


def _few_samples(name: str, engine: Mapping[str, Any]) -> str:
    labelled = name != "engine_agreement_percent_min"
    count = (engine.get("accuracy") or {}).get("images") or 0 if labelled else engine.get("samples") or 0
    kind = "labelled sample" if labelled else "sample"
    few = f"{_counted_noun(count, kind)} compared, and fewer than {FEWEST_SAMPLES} say too little"
    return few if count < FEWEST_SAMPLES else ""


def _failed(errors: Mapping[str, Any], step: str) -> str:
    return f"{step} failed on the device: {errors[step].get('message', '')}" if step in errors else ""


def _few_queries(latency: Mapping[str, Any]) -> str:
    """Say why there are too few queries for a 99th percentile, and what to do; empty where they suffice."""
    count = latency["models"]["int8"]["count"]
    if count >= P99_QUERIES:
        return ""
    why = f"p99 takes at least {P99_QUERIES} queries (MLPerf inference rules), {count:,} queries "
    if latency.get("preset") in ("standard", "mlperf"):
        return f"{why}fit into the time of bench.preset {latency['preset']}: judge latency_p50_ms instead"
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
        estimated=row.part == "estimate" and value is not None,
        why=why,
    )


def _of(results: Sequence[GateResult], status: Status) -> list[GateResult]:
    return [gate for gate in results if gate.status == status]


def _facts(measures: Measures) -> str:
    """Say what INT8 keeps and how fast it is, as far as that is known."""
    parts = []
    accuracy, latency = measures.get("accuracy"), measures.get("latency")
    if accuracy:
        top1 = {name: _percent(model["top1"]) for name, model in accuracy["models"].items()}
        images = _counted_noun(accuracy["images"], "input")
        if "int8" in top1:
            parts.append(f"INT8 keeps {top1['int8']} of {top1['fp32']} top-1 on {images}")
        else:
            parts.append(f"FP32 gets {top1['fp32']} top-1 on {images}")
    timing = ((measures.get("device") or {}).get("timing") or {}).get(TIMED_BY)
    for timed, other, place in ((latency, "FP32", "on this CPU"), (timing, "FP16", "on the device")):
        if timed and timed.get("speedup"):
            subject = "is" if parts else "INT8 is"
            said = _speed(timed["speedup"], timed.get("trusted", True), other)
            parts.append(f"{subject} {said} {place}")
    return " and ".join(parts)


def _speed(speedup: Mapping[str, float], trusted: bool, other: str) -> str:
    value = speedup["value"]
    if speedup["low"] <= 1 <= speedup["high"]:
        said = f"as fast as {other} within the measurement"
    else:
        said = f"{value:.1f}x faster" if value > 1 else f"{1 / value:.1f}x slower"
        # On this CPU it is always FP32 that INT8 is held against.
        said += " than FP16" if other == "FP16" else ""
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
    if estimated := sum(gate.estimated for gate in results):
        said += f", {estimated} by an estimate"
    if unjudged and judged:
        said += f", {len(unjudged)} not judged"
    if unjudged and strict:
        said += ", which counts as a failure here (--strict)"
    return said


def _counted_noun(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
