"""What Markdown and HTML show of how INT8 was made: which layers hurt, what each correction brought.

It knows nothing of how things look. It may import the report's schemas and its wording.
"""

from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

from edgetune.report import wording
from edgetune.report.schema_int8 import Layer, Quantization, Rung, Settling

WORST = 5
# Layers that are named in a sentence.
FEW = 3
# Stands for "no error at all" where a signal-to-noise ratio is written down.
CEILING_DB = 200.0
# What has weights and so most of the work: in float, it is worth a mark.
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")

RUNGS = {
    "ranges": "ranges alone",
    "equalization": "cross-layer equalization",
    "smoothing": "smoothing behind LayerNorms",
    "centering": "centering",
    "relief": "relief",
    "bias": "bias correction",
    "rounding": "rounding (AdaRound)",
    "reconstruction": "block reconstruction of ranges",
    "mixed": "mixed precision",
    "training": "training (QAT)",
    "attention": "attention in INT8",
}


class RungRow(NamedTuple):
    """A correction in words; `gain` is against the best before it."""

    title: str
    outcome: str
    what: str
    sqnr: str
    gain: str
    agreement: str
    time: str


class LayerRow(NamedTuple):
    """A layer that hurts, in words."""

    name: str
    op: str
    sqnr: str
    share: str
    gain: str | None


def ladder_rows(quantization: Quantization) -> list[RungRow]:
    """Return what each correction gained and cost, in the order in which they were tried."""
    rows, best = [], None
    for rung in quantization.ladder:
        tried = rung.sqnr_db is not None
        first = rung is quantization.ladder[0]
        rows.append(
            RungRow(
                RUNGS.get(rung.rung, rung.rung),
                "start" if first else "kept" if rung.kept else "dropped" if tried else "not tried",
                _brief(rung),
                decibels(rung.sqnr_db),
                difference(rung.sqnr_db, best),
                _expected(rung),
                # The first one's time is calibration's, which is counted there.
                wording.NONE if first or not tried else wording.seconds(rung.seconds),
            )
        )
        if rung.kept and tried:
            best = rung.sqnr_db
    return rows


def _expected(rung: Rung) -> str:
    """Return how many are expected to keep their class, and at least how many (one-sided, at 90%)."""
    if rung.agreement_at_least is None:
        return wording.percent(rung.agreement_expected)
    return f"{wording.percent(rung.agreement_expected)} (≥ {wording.percent(rung.agreement_at_least)})"


def _brief(rung: Rung) -> str:
    """Return what a correction did; of many layers left in float, which the table of layers lists, the first."""
    names = rung.why.split(", ")
    if rung.rung not in ("mixed", "relief") or len(names) <= FEW:
        return rung.why
    return f"{', '.join(names[:FEW])} and {len(names) - FEW} more"


def measured(layers: Sequence[Layer]) -> list[Layer]:
    """Return the layers whose output was compared with FP32's, and the weighted ones that stay in float."""
    if not any(layer.sqnr_db is not None for layer in layers):
        return []
    return [layer for layer in layers if layer.sqnr_db is not None or is_float(layer)]


def is_float(layer: Layer) -> bool:
    """Tell whether a layer with weights stays in float."""
    return layer.op in WEIGHTED and layer.precision not in ("INT8", "")


def worst_layers(layers: Sequence[Layer], most: int = WORST) -> list[Layer]:
    """Return the layers whose outputs are furthest from FP32's, the worst first."""
    heard = [(layer.sqnr_db, layer) for layer in layers if layer.sqnr_db is not None]
    noisy = [(sqnr, layer) for sqnr, layer in heard if sqnr < CEILING_DB]
    return [layer for _, layer in sorted(noisy, key=lambda pair: pair[0])[:most]]


def layer_rows(layers: Sequence[Layer], most: int = WORST) -> list[LayerRow]:
    """Return the worst layers in words: how much of the network's work each is, what float would gain."""
    total = sum(layer.operations or 0 for layer in layers)
    return [
        LayerRow(
            layer.name,
            layer.op,
            decibels(layer.sqnr_db),
            wording.percent(layer.operations / total) if total and layer.operations is not None else "",
            None if layer.gain_db is None else difference(layer.gain_db, 0.0),
        )
        for layer in worst_layers(layers, most)
    ]


def short_name(layer: Layer) -> str:
    """Shorten a path that torch wrote: `/features/features.2/conv/conv.1/Conv` is `features.2/conv.1`."""
    parts = [part for part in layer.name.split("/") if part]
    if len(parts) > 1 and parts[-1] == layer.op:
        parts.pop()
    kept = [
        part for part, after in zip(parts, [*parts[1:], ""], strict=False) if not after.startswith(f"{part}.")
    ]
    return "/".join(kept) or layer.name


def short_names(layers: Sequence[Layer]) -> list[str]:
    """Shorten the names of layers further: without the folders that all of them lie in."""
    paths = [short_name(layer).split("/") for layer in layers]
    levels = zip(*(path[:-1] for path in paths), strict=False)
    shared = len(list(takewhile(lambda level: len(set(level)) == 1, levels)))
    return ["/".join(path[shared:]) for path in paths]


def settling(convergence: Sequence[Settling]) -> list[tuple[int, float, float]]:
    """Return images, median and 95th percentile of the scales' distance to the final ones, where known."""
    return [
        (step.images, step.median, step.p95)
        for step in convergence
        if step.images and step.median is not None and step.p95 is not None
    ]


def settling_rows(convergence: Sequence[Settling]) -> list[tuple[str, str, str]]:
    """Return the same in words."""
    return [
        (wording.count(images), wording.percent(median), wording.percent(p95))
        for images, median, p95 in settling(convergence)
    ]


def decibels(value: float | None) -> str:
    """Return a signal-to-noise ratio: `37.9 dB`."""
    if value is None:
        return wording.NONE
    return "no error" if value >= CEILING_DB else f"{_tenths(value)} dB"


def difference(value: float | None, before: float | None) -> str:
    """Return a change of a signal-to-noise ratio with its sign: `+3.3 dB`; nothing where it is not known."""
    if value is None or before is None:
        return ""
    text = _tenths(value - before)
    return f"{text if text.startswith(wording.MINUS) else f'+{text}'} dB"


def _tenths(value: float) -> str:
    return f"{round(value, 1) + 0.0:.1f}".replace("-", wording.MINUS)
