"""Where a tensor comes from and where it goes, looked at through activations and copies.

It knows nothing of what is quantized. It may import quant.graph and quant.plan.
"""

from onnx import NodeProto

from edgetune.quant.graph import Graph, is_standard, reads
from edgetune.quant.plan import ACTIVATIONS, ARITHMETIC, COPIES, readers

# One value out for one value of each input.
POINTWISE = ACTIVATIONS | ARITHMETIC | {"Pow", "Exp", "Log", "Neg", "Min", "Max"}
# What networks that take pixels do with them before anything else.
_NORMALISING = ARITHMETIC | COPIES | {"Cast"}
NORMS = frozenset({"LayerNormalization", "RMSNormalization", "SkipLayerNormalization"})


def joins_two(graph: Graph, node: NodeProto) -> bool:
    """Whether a node combines two computed tensors that are no activations of one and the same."""
    inputs = graph.variables(node)
    if len(inputs) != 2 or len(node.input) != 2 or not all(graph.is_float(name) for name in inputs):
        return False
    return common_origin(graph, *inputs) is None


def common_origin(graph: Graph, first: str, second: str) -> str | None:
    """Return the tensor from which two others are computed element by element: x of `x / 2 * (1 + erf(x))`."""
    for tensor, other in ((first, second), (second, first)):
        origin: str | None = tensor
        while origin is not None:
            if pointwise_of(graph, other, origin):
                return origin
            node = graph.producers.get(origin)
            inputs = graph.variables(node) if node is not None and node.op_type in POINTWISE else []
            origin = inputs[0] if len(inputs) == 1 else None
    return None


def pointwise_of(graph: Graph, tensor: str, origin: str) -> bool:
    """Whether a tensor is computed from another one element by element: `sigmoid(x)`, `clip(x + 3)`."""
    seen, ahead = {origin}, [tensor]
    while ahead:
        name = ahead.pop()
        if name in seen:
            continue
        seen.add(name)
        node = graph.producers.get(name)
        if node is None or node.op_type not in POINTWISE or not graph.variables(node):
            return False
        ahead += graph.variables(node)
    return True


def source_of(graph: Graph, tensor: str) -> NodeProto | None:
    """Return the node whose result, after its activation, a tensor is."""
    node = graph.producers.get(tensor)
    while node is not None and node.op_type in POINTWISE:
        inputs = graph.variables(node)
        origin = inputs[0] if len(inputs) == 1 else None
        if len(inputs) == 2:
            origin = common_origin(graph, *inputs)
        if origin is None:
            return node
        node = graph.producers.get(origin)
    return node


def is_fed(graph: Graph, tensor: str) -> bool:
    """Whether a tensor is an input of the network, at most moved, cast and normalised."""
    node = graph.producers.get(tensor)
    while node is not None and is_standard(node) and node.op_type in _NORMALISING:
        variables = graph.variables(node)
        if len(variables) != 1:
            return False
        tensor = variables[0]
        node = graph.producers.get(tensor)
    return tensor in graph.inputs


def is_normalised(graph: Graph, tensor: str) -> bool:
    """Whether a LayerNorm reads a tensor, as one operator or written out."""
    after = readers(graph, tensor)
    subtracted = {name for node in after if node.op_type == "Sub" for name in node.input}
    return any(
        node.op_type in NORMS or (node.op_type == "ReduceMean" and node.output[0] in subtracted)
        for node in after
    )


def longer(graph: Graph, first: str, second: str) -> str:
    """Return the one of two branches with the longer way from where they part."""
    ancestors = _ancestors(graph, first) & _ancestors(graph, second)
    depths = [_depth(graph, branch, ancestors) for branch in (first, second)]
    return first if depths[0] >= depths[1] else second


def _ancestors(graph: Graph, tensor: str) -> set[str]:
    seen, ahead = set(), [tensor]
    while ahead:
        name = ahead.pop()
        if name not in seen:
            seen.add(name)
            node = graph.producers.get(name)
            ahead += graph.variables(node) if node is not None else []
    return seen


def _depth(graph: Graph, tensor: str, stop: set[str]) -> int:
    """Return the largest number of nodes between a tensor and any of those in `stop`."""
    order = sorted(
        (graph.positions[graph.producers[name].name], name)
        for name in _ancestors(graph, tensor) - stop
        if name in graph.producers
    )
    depth: dict[str, int] = {}
    for _, name in order:
        depth[name] = 1 + max(
            (depth.get(other, 0) for other in graph.variables(graph.producers[name])), default=0
        )
    return depth.get(tensor, 0)


def needed_by(graph: Graph, names: frozenset[str]) -> frozenset[str]:
    """Return the tensors on which any of some nodes depends."""
    needed: set[str] = set()
    for node in reversed(graph.nodes):
        if node.name in names or needed.intersection(node.output):
            needed.update(reads(node))
    return frozenset(needed)
