"""What report.json holds of a distillation.

It may import the report's part.
"""

from edgetune.report.part import Part


class Taught(Part):
    """One network on the test images: the teacher, the student alone, or the student distilled.

    `operations` are multiply-adds for one image, `seconds` those of its training.
    """

    network: str = ""
    right: int | None = None
    top1: float | None = None
    low: float | None = None
    high: float | None = None
    parameters: int | None = None
    operations: int | None = None
    size_px: int | None = None
    seconds: float | None = None


class Difference(Part):
    """By how many points one network is better than another on the same images, and on how many of them."""

    points: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    gained: int | None = None
    lost: int | None = None


class Step(Part):
    """Validation accuracy after an epoch, a share."""

    epoch: int = 0
    val_top1: float | None = None


class Distillation(Part):
    """A student with a teacher, beside itself alone.

    `gain` is distilled less alone, `gap` teacher less distilled. `asking_seconds` is how long the teacher was
    asked before training; 0 where it answered in every step.
    """

    images: int | None = None
    models: dict[str, Taught] = {}
    gain: Difference | None = None
    gap: Difference = Difference()
    loss: str = ""
    temperature: float | None = None
    labels: float | None = None
    features: dict[str, str] = {}
    views: int | None = None
    unlabelled: int = 0
    asking_seconds: float | None = None
    asked_earlier: bool = False
    warnings: tuple[str, ...] = ()
    epochs_distilled: tuple[Step, ...] = ()
    epochs_alone: tuple[Step, ...] = ()
