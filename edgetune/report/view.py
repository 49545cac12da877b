"""What the terminal, Markdown and HTML all show of a report: key figures, comparisons, what stands out.

It knows nothing of how things look. It may import the report's schema and its wording.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup

from edgetune.report import wording
from edgetune.report.schema import (
    ClassRow,
    Comparison,
    Confusion,
    Data,
    Gate,
    Latency,
    Pair,
    Parity,
    Report,
    Right,
    Timing,
)
from edgetune.report.schema_device import Device
from edgetune.report.schema_int8 import Layer

# A matrix of more classes is unreadable; the pairs that are confused most say more.
MATRIX_CLASSES = 25
WORST = 20

HEADLINES = {"pass": "Passed", "fail": "Failed", "uncertain": "Uncertain", "not judged": "Not judged"}


@dataclass(frozen=True)
class Tile:
    """One key figure: FP32's and INT8's, or one for both."""

    title: str
    before: str
    after: str
    note: str


class Row(NamedTuple):
    """FP32 beside INT8, and what that comes to."""

    title: str
    fp32: str
    int8: str
    change: str


@dataclass(frozen=True)
class Scale:
    """Where a gate's value, interval and limit stand on a line from 0 to 100; the good side is shaded."""

    value: float
    limit: float
    low: float | None
    high: float | None
    good_from: float
    good_to: float


def top1(report: Report, name: str) -> Right:
    """Return a network's accuracy, empty where it was not measured."""
    return (report.accuracy.models.get(name) if report.accuracy else None) or Right()


def timing(report: Report, name: str) -> Timing:
    """Return a network's latency, empty where it was not measured."""
    return (report.latency.models.get(name) if report.latency else None) or Timing()


def closeness(report: Report) -> Comparison:
    """Return how close INT8 is to FP32, empty where it was not checked."""
    return report.parity.int8_vs_fp32 if report.parity else Comparison()


def flipped(near: Comparison) -> int:
    """Return on how many images INT8 names another class than FP32; `flips` may hold only the first."""
    if near.images is None or near.agreed is None:
        return len(near.flips)
    return max(near.images - near.agreed, len(near.flips))


def planned(report: Report) -> bool:
    """Tell whether the layers are a plan for an engine that the device builds, not what ran here."""
    return report.profile.rendering in ("weak", "strong")


def precision(layer: Layer, report: Report) -> str:
    """Return what a layer computes in: a weakly typed engine built with --fp16 takes FP16 for float."""
    weak = report.profile.rendering == "weak" and layer.precision != "INT8"
    return "float (FP16 in the engine)" if weak and layer.precision else layer.precision


def tiles(report: Report) -> list[Tile]:
    """Return the key figures, those that are known."""
    found = []
    fp32, int8 = top1(report, "fp32"), top1(report, "int8")
    if int8.top1 is not None:
        images = report.accuracy.images if report.accuracy else None
        note = f"{wording.count(int8.right)} of {wording.count(images, 'input')} right"
        found.append(Tile("Top-1 accuracy", wording.percent(fp32.top1), wording.percent(int8.top1), note))
    elif fp32.top1 is not None:
        found.append(Tile("Top-1 accuracy", "", wording.percent(fp32.top1), "FP32"))
    near = closeness(report)
    if near.agreement is not None:
        span = wording.interval(_hundred(near.agreement_low), _hundred(near.agreement_high), "percent")
        note = "INT8 names the same class as FP32" + (f"; {span}" if span else "")
        found.append(Tile("Agreement", "", wording.percent(near.agreement), note))
    if report.latency:
        found.append(_speed_tile(report))
    if report.device and report.device.timing:
        found.append(_engine_tile(report.device))
    size = report.size
    if size.int8_bytes is not None:
        note = f"{_ratio(size.fp32_bytes, size.int8_bytes)} smaller" if size.fp32_bytes else ""
        sizes = wording.change(wording.size(size.fp32_bytes), wording.size(size.int8_bytes))
        found.append(Tile("File size", *sizes, note))
    elif size.fp32_bytes is not None:
        found.append(Tile("File size", "", wording.size(size.fp32_bytes), "FP32"))
    return found


def _speed_tile(report: Report) -> Tile:
    ms = wording.milliseconds
    latency, fp32, int8 = report.latency, timing(report, "fp32"), timing(report, "int8")
    ratio = latency.speedup.value if latency else None
    note = f"{wording.times(ratio)} as fast" if ratio is not None else "median"
    if latency and not latency.trusted:
        note += ", but not to be trusted"
    return Tile("Median latency", *wording.change(ms(fp32.p50_ms), ms(int8.p50_ms)), note)


