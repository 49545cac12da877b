"""What report.json holds, as models in which every part may be missing.

It may import errors, the report's part, gate_rows, schema_int8, schema_distill and schema_device.
"""

from typing import Any, Literal

from pydantic import ValidationError

from edgetune.errors import ArtifactError
from edgetune.report.gate_rows import marked
from edgetune.report.part import Part, Ratio, present
from edgetune.report.schema_device import Device
from edgetune.report.schema_distill import Distillation
from edgetune.report.schema_int8 import Calibration, Layer, Quantization

SCHEMA_VERSION = 1

Status = Literal["pass", "fail", "uncertain", "not judged"]


class Verdict(Part):
    """What it comes to, in a word and a sentence."""

    status: Status = "not judged"
    sentence: str = ""


class Gate(Part):
    """A limit, the value held against it, and the interval that the value may lie in."""

    name: str = ""
    title: str = ""
    value: float | None = None
    limit: float | None = None
    direction: Literal["max", "min"] = "max"
    unit: str = ""
    low: float | None = None
    high: float | None = None
    status: Status = "not judged"
    uncertain: bool = False
    estimated: bool = False
    why: str = ""

    @property
    def mark(self) -> Status:
        """The status that is shown: a pass whose interval spans the limit, or of an estimate, is no plain pass."""
        return "uncertain" if (self.uncertain or self.estimated) and self.status == "pass" else self.status

    @property
    def label(self) -> str:
        """The status in words: `pass (uncertain)`."""
        return marked(self.status, self.uncertain, self.estimated)


class Target(Part):
    """The hardware profile that judged."""

    label: str = ""
    title: str = ""
    kind: str = ""
    rendering: str = ""


class Machine(Part):
    """Where the report was made."""

    cpu: str = ""
    cores: int | None = None
    memory_gb: float | None = None
    python: str = ""
    system: str = ""
    libraries: dict[str, str] = {}
    vnni: bool | None = None


class Data(Part):
    """The images: how many per split and class, and what is wrong with them."""

    root: str = ""
    classes: tuple[str, ...] = ()
    counts: dict[str, dict[str, int]] = {}
    broken: tuple[tuple[str, ...], ...] = ()
    duplicates: tuple[tuple[str, ...], ...] = ()
    warnings: tuple[str, ...] = ()


class Epoch(Part):
    """One epoch. Accuracies are shares."""

    epoch: int = 0
    phase: str = ""
    loss: float | None = None
    train_top1: float | None = None
    val_loss: float | None = None
    val_top1: float | None = None
    learning_rate: float | None = None
    seconds: float | None = None
    waited_seconds: float | None = None
    images_per_second: float | None = None


class Training(Part):
    """How the network was trained."""

    strategy: str = ""
    optimizer: str = ""
    accelerator: str = ""
    seconds: float | None = None
    decode_seconds: float | None = None
    texts_cut: int | None = None
    stopped_early: bool = False
    best_epoch: int | None = None
    val_top1: float | None = None
    parameters: int | None = None
    trained_parameters: int | None = None
    epochs: tuple[Epoch, ...] = ()


class Transfer(Part):
    """The same network from random weights, beside the pretrained one."""

    images: int | None = None
    split: str = ""
    pretrained_top1: float | None = None
    scratch_top1: float | None = None
    points: float | None = None
    low: float | None = None
    high: float | None = None
    epochs_pretrained: tuple[Epoch, ...] = ()
    epochs_scratch: tuple[Epoch, ...] = ()


class Made(Part):
    """An artifact."""

    role: str = ""
    kind: str = ""
    path: str = ""
    digest: str = ""
    bytes: int | None = None


class Flip(Part):
    """An image on which INT8 names another class than FP32."""

    path: str = ""
    truth: str = ""
    fp32: str = ""
    int8: str = ""


class Comparison(Part):
    """How close the logits of two renderings of a network are.

    `exact`: ONNX Runtime stood for an engine, its optimisations that change rounding off.
    `flips`: the first images on which top-1 differs; `images` less `agreed` says how many there are.
    """

    images: int | None = None
    difference: float | None = None
    difference_over_std: float | None = None
    cosine_mean: float | None = None
    cosine_min: float | None = None
    sqnr_db: float | None = None
    agreed: int | None = None
    agreement: float | None = None
    agreement_low: float | None = None
    agreement_high: float | None = None
    exact: bool = False
    flips: tuple[Flip, ...] = ()


class ParityLength(Part):
    """Texts of one length: so many `images` have it by themselves, so many were compared; accuracies are shares."""

    length: int = 0
    images: int = 0
    compared: int | None = None
    difference_over_std: float | None = None
    sqnr_db: float | None = None
    agreement: float | None = None
    fp32: float | None = None
    int8: float | None = None


