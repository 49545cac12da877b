"""Quantizes a network to INT8 for a runtime: an exported artifact, or any ONNX file.

Calibrated on images that judge nothing, then compared with FP32 on images that did not calibrate. It may
import errors, artifact, recipe, profile, progress, data, engines and quant.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
from pydantic import ValidationError

from edgetune.artifact import (
    ARTIFACT_FILE,
    Artifact,
    How,
    Preprocess,
    Tokens,
    disk_error,
    hash_json,
    library_versions,
    sha256_of,
)
from edgetune.data.calibration import load_preset, save_manifest
from edgetune.data.folders import Dataset, scan
from edgetune.data.inputs import Batch, Material, from_arrays, from_samples
from edgetune.data.preprocess import Given, image_input, preprocess_as
from edgetune.data.unlabelled import gather
from edgetune.engines.onnxruntime import Session
from edgetune.errors import ArtifactError, ConfigError
from edgetune.profile import Runtime, check_int8, load_target
from edgetune.progress import Progress, Silent
from edgetune.quant.files import quantize_file
from edgetune.quant.ladder import Limits
from edgetune.recipe import DataSection, QuantizeSection

MODEL_FILE = "model.onnx"
CALIBRATION_FILE = "calibration.json"
# What training needs to go on after it was stopped; no part of the artifact.
RESUME_FILE = ".training.safetensors"


def quantize(
    network: Artifact,
    data: Dataset,
    settings: QuantizeSection,
    runtime: Runtime,
    *,
    into: Path,
    limits: Limits | None = None,
    accelerator: str = "auto",
    manifest: Path | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Quantize an exported network to INT8 with explicit Q/DQ.

    Args:
        network: of kind `onnx`.
        data: whose training split calibrates; on its validation split INT8 is compared with FP32.
        settings: a preset, and what overrides it.
        runtime: whose rendering is written.
        into: where `model.onnx` and `calibration.json` (the images that were used) go.
        limits: when corrections are good enough.
        accelerator: `auto`, `cpu` or `cuda`, for training.
        manifest: a pinned calibration set; takes the place of the choice.
        progress: counts images.

    Returns:
        An artifact of kind `qdq`; `details` tells of every layer and activation, and of the `comparison`.

    Raises:
        ArtifactError: the network does not say how inputs are preprocessed, or is no ONNX file.
        ConfigError: an unknown preset, range or node name, a network that was exported for another runtime
            or is quantized already, or nothing to quantize.
        StageError: an activation is NaN or infinite, or the result does not load.
    """
    shown = progress or Silent()
    if network.preprocess is None:
        raise ArtifactError(
            f"{network.path}: does not say how inputs are preprocessed", hint="export it again"
        )
    source = network.file(MODEL_FILE)
    into.mkdir(parents=True, exist_ok=True)
    material = from_samples(data, settings, manifest, network.preprocess, Session(source).inputs, shown)
    save_manifest(material.samples, data, into / CALIBRATION_FILE)
    resume = into / RESUME_FILE
    details = _quantize(
        source, into / MODEL_FILE, runtime, settings, material, shown, limits, accelerator, resume
    )
    resume.unlink(missing_ok=True)
    for warning in details["warnings"]:
        shown.line(f"quantize: {warning}")
    return Artifact(
        kind="qdq",
        classes=network.classes,
        inputs=network.inputs,
        outputs=network.outputs,
        preprocess=network.preprocess,
        parents={"onnx": network.digest},
        details=details,
    ).write(into)


def quantize_onnx(
    model: Path | str,
    data: Path | str | Sequence[Batch],
    out: Path | str | None = None,
    *,
    profile: str = "host-cpu",
    preprocess: Preprocess | Given | str | None = None,
    settings: QuantizeSection | None = None,
    compare_on: Sequence[Batch] | None = None,
    accelerator: str = "auto",
    progress: Progress | None = None,
) -> Artifact:
    """Quantize any ONNX network; a description and the calibration set are written beside the result.

    Args:
        model: an ONNX file, or the folder of an exported artifact.
        data: a folder of images, in classes or not; a table of texts for an artifact that takes those; or
            batches as the network takes them, each an array `[N, ...]` or, for several inputs, an array by the
            name of each: real ones, as it will see them.
        out: the file to write; default: beside the model, as `NAME.int8.onnx`.
        profile: `NAME[:MODE][@JETPACK]`.
        preprocess: how images become inputs: whole, in parts, or a preset's name. Artifacts know theirs.
        settings: a preset, and what overrides it; `manifest` pins the images.
        compare_on: with batches: those on which INT8 is compared with FP32; default: those that calibrate.
        accelerator: `auto`, `cpu` or `cuda`, for training.
        progress: counts images.

    Returns:
        The description: an artifact of kind `qdq` in the folder of `OUT.onnx`, which is one of its files;
        it is also written as `OUT.json`, and the images that were used as `OUT.calibration.json`.
        `details` tells of every layer and activation, and of the `comparison`.

    Raises:
        ArtifactError: the file is no ONNX network that loads.
        ConfigError: a name, folder or setting is wrong, the profile does not take the network, its inputs are
            no images, the preprocessing is missing or does not fit, or nothing can be quantized.
        StageError: an activation is NaN or infinite, the result does not load, or the disk is full.
    """
    shown, settings = progress or Silent(), settings or QuantizeSection()
    target = load_target(profile)
    check_int8(target)
    source, origin = _source(Path(model), preprocess is not None)
    session = Session(source)
    final = _destination(origin.path if origin else source, source, Path(out) if out else None)
    used: How | None = None
    images = None
    if isinstance(data, Path | str):
        if origin and isinstance(origin.preprocess, Tokens):
            used = origin.preprocess
            images = scan(DataSection(path=str(data), task="text-classification"), Path(data), progress=shown)
        else:
            used = _preprocess(source, session, origin, preprocess)
            images = gather(Path(data), shown)
        for warning in images.warnings:
            shown.line(f"warning: {warning}")
        manifest = Path(settings.manifest).expanduser() if settings.manifest else None
        material = from_samples(images, settings, manifest, used, session.inputs, shown)
    else:
        material = from_arrays(data, compare_on, shown)
    with _all_or_nothing(final) as scratch:
        details = _quantize(
            source, scratch / final.name, target.runtime, settings, material, shown,
            Limits.of(target.profile.gates), accelerator,
        )  # fmt: skip
        if images:
            save_manifest(material.samples, images, scratch / final.with_suffix(".calibration.json").name)
        made = Artifact(
            kind="qdq",
            classes=origin.classes if origin else (),
            inputs=session.inputs,
            outputs=session.outputs,
            preprocess=used,
            parents={"onnx": origin.digest if origin else _digest(source)},
            made_by="quantize_onnx",
            versions=library_versions("edgetune", "numpy", "onnx", "onnxruntime", "pillow"),
            details=details | {"file": final.name, "profile": target.label},
        ).write(scratch)
    return made.at(final.parent)


