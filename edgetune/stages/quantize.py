"""Quantizes an exported network to INT8 for a runtime, calibrated on the training split.

It may import errors, artifact, recipe, profile, progress, data, engines and quant.
"""

from pathlib import Path
from typing import Any

import onnx

from edgetune.artifact import Artifact, disk_error
from edgetune.data.calibration import choose_samples, load_manifest, load_preset, save_manifest
from edgetune.data.folders import Dataset, Sample
from edgetune.data.images import batches
from edgetune.engines.onnxruntime import Session
from edgetune.errors import ArtifactError, ConfigError, StageError
from edgetune.profile import STRONG_OPSET, Runtime
from edgetune.progress import Progress, Silent
from edgetune.quant.graph import opset_of
from edgetune.quant.quantizer import quantize_model
from edgetune.recipe import QuantizeSection

MODEL_FILE = "model.onnx"
CALIBRATION_FILE = "calibration.json"
# Only decoding works on a whole batch; the network sees as many inputs at once as its batch dimension says.
BATCH = 8


def quantize(
    network: Artifact,
    data: Dataset,
    settings: QuantizeSection,
    runtime: Runtime,
    *,
    into: Path,
    manifest: Path | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Quantize a network to INT8 with explicit Q/DQ.

    Args:
        network: of kind `onnx`.
        data: whose training split calibrates.
        settings: a preset, and what overrides it.
        runtime: whose rendering is written.
        into: where `model.onnx` and `calibration.json` (the images that were used) go.
        manifest: a pinned calibration set; takes the place of the choice.
        progress: counts images.

    Returns:
        An artifact of kind `qdq`; `details` tells of every layer and activation.

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
    preset = load_preset(settings.preset)
    choose = settings.choose or preset.choose
    ranges = settings.ranges or preset.ranges
    source = network.file(MODEL_FILE)
    model = _read(source, runtime)
    samples = (
        load_manifest(manifest, data)
        if manifest
        else choose_samples(data, settings.images or preset.images, choose, settings.seed)
    )
    into.mkdir(parents=True, exist_ok=True)
    save_manifest(samples, data, into / CALIBRATION_FILE)
    shown.begin("calibrate", len(samples))
    try:
        inputs = batches(data.root, samples, network.preprocess, BATCH, shown)
        made, details = quantize_model(
            model, inputs, runtime.rendering, ranges, settings.exclude, runtime.tensorrt
        )
    except ConfigError as error:
        raise ConfigError(f"{source}: {error.message}", hint=error.hint) from error
    finally:
        shown.end()
    made.ir_version = runtime.ir
    _write(made, into / MODEL_FILE)
    for warning in details["warnings"]:
        shown.line(f"quantize: {warning}")
    return Artifact(
        kind="qdq",
        classes=network.classes,
        inputs=network.inputs,
        outputs=network.outputs,
        preprocess=network.preprocess,
        parents={"onnx": network.digest},
        details=details
        | {"preset": settings.preset, "choose": "pinned" if manifest else choose}
        | _classes_seen(samples, data),
    ).write(into)


def _read(path: Path, runtime: Runtime) -> onnx.ModelProto:
    Session(path)  # whatever is wrong with the file is said there
    model = onnx.load_model(path)
    opset = opset_of(model)
    if opset > runtime.opset or (runtime.rendering == "strong" and opset < STRONG_OPSET):
        raise ConfigError(
            f"{path}: opset {opset}, where this profile needs {runtime.opset}",
            hint="it was exported for another profile: export it again for this one",
        )
    return model


def _write(model: onnx.ModelProto, path: Path) -> None:
    """Write the file and read it back the way its users will.

    Raises:
        StageError: it is not valid ONNX, or the disk is full.
        ArtifactError: it does not load.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
        path.write_bytes(model.SerializeToString(deterministic=True))
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise StageError(f"the quantized network is not valid ONNX: {str(error).splitlines()[0]}") from error
    except OSError as error:
        raise disk_error(error, path) from error
    Session(path)


def _classes_seen(samples: tuple[Sample, ...], data: Dataset) -> dict[str, Any]:
    """Say how many calibration images each class has."""
    return {
        "calibration_classes": {
            name: sum(sample.label == label for sample in samples) for label, name in enumerate(data.classes)
        }
    }
