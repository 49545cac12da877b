"""What each gate reads out of the measures, and how it is called.

It knows nothing of limits or outcomes. It imports nothing of edgetune.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

Measures = Mapping[str, Any]

# Of a device's two timings, the one that a program waits for: the input is copied to the GPU, the result back.
TIMED_BY = "copies"


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


def _engine(measures: Measures) -> Mapping[str, Any]:
    engine: Mapping[str, Any] = measures["device"]["engines"]["int8"]
    return engine


def _engine_drop(measures: Measures) -> Value | None:
    drop = measures["device"]["drop_from_fp32"]
    return Value(drop["points"], drop["low"], drop["high"]) if drop else None


def _engine_top1(measures: Measures) -> Value | None:
    accuracy = _engine(measures)["accuracy"]
    return _share(accuracy, "top1", "low", "high") if accuracy else None


def _engine_memory(measures: Measures) -> Value | None:
    memory = _engine(measures)["memory_mb"]
    return None if memory is None else Value(memory)


def _engine_size(measures: Measures) -> Value | None:
    size = _engine(measures)["plan_bytes"]
    return None if size is None else Value(size / 1e6)


def _energy(measures: Measures) -> Value | None:
    energy = measures["device"]["timing"][TIMED_BY]["energy"].get("int8")
    return Value(energy["mj"], energy["low"], energy["high"]) if energy and not energy["estimated"] else None


def _engine_timing(measures: Measures) -> Measures:
    return {"latency": measures["device"]["timing"][TIMED_BY]}


def _estimated_latency(measures: Measures) -> Value:
    found = measures["estimate"]
    return Value(found["ms"], found["low_ms"], found["high_ms"])


def _estimated_memory(measures: Measures) -> Value:
    found = measures["estimate"]
    return Value(found["engine_mb"] + found["activations_mb"])


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
    "engine_agreement_percent_min": Row(
        "INT8 engine against ONNX Runtime, same top-1", "%", "min", "device",
        lambda m: _share(_engine(m), "agreement", "agreement_low", "agreement_high"),
    ),
    "energy_mj": Row("INT8 engine, energy per inference", "mJ", "max", "device", _energy),
}  # fmt: skip

# The same limits, held against the engines of a device. They take the place of a gate on this machine's
# latency; accuracy is judged here and there.
ENGINE_GATES: dict[str, Row] = {
    "top1_drop_points": Row("top-1 drop, FP32 to INT8 engine", "points", "max", "device", _engine_drop),
    "top1_percent_min": Row("top-1 of the INT8 engine", "%", "min", "device", _engine_top1),
    "latency_p50_ms": Row(
        "INT8 engine latency, median", "ms", "max", "device", lambda m: _latency(_engine_timing(m), "p50")
    ),
    "latency_p99_ms": Row(
        "INT8 engine latency, p99", "ms", "max", "device", lambda m: _latency(_engine_timing(m), "p99")
    ),
    "speedup_min": Row(
        "INT8 engine against FP16 engine, speed", "times", "min", "device", lambda m: _speedup(_engine_timing(m))
    ),
    "memory_mb": Row("INT8 engine, memory", "MB", "max", "device", _engine_memory),
    "size_mb": Row("INT8 engine, file", "MB", "max", "device", _engine_size),
}  # fmt: skip

# What an estimate is held against, where a recipe lets it stand in for engines that nobody has measured.
ESTIMATED_GATES: dict[str, Row] = {
    "latency_p50_ms": Row(
        "INT8 engine latency, median, as estimated", "ms", "max", "estimate", _estimated_latency
    ),
    "memory_mb": Row("INT8 engine, memory, as estimated", "MB", "max", "estimate", _estimated_memory),
}


def marked(status: str, uncertain: bool, estimated: bool) -> str:
    """Return a gate's status with what is to be known of it: `pass (uncertain)`."""
    marks = ["uncertain"] * uncertain + ["estimated"] * estimated
    return f"{status} ({', '.join(marks)})" if marks else status
