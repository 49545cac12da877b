"""Charts of a search: trial after trial, epoch after epoch, what decides, and accuracy against latency.

It knows nothing of the page. It may import the report's drawing, schema_tune and wording.
"""

import math
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from edgetune.report.drawing import (
    FIRST,
    INK,
    MUTED,
    PERCENT,
    SECOND,
    STYLE,
    WRONG,
    figure,
    legend,
    svg,
)
from edgetune.report.schema_tune import Searched, Trial
from edgetune.report.wording import middle, milliseconds, percent

# What a badly stopped or failed trial has at most to say on the axis of accuracies.
LOWEST_SHARE = 0.05


def search_charts(found: Searched) -> list[tuple[str, str]]:
    """Draw the search: accuracy against latency where it was timed, trial by trial, epoch by epoch."""
    drawn = [
        ("INT8 accuracy against latency", front_chart(found)),
        ("Validation accuracy, trial after trial", history_chart(found)),
        ("Validation accuracy by epoch", curves_chart(found)),
    ]
    return [(title, chart) for title, chart in drawn if chart]


def setting_charts(found: Searched, most: int) -> list[tuple[str, str]]:
    """Draw how much each setting decides, and accuracy against the settings that decide most."""
    ordered = sorted(found.importance.items(), key=lambda item: -item[1])
    drawn = [("Importance", importance_chart(found))]
    drawn += [(f"Accuracy against {key}", slice_chart(found, key)) for key, _ in ordered[:most]]
    return [(title, chart) for title, chart in drawn if chart]


def history_chart(found: Searched) -> str:
    """Draw every trial's accuracy in the order of the trials, and the best so far."""
    done = found.done
    if not done:
        return ""
    with mpl.rc_context(STYLE):
        canvas, axes = figure(240)
        steps, best = [], -1.0
        slow = [trial for trial in done if _too_slow(found, trial)]
        for trial in done:
            best = best if trial in slow else max(best, trial.top1 or 0.0)
            steps.append((trial.number, 100 * best if best >= 0 else math.nan))
        steps.append((max(trial.number for trial in found.trials), steps[-1][1]))
        axes.step(
            *zip(*steps, strict=True),
            where="post",
            color=SECOND,
            linewidth=1.4,
            alpha=0.6,
            label="best so far",
        )
        _dots(axes, [(t.number, 100 * (t.top1 or 0)) for t in done if t not in slow], "finished")
        _hollow(axes, [(t.number, 100 * (t.top1 or 0)) for t in slow])
        stopped = [t for t in found.trials if t.state == "pruned" and t.last is not None]
        if stopped:
            axes.plot([t.number for t in stopped], [100 * (t.last or 0) for t in stopped], "x", color=MUTED,
                      markersize=5.5, mew=1.4, label="stopped early")  # fmt: skip
        failed = [t.number for t in found.trials if t.state == "failed"]
        if failed:
            axes.plot(failed, [0.03] * len(failed), "v", color=WRONG, markersize=6, clip_on=False,
                      transform=axes.get_xaxis_transform(), label="failed")  # fmt: skip
        _own(axes, found)
        _ring(axes, found, [t.number for t in done], [100 * (t.top1 or 0) for t in done])
        _accuracies(axes, [100 * (t.top1 or 0) for t in done])
        axes.set_xlabel("trial")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.grid(axis="x", visible=False)
        legend(axes)
        label = f"Validation accuracy of {len(done)} trials; best {percent(best)}. Figures in the table."
        return svg(canvas, "history", label)


