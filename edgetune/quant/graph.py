"""A network as a graph that can be asked: who makes this tensor, who reads it, is it constant, which shape.

`quant.prepare` makes it from any ONNX model. It knows nothing of scales or hardware, and imports nothing
of this package.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

# Each run of them differs.
RANDOM_OPS = frozenset(
    {
        *("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike"),
        *("Bernoulli", "Multinomial", "Dropout"),
    }
)
_SHAPE_LIMIT = 1024


@dataclass
class Graph:
    """A prepared network. Do not edit `model` in place: the indexes are made once."""

    model: ModelProto

    @property
    def nodes(self) -> list[NodeProto]:
        """Return all nodes in the order in which they run."""
        return list(self.model.graph.node)

    @cached_property
    def constants(self) -> dict[str, NDArray[Any]]:
        """Initializers by name."""
        return {item.name: numpy_helper.to_array(item) for item in self.model.graph.initializer}

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names of what is fed in."""
        return tuple(value.name for value in self.model.graph.input if value.name not in self.constants)

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """Names of what comes out."""
        return tuple(value.name for value in self.model.graph.output)

    @cached_property
    def producers(self) -> dict[str, NodeProto]:
        """The node that makes a tensor."""
        return {name: node for node in self.nodes for name in node.output if name}

    @cached_property
    def consumers(self) -> dict[str, list[NodeProto]]:
        """The nodes that read a tensor, subgraphs included, in order."""
        readers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(reads(node)):
                readers.setdefault(name, []).append(node)
        return readers

    @cached_property
    def positions(self) -> dict[str, int]:
        """Place of a node, by its name, in the running order."""
        return {node.name: index for index, node in enumerate(self.nodes)}

    @cached_property
    def _values(self) -> dict[str, onnx.TypeProto.Tensor]:
        graph = self.model.graph
        values = [*graph.input, *graph.value_info, *graph.output]
        return {value.name: value.type.tensor_type for value in values}

    def shape(self, tensor: str) -> tuple[int | str, ...] | None:
        """Return a tensor's shape, names or `?` for dynamic dimensions; None where it is unknown."""
        if tensor in self.constants:
            return tuple(self.constants[tensor].shape)
        kind = self._values.get(tensor)
        if kind is None or not kind.HasField("shape"):
            return None
        return tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in kind.shape.dim)

    def is_float(self, tensor: str) -> bool:
        """Say whether a tensor holds float32, as far as is known."""
        if tensor in self.constants:
            return self.constants[tensor].dtype == np.float32
        kind = self._values.get(tensor)
        return kind is None or kind.elem_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.UNDEFINED)

    def is_known(self, tensor: str) -> bool:
        """Say whether a tensor's type is known."""
        kind = self._values.get(tensor)
        return tensor in self.constants or (kind is not None and kind.elem_type != onnx.TensorProto.UNDEFINED)

    def is_known_float(self, tensor: str) -> bool:
        """Say whether a tensor is known to hold float32; not so where its type could not be inferred."""
        if tensor in self.constants:
            return self.constants[tensor].dtype == np.float32
        kind = self._values.get(tensor)
        return kind is not None and kind.elem_type == onnx.TensorProto.FLOAT

    def variables(self, node: NodeProto) -> list[str]:
        """Return the inputs of a node that are not constant."""
        return [name for name in node.input if name and name not in self.constants]

    def sole_consumer(self, tensor: str) -> NodeProto | None:
        """Return the only node that reads a tensor; None where there are others, or it is an output."""
        readers = self.consumers.get(tensor, [])
        return readers[0] if len(readers) == 1 and tensor not in self.outputs else None


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """Return a node's attribute, or what it is where the node does not say."""
    found = next((item for item in node.attribute if item.name == name), None)
    return default if found is None else helper.get_attribute_value(found)


def is_standard(node: NodeProto) -> bool:
    """Say whether a node's operator is one of ONNX's own."""
    return node.domain in ("", "ai.onnx")


def opset_of(model: ModelProto) -> int:
    """Return the version of the standard operators that a model uses; 0: none."""
    return max((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), default=0)


def infer_types(model: ModelProto) -> ModelProto:
    """Add types and shapes of all tensors to a model, in place; return it.

    What was there is replaced, but for what operators give that are not ONNX's own.
    """
    foreign = {name for node in model.graph.node if not is_standard(node) for name in node.output}
    known = [value for value in model.graph.value_info if value.name in foreign]
    # No shape depends on the values of weights, so those need not travel through the C++ side and back.
    bare = ModelProto(opset_import=model.opset_import, ir_version=model.ir_version, functions=model.functions)
    bare.graph.name = model.graph.name
    bare.graph.node.extend(model.graph.node)
    bare.graph.input.extend(model.graph.input)
    bare.graph.output.extend(model.graph.output)
    bare.graph.value_info.extend(known)
    for item in model.graph.initializer:
        if math.prod(item.dims) <= _SHAPE_LIMIT:
            bare.graph.initializer.append(item)
        else:
            bare.graph.input.append(helper.make_tensor_value_info(item.name, item.data_type, item.dims))
    shaped = onnx.shape_inference.infer_shapes(bare, strict_mode=False, data_prop=True)
    del model.graph.value_info[:], model.graph.output[:]
    model.graph.value_info.extend(shaped.graph.value_info)
    model.graph.output.extend(shaped.graph.output)
    return model


def reads(node: NodeProto) -> Iterator[str]:
    """Give the names of all tensors that a node reads, subgraphs included."""
    yield from (name for name in node.input if name)
    yield from reads_inside(node)


def reads_inside(node: NodeProto) -> Iterator[str]:
    """Give the names that a node's subgraphs read, of their own tensors and of those around them."""
    for graph in subgraphs(node):
        for inner in graph.node:
            yield from reads(inner)


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """Give the graphs inside a node: the branches of If, the body of Loop."""
    for item in node.attribute:
        yield from [item.g] if item.type == onnx.AttributeProto.GRAPH else item.graphs
