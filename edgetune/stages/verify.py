"""Computes what a device's raw results say: agreement, accuracy, latency and energy of its engines.

Right is what ONNX Runtime gave for the same samples; whether an engine is good enough is for the gates, and
which of two is better for the report. It may import device, latency, estimates.network and quant.compare.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetune.device.program.plan import Work
from edgetune.device.program.power import PERIOD_S, Sample, energy_j, whole_module
from edgetune.device.results import Engine, Result, Timed, expected_of, load_result, load_work, outputs_of
from edgetune.estimates.network import node_operations
from edgetune.latency.device_layers import device_layers
from edgetune.latency.layers import Layers
from edgetune.latency.statistics import mean_interval, paired_drop, wilson
from edgetune.latency.summary import summarise
from edgetune.quant.compare import Comparison, agreement

SCHEMA_VERSION = 1
# In the order in which they tell what is compared with what: the last one is INT8.
NAMES = ("fp16", "int8")
TIMINGS = ("compute", "copies")
HOST = {"fp16": "fp32", "int8": "int8"}
PRECISIONS = ("int8", "fp16", "fp32")
# Sensors are read so often while a block lasts, at least: fewer readings would be the other engine's.
READINGS = 3
# What makes times those of another device, or of another state of it, than was asked for.
SPOILING = ("module", "power_mode", "throttled")
# Fewer queries than this have no 90th percentile (MLPerf inference rules, early stopping).
FEWEST_QUERIES = 64
# From here on it may be one by MLPerf's rules for SingleStream.
SINGLE_STREAM_S = 600
# trtexec's timed runs also load the engine; only the bindings say when queries ran.
TRTEXEC = "trtexec"

Logits = NDArray[np.float32]
Truth = NDArray[np.int64]


def verify(bundle: Path) -> dict[str, Any]:
    """Read a bundle with the results that came back, and compute what they say.

    Args:
        bundle: the folder, with `results` inside.

    Returns:
        About the device: `tool`, `tensorrt`, `found`, `warnings`, `errors`, `finished`; `without_qdq`: the INT8
        engine was built of scales beside a graph, for a DLA. `engines` by name:
        `agreement` with ONNX Runtime and the figures of quant.compare, `timed_layers`, `accuracy` and
        `host_accuracy` (on the same samples, of what ONNX Runtime gave: FP32 beside the FP16 engine), build and
        layers. `drop` from the
        FP16 engine to the INT8 one, `drop_from_fp32` to the INT8 engine, `host` (INT8 against FP32 in ONNX
        Runtime). `timing` for `compute` alone and with `copies`: what latency.protocol gives, and `energy`; of texts
        that come in several lengths for the longest. `lengths`: for each of those `length`, `samples`, `timing`, and
        `engines` with agreement and accuracy; empty where there is one.

    Raises:
        ConfigError: no bundle, or nothing came back yet.
        ArtifactError: something is cut, damaged, or of another bundle.
    """
    work = load_work(bundle)
    result = load_result(work)
    names = [name for name in NAMES if name in result.engines]
    expected = {name: expected_of(work, name) for name in work.samples.expected}
    outputs = {
        name: outputs_of(work, name, result.engines[name]) for name in names if result.engines[name].outputs
    }
    timing = {what: _timing(timed, result, work) for what, timed in result.timing.items()}
    truth = np.array([-1 if label is None else label for label in work.samples.labels], dtype=np.int64)
    return {
        "schema_version": SCHEMA_VERSION,
        "bundle": work.digest,
        "name": work.name,
        "wanted": work.wanted,
        "without_qdq": any(job.scales for job in work.builds),
        "tool": result.tool,
        "tensorrt": result.tensorrt,
        "found": _found(result),
        "warnings": [warning.model_dump() for warning in result.warnings],
        "errors": {name: trouble.model_dump() for name, trouble in result.errors.items()},
        "finished": result.finished,
        "samples": work.samples.number,
        "labelled": int((truth >= 0).sum()),
        "engines": {
            name: _engine(result.engines[name], outputs.get(name), expected[name], truth)
            | {"timed_layers": _layers(work, name, result)}
            for name in names
        },
        **_drops(outputs, expected, truth),
        "host": _host(expected, truth),
        "timing": {what: timing[what] for what in TIMINGS if what in timing},
        "lengths": _lengths(work, outputs, expected, truth, timing),
    }


def _lengths(
    work: Work,
    outputs: Mapping[str, Logits],
    expected: Mapping[str, Logits],
    truth: Truth,
    timing: Mapping[str, dict[str, Any]],
) -> list[dict[str, Any]]:
    """Return what engines give, and how long they take, for texts of each length."""
    own, found = np.array(work.samples.lengths), []
    for length in work.lengths:
        engines = {}
        for name, values in outputs.items():
            here = own[: len(values)] == length
            right, said = (side[: len(values)][here].argmax(axis=1) for side in (expected[name], values))
            if here.any():
                engines[name] = agreement(right, said) | {
                    "accuracy": _accuracy(said, truth[: len(here)][here])
                }
        named = {what: work.timed(what, length) for what in TIMINGS}
        found.append({
            "length": length, "samples": int((own == length).sum()), "engines": engines,
            "timing": {what: timing[name] for what, name in named.items() if name in timing},
        })  # fmt: skip
    return found


def _layers(work: Work, name: str, result: Result) -> Layers | None:
    """Return an engine's layers with their times, operations and distance to the roofline."""
    job = next(job for job in work.builds if job.name == name)
    counted = node_operations(Path(job.onnx), job.shapes(max(job.lengths, default=0)))
    engine, profile = result.engines[name], str(work.wanted.get("profile") or "")
    source = f"{result.tool} on the device, in a run of its own"
    return device_layers(engine.build.layers, engine.profile.layers, counted, profile, source)


