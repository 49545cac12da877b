"""From file to file: reads an FP32 network, quantizes it for a runtime, writes it, compares the two.

It knows nothing of images, recipes or artifacts. It may import errors, artifact (for full disks), profile,
engines and the rest of quant.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto, helper

from edgetune.artifact import disk_error
from edgetune.engines.onnxruntime import Session
from edgetune.errors import ConfigError, StageError
from edgetune.profile import STRONG_OPSET, Runtime
from edgetune.progress import Progress
from edgetune.quant.collect import Batch
from edgetune.quant.compare import compare
from edgetune.quant.graph import opset_of
from edgetune.quant.half import render as render_half
from edgetune.quant.ladder import Limits
from edgetune.quant.large import fits, save_beside
from edgetune.quant.prepare import prepare
from edgetune.quant.quantizer import quantize_model


def quantize_file(
    source: Path,
    into: Path,
    runtime: Runtime,
    calibration: Iterable[Batch],
    judges: Iterable[Batch],
    *,
    ranges: str,
    exclude: Iterable[str] = (),
    method: str = "plain",
    limits: Limits | None = None,
    device: str = "auto",
    resume: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Quantize a network and compare the result, as it was written, with what it was made of.

    Args:
        source: FP32.
        into: the file to write.
        runtime: whose rendering is written.
        calibration: inputs that decide; gone through as often as needed.
        judges: inputs that decide nothing.
        ranges: how an activation's range is found.
        exclude: names of nodes that stay in float.
        method: which corrections follow; with the four below as for `quantize_model`.
        limits: when `auto` is good enough.
        device: for training.
        resume: in which training keeps its state.
        progress: is told how far corrections are.

    Returns:
        The account of `quantize_model`, the figures of `compare` as `comparison`, and, for strongly typed
        engines, the name of the FP16 baseline's file beside it as `fp16`.

    Raises:
        ArtifactError: the network does not load.
        ConfigError: the runtime does not read its opset, or nothing can be quantized.
        StageError: an activation is NaN or infinite, the result is not valid, or the disk is full.
    """
    model = read(source, runtime)
    try:
        made, details = quantize_model(
            model, calibration, runtime.rendering, ranges, exclude, runtime.tensorrt,
            method=method, limits=limits, device=device, resume=resume, progress=progress,
        )  # fmt: skip
    except ConfigError as error:
        raise ConfigError(f"{source}: {error.message}", hint=error.hint) from error
    standard = [item for item in made.opset_import if item.domain in ("", "ai.onnx")]
    made.ir_version = max(runtime.ir, helper.find_min_ir_version_for(standard))
    write(made, into)
    if runtime.rendering == "strong":
        # The baseline that INT8 has to beat; a weakly typed engine makes it of FP32 itself.
        half = render_half(prepare(model, STRONG_OPSET))
        half.ir_version = made.ir_version
        write(half, baseline_beside(into))
        details |= {"fp16": baseline_beside(into).name}
    # ONNX Runtime's optimisations round elsewhere than a TensorRT engine does.
    exact = runtime.rendering != "cpu"
    return details | {"comparison": compare(source, into, judges, exact=exact)}


def baseline_beside(int8: Path) -> Path:
    """Return where the FP16 network lies: `fp16.onnx` in an artifact, else `NAME.fp16.onnx`."""
    stem = int8.name.removesuffix(".onnx").removesuffix(".int8")
    return int8.with_name("fp16.onnx" if stem == "model" else f"{stem}.fp16.onnx")


def read(path: Path, runtime: Runtime) -> ModelProto:
    """Read a network, weights in files beside it included.

    Raises:
        ArtifactError: it does not load.
        ConfigError: the runtime does not read its opset.
    """
    Session(path)  # whatever is wrong with the file is said there
    model = onnx.load_model(path)
    opset = opset_of(model)
    most = runtime.opset_max or (opset if runtime.rendering == "cpu" else runtime.opset)
    if opset > most:
        raise ConfigError(
            f"{path}: opset {opset}, where this profile reads {most} at most",
            hint="export it again: edgetune export --profile NAME, or torch.onnx.export(..., "
            f"opset_version={runtime.opset})",
        )
    return model


def write(model: ModelProto, path: Path) -> None:
    """Write a network and read it back the way its users will.

    Weights that do not fit into the file go into `NAME.data` beside it.

    Raises:
        StageError: it is not valid ONNX, or the disk is full.
        ArtifactError: it does not load.
    """
    try:
        if fits(model):
            path.write_bytes(model.SerializeToString(deterministic=True))
        else:
            save_beside(model, path)
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise StageError(f"the quantized network is not valid ONNX: {str(error).splitlines()[0]}") from error
    except OSError as error:
        raise disk_error(error, path) from error
    # Not optimised: ONNX Runtime's fusions make QLinear operators of FP16 scales, which those do not take.
    Session(path, exact=True)
