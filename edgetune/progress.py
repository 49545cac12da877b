"""Progress for people: a bar with rate and remaining time on a terminal, plain lines without one.

Everything goes to stderr, so that results on stdout can be piped. It may import nothing of edgetune.
"""

import sys
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar


class Progress(Protocol):
    """What a stage tells about how far it is."""

    def begin(self, what: str, total: int, unit: str = "input") -> None:
        """Start a new bar of `total` units."""

    def advance(self, count: int = 1, **shown: float) -> None:
        """Move the bar on, and show figures beside it."""

    def end(self) -> None:
        """Take the bar away."""

    def line(self, text: str) -> None:
        """Say something that stays."""


class Silent:
    """Says nothing; the default wherever edgetune is used from Python."""

    def begin(self, what: str, total: int, unit: str = "input") -> None:
        """Ignore it."""

    def advance(self, count: int = 1, **shown: float) -> None:
        """Ignore it."""

    def end(self) -> None:
        """Ignore it."""

    def line(self, text: str) -> None:
        """Ignore it."""


class Terminal:
    """Bars where stderr is a terminal; only the lines otherwise."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())
        self._bar: Bar | None = None
        self._task = TaskID(0)

    def begin(self, what: str, total: int, unit: str = "input") -> None:
        """Start a new bar of `total` units."""
        self.end()
        if not self.console.is_terminal:
            return
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[shown]}"),
            console=self.console,
            transient=True,
        )
        self._task = self._bar.add_task(what, total=total, rate="", shown="", unit=unit)
        self._bar.start()

    def advance(self, count: int = 1, **shown: float) -> None:
        """Move the bar on, and show figures beside it."""
        if self._bar is None:
            return
        task = self._bar.tasks[0]
        unit = task.fields["unit"]
        rate = f"{task.speed:.0f} {unit}{'' if unit == 'kB' else 's'}/s" if task.speed else ""
        figures = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        self._bar.update(self._task, advance=count, rate=rate, shown=figures)

    def end(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def line(self, text: str) -> None:
        """Say something that stays."""
        self.console.print(text, markup=False)
