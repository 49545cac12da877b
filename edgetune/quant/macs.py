"""Multiply-accumulates of a node, from shapes alone. It may import quant.graph."""

import math

from onnx import NodeProto

from edgetune.quant.graph import Graph

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def multiply_accumulates(graph: Graph, node: NodeProto) -> int:
    """Return those of a convolution or matrix product, for the whole batch; an open batch counts as 1.

    0: another operator, or other sizes are not known.
    """
    if node.op_type not in WEIGHTED:
        return 0
    out, data, weight = (_sizes(graph, name) for name in (node.output[0], *node.input[:2]))
    if not out or not data or weight is None:
        return 0
    if node.op_type == "Conv":
        return math.prod(out) * math.prod(weight[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(data) * math.prod(weight[1:])
    inner = math.prod(data) // out[0] if node.op_type == "Gemm" else data[-1]
    return math.prod(out) * inner


def _sizes(graph: Graph, tensor: str) -> list[int] | None:
    shape = graph.shape(tensor)
    if shape is None:
        return None
    sizes = [1 if place == 0 and isinstance(size, str) else size for place, size in enumerate(shape)]
    known = [size for size in sizes if isinstance(size, int)]
    return known if len(known) == len(sizes) else None
