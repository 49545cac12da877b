"""A network cut into blocks, and inputs on their way through a network.

Corrections go through a network once, from block to block or from layer to layer, and keep nothing but what
is still to be read. It may import quant.graph, quant.torch_graph and torch.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from onnx import NodeProto
from torch import Tensor

from edgetune.quant.graph import Graph, reads
from edgetune.quant.torch_graph import TorchGraph

# Nodes that count, in one block at most: where branches never meet, what is alive is cut through as it is.
MOST = 12


@dataclass(frozen=True)
class Block:
    """Nodes in a row: everything after them sees them, and all before them, through `ends` alone."""

    nodes: tuple[NodeProto, ...]
    ends: tuple[str, ...]


def cut(graph: Graph, counts: Callable[[NodeProto], bool], most: int = MOST) -> list[Block]:
    """Cut a network wherever a single computed tensor is alive, and at the latest after so many nodes.

    Args:
        graph: the network.
        counts: which nodes make a block worth having; the others go along with the next block.
        most: nodes that count, in one block.
    """
    blocks: list[Block] = []
    nodes: list[NodeProto] = []
    for node, ends in zip(graph.nodes, alive(graph)[1:], strict=True):
        nodes.append(node)
        counted = sum(counts(n) for n in nodes)
        if counted >= most or (counted and len(ends) == 1):
            blocks.append(Block(tuple(nodes), ends))
            nodes = []
    if any(counts(node) for node in nodes):
        blocks.append(Block(tuple(nodes), graph.outputs))
    return blocks


def alive(graph: Graph) -> list[tuple[str, ...]]:
    """Return, for the place before each node and for the end, the computed tensors that are still read."""
    last = {name: place for place, node in enumerate(graph.nodes) for name in reads(node)}
    last |= dict.fromkeys(graph.outputs, len(graph.nodes))
    now = [name for name in graph.inputs if name in last]
    found = [tuple(now)]
    for place, node in enumerate(graph.nodes):
        now = [name for name in (*now, *node.output) if last.get(name, -1) > place]
        found.append(tuple(now))
    return found


class Passage:
    """All inputs on their way through a graph, a few at a time.

    Attributes:
        net: the graph.
        parts: what is known of each few inputs.
    """

    def __init__(self, net: TorchGraph, inputs: Mapping[str, Tensor], rows: int) -> None:
        """Begin with inputs `[N, ...]` by name, so many rows at a time."""
        self.net = net
        count = len(next(iter(inputs.values())))
        if net.at_once(count % rows) != count % rows:
            # What is left over does not fill a static batch.
            count -= count % rows
        starts = range(0, count, rows)
        self._rows = [min(rows, count - start) for start in starts]
        self.parts = [
            {name: value[start : start + rows].to(net.device) for name, value in inputs.items()}
            for start in starts
        ]

    def go(self, steps: Iterable[NodeProto], keep: Iterable[str]) -> None:
        """Execute nodes and keep some tensors."""
        self.parts = self.look(steps, keep)

    def look(self, steps: Iterable[NodeProto], keep: Iterable[str]) -> list[dict[str, Tensor]]:
        """Execute nodes and return some tensors; stay where it is."""
        chosen, kept = list(steps), list(keep)
        return [
            self.net.execute(chosen, part, kept, rows)
            for part, rows in zip(self.parts, self._rows, strict=True)
        ]