@contextmanager
def _all_or_nothing(final: Path) -> Iterator[Path]:
    """Give a folder to make an artifact in; at the end its files move to where `final` says.

    Raises:
        StageError: the disk is full, or the place cannot be written.
    """
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=final.parent, prefix=f".{final.name}.") as folder:
            scratch = Path(folder)
            yield scratch
            # The description goes last: what it describes is there.
            described = scratch / ARTIFACT_FILE
            for file in sorted(scratch.iterdir(), key=lambda file: file == described):
                file.replace(final.with_suffix(".json") if file == described else final.parent / file.name)
    except OSError as error:
        raise disk_error(error, final) from error


def _preprocess(
    source: Path, session: Session, origin: Artifact | None, given: Preprocess | Given | str | None
) -> Preprocess:
    """Return how images become the network's inputs."""
    try:
        wanted = image_input(session.inputs, known=origin is not None)
        return preprocess_as(origin.of_images() if origin else given, wanted)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error.message}", hint=error.hint) from error


def _quantize(
    source: Path, into: Path, runtime: Runtime, settings: QuantizeSection, material: Material, shown: Progress,
    limits: Limits | None, accelerator: str, resume: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Make the file; return what there is to tell."""
    preset = load_preset(settings.preset)
    try:
        details = quantize_file(
            source, into, runtime, material.calibration, material.judges,
            ranges=settings.ranges or preset.ranges, exclude=settings.exclude,
            method=settings.method or preset.method, limits=limits, device=accelerator, resume=resume,
            progress=shown,
        )  # fmt: skip
    finally:
        shown.end()
    details["comparison"]["on"] = material.judged_on
    return details | material.details | {"preset": settings.preset}


def _digest(source: Path) -> str:
    """Hash a network's file, and with it the files beside it that hold its weights."""
    bare = onnx.load_model(source, load_external_data=False)
    places = [
        entry.value
        for item in bare.graph.initializer
        for entry in item.external_data
        if entry.key == "location"
    ]
    whole = {name: sha256_of(source.parent / name) for name in {source.name, *places}}
    return hash_json(whole) if places else whole[source.name]


def _source(model: Path, told: bool) -> tuple[Path, Artifact | None]:
    """Return the file to quantize, and the artifact that says how its inputs are made.

    Args:
        model: a file, or an artifact's folder.
        told: whether the user says how inputs are made.
    """
    if not model.is_dir():
        if not model.is_file():
            raise ConfigError(
                f"{model}: no such file or folder",
                hint="name an .onnx file, or an exported artifact's folder",
            )
        beside = (model.parent / ARTIFACT_FILE).is_file() and not told
        origin = Artifact.load(model.parent) if beside else None
        return model, origin if origin and origin.preprocess and model.name in origin.files else None
    origin = Artifact.load(model, "onnx")
    if told or origin.preprocess is None:
        wrong = "says how inputs are preprocessed" if told else "does not say how inputs are preprocessed"
        raise ConfigError(
            f"{model}: the artifact {wrong}",
            hint=f"to say otherwise, name the file alone: {origin.file(MODEL_FILE)}",
        )
    return origin.file(MODEL_FILE), origin


def _destination(beside: Path, source: Path, out: Path | None) -> Path:
    """Return the file to write.

    Raises:
        ConfigError: it is the network itself, a folder, or would replace a description of something else.
    """
    final = out or beside.absolute().with_suffix(".int8.onnx")
    if final.is_dir():
        raise ConfigError(f"{final}: is a folder", hint=f"name a file: -o {final / source.name}")
    if final.suffix != ".onnx":
        raise ConfigError(f"{final}: does not end in .onnx", hint=f"-o {final.with_suffix('.onnx')}")
    if final.exists() and final.samefile(source):
        raise ConfigError(f"{final}: is the network itself", hint="name another file with -o")
    description = final.with_suffix(".json")
    try:
        if description.exists():
            Artifact.model_validate_json(description.read_bytes())
    except (OSError, ValidationError):
        raise ConfigError(
            f"{description}: would be replaced, and is not edgetune's", hint="name another file with -o"
        ) from None
    return final
