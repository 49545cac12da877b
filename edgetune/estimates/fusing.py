"""A network as the kernels that TensorRT would run: what is fused into one, its operations, its bytes.

The fusions are those that TensorRT's developer guide lists (Types of fusions): a convolution or matrix product
takes along the batch normalization, bias, residual sum and activation behind it; chains of pointwise operations
become one kernel; Q and DQ become types; reshapes and most concatenations cost nothing; a decomposed layer
normalization is one kernel. TensorRT decides by timing and may do otherwise; what a device did is in its
engine's own layer list.

It knows nothing of devices or of time. It may import counting, quant.graph, quant.macs, quant.lint_view,
estimates.network and estimates.kernels.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from onnx import NodeProto

from edgetune.counting import FREE
from edgetune.errors import ArtifactError
from edgetune.estimates.kernels import WEIGHTED, Kernel, Kind, kind_of
from edgetune.estimates.network import Network
from edgetune.quant.graph import attribute, is_standard
from edgetune.quant.lint_view import is_qdq
from edgetune.quant.macs import multiply_accumulates, operations

# Nodes named of one operator without an estimate.
SHOWN = 3
# Activations that stay a kernel of their own behind a convolution. That is how layer lists of TensorRT 8 show SiLU,
# and with it the published rows fit better than without, on both architectures that have many of them.
_APART = frozenset({"Sigmoid", "HardSwish", "Swish", "Mish", "Softplus", "Tanh", "Gelu", "Erf", "Div"})
# Steps that are followed to see whether all readers of a result are pointwise and end up in one kernel: GELU, the
# longest that is known, takes 5.
_REGION = 8
_NORM = ("Sub", "Pow", "ReduceMean", "Add", "Sqrt", "Div")


@dataclass
class _Group:
    """A kernel while nodes are still added to it."""

    head: NodeProto
    kind: Kind
    size: int
    nodes: list[NodeProto]


def kernels_of(network: Network) -> tuple[Kernel, ...]:
    """Return the kernels in running order.

    Raises:
        ArtifactError: operators that no estimate is known for, or shapes known only when it runs: counted
            and named.
    """
    _refuse(network)
    return tuple(_Fusing(network).kernels())


def _refuse(network: Network) -> None:
    """Refuse what no figure can stand for: operators without an estimate, shapes that depend on values."""
    strange: dict[str, list[str]] = {}
    for node in network.nodes:
        if _kind_unshaped(network, node) is None and node.op_type not in FREE and not is_qdq(node):
            name = node.op_type if is_standard(node) else f"{node.domain}::{node.op_type}"
            strange.setdefault(name, []).append(node.name)
    if strange:
        counts = ", ".join(f"{len(nodes)} {name} ({_some(nodes)})" for name, nodes in sorted(strange.items()))
        raise ArtifactError(
            f"operators of the network have no estimate: {counts}",
            hint="cut the network before them, or measure it: edgetune bench",
        )
    for node in network.nodes:
        for name in (*node.input, *node.output):
            shape = network.graph.shape(name) if name else ()
            if shape is None or not all(isinstance(size, int) for size in shape):
                said = "unknown" if shape is None else "x".join(map(str, shape))
                raise ArtifactError(
                    f"the shape of {name!r} at node {node.name!r} ({node.op_type}) is {said}: it is known only "
                    "when the network runs",
                    hint="export it with fixed sizes, or cut it before its post-processing",
                )
        if node.op_type == "Conv" and is_standard(node):
            has, wants = (
                network.shape(node.input[0])[1],
                network.shape(node.input[1])[1] * attribute(node, "group", 1),
            )
            if has != wants:
                raise ArtifactError(
                    f"not a valid graph: node {node.name!r} has weights for {wants} channels and is given {has}",
                    hint="export it again",
                )


def _some(nodes: list[str]) -> str:
    return ", ".join(nodes[:SHOWN]) + (", ..." if len(nodes) > SHOWN else "")


def _kind_unshaped(network: Network, node: NodeProto) -> Kind | None:
    """Return `kind_of`, also where shapes are not known yet."""
    if node.op_type in ("Conv", "ConvTranspose"):
        return "conv" if is_standard(node) else None
    return kind_of(network, node)


class _Fusing:
    """Assigns nodes to kernels, in running order."""

    def __init__(self, network: Network) -> None:
        self.network = network
        graph = network.graph
        self.outputs = frozenset(graph.outputs)
        self.readers: dict[str, list[NodeProto]] = {}
        self.origin: dict[str, str] = {}
        self.place: dict[str, int] = {}
        self.groups: list[_Group] = []
        self.taken: set[str] = set()
        self.elided: dict[str, tuple[str, ...]] = {}
        self.direct: set[str] = set()
        for node in network.nodes:
            if self._is_free(node):
                self.origin[node.output[0]] = self.root(node.input[0])
                if node.op_type not in ("Reshape", "Flatten"):
                    self.direct.add(node.output[0])
        for node in network.nodes:
            if not self._is_free(node):
                for name in dict.fromkeys(self.root(given) for given in node.input if given):
                    self.readers.setdefault(name, []).append(node)
        self.results = {self.root(name) for name in self.outputs}
        self.quantized = self._quantized_tensors()

    def root(self, tensor: str) -> str:
        """Return the tensor whose memory this one is."""
        return self.origin.get(tensor, tensor)

    def _is_free(self, node: NodeProto) -> bool:
        if is_qdq(node) or node.op_type in FREE or node.op_type == "Cast":
            return True
        if node.op_type == "Concat":
            return False
        # A matrix product reads and writes either order.
        return node.op_type == "Transpose" and self._beside_product(node)

    def _beside_product(self, node: NodeProto) -> bool:
        graph, place = self.network.graph, node
        for _ in range(3):
            before = graph.producers.get(place.input[0])
            if before is None:
                break
            if before.op_type in ("MatMul", "Einsum"):
                return True
            if before.op_type not in ("Reshape", "Squeeze", "Split", "Gather", "Slice", "Add"):
                break
            place = before
        reader = graph.sole_consumer(node.output[0])
        for _ in range(3):
            if reader is None:
                return False
            if reader.op_type in ("MatMul", "Einsum"):
                return True
            if reader.op_type not in ("Reshape", "Squeeze", "Mul"):
                return False
            reader = graph.sole_consumer(reader.output[0])
        return False

    def _quantized_tensors(self) -> frozenset[str]:
        """Tensors that Q/DQ store as integers; empty where the file has none."""
        found = set()
        for node in self.network.nodes:
            if is_qdq(node, "QuantizeLinear"):
                found.add(self.root(node.input[0]))
        return frozenset(found)

    def kernels(self) -> Iterator[Kernel]:
        """Give all kernels, with a reformat where an input in FP32 is read by one in another format."""
        for node in self.network.nodes:
            if node.name in self.taken or self._is_free(node):
                continue
            kind = kind_of(self.network, node)
            if kind == "copy" and self._is_elided(node):
                self.place.update(dict.fromkeys(node.output, self._latest(node)[0]))
                self.elided[node.output[0]] = tuple(self.root(name) for name in node.input)
                continue
            if kind is not None:
                self._assign(node, kind)
        stored = self._stored()
        for name in self.network.graph.inputs:
            if name in self.readers and name not in self.network.fixed:
                size, width = self.network.size(name), self.network.width(name)
                # Counted in elements of FP16: an input in FP32 has twice as many, one of bytes half.
                yield Kernel(
                    f"{name} (reformat)", (), "copy", 0, {f"{name} (as given)": size * width // 2}, {name: size}, 0,
                    False, stored, size, 1,
                )  # fmt: skip
        for group in self.groups:
            yield self._measure(group, stored)

    def _assign(self, node: NodeProto, kind: Kind) -> None:
        made = self.network.size(node.output[0])
        if kind == "pointwise":
            place, tensor = self._latest(node)
            if place >= 0 and self._joins(node, self.groups[place], tensor):
                self.groups[place].nodes.append(node)
                self.place.update(dict.fromkeys(node.output, place))
                return
        group = _Group(node, kind, made, [node])
        if node.op_type == "ReduceMean":
            group.nodes.extend(self._normalization(node))
            self.taken.update(item.name for item in group.nodes)
        self.groups.append(group)
        for item in group.nodes:
            self.place.update(dict.fromkeys(item.output, len(self.groups) - 1))

    def _latest(self, node: NodeProto) -> tuple[int, str]:
        """Return the last kernel that a node waits for, and which of its tensors; -1: it waits for none."""
        waits = [(self.place.get(self.root(name), -1), self.root(name)) for name in node.input if name]
        return max(waits, default=(-1, ""))

    def _joins(self, node: NodeProto, group: _Group, tensor: str) -> bool:
        """Say whether a pointwise node runs inside the kernel that made `tensor`."""
        if group.kind in ("pool", "copy", "reduce") or tensor in self.results:
            return False
        if self.network.size(node.output[0]) != group.size:
            return False
        if node.op_type in _APART and group.kind != "pointwise":
            return False
        inside = {item.name for item in group.nodes}
        region = self._region(node)
        return all(reader.name in inside or reader.name in region for reader in self.readers.get(tensor, []))

    def _region(self, node: NodeProto) -> set[str]:
        """Names of the pointwise nodes that follow from one alone, itself included."""
        found, edge = {node.name}, [node]
        for _ in range(_REGION):
            edge = [
                reader
                for item in edge
                for name in item.output
                for reader in self.readers.get(name, [])
                if kind_of(self.network, reader) == "pointwise" and reader.name not in found
            ]
            found.update(item.name for item in edge)
        return found

    def _normalization(self, mean: NodeProto) -> list[NodeProto]:
        """Return what follows a mean where the two are a layer normalization that was written out."""
        found: list[NodeProto] = []
        edge, rest = mean, list(_NORM)
        while rest:
            wanted = rest.pop(0)
            readers = self.readers.get(edge.output[0], [])
            match = next(
                (r for r in readers if r.op_type == wanted or (wanted == "Pow" and r.op_type == "Mul")), None
            )
            if match is None:
                return []
            found.append(match)
            edge = match
        return found

    def _is_elided(self, node: NodeProto) -> bool:
        """Say whether a concatenation costs nothing: its parts are written in place, channel behind channel."""
        if node.op_type != "Concat" or attribute(node, "axis", 1) not in (
            1,
            1 - len(self.network.shape(node.output[0])),
        ):
            return False
        return all(
            self.root(name) in self.place and (name == self.root(name) or name in self.direct)
            for name in node.input
        )

    def _stored(self) -> frozenset[str]:
        """Tensors that are in INT8 once the network is quantized."""
        if self.quantized:
            return self.quantized
        found: set[str] = set()
        for group in reversed(self.groups):
            tensors = {self.root(name) for node in group.nodes for name in node.input if name}
            outs = {name for node in group.nodes for name in node.output}
            if group.kind in WEIGHTED or (group.kind in ("pool", "copy") and outs & found):
                found |= tensors
        for node in self.network.nodes:
            if node.op_type == "Concat" and node.output[0] in found:
                found |= {self.root(name) for name in node.input}
        return frozenset(found - self.network.fixed)

    def _measure(self, group: _Group, stored: frozenset[str]) -> Kernel:
        """Count what a group does and moves."""
        network = self.network
        inside = {name for node in group.nodes for name in node.output}
        reads: dict[str, int] = {}
        writes: dict[str, int] = {}
        weights = unread = 0
        for node in group.nodes:
            for name in dict.fromkeys(node.input):
                root = self.root(name)
                if not name or root in inside:
                    continue
                if root in network.fixed:
                    read = min(self._part_read(node, name), network.size(name))
                    weights += read
                    unread += network.size(name) - read
                else:
                    share = self._part_read(node, root) / max(network.size(root), 1)
                    reads |= {part: round(network.size(part) * share) for part in self._parts(root)}
            for name in node.output:
                readers = [item for item in self.readers.get(name, []) if item not in group.nodes]
                if name and (readers or name in self.results):
                    writes[name] = network.size(name)
        if not writes:
            writes = {name: network.size(name) for name in group.nodes[-1].output if name}
        outputs = network.size(group.head.output[0])
        count = multiply_accumulates(network.graph, group.head)
        depth = max(count // max(outputs, 1), 1)
        return Kernel(
            name=group.head.name,
            nodes=tuple(node.name for node in group.nodes),
            kind=group.kind,
            operations=sum(operations(network.graph, node) or 0 for node in group.nodes),
            reads=reads,
            writes=writes,
            weights=weights,
            unread=unread,
            int8=self._runs_int8(group),
            int8_tensors=stored,
            outputs=outputs,
            depth=depth,
            **self._channels(group.head, depth) if count else {},
        )

    def _channels(self, node: NodeProto, depth: int) -> dict[str, int]:
        """Return the channels that a product sums over and those that it gives, per group."""
        data, out = self.network.shape(node.input[0]), self.network.shape(node.output[0])
        if node.op_type in ("Conv", "ConvTranspose"):
            groups = attribute(node, "group", 1)
            return {"inner": data[1] // groups, "outer": out[1] // groups}
        return {"inner": depth, "outer": out[-1]}

    def _parts(self, tensor: str) -> Iterator[str]:
        """Give a tensor, or what it consists of where a concatenation costs nothing."""
        for part in self.elided.get(tensor, (tensor,)):
            yield from [part] if part == tensor else self._parts(part)

    def _part_read(self, node: NodeProto, tensor: str) -> int:
        """Return how much of a tensor a node reads: of one that it cuts or gathers from, what it gives."""
        if node.op_type in ("Slice", "Split", "Gather", "GatherElements", "GatherND"):
            return sum(self.network.size(name) for name in node.output if name)
        return self.network.size(tensor)

    def _runs_int8(self, group: _Group) -> bool:
        if group.kind not in WEIGHTED:
            return False
        if not self.quantized:
            return True
        return all(self._is_dequantized(name) for name in group.head.input[:2])

    def _is_dequantized(self, tensor: str) -> bool:
        """Say whether a tensor comes from a DQ, looked at through what only changes how it is called."""
        while tensor not in self.network.dequantized:
            node = self.network.graph.producers.get(tensor)
            if node is None or (node.op_type not in FREE and node.op_type != "Transpose"):
                return False
            tensor = node.input[0]
        return True