def curves_chart(found: Searched) -> str:
    """Draw validation accuracy over the epochs of every trial."""
    shown = [trial for trial in found.trials if len(trial.curve) > 0]
    if not any(len(trial.curve) > 1 for trial in shown):
        return ""
    own = found.as_it_is
    best = found.winner.number if found.winner else None
    named = {"others": False, "stopped early": False}
    with mpl.rc_context(STYLE):
        canvas, axes = figure(240)
        for trial in shown:
            if trial.number in (own, best):
                continue
            word = "stopped early" if trial.state == "pruned" else "others"
            label = "" if named[word] else word
            named[word] = True
            epochs, shares = _line(trial)
            axes.plot(epochs, shares, color=FIRST, linewidth=1.0, alpha=0.55 if word == "others" else 0.3,
                      linestyle="-" if word == "others" else (0, (2, 1.5)), label=label or "_")  # fmt: skip
            if word == "stopped early":
                axes.plot(epochs[-1:], shares[-1:], "x", color=MUTED, markersize=4.5, mew=1.2)
        if own != best and (mine := found.trial(own)) and mine.curve:
            axes.plot(*_line(mine), color=WRONG, linestyle=(0, (4, 2)), label="as it is")
        if (winner := found.trial(best)) and winner.curve:
            axes.plot(*_line(winner), color=SECOND, linewidth=2.6, label=f"trial {best}")
        _accuracies(axes, [100 * share for trial in shown for _, share in trial.curve], cut=False)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.grid(axis="x", visible=False)
        legend(axes)
        return svg(canvas, "curves", f"Validation accuracy over the epochs of {len(shown)} trials.")


