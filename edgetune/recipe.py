"""Recipes: what to make, as YAML whose mistakes are answered with file, line and key.

One model per section, one section per verb. A recipe knows no hardware beyond the name of a profile, and
no library. It may import errors and artifact only.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from edgetune.errors import ConfigError
from edgetune.learning import AugmentSection as AugmentSection
from edgetune.learning import DataSection as DataSection
from edgetune.learning import DistillSection as DistillSection
from edgetune.learning import FinetuneSection as FinetuneSection
from edgetune.learning import ModelSection as ModelSection
from edgetune.learning import PreprocessSection as PreprocessSection
from edgetune.learning import Section as Section
from edgetune.learning import Seed as Seed
from edgetune.learning import Share as Share
from edgetune.learning import TeacherSection as TeacherSection
from edgetune.yaml import Document, load_yaml, validate


class ExportSection(Section):
    """The ONNX file.

    Attributes:
        input: `float32_nchw` takes normalised images [N, C, H, W]; `uint8_nhwc` takes pixels [N, H, W, C] as
            cameras give them, and the graph normalises them itself.
        batch: how many at once.
        dynamic: leave that open.
        opset: 0: the profile's.
        lengths: of texts, numbers of tokens that inputs are filled up to, each text to the least that holds it,
            longer ones cut; empty: `model.length` alone. With several the file takes them all.
    """

    input: Literal["float32_nchw", "uint8_nhwc"] = "float32_nchw"
    batch: Annotated[int, Field(ge=1, le=4096)] = 1
    dynamic: bool = False
    opset: Annotated[int, Field(ge=0, le=25)] = 0
    lengths: tuple[Annotated[int, Field(ge=3, le=8192)], ...] = ()


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
    """Latency on this machine, and of a bundle's engines on a device.

    Attributes:
        preset: `quick` (2 s per network), `standard` (30 s and 1,000 queries), or `mlperf` (the rules of its
            SingleStream and Offline scenarios: 20 minutes per network). A device times its engines as `standard`
            does, or with `mlperf` as SingleStream alone, with copies and without: 20 minutes per engine.
    """

    preset: Literal["quick", "standard", "mlperf"] = "quick"


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
        size_mb: of the INT8 file, in 10^6 bytes.
        engine_agreement_percent_min: share of samples on which the device's INT8 engine names the same class
            as ONNX Runtime does with the same network.
        energy_mj: of one inference of the INT8 engine, the whole module's, in mJ.

    Once a device has been measured, the limits of accuracy, latency, speed, memory and size hold for its engines:
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


class RecipeGates(Gates):
    """Limits, and what a recipe alone may say of how they are judged.

    Attributes:
        estimates: until a device was measured, what `edgetune estimate` says of the INT8 engine's latency and
            memory is held against latency_p50_ms and memory_mb, and marked as estimated.
    """

    estimates: bool = False


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
    space: dict[str, Axis] = Field(default={})
    seed: Seed = 0

    @model_validator(mode="after")
    def _latency_is_of_int8(self) -> Self:
        if self.latency_ms is not None and self.objective != "int8":
            raise ValueError("latency_ms goes with objective: int8")
        return self


class Recipe(Section):
    """What to make.

    `profile` is where it must run, as `--profile` takes it; a file of one's own lies beside the recipe.
    """

    schema_version: Literal[1]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = "run"
    profile: str = "host-cpu"
    data: DataSection
    model: ModelSection
    finetune: FinetuneSection = FinetuneSection()
    distill: DistillSection | None = None
    export: ExportSection = ExportSection()
    quantize: QuantizeSection = QuantizeSection()
    check: CheckSection = CheckSection()
    bench: BenchSection = BenchSection()
    gates: RecipeGates = RecipeGates()
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
    loaded = validate(Recipe, document)
    file = re.match(r"[^:@]+\.ya?ml(?=[:@]|$)", loaded.profile)
    beside = file is not None and (path.parent / file[0]).is_file()
    profile = str(path.parent / loaded.profile) if beside else loaded.profile
    return loaded.model_copy(update={"folder": path.parent, "profile": profile})


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
