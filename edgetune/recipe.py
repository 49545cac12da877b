"""Recipes: what to make, as YAML whose mistakes are answered with file, line and key.

One model per section, one section per verb. A recipe knows no hardware beyond the name of a profile, and
no library. It may import errors and artifact only.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from edgetune.errors import ConfigError
from edgetune.yaml import Document, load_yaml, validate

Share = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Section(BaseModel):
    """A part of a recipe: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ModelSection(Section):
    """The network to start from.

    Attributes:
        name: a row of `edgetune models list`, or `timm:NAME`.
        weights: `default` (the pretrained ones), `none`, or a path to a .safetensors or .pth file.
        channels: of the input images; 0: as many as the data has colours (gray images: 1).
        adapter: how a network made for colour takes another number of channels: `sum` adds up the first
            kernels, `conv` puts a learned 1x1 convolution in front.
        size_px: side of the square input; 0: what the network was trained with.
    """

    name: str
    weights: str = "default"
    channels: Literal[0, 1, 3] = 0
    adapter: Literal["sum", "conv"] = "sum"
    size_px: Annotated[int, Field(ge=0, le=4096)] = 0


class DataSection(Section):
    """Class folders, or a folder that holds train/ and val/ or test/ with class folders.

    Attributes:
        path: relative paths begin at the recipe's folder.
        val_share: cut from train for early stopping and every other choice, where there is no val and test.
        test_share: cut off for the gates, where the folder has neither val/ nor test/.
        seed: of the cut.
        broken_share: more unreadable images than this share, and more than two, stop the run.
        min_images: fewer images than this in a class's training split are refused.
    """

    path: str
    val_share: Annotated[float, Field(gt=0, lt=0.5)] = 0.15
    test_share: Annotated[float, Field(gt=0, lt=0.5)] = 0.2
    seed: Seed = 0
    broken_share: Share = 0.02
    min_images: Annotated[int, Field(ge=2)] = 5


class AugmentSection(Section):
    """Random changes to training images: a preset, and single knobs that override it.

    Attributes:
        preset: `none`, `light` (small shifts, flips), `standard` (random crops, flips, colour),
            `strong` (standard with RandAugment, erasing, MixUp and CutMix).
        rotation_deg: largest rotation to either side.
        crop_scale: smallest share of the area that a random crop keeps; 1: no random crop.
        flip: chance of a horizontal flip.
        colour: strength of brightness, contrast, saturation and hue changes.
        rand_augment: number of RandAugment operations.
        erase: chance that a rectangle is erased.
        mixup: alpha of MixUp; 0: off.
        cutmix: alpha of CutMix; 0: off.
    """

    preset: Literal["none", "light", "standard", "strong"] = "none"
    rotation_deg: Annotated[float, Field(ge=0, le=180)] | None = None
    crop_scale: Annotated[float, Field(gt=0, le=1)] | None = None
    flip: Share | None = None
    colour: Annotated[float, Field(ge=0, le=1)] | None = None
    rand_augment: Annotated[int, Field(ge=0, le=8)] | None = None
    erase: Share | None = None
    mixup: Annotated[float, Field(ge=0)] | None = None
    cutmix: Annotated[float, Field(ge=0)] | None = None


class FinetuneSection(Section):
    """How the network learns the new task.

    Attributes:
        strategy: `feature-extractor` (only the head learns; features are computed once), `partial` (head
            and the last `stages` groups), `full`, `gradual` (head first, then deeper groups, each at
            `group_decay` times the learning rate of the one above).
        views: feature-extractor with augmentation: augmented views per image whose features are kept.
        learning_rate: peak, of the head; 0: a default for the optimizer and strategy.
        weight_decay: None: a default for the optimizer.
        warmup: share of the steps.
        average: decay of an exponential moving average of the weights; 0: off.
        patience: epochs without a better one (validation accuracy, then loss) before it stops; 0: never.
        clip: largest norm of the gradient; 0: off.
        scratch_baseline: also train the same network from random weights with the same budget, and say
            what transfer bought.
    """

    strategy: Literal["feature-extractor", "partial", "full", "gradual"] = "feature-extractor"
    epochs: Annotated[int, Field(ge=1, le=10_000)] = 20
    batch: Annotated[int, Field(ge=1, le=65_536)] = 32
    stages: Annotated[int, Field(ge=1)] = 2
    views: Annotated[int, Field(ge=1, le=64)] = 4
    optimizer: Literal["sgd", "adamw"] = "adamw"
    learning_rate: Annotated[float, Field(ge=0)] = 0.0
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    warmup: Share = 0.1
    group_decay: Annotated[float, Field(gt=0, le=1)] = 0.3
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.05
    class_weights: Literal["none", "balanced"] = "none"
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0
    patience: Annotated[int, Field(ge=0)] = 0
    clip: Annotated[float, Field(ge=0)] = 1.0
    augment: AugmentSection = AugmentSection()
    seed: Seed = 0
    scratch_baseline: bool = False


