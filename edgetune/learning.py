"""Sections of a recipe that say how a network learns: data, model, finetune, distill.

They know no library. It may import errors only.
"""

import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
# Before the name of a network that reads texts.
HF = "hf:"


class Section(BaseModel):
    """A part of a recipe: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def folder_in(name: str) -> str:
    """Return the folder that a network's name names, as it is written there; empty where it names none."""
    folder = name.removeprefix(HF).partition("#")[0]
    return folder if name.startswith(HF) and folder.startswith((".", "/", "~")) else ""


def moved(name: str, old: Path, new: Path) -> str:
    """Return a network's name, whose relative folder begins at `old`, as it is written in a recipe of `new`."""
    folder = folder_in(name)
    if not folder.startswith("."):
        return name
    there = os.path.relpath((old / folder).absolute(), new.absolute())
    return name.replace(folder, there if there.startswith(".") else f"./{there}", 1)


class ModelSection(Section):
    """The network to start from.

    Attributes:
        name: a row of `edgetune models list`, or `timm:NAME`; for texts `hf:NAME` of the Hugging Face hub, or
            `hf:FOLDER` where FOLDER begins with `.`, `/` or `~` (BERT, DistilBERT, MiniLM, RoBERTa). `#3` behind
            it: three of its layers, for a small student.
        weights: `default` (the pretrained ones), `none`, or a path to a .safetensors or .pth file.
        channels: of the input images; 0: as many as the data has colours (gray images: 1).
        adapter: how a network made for colour takes another number of channels: `sum` adds up the first
            kernels, `conv` puts a learned 1x1 convolution in front.
        size_px: side of the square input; 0: what the network was trained with.
        length: of texts, tokens of the longest input; longer ones are cut; 0: 128, or what the network takes.
    """

    name: str
    weights: str = "default"
    channels: Literal[0, 1, 3] = 0
    adapter: Literal["sum", "conv"] = "sum"
    size_px: Annotated[int, Field(ge=0, le=4096)] = 0
    length: Annotated[int, Field(ge=0, le=8192)] = 0

    @model_validator(mode="after")
    def _a_folder_brings_weights(self) -> Self:
        if folder_in(self.name) and self.weights not in ("default", "none"):
            raise ValueError(f"{self.name} is a folder with weights of its own: weights: default or none")
        return self


class DataSection(Section):
    """Class folders, or a folder that holds train/ and val/ or test/ with class folders.

    With `task: text-classification` also a table, .csv, .tsv or .jsonl, or a folder that holds train.csv and
    val.csv or test.csv; class folders then hold .txt files.

    Attributes:
        path: relative paths begin at the recipe's folder.
        task: what is learned from what.
        text: of a table, the column that holds the texts; empty: found by its name (`text`, `sentence`, ...).
        label: of a table, the column that holds the classes; empty: found by its name (`label`, `class`, ...).
        val_share: cut from train for early stopping and every other choice, where there is no val and test.
        test_share: cut off for the gates, where the folder has neither val/ nor test/.
        seed: of the cut.
        broken_share: more unreadable images than this share, and more than two, stop the run. Texts: those
            that are empty or have no label.
        min_images: fewer images (or texts) than this in a class's training split are refused.
    """

    path: str
    task: Literal["image-classification", "text-classification"] = "image-classification"
    text: str = ""
    label: str = ""
    val_share: Annotated[float, Field(gt=0, lt=0.5)] = 0.15
    test_share: Annotated[float, Field(gt=0, lt=0.5)] = 0.2
    seed: Seed = 0
    broken_share: Share = 0.02
    min_images: Annotated[int, Field(ge=2)] = 5

    @property
    def noun(self) -> Literal["image", "text"]:
        """What a sample is called."""
        return "text" if self.task == "text-classification" else "image"

    @model_validator(mode="after")
    def _columns_are_of_texts(self) -> Self:
        if (self.text or self.label) and self.noun != "text":
            raise ValueError("text and label name columns, and go with task: text-classification")
        return self


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
        learning_rate: peak, of the head; 0: a default for the optimizer and strategy, a tenth of it where more than
            the head learns in a network without normalisation (VGG, SqueezeNet).
        weight_decay: None: a default for the optimizer.
        warmup: share of the steps.
        average: decay of an exponential moving average of the weights; 0: off.
        patience: epochs without a better one (validation accuracy, then loss) before it stops; 0: never.
        clip: largest norm of the gradient; 0: off.
        accumulate: batches per update of the weights, for batches that memory does not hold at once. The same
            as a batch that many times as large, but that BatchNorm sees `batch` images at a time.
        deterministic: only kernels that give the same bits each time, and no torch.compile; slower on a GPU.
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
    accumulate: Annotated[int, Field(ge=1, le=1024)] = 1
    deterministic: bool = False
    augment: AugmentSection = AugmentSection()
    seed: Seed = 0
    scratch_baseline: bool = False