def _found(result: Result) -> dict[str, Any]:
    """Return what the report shows of the device."""
    found: Mapping[str, Any] = result.found
    module, mode, locked = (_mapping(found.get(key)) for key in ("module", "power_mode", "locked"))
    clocks = _mapping(found.get("clocks")).get("locked")
    return {
        "module": module.get("model"), "compute_capability": module.get("compute_capability"),
        "jetpack": found.get("jetpack"), "l4t": found.get("l4t"), "cuda": found.get("cuda"),
        "power_mode": mode.get("name"), "clocks_locked": clocks if locked.get("locked") is None else locked["locked"],
        "memory_mb": _mapping(found.get("memory")).get("total_mb"), "container": found.get("container"),
    }  # fmt: skip


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _engine(engine: Engine, outputs: Logits | None, expected: Logits, truth: Truth) -> dict[str, Any]:
    built = engine.build
    # What running takes: weights are in the plan, and what flows between layers is what the engine asks for.
    memory = None if built.device_memory is None else (built.device_memory + built.plan_bytes) / 1e6
    counts, on_gpu, on_dla = built.layers.counts, built.fallback_layers, built.dla_layers
    found: dict[str, Any] = {
        "build_seconds": built.seconds,
        "plan_bytes": built.plan_bytes,
        "workspace_mb": built.workspace_mb,
        "optimization_level": built.optimization_level,
        "memory_mb": memory,
        "layers": {
            **{name: counts.get(name, 0) for name in PRECISIONS},
            "other": sum(count for name, count in counts.items() if name not in PRECISIONS),
        }
        if built.layers.detailed
        else None,
        "reformats": built.layers.reformats if built.layers.detailed else None,
        "fallbacks": list(built.layers.fallbacks),
        # Beside a DLA.
        "gpu_layers": on_gpu,
        "gpu_names": list(built.fallback_names),
        "dla_parts": built.dla_subgraphs,
        "all_layers": None if on_gpu is None or on_dla is None else on_gpu + on_dla,
        "messages": list(built.messages),
        "samples": 0 if outputs is None else len(outputs),
    }
    if outputs is None:
        return found
    right = expected[: len(outputs)]
    compared = Comparison()
    compared.add(right, outputs)
    names, said = right.argmax(axis=1), outputs.argmax(axis=1)
    return (
        found
        | compared.figures()
        | agreement(names, said)
        | {"accuracy": _accuracy(said, truth), "host_accuracy": _accuracy(names, truth)}
    )


def _accuracy(said: Truth, truth: Truth) -> dict[str, Any] | None:
    """Return accuracy on the labelled ones of the first samples."""
    known = truth[: len(said)] >= 0
    count = int(known.sum())
    if not count:
        return None
    right = int((said == truth[: len(said)])[known].sum())
    low, high = wilson(right, count)
    return {"images": count, "right": right, "top1": right / count, "low": low, "high": high}


def _drops(
    outputs: Mapping[str, Logits], expected: Mapping[str, Logits], truth: Truth
) -> dict[str, dict[str, Any] | None]:
    """Return what the INT8 engine loses against the FP16 engine, and against FP32 in ONNX Runtime."""
    int8 = outputs.get("int8")
    return {
        "drop": _drop(outputs.get("fp16"), int8, truth),
        "drop_from_fp32": _drop(expected.get("fp16"), int8, truth),
    }


def _drop(first: Logits | None, second: Logits | None, truth: Truth) -> dict[str, Any] | None:
    """Compare two classifiers on the labelled samples that both have seen."""
    if first is None or second is None:
        return None
    count = min(len(first), len(second))
    known = truth[:count] >= 0
    if not known.any():
        return None
    right = [(values[:count].argmax(axis=1) == truth[:count])[known] for values in (first, second)]
    return {"images": int(known.sum()), **paired_drop(*right)._asdict()}


