"""The page of a search: tune.html, and tune.json beside it.

It may import the report's other files.
"""

import shlex
from pathlib import Path
from typing import Any

from edgetune.report import wording
from edgetune.report.render import write_page
from edgetune.report.schema_tune import Judged, Searched, Trial, Value, read_search

# So many settings are drawn one by one.
SLICES = 4


def publish(report: dict[str, Any], folder: Path) -> None:
    """Write tune.html and tune.json.

    Raises:
        StageError: the disk is full, or the folder cannot be written.
    """
    from edgetune.report import charts_tune

    found = read_search(report)
    write_page(
        "tune.html.j2", report, folder / "tune",
        title=found.name, eyebrow="edgetune tune", meta=_meta(found), version=found.edgetune, beside="tune.json",
        report=found, tiles=tiles(found), sentences=sentences(found), told=told(found), decides=decides(found),
        run=run_command(found, folder), timed=any(t.latency_ms is not None for t in found.trials),
        value_of=value_of, result=result, short=short,
        charts={"search": charts_tune.search_charts(found), "settings": charts_tune.setting_charts(found, SLICES)},
    )  # fmt: skip


def run_command(found: Searched, folder: Path) -> str:
    """Return the command that runs the best recipe."""
    return shlex.join(["edgetune", "run", str(folder / found.winner.recipe)]) if found.winner else ""


def tiles(found: Searched) -> list[dict[str, str]]:
    """Return key figures."""
    if found.winner is None:
        return []
    own = found.trial(found.as_it_is)
    own_top1 = own.top1 if own else None
    made = [
        {"title": f"Validation top-1{', INT8' if found.objective == 'int8' else ''}",
         "before": wording.percent(own_top1) if own_top1 is not None else "",
         "after": wording.percent(found.winner.val.top1),
         "note": ("from the recipe as it is, " if own_top1 is not None else "") + _of(found.winner.val)},
    ]  # fmt: skip
    if found.winner.test:
        made.append(
            {"title": "Test top-1", "before": "", "after": wording.percent(found.winner.test.top1),
             "note": _of(found.winner.test)}
        )  # fmt: skip
    best = found.best
    if best and best.latency_ms is not None:
        limit = f"limit {wording.milliseconds(found.latency_ms)}" if found.latency_ms else "no limit"
        trust = "" if best.trusted else "; the timing spread"
        made.append(
            {"title": "INT8 here, median", "before": "", "after": wording.milliseconds(best.latency_ms),
             "note": limit + trust}
        )  # fmt: skip
    states = _states(found)
    made.append(
        {"title": "Trials", "before": "", "after": str(len(found.trials)),
         "note": ", ".join(f"{count} {word}" for word, count in states.items() if count)}
    )  # fmt: skip
    return made


def sentences(found: Searched) -> list[str]:
    """Say who won, by how much, and how far that is to be believed."""
    if found.winner is None:
        return ["No trial can be chosen; why, each one says below."]
    winner, own = found.winner, found.trial(found.as_it_is)
    text = f"Trial {winner.number} does best"
    if own is not None and own.number == winner.number:
        text += ": it is the recipe as it is. No other settings did better"
    elif own is not None and own.top1 is not None and winner.val.top1 is not None:
        gain = 100 * (winner.val.top1 - own.top1)
        text += f": {wording.points(gain)} points of validation accuracy above the recipe as it is (trial {own.number})"
    lines = [text + "."]
    if len(found.done) > 1:
        lines.append(
            f"Its validation figure is the highest of {len(found.done)}, so it is a little too good; "
            "the test inputs took no part in the choice."
        )
    if winner.test:
        once = "They were looked at once, for this trial."
        if winner.looks:
            once = (
                "They were looked at before, for "
                + ", ".join(f"trial {n}" for n in winner.looks)
                + " as well."
            )
        lines.append(f"On {wording.count(winner.test.images, 'test input')}: {_figure(winner.test)}. {once}")
    elif found.running:
        count = wording.count(found.running, "trial")
        lines.append(f"{count} under way in other processes: the test inputs have not been looked at yet.")
    return lines


def told(found: Searched) -> str:
    """Say what was tried, and what the pictures show."""
    states = _states(found)
    text = f"{wording.count(len(found.trials), 'trial')}; "
    if states["pruned"]:
        text += (
            f"{states['pruned']} stopped early, where they were behind half of the others in the same epoch; "
        )
    if states["failed"]:
        text += f"{states['failed']} failed; "
    what = "of the INT8 network " if found.objective == "int8" else ""
    text += f"accuracy {what}on {wording.count(found.images.get('val'), 'validation input')}."
    if found.objective == "int8":
        text += " The front holds the trials that no other one beats in both accuracy and latency."
    return text


def decides(found: Searched) -> str:
    """Say what the importances are."""
    return (
        "How much of the differences between the finished trials each setting explains (functional ANOVA of a random "
        f"forest, Hutter et al. 2014), from {wording.count(len(found.done), 'trial')}: a hint, not a measurement."
    )


def decides_most(found: Searched) -> list[str]:
    """Say which settings decide most, for the terminal."""
    rows = sorted(found.importance.items(), key=lambda item: -item[1])[:3]
    named = ", ".join(f"{key} {wording.percent(share, 0)}" for key, share in rows)
    return [f"What decides: {named}."] if rows else []


def result(trial: Trial, limit_ms: float | None) -> str:
    """Say what came of a trial."""
    if trial.state == "complete":
        slow = limit_ms is not None and trial.latency_ms is not None and trial.latency_ms > limit_ms
        return wording.percent(trial.top1) + (", too slow" if slow else "")
    if trial.state == "pruned":
        return f"stopped in epoch {trial.curve[-1][0] if trial.curve else '?'}, {wording.percent(trial.last)}"
    return f"failed: {trial.error}" if trial.state == "failed" else "under way"


def value_of(value: Value) -> str:
    """Return a setting's value as a person reads it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}"
    return wording.NONE if value is None else str(value)


def short(key: str) -> str:
    """Return a setting's name without its section."""
    return key.partition(".")[2].replace("augment.preset", "augment")


def _meta(found: Searched) -> list[str]:
    counts = [wording.count(found.images.get(split), f"{split} input") for split in ("train", "val", "test")]
    return [f"{found.classes} classes", *counts, found.profile, wording.when(found.made_at)]


def _states(found: Searched) -> dict[str, int]:
    words = {"complete": "finished", "pruned": "pruned", "failed": "failed", "running": "under way"}
    return {word: sum(trial.state == state for trial in found.trials) for state, word in words.items()}


def _of(judged: Judged) -> str:
    return f"{_span(judged)}, {wording.count(judged.images, 'input')}"


def _span(judged: Judged) -> str:
    return f"{wording.percent(judged.low).removesuffix('%')} to {wording.percent(judged.high)}"


def _figure(judged: Judged) -> str:
    return f"{wording.percent(judged.top1)} ({_span(judged)})"
