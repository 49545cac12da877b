"""What Markdown, HTML and the terminal show of texts that come in several lengths: a row for each.

It may import the report's schemas and its wording.
"""

from collections.abc import Sequence

from edgetune.report import wording
from edgetune.report.part import Ratio
from edgetune.report.schema import LatencyLength, ParityLength, Report
from edgetune.report.schema_device import Device, EngineLength, EngineTiming, Run, Share

COLUMNS = ("tokens", "texts", "top-1", "same class", "from torch", "median", "INT8")
DEVICE_COLUMNS = ("tokens", "texts", "top-1", "as expected", "compute alone", "with copies", "INT8")
FILLED = "others"


def rows(report: Report) -> list[tuple[str, ...]]:
    """Return a row per length of what ran here: FP32 → INT8."""
    near = {row.length: row for row in report.parity.lengths} if report.parity else {}
    timed = {row.length: row for row in report.latency.lengths} if report.latency else {}
    found: list[tuple[str, ...]] = []
    for length in sorted({*near, *timed}):
        right, fast = near.get(length, ParityLength()), timed.get(length, LatencyLength())
        found.append((
            str(length),
            wording.count(right.images) if right.images else FILLED,
            _both(wording.percent(right.fp32), wording.percent(right.int8)),
            wording.percent(right.agreement),
            wording.number(right.difference_over_std),
            _both(*(wording.milliseconds(fast.p50_ms.get(name)) for name in ("fp32", "int8"))),
            _times(fast.speedup, fast.trusted),
        ))  # fmt: skip
    return found


def device_rows(device: Device) -> list[tuple[str, ...]]:
    """Return a row per length of what the device's engines do: FP16 → INT8."""
    found: list[tuple[str, ...]] = []
    for row in device.lengths:
        engines = [row.engines.get(name, EngineLength()) for name in ("fp16", "int8")]
        times = {what: row.timing.get(what, EngineTiming()) for what in ("compute", "copies")}
        medians = {
            what: [wording.milliseconds(one.models.get(name, Run()).p50_ms) for name in ("fp16", "int8")]
            for what, one in times.items()
        }
        found.append((
            str(row.length),
            wording.count(row.samples),
            _both(*(wording.percent((engine.accuracy or Share()).top1) for engine in engines)),
            _both(*(wording.percent(engine.agreement) for engine in engines)),
            _both(*medians["compute"]),
            _both(*medians["copies"]),
            _times(times["copies"].speedup, times["copies"].trusted),
        ))  # fmt: skip
    return found


def known(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return titles and rows without the columns of which nothing is known."""
    kept = [i for i in range(len(columns)) if any(row[i] != wording.NONE for row in rows)]
    return [[line[i] for i in kept] for line in (columns, *rows)]


def note(report: Report) -> str:
    """Return what the rows of what ran here mean."""
    lent = [str(row.length) for row in report.parity.lengths if not row.images] if report.parity else []
    said = "FP32 → INT8. From torch: the largest difference of FP32's logits, in their standard deviations."
    if lent:
        said += f" No test text is filled up to {' or '.join(lent)} tokens: others were, or cut to that."
    return said


def _both(before: str, after: str) -> str:
    if after == wording.NONE:
        return before
    return " → ".join(wording.change(before, after))


def _times(speedup: Ratio, trusted: bool) -> str:
    said = wording.times(speedup.value)
    return said if trusted or speedup.value is None else f"{said}, not to be trusted"
