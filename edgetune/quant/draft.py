"""A quantized network in the making: the FP32 network, the plan, scales, and Q/DQ written into it.

Outside of Q/DQ a draft is FP32 whatever the runtime; `finish` writes the types that it reads. It may import
errors, machine, and the rest of quant but the ladder.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from onnx import ModelProto

from edgetune.errors import ConfigError
from edgetune.machine import has_vnni
from edgetune.quant import cpu, half, placement, tensorrt
from edgetune.quant.choose import Found, Grid, find_ranges
from edgetune.quant.collect import Batch
from edgetune.quant.graph import Graph
from edgetune.quant.plan import Plan, Scale
from edgetune.quant.ranges import Range

NO_VNNI_WARNING = (
    "this CPU has no VNNI: weights have 7 bits instead of 8, so that its kernels do not overflow, "
    "and INT8 is not much faster than FP32"
)


@dataclass(frozen=True)
class Rendering:
    """How the same network is written down for one kind of runtime.

    Attributes:
        place: decides where Q/DQ goes; the names are nodes that stay in float, and products of attention that do not.
        scales: gives the scale of every range.
        symmetric: signed integers with zero point 0, or unsigned ones with a zero point.
        render: writes Q/DQ, everything outside of it in FP32, for corrections to work on.
        finish: writes the types that the runtime reads, given the magnitudes that tensors reach; also gives
            warnings.
        half: scales are numbers that FP16 can write down.
    """

    place: Callable[[Graph, frozenset[str], frozenset[str]], Plan]
    scales: Callable[[dict[str, Range]], dict[str, Scale]]
    symmetric: bool
    render: Callable[[Graph, Plan, dict[str, Scale]], ModelProto]
    finish: Callable[[ModelProto, Mapping[str, float]], tuple[ModelProto, list[str]]]
    half: bool = False


def _largest_weight() -> int:
    return cpu.FULL_WEIGHT if has_vnni() else cpu.REDUCED_WEIGHT


def _render_cpu(graph: Graph, plan: Plan, scales: dict[str, Scale]) -> ModelProto:
    return cpu.render(graph, plan, scales, _largest_weight())


def _finish_weak(model: ModelProto, peaks: Mapping[str, float]) -> tuple[ModelProto, list[str]]:
    del peaks
    return model, []


def _finish_cpu(model: ModelProto, peaks: Mapping[str, float]) -> tuple[ModelProto, list[str]]:
    del peaks
    return model, [] if has_vnni() else [NO_VNNI_WARNING]


# What Runtime.rendering may name.
RENDERINGS: dict[str, Rendering] = {
    "weak": Rendering(placement.place, tensorrt.scales_of, True, tensorrt.render, _finish_weak),
    "strong": Rendering(
        placement.place,
        tensorrt.half_scales_of,
        True,
        partial(tensorrt.render, half=True),
        half.to_half,
        True,
    ),
    "cpu": Rendering(cpu.place, cpu.scales_of, False, _render_cpu, _finish_cpu),
}


@dataclass(frozen=True)
class Draft:
    """A quantized network that can still be corrected.

    Attributes:
        graph: the FP32 network, prepared.
        plan: where Q/DQ is.
        found: ranges of activations, and how they were found.
        scales: as they were found; corrections change those in `model`.
        model: Q/DQ in an FP32 network.
        excluded: names of nodes that stay in float.
        shift: how far tensors are shifted down (`center`); their scales are such that what was 0 is a level.
        products: names of the products of attention that run in INT8.
    """

    graph: Graph
    plan: Plan
    found: Found
    scales: dict[str, Scale]
    model: ModelProto
    excluded: frozenset[str]
    shift: Mapping[str, float] = field(default_factory=dict)
    products: frozenset[str] = frozenset()

    @property
    def peaks(self) -> dict[str, float]:
        """Magnitudes that tensors reached on calibration inputs."""
        return {name: max(-s.low, s.high) for name, s in self.found.collected.statistics.items()}


def grid_of(rendering: Rendering) -> Grid:
    """Return what ranges become."""
    largest = cpu.FULL_WEIGHT if rendering.symmetric else _largest_weight()
    return Grid(rendering.scales, rendering.symmetric, largest)


def draft(
    graph: Graph,
    rendering: Rendering,
    batches: Iterable[Batch],
    ranges: str,
    excluded: frozenset[str],
    products: frozenset[str] = frozenset(),
) -> Draft:
    """Quantize a prepared network, nothing corrected; `products` are those of attention that run in INT8.

    Raises:
        ConfigError: nothing can be quantized.
        StageError: no batches, or activations that are NaN or infinite.
    """
    plan = rendering.place(graph, excluded, products)
    if not plan.weighted:
        reasons = "; ".join(dict.fromkeys(layer.why for layer in plan.layers if layer.why))
        raise ConfigError(
            "nothing to quantize: no operator with weights can run in INT8",
            hint=reasons or "the network is empty",
        )
    found = find_ranges(graph, plan, batches, ranges, grid_of(rendering))
    scales = rendering.scales(found.ranges)
    model = rendering.render(graph, plan, scales)
    return Draft(graph, plan, found, scales, model, excluded, products=products)
