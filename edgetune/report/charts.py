"""Charts of a run: curves of training and transfer, classes, latencies.

It knows nothing of the page. It may import the report's drawing, schema, view_distill and wording.
"""

import itertools
from collections.abc import Iterable, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from edgetune.report import view_distill
from edgetune.report.drawing import FIRST, INK, MUTED, PERCENT, SECOND, STYLE, figure, legend, svg
from edgetune.report.schema import ClassRow, Epoch, Latency, Training, Transfer
from edgetune.report.schema_distill import Distillation
from edgetune.report.wording import middle, milliseconds, percent

Curve = tuple[str, Sequence[tuple[int, float | None]]]


def training_charts(training: Training) -> list[tuple[str, str]]:
    """Draw accuracy and loss over the epochs, each with its title; one without figures is left out."""
    epochs = training.epochs
    losses: list[Curve] = [
        ("validation", [(e.epoch, e.val_loss) for e in epochs]),
        ("training", [(e.epoch, e.loss) for e in epochs]),
    ]
    accuracies: list[Curve] = [
        ("validation", [(e.epoch, e.val_top1) for e in epochs]),
        ("training", [(e.epoch, e.train_top1) for e in epochs]),
    ]
    best = training.best_epoch
    drawn = [
        ("Top-1 accuracy", _curves("accuracy", "Top-1", accuracies, shares=True, epochs=epochs, best=best)),
        ("Loss", _curves("loss", "Loss", losses, shares=False, epochs=epochs, best=best)),
    ]
    return [(title, chart) for title, chart in drawn if chart]


def transfer_chart(transfer: Transfer) -> str:
    """Draw validation accuracy over the epochs, pretrained against from scratch."""
    curves: list[Curve] = [
        ("pretrained", [(e.epoch, e.val_top1) for e in transfer.epochs_pretrained]),
        ("from scratch", [(e.epoch, e.val_top1) for e in transfer.epochs_scratch]),
    ]
    return _curves("transfer", "Validation top-1", curves, shares=True)


def distillation_chart(found: Distillation) -> str:
    """Draw validation accuracy over the epochs, distilled against alone."""
    return _curves("distillation", "Validation top-1", view_distill.curves(found), shares=True)


def class_chart(rows: Sequence[ClassRow]) -> str:
    """Draw each class's accuracy, FP32 as a ring and INT8 as a dot, in the order given."""
    known = [row for row in rows if row.images > 0 and row.fp32 is not None and row.int8 is not None]
    if not known:
        return ""
    fp32 = [100 * (row.fp32 or 0) / row.images for row in known]
    int8 = [100 * (row.int8 or 0) / row.images for row in known]
    places = list(range(len(known)))
    with mpl.rc_context(STYLE):
        canvas, axes = figure(58 + 22 * len(known))
        axes.hlines(places, fp32, int8, color=MUTED, linewidth=2)
        axes.plot(fp32, places, "o", color=FIRST, fillstyle="none", markersize=10, mew=2, label="FP32")
        axes.plot(int8, places, "o", color=SECOND, markersize=5.5, label="INT8")
        low = min(fp32 + int8)
        axes.set_xlim(max(0.0, 10 * np.floor((low - 2) / 10)) - 1.5, 101.5)
        axes.set_ylim(len(known) - 0.4, -0.6)
        axes.set_yticks(places, [middle(row.name, 20) for row in known])
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_formatter(PERCENT)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        legend(axes)
        label = f"Accuracy of {len(known)} classes, FP32 and INT8; lowest {low:.0f}%. Figures in the table."
        return svg(canvas, "classes", label)


