"""Draws a report as Markdown that also reads well as plain text: aligned tables, no pictures.

It may import the report's schema, view, sentences and wording.
"""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.cells import cell_len

from edgetune.report import sentences, view, view_device, view_distill, view_int8, view_lengths, wording
from edgetune.report.schema import ClassRow, Data, Flip, Latency, Pair, Report, Training
from edgetune.report.schema_int8 import Layer

# Characters that Markdown would act on. An underscore inside a word is none of them.
SPECIAL = re.compile(r"[\\|<*\[\]`~]|(?<!\w)_|_(?!\w)|&(?=#?\w+;)|^(?=[#>+-])")

# A cell wider than this sticks out; the rest of its column does not wait for it.
WIDEST = 72

Cells = Sequence[object]


def markdown(report: Report) -> str:
    """Return the report as Markdown without pictures."""
    worst = view.worst_classes(report.accuracy.per_class) if report.accuracy else []
    text = _environment().get_template("report.md.j2").render(report=report, worst=worst)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def device_markdown(report: Report) -> str:
    """Return what came of a bundle as Markdown: verdict, gates, device."""
    text = _environment().get_template("bundle.md.j2").render(report=report)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def escaped(text: object) -> str:
    """Return a text that Markdown shows as it is."""
    return SPECIAL.sub(r"\\\g<0>", str(text))


def table(header: Cells, rows: Sequence[Cells], left: int = 1) -> str:
    """Return a table whose first columns are aligned to the left, the rest to the right.

    Args:
        header: a title per column; a column in which every row has None is left out.
        rows: of texts or numbers, which are escaped here.
        left: how many columns are texts.
    """
    known = [i for i in range(len(header)) if not rows or any(row[i] is not None for row in rows)]
    cells = [[escaped("" if row[i] is None else row[i]) for i in known] for row in [header, *rows]]
    widths = [
        max(min(max(cell_len(row[column]) for row in cells), WIDEST), 3) for column in range(len(known))
    ]
    rule = "|".join("-" * (w + 2) if i < left else "-" * (w + 1) + ":" for i, w in enumerate(widths))
    lines = [_line(row, widths, left) for row in cells]
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])


def code(text: str) -> str:
    """Return a command within a line, between more backticks than it holds."""
    fence = "`" * (1 + _backticks(text))
    return f"{fence}{text}{fence}" if len(fence) == 1 else f"{fence} {text} {fence}"


def fenced(text: str) -> str:
    """Return a code block, with a fence that the text does not hold."""
    fence = "`" * max(3, 1 + _backticks(text))
    return f"{fence}\n{text}\n{fence}"


def _backticks(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


def _line(row: Sequence[str], widths: Sequence[int], left: int) -> str:
    padded = []
    for column, (cell, width) in enumerate(zip(row, widths, strict=True)):
        gap = " " * (width - cell_len(cell))
        padded.append(f"{cell}{gap}" if column < left else f"{gap}{cell}")
    return f"| {' | '.join(padded)} |"


def _epochs(training: Training) -> list[Cells]:
    number, percent = wording.number, wording.percent
    return [
        (e.epoch, e.phase, number(e.loss), percent(e.train_top1), number(e.val_loss), percent(e.val_top1),
         number(e.learning_rate))
        for e in training.epochs
    ]  # fmt: skip


def _classes(classes: Sequence[ClassRow]) -> list[Cells]:
    return [
        (
            row.name,
            row.images,
            wording.count(row.fp32),
            wording.count(row.int8),
            wording.signed(view.change(row)),
            row.flips,
        )
        for row in classes
    ]


def _flips(flips: Sequence[Flip]) -> list[Cells]:
    return [(flip.path, flip.truth, flip.fp32, flip.int8) for flip in flips]


def _pairs(pairs: Sequence[Pair]) -> list[Cells]:
    return [(pair.truth, pair.predicted, pair.int8, pair.fp32) for pair in pairs]


def _layers(layers: Sequence[Layer], report: Report) -> list[Cells]:
    return [(layer.name, layer.op, view.precision(layer, report), layer.why) for layer in layers]


def _latency(latency: Latency) -> list[Cells]:
    return [(words, *figures) for words, figures in view.latency_rows(latency)]


def _counts(data: Data) -> list[Cells]:
    return [
        (name, *(wording.count(counts.get(name, 0)) for counts in view.splits(data).values()))
        for name in view.data_classes(data)
    ]


def _artifacts(report: Report) -> list[Cells]:
    return [
        (made.path or made.role, made.kind, made.digest, wording.size(made.bytes))
        for made in report.artifacts
    ]


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=False,  # what is not Markdown of the template goes through `md` or `table`
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    rows = SimpleNamespace(
        epochs=_epochs, classes=_classes, pairs=_pairs, flips=_flips, layers=_layers, latency=_latency,
        counts=_counts, artifacts=_artifacts,
    )  # fmt: skip
    shared = {"view": view, "int8": view_int8, "on": view_device, "sentences": sentences, "wording": wording}
    shared |= {"taught": view_distill, "lengths": view_lengths}
    environment.globals |= shared | {"rows": rows, "table": table, "fenced": fenced, "code": code}
    environment.filters["md"] = escaped
    return environment
