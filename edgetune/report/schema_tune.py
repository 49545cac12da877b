"""What tune.json holds, for whoever shows it; any value may be missing.

Pydantic only.
"""

from typing import Any

from edgetune.report.part import Part, present

Value = str | int | float | bool | None


class Trial(Part):
    """One trial: `state` is complete, pruned, failed or running; `curve` has an epoch and a share per entry."""

    number: int = 0
    state: str = ""
    values: dict[str, Value] = {}
    top1: float | None = None
    fp32_top1: float | None = None
    latency_ms: float | None = None
    trusted: bool = True
    curve: tuple[tuple[int, float], ...] = ()
    seconds: float | None = None
    tries: int = 1
    error: str = ""

    @property
    def last(self) -> float | None:
        """Validation accuracy of the last epoch."""
        return self.curve[-1][1] if self.curve else None


class Judged(Part):
    """Accuracy on a split, with its interval."""

    images: int = 0
    top1: float | None = None
    low: float | None = None
    high: float | None = None


class Change(Part):
    """A setting, before and after."""

    was: Value = None


class Winner(Part):
    """The best trial; `looks`: other trials that the test split was looked at for."""

    number: int = 0
    values: dict[str, Value] = {}
    changed: dict[str, Change] = {}
    val: Judged = Judged()
    test: Judged | None = None
    looks: tuple[int, ...] = ()
    recipe: str = ""


class Searched(Part):
    """A search; `space` holds a list of values or a range for each setting."""

    edgetune: str = ""
    made_at: str = ""
    name: str = ""
    objective: str = "top1"
    latency_ms: float | None = None
    profile: str = ""
    images: dict[str, int] = {}
    classes: int = 0
    space: dict[str, Any] = {}
    as_it_is: int | None = None
    winner: Winner | None = None
    running: int = 0
    importance: dict[str, float] = {}
    front: tuple[int, ...] = ()
    trials: tuple[Trial, ...] = ()

    @property
    def best(self) -> Trial | None:
        """The winner's trial."""
        return self.trial(self.winner.number) if self.winner else None

    def trial(self, number: int | None) -> Trial | None:
        """Return a trial by its number."""
        return next((trial for trial in self.trials if trial.number == number), None)

    @property
    def done(self) -> list[Trial]:
        """Trials that went through."""
        return [trial for trial in self.trials if trial.state == "complete" and trial.top1 is not None]


def read_search(content: dict[str, Any]) -> Searched:
    """Turn the content of tune.json into models."""
    return Searched.model_validate(present(content))
