"""Distill: a student learns the classes of a data folder from its labels and from what a teacher says.

It knows no ONNX and no hardware profile. It may import errors, artifact, recipe, progress, data and training.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgetune.artifact import Artifact, How, Preprocess, hash_json, library_versions
from edgetune.data.augment import build_augment, knobs
from edgetune.data.folders import Dataset
from edgetune.data.reader import example
from edgetune.errors import ConfigError
from edgetune.progress import Progress, Silent
from edgetune.recipe import DistillSection, FinetuneSection, ModelSection
from edgetune.training import ranks
from edgetune.training.accelerator import choose_accelerator
from edgetune.training.answers import kept_answers
from edgetune.training.distil import TEMPERATURES, UNLABELLED, Answers, check_loss, distilling
from edgetune.training.features import Batch
from edgetune.training.feeder import Feeder
from edgetune.training.frame import (
    CACHE_FOLDER,
    RESUME_FOLDER,
    Begun,
    begin_network,
    fingerprint,
    keeping_best,
    training_told,
    write_checkpoint,
)
from edgetune.training.loop import Task, Watch, train
from edgetune.training.strategies import set_phase
from edgetune.training.student import Student, seen_by, shared_view
from edgetune.training.teacher import Teacher, in_order, load_teacher

# Beside the artifacts: what a teacher says serves every student of the same data.
ANSWERS_FOLDER = "answers"


@ranks.together
def distill(
    teacher: Artifact,
    model: ModelSection,
    data: Dataset,
    settings: FinetuneSection,
    distil: DistillSection,
    unlabelled: Dataset | None = None,
    *,
    into: Path,
    accelerator: str = "auto",
    module: nn.Module | None = None,
    preprocess: Preprocess | None = None,
    teacher_module: nn.Module | None = None,
    weights: Path | None = None,
    answers: Path | None = None,
    cache: Path | None = None,
    watch: Watch | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Train a network on the training split to answer as a teacher does; otherwise as `finetune`.

    Under torchrun on several machines, teacher and answers lie in a folder that all of them see.

    Args:
        teacher: a checkpoint or an exported network, of any input size and normalisation.
        model: which network learns, or `custom` with `module`.
        data: the labelled images; the test split is not touched.
        settings: how it learns.
        distil: what it learns from the teacher; which teacher, the artifact says.
        unlabelled: more images to learn from; their labels and splits do not count.
        into: where the files go.
        accelerator: `auto`, `cpu` or `cuda`.
        module: your own network as the student.
        preprocess: how images become the input of `module`.
        teacher_module: your own network, where the teacher's checkpoint was made of one.
        weights: the file that `model.weights` names, where that is relative to something else.
        answers: the folder where the teacher's answers are kept; by default beside `into`.
        watch: is told the history before the first epoch and after each; what it raises ends the training.
        cache: the folder where decoded images are kept; by default within `into`.
        progress: who is told how far it is.

    Returns:
        A `checkpoint` artifact: model.safetensors and data.json.

    Raises:
        ConfigError: a teacher that does not know the classes or gives no logits, layers that cannot be matched, a
            strategy that the network cannot do, more processes than images.
        MissingTool: `cuda` is asked for and there is no GPU.
        ArtifactError: a file that does not fit.
        StageError: training diverged, memory or disk do not do.
    """
    began = time.perf_counter()
    progress = progress or Silent()
    target = choose_accelerator(accelerator)
    check_loss(distil, len(data.classes))
    learned = with_unlabelled(data, unlabelled, progress)
    ranks.check_enough(len(learned.splits["train"]), settings.batch)
    if ranks.rank() == 0:
        into.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if target.name == "cuda" else []):
        begun = begin_network(model, data, settings, module, preprocess, weights)
        loaded = load_teacher(teacher, target, tuple(distil.features.values()), teacher_module)
        taught = in_order(loaded, data, progress)
        mark = fingerprint(
            begun, data, settings, teacher.digest, unlabelled.digest if unlabelled else "", _learning(distil)
        )
        # The projections begin with random weights.
        torch.manual_seed(settings.seed)
        student = Student(begun.net, begun.preprocess, distil.features, taught.shapes)
        _check_features(student, begun)
        lesson = _Lesson(taught, begun.preprocess, settings, distil, unlabelled is not None, progress)
        feeder = Feeder(
            student, student.layout(begun.layout), learned, begun.preprocess, lesson.settings, target, progress,
            cache or into / CACHE_FOLDER, view=lesson.view, views=lesson.views,
        )  # fmt: skip
        digests = [data.digest, unlabelled.digest if unlabelled else ""]
        told = lesson.answers(answers or into.parent / ANSWERS_FOLDER, digests, feeder)
        task = Task(
            layout=student.layout(begun.layout),
            phases=begun.phases,
            feeds=feeder,
            loss=distilling(distil, settings, feeder.labels, len(data.classes), student, told),
            settings=settings,
            accelerator=target,
            folder=into / RESUME_FOLDER,
            fingerprint=mark,
            watch=watch,
        )
        with keeping_best(begun, data, task, into):
            course = train(student, task, progress)
    training = training_told(
        course, task, begun.net, time.perf_counter() - began,
        feeder.decode_seconds, feeder.features_earlier, feeder.cut,
    )  # fmt: skip
    parents, told_of = {"teacher": teacher.digest}, _told(taught, distil, lesson, learned)
    return write_checkpoint(
        begun, data, into, training, parents, distillation=told_of, settings=settings.model_dump(mode="json")
    )


