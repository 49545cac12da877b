"""Estimates on the terminal: one target with its costliest kernels, or all of them as a table.

It knows how things look, not how they are made. It may import terminal and estimates.parameters.
"""

from pathlib import Path
from typing import Any

from edgetune.estimates.parameters import Parameters
from edgetune.terminal import say, show_rows

COSTLIEST = 10
MARKS = {"measured": "", "related": "~", "guess": "?"}


def show_estimate(found: dict[str, Any]) -> None:
    """Show what `edgetune estimate` found."""
    rows = found["estimates"]
    say(
        f"{found['model']}: {found['operations'] / 1e9:.3g} G operations in {found['kernel_count']} kernels, "
        f"{found['weights'] / 1e6:.3g} M weights{', with Q/DQ' if found['quantized'] else ''}"
    )
    columns = ("target", "precision", "ms", "90% interval", "memory MB", "fits")
    several = found.get("lengths", [])
    for each in several[:-1]:
        _show_length(each, columns)
    if several:
        say(f"{several[-1]['length']} tokens, which all below is of:")
    show_rows(columns, [_row(row) for row in rows], right=("ms", "90% interval", "memory MB"))
    say(f"estimated, not measured: {found['assumed']}")
    errors = found["parameters"]["errors"]["network"]
    say(
        f"fitted to {found['parameters']['rows']} measured latencies; of networks that the fit had not seen, half were "
        f"within {errors['median']:.0%}, nine in ten within {errors['p90']:.0%}"
    )
    single = len({row["target"] for row in rows}) == 1
    if not single and any(row["basis"] == "related" for row in rows):
        say("~ no latency was published of this module: judged by others with the same kind of GPU")
    if not single and any(row["basis"] == "guess" for row in rows):
        say(
            "? no latency was published of modes below a module's maximum, nor of this chip: the interval is a guess"
        )
    for note in _notes(rows):
        say(f"note: {note}")
    for item in _reasons(found["not_estimated"]):
        say(f"no estimate: {item}")
    if "kernels" in rows[0]:
        _show_kernels(rows[0])
    if found["answer"]:
        for sentence in answer(found["answer"]):
            say(sentence)


def _show_length(each: dict[str, Any], columns: tuple[str, ...]) -> None:
    """Show the estimates for texts of one length."""
    say(f"{each['length']} tokens, {each['operations'] / 1e9:.3g} G operations:")
    show_rows(columns, [_row(row) for row in each["estimates"]], right=("ms", "90% interval", "memory MB"))


def _figure(value: float) -> str:
    """Write three digits, and all before the point."""
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    memory = row["engine_mb"] + row["activations_mb"]
    fits = {True: "yes", False: "NO", None: "?"}[row["fits"]]
    return (
        row["target"] + MARKS[row["basis"]], row["precision"], _figure(row["ms"]),
        f"{_figure(row['low_ms'])} to {_figure(row['high_ms'])}", f"{memory:.3g}", fits,
    )  # fmt: skip


def _notes(rows: list[dict[str, Any]]) -> list[str]:
    """Return what is said of the estimates, each once; what the marks say already only of a single target."""
    single = len({row["target"] for row in rows}) == 1
    notes = dict.fromkeys(note for row in rows for note in row["notes"])
    if single:
        return [*notes, *sorted({row["why"] for row in rows if row["fits"] is not True})]
    return [note for note in notes if "measured:" not in note]


def _reasons(left: list[dict[str, str]]) -> list[str]:
    """Return why targets have no estimate, the same reasons together."""
    grouped: dict[str, dict[str, set[str]]] = {}
    for item in left:
        grouped.setdefault(item["why"], {}).setdefault(item["target"], set()).add(item["precision"])
    return [
        f"{', '.join(targets)} in {' and '.join(sorted(set().union(*targets.values())))}: {why}"
        for why, targets in grouped.items()
    ]


def _show_kernels(row: dict[str, Any]) -> None:
    """Show the costliest kernels of one estimate."""
    kernels = row["kernels"]
    shown = kernels[:COSTLIEST]
    say("")
    say(f"the {len(shown)} costliest of {len(kernels)} kernels in {row['precision']}:")
    cells = [
        (
            kernel["name"], kernel["kind"], kernel["precision"], _figure(kernel["operations"] / 1e6),
            f"{(kernel['bytes_read'] + kernel['bytes_written'] + kernel['weight_bytes']) / 1e6:.3g}",
            f"{kernel['ms']:.3g}", f"{kernel['share']:.1%}",
        )
        for kernel in shown
    ]  # fmt: skip
    columns = ("kernel", "kind", "in", "M operations", "MB", "ms", "share")
    show_rows(columns, cells, right=columns[3:])


def answer(found: dict[str, Any]) -> list[str]:
    """Return which module and mode are the cheapest that meet a limit, in sentences."""
    limit, surely, probably = f"{found['limit_ms']:g} ms", found["surely"], found["probably"]
    if probably is None:
        return [f"no module that was estimated meets {limit}, even at the middle of its interval"]
    sentences = []
    if surely is None:
        sentences.append(f"no module meets {limit} with all of its interval")
    else:
        sentences.append(f"the cheapest that meets {limit} with all of its interval: {_said(surely)}")
    if surely is None or probably["target"] != surely["target"]:
        sentences.append(f"the cheapest whose estimate meets it, though it may miss: {_said(probably)}")
    return [*sentences, f"cheapest: {found['order']}"]


def _said(row: dict[str, Any]) -> str:
    return f"{row['target']} in {row['precision']}, {row['ms']:.3g} ms ({row['low_ms']:.3g} to {row['high_ms']:.3g})"


def show_fit(made: Parameters, out: Path) -> None:
    """Show what a fit to a user's own measurements gave."""
    say(f"{out}: fitted to {made.rows} measurements, the published ones among them")
    for name, factor in made.devices.items():
        say(f"{name}: {factor:.3g} times the time that modules like it take", 2)
    say(f"next: edgetune estimate MODEL.onnx --parameters {out}")