class Parity(Part):
    """FP32 ONNX against torch, INT8 against FP32; where texts come in several lengths, also for each."""

    fp32_vs_torch: Comparison = Comparison()
    int8_vs_fp32: Comparison = Comparison()
    lengths: tuple[ParityLength, ...] = ()


class Right(Part):
    """Accuracy of one network, a share, with its interval; how sure it is, and how wrong about that."""

    right: int | None = None
    top1: float | None = None
    low: float | None = None
    high: float | None = None
    confidence: float | None = None
    ece: float | None = None


class Drop(Part):
    """FP32's accuracy minus INT8's in points, on the same images."""

    points: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    worse: int | None = None
    better: int | None = None


class ClassRow(Part):
    """One class: its images, how many each network got right, on how many INT8 says another class."""

    name: str = ""
    images: int = 0
    fp32: int | None = None
    int8: int | None = None
    flips: int | None = None


class Confusion(Part):
    """Rows are true classes, columns predicted ones."""

    fp32: tuple[tuple[int, ...], ...] = ()
    int8: tuple[tuple[int, ...], ...] = ()


class Pair(Part):
    """Images of one class that were taken for another, by INT8 and by FP32."""

    truth: str = ""
    predicted: str = ""
    int8: int = 0
    fp32: int = 0


class Accuracy(Part):
    """Accuracy on the images that decide: so many `of` the test split.

    `confused`: the pairs of classes that INT8 confuses most; the matrix is left out where classes are many.
    """

    images: int | None = None
    of: int | None = None
    models: dict[str, Right] = {}
    drop: Drop = Drop()
    per_class: tuple[ClassRow, ...] = ()
    confusion: Confusion = Confusion()
    confused: tuple[Pair, ...] = ()


class Timing(Part):
    """Latency of one network; the interval is the median's."""

    count: int | None = None
    warmup: int | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    mean_ms: float | None = None
    min_ms: float | None = None
    max_ms: float | None = None
    cv: float | None = None
    p50_low_ms: float | None = None
    p50_high_ms: float | None = None
    samples_ms: tuple[float, ...] = ()
    peak_memory_mb: float | None = None


class LatencyLength(Part):
    """Medians of the networks on texts of one length."""

    length: int = 0
    speedup: Ratio = Ratio()
    trusted: bool = True
    p50_ms: dict[str, float] = {}


class Latency(Part):
    """Latency on the machine that made the report; where texts come in several lengths, of the longest and of each."""

    engine: str = ""
    threads: int | None = None
    batch: int | None = None
    preset: str = ""
    models: dict[str, Timing] = {}
    speedup: Ratio = Ratio()
    trusted: bool = True
    why: str = ""
    lengths: tuple[LatencyLength, ...] = ()


class Size(Part):
    """Size of the ONNX files."""

    fp32_bytes: int | None = None
    int8_bytes: int | None = None


class Report(Part):
    """All of report.json that is shown."""

    schema_version: int = SCHEMA_VERSION
    edgetune: str = ""
    made_at: str = ""
    name: str = ""
    command: str = ""
    verdict: Verdict = Verdict()
    recipe: dict[str, Any] = {}
    profile: Target = Target()
    machine: Machine = Machine()
    data: Data = Data()
    training: Training | None = None
    transfer: Transfer | None = None
    distillation: Distillation | None = None
    artifacts: tuple[Made, ...] = ()
    parity: Parity | None = None
    accuracy: Accuracy | None = None
    layers: tuple[Layer, ...] = ()
    calibration: Calibration = Calibration()
    quantization: Quantization = Quantization()
    latency: Latency | None = None
    size: Size = Size()
    device: Device | None = None
    gates: tuple[Gate, ...] = ()
    left_to_do: tuple[str, ...] = ()
    reproduce: tuple[str, ...] = ()


def read_report(content: dict[str, Any], where: str = "report") -> Report:
    """Turn the content of report.json into models.

    Args:
        content: what `json.load` gives, or what the pipeline assembled.
        where: the file's name, for messages.

    Raises:
        ArtifactError: made by another schema version, or a value of the wrong kind; names the key.
    """
    found = present(content)
    version = found.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise ArtifactError(
            f"{where}: schema_version {version!r}, where this edgetune reads {SCHEMA_VERSION}",
            hint="run the recipe again, or read it with the edgetune that wrote it",
        )
    try:
        return Report.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{where}: {key}: {first['msg']}", hint="run the recipe again") from None
