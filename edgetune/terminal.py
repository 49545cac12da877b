"""Where results are printed: as wide as the terminal, tables that fit it, and into a pipe one line per row.

It knows nothing of what is shown. It imports nothing of edgetune.
"""

import os
import sys
import textwrap
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

# A column that may be broken is not made narrower than this.
WRAPPED = 16
KEPT = "\u00a0"


def console() -> Console:
    """Return what prints: as wide as the terminal, and into a pipe without breaking a line."""
    # Square brackets are part of what is said: NAME[:MODE][@JETPACK].
    return Console(highlight=False, markup=False, soft_wrap=not _has_width())


def _has_width() -> bool:
    return sys.stdout.isatty() or "COLUMNS" in os.environ


def say(text: str, indent: int = 0) -> None:
    """Print a paragraph whose further lines, where the terminal needs them, stand two columns further in."""
    out, margin = console(), " " * indent
    if _has_width():
        text = textwrap.fill(
            text, out.width, initial_indent=margin, subsequent_indent=f"{margin}  ", break_on_hyphens=False
        )
        margin = ""
    out.print(margin + text)


def show_rows(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[str] = (),
    wrap: Sequence[str] = (),
) -> None:
    """Print a table, or one block per row where the terminal is too narrow for it.

    Args:
        columns: their heads.
        rows: of cells.
        right: columns whose cells end at the same place.
        wrap: columns whose cells may be broken at spaces before the table is given up.
    """
    out = console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    least = 2 * (len(columns) - 1)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if column in right else "left", no_wrap=column not in wrap)
        cells = [column, *(row[index] for row in rows)]
        words = [word for cell in cells for word in (cell.split() if column in wrap else [cell])]
        least += max([WRAPPED if column in wrap else 0, *map(cell_len, words)])
    for row in rows:
        table.add_row(*row)
    if not _has_width():
        wide = Console(highlight=False, markup=False, width=10_000)
        with wide.capture() as printed:
            wide.print(table)
        out.print("\n".join(line.rstrip() for line in printed.get().splitlines()))
        return
    if least <= out.width:
        out.print(table)
        return
    for row in rows:
        first, *rest = (f"{column}: {cell}" for column, cell in zip(columns, row, strict=True))
        # Name and value stay together where a line holds both.
        kept = [part.replace(" ", KEPT) if len(part) < out.width - 2 else part for part in rest]
        # A path that is cut in two cannot be copied.
        whole = textwrap.fill(
            "; ".join(kept), out.width, initial_indent="  ", subsequent_indent="  ",
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
        out.print("\n".join(filter(None, [first, whole.replace(KEPT, " ")])), soft_wrap=True)
