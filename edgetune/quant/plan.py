"""What a rendering decides before any number is known: which tensors are quantized, for whom, and why not.

Also the vocabulary that all renderings share: families of operators, scales, groups of equal scales.
It may import errors and quant.graph.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from edgetune.errors import ConfigError, nearest
from edgetune.quant.graph import Graph, attribute

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# Give out values of their first input, moved or left out, never new ones.
COPIES = frozenset(
    {
        *("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Dropout"),
        *("MaxPool", "Slice", "Split", "Gather", "Expand", "DepthToSpace", "SpaceToDepth"),
    }
)
# One variable input, one value in for one value out.
ACTIVATIONS = frozenset(
    {
        *("Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Elu", "Selu"),
        *("Softplus", "Softsign", "Mish", "Gelu", "Erf", "Celu", "ThresholdedRelu", "BatchNormalization"),
    }
)
ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div"})
# Weights of an all-zero channel: any scale represents them, and this one survives FP16.
_EMPTY_SCALE = 2.0**-20
_SMALLEST_SCALE = 1e-30
LARGEST_HALF = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Layer:
    """One node of the network and what it became.

    Attributes:
        precision: `INT8` or `FP32`.
        why: the reason for FP32, or what is special about INT8.
        weight_bytes: of its weights and bias, as stored in the quantized file.
    """

    name: str
    op: str
    precision: str
    why: str = ""
    weight_bytes: int = 0

    def dump(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Plan:
    """Where Q/DQ goes.

    Attributes:
        layers: every node, in order.
        reads: quantized tensors, each with the names of the nodes that read it through its Q/DQ pair.
        weighted: names of the nodes whose weights become INT8.
        groups: for every quantized tensor a representative; tensors with the same one share their scale.
        results: quantized tensors that leave the network, and leave it rounded.
    """

    layers: tuple[Layer, ...]
    reads: dict[str, frozenset[str]]
    weighted: frozenset[str]
    groups: dict[str, str]
    results: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Scale:
    """`real = scale * (stored - zero_point)`; the range is what was found, before rounding to levels."""

    low: float
    high: float
    scale: np.float32
    zero_point: int


class Groups:
    """Tensors that must share a scale (union-find)."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def of(self, tensor: str) -> str:
        """Return the representative of a tensor's group."""
        parent = self._parent.get(tensor, tensor)
        if parent == tensor:
            return tensor
        self._parent[tensor] = root = self.of(parent)
        return root

    def join(self, *tensors: str) -> None:
        """Put tensors into one group, represented by the first one's."""
        first, *others = tensors
        for other in others:
            if self.of(other) != self.of(first):
                self._parent[self.of(other)] = self.of(first)


def weight_axis(graph: Graph, node: NodeProto) -> int | None:
    """Return the axis of output channels in a node's weights; None where it has no constant float32 ones."""
    if node.op_type not in WEIGHTED or len(node.input) < 2:
        return None
    weight = graph.constants.get(node.input[1])
    if weight is None or weight.dtype != np.float32 or weight.ndim < 2 or not np.isfinite(weight).all():
        return None
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": weight.ndim - 1}[node.op_type]


def why_no_weights(graph: Graph, node: NodeProto) -> str:
    """Return why `weight_axis` finds no weights in a weighted node."""
    weight = graph.constants.get(node.input[1])
    if weight is None:
        variables = graph.variables(node)
        return (
            "both of its inputs are computed"
            if node.input[0] in variables
            else "its constant is on the left, and weights are looked for on the right"
        )
    return "its weights are a vector" if weight.ndim < 2 else "its weights are not finite float32"


def is_copy(graph: Graph, node: NodeProto) -> bool:
    """Say whether a node only moves or drops values of its one variable input."""
    return (
        node.op_type in COPIES and node.domain in ("", "ai.onnx") and graph.variables(node) == [node.input[0]]
    )


def copied_from(graph: Graph, tensor: str) -> str:
    """Return the tensor whose values a tensor holds, traced back through copies."""
    node = graph.producers.get(tensor)
    while node is not None and is_copy(graph, node):
        tensor = node.input[0]
        node = graph.producers.get(tensor)
    return tensor


def readers(graph: Graph, tensor: str) -> list[NodeProto]:
    """Return the nodes that use a tensor's values, looked at through copies."""
    found: list[NodeProto] = []
    for node in graph.consumers.get(tensor, []):
        if is_copy(graph, node):
            found += [reader for output in node.output for reader in readers(graph, output)]
        else:
            found.append(node)
    return found


def symmetric(low: float, high: float) -> Scale:
    """Return the scale of signed 8-bit integers with zero point 0 that covers a range."""
    threshold = max(abs(low), abs(high))
    scale = max(threshold / 127, _SMALLEST_SCALE) if threshold else _EMPTY_SCALE
    return Scale(low, high, np.float32(scale), 0)


def asymmetric(low: float, high: float) -> Scale:
    """Return scale and zero point of unsigned 8-bit integers that cover a range and represent 0 exactly."""
    bottom, top = min(low, 0.0), max(high, 0.0)
    scale = np.float32(max((top - bottom) / 255, _SMALLEST_SCALE) if top > bottom else _EMPTY_SCALE)
    return Scale(low, high, scale, int(np.clip(np.rint(-bottom / float(scale)), 0, 255)))


def fits_half(scale: NDArray[Any]) -> bool:
    """Say whether FP16 can hold scales (of a tensor, or of a weight's channels) and what they scale.

    FP16's numbers below 2^-14 have ever fewer digits; at 2^-20, four are left.
    """
    return bool(scale.max() >= _EMPTY_SCALE and scale.max() * 128 <= LARGEST_HALF)


def half_scale(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the nearest scales that FP16 can write down; those given where it can hold none of them.

    Channels of weights far below the others (all magnitudes under 1.2e-4) get the least scale, 2^-20.
    """
    if not fits_half(scale):
        return scale
    return np.maximum(scale, np.float32(_EMPTY_SCALE)).astype(np.float16).astype(np.float32)


def quantize_weights(
    weight: NDArray[np.float32],
    axis: int,
    largest: int = 127,
    floor: NDArray[np.float64] | None = None,
    half: bool = False,
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantize weights symmetrically, one scale per output channel.

    Args:
        weight: any shape.
        axis: of the output channels.
        largest: magnitude of the largest integer; 64 leaves the top bit unused.
        floor: per channel, what the scale must at least be.
        half: scales are numbers that FP16 can write down, where it can.

    Returns:
        Integers of the weights' shape, and scales `[channels]`.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis)
    extreme = np.abs(weight).max(axis=others).astype(np.float64)
    scale = np.where(extreme > 0, np.maximum(extreme / largest, _SMALLEST_SCALE), _EMPTY_SCALE)
    if floor is not None:
        scale = np.maximum(scale, floor)
    scale32 = half_scale(scale.astype(np.float32)) if half else scale.astype(np.float32)
    spread = scale32.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
    levels = np.clip(np.rint(weight / spread), -largest, largest).astype(np.int8)
    return levels, scale32


def check_names(graph: Graph, exclude: Iterable[str]) -> frozenset[str]:
    """Return the excluded names as a set.

    Raises:
        ConfigError: the network has no such node.
    """
    known = [node.name for node in graph.nodes]
    for name in exclude:
        if name not in known:
            raise ConfigError(f"exclude: the network has no node {name!r}", hint=nearest(name, known))
    return frozenset(exclude)
