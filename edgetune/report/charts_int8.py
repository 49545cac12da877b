"""Charts of how INT8 was made: which layers hurt, and how ranges settle.

It knows nothing of the page. It may import the report's drawing, schemas, view and wording.
"""

from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from edgetune.report import view_int8
from edgetune.report.drawing import (
    FIRST,
    INK,
    MUTED,
    PERCENT,
    SECOND,
    STYLE,
    WIDTH,
    WRONG,
    figure,
    legend,
    svg,
)
from edgetune.report.schema_int8 import Calibration, Layer
from edgetune.report.wording import count, middle, percent

# Of a layer's row, in chart units, and of all of them together.
ROW, LEAST, MOST = 7, 130, 560
LABEL = 15
# Between two numbers below an axis.
TICK = 28


def layer_chart(layers: Sequence[Layer]) -> str:
    """Draw the signal-to-noise ratio of every layer's output, from the input (top) to the output."""
    shown = view_int8.measured(layers)
    worst = view_int8.worst_layers(shown)
    if not worst:
        return ""
    low, high = _ends([layer.sqnr_db for layer in shown if layer.sqnr_db is not None])
    places = {id(layer): place for place, layer in enumerate(shown)}
    dots = [(min(layer.sqnr_db, high), places[id(layer)]) for layer in shown if layer.sqnr_db is not None]
    height = min(max(ROW * len(shown), LEAST), MOST)
    with mpl.rc_context(STYLE):
        canvas, axes = figure(70 + height)
        axes.plot(*zip(*dots, strict=True), color=SECOND, linewidth=1, alpha=0.45)
        axes.plot(*zip(*dots, strict=True), "o", color=SECOND, markersize=3.5, label="INT8")
        bad = [(layer.sqnr_db or 0.0, places[id(layer)]) for layer in worst]
        marked = "the lowest" if len(worst) == 1 else f"the {len(worst)} lowest"
        axes.plot(*zip(*bad, strict=True), "o", color=WRONG, markersize=6.5, label=marked)
        floats = [places[id(layer)] for layer in shown if layer.sqnr_db is None]
        if floats:
            edge = axes.get_yaxis_transform()
            axes.plot([0] * len(floats), floats, "D", color=INK, fillstyle="none", markersize=5.5, mew=1.4,
                      transform=edge, clip_on=False, label="in float")  # fmt: skip
        axes.set_xlim(low, high)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        names = view_int8.short_names(shown)
        rows = sorted((places[id(layer)], layer.sqnr_db or 0.0) for layer in worst)
        _name(axes, [(place, names[place], sqnr) for place, sqnr in rows], LABEL * len(shown) / height)
        axes.set_xlabel("signal to noise, dB")
        axes.set_yticks([])
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.spines["left"].set_visible(False)
        # Above the names too: what they leave of the width may be less than the legend's.
        canvas.legend(loc="outside upper right", ncols=3, borderaxespad=0.2, columnspacing=1.4)
        least = view_int8.decibels(worst[0].sqnr_db)
        label = (
            f"Signal to noise of {count(len(shown), 'layer')} in running order; "
            f"lowest: {middle(worst[0].name, 60)}, {least}. Figures in the table."
        )
        return svg(canvas, "layers", label)


def settling_chart(calibration: Calibration) -> str:
    """Draw how far scales lie from the final ones, against the number of images they come from."""
    steps = view_int8.settling(calibration.convergence)
    if len(steps) < 2:
        return ""
    images = [step[0] for step in steps]
    enough = calibration.enough_images
    with mpl.rc_context(STYLE):
        canvas, axes = figure(210)
        axes.plot(images, [100 * step[1] for step in steps], color=SECOND, marker="o", markersize=4.5,
                  clip_on=False, label="median")  # fmt: skip
        axes.plot(images, [100 * step[2] for step in steps], color=FIRST, linestyle=(0, (4, 2)), marker="s",
                  markersize=3.5, clip_on=False, label="95th percentile")  # fmt: skip
        if enough is not None:
            axes.axvline(enough, color=INK, linewidth=1.2, linestyle=(0, (2, 2)), label=f"enough: {enough:,}")
        axes.set_xscale("log", base=2)
        axes.set_xticks(_apart(images))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("inputs")
        axes.yaxis.set_major_formatter(PERCENT)
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axes.set_ylim(bottom=0)
        axes.grid(axis="x", visible=False)
        legend(axes)
        ends = f"median {percent(steps[0][1])} after {count(images[0], 'input')}"
        rest = "not settled" if enough is None else f"settled after {enough:,}"
        return svg(canvas, "settling", f"Distance of the scales to the final ones: {ends}; {rest}.")


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Return where the axis begins and ends; layers without any error stand on its end."""
    noisy = [value for value in values if value < view_int8.CEILING_DB]
    low, high = min(noisy), max(noisy)
    margin = 0.06 * (high - low) or 1.0
    return low - margin, high + margin


def _name(axes: Axes, rows: Sequence[tuple[int, str, float]], gap: float) -> None:
    """Write names left of the axes, far enough apart to be read, each with a line to its dot."""
    bottom, top = axes.get_ylim()
    spots = _dodge([place for place, _, _ in rows], gap, top, bottom)
    edge = axes.get_yaxis_transform()
    left = axes.get_xlim()[0]
    for (place, name, sqnr), spot in zip(rows, spots, strict=True):
        axes.plot([left, sqnr], [place, place], color=WRONG, linewidth=0.9, alpha=0.6)
        axes.plot([-0.05, -0.015, 0], [spot, place, place], color=MUTED, linewidth=0.8, transform=edge,
                  clip_on=False, zorder=0)  # fmt: skip
        axes.text(-0.06, spot, middle(name, 24), transform=edge, ha="right", va="center", fontsize=11)


def _dodge(places: Sequence[float], gap: float, top: float, bottom: float) -> list[float]:
    """Move ascending places apart, as little as that takes, within the axes where they fit."""
    spots: list[float] = []
    for place in places:
        spots.append(max(place, spots[-1] + gap) if spots else max(place, top + gap / 2))
    edge = bottom - gap / 2
    for index in reversed(range(len(spots))):
        spots[index] = edge = min(spots[index], edge)
        edge -= gap
    return spots


def _apart(images: Sequence[int]) -> list[int]:
    """Return the counts that are written below the axis: the last one, and those that leave it room."""
    room = (images[-1] / images[0]) ** (TICK / WIDTH)
    return [number for number in images[:-1] if number * room <= images[-1]] + [images[-1]]
