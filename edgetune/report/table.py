"""The summary of a run for the terminal: verdict, gates, FP32 beside INT8, what is left to do.

Readable at 60 columns, without colour, and where the output is no terminal or knows ASCII only: a status is
always a word, numbers are never cut. It may import the report's schema, view, sentences and wording.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgetune.report import sentences, view, view_device, view_distill, view_lengths, wording
from edgetune.report.schema import Report, read_report

STYLES = {"pass": "green", "fail": "bold red", "uncertain": "yellow", "not judged": "dim"}

# Below this, intervals have no column of their own.
WIDE = 96

# What to write where the output's encoding has no more than ASCII.
ASCII = str.maketrans({"≤": "<=", "≥": ">=", "×": "x", "−": "-", "–": "-", "→": "->", "…": "...", "·": ","})


def print_summary(report: dict[str, Any], console: Console, page: Path | None = None) -> None:
    """Print a report's summary.

    Args:
        report: the content of report.json; missing parts are left out.
        console: where to; its width and encoding are kept to.
        page: report.html, named in the last line.
    """
    typed = read_report(report)
    status = typed.verdict.status
    headline = Text(f"{view.HEADLINES[status]}: ", style=STYLES[status])
    _say(console, headline.append(typed.verdict.sentence, style="default"))
    if typed.gates:
        console.print()
        console.print(_gates(typed, console))
        doubts = f": {typed.latency.why}" if typed.latency and typed.latency.why else ""
        for titles, why in view.whys(typed):
            # All of them follow below.
            _say(console, Text(f"{titles}: {why.removesuffix(doubts)}"))
    compared = view.comparison(typed)
    if compared:
        console.print()
        console.print(_comparison(compared, console, "FP32", "INT8", "INT8 against FP32"))
    if view_lengths.rows(typed):
        console.print()
        for row in view_lengths.rows(typed):
            _say(console, Text(_of_length(row, view_lengths.COLUMNS)))
    if typed.device:
        console.print()
        _say(console, Text(f"On the device{view_device.where(typed.device)}: {typed.device.worth.sentence}"))
        _say(console, Text(typed.device.diagnosis.sentence))
        console.print()
        there = view_device.brief(typed.device)
        console.print(_comparison(there, console, "FP16", "INT8", "INT8 against FP16"))
        for row in view_lengths.device_rows(typed.device):
            _say(console, Text(_of_length(row, view_lengths.DEVICE_COLUMNS)))
        for note in view_device.notes(typed.device):
            _say(console, Text(note))
    if typed.latency and not typed.latency.trusted:
        found = wording.doubts(typed.latency.why)
        single = f" {found[0]}" if len(found) == 1 else ""
        _say(console, Text(f"The timing is not to be trusted:{single}", style="yellow"))
        for reason in [] if single else found:
            _say(console, Text(f"- {reason}", style="yellow"))
    if typed.transfer and sentences.transfer_sentence(typed.transfer):
        console.print()
        _say(console, Text(sentences.transfer_sentence(typed.transfer)))
    if typed.distillation and view_distill.gain_sentence(typed.distillation):
        console.print()
        _say(console, Text(view_distill.gain_sentence(typed.distillation)))
        _say(console, Text(view_distill.cost_sentence(typed.distillation)))
    if typed.left_to_do:
        console.print()
        _say(console, Text("Left to do on the device:", style="bold"))
        for number, step in enumerate(typed.left_to_do, 1):
            # A command that is wrapped cannot be copied.
            _say(console, Text(f"{number}. {step}"), keep=view.is_command(step))
    if page is not None:
        console.print()
        _say(console, Text(f"report: {page}"), keep=True)


def _of_length(row: Sequence[str], columns: Sequence[str]) -> str:
    """Say of texts of one length what a table has no room for."""
    told = [
        f"{title} {cell}"
        for title, cell in zip(columns[2:], row[2:], strict=True)
        if cell not in (wording.NONE, "")
    ]
    texts = "no text of its own" if row[1] == view_lengths.FILLED else f"{row[1]} texts"
    return f"{row[0]} tokens ({texts}): {', '.join(told)}"


def _gates(report: Report, console: Console) -> Table:
    wide = console.width >= WIDE
    table = _table(console, "gate", "status", "value", "limit", *(["interval"] if wide else []), left=2)
    for gate, (title, status, value, limit, span) in zip(report.gates, view.gate_rows(report), strict=True):
        cells = [Text(title), Text(status, style=STYLES[gate.mark]), Text(value), Text(limit), Text(span)]
        table.add_row(*(_plain(cell, console) for cell in cells[: 5 if wide else 4]))
    return table


def _comparison(rows: Sequence[tuple[str, ...]], console: Console, *columns: str) -> Table:
    table = _table(console, "", *columns, left=1)
    for row in rows:
        table.add_row(*(_plain(Text(cell), console) for cell in row))
    return table


def _table(console: Console, *columns: str, left: int) -> Table:
    """A table whose first column wraps where space is short; the last may, the others never."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index, column in enumerate(columns):
        between = 0 < index < len(columns) - 1
        table.add_column(
            _plain(Text(column), console),
            justify="left" if index < left else "right",
            overflow="fold",
            no_wrap=between,
        )
    return table


def _say(console: Console, text: Text, *, keep: bool = False) -> None:
    """Print a line, wrapped to the width unless it must stay in one piece."""
    console.print(_plain(text, console), soft_wrap=keep, overflow=None if keep else "fold")


def _plain(text: Text, console: Console) -> Text:
    """Return the text in characters that the output can show."""
    if console.encoding.lower().startswith("utf"):
        return text
    shown = text.plain.translate(ASCII).encode(console.encoding, "replace").decode(console.encoding)
    return Text(shown, style=text.style)