def importance_chart(found: Searched) -> str:
    """Draw how much of the differences each setting explains."""
    rows = sorted(found.importance.items(), key=lambda item: -item[1])
    if not rows:
        return ""
    with mpl.rc_context(STYLE):
        canvas, axes = figure(46 + 26 * len(rows))
        places = list(range(len(rows)))
        axes.barh(places, [100 * share for _, share in rows], height=0.55, color=SECOND)
        for place, (_, share) in zip(places, rows, strict=True):
            axes.text(100 * share + 1, place, percent(share, 0), va="center", fontsize=11)
        axes.set_yticks(places, [middle(key, 26) for key, _ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, 100 * rows[0][1] * 1.18 + 1)
        axes.xaxis.set_major_formatter(PERCENT)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.grid(axis="y", visible=False)
        named = ", ".join(f"{key} {percent(share, 0)}" for key, share in rows)
        return svg(canvas, "importance", f"Importance of the settings: {named}.")


def slice_chart(found: Searched, key: str) -> str:
    """Draw accuracy against one setting."""
    shown = [trial for trial in found.done if trial.values.get(key) is not None]
    axis = found.space.get(key)
    if not shown or axis is None:
        return ""
    names: list[str] = [] if isinstance(axis, dict) else [str(value) for value in axis]
    with mpl.rc_context(STYLE):
        canvas, axes = figure(190)
        places = [_place(trial, key, names) for trial in shown]
        _dots(axes, list(zip(places, [100 * (t.top1 or 0) for t in shown], strict=True)), "")
        _ring(
            axes,
            found,
            places,
            [100 * (t.top1 or 0) for t in shown],
            {t.number: i for i, t in enumerate(shown)},
        )
        if names:
            axes.set_xticks(range(len(names)), [middle(name, 60 // len(names) + 3) for name in names])
            axes.set_xlim(-0.6, len(names) - 0.4)
        elif isinstance(axis, dict) and axis.get("log"):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 3), numticks=6))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_locator(NullLocator())
        _accuracies(axes, [100 * (t.top1 or 0) for t in shown])
        axes.set_xlabel(middle(key, 50))
        axes.grid(axis="x", visible=False)
        return svg(
            canvas,
            "slice-" + key.replace(".", "-"),
            f"Validation accuracy against {key}. Figures in the table.",
        )


def front_chart(found: Searched) -> str:
    """Draw INT8 accuracy against latency, the front and the limit."""
    shown = [trial for trial in found.done if trial.latency_ms is not None]
    if not shown:
        return ""
    limit = found.latency_ms
    with mpl.rc_context(STYLE):
        canvas, axes = figure(260)
        over = [t for t in shown if _too_slow(found, t)]
        able = [t for t in shown if t not in over]
        _dots(axes, [(t.latency_ms or 0, 100 * (t.top1 or 0)) for t in able], "finished")
        _hollow(axes, [(t.latency_ms or 0, 100 * (t.top1 or 0)) for t in over])
        edge = [trial for number in found.front if (trial := found.trial(number))]
        line = [(t.latency_ms or 0, 100 * (t.top1 or 0)) for t in edge]
        if line:
            x, y = zip(*line, strict=True)
            axes.step(x, y, where="post", color=SECOND, linewidth=1.4, alpha=0.7, label="front")
        if limit is not None:
            axes.axvline(
                limit, color=WRONG, linewidth=1.3, linestyle=(0, (4, 2)), label=f"limit {milliseconds(limit)}"
            )
        _ring(axes, found, [t.latency_ms or 0 for t in shown], [100 * (t.top1 or 0) for t in shown],
              {t.number: i for i, t in enumerate(shown)})  # fmt: skip
        _accuracies(axes, [100 * (t.top1 or 0) for t in shown])
        axes.set_xlabel("median latency of the INT8 network here, ms")
        axes.set_xlim(left=0)
        legend(axes)
        ends = f"{percent(edge[0].top1)} at {milliseconds(edge[0].latency_ms)}" if edge else ""
        last = f" to {percent(edge[-1].top1)} at {milliseconds(edge[-1].latency_ms)}" if len(edge) > 1 else ""
        return svg(
            canvas, "front", f"INT8 accuracy against latency; front: {ends}{last}. Figures in the table."
        )


def _dots(axes: Axes, points: Sequence[tuple[float, float]], label: str) -> None:
    if points:
        axes.plot(*zip(*points, strict=True), "o", color=SECOND, markersize=5, label=label or "_")


def _hollow(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    if points:
        axes.plot(*zip(*points, strict=True), "o", color=MUTED, fillstyle="none", markersize=5.5, mew=1.3,
                  label="too slow")  # fmt: skip


def _too_slow(found: Searched, trial: Trial) -> bool:
    return found.latency_ms is not None and (trial.latency_ms or math.inf) > found.latency_ms


def _ring(
    axes: Axes, found: Searched, x: Sequence[float], y: Sequence[float], places: dict[int, int] | None = None
) -> None:
    """Mark the winner."""
    order = places or {trial.number: index for index, trial in enumerate(found.done)}
    if found.winner and found.winner.number in order:
        index = order[found.winner.number]
        axes.plot(x[index], y[index], "o", color=INK, fillstyle="none", markersize=11, mew=1.5, linestyle="none",
                  label=f"trial {found.winner.number}")  # fmt: skip


def _own(axes: Axes, found: Searched) -> None:
    own = found.trial(found.as_it_is)
    if own is not None and own.top1 is not None:
        axes.axhline(100 * own.top1, color=WRONG, linewidth=1.1, linestyle=(0, (4, 2)), label="as it is")


def _accuracies(axes: Axes, values: Sequence[float], *, cut: bool = True) -> None:
    """Label the axis of accuracies; a few that are far below the others must not flatten the rest."""
    axes.yaxis.set_major_formatter(PERCENT)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    low = float(np.quantile(values, LOWEST_SHARE)) if cut and len(values) > 10 else min(values)
    high = max(values)
    margin = 0.08 * (high - low) or 1.0
    axes.set_ylim(max(low - margin, -2), min(high + margin, 102))


def _line(trial: Trial) -> tuple[list[int], list[float]]:
    return [epoch for epoch, _ in trial.curve], [100 * share for _, share in trial.curve]


def _place(trial: Trial, key: str, names: Sequence[str]) -> float:
    value = trial.values[key]
    if not names:
        return float(value) if isinstance(value, int | float) else 0.0
    # Beside each other, so that equal results do not hide each other; the same in every drawing.
    return names.index(str(value)) + 0.36 * ((trial.number * 0.618034) % 1 - 0.5)
