"""Smoothing: channels that a LayerNorm makes are scaled to like ranges, and the products behind it undo that.

In transformers a few channels behind a LayerNorm are many times as large as the others, and with one scale per
tensor the others are left with few levels. Their factors go into the LayerNorm's own weights and into those of the
matrix products that read it, so nothing is added (SmoothQuant: Xiao et al. 2022, arXiv:2211.10438). Whoever else
reads it, as the skip connection of BERT does, gets a Mul that undoes the factors; it stands in the float part of
the network, where TensorRT fuses it with the addition that follows. How large the factors are is `equalize`'s
affair. It may import quant.collect, quant.equalize, quant.graph, quant.plan and quant.prepare.
"""

from collections.abc import Container, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from edgetune.quant.collect import Batch
from edgetune.quant.equalize import Channelwise, best_factors, channelwise
from edgetune.quant.graph import Graph
from edgetune.quant.plan import weight_axis
from edgetune.quant.prepare import drop_dead


def smoothable(graph: Graph) -> list[str]:
    """Return the tensors that a LayerNorm makes and a product of weights reads."""
    return [
        node.output[0]
        for node in graph.nodes
        if _factors_of(graph, node)
        and any(_reads_rows(graph, n, node.output[0]) for n in _readers(graph, node))
    ]


def smoothed(graph: Graph, quantized: Container[str], batches: Iterable[Batch]) -> tuple[ModelProto, int]:
    """Look at what LayerNorms make of inputs, and smooth it where it is quantized; returns as `smooth`."""
    tensors = [name for name in smoothable(graph) if name in quantized]
    return smooth(graph, channelwise(graph, tensors, batches, axis=-1) if tensors else {})


def smooth(graph: Graph, seen: Mapping[str, Channelwise]) -> tuple[ModelProto, int]:
    """Return the network with smoothed channels, computing the same, and how many factors it took.

    Args:
        graph: a prepared network.
        seen: of the last dimension of the tensors that `smoothable` names.
    """
    model = ModelProto()
    model.CopyFrom(graph.model)
    nodes = {node.name: node for node in model.graph.node}
    count = 0
    for tensor, statistics in seen.items():
        factors = best_factors(graph, tensor, statistics).astype(np.float32)
        if (factors == 1).all():
            continue
        count += int((factors != 1).sum())
        maker = graph.producers[tensor]
        for made, index in _factors_of(graph, maker):
            _put(model, nodes[made.name], index, graph.constants[made.input[index]] * factors)
        others = []
        for reader in _readers(graph, maker):
            if _reads_rows(graph, reader, tensor):
                _put(model, nodes[reader.name], 1, graph.constants[reader.input[1]] / factors[:, None])
            else:
                others.append(nodes[reader.name])
        if others:
            _undo(model, tensor, factors, others)
    drop_dead(model)
    return model, count


def _readers(graph: Graph, node: NodeProto) -> list[NodeProto]:
    return graph.consumers.get(node.output[0], []) if node.output[0] not in graph.outputs else []


def _reads_rows(graph: Graph, node: NodeProto, tensor: str) -> bool:
    """Whether a node multiplies a tensor's last dimension with a constant matrix."""
    fits = node.op_type == "MatMul" and node.input[0] == tensor and node.input[1] != tensor
    return fits and weight_axis(graph, node) is not None and graph.constants[node.input[1]].ndim == 2


def _factors_of(graph: Graph, node: NodeProto) -> list[tuple[NodeProto, int]]:
    """Return the constants that a LayerNorm's result is proportional to: its factors and what it adds.

    Of one operator, or written out: `Mul` by a vector, then `Add` of one.
    """
    if node.op_type == "LayerNormalization":
        found = [(node, index) for index, name in enumerate(node.input) if index and name]
    elif node.op_type == "Add":
        found = [(node, place) for place in (0, 1) if node.input[place] in graph.constants]
        before = graph.producers.get(node.input[1 - found[0][1]]) if found else None
        if before is None or before.op_type != "Mul" or graph.sole_consumer(before.output[0]) is None:
            return []
        scaled = [(before, place) for place in (0, 1) if before.input[place] in graph.constants]
        divided = graph.producers.get(before.input[1 - scaled[0][1]]) if scaled else None
        if divided is None or divided.op_type != "Div":
            return []
        found += scaled
    else:
        return []
    constant = all(made.input[index] in graph.constants for made, index in found)
    shape = graph.shape(node.output[0]) or ()
    fits = constant and all(graph.constants[made.input[index]].shape == shape[-1:] for made, index in found)
    return found if fits else []


def _put(model: ModelProto, node: NodeProto, index: int, value: NDArray[Any]) -> None:
    name = f"{node.name}/smoothed/{index}"
    model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    node.input[index] = name


def _undo(model: ModelProto, tensor: str, factors: NDArray[np.float32], others: list[NodeProto]) -> None:
    """Give readers other than products what the tensor was before."""
    name, divided = f"{tensor}/unsmoothed", f"{tensor}/smoothed/factors"
    model.graph.initializer.append(numpy_helper.from_array(1 / factors, divided))
    node = helper.make_node("Mul", [tensor, divided], [name], name=name)
    for other in others:
        for index, read in enumerate(other.input):
            if read == tensor:
                other.input[index] = name
    places = [index for index, made in enumerate(model.graph.node) if tensor in made.output]
    model.graph.node.insert(places[0] + 1, node)
    shape = next((v for v in model.graph.value_info if v.name == tensor), None)
    if shape is not None:
        copied = model.graph.value_info.add()
        copied.CopyFrom(shape)
        copied.name = name
