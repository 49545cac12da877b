"""Says what distilling bought: the teacher, the student alone and the student distilled, on the test split.

All answer on the same images. Nothing is chosen by the result. It may import artifact, data, models, training
and latency (for statistics).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from edgetune.artifact import Artifact, write_atomic
from edgetune.data.folders import Dataset
from edgetune.data.reader import batches
from edgetune.errors import ArtifactError, ConfigError
from edgetune.latency.statistics import PairedDrop, paired_drop, wilson
from edgetune.models import operations
from edgetune.progress import Progress, Silent
from edgetune.training.accelerator import Accelerator, choose_accelerator
from edgetune.training.checkpoint import load_network
from edgetune.training.evaluate import predict_logits
from edgetune.training.teacher import in_order, load_teacher, logits_of

BATCH = 64


def distillation(
    teacher: Artifact,
    alone: Artifact | None,
    distilled: Artifact,
    data: Dataset,
    *,
    into: Path,
    accelerator: str = "auto",
    teacher_module: nn.Module | None = None,
    module: nn.Module | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Compare a distilled student with its teacher, and with itself alone, and write `measures.json`.

    Args:
        teacher: what it learned from.
        alone: the same student, trained with the same budget and no teacher.
        distilled: the student.
        data: whose test split is looked at.
        into: where the measures go.
        accelerator: `auto`, `cpu` or `cuda`.
        teacher_module: your own network, where the teacher's checkpoint was made of one.
        module: your own network, where the student's was.
        progress: counts images.

    Raises:
        ArtifactError: the two students were made for other inputs or classes.
        ConfigError: no test images, or a teacher that does not know the classes.
    """
    into.mkdir(parents=True, exist_ok=True)
    shown, target = progress or Silent(), choose_accelerator(accelerator)
    if not data.splits["test"]:
        raise ConfigError(f"{data.root}: the test split has no {data.noun}s")
    if alone and (alone.classes != distilled.classes or alone.preprocess != distilled.preprocess):
        raise ArtifactError(f"{alone.path} and {distilled.path} were made for other inputs or classes")
    taught = in_order(load_teacher(teacher, target, module=teacher_module), data, Silent())
    truth = np.array([sample.label for sample in data.splits["test"]])
    said = logits_of(taught, data, "test", shown, device=str(target.device)).numpy().argmax(axis=1)
    right = {"teacher": said == truth}
    models = {
        "teacher": _share(right["teacher"])
        | {
            "network": teacher.details.get("model", {}).get("name", "ONNX file"),
            "parameters": taught.parameters,
            "operations": taught.operations,
            "size_px": getattr(taught.preprocess, "size_px", None),
            "seconds": teacher.details.get("training", {}).get("seconds"),
        }
    }
    for name, artifact in (("alone", alone), ("distilled", distilled)):
        if artifact is not None:
            said, facts = _student(artifact, data, target, module)
            right[name] = said == truth
            models[name] = _share(right[name]) | facts
    how = distilled.details["distillation"]
    measures: dict[str, Any] = {
        "images": truth.size,
        "split": "test",
        "models": models,
        "gain": _paired(paired_drop(right["distilled"], right["alone"])) if alone else None,
        "gap": _paired(paired_drop(right["teacher"], right["distilled"])),
        **{key: how[key] for key in ("loss", "temperature", "labels", "features", "views", "unlabelled")},
        **{key: how[key] for key in ("asking_seconds", "asked_earlier", "warnings")},
        "epochs_distilled": _curve(distilled),
        "epochs_alone": _curve(alone) if alone else [],
    }
    text = json.dumps({"distillation": measures}, indent=1, allow_nan=False) + "\n"
    write_atomic(into / "measures.json", text)
    parents = {"teacher": teacher.digest, "checkpoint": distilled.digest}
    parents |= {"alone": alone.digest} if alone else {}
    return Artifact(kind="measures", classes=distilled.classes, parents=parents).write(into)


def _student(
    artifact: Artifact, data: Dataset, target: Accelerator, module: nn.Module | None
) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """Return what a student says of the test images, and what it is."""
    if artifact.preprocess is None:
        raise ArtifactError(f"{artifact.path}: does not say how inputs are preprocessed")
    net = load_network(artifact, module)
    training = artifact.details["training"]
    facts = {
        "network": artifact.details["model"]["name"],
        "parameters": sum(p.numel() for p in net.parameters()),
        "operations": operations(net, artifact.preprocess),
        "size_px": getattr(artifact.preprocess, "size_px", None),
        "seconds": training["seconds"],
    }
    inputs = batches(data.root, data.splits["test"], artifact.preprocess, BATCH)
    return predict_logits(target.place(net), inputs, target.device).argmax(axis=1), facts


def _share(right: NDArray[np.bool_]) -> dict[str, Any]:
    count = int(right.sum())
    low, high = wilson(count, right.size)
    return {"right": count, "top1": count / right.size, "low": low, "high": high}


def _paired(found: PairedDrop) -> dict[str, Any]:
    """Return by how many points the first one is better, and how many images it alone gets right, and wrong."""
    return {
        "points": found.points,
        "low": found.low,
        "high": found.high,
        "p_value": found.p_value,
        "gained": found.worse,
        "lost": found.better,
    }


def _curve(artifact: Artifact) -> list[dict[str, Any]]:
    epochs = artifact.details["training"]["epochs"]
    return [{"epoch": entry["epoch"], "val_top1": entry["val_top1"]} for entry in epochs]