class _Lesson:
    """What a student and its teacher look at, and how often the teacher is asked."""

    def __init__(
        self,
        teacher: Teacher,
        student: How,
        settings: FinetuneSection,
        distil: DistillSection,
        unlabelled: bool,
        progress: Progress,
    ) -> None:
        self.teacher = teacher
        self.view = shared_view(student, teacher.preprocess)
        self.settings = settings
        self.seconds = 0.0
        self.asked_earlier = False
        self._progress = progress
        chosen = knobs(settings.augment)
        # Where nothing is random, all views are the same one.
        random = isinstance(self.view, Preprocess) and build_augment(chosen, self.view.size_px)
        self.views = distil.views if random else min(distil.views, 1)
        if (chosen.mixup or chosen.cutmix) and (self.views or unlabelled):
            why = "some have no label" if unlabelled else "a teacher's kept answers are of one image each"
            progress.line(f"MixUp and CutMix mix images: left out, as {why}")
            augment = settings.augment.model_copy(update={"mixup": 0.0, "cutmix": 0.0})
            self.settings = settings.model_copy(update={"augment": augment})

    def answers(self, folder: Path, data: list[str], feeder: Feeder) -> Callable[[Batch], Answers]:
        """Return what gives a batch's answers; `data` are digests of the images."""
        own, view = self.teacher.preprocess, self.view
        if not self.views:
            return lambda batch: self.teacher.answer(seen_by(batch.inputs, view, own))
        # Scaled as the teacher wants it from the start: its answers then serve students of any scaling.
        scaled = view
        if isinstance(view, Preprocess) and isinstance(own, Preprocess):
            spread = view.channels // own.channels
            scaled = view.model_copy(update={"mean": own.mean * spread, "std": own.std * spread})
        parts = [
            self.teacher.digest, sorted(self.teacher.shapes), list(self.teacher.classes), data,
            self.settings.augment.model_dump(mode="json"), self.settings.seed, self.views,
            scaled.model_dump(mode="json"), own.model_dump(mode="json"),
            library_versions("edgetune", "torch", "torchvision", "pillow", "numpy", "onnxruntime"),
        ]  # fmt: skip
        feeds = feeder.in_order(self.views, scaled)
        began = time.perf_counter()
        told, self.asked_earlier = kept_answers(
            folder,
            hash_json(parts),
            self.teacher.shapes,
            feeds,
            lambda batch: self.teacher.answer(seen_by(batch.inputs, scaled, own)),
            self._progress,
        )
        self.seconds = time.perf_counter() - began
        return told


def with_unlabelled(data: Dataset, more: Dataset | None, progress: Progress) -> Dataset:
    """Add inputs without labels to the training split; what is in the data already does not count twice.

    Those of val and test are left out as well: what decides must not have been learned from.

    Raises:
        ConfigError: nothing is left to add.
    """
    if more is None:
        return data
    known = {sample.sha256 for samples in data.splits.values() for sample in samples}
    found = [sample for samples in more.splits.values() for sample in samples]
    fresh = {sample.sha256: sample for sample in found if sample.sha256 not in known}
    if not fresh:
        raise ConfigError(
            f"distill.unlabelled: {more.root}: each of its {len(found)} {more.noun}s is in the data already",
            hint=f"name other {more.noun}s, or leave it out",
        )
    if len(fresh) < len(found):
        progress.line(
            f"{more.root}: {len(found) - len(fresh)} {more.noun}s are in the data, or twice: left out"
        )
    # An absolute path stays what it is below any root.
    root = more.root.absolute()
    added = tuple(replace(s, path=str(root / s.path), label=UNLABELLED) for s in fresh.values())
    return replace(data, splits={**data.splits, "train": (*data.splits["train"], *added)})


def _learning(distil: DistillSection) -> dict[str, Any]:
    """Return what a student's weights depend on: which teacher it is, its digest says."""
    return distil.model_dump(mode="json", exclude={"teacher", "unlabelled", "baseline"})


def _check_features(student: Student, begun: Begun) -> None:
    """Refuse to match layers that never learn."""
    if not student.layers:
        return
    for phase in begun.phases:
        set_phase(student, student.layout(begun.layout), phase)
        student.eval()(torch.from_numpy(example(begun.preprocess, 1)))
        if len(student.features()) == len(student.projections):
            return
    raise ConfigError(
        f"distill.features: with finetune.strategy: {begun.phases[-1].name!r} some of the student's layers "
        f"({', '.join(student.layers)}) never learn, so that nothing could be matched",
        hint="finetune.strategy: full, or name layers that learn",
    )


def _told(teacher: Teacher, distil: DistillSection, lesson: _Lesson, learned: Dataset) -> dict[str, Any]:
    """Say how it was distilled, for the report."""
    return {
        "teacher": teacher.digest,
        "teacher_parameters": teacher.parameters,
        "teacher_operations": teacher.operations,
        "teacher_size_px": getattr(teacher.preprocess, "size_px", None),
        "loss": distil.loss,
        "temperature": distil.temperature or TEMPERATURES[distil.loss],
        "labels": distil.labels,
        "features": distil.features,
        "views": lesson.views,
        "unlabelled": sum(sample.label < 0 for sample in learned.splits["train"]),
        "asking_seconds": round(lesson.seconds, 2),
        "asked_earlier": lesson.asked_earlier,
        "warnings": list(teacher.said),
    }
