"""An ONNX file as it is written, looked at through its Q/DQ, beside the FP32 network that it was made from.

The rules of the lint ask two graphs. `graph` is the file itself: nothing folded, only names where nodes have
none and Constant nodes as initializers. `bare` is the same without Q/DQ, in FP32, which is what
`quant.placement` understands: so that what it knows of TensorRT is said once. It may import profile,
quant.accept, quant.graph and quant.plan.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.inliner import inline_local_functions

from edgetune.profile import Target
from edgetune.quant.accept import name_nodes
from edgetune.quant.graph import Graph, attribute, infer_types, is_standard, reads_inside
from edgetune.quant.plan import copied_from, readers, weight_axis

Severity = Literal["error", "warning", "info"]
_QDQ = ("QuantizeLinear", "DequantizeLinear")
# ONNX Runtime's own Q/DQ, for types that the standard ones did not have yet.
QDQ_DOMAINS = ("", "ai.onnx", "com.microsoft")
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


@dataclass(frozen=True)
class Reader:
    """What is going to read the file.

    Attributes:
        label: the target as its user named it.
        typing: `weak` or `strong` (TensorRT), or `cpu` (ONNX Runtime).
        tensorrt: its version such as `10.3.0`, empty for `cpu`.
        opset_max: the newest opset that it reads.
        ir: the newest IR version that was made sure of.
        dla: whether the network is to run on a DLA.
        dla_cores: how many of them the target has.
        no_int8: why no INT8 engine is built for the target, as a clause; empty where one is.
    """

    label: str
    typing: Literal["weak", "strong", "cpu"]
    tensorrt: str
    opset_max: int
    ir: int
    dla: bool = False
    dla_cores: int = 0
    no_int8: str = ""

    @property
    def version(self) -> tuple[int, ...]:
        """TensorRT's major and minor version."""
        return tuple(int(part) for part in re.findall(r"\d+", self.tensorrt)[:2])

    @property
    def name(self) -> str:
        """What to call it in a sentence."""
        return f"TensorRT {self.tensorrt}" if self.tensorrt else "ONNX Runtime"


def reader_of(target: Target, dla: bool = False) -> Reader:
    """Return what a target reads."""
    runtime = target.runtime
    newest = onnx.defs.onnx_opset_version()
    return Reader(
        label=target.label,
        typing=runtime.rendering,
        tensorrt=runtime.tensorrt,
        opset_max=runtime.opset_max or (newest if target.is_host else runtime.opset),
        ir=runtime.ir,
        dla=dla,
        dla_cores=target.profile.dla_cores,
        no_int8=target.no_int8,
    )


@dataclass(frozen=True)
class Hit:
    """One place where a rule holds. A severity takes the place of the rule's; no node: the whole file."""

    node: str
    reason: str
    severity: Severity | None = None


@dataclass(frozen=True)
class Stored:
    """A tensor that is stored as integers, as the Q or DQ says that begins it.

    Attributes:
        node: the QuantizeLinear; or the DequantizeLinear that differs from its Q, or has none.
        tensor: what is quantized, by the name under which the file knows it.
        scale: None where it is computed.
        zero_point: None where it is computed or missing.
        kind: the integers' type, as in `onnx.TensorProto`.
        weight: whether the values are constant.
    """

    node: NodeProto
    tensor: str
    scale: NDArray[Any] | None
    zero_point: NDArray[Any] | None
    kind: int
    weight: bool

    @property
    def what(self) -> str:
        """How to call it in a sentence."""
        return f"{'the constant' if self.weight else 'the tensor'} {self.tensor!r}"


def is_qdq(node: NodeProto, kind: str = "") -> bool:
    """Say whether a node is Q or DQ; with a kind, whether it is that one."""
    return (node.op_type == kind if kind else node.op_type in _QDQ) and node.domain in QDQ_DOMAINS


def normalized(model: ModelProto) -> ModelProto:
    """Return a copy whose nodes all have names, with Constant nodes and local functions written out."""
    work = inline_local_functions(model) if model.functions else ModelProto()
    if not model.functions:
        work.CopyFrom(model)
    name_nodes(work)
    kept = []
    for node in work.graph.node:
        value = attribute(node, "value", None) if node.op_type == "Constant" and is_standard(node) else None
        if value is None:
            kept.append(node)
        else:
            value.name = node.output[0]
            work.graph.initializer.append(value)
    del work.graph.node[:]
    work.graph.node.extend(kept)
    return work