def _host(expected: Mapping[str, Logits], truth: Truth) -> dict[str, Any] | None:
    """Return what INT8 had lost before any engine was built: in ONNX Runtime, on all samples."""
    fp32, int8 = expected.get("fp16"), expected.get("int8")
    if fp32 is None or int8 is None or not len(fp32):
        return None
    return {
        "samples": len(fp32),
        "drop": _drop(fp32, int8, truth),
        **agreement(fp32.argmax(axis=1), int8.argmax(axis=1)),
    }


def _timing(timed: Timed, result: Result, work: Work) -> dict[str, Any]:
    """Turn raw blocks into figures; intervals come from the rounds, whose queries resemble each other."""
    present = {block.name for block in timed.blocks}
    names = [name for name in NAMES if name in present]
    blocks = {
        name: sorted((b for b in timed.blocks if b.name == name), key=lambda block: block.round)
        for name in names
    }
    samples = {name: [np.array(block.ms) for block in blocks[name]] for name in names}
    warm = {name: timed.warmup[name].queries if name in timed.warmup else 0 for name in names}
    measured = summarise(samples, warm)
    few = [
        f"{name}: {model['count']} queries timed, and {FEWEST_QUERIES} are the fewest"
        for name, model in measured["models"].items()
        if model["count"] < FEWEST_QUERIES
    ]
    doubts = [measured["why"], *few, *_doubts(timed, result, names)]
    why = "; ".join(filter(None, doubts))
    energy, energy_why = _energy(timed, result, names)
    return {
        "engine": f"TensorRT {result.tensorrt}",
        "batch": work.input.shape[0],
        "single_stream": work.timing["seconds"] >= SINGLE_STREAM_S,
        **measured,
        "speedup": measured["speedup"] if names == list(NAMES) else None,
        "trusted": not why,
        "why": why,
        "energy": energy,
        "energy_why": energy_why,
        "temperatures_c": _temperatures(timed),
        "cuda_graph": timed.cuda_graph,
    }


def _doubts(timed: Timed, result: Result, names: Iterable[str]) -> list[str]:
    """Say what else than spread makes a measurement one that decides nothing."""
    unfinished = [name for name in names if not timed.complete.get(name, True)]
    restless = [name for name in names if name in timed.warmup and not timed.warmup[name].stable]
    return [
        *(f"{name}: the time ended before it had its queries" for name in unfinished),
        *(f"{name}: its times were still changing after the warm-up" for name in restless),
        *(warning.message for warning in result.warnings if warning.code in SPOILING),
    ]


def _temperatures(timed: Timed) -> dict[str, list[float]]:
    """Return the first and the highest value per zone, in °C."""
    zones: dict[str, list[float]] = {}
    for _, _, heat in timed.beside:
        for name, value in heat.items():
            first, most = zones.get(name, (value, value))
            zones[name] = [first, max(most, value)]
    return zones


def _energy(timed: Timed, result: Result, names: Iterable[str]) -> tuple[dict[str, Any], str]:
    """Return the whole module's energy per inference in mJ, idle power included, or why it is not known."""
    samples = [Sample(at, rails, heat) for at, rails, heat in timed.beside]
    seen = {name for sample in samples for name in sample.rails_mw}
    rails = whole_module(sorted(seen))
    if not seen:
        return {}, "no power rails were read on the device"
    if not rails:
        return {}, f"which of the rails {', '.join(sorted(seen))} feed the whole module is not known"
    found: dict[str, Any] = {}
    for name in names:
        own = [block for block in timed.blocks if block.name == name]
        # trtexec loads the engine first: only the last so many seconds of its run are queries.
        spans = [
            (
                block.end_s - min(sum(block.ms) / 1e3, block.end_s - block.start_s)
                if result.tool == TRTEXEC
                else block.start_s,
                block.end_s,
                len(block.ms),
            )
            for block in own
        ]
        if np.median([end - start for start, end, _ in spans]) < READINGS * PERIOD_S:
            return {}, f"{name}: blocks are too short for sensors that are read every {PERIOD_S:g} s"
        drawn = [_drawn(samples, rails, *span) for span in spans]
        if any(value is None for value in drawn):
            return {}, f"the rails {', '.join(rails)} were not read all along"
        values = np.array(drawn, dtype=np.float64)
        ends = mean_interval(values)
        weights = [count for _, _, count in spans]
        found[name] = {
            "mj": float(np.average(values, weights=weights)),
            "low": ends.low if ends else None,
            "high": ends.high if ends else None,
            "rails": list(rails),
            "estimated": result.tool == TRTEXEC,
        }
    return found, ""


def _drawn(
    samples: list[Sample], rails: tuple[str, ...], start: float, end: float, count: int
) -> float | None:
    """Return the energy of one inference of a block, in mJ."""
    energy = energy_j(samples, start, end, slack_s=2 * PERIOD_S)
    if not set(rails) <= set(energy):
        return None
    return 1e3 * sum(energy[rail] for rail in rails) / count
