"""What runs in one launch: its operations, its bytes, its shape. And what kind of work an operator is.

It knows nothing of devices or of time. It may import counting, quant.graph, quant.lint_view and
estimates.network.
"""

from dataclasses import dataclass
from typing import Literal

from onnx import NodeProto

from edgetune.counting import COPY, POINTWISE, POOL, PRODUCTS, REDUCE
from edgetune.estimates.network import Network
from edgetune.quant.graph import attribute, is_standard
from edgetune.quant.lint_view import is_qdq

Kind = Literal["conv", "grouped", "depthwise", "gemm", "matmul", "pool", "pointwise", "reduce", "copy"]
Precision = Literal["int8", "fp16", "fp32"]
FLOAT_BYTES = {"int8": 2, "fp16": 2, "fp32": 4}
WEIGHTED: tuple[Kind, ...] = ("conv", "grouped", "depthwise", "gemm")


@dataclass(frozen=True)
class Kernel:
    """What runs in one launch. Sizes are for the whole batch.

    Attributes:
        name: of the node that decides its kind.
        nodes: names of all nodes in it.
        kind: of work; `matmul` is a product of two tensors that are both computed.
        operations: multiplications and additions; one per element visited where nothing is multiplied.
        reads: elements of computed tensors that come in, by tensor.
        writes: elements that go out, by tensor.
        weights: elements of constants that it reads.
        unread: elements of constants that it keeps and does not read: of a table, all but what is looked up.
        int8: whether it runs in INT8 once the network is quantized.
        int8_tensors: which of the tensors are stored in INT8 then.
        outputs: elements of its result; with a product, how many sums there are.
        depth: length of each sum; 1 where nothing is summed.
        inner: input channels that are summed over, of one group.
        outer: output channels of one group.
    """

    name: str
    nodes: tuple[str, ...]
    kind: Kind
    operations: int
    reads: dict[str, int]
    writes: dict[str, int]
    weights: int
    int8: bool
    int8_tensors: frozenset[str]
    outputs: int
    depth: int
    inner: int = 1
    outer: int = 1
    unread: int = 0

    def bytes_read(self, precision: Precision) -> int:
        """Bytes of activations that come in."""
        return sum(size * self.width(name, precision) for name, size in self.reads.items())

    def bytes_written(self, precision: Precision) -> int:
        """Bytes of activations that go out."""
        return sum(size * self.width(name, precision) for name, size in self.writes.items())

    def tensor_bytes(self, precision: Precision) -> list[int]:
        """Bytes of each activation that comes in or goes out."""
        moved = [*self.reads.items(), *self.writes.items()]
        return [size * self.width(name, precision) for name, size in moved]

    def weight_bytes(self, precision: Precision) -> int:
        """Bytes of constants that it reads."""
        return self.weights * (1 if self.runs_int8(precision) else FLOAT_BYTES[precision])

    def runs_int8(self, precision: Precision) -> bool:
        """Whether it runs in INT8."""
        return precision == "int8" and self.int8

    def width(self, tensor: str, precision: Precision) -> int:
        """Bytes of one element of an activation."""
        return 1 if precision == "int8" and tensor in self.int8_tensors else FLOAT_BYTES[precision]


def kind_of(network: Network, node: NodeProto) -> Kind | None:
    """Return what kind of work a node is; None: none, or an operator without an estimate."""
    if not is_standard(node) or is_qdq(node):
        return None
    name = node.op_type
    if name in ("Conv", "ConvTranspose"):
        groups = attribute(node, "group", 1)
        channels = network.shape(node.input[0])[1]
        return "conv" if groups == 1 else "depthwise" if groups == channels else "grouped"
    if name == "Einsum" and b"..." in attribute(node, "equation", b""):
        return None
    if name in PRODUCTS:
        return "gemm" if any(given in network.fixed for given in node.input[:2]) else "matmul"
    found: tuple[tuple[frozenset[str], Kind], ...] = (
        (POINTWISE, "pointwise"), (REDUCE, "reduce"), (POOL, "pool"), (COPY, "copy"),
    )  # fmt: skip
    return next((kind for names, kind in found if name in names), None)