def latency_chart(latency: Latency) -> str:
    """Draw how often each latency occurred. The slowest runs lie beyond the edge; how many, the axis says."""
    shown = [(key.upper(), timing) for key, timing in latency.models.items() if len(timing.samples_ms) > 1]
    if not shown:
        return ""
    everything = [np.asarray(timing.samples_ms) for _, timing in shown]
    low = min(float(s.min()) for s in everything)
    high = max(map(_fence, everything))
    if high <= low:
        high = low * 1.1 + 1e-6
    edges = np.linspace(low - 0.04 * (high - low), high + 0.04 * (high - low), 61)
    total = sum(len(s) for s in everything)
    beyond = sum(int((s > edges[-1]).sum()) for s in everything)
    with mpl.rc_context(STYLE):
        canvas, axes = figure(220)
        for samples, (key, timing) in zip(everything, shown, strict=True):
            colour, hatch = (FIRST, "////") if key in ("FP32", "FP16") else (SECOND, "")
            heights, _ = np.histogram(samples, edges)
            name = f"{key}, {milliseconds(timing.p50_ms)}"
            drawn = 100 * heights / len(samples)
            # Two drawings: matplotlib's hatches forget how transparent the area behind them is.
            axes.stairs(drawn, edges, fill=True, facecolor=colour, edgecolor="none", alpha=0.25)
            axes.stairs(
                drawn,
                edges,
                fill=True,
                facecolor="none",
                edgecolor=colour,
                linewidth=1.2,
                hatch=hatch,
                label=name,
            )
            if timing.p50_ms is not None:
                axes.axvline(timing.p50_ms, color=colour, linewidth=1.2, linestyle=(0, (2, 2)))
        axes.set_xlabel(
            "latency of one run, ms"
            + (f"; {percent(beyond / total)} of the runs were slower" if beyond else "")
        )
        axes.yaxis.set_major_formatter(PERCENT)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.grid(axis="x", visible=False)
        axes.set_ylim(bottom=0)
        legend(axes)
        medians = ", ".join(f"{key} {milliseconds(timing.p50_ms)}" for key, timing in shown)
        return svg(canvas, "latency", f"Distribution of latencies; medians: {medians}.")


def _fence(samples: NDArray[np.float64]) -> float:
    """Return where the far-out samples begin (J. W. Tukey, Exploratory Data Analysis, 1977)."""
    quarter, median, three = np.quantile(samples, (0.25, 0.5, 0.75))
    return float(min(max(three + 3 * (three - quarter), 1.1 * median), samples.max()))


def _curves(
    name: str,
    title: str,
    curves: Iterable[Curve],
    *,
    shares: bool,
    epochs: Sequence[Epoch] = (),
    best: int | None = None,
) -> str:
    factor = 100 if shares else 1
    known = [(label, [(x, factor * y) for x, y in line if y is not None]) for label, line in curves]
    known = [(label, line) for label, line in known if line]
    if not known:
        return ""
    styles = ((SECOND, "-", "o", 4.5), (FIRST, (0, (4, 2)), "s", 3.5))
    with mpl.rc_context(STYLE):
        canvas, axes = figure(220)
        for (label, line), (colour, dashes, marker, size) in zip(known, styles, strict=False):
            few = len(line) <= 30
            axes.plot(
                *zip(*line, strict=True), color=colour, linestyle=dashes, label=label,
                marker=marker if few else "", markersize=size,
            )  # fmt: skip
            if label == "validation" and best in dict(line):
                axes.plot(best, dict(line)[best], "o", color=INK, fillstyle="none", markersize=11, mew=1.5,
                          linestyle="none", label=f"kept (epoch {best})")  # fmt: skip
        _phases(axes, epochs)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.grid(axis="x", visible=False)
        if shares:
            axes.yaxis.set_major_formatter(PERCENT)
        legend(axes)
        unit = "%" if shares else ""
        ends = ", ".join(f"{label} {line[-1][1]:.3g}{unit}" for label, line in known)
        return svg(canvas, name, f"{title} over the epochs; at the end: {ends}.")


def _phases(axes: Axes, epochs: Sequence[Epoch]) -> None:
    """Mark where gradual fine-tuning opened the next group of layers."""
    for before, after in itertools.pairwise(epochs):
        if before.phase != after.phase:
            axes.axvline((before.epoch + after.epoch) / 2, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