def _engine_tile(device: Device) -> Tile:
    what = "copies" if "copies" in device.timing else next(iter(device.timing))
    timing = device.timing[what]
    fp16, int8 = (
        wording.milliseconds(timing.models[name].p50_ms) if name in timing.models else wording.NONE
        for name in ("fp16", "int8")
    )
    ratio = timing.speedup.value
    note = "median" if ratio is None else f"{wording.times(ratio)} as fast as FP16"
    note += ", with copies" if what == "copies" else ", compute alone"
    note += "" if timing.trusted else ", but not to be trusted"
    return Tile("Latency on the device", *wording.change(fp16, int8), note)


def comparison(report: Report) -> list[Row]:
    """Return accuracy, latency, memory and size of FP32 beside INT8; rows without figures are left out."""
    before, after = top1(report, "fp32"), top1(report, "int8")
    slow, fast = timing(report, "fp32"), timing(report, "int8")
    drop = report.accuracy.drop if report.accuracy else None
    speed = report.latency.speedup.value if report.latency else None
    change = ""
    if drop and drop.points is not None:
        change = f"{wording.points(-drop.points)} points"
        if drop.low is not None and drop.high is not None:
            change += f" ({wording.interval(-drop.high, -drop.low, 'points').removesuffix(' points')})"
    times = "" if speed is None else f"{wording.times(speed)} as fast"
    small = _ratio(report.size.fp32_bytes, report.size.int8_bytes)
    small = f"{small} smaller" if small else ""
    size, ms = wording.size, wording.milliseconds
    rows = [
        Row("top-1 accuracy", wording.percent(before.top1), wording.percent(after.top1), change),
        Row("calibration error (ECE)", wording.percent(before.ece), wording.percent(after.ece), ""),
        Row("latency, median", ms(slow.p50_ms), ms(fast.p50_ms), times),
        Row("latency, p99", ms(slow.p99_ms), ms(fast.p99_ms), ""),
        Row("peak memory", _unit(slow.peak_memory_mb, "MB"), _unit(fast.peak_memory_mb, "MB"), ""),
        Row("file size", size(report.size.fp32_bytes), size(report.size.int8_bytes), small),
    ]
    return [row for row in rows if (row.fp32, row.int8) != (wording.NONE, wording.NONE)]


def scale(gate: Gate) -> Scale | None:
    """Return where value, interval and limit lie on a common line, or None where there is no value."""
    if gate.value is None or gate.limit is None:
        return None
    known = [v for v in (gate.value, gate.limit, gate.low, gate.high) if v is not None]
    low, high = min(known), max(known)
    # A lone value on its limit still needs a line to lie on.
    margin = 0.15 * (high - low) or max(abs(high), 1.0) * 0.1
    width = high - low + 2 * margin

    def place(value: float) -> float:
        return round(100 * (value - low + margin) / width, 2)

    limit, most = place(gate.limit), gate.direction == "max"
    spanned = gate.low is not None and gate.high is not None
    return Scale(
        value=place(gate.value),
        limit=limit,
        low=place(gate.low) if spanned and gate.low is not None else None,
        high=place(gate.high) if spanned and gate.high is not None else None,
        good_from=0 if most else limit,
        good_to=limit if most else 100,
    )


def gate_rows(report: Report) -> list[tuple[str, str, str, str, str]]:
    """Return title, status, value, limit and interval of each gate, in words."""
    rows = []
    for gate in report.gates:
        unit = short_unit(gate)
        title = (gate.title or gate.name) + (f" ({gate.unit})" if gate.unit != unit else "")
        limit = wording.bound(gate.limit, gate.direction, unit)
        span = wording.interval(gate.low, gate.high, unit, gate.limit)
        value = wording.quantity(gate.value, unit, gate.limit)
        rows.append((title, gate.label, value, limit, span))
    return rows


def whys(report: Report) -> list[tuple[str, str]]:
    """Return why gates could not be judged, each reason once, with the gates that it holds for."""
    found: dict[str, list[str]] = {}
    for gate in report.gates:
        if gate.why:
            found.setdefault(gate.why, []).append(gate.title or gate.name)
    return [("; ".join(titles), why) for why, titles in found.items()]


def short_unit(gate: Gate) -> str:
    """Return a unit that fits behind a number; a phrase belongs to the title."""
    return "" if " " in gate.unit else gate.unit


def class_names(report: Report) -> list[str]:
    """Return the classes' names in the order of the confusion matrix."""
    if report.data.classes:
        return list(report.data.classes)
    return [row.name for row in report.accuracy.per_class] if report.accuracy else []


def confused(report: Report, most: int = WORST) -> list[Pair]:
    """Return the pairs of classes that INT8 confuses most often."""
    return list(report.accuracy.confused[:most]) if report.accuracy else []


def worst_classes(rows: Sequence[ClassRow], most: int = WORST) -> list[ClassRow]:
    """Return all classes in their order, or of many those with images that lose most from FP32 to INT8."""
    if len(rows) <= most:
        return list(rows)
    judged = [row for row in rows if row.images > 0]
    return sorted(judged, key=lambda row: (change(row) / row.images, (row.int8 or 0) / row.images))[:most]


