"""One call: FP32 network and batches in, INT8 network and an account of it out.

It may import errors, machine, progress, engines and the rest of quant.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from onnx import ModelProto, helper

from edgetune.errors import ConfigError, nearest
from edgetune.machine import has_vnni
from edgetune.profile import LEAST_OPSET, STRONG_OPSET
from edgetune.quant import cpu, half, placement, tensorrt
from edgetune.quant.choose import METHODS, Grid, find_ranges
from edgetune.quant.collect import Batch
from edgetune.quant.graph import Graph
from edgetune.quant.plan import Plan, Scale, check_names
from edgetune.quant.prepare import prepare
from edgetune.quant.ranges import Range

RENDERING_KEY = "edgetune.rendering"
NO_VNNI_WARNING = (
    "this CPU has no VNNI: weights have 7 bits instead of 8, so that its kernels do not overflow, "
    "and INT8 is not much faster than FP32"
)


@dataclass(frozen=True)
class Rendering:
    """How the same network is written down for one kind of runtime.

    Attributes:
        render: writes Q/DQ, everything outside of it in FP32, for corrections to work on.
        finish: writes the types that the runtime reads; also gives warnings.
    """

    place: Callable[[Graph, frozenset[str]], Plan]
    scales: Callable[[dict[str, Range]], dict[str, Scale]]
    symmetric: bool
    render: Callable[[Graph, Plan, dict[str, Scale]], ModelProto]
    finish: Callable[[ModelProto], tuple[ModelProto, list[str]]]


def _render_cpu(graph: Graph, plan: Plan, scales: dict[str, Scale]) -> ModelProto:
    return cpu.render(graph, plan, scales, cpu.FULL_WEIGHT if has_vnni() else cpu.REDUCED_WEIGHT)


def _finish_cpu(model: ModelProto) -> tuple[ModelProto, list[str]]:
    return model, [] if has_vnni() else [NO_VNNI_WARNING]


# What Runtime.rendering may name.
RENDERINGS: dict[str, Rendering] = {
    "weak": Rendering(placement.place, tensorrt.scales_of, True, tensorrt.render, lambda model: (model, [])),
    "strong": Rendering(
        placement.place, tensorrt.half_scales_of, True, partial(tensorrt.render, half=True), half.to_half
    ),
    "cpu": Rendering(cpu.place, cpu.scales_of, False, _render_cpu, _finish_cpu),
}


def quantize_model(
    model: ModelProto,
    batches: Iterable[Batch],
    rendering: str,
    ranges: str = "percentile",
    exclude: Iterable[str] = (),
    tensorrt: str = "",
) -> tuple[ModelProto, dict[str, Any]]:
    """Quantize a network.

    Args:
        model: FP32; it stays as it is. An opset that Q/DQ needs is given to it where its own is older.
        batches: calibration inputs, preprocessed, in any batch size: `[N, ...]`, or by the inputs' names.
        rendering: `weak` or `strong` (TensorRT), or `cpu` (ONNX Runtime).
        ranges: how an activation's range is found: one of `choose.METHODS`.
        exclude: names of nodes that stay in float.
        tensorrt: version of TensorRT that will read the file, where known; kernels it lacks are warned of.

    Returns:
        The quantized network, and what there is to tell: `layers`, `activations`, `images`, `seconds`,
        `convergence` and `enough_images` (how ranges settle), `quantized_ops`, `float_ops`, `warnings`.

    Raises:
        ConfigError: an unknown name, a network that is quantized already, or nothing to quantize.
        StageError: no batches, or activations that are NaN or infinite.
    """
    started = time.perf_counter()
    for value, known, what in ((rendering, RENDERINGS, "rendering"), (ranges, METHODS, "ranges")):
        if value not in known:
            raise ConfigError(f"{what}: unknown {value!r}", hint=nearest(value, known))
    how = RENDERINGS[rendering]
    graph = prepare(model, STRONG_OPSET if rendering == "strong" else LEAST_OPSET)
    plan = how.place(graph, check_names(graph, exclude))
    if not plan.weighted:
        raise ConfigError(
            "nothing to quantize: no operator with weights can run in INT8", hint=_reasons(plan)
        )
    largest = cpu.FULL_WEIGHT if how.symmetric or has_vnni() else cpu.REDUCED_WEIGHT
    found = find_ranges(graph, plan, batches, ranges, Grid(how.scales, how.symmetric, largest))
    scales = how.scales(found.ranges)
    made, warnings = how.finish(how.render(graph, plan, scales))
    properties = {item.key: item.value for item in made.metadata_props} | {RENDERING_KEY: rendering}
    helper.set_model_props(made, properties)
    details = {
        "rendering": rendering,
        "ranges": ranges,
        "images": found.collected.images,
        "convergence": found.convergence,
        "enough_images": found.enough_images,
        "seconds": time.perf_counter() - started,
        "layers": [layer.dump() for layer in plan.layers],
        "activations": [
            _describe(name, scale) | {"ranges": found.estimators[name]} for name, scale in scales.items()
        ],
        "quantized_ops": sum(layer.precision == "INT8" for layer in plan.layers),
        "float_ops": sum(layer.precision != "INT8" for layer in plan.layers),
        "warnings": [
            *warnings,
            *placement.missing_kernels(graph, plan, tensorrt),
            *found.warnings,
        ],
    }
    return made, details


def _describe(tensor: str, scale: Scale) -> dict[str, Any]:
    return {"tensor": tensor, **asdict(scale), "scale": float(scale.scale)}


def _reasons(plan: Plan) -> str:
    return "; ".join(dict.fromkeys(layer.why for layer in plan.layers if layer.why)) or "the network is empty"
