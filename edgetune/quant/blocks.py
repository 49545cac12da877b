"""A network cut into blocks: stretches that hang together by one tensor at either end.

Corrections go from block to block, so that no more than one block's activations are in memory at a time. It
may import quant.graph.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from onnx import NodeProto

from edgetune.quant.graph import Graph, reads


@dataclass(frozen=True)
class Block:
    """Nodes between two tensors: everything after `end` sees the nodes before it through `end` alone."""

    begin: str
    end: str
    nodes: tuple[NodeProto, ...]


def cut(graph: Graph, counts: Callable[[NodeProto], bool]) -> list[Block]:
    """Cut a network wherever a single computed tensor is alive, from its input to its last such place.

    Args:
        graph: one input.
        counts: which nodes make a block worth having; the others go along with the next block.
    """
    left = Counter(name for node in graph.nodes for name in set(reads(node)))
    for name in graph.outputs:
        left[name] += 1
    alive = set(graph.inputs)
    blocks: list[Block] = []
    begin, nodes = graph.inputs[0], []
    for node in graph.nodes:
        nodes.append(node)
        for name in set(reads(node)) - graph.constants.keys():
            left[name] -= 1
            if not left[name]:
                alive.discard(name)
        alive.update(name for name in node.output if left[name])
        if len(alive) == 1 and any(counts(n) for n in nodes):
            end = next(iter(alive))
            if graph.is_float(end):
                blocks.append(Block(begin, end, tuple(nodes)))
                begin, nodes = end, []
    return blocks
