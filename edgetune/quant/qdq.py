"""Writing a plan into a graph: QuantizeLinear and DequantizeLinear nodes, integer weights, their scales.

Which tensors, which integers and which scales is decided elsewhere. It may import quant.graph and quant.plan.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from edgetune.quant.graph import Graph
from edgetune.quant.plan import Plan, Scale


@dataclass
class Writer:
    """A graph being rewritten. Names of the network's own tensors and nodes stay as they are.

    Attributes:
        graph: the prepared network.
        stored: type of quantized activations, int8 or uint8.
        inputs: for nodes that are rewired: the names of all their inputs.
        ahead: nodes that go in front of a node, by its name.
        constants: new initializers.
    """

    graph: Graph
    stored: type[np.signedinteger[Any]] | type[np.unsignedinteger[Any]]
    inputs: dict[str, list[str]] = field(default_factory=dict)
    ahead: dict[str, list[NodeProto]] = field(default_factory=dict)
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """Add an initializer, once; return its name."""
        self.constants[name] = value
        return name

    def rewire(self, node: NodeProto, index: int, name: str) -> None:
        """Let a node read another tensor as its input `index`."""
        self.inputs.setdefault(node.name, list(node.input))[index] = name

    def dequantized(
        self, node: NodeProto, index: int, levels: NDArray[Any], scale: NDArray[Any], axis: int
    ) -> None:
        """Replace a constant input of a node by integers and a DequantizeLinear, once per scale and axis."""
        source = node.input[index]
        name = f"{source}/quantized"
        known = self.constants.get(name)
        if known is not None and not np.array_equal(known, levels):
            name = f"{source}/{node.name}/quantized"
        stem = name.removesuffix("quantized")
        made = f"{stem}dequantized"
        if name not in self.constants:
            inputs = [
                self.constant(name, levels),
                self.constant(f"{stem}scale", scale),
                self.constant(f"{stem}zero_point", np.zeros(scale.shape, levels.dtype)),
            ]
            dequantize = helper.make_node("DequantizeLinear", inputs, [made], name=f"{made}/node", axis=axis)
            self.ahead.setdefault(node.name, []).append(dequantize)
        self.rewire(node, index, made)

    def pair(self, tensor: str, scale: Scale, source: str = "") -> list[NodeProto]:
        """Return the Q/DQ pair of a tensor; the result is `TENSOR/dequantized`, or the tensor itself.

        Args:
            tensor: what is quantized.
            scale: with what.
            source: the name under which the tensor is made, where the pair takes over its own name.
        """
        parameters = [
            self.constant(f"{tensor}/scale", np.array(scale.scale, np.float32)),
            self.constant(f"{tensor}/zero_point", np.array(scale.zero_point, self.stored)),
        ]
        levels = f"{tensor}/quantized"
        result = tensor if source else f"{tensor}/dequantized"
        return [
            helper.make_node(
                "QuantizeLinear", [source or tensor, *parameters], [levels], name=f"{tensor}/QuantizeLinear"
            ),
            helper.make_node(
                "DequantizeLinear", [levels, *parameters], [result], name=f"{tensor}/DequantizeLinear"
            ),
        ]


def insert_activations(writer: Writer, plan: Plan, scales: dict[str, Scale]) -> dict[str, list[NodeProto]]:
    """Let every planned reader read the Q/DQ pair; return the pairs by the tensor that they follow.

    A graph output that is itself rounded keeps its name behind the pair, so its readers stay as they are.
    """
    pairs = {}
    for tensor, names in plan.reads.items():
        rounded = tensor in plan.results
        pairs[tensor] = writer.pair(tensor, scales[tensor], f"{tensor}/float" if rounded else "")
        if rounded:
            continue
        for node in writer.graph.consumers.get(tensor, []):
            for index, name in enumerate(node.input):
                if name == tensor and node.name in names:
                    writer.rewire(node, index, f"{tensor}/dequantized")
    return pairs


def write(writer: Writer, pairs: dict[str, list[NodeProto]]) -> ModelProto:
    """Return the rewritten model, nodes in running order, constants that nothing reads any more left out."""
    graph = writer.graph
    nodes = [node for name in graph.inputs for node in pairs.get(name, [])]
    for original in graph.nodes:
        node = NodeProto()
        node.CopyFrom(original)
        if node.name in writer.inputs:
            node.input[:] = writer.inputs[node.name]
        for index, name in enumerate(node.output):
            if name in pairs and pairs[name][-1].output[0] == name:
                node.output[index] = f"{name}/float"
        nodes += [*writer.ahead.get(node.name, []), node]
        nodes += [extra for name in original.output for extra in pairs.get(name, [])]
    model = ModelProto()
    model.CopyFrom(graph.model)
    del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input} | set(graph.outputs) | _in_subgraphs(graph)
    kept = {name: value for name, value in {**graph.constants, **writer.constants}.items() if name in read}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in kept.items())
    return model


def _in_subgraphs(graph: Graph) -> set[str]:
    """Return every tensor that is read at all, where some node has a subgraph; it may read anything."""
    nested = any(item.HasField("g") or item.graphs for node in graph.nodes for item in node.attribute)
    return set(graph.consumers) if nested else set()
