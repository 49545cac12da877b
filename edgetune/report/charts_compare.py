"""Charts of trainings side by side: learning curves and what they end with.

It knows nothing of the page. It may import the report's drawing, schema_compare and wording.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from edgetune.report.drawing import (
    FIFTH,
    FIRST,
    FOURTH,
    INK,
    PERCENT,
    SECOND,
    STYLE,
    THIRD,
    WRONG,
    figure,
    legend,
    svg,
)
from edgetune.report.schema_compare import Compared, Group, Point
from edgetune.report.wording import middle, percent

# A kind of training looks the same on every page.
COLOURS = {
    "from scratch": FIRST, "feature-extractor": SECOND, "partial": THIRD, "full": WRONG, "gradual": FOURTH,
    "distilled": FIFTH,
}  # fmt: skip
# Where one kind is there several times, and against mixing colours up.
DASHES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
MARKERS = {
    "from scratch": "s",
    "feature-extractor": "o",
    "partial": "^",
    "full": "D",
    "gradual": "v",
    "distilled": "P",
}
# Curves this many times as long as the shortest need a logarithmic axis.
UNLIKE = 8.0


class Look(NamedTuple):
    """How a group is drawn."""

    colour: str
    dashes: Any
    marker: str


def charts(found: Compared) -> dict[str, list[tuple[str, str]]]:
    """Draw everything; a chart that would show nothing is left out."""
    looks = _looks(found.groups)
    curves = [
        ("Against epochs", "epochs", "epoch", lambda p: float(p.epoch)),
        ("Against seconds", "seconds", "seconds since the training began", lambda p: p.seconds),
        ("Against inputs", "images", "training inputs seen", lambda p: p.images),
    ]  # fmt: skip
    drawn = [(title, curve_chart(found, looks, name, label, x)) for title, name, label, x in curves]
    ends = [
        ("Test accuracy", end_chart(found, looks)),
        ("Test accuracy against training inputs", size_chart(found)),
    ]
    return {"curves": [c for c in drawn if c[1]], "ends": [c for c in ends if c[1]]}


def curve_chart(
    found: Compared, looks: dict[str, Look], name: str, title: str, x: Callable[[Point], float]
) -> str:
    """Draw validation accuracy of all groups against one measure of effort."""
    shown = [group for group in found.groups if group.curve]
    if not shown:
        return ""
    ends = [x(group.curve[-1]) for group in shown]
    spread = name == "seconds" and min(ends) > 0 and max(ends) > UNLIKE * min(ends)
    with mpl.rc_context(STYLE):
        canvas, axes = figure(230 + 15 * (len(shown) // 2))
        for group in shown:
            look = looks[group.label]
            places = [x(point) for point in group.curve]
            few = len(places) <= 30
            axes.plot(places, [100 * p.top1 for p in group.curve], color=look.colour, linestyle=look.dashes,
                      marker=look.marker if few else "", markersize=4, label=middle(group.label, 34))  # fmt: skip
            if all(p.low is not None and p.high is not None for p in group.curve):
                axes.fill_between(places, [100 * (p.low or 0) for p in group.curve],
                                  [100 * (p.high or 0) for p in group.curve], color=look.colour, alpha=0.16,
                                  linewidth=0)  # fmt: skip
        if spread:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 3), numticks=7))
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=name != "seconds"))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        _shares(axes)
        axes.set_xlabel(title)
        axes.grid(axis="x", visible=False)
        _legend(axes, [group.label for group in shown])
        last = ", ".join(f"{group.label} {percent(group.curve[-1].top1)}" for group in shown)
        return svg(canvas, name, f"Validation accuracy against {title}; at the end: {last}.")


def end_chart(found: Compared, looks: dict[str, Look]) -> str:
    """Draw each group's test accuracy: every seed a small dot, the mean with its interval."""
    shown = [group for group in found.groups if group.test and group.test.top1 is not None]
    if not shown:
        return ""
    with mpl.rc_context(STYLE):
        canvas, axes = figure(52 + 30 * len(shown))
        for place, group in enumerate(shown):
            if group.test is None or group.test.top1 is None:
                continue
            look = looks[group.label]
            low, high = 100 * (group.test.low or 0), 100 * (group.test.high or 0)
            axes.plot([low, high], [place, place], color=look.colour, linewidth=3, alpha=0.4)
            each = [100 * value for value in group.test.each]
            if len(each) > 1:
                axes.plot(each, [place + 0.24] * len(each), "o", color=look.colour, markersize=3, alpha=0.7)
            axes.plot(100 * group.test.top1, place, look.marker, color=look.colour, markersize=7)
        axes.set_yticks(range(len(shown)), [middle(group.label, 24) for group in shown])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_formatter(PERCENT)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        said = ", ".join(f"{g.label} {percent(g.test.top1)}" for g in shown if g.test)
        return svg(canvas, "ends", f"Test accuracy: {said}. Figures in the table.")


def size_chart(found: Compared) -> str:
    """Draw test accuracy against the number of training images, where kinds were trained with several."""
    kinds: dict[str, list[Group]] = {}
    for group in found.groups:
        if group.test and group.test.top1 is not None:
            kinds.setdefault(group.kind, []).append(group)
    several = {kind: sorted(g, key=lambda one: one.train_images) for kind, g in kinds.items()}
    if not any(len({group.train_images for group in groups}) > 1 for groups in several.values()):
        return ""
    with mpl.rc_context(STYLE):
        canvas, axes = figure(230)
        for kind, groups in several.items():
            colour, marker = COLOURS.get(kind, INK), MARKERS.get(kind, "o")
            x = [group.train_images for group in groups]
            y = [100 * (group.test.top1 or 0) for group in groups if group.test]
            low = [100 * (group.test.low or 0) for group in groups if group.test]
            high = [100 * (group.test.high or 0) for group in groups if group.test]
            axes.vlines(x, low, high, color=colour, linewidth=2.5, alpha=0.35)
            axes.plot(x, y, color=colour, marker=marker, markersize=5, label=kind)
        axes.set_xlabel("training inputs")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        _shares(axes)
        axes.grid(axis="x", visible=False)
        _legend(axes, list(several))
        return svg(
            canvas, "sizes", "Test accuracy against the number of training inputs. Figures in the table."
        )


def _looks(groups: Sequence[Group]) -> dict[str, Look]:
    found: dict[str, Look] = {}
    seen: dict[str, int] = {}
    for group in groups:
        again = seen.get(group.kind, 0)
        seen[group.kind] = again + 1
        dashes = DASHES[again % len(DASHES)]
        found[group.label] = Look(COLOURS.get(group.kind, INK), dashes, MARKERS.get(group.kind, "o"))
    return found


def _shares(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(PERCENT)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def _legend(axes: Axes, labels: Sequence[str]) -> None:
    """Put the legend above the axes, in as many columns as its words leave room for."""
    if max(map(len, labels)) <= 18:
        legend(axes)
        return
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=1, borderaxespad=0.2,
                handlelength=1.9, handletextpad=0.5)  # fmt: skip