class ExportSection(Section):
    """The ONNX file.

    Attributes:
        input: `float32_nchw` takes normalised images [N, C, H, W]; `uint8_nhwc` takes pixels [N, H, W, C] as
            cameras give them, and the graph normalises them itself.
        batch: how many at once.
        dynamic: leave that open.
        opset: 0: the profile's.
    """

    input: Literal["float32_nchw", "uint8_nhwc"] = "float32_nchw"
    batch: Annotated[int, Field(ge=1, le=4096)] = 1
    dynamic: bool = False
    opset: Annotated[int, Field(ge=0, le=25)] = 0


Ranges = Literal["minmax", "mean", "percentile", "entropy", "mse", "auto"]
Choose = Literal["balanced", "diverse", "random"]
Method = Literal["plain", "auto", "best"]


class QuantizeSection(Section):
    """INT8. The preset is a file of calibration/; the other keys override it.

    Attributes:
        preset: how many images, how chosen, which ranges.
        ranges: how an activation's range is found.
        method: `plain` (ranges alone), `auto` (corrections, one after the other, until the limits of the gates
            are met on images held out), `best` (every correction that costs next to no speed).
        images: how many training images are looked at.
        choose: `balanced` takes as many of each class, `diverse` also images unlike each other.
        manifest: a pinned calibration set, relative to the recipe's folder.
        exclude: names of nodes that stay in float.
    """

    preset: str = "standard"
    ranges: Ranges | None = None
    method: Method | None = None
    images: Annotated[int, Field(ge=1)] | None = None
    choose: Choose | None = None
    seed: Seed = 0
    manifest: str = ""
    exclude: tuple[str, ...] = ()


class CheckSection(Section):
    """Parity and accuracy. `images` 0: all of the test split."""

    images: Annotated[int, Field(ge=0)] = 0


class BenchSection(Section):
    """Latency on this machine."""

    preset: Literal["quick", "standard"] = "quick"


class Gates(Section):
    """Limits, of a profile or a recipe; a recipe's override a profile's. None: not judged.

    Attributes:
        top1_drop_points: INT8 below FP32, in points of accuracy.
        top1_percent_min: of the INT8 network.
        fp32_difference: largest |ONNX - torch| over the standard deviation of the logits.
        int8_cosine_min: mean cosine of INT8 and FP32 logits.
        int8_agreement_percent_min: share of inputs on which INT8 and FP32 name the same class.
        latency_p50_ms: of the INT8 network.
        latency_p99_ms: of the INT8 network; needs 662 queries, so bench.preset: standard.
        speedup_min: FP32's median latency over INT8's.
        memory_mb: peak of the process that runs the INT8 network.
        size_mb: of the INT8 file.
        engine_agreement_percent_min: share of samples on which the device's INT8 engine names the same class
            as ONNX Runtime does with the same network.
        energy_mj: of one inference of the INT8 engine, the whole module's, in mJ.

    Once a device has been measured, the limits of accuracy, latency, speed and memory hold for its engines:
    latency with copies, speed against the FP16 engine.
    """

    top1_drop_points: float | None = 1.0
    top1_percent_min: Annotated[float, Field(ge=0, le=100)] | None = None
    fp32_difference: Annotated[float, Field(gt=0)] | None = 1e-3
    int8_cosine_min: Annotated[float, Field(ge=-1, le=1)] | None = 0.99
    int8_agreement_percent_min: Annotated[float, Field(ge=0, le=100)] | None = 95.0
    latency_p50_ms: Annotated[float, Field(gt=0)] | None = None
    latency_p99_ms: Annotated[float, Field(gt=0)] | None = None
    speedup_min: Annotated[float, Field(gt=0)] | None = None
    memory_mb: Annotated[float, Field(gt=0)] | None = None
    size_mb: Annotated[float, Field(gt=0)] | None = None
    engine_agreement_percent_min: Annotated[float, Field(ge=0, le=100)] | None = 99.0
    energy_mj: Annotated[float, Field(gt=0)] | None = None


