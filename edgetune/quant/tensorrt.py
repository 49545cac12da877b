"""The rendering for TensorRT: signed integers with zero point 0, per-channel weights, everything else float.

TensorRT refuses zero points, unsigned integers and integer biases, and fuses BatchNorm and activations
itself. It may import quant.graph, quant.plan, quant.placement and quant.qdq.
"""

import numpy as np
from onnx import ModelProto

from edgetune.quant.graph import Graph
from edgetune.quant.plan import Plan, Scale, quantize_weights, symmetric, weight_axis
from edgetune.quant.qdq import Writer, insert_activations, write


def scales_of(ranges: dict[str, tuple[float, float]]) -> dict[str, Scale]:
    """Return the scale of every range."""
    return {tensor: symmetric(low, high) for tensor, (low, high) in ranges.items()}


def render(graph: Graph, plan: Plan, scales: dict[str, Scale]) -> ModelProto:
    """Return the network with explicit Q/DQ for TensorRT, types outside of it FP32.

    Args:
        graph: the prepared network.
        plan: from `placement.place`.
        scales: of every tensor in `plan.reads`.
    """
    writer = Writer(graph, np.int8)
    pairs = insert_activations(writer, plan, scales)
    for node in graph.nodes:
        axis = weight_axis(graph, node) if node.name in plan.weighted else None
        if axis is not None:
            writer.dequantized(node, 1, *quantize_weights(graph.constants[node.input[1]], axis), axis)
    return write(writer, pairs)
