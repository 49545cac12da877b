"""The rendering for TensorRT: signed integers with zero point 0, per-channel weights, everything else float.

TensorRT refuses zero points, unsigned integers and integer biases, and fuses BatchNorm and activations
itself. For a strongly typed engine the scales are FP16 numbers from the start, so that integers fit the
scales that are in the file; `half.to_half` writes the types.
It may import quant.graph, quant.plan, quant.placement and quant.qdq.
"""

from dataclasses import replace

import numpy as np
from onnx import ModelProto

from edgetune.quant.graph import Graph
from edgetune.quant.plan import Plan, Scale, half_scale, quantize_weights, symmetric, weight_axis
from edgetune.quant.qdq import Writer, insert_activations, write


def scales_of(ranges: dict[str, tuple[float, float]]) -> dict[str, Scale]:
    """Return the scale of every range."""
    return {tensor: symmetric(low, high) for tensor, (low, high) in ranges.items()}


def half_scales_of(ranges: dict[str, tuple[float, float]]) -> dict[str, Scale]:
    """Return the scale of every range, rounded to what FP16 can write down."""
    return {
        tensor: replace(scale, scale=np.float32(half_scale(np.asarray(scale.scale))))
        for tensor, scale in scales_of(ranges).items()
    }


def render(graph: Graph, plan: Plan, scales: dict[str, Scale], half: bool = False) -> ModelProto:
    """Return the network with explicit Q/DQ for TensorRT, types outside of it FP32.

    Args:
        graph: the prepared network.
        plan: from `placement.place`.
        scales: of every tensor in `plan.reads`.
        half: weights' scales are numbers that FP16 can write down.
    """
    writer = Writer(graph, np.int8)
    pairs = insert_activations(writer, plan, scales)
    for node in graph.nodes:
        axis = weight_axis(graph, node) if node.name in plan.weighted else None
        if axis is not None:
            levels, scale = quantize_weights(graph.constants[node.input[1]], axis, half=half)
            writer.dequantized(node, 1, levels, scale, axis)
    return write(writer, pairs)
