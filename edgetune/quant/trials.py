"""Ranges on trial: one layer by itself, or the whole network, with scales that are fed in like inputs.

It may import engines, quant.graph, quant.large, quant.plan, quant.qdq and quant.ranges.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgetune.engines.onnxruntime import Feed, Session
from edgetune.quant.graph import Graph, opset_of
from edgetune.quant.large import open_model
from edgetune.quant.plan import ACTIVATIONS, Plan, Scale, quantize_weights, weight_axis
from edgetune.quant.qdq import Writer, insert_activations, write
from edgetune.quant.ranges import Range


@dataclass(frozen=True)
class Grid:
    """What ranges become.

    Attributes:
        scales: gives the scale of every range.
        symmetric: signed integers with zero point 0, or unsigned ones with a zero point.
        largest: magnitude of the largest integer weight.
    """

    scales: Callable[[dict[str, Range]], dict[str, Scale]]
    symmetric: bool
    largest: int = 127


@dataclass(frozen=True)
class Trial:
    """A layer by itself.

    Attributes:
        session: takes the layer's inputs, `scale`, `zero` and `reference`, and gives the squared error.
        inputs: names of the layer's inputs.
        result: the tensor that stands for it, behind its activation.
    """

    session: Session
    inputs: tuple[str, ...]
    result: str

    def error(self, values: Feed, scale: Scale, symmetric: bool) -> float:
        """Return the sum of the squared error."""
        stored = np.int8 if symmetric else np.uint8
        feed: Feed = {name: values[name] for name in self.inputs}
        feed |= {"/scale": np.array(scale.scale, np.float32), "/zero": np.array(scale.zero_point, stored)}
        return float(self.session.run_once(feed | {"/reference": values[self.result]})[0])


def trials_of(graph: Graph, plan: Plan, group: str, members: list[str], grid: Grid) -> list[Trial]:
    """Return the layers that read the tensors of a group, each with its activation."""
    readers = {
        node.name: node
        for tensor in members
        for node in graph.consumers.get(tensor, [])
        # What only moves values within the group is judged where they are read.
        if node.name in plan.reads[tensor] and not any(plan.groups.get(n) == group for n in node.output)
    }
    found = [
        _trial(graph, plan, [node, *_activations(graph, plan, node)], members, grid)
        for node in readers.values()
        if _runs_alone(graph, node)
    ]
    # Nothing to be run: the tensor itself is the result.
    copies = [helper.make_node("Identity", [t], [t], name="/itself") for t in members]
    return found or [_trial(graph, plan, [node], members, grid) for node in copies]


def _runs_alone(graph: Graph, node: NodeProto) -> bool:
    nested = any(item.HasField("g") or item.graphs for item in node.attribute)
    standard = node.domain in ("", "ai.onnx")
    return standard and not nested and all(map(graph.is_float, (*graph.variables(node), node.output[0])))


def _activations(graph: Graph, plan: Plan, node: NodeProto) -> list[NodeProto]:
    """Return what is fused behind a layer."""
    found: list[NodeProto] = []
    while node.output[0] not in plan.reads:
        follower = graph.sole_consumer(node.output[0])
        if follower is None or follower.op_type not in ACTIVATIONS or len(graph.variables(follower)) != 1:
            break
        found.append(follower)
        node = follower
    return found


def _trial(graph: Graph, plan: Plan, nodes: list[NodeProto], members: list[str], grid: Grid) -> Trial:
    """Make a network of a layer and its activation, its inputs from the group quantized ahead of it."""
    layer, *rest = nodes
    result = nodes[-1].output[0]
    inputs = graph.variables(layer)
    constants = {
        name: graph.constants[name] for node in nodes for name in node.input if name in graph.constants
    }
    axis = weight_axis(graph, layer) if layer.name in plan.weighted else None
    if axis is not None:
        constants[layer.input[1]] = _rounded(constants[layer.input[1]], axis, grid)
    made: list[NodeProto] = []
    renamed = {}
    for name in dict.fromkeys(inputs):
        if name in members:
            integers, renamed[name] = f"/{name}/integers", f"/{name}/quantized"
            made.append(helper.make_node("QuantizeLinear", [name, "/scale", "/zero"], [integers]))
            made.append(helper.make_node("DequantizeLinear", [integers, "/scale", "/zero"], [renamed[name]]))
    alone = NodeProto()
    alone.CopyFrom(layer)
    alone.input[:] = [renamed.get(name, name) for name in layer.input]
    alone.output[0] = f"/{layer.output[0]}"
    followers = [NodeProto.FromString(node.SerializeToString()) for node in rest]
    for before, node in zip([alone, *followers], followers, strict=False):
        node.input[:] = [f"/{name}" if f"/{name}" == before.output[0] else name for name in node.input]
        node.output[0] = f"/{node.output[0]}"
    made += [
        alone,
        *followers,
        helper.make_node("Sub", [f"/{result}", "/reference"], ["/difference"]),
        helper.make_node("ReduceSumSquare", ["/difference"], ["/error"], keepdims=0),
    ]
    stored = TensorProto.INT8 if grid.symmetric else TensorProto.UINT8
    fed = [*dict.fromkeys(inputs), "/reference"]
    body = helper.make_graph(
        made,
        "layer",
        [
            *(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in fed),
            helper.make_tensor_value_info("/scale", TensorProto.FLOAT, []),
            helper.make_tensor_value_info("/zero", stored, []),
        ],
        [helper.make_tensor_value_info("/error", TensorProto.FLOAT, [])],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    return Trial(Session(_model(graph, body).SerializeToString(), threads=1), tuple(fed[:-1]), result)


def _model(graph: Graph, body: Any) -> ModelProto:
    imports = [helper.make_opsetid("", opset_of(graph.model))]
    return helper.make_model(body, opset_imports=imports, ir_version=max(graph.model.ir_version, 8))


def _rounded(weight: NDArray[np.float32], axis: int, grid: Grid) -> NDArray[np.float32]:
    """Return weights as their integers stand for them."""
    levels, scale = quantize_weights(weight, axis, grid.largest)
    return levels * scale.reshape([-1 if dim == axis else 1 for dim in range(levels.ndim)])


def open_scales(graph: Graph, plan: Plan, grid: Grid) -> Session:
    """Load the quantized network, its activations' scales and zero points left to be fed; see `scales_fed`.

    Biases stay as they are: integer ones would depend on the scales. Nothing is optimised, because ONNX
    Runtime drops and moves Q/DQ on the strength of scales that it takes for constant.
    """
    writer = Writer(graph, np.int8 if grid.symmetric else np.uint8)
    pairs = insert_activations(writer, plan, grid.scales(dict.fromkeys(plan.reads, (-1.0, 1.0))))
    for node in graph.nodes:
        axis = weight_axis(graph, node) if node.name in plan.weighted else None
        if axis is not None:
            value = _rounded(graph.constants[node.input[1]], axis, grid)
            writer.rewire(node, 1, writer.constant(f"{node.input[1]}/{axis}/rounded", value))
    made = write(writer, pairs)
    names = {f"{tensor}/{part}" for tensor in plan.reads for part in ("scale", "zero_point")}
    kept = [item for item in made.graph.initializer if item.name not in names]
    opened = [item for item in made.graph.initializer if item.name in names]
    made.graph.input.extend(helper.make_tensor_value_info(item.name, item.data_type, []) for item in opened)
    del made.graph.initializer[:]
    made.graph.initializer.extend(kept)
    return open_model(made, exact=True)


def scales_fed(scales: dict[str, Scale], symmetric: bool) -> Feed:
    """Return what `open_scales` takes beside the network's inputs."""
    stored = np.int8 if symmetric else np.uint8
    fed: Feed = {}
    for tensor, scale in scales.items():
        fed[f"{tensor}/scale"] = np.array(scale.scale, np.float32)
        fed[f"{tensor}/zero_point"] = np.array(scale.zero_point, stored)
    return fed