def is_command(text: str) -> bool:
    """Tell a command line from a sentence among the things left to do."""
    return " --" in text and not text.endswith(".")


def parity_rows(parity: Parity) -> list[tuple[str, str, str]]:
    """Return what was compared: words, FP32 ONNX against torch, INT8 against FP32."""
    sides = (parity.fp32_vs_torch, parity.int8_vs_fp32)
    rows = [
        ("inputs", *(wording.count(s.images) for s in sides)),
        ("same top-1 class", *(wording.percent(s.agreement) for s in sides)),
        ("mean cosine", *(wording.quantity(s.cosine_mean, "") for s in sides)),
        ("lowest cosine", *(wording.quantity(s.cosine_min, "") for s in sides)),
        ("signal to noise", *(_unit(s.sqnr_db, "dB") for s in sides)),
        ("largest difference", *(wording.number(s.difference) for s in sides)),
        ("the same over the logits' deviation", *(wording.number(s.difference_over_std) for s in sides)),
    ]
    return [(words, one, two) for words, one, two in rows if (one, two) != (wording.NONE, wording.NONE)]


def latency_rows(latency: Latency) -> list[tuple[str, list[str]]]:
    """Return each figure of the latencies with one column per network."""
    times, ms = list(latency.models.values()), wording.milliseconds
    rows = [
        ("median (p50)", [ms(t.p50_ms) for t in times]),
        ("its interval", [wording.interval(t.p50_low_ms, t.p50_high_ms, "ms") for t in times]),
        ("p90", [ms(t.p90_ms) for t in times]),
        ("p99", [ms(t.p99_ms) for t in times]),
        ("mean", [ms(t.mean_ms) for t in times]),
        ("fastest to slowest", [wording.interval(t.min_ms, t.max_ms, "ms") for t in times]),
        ("spread (deviation over mean)", [wording.percent(t.cv) for t in times]),
        ("timed runs", [wording.count(t.count) for t in times]),
        ("warm-up runs before", [wording.count(t.warmup) for t in times]),
        ("peak memory of the process", [_unit(t.peak_memory_mb, "MB") for t in times]),
    ]
    return [(words, cells) for words, cells in rows if any(cell not in ("", wording.NONE) for cell in cells)]


def machine_rows(report: Report) -> list[tuple[str, str]]:
    """Return where the report was made, and for what."""
    machine, profile = report.machine, report.profile
    size = [wording.count(machine.cores, "core") if machine.cores else "",
            _unit(machine.memory_gb, "GB of memory") if machine.memory_gb else ""]  # fmt: skip
    versions = {"edgetune": report.edgetune, "Python": machine.python, **machine.libraries}
    int8 = (
        ""
        if machine.vnni is None
        else "at full speed"
        if machine.vnni
        else "without VNNI: slower, reduced range"
    )
    rows = [
        ("Target", ", ".join(filter(None, (profile.title, profile.label)))),
        ("Made on", ", ".join(filter(None, (machine.cpu, *size, machine.system)))),
        ("INT8 here", int8),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)),
        ("Made at", wording.when(report.made_at)),
        ("Command", report.command),
    ]
    return [(term, words) for term, words in rows if words]


def data_classes(data: Data) -> list[str]:
    """Return the classes' names, from the counts where the list is missing."""
    return list(data.classes or dict.fromkeys(name for counts in data.counts.values() for name in counts))


def splits(data: Data) -> dict[str, dict[str, int]]:
    """Return the counts of each split, in the order in which the splits are used."""
    order = ("train", "val", "test")
    return {name: data.counts[name] for name in (*order, *data.counts) if name in data.counts}


def contents(page: str) -> list[tuple[str, Markup]]:
    """Return anchor and heading of each section of a page."""
    found = re.findall(r'<section class="part" id="(\w+)".*?<h2[^>]*>(.*?)</h2>', page, re.DOTALL)
    return [(anchor, Markup(words)) for anchor, words in found]


def change(row: ClassRow) -> int:
    """Return how many more images of a class INT8 gets right than FP32, 0 where that is not known."""
    return 0 if row.int8 is None or row.fp32 is None else row.int8 - row.fp32


def cell_change(confusion: Confusion, truth: int, said: int) -> str:
    """Return how many images more or fewer than with FP32 lie in a cell, where FP32's matrix is known."""
    if not confusion.fp32:
        return ""
    return wording.signed(_cell(confusion.int8, truth, said) - _cell(confusion.fp32, truth, said))


def _cell(table: Sequence[Sequence[int]], row: int, column: int) -> int:
    return table[row][column] if row < len(table) and column < len(table[row]) else 0


def _hundred(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _unit(value: float | None, unit: str) -> str:
    return wording.NONE if value is None else f"{wording.number(value)} {unit}"


def _ratio(fp32: int | None, int8: int | None) -> str:
    return f"{wording.number(fp32 / int8, 2)}×" if fp32 and int8 else ""
