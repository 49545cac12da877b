"""One call: FP32 network and batches in, INT8 network and an account of it out.

It may import errors, machine, progress, engines and the rest of quant.
"""

import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from onnx import ModelProto, helper

from edgetune.engines.onnxruntime import Feed
from edgetune.errors import ConfigError, nearest
from edgetune.profile import LEAST_OPSET, STRONG_OPSET
from edgetune.progress import Progress
from edgetune.quant import placement
from edgetune.quant.choose import METHODS as RANGES
from edgetune.quant.collect import Batch
from edgetune.quant.draft import RENDERINGS, Draft, draft
from edgetune.quant.held import HELD_LEAST, HELD_SHARE, split
from edgetune.quant.ladder import METHODS, Climb, Limits, climb
from edgetune.quant.large import open_model
from edgetune.quant.plan import Scale, check_names
from edgetune.quant.prepare import prepare
from edgetune.quant.sensitivity import Layer, noise_by_layer

RENDERING_KEY = "edgetune.rendering"
# Inputs on which the layers of the result are compared with FP32's.
LOOKED_AT = 8
TOO_FEW_WARNING = (
    f"fewer than {HELD_SHARE * HELD_LEAST} calibration inputs are too few to judge corrections by: "
    "there are none"
)


def quantize_model(
    model: ModelProto,
    batches: Iterable[Batch],
    rendering: str,
    ranges: str = "auto",
    exclude: Iterable[str] = (),
    tensorrt: str = "",
    *,
    method: str = "plain",
    limits: Limits | None = None,
    device: str = "auto",
    resume: Path | None = None,
    progress: Progress | None = None,
) -> tuple[ModelProto, dict[str, Any]]:
    """Quantize a network.

    Args:
        model: FP32; it stays as it is. An opset that Q/DQ needs is given to it where its own is older.
        batches: calibration inputs, preprocessed, in any batch size: `[N, ...]`, or by the inputs' names.
        rendering: `weak` or `strong` (TensorRT), or `cpu` (ONNX Runtime).
        ranges: how an activation's range is found: one of `choose.METHODS`.
        exclude: names of nodes that stay in float.
        tensorrt: version of TensorRT that will read the file, where known; kernels it lacks are warned of.
        method: `plain` (ranges alone), `auto` (corrections until the limits are met) or `best` (all of them
            that cost next to no speed); of the inputs of the last two, a quarter judges the corrections.
        limits: when `auto` is good enough.
        device: `auto`, `cpu` or `cuda`, for training.
        resume: a file in which training keeps its state, to go on from.
        progress: is told how far corrections are.

    Returns:
        The quantized network, and what there is to tell: `layers`, `activations`, `images`, `seconds`,
        `convergence` and `enough_images` (how ranges settle), `ladder` (what each correction gained and
        cost), `quantized_ops`, `float_ops`, `warnings`.

    Raises:
        ConfigError: an unknown name, a network that is quantized already, or nothing to quantize.
        StageError: no batches, or activations that are NaN or infinite.
    """
    started = time.perf_counter()
    known = ((rendering, RENDERINGS, "rendering"), (ranges, RANGES, "ranges"), (method, METHODS, "method"))
    for value, names, what in known:
        if value not in names:
            raise ConfigError(f"{what}: unknown {value!r}", hint=nearest(value, names))
    how = RENDERINGS[rendering]
    graph = prepare(model, STRONG_OPSET if rendering == "strong" else LEAST_OPSET)
    excluded = check_names(graph, exclude)
    climbed = None
    chosen: list[Feed] = []
    held: list[Feed] = []
    if method != "plain":
        chosen, held = split(batches, open_model(graph.model).inputs)
    made = draft(graph, how, chosen or batches, ranges, excluded)
    few = made.found.collected.kept[:LOOKED_AT]
    if held:
        climbed = climb(
            made, how, chosen, held, ranges, method, limits, device=device, resume=resume, progress=progress
        )
        made, few = climbed.best, held[:LOOKED_AT]
    finished, warnings = how.finish(made.model, made.peaks)
    properties = {item.key: item.value for item in finished.metadata_props} | {RENDERING_KEY: rendering}
    helper.set_model_props(finished, properties)
    if method != "plain" and not held:
        warnings.append(TOO_FEW_WARNING)
    warnings += [*placement.missing_kernels(made.graph, made.plan, tensorrt), *made.found.warnings]
    return finished, {
        "rendering": rendering,
        "ranges": ranges,
        "method": method,
        "seconds": time.perf_counter() - started,
        **_account(made, noise_by_layer(made, few), climbed),
        "warnings": warnings,
    }


def _account(made: Draft, noise: list[Layer], climbed: Climb | None) -> dict[str, Any]:
    heard = {layer.name: layer for layer in noise}
    gains = {layer.name: layer.gain_db for layer in (climbed.layers if climbed else [])}
    layers = [
        layer.dump()
        | (
            {"sqnr_db": heard[layer.name].sqnr_db, "operations": heard[layer.name].operations}
            if layer.name in heard
            else {}
        )
        | ({"gain_db": gains[layer.name]} if layer.name in gains else {})
        for layer in made.plan.layers
    ]
    return {
        "images": made.found.collected.images,
        "held_images": len(climbed.held) if climbed else 0,
        "convergence": made.found.convergence,
        "enough_images": made.found.enough_images,
        "ladder": climbed.rungs if climbed else [],
        "layers": layers,
        "activations": [
            _describe(name, scale) | {"ranges": made.found.estimators.get(name, "")}
            for name, scale in made.scales.items()
        ],
        "quantized_ops": sum(layer.precision == "INT8" for layer in made.plan.layers),
        "float_ops": sum(layer.precision != "INT8" for layer in made.plan.layers),
    }


def _describe(tensor: str, scale: Scale) -> dict[str, Any]:
    return {"tensor": tensor, **asdict(scale), "scale": float(scale.scale)}