@dataclass(frozen=True)
class View:
    """What the rules ask.

    Attributes:
        source: the model as it was given.
        reader: what is going to read it.
        graph: the file, normalized.
        bare: the same without Q/DQ, in FP32.
        beside: whether the file's weights lie in files of their own.
    """

    source: ModelProto
    reader: Reader
    graph: Graph
    bare: Graph
    beside: bool = False

    @cached_property
    def types(self) -> dict[str, int]:
        """Element type of every tensor, as far as it is known."""
        return element_types(self.graph.model)

    @cached_property
    def stored(self) -> tuple[Stored, ...]:
        """All tensors that are stored as integers, in order."""
        return tuple(self._find_stored())

    def _find_stored(self) -> Iterator[Stored]:
        constants = self.graph.constants
        for node in self.graph.nodes:
            if not is_qdq(node):
                continue
            before = self.graph.producers.get(copied_from(self.graph, node.input[0]))
            paired = node.op_type == "DequantizeLinear" and before is not None and is_qdq(before, _QDQ[0])
            if paired and before is not None and _same_parameters(constants, before, node):
                continue
            zero = node.input[2] if len(node.input) > 2 else ""
            yield Stored(
                node,
                node.input[0] if node.op_type == _QDQ[0] else node.output[0],
                constants.get(node.input[1]),
                constants.get(zero),
                self._kind(node, zero),
                node.input[0] in constants
                or (paired and before is not None and before.input[0] in constants),
            )

    def _kind(self, node: NodeProto, zero: str) -> int:
        if zero in self.types:
            return self.types[zero]
        if node.op_type == "QuantizeLinear":
            return int(attribute(node, "output_dtype", 0)) or TensorProto.UINT8
        return self.types.get(node.input[0], TensorProto.UNDEFINED)

    @cached_property
    def activations(self) -> tuple[NodeProto, ...]:
        """All DequantizeLinear nodes of computed tensors."""
        return tuple(n for n in self.graph.nodes if is_qdq(n, _QDQ[1]) and not self.is_constant(n))

    def is_constant(self, dequantize: NodeProto) -> bool:
        """Say whether a DequantizeLinear gives constants: integers, or what a Q makes of a constant."""
        tensor = copied_from(self.graph, dequantize.input[0])
        before = self.graph.producers.get(tensor)
        if before is not None and is_qdq(before, _QDQ[0]):
            tensor = before.input[0]
        return tensor in self.graph.constants

    def dequantizer(self, tensor: str) -> NodeProto | None:
        """Return the DequantizeLinear that a tensor comes from, looked at through what only moves bytes.

        Through copies, that is, and through a Concat of what comes from equal scales.
        """
        node = self.graph.producers.get(copied_from(self.graph, tensor))
        if node is not None and node.op_type == "Concat":
            scales = [self.scale_of(name) for name in node.input]
            same = scales[0] is not None and all(
                scale is not None and np.array_equal(scale, scales[0]) for scale in scales
            )
            return self.dequantizer(node.input[0]) if same else None
        return node if node is not None and is_qdq(node, _QDQ[1]) else None

    def scale_of(self, tensor: str) -> NDArray[Any] | None:
        """Return the scale of the Q/DQ that a tensor comes from."""
        node = self.dequantizer(tensor)
        return None if node is None else self.graph.constants.get(node.input[1])

    def written(self, node: NodeProto) -> NodeProto:
        """Return the file's own version of a node of `bare`."""
        return self.graph.nodes[self.graph.positions[node.name]]

    @cached_property
    def weighted(self) -> dict[str, tuple[bool, bool]]:
        """For every node with constant weights: whether its data, and whether its weights come from DQ."""
        found = {}
        for node in self.bare.nodes:
            if weight_axis(self.bare, node) is not None and self.bare.variables(node):
                own = self.written(node)
                data, weight = (self.dequantizer(name) is not None for name in own.input[:2])
                found[node.name] = (data, weight)
        return found

    @cached_property
    def int8(self) -> frozenset[str]:
        """Names of nodes that run in INT8: data and weights both come from DQ."""
        return frozenset(name for name, both in self.weighted.items() if all(both))

    def uses(self, node: NodeProto) -> list[NodeProto]:
        """Return the nodes that use a node's results, looked at through copies."""
        return [reader for name in node.output for reader in readers(self.graph, name)]


def view_of(model: ModelProto, reader: Reader, beside: bool = False) -> View:
    """Make the two graphs. The model given stays as it is."""
    work = normalized(model)
    known = {value.name: value for value in work.graph.value_info}
    _infer(work)
    inferred = {value.name for value in work.graph.value_info}
    # Behind operators that inference does not know, what the file itself says is all there is.
    work.graph.value_info.extend(value for name, value in known.items() if name not in inferred)
    return View(model, reader, Graph(work), Graph(_infer(without_qdq(work))), beside)


