"""What Markdown, HTML and the terminal show of a device: FP16 beside INT8, host beside device.

It knows nothing of how things look. It may import the report's schemas and its wording.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from edgetune.report import layers, wording
from edgetune.report.schema import Latency, Timing
from edgetune.report.schema_device import Device, Energy, Engine, EngineTiming, Lost, Run, Share, TimedLayers

NAMES = ("fp16", "int8")
HOSTS = {"fp16": "FP32", "int8": "INT8"}
TIMINGS = {"copies": "with copies", "compute": "compute alone"}
NONE = wording.NONE
LAYER_COLUMNS = layers.COLUMNS
# Layers that are named in a sentence.
NAMED = 6


class Row(NamedTuple):
    """FP16 beside INT8, with their intervals, and what that comes to."""

    title: str
    fp16: str
    int8: str
    change: str = ""
    fp16_span: str = ""
    int8_span: str = ""


def engines(device: Device) -> tuple[Engine, Engine]:
    """Return the FP16 and the INT8 engine, empty where one was not built."""
    fp16, int8 = (device.engines.get(name) or Engine() for name in NAMES)
    return fp16, int8


def rows(device: Device) -> list[Row]:
    """Return FP16 beside INT8; rows without figures are left out."""
    fp16, int8 = both = engines(device)
    smaller = _ratio(fp16.plan_bytes, int8.plan_bytes, "smaller")
    top1 = [_top1(e.accuracy) for e in both]
    found = [
        _row("top-1 accuracy", top1, _drop(device.drop), [_span(e.accuracy) for e in both]),
        _row("same class as ONNX Runtime", [wording.percent(e.agreement) for e in both]),
        *(
            row
            for what in TIMINGS
            for row in _timed(device.timing.get(what) or EngineTiming(), TIMINGS[what])
        ),
        _row("memory (weights and activations)", [_unit(e.memory_mb, "MB") for e in both]),
        _row("engine on disk", [wording.size(e.plan_bytes) for e in both], smaller),
        _row("build", [wording.seconds(e.build_seconds) for e in both]),
        _row("layers in INT8, FP16, FP32", [_layers(e) for e in both]),
        _row("reformats between layers", [wording.count(e.reformats) for e in both]),
        _row("layers wider than wanted", [_fallbacks(e) for e in both]),
        _row("layers that fell back to the GPU", [_on_gpu(e) for e in both]),
    ]
    return [row for row in found if row.fp16 != NONE or row.int8 != NONE]


def _timed(timing: EngineTiming, words: str) -> list[Row]:
    times = [timing.models.get(name) or Run() for name in NAMES]
    energies = [timing.energy.get(name) or Energy() for name in NAMES]
    ms, span = wording.milliseconds, wording.interval
    medians = [span(t.p50_low_ms, t.p50_high_ms, "ms") for t in times]
    tails = [span(t.p99_low_ms, t.p99_high_ms, "ms") for t in times]
    less, spent = _ratio(energies[0].mj, energies[1].mj, "less"), [_energy(e) for e in energies]
    return [
        _row(f"latency {words}, median", [ms(t.p50_ms) for t in times], _speed(timing), medians),
        _row(f"latency {words}, p90", [ms(t.p90_ms) for t in times]),
        _row(f"latency {words}, p99", [ms(t.p99_ms) for t in times], "", tails),
        _row(f"inferences timed {words}", [wording.count(t.count) for t in times]),
        _row(f"energy per inference, {words}", spent, less, [span(e.low, e.high, "mJ") for e in energies]),
    ]


def _row(title: str, figures: Sequence[str], change: str = "", spans: Sequence[str] = ("", "")) -> Row:
    return Row(title, figures[0], figures[1], change, spans[0], spans[1])


def cells(device: Device) -> list[tuple[str, str, str, str]]:
    """Return the rows as four texts each, intervals in brackets."""
    return [
        (row.title, _with_span(row.fp16, row.fp16_span), _with_span(row.int8, row.int8_span), row.change)
        for row in rows(device)
    ]


def brief(device: Device) -> list[tuple[str, str, str, str]]:
    """Return what a terminal has room for: no intervals of single figures, no p90, no counts."""
    return [row[:4] for row in rows(device) if "p90" not in row.title and "timed" not in row.title]


def _with_span(figure: str, span: str) -> str:
    return f"{figure} ({span})" if span else figure


def host_rows(device: Device) -> list[tuple[str, str, str, str, str, str]]:
    """Return what ran here in ONNX Runtime beside each engine: top-1 of both, same class, SQNR, cosine."""
    return [
        (
            f"{HOSTS[name]} here, {name.upper()} there",
            _top1(engine.host_accuracy),
            _top1(engine.accuracy),
            _agreed(engine),
            _unit(engine.sqnr_db, "dB"),
            wording.quantity(engine.cosine_mean, ""),
        )
        for name, engine in zip(NAMES, engines(device), strict=True)
        if engine.samples
    ]


def where(device: Device) -> str:
    """Return the DLA that the engines were built for, ` (DLA 0)`, or nothing."""
    core = device.wanted.get("dla_core")
    return f" (DLA {core})" if isinstance(core, int) else ""


def about(device: Device) -> list[tuple[str, str]]:
    """Return what the device is and how it stood."""
    found, timing = device.found, device.timing.get("copies") or EngineTiming()
    locked = {None: "", True: "locked", False: "not locked"}[found.clocks_locked]
    hot = ", ".join(
        f"{zone} {wording.number(values[0])} to {wording.number(values[-1])} °C"
        for zone, values in timing.temperatures_c.items()
        if values
    )
    said = [
        ("Module", f"{found.module or 'not known'}{where(device)}"),
        ("JetPack", ", ".join(filter(None, (found.jetpack, found.l4t and f"L4T {found.l4t}")))),
        ("TensorRT", ", ".join(filter(None, (device.tensorrt, device.tool)))),
        ("Power mode", found.power_mode),
        ("Clocks", locked),
        ("Temperatures", hot),
        ("Samples", _samples(device)),
    ]
    return [(term, words) for term, words in said if words]


def notes(device: Device) -> list[str]:
    """Return what else there is to say: why figures are missing or decide nothing, warnings, failed steps."""
    doubted: dict[str, list[str]] = {}
    for what, words in TIMINGS.items():
        timing = device.timing.get(what)
        if timing and not timing.trusted:
            doubted.setdefault(timing.why, []).append(words)
    said = [
        f"The timing {' and '.join(which)} is not to be trusted: {why}." for why, which in doubted.items()
    ]
    energies = device.timing.get("copies")
    if energies and energies.single_stream:
        early = [f"{name.upper()} {_unit(run.p90_early_ms, 'ms')}" for name, run in energies.models.items()]
        said.append(
            f"MLPerf SingleStream, 90th percentile by early stopping, with copies: {', '.join(early)}. The Offline "
            "scenario is not run on a device."
        )
    if energies and energies.energy_why:
        said.append(f"Energy is not known: {energies.energy_why}.")
    elif energies and energies.energy:
        one = next(iter(energies.energy.values()))
        how = (
            " Estimated from mean power, as trtexec does not say when its queries ran."
            if one.estimated
            else ""
        )
        said.append(
            f"Energy is that of the whole module, idle power included ({' + '.join(one.rails)}).{how}"
        )
    said += _left_to_gpu(device)
    if device.without_qdq:
        said.append(
            "This DLA takes no Q/DQ: INT8 there is the same corrected weights and scales, rounded where TensorRT "
            "rounds. It is held against ONNX Runtime with Q/DQ all the same, and agrees less than a GPU's engine."
        )
    told = " ".join(doubted)
    said += [
        f"Warning there: {warning.message}." for warning in device.warnings if warning.message not in told
    ]
    said += [f"{step} failed there: {error.message}." for step, error in device.errors.items()]
    return said


def timed_layers(device: Device) -> tuple[str, TimedLayers] | None:
    """Return the layers of the INT8 engine, else of the other one, with its name; None where none were timed."""
    for name in reversed(NAMES):
        engine = device.engines.get(name)
        if engine and engine.timed_layers and engine.timed_layers.layers:
            return name.upper(), engine.timed_layers
    return None


def drawn_layers(timed: tuple[str, TimedLayers]) -> tuple[str, list[Mapping[str, Any]]]:
    """Return what a chart of the costliest layers takes."""
    return timed[0], layers.costliest([layer.model_dump() for layer in timed[1].layers])


def layer_rows(found: TimedLayers) -> list[list[str]]:
    """Return the costliest layers as texts."""
    return layers.rows([layer.model_dump() for layer in found.layers])


def latency(device: Device) -> Latency | None:
    """Return the timing with copies in the shape that a chart of latencies takes."""
    timing = device.timing.get("copies") or device.timing.get("compute")
    if timing is None:
        return None
    models = {
        name: Timing(p50_ms=run.p50_ms, samples_ms=run.samples_ms) for name, run in timing.models.items()
    }
    return Latency(engine=timing.engine, models=models, speedup=timing.speedup)


def _top1(share: Share | None) -> str:
    return wording.percent(share.top1 if share else None)


def _span(share: Share | None) -> str:
    if share is None or share.low is None or share.high is None:
        return ""
    return wording.interval(100 * share.low, 100 * share.high, "percent")


def _agreed(engine: Engine) -> str:
    if engine.agreement_low is None or engine.agreement_high is None:
        return wording.percent(engine.agreement)
    span = wording.interval(100 * engine.agreement_low, 100 * engine.agreement_high, "percent")
    return f"{wording.percent(engine.agreement)} ({span})"


def _drop(drop: Lost | None) -> str:
    if drop is None or drop.points is None:
        return ""
    said = f"{wording.points(-drop.points)} points"
    if drop.low is None or drop.high is None:
        return said
    return f"{said} ({wording.interval(-drop.high, -drop.low, 'points').removesuffix(' points')})"


def _speed(timing: EngineTiming) -> str:
    ratio = timing.speedup
    if ratio.value is None:
        return ""
    span = wording.interval(ratio.low, ratio.high, "times")
    return f"{wording.times(ratio.value)} as fast" + (f" ({span})" if span else "")


def _energy(energy: Energy) -> str:
    about = "about " if energy.estimated and energy.mj is not None else ""
    return f"{about}{_unit(energy.mj, 'mJ')}"


def _ratio(fp16: float | None, int8: float | None, word: str) -> str:
    return f"{wording.number(fp16 / int8, 2)}× {word}" if fp16 and int8 and fp16 > int8 else ""


def _layers(engine: Engine) -> str:
    layers = engine.layers
    if layers is None:
        return NONE
    more = f", {layers.other} else" if layers.other else ""
    return f"{layers.int8}, {layers.fp16}, {layers.fp32}{more}"


def _fallbacks(engine: Engine) -> str:
    return wording.count(len(engine.fallbacks)) if engine.layers else NONE


def _on_gpu(engine: Engine) -> str:
    if engine.gpu_layers is None or engine.all_layers is None:
        return wording.count(engine.gpu_layers)
    return f"{wording.count(engine.gpu_layers)} of {wording.count(engine.all_layers)}"


def _left_to_gpu(device: Device) -> list[str]:
    """Name the layers that a DLA does not run, once where they are the same for both engines."""
    found: dict[str, list[str]] = {}
    for name, engine in zip(NAMES, engines(device), strict=True):
        if engine.gpu_layers:
            names, rest = engine.gpu_names[:NAMED], len(engine.gpu_names[NAMED:])
            named = f": {', '.join(names)}" + (f", and {rest} more" if rest else "") if names else ""
            alone = engine.gpu_layers == 1 and engine.all_layers is None
            parts = engine.dla_parts
            beside = "" if parts is None else f", beside {wording.count(parts, 'part')} on the DLA"
            said = f"{_on_gpu(engine)} {'layer' if alone else 'layers'} fell back to the GPU{beside}{named}."
            found.setdefault(said, []).append(name.upper())
    return [f"{' and '.join(which)}: {said}" for said, which in found.items()]


def _unit(value: float | None, unit: str) -> str:
    return NONE if value is None else f"{wording.number(value)} {unit}"


def _samples(device: Device) -> str:
    seen = {engine.samples for engine in device.engines.values()}
    if not seen or device.samples is None:
        return ""
    least = min(seen)
    compared = f"{wording.count(least)} of {wording.count(device.samples)} compared"
    return f"{compared}, {wording.count(device.labelled)} of all labelled"
