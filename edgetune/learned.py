"""What learns in a run: the checkpoint, and beside it a teacher, the student alone, the network from scratch.

One function for each artifact; the pipeline calls them. It may import everything below the pipeline.
"""

import importlib.util
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgetune.artifact import Artifact, hash_json, sha256_of
from edgetune.data.folders import Dataset, save_dataset
from edgetune.data.unlabelled import gather, gather_texts
from edgetune.errors import ConfigError, EdgetuneError, nearest
from edgetune.learning import HF, folder_in
from edgetune.progress import Progress
from edgetune.recipe import FinetuneSection, ModelSection, Recipe, TeacherSection
from edgetune.store import Store

# Decoded images, and what a teacher says of them, for all trainings of a run.
DECODED, ANSWERS = ".decoded", "answers"
# Told the history before the first epoch and after each; what it raises ends the training.
Watch = Callable[[list[dict[str, Any]]], None]
TRAINING = ("torch", "torchvision", "pillow", "numpy")
# What a run's own artifacts may teach with.
TEACHERS = ("checkpoint", "onnx")


def weights_path(recipe: Recipe) -> Path | None:
    """Return the file that `model.weights` names, or the folder that `model.name` does; else None."""
    if folder := folder_in(recipe.model.name):
        return recipe.resolve(folder).absolute()
    if recipe.model.weights in ("default", "none"):
        return None
    return recipe.resolve(recipe.model.weights)


def model_name(recipe: Recipe) -> str:
    """Return the network's name; a folder's as it is found from anywhere."""
    name, folder = recipe.model.name, folder_in(recipe.model.name)
    return name.replace(folder, str(recipe.resolve(folder).absolute()), 1) if folder else name


def _digest(weights: Path | None) -> str:
    """Return the digest of a file of weights, or of what a folder holds of a network; empty for None."""
    if weights is None or weights.is_file():
        return sha256_of(weights) if weights else ""
    inside = [
        path for ending in ("json", "txt", "model", "safetensors") for path in weights.glob(f"*.{ending}")
    ]
    inside += weights.glob("1_Pooling/config.json")
    return hash_json({path.relative_to(weights).as_posix(): sha256_of(path) for path in inside})


def check_teacher(recipe: Recipe) -> None:
    """Refuse a teacher that is not there, or that cannot teach, before an hour is spent.

    Raises:
        EdgetuneError: whatever is wrong with it, with the key of the recipe.
    """
    from edgetune.models import model_row, preprocess_for
    from edgetune.models.text import check_weights

    distil = recipe.distill
    if distil is None:
        return
    if recipe.finetune.scratch_baseline and not distil.baseline:
        raise ConfigError(
            "finetune.scratch_baseline: what transfer bought is counted without a teacher",
            hint="distill.baseline: true trains that network",
        )
    more = recipe.resolve(distil.unlabelled)
    if distil.unlabelled and not (more.is_dir() or (recipe.data.noun == "text" and more.is_file())):
        raise ConfigError(f"distill.unlabelled: no folder {more}")
    teacher, where = distil.teacher, recipe.resolve(distil.teacher.path)
    own = _teacher_recipe(recipe, teacher)
    _check_layers(model_name(recipe), distil.features, "student")
    try:
        if teacher.name:
            model_row(model_name(own))
            preprocess_for(model_name(own), teacher.channels or 3, teacher.size_px, teacher.length)
            if teacher.name.startswith(HF) and teacher.weights == "default":
                check_weights(model_name(own))
            weights = weights_path(own)
            if weights is not None and not weights.exists():
                raise ConfigError(f"weights: no file {weights}", hint="default, or the path of a file")
            if teacher.name.startswith(HF) and not teacher.finetune and teacher.weights == "default":
                raise ConfigError(
                    f"{teacher.name}: has no head for the data's classes",
                    hint="let it learn them first: distill.teacher.finetune: {}; or name a checkpoint: path",
                )
        elif where.is_dir():
            _refuse_said_twice(teacher, Artifact.load(where, *TEACHERS))
        elif not where.is_file():
            raise ConfigError(f"no such file or folder: {where}")
        elif where.suffix != ".onnx":
            raise ConfigError(
                f"{where}: neither an artifact's folder nor an ONNX file",
                hint="weights go with the network they belong to: distill.teacher: "
                "{name: resnet18, weights: FILE}",
            )
        elif teacher.preprocess is None:
            raise ConfigError(
                f"{where}: nothing says how images become its inputs, and edgetune does not guess",
                hint="distill.teacher.preprocess: {preset: imagenet}, or resize_px, size_px, mean and std",
            )
    except EdgetuneError as error:
        hint = error.hint.replace("model.size_px", "distill.teacher.size_px")
        raise type(error)(f"distill.teacher: {error.message}", hint=hint) from error
    if teacher.name:
        _check_layers(model_name(own), distil.features.values(), "teacher")


