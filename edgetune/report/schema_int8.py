"""What report.json holds of how INT8 was made: its layers, where ranges came from, what corrections brought.

It may import the report's part only.
"""

from edgetune.report.part import Part


class Layer(Part):
    """One node of the INT8 network, and why it is not INT8 where it is not.

    `sqnr_db`: of its output inside the INT8 network against FP32's, so of everything up to it.
    `gain_db`: what the network's outputs gain where it alone stays in float, where that was tried.
    """

    name: str = ""
    op: str = ""
    precision: str = ""
    why: str = ""
    weight_bytes: int | None = None
    sqnr_db: float | None = None
    gain_db: float | None = None
    operations: int | None = None


class Settling(Part):
    """How far the scales that so many images give lie from the final ones, as a share of these."""

    images: int | None = None
    median: float | None = None
    p95: float | None = None


class Calibration(Part):
    """What the activations' ranges come from, and from how many images on they stayed where they are."""

    images: int | None = None
    ranges: str = ""
    preset: str = ""
    warnings: tuple[str, ...] = ()
    convergence: tuple[Settling, ...] = ()
    enough_images: int | None = None


class Rung(Part):
    """A correction that was tried: what it came to on held-out inputs, what it took, what it did."""

    rung: str = ""
    kept: bool = False
    seconds: float | None = None
    sqnr_db: float | None = None
    agreement: float | None = None
    agreement_expected: float | None = None
    agreement_at_least: float | None = None
    why: str = ""


class Quantization(Part):
    """How INT8 was corrected; no rungs where it is made of ranges alone."""

    method: str = ""
    held_images: int | None = None
    seconds: float | None = None
    ladder: tuple[Rung, ...] = ()
