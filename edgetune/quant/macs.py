"""Operations of a graph's nodes, counted from shapes alone. It may import counting and quant.graph."""

from collections.abc import Iterable

from onnx import NodeProto

from edgetune import counting
from edgetune.quant.graph import Graph, attribute, is_standard

# They become types of what is beside them.
_QDQ = ("QuantizeLinear", "DequantizeLinear")


def multiply_accumulates(graph: Graph, node: NodeProto) -> int:
    """Return those of a convolution or matrix product, for the whole batch; an open batch counts as 1.

    0: another operator, or other sizes are not known.
    """
    reads, writes = _shapes(graph, node.input[:2]), _shapes(graph, node.output[:1])
    if reads is None or not writes:
        return 0
    return counting.multiply_accumulates(node.op_type, reads, writes[0], _equation(node))


def operations(graph: Graph, node: NodeProto) -> int | None:
    """Return a node's operations, for the whole batch; an open batch counts as 1.

    None: its operator is not known, or other sizes are not.
    """
    if node.op_type in _QDQ:
        return 0
    if not is_standard(node):
        return None
    reads, writes = _shapes(graph, node.input) or (), _shapes(graph, node.output) or ()
    window = attribute(node, "kernel_shape", ())
    return counting.operations(node.op_type, reads, writes, window, _equation(node))


def _equation(node: NodeProto) -> str:
    return str(attribute(node, "equation", b"").decode())


def _shapes(graph: Graph, tensors: Iterable[str]) -> list[list[int]] | None:
    """Return all shapes, an open batch as 1; None where another size is not known."""
    found = []
    for tensor in filter(None, tensors):
        shape = graph.shape(tensor)
        sizes = [
            1 if place == 0 and isinstance(size, str) else size for place, size in enumerate(shape or ())
        ]
        known = [size for size in sizes if isinstance(size, int)]
        if shape is None or len(known) < len(sizes):
            return None
        found.append(known)
    return found