def _check_layers(name: str, layers: Iterable[str], whose: str) -> None:
    """Refuse layers that a network does not have: a teacher may have hours to learn before they are asked."""
    from edgetune.models import layer_names

    known = layer_names(name) if layers else ()
    for layer in layers:
        if layer not in known:
            raise ConfigError(
                f"distill.features: the {whose} ({name}) has no layer {layer!r}", hint=nearest(layer, known)
            )


def _refuse_said_twice(teacher: TeacherSection, artifact: Artifact) -> None:
    if teacher.preprocess or teacher.classes:
        raise ConfigError(
            f"{artifact.path}: the artifact says itself how inputs are preprocessed, and its classes",
            hint="leave preprocess and classes out",
        )


def make_checkpoint(
    keep: Store, recipe: Recipe, data: Dataset, accelerator: str, progress: Progress,
    name: str = "checkpoint", watch: Watch | None = None,
) -> Artifact:  # fmt: skip
    """Fine-tune, or find the checkpoint of an earlier call; `watch` looks on, see `finetune`."""
    from edgetune.stages.finetune import finetune

    weights = weights_path(recipe)
    settings = recipe.finetune.model_copy(update={"scratch_baseline": False})
    # A file of weights counts by its content, not by how its path is written.
    model = _without_place(recipe, weights)
    return keep(
        name, finetune, model, data, settings,
        uses=_with_extra(recipe, TRAINING), also={"weights": _digest(weights)},
        accelerator=accelerator, weights=weights, watch=watch, progress=progress, cache=keep.out / DECODED,
    )  # fmt: skip


def _without_place(recipe: Recipe, weights: Path | None) -> ModelSection:
    """Return the network without the place of its weights, which count by their content."""
    if weights is None:
        return recipe.model
    if weights.is_dir():
        kept = recipe.model.weights if recipe.model.weights == "none" else "file"
        fewer = "".join(recipe.model.name.partition("#")[1:])
        return recipe.model.model_copy(update={"name": f"{HF}{weights.name}{fewer}", "weights": kept})
    return recipe.model.model_copy(update={"weights": "file"})


def make_scratch(
    keep: Store, recipe: Recipe, data: Dataset, accelerator: str, progress: Progress
) -> Artifact | None:
    """Train the same network from random weights with the same epochs, where the recipe asks for it."""
    if not recipe.finetune.scratch_baseline:
        return None
    # A frozen backbone of random weights would learn nothing: from scratch, everything learns.
    settings: FinetuneSection = recipe.finetune.model_copy(update={"strategy": "full"})
    model = recipe.model.model_copy(update={"weights": "none"})
    bare = recipe.model_copy(update={"finetune": settings, "model": model})
    return make_checkpoint(keep, bare, data, accelerator, progress, "scratch")


def make_transfer(keep: Store, checkpoint: Artifact, scratch: Artifact, data: Dataset) -> Artifact:
    """Say what the pretrained weights bought, or find the earlier comparison."""
    from edgetune.stages.transfer import transfer

    return keep("transfer", transfer, checkpoint, scratch, data, uses=TRAINING)


def look_at_unlabelled(recipe: Recipe, out: Path, progress: Progress) -> Dataset | None:
    """Read the images or texts that have no labels, all of them, and write down what was found.

    Raises:
        ConfigError: none that can be read.
    """
    if recipe.distill is None or not recipe.distill.unlabelled:
        return None
    folder, manifest = recipe.resolve(recipe.distill.unlabelled), out / "unlabelled.json"
    try:
        if recipe.data.noun == "text":
            found = gather_texts(folder, recipe.data.text, progress)
        else:
            found = gather(folder, progress, most=0, known=manifest if manifest.is_file() else None)
    except ConfigError as error:
        raise ConfigError(f"distill.unlabelled: {error.message}", hint=error.hint) from error
    save_dataset(replace(found, classes=found.classes or ("",)), manifest)
    for warning in found.warnings:
        progress.line(f"warning: {warning}")
    return found


