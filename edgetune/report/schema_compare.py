"""What compare.json holds, for whoever shows it; any value may be missing.

Pydantic only.
"""

from typing import Any

from edgetune.report.part import Part, present


class Point(Part):
    """A point of a curve; images and seconds since the start of the training; `low` and `high` over seeds."""

    epoch: int = 0
    images: float = 0.0
    seconds: float = 0.0
    top1: float = 0.0
    low: float | None = None
    high: float | None = None


class Tested(Part):
    """Accuracy on the test split; `over` says whether the interval is over seeds or over images."""

    images: int = 0
    each: tuple[float, ...] = ()
    top1: float | None = None
    low: float | None = None
    high: float | None = None
    over: str = ""


class Against(Part):
    """Points above the reference on the same test images, over images and over seeds."""

    images: int = 0
    points: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    seeds_low: float | None = None
    seeds_high: float | None = None


class Group(Part):
    """Trainings that differ in their seed alone; `reached`: where it first does as well as the reference's best."""

    label: str = ""
    kind: str = ""
    runs: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    network: str = ""
    train_images: int = 0
    trained_parameters: int | None = None
    epochs: int = 0
    seconds: float = 0.0
    val_top1: float | None = None
    curve: tuple[Point, ...] = ()
    reached: Point | None = None
    test: Tested | None = None
    against: Against | None = None


class Compared(Part):
    """Trainings side by side."""

    edgetune: str = ""
    made_at: str = ""
    classes: int = 0
    reference: str = ""
    reference_top1: float | None = None
    warnings: tuple[str, ...] = ()
    groups: tuple[Group, ...] = ()


def read_comparison(content: dict[str, Any]) -> Compared:
    """Turn the content of compare.json into models."""
    return Compared.model_validate(present(content))