def _infer(model: ModelProto) -> ModelProto:
    try:
        return infer_types(model)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, TypeError, ValueError):
        return model  # shapes that contradict each other: rules that need none still speak


def element_types(model: ModelProto) -> dict[str, int]:
    """Return the element type of every tensor of a model, as far as it is known."""
    graph = model.graph
    values = [*graph.input, *graph.value_info, *graph.output]
    known = {v.name: v.type.tensor_type.elem_type for v in values if v.type.HasField("tensor_type")}
    return known | {item.name: item.data_type for item in graph.initializer}


def _same_parameters(constants: dict[str, NDArray[Any]], first: NodeProto, second: NodeProto) -> bool:
    """Say whether two Q/DQ nodes have the same scale and zero point."""
    ours, theirs = (list(node.input[1:]) for node in (first, second))
    if ours == theirs:
        return True
    values = [[constants.get(name) for name in names] for names in (ours, theirs)]
    return len(ours) == len(theirs) and all(
        a is not None and b is not None and np.array_equal(a, b) for a, b in zip(*values, strict=True)
    )


def without_qdq(model: ModelProto) -> ModelProto:
    """Return a normalized model without Q/DQ and Casts between floats, in FP32."""
    graph, types = Graph(model), element_types(model)
    bare = ModelProto(opset_import=model.opset_import, ir_version=model.ir_version)
    alias: dict[str, str] = {}
    constants = {
        name: value.astype(np.float32, copy=False) if types[name] in _FLOATS else value
        for name, value in graph.constants.items()
    }
    inside = {name for node in graph.nodes for name in reads_inside(node)}
    for node in graph.nodes:
        source = alias.get(node.input[0], node.input[0]) if node.input else ""
        if is_qdq(node) and node.op_type == "DequantizeLinear" and source == node.input[0] in constants:
            constants[node.output[0]] = _dequantized(node, graph)
        elif is_qdq(node) or _casts_floats(node, types):
            alias[node.output[0]] = source
            if node.output[0] in inside:
                bare.graph.node.append(
                    helper.make_node("Identity", [source], [node.output[0]], name=node.name)
                )
        else:
            copy = bare.graph.node.add()
            copy.CopyFrom(node)
            copy.input[:] = [alias.get(name, name) for name in node.input]
    _copy_ends(model, bare, alias)
    bare.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in constants.items())
    return bare


def _casts_floats(node: NodeProto, types: dict[str, int]) -> bool:
    if node.op_type != "Cast" or not is_standard(node) or attribute(node, "to", 0) not in _FLOATS:
        return False
    return types.get(node.input[0]) in _FLOATS


def _dequantized(node: NodeProto, graph: Graph) -> NDArray[np.float32]:
    """Return what a DequantizeLinear makes of constants, or zeros where its scales do not fit."""
    levels, scale = graph.constants[node.input[0]], graph.constants.get(node.input[1])
    if scale is None or (scale.size > 1 and scale.ndim != 1):
        return np.zeros(levels.shape, np.float32)
    zero = graph.constants.get(node.input[2]) if len(node.input) > 2 else None
    axis = attribute(node, "axis", 1) % max(levels.ndim, 1)
    spread = [-1 if i == axis else 1 for i in range(levels.ndim)] if scale.size > 1 else []
    if scale.size > 1 and scale.size != levels.shape[axis]:
        return np.zeros(levels.shape, np.float32)
    shift = np.float32(0) if zero is None or zero.size not in (1, scale.size) else zero.astype(np.float32)
    shift = shift.reshape(spread) if np.size(shift) > 1 else np.reshape(shift, ())
    values = (levels.astype(np.float32) - shift) * scale.astype(np.float32).reshape(spread)
    return np.asarray(values, np.float32)


def _copy_ends(model: ModelProto, bare: ModelProto, alias: dict[str, str]) -> None:
    """Copy inputs and outputs; where Q/DQ stood at an output, what was before it is the output."""
    bare.graph.name = model.graph.name
    fed = {item.name for item in model.graph.initializer}
    bare.graph.input.extend(value for value in model.graph.input if value.name not in fed)
    ends = dict.fromkeys(alias.get(value.name, value.name) for value in model.graph.output)
    for value in bare.graph.input:
        if value.type.tensor_type.elem_type in _FLOATS:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    bare.graph.output.extend(onnx.ValueInfoProto(name=name) for name in ends)