class PreprocessSection(Section):
    """How images become inputs of an ONNX file: a preset, and parts that take its parts' place.

    Attributes:
        preset: `imagenet`, `imagenet-bicubic`, `zero-one`, `minus-one-one` or `zero-255`.
        resize_px: of the shorter side.
        size_px: side of the square that is cut out of the middle.
        mean: of values from 0 to 1, for all channels or for each.
        std: as `mean`.
        interpolation: of the resizing.
    """

    preset: str = ""
    resize_px: Annotated[int, Field(gt=0, le=8192)] | None = None
    size_px: Annotated[int, Field(gt=0, le=8192)] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic"] | None = None


class TeacherSection(ModelSection):
    """What a student learns from: a network of `edgetune models list`, or what lies at a path.

    Attributes:
        name: a row of `edgetune models list`, `timm:NAME` or `hf:NAME`; `weights`, `channels`, `adapter`, `size_px`
            and `length` go with it, as in `model`.
        path: instead of a name: the folder of a checkpoint or of an exported network, or an ONNX file.
        preprocess: how images become inputs of an ONNX file.
        classes: names of the logits of an ONNX file or of `weights`, in their order.
        finetune: how it learns the data's classes first, as in `finetune`; without it, it must know them.
    """

    name: str = ""
    path: str = ""
    preprocess: PreprocessSection | None = None
    classes: tuple[str, ...] = ()
    finetune: FinetuneSection | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if bool(self.name) == bool(self.path):
            raise ValueError("needs a name (edgetune models list) or a path, one of the two")
        of_name = ("weights", "channels", "adapter", "size_px", "length", "finetune")
        for key in of_name if self.path else ("preprocess",):
            if key in self.model_fields_set:
                raise ValueError(f"{key} does not go with a {'path' if self.path else 'name'}")
        return self

    @property
    def model(self) -> ModelSection:
        """The network as `model` would name it."""
        return ModelSection.model_validate({key: getattr(self, key) for key in ModelSection.model_fields})


class DistillSection(Section):
    """How the network of `model` learns from a teacher, besides what `finetune` says.

    Attributes:
        teacher: what it learns from.
        loss: `soft` matches the teacher's softened answers, `standardised` their shape alone, whatever the
            size of the logits (for three classes and more).
        temperature: softens both; None: 4 for `soft`, 2 for `standardised`.
        labels: weight of the images' own labels, beside the teacher's answers; 0: none, 1: labels alone.
        features: layers to be matched, `student layer: teacher layer`.
        feature_weight: of that, beside labels and answers.
        views: augmented views of each image whose answers are computed once and kept; 0: each epoch makes
            new views, and the teacher answers in every step. Takes the place of `finetune.views`.
        unlabelled: a folder of more images to learn from, in classes or not; of texts a table, whose labels do
            not count, or a folder of .txt files.
        baseline: also train the student alone with the same budget, and say what the teacher bought.
    """

    teacher: TeacherSection
    loss: Literal["soft", "standardised"] = "soft"
    temperature: Annotated[float, Field(gt=0)] | None = None
    labels: Share = 0.1
    features: dict[str, str] = {}
    feature_weight: Annotated[float, Field(gt=0)] = 1.0
    views: Annotated[int, Field(ge=0, le=64)] = 4
    unlabelled: str = ""
    baseline: bool = True

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if self.labels == 1 and not self.features:
            raise ValueError("labels: 1 leaves nothing of the teacher to learn from")
        return self
