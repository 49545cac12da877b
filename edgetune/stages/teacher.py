"""A teacher that must not learn anything first becomes an artifact: a network with its weights, or an ONNX file.

It knows no data. It may import errors, artifact, recipe, data.preprocess, engines, models and training's
checkpoint.
"""

import shutil
from pathlib import Path
from typing import Any

from edgetune.artifact import Artifact
from edgetune.data.preprocess import Given, image_input, preprocess_as
from edgetune.engines.onnxruntime import Session
from edgetune.errors import ConfigError
from edgetune.models import build_taught, preprocess_for
from edgetune.recipe import TeacherSection
from edgetune.training.checkpoint import MODEL_FILE, save_network

PARTS = (
    "say it in the recipe: preprocess: {preset: imagenet}\n"
    "or in parts: preprocess: {resize_px: 256, size_px: 224, mean: [0.485, 0.456, 0.406], "
    "std: [0.229, 0.224, 0.225]}"
)


def teacher(
    section: TeacherSection, gray: bool, *, into: Path, file: Path | None = None, weights: Path | None = None
) -> Artifact:
    """Write a network that knows its classes already as an artifact.

    Args:
        section: a network of `edgetune models list` with trained weights, or what an ONNX file does not say.
        gray: whether the images have one channel.
        into: where the files go.
        file: the ONNX file that `section.path` names.
        weights: the file that `section.weights` names.

    Returns:
        A `checkpoint` or an `onnx` artifact.

    Raises:
        ConfigError: the preprocessing is not given or does not fit, or no weights.
        ArtifactError: a file that cannot be read or does not fit.
    """
    into.mkdir(parents=True, exist_ok=True)
    if file is not None:
        return _file(section, file, into)
    if section.weights == "none":
        raise ConfigError(
            "distill.teacher.weights: none: a teacher of random weights knows nothing",
            hint="let it learn first: distill.teacher.finetune",
        )
    channels = section.channels or (1 if gray else 3)
    preprocess = preprocess_for(section.name, channels, section.size_px, section.length)
    net, classes = build_taught(
        section.name, channels, weights or section.weights, section.adapter, section.size_px
    )
    save_network(net, into / MODEL_FILE)
    model = section.model.model_dump(mode="json")
    details: dict[str, Any] = {"model": model, "channels": channels, "classes": classes}
    made = Artifact(kind="checkpoint", classes=section.classes, preprocess=preprocess, details=details)
    return made.write(into)


def _file(section: TeacherSection, file: Path, into: Path) -> Artifact:
    shutil.copyfile(file, into / "model.onnx")
    session = Session(into / "model.onnx")
    given = Given.model_validate(section.preprocess.model_dump()) if section.preprocess else None
    try:
        preprocess = preprocess_as(given, image_input(session.inputs))
    except ConfigError as error:
        raise ConfigError(f"distill.teacher.preprocess: {file}: {error.message}", hint=PARTS) from error
    return Artifact(
        kind="onnx",
        classes=section.classes,
        inputs=session.inputs,
        outputs=session.outputs,
        preprocess=preprocess,
    ).write(into)