def make_teacher(
    keep: Store, recipe: Recipe, data: Dataset, accelerator: str, progress: Progress
) -> Artifact | None:
    """Read, fine-tune or wrap up the teacher that a recipe names, or find the one of an earlier call."""
    if recipe.distill is None:
        return None
    from edgetune.training.distil import check_loss

    check_loss(recipe.distill, len(data.classes))
    teacher = recipe.distill.teacher
    where = recipe.resolve(teacher.path)
    if teacher.path and where.is_dir():
        return Artifact.load(where, *TEACHERS)
    own = _teacher_recipe(recipe, teacher)
    if teacher.finetune:
        return make_checkpoint(keep, own, data, accelerator, progress, "teacher")
    from edgetune.stages.teacher import teacher as wrap_up

    weights, file = weights_path(own), where if teacher.path else None
    section = teacher.model_copy(
        update=({"weights": "file"} if weights else {}) | ({"path": "file"} if file else {})
    )
    digests = {"weights": sha256_of(weights) if weights else "", "file": sha256_of(file) if file else ""}
    return keep(
        "teacher", wrap_up, section, data.gray,
        uses=(*_with_extra(own, TRAINING), "onnxruntime"), also=digests, file=file, weights=weights,
    )  # fmt: skip


def make_distilled(
    keep: Store, recipe: Recipe, teacher: Artifact, data: Dataset, unlabelled: Dataset | None, accelerator: str,
    progress: Progress, name: str = "checkpoint", watch: Watch | None = None,
) -> Artifact:  # fmt: skip
    """Distill the student, or find the checkpoint of an earlier call; `watch` looks on, see `finetune`."""
    from edgetune.stages.distill import distill

    assert recipe.distill is not None
    weights = weights_path(recipe)
    settings = recipe.finetune.model_copy(update={"scratch_baseline": False})
    model = _without_place(recipe, weights)
    # Which teacher it is, its digest says; the baseline is another artifact.
    distil = recipe.distill.model_copy(
        update={"teacher": TeacherSection(name="teacher"), "unlabelled": "", "baseline": True}
    )
    libraries = (*TRAINING, "onnxruntime") if teacher.kind == "onnx" else TRAINING
    return keep(
        name, distill, teacher, model, data, settings, distil, unlabelled, uses=_with_extra(recipe, libraries),
        also={"weights": _digest(weights)},
        accelerator=accelerator, weights=weights, answers=_answers_folder(teacher, keep.out), watch=watch,
        progress=progress, cache=keep.out / DECODED,
    )  # fmt: skip


def _answers_folder(teacher: Artifact, out: Path) -> Path:
    """Return where a teacher's answers lie: in the run that made it, for the students of all runs."""
    run = teacher.path.parent
    return (run if (run / "data.json").is_file() and os.access(run, os.W_OK) else out) / ANSWERS


def make_alone(
    keep: Store, recipe: Recipe, data: Dataset, accelerator: str, progress: Progress
) -> Artifact | None:
    """Train the student without its teacher, where the recipe asks for it."""
    if recipe.distill is None or not recipe.distill.baseline:
        return None
    return make_checkpoint(keep, recipe, data, accelerator, progress, "alone")


def make_distillation(
    keep: Store, teacher: Artifact | None, alone: Artifact | None, checkpoint: Artifact, data: Dataset,
    accelerator: str, progress: Progress,
) -> Artifact | None:  # fmt: skip
    """Say what distilling bought, or find the earlier comparison."""
    if teacher is None:
        return None
    from edgetune.stages.distillation import distillation

    return keep(
        "distillation", distillation, teacher, alone, checkpoint, data,
        uses=(*TRAINING, "onnxruntime"), accelerator=accelerator, progress=progress,
    )  # fmt: skip


def _teacher_recipe(recipe: Recipe, teacher: TeacherSection) -> Recipe:
    """Return the recipe by which a teacher would be fine-tuned."""
    settings = teacher.finetune or FinetuneSection()
    model = teacher.model if teacher.name else recipe.model
    return recipe.model_copy(update={"model": model, "finetune": settings})


def _with_extra(recipe: Recipe, libraries: tuple[str, ...]) -> tuple[str, ...]:
    if recipe.model.name.startswith("timm:") and importlib.util.find_spec("timm"):
        return (*libraries, "timm")
    if recipe.model.name.startswith(HF):
        return (*libraries, "transformers", "tokenizers")
    return libraries