class Span(Section):
    """The values between two ends.

    Attributes:
        low: lower end, included.
        high: upper end, included.
        log: spread evenly over the powers, as learning rates are; `low` must then be above 0.
        step: distance of neighbouring values; None: any value, or any whole number where the key takes no other.
    """

    low: float
    high: float
    log: bool = False
    step: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs a low above 0, not {self.low:g}")
        if self.log and self.step is not None:
            raise ValueError("log and step do not go together")
        return self


Choices = Annotated[tuple[str | int | float | bool | None, ...], Field(min_length=1)]
Axis = Annotated[
    Annotated[Span, Tag("range")] | Annotated[Choices, Tag("list")],
    Discriminator(lambda value: "range" if isinstance(value, dict | Span) else "list"),
]


class TuneSection(Section):
    """What `edgetune tune` searches, and what for.

    Attributes:
        objective: `top1` (validation accuracy of the trained network), or `int8` (of its INT8 version).
        latency_ms: median of the INT8 network on this machine that the best one must keep to, with `int8`.
        space: by dotted name of a key (`finetune.learning_rate`), either a list of values or a range
            `{low: 1e-4, high: 1e-2, log: true}`; empty: learning rate, strategy, augmentation, weight decay, and
            what is distilled with, where the recipe distils.
        seed: of the search.
    """

    objective: Literal["top1", "int8"] = "top1"
    latency_ms: Annotated[float, Field(gt=0)] | None = None
    space: dict[str, Axis] = {}
    seed: Seed = 0

    @model_validator(mode="after")
    def _latency_is_of_int8(self) -> Self:
        if self.latency_ms is not None and self.objective != "int8":
            raise ValueError("latency_ms goes with objective: int8")
        return self


class Recipe(Section):
    """What to make."""

    schema_version: Literal[1]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = "run"
    profile: str = "host-cpu"
    data: DataSection
    model: ModelSection
    finetune: FinetuneSection = FinetuneSection()
    export: ExportSection = ExportSection()
    quantize: QuantizeSection = QuantizeSection()
    check: CheckSection = CheckSection()
    bench: BenchSection = BenchSection()
    gates: Gates = Gates()
    tune: TuneSection = TuneSection()
    folder: Path = Field(default=Path(), exclude=True)

    def resolve(self, path: str) -> Path:
        """Return a path of the recipe: relative ones begin at the recipe's folder."""
        return self.folder / Path(path).expanduser()


def load_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        ConfigError: it cannot be read, is not YAML 1.2, or a key or value is wrong; names file, line, key.
    """
    document = load_yaml(path, what="recipe", hint="edgetune init --data DIR -o recipe.yaml writes one")
    return validate(Recipe, document).model_copy(update={"folder": path.parent})


def section_from(verb: str, values: dict[str, Any]) -> Any:
    """Build one section from options of the command line.

    Raises:
        ConfigError: a value is not allowed; names the option.
    """
    model = Recipe.model_fields[verb].annotation
    try:
        return model.model_validate(values)  # type: ignore[union-attr]
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"--{first['loc'][0]}: {first['msg']} (got {first['input']!r})") from None


def recipe_from(values: dict[str, Any], folder: Path = Path()) -> Recipe:
    """Build a recipe from plain values, for use from Python; `schema_version` may be left out.

    Raises:
        ConfigError: a key or value is wrong; names the key.
    """
    document = Document(Path("recipe"), {"schema_version": 1, **values}, {})
    return validate(Recipe, document).model_copy(update={"folder": folder})
