"""FP16 written into a graph: what a strongly typed engine (TensorRT from 10.12) runs outside of INT8.

A weakly typed engine chooses FP16 itself where the builder's flag allows it, so there the FP32 graph stays
as it is. Here types are what the graph says: weights, constants and the scales of Q/DQ become FP16, network
inputs and outputs stay FP32 behind Casts.

In FP32 stay:

- operators that add up squares or exponentials, or divide by the root of such a sum (norms, ReduceSum, Pow,
  Exp, ...): |x| > 256 has a square beyond FP16's range. TensorRT itself warns of LayerNorm in FP16 and asks
  for FP32. Softmax, which subtracts the maximum first, pooling and matrix products, which TensorRT adds up in
  FP32, are FP16.
- what is not known to be safe, or has no FP16 in ONNX: custom operators, subgraphs, GridSample, Celu, ...
- nodes with constants, scales or known activations that FP16 cannot hold: above 65,504, or all of them below
  its smallest normal number (an epsilon). These are told, since nobody would guess them.

A DequantizeLinear and all that read it have one type: a Cast between them would keep TensorRT from fusing
them into an INT8 kernel. It may import errors, profile, quant.graph and
quant.plan.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgetune.errors import ConfigError
from edgetune.profile import STRONG_OPSET
from edgetune.quant.graph import Graph, infer_types, is_standard, opset_of, reads_inside
from edgetune.quant.plan import ACTIVATIONS, ARITHMETIC, COPIES, LARGEST_HALF, WEIGHTED, fits_half

_QDQ = frozenset({"QuantizeLinear", "DequantizeLinear"})
HALF_OPS = (
    (ACTIVATIONS - {"Softplus", "Mish", "Celu"})
    | ARITHMETIC
    | COPIES
    | WEIGHTED
    | _QDQ
    | {
        *("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Concat", "Softmax", "Resize", "Pad", "Where"),
        *("Min", "Max", "Neg", "Abs", "Sign", "Floor", "Ceil", "Round", "Tile", "Einsum"),
        *("GatherElements", "GatherND", "ArgMax", "ArgMin", "TopK", "ReduceMax", "ReduceMin"),
        *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Shape", "Size"),
    }
)
# Inputs that have to be FP32 whatever the node's type is.
_FLOAT_INPUTS = {"Resize": (1, 2)}
_SMALLEST_NORMAL = 2.0**-14
# Of a tensor that nowhere gets above, FP16 leaves no more than INT8 does.
_SMALLEST_PEAK = 127 * 2.0**-20
_NAMED = 3


def render(graph: Graph) -> ModelProto:
    """Return the network with FP16 written into it: the baseline beside which a strongly typed INT8 stands.

    The weakly typed baseline is `graph.model` itself with the builder's FP16 flag.
    """
    return to_half(graph.model)[0]


def to_half(model: ModelProto, peaks: Mapping[str, float] | None = None) -> tuple[ModelProto, list[str]]:
    """Return a network, with Q/DQ or without, with FP16 in place of FP32, and what could not become FP16.

    Names stay: those of nodes, inputs, outputs and initializers, and of tensors but for added Casts
    (`TENSOR/half`, `TENSOR/float`). Integer weights stay as they are, so their scales should be FP16 numbers
    already (`plan.half_scale`); others are rounded.

    Args:
        model: FP32 outside of Q/DQ; it stays as it is.
        peaks: magnitudes that tensors are known to reach, by name; beyond FP16 they stay FP32.

    Raises:
        ConfigError: it has Q/DQ and an opset below 19, where scales are FP32.
    """
    work = ModelProto()
    work.CopyFrom(model)
    graph = Graph(infer_types(work))
    if opset_of(model) < STRONG_OPSET and any(node.op_type in _QDQ for node in graph.nodes):
        raise ConfigError(
            f"the network has opset {opset_of(model)}; Q/DQ with FP16 scales needs {STRONG_OPSET} or later",
            hint=f"export it with opset {STRONG_OPSET}",
        )
    told = _beyond_half(graph, peaks or {})
    kept = {node.name for node in graph.nodes if not _may_be_half(graph, node)}
    rewrite = _Rewrite(graph, _closed(graph, kept | told.keys()))
    return rewrite.model(), _warnings(told)


def _may_be_half(graph: Graph, node: NodeProto) -> bool:
    known = all(graph.is_known(name) for name in node.input if name)
    return is_standard(node) and node.op_type in HALF_OPS and known


def _beyond_half(graph: Graph, peaks: Mapping[str, float]) -> dict[str, str]:
    """Return nodes with numbers that FP16 cannot hold, and why."""
    told: dict[str, str] = {}
    for node in graph.nodes:
        if not _may_be_half(graph, node):
            continue
        for index, name in enumerate(node.input):
            value = graph.constants.get(name)
            if value is None or value.dtype != np.float32 or index in _FLOAT_INPUTS.get(node.op_type, ()):
                continue
            if node.op_type in _QDQ:
                if not fits_half(value):
                    told[node.name] = f"scale {float(np.abs(value).max()):.3g}"
            # Limits beyond FP16's range become infinite, which limits just as little.
            elif node.op_type != "Clip" and not _holds(value):
                told[node.name] = f"constant {name!r} of {float(np.abs(value).max()):.3g}"
    for tensor, peak in (_peaks_of_scales(graph) | dict(peaks)).items():
        if peak > LARGEST_HALF or 0 < peak < _SMALLEST_PEAK:
            for node in [*_makers(graph, tensor), *graph.consumers.get(tensor, [])]:
                told.setdefault(node.name, f"{tensor!r} reaches {peak:.3g}")
    return told


def _peaks_of_scales(graph: Graph) -> dict[str, float]:
    """Return what tensors reach, as far as the scales that they are quantized with say."""
    nodes = [node for node in graph.nodes if node.op_type == "QuantizeLinear"]
    scales = {node.input[0]: graph.constants.get(node.input[1]) for node in nodes}
    return {name: 127 * float(value.max()) for name, value in scales.items() if value is not None}


def _holds(value: np.ndarray) -> bool:
    """Whether FP16 represents constants: none turns infinite, not all lose their digits."""
    finite = np.abs(value[np.isfinite(value)])
    largest = float(finite.max(initial=0.0))
    return largest <= LARGEST_HALF and (largest == 0 or largest >= _SMALLEST_NORMAL)


def _makers(graph: Graph, tensor: str) -> Iterable[NodeProto]:
    """Give the node that computes a tensor, and those before it that hold as large numbers."""
    node = graph.producers.get(tensor)
    if node is not None and node.op_type not in _QDQ:
        yield node
        if node.op_type in ACTIVATIONS | COPIES | {"Mul"}:
            for name in graph.variables(node):
                yield from _makers(graph, name)


def _closed(graph: Graph, kept: set[str]) -> set[str]:
    """Return the nodes that stay in FP32 once those given do."""
    kept = set(kept)
    while True:
        more = {node.name for node in graph.nodes if node.name not in kept and _follows(graph, node, kept)}
        if not more:
            return kept
        kept |= more


def _follows(graph: Graph, node: NodeProto, kept: set[str]) -> bool:
    sources = [graph.producers[name] for name in node.input if name in graph.producers]
    if node.op_type == "DequantizeLinear":
        return any(reader.name in kept for reader in graph.consumers.get(node.output[0], []))
    if any(source.op_type == "DequantizeLinear" and source.name in kept for source in sources):
        return True
    if node.op_type == "QuantizeLinear":
        # A pair has one scale, and so one type.
        return any(reader.name in kept for reader in graph.consumers.get(node.output[0], []))
    if node.op_type not in ARITHMETIC:
        return False
    if node.op_type == "Div" and len(sources) == 2 and sources[1].name in kept:
        return True  # by a norm
    after = [reader for name in node.output for reader in graph.consumers.get(name, [])]
    return any(s.name in kept for s in sources) and any(r.name in kept for r in after)


@dataclass
class _Rewrite:
    """Puts Casts where the type changes and turns constants into FP16."""

    graph: Graph
    kept: set[str]
    casts: dict[str, NodeProto] = field(default_factory=dict)  # by the tensor that it makes
    halved: set[str] = field(default_factory=set)  # constants that something reads as FP16

    def __post_init__(self) -> None:
        nodes = self.graph.nodes
        # What has to be there in FP32 under its own name: outputs, and what subgraphs read.
        self.public = set(self.graph.outputs) | {name for node in nodes for name in reads_inside(node)}
        self.floats = {
            name for node in nodes for i, name in enumerate(node.input) if not self._reads_half(node, i)
        }
        self.made = {
            name
            for node in nodes
            if node.name not in self.kept
            for name in node.output
            if name and self.graph.is_known_float(name)
        }

    def _reads_half(self, node: NodeProto, index: int) -> bool:
        return node.name not in self.kept and index not in _FLOAT_INPUTS.get(node.op_type, ())

    def model(self) -> ModelProto:
        """Return the network rewritten."""
        nodes = [self._node(node) for node in self.graph.nodes]
        for tensor in sorted(self.public & self.made):
            self._cast(f"{tensor}/half", tensor, TensorProto.FLOAT)
        after: dict[str, list[NodeProto]] = {}
        for cast in self.casts.values():
            after.setdefault(cast.input[0], []).append(cast)
        ordered = [cast for name in self.graph.inputs for cast in after.get(name, [])]
        for node in nodes:
            ordered += [node, *(cast for name in node.output for cast in after.get(name, []))]
        model = self.graph.model
        del model.graph.node[:], model.graph.value_info[:]
        model.graph.node.extend(ordered)
        self._write_constants(model)
        return infer_types(model)

    def _node(self, original: NodeProto) -> NodeProto:
        node = NodeProto()
        node.CopyFrom(original)
        for index, name in enumerate(original.input):
            if name and self.graph.is_known_float(name):
                half = self._reads_half(original, index)
                node.input[index] = self._as_half(name) if half else self._as_float(name)
        for index, name in enumerate(original.output):
            if name in self.made and name in self.public:
                node.output[index] = f"{name}/half"
        return node

    def _as_half(self, tensor: str) -> str:
        """Return the name under which a tensor is read as FP16."""
        if tensor in self.graph.constants:
            self.halved.add(tensor)
            return f"{tensor}/half" if tensor in self.floats | self.public else tensor
        if tensor in self.made:
            return f"{tensor}/half" if tensor in self.public else tensor
        return self._cast(tensor, f"{tensor}/half", TensorProto.FLOAT16)

    def _as_float(self, tensor: str) -> str:
        """Return the name under which a tensor is read as FP32."""
        if tensor not in self.made or tensor in self.public:
            return tensor
        return self._cast(tensor, f"{tensor}/float", TensorProto.FLOAT)

    def _cast(self, tensor: str, made: str, to: int) -> str:
        self.casts[made] = helper.make_node("Cast", [tensor], [made], name=f"{made}/Cast", to=to)
        return made

    def _write_constants(self, model: ModelProto) -> None:
        for item in list(model.graph.initializer):
            if item.name in self.halved:
                with np.errstate(over="ignore"):
                    value = self.graph.constants[item.name].astype(np.float16)
                made = numpy_helper.from_array(value, self._as_half(item.name))
                (item if item.name == made.name else model.graph.initializer.add()).CopyFrom(made)


def _warnings(told: dict[str, str]) -> list[str]:
    if not told:
        return []
    named = "; ".join(f"{name} ({why})" for name, why in list(told.items())[:_NAMED])
    more = f"; and {len(told) - _NAMED} more" if len(told) > _NAMED else ""
    return [f"beyond what FP16 can hold, so FP32 behind Casts: {named}{more}"]
