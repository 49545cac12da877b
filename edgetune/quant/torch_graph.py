"""An ONNX graph as a differentiable torch module, Q/DQ pairs included.

Corrections and training work on it: what is optimised here is the very graph that is deployed. A pair of
QuantizeLinear and DequantizeLinear passes gradients straight through its rounding, to the tensor and to the
scale. It may import errors, quant.graph and quant.torch_ops.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, NodeProto, helper
from torch import Tensor

from edgetune.errors import ConfigError, StageError
from edgetune.quant.graph import Graph, reads
from edgetune.quant.torch_ops import OPS

LIMITS = {torch.int8: (-128, 127), torch.uint8: (0, 255)}


class TorchGraph:
    """A graph that torch executes, for any batch size, whatever batch it was exported with.

    Attributes:
        graph: what is executed.
        constants: initializers by name, on the device; a caller's own values may take their place.
        steps: the nodes in running order.
    """

    def __init__(self, model: ModelProto, device: str = "cpu") -> None:
        """Take in a graph.

        Raises:
            ConfigError: it has operators that cannot be executed here, all of them named.
        """
        self.graph = Graph(model)
        unknown = unsupported(self.graph)
        if unknown:
            raise ConfigError(
                f"torch cannot execute {', '.join(unknown)}",
                hint="corrections and training need the whole graph; use quantize.method: plain",
            )
        self.device = torch.device(device)
        self.constants: dict[str, Tensor] = {
            name: torch.from_numpy(np.array(value)).to(self.device)
            for name, value in self.graph.constants.items()
        }
        self.steps = self.graph.nodes
        self._attributes = {node.name: attributes_of(node) for node in self.steps}
        self._static = {
            node.name: self.graph.shape(node.output[0]) for node in self.steps if node.op_type == "Reshape"
        }
        fed = self.graph.shape(self.graph.inputs[0]) or ("?",)
        self._batch = fed[0] if fed and isinstance(fed[0], int) else 0

    def run(
        self,
        feeds: Mapping[str, Tensor],
        wanted: Iterable[str] = (),
        replaced: Mapping[str, Tensor] | None = None,
        steps: Iterable[NodeProto] | None = None,
    ) -> dict[str, Tensor]:
        """Execute nodes; a tensor is dropped when the last of them has read it.

        Args:
            feeds: what is known: the network's inputs, or the tensors on which `steps` begin.
            wanted: names of tensors to return; the network's outputs where none are named.
            replaced: tensors that take the place of constants or of dequantized weights.
            steps: the nodes to execute, in order; all of them by default.

        Raises:
            StageError: an operator stops; names the node.
        """
        chosen = self.steps if steps is None else list(steps)
        keep = set(wanted) or set(self.graph.outputs)
        left = Counter(name for node in chosen for name in set(reads(node)))
        values: dict[str, Tensor] = dict(feeds)
        given = replaced or {}
        rows = len(next(iter(feeds.values())))
        for node in chosen:
            if node.output[0] in given:
                values[node.output[0]] = given[node.output[0]]
                continue
            inputs = [self._value(name, values, given) for name in node.input]
            values.update(zip(node.output, self._execute(node, inputs, rows), strict=False))
            for name in set(reads(node)):
                left[name] -= 1
                if not left[name] and name not in keep:
                    values.pop(name, None)
        return {name: self._value(name, values, given) for name in keep}  # type: ignore[misc]

    def _value(self, name: str, values: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Tensor | None:
        if not name:
            return None
        if name in values:
            return values[name]
        return given[name] if name in given else self.constants[name]

    def _execute(self, node: NodeProto, inputs: list[Tensor | None], rows: int) -> tuple[Tensor, ...]:
        attributes = self._attributes[node.name]
        try:
            if node.op_type == "QuantizeLinear":
                made: Tensor | tuple[Tensor, ...] = _Levels.of(inputs, attributes)
            elif node.op_type == "DequantizeLinear":
                made = dequantize(inputs, attributes)
            elif node.op_type == "Reshape":
                made = self._reshape(node, inputs, rows)
            else:
                made = OPS[node.op_type](attributes, inputs)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise StageError(f"node {node.name!r} ({node.op_type}): torch stopped: {error}") from error
        return made if isinstance(made, tuple) else (made,)

    def _reshape(
        self, node: NodeProto, inputs: list[Tensor | None], rows: int
    ) -> Tensor | tuple[Tensor, ...]:
        """Reshape, where a batch size that is written into the graph stands for that of the inputs."""
        static = self._static[node.name]
        x = inputs[0]
        if x is None or not static or not self._batch or self._batch == rows:
            return OPS["Reshape"](self._attributes[node.name], inputs)
        sizes = [size for size in static if isinstance(size, int)]
        if len(sizes) < len(static) or x.numel() * self._batch != int(np.prod(sizes)) * rows:
            return OPS["Reshape"](self._attributes[node.name], inputs)
        return x.reshape(sizes[0] * rows // self._batch, *sizes[1:])


class _Levels:
    """Quantizes and stays real: the integers come as float, so that gradients can pass."""

    @staticmethod
    def of(inputs: list[Tensor | None], attributes: Mapping[str, Any]) -> Tensor:
        x, scale, zero = inputs[0], inputs[1], inputs[2]
        if x is None or scale is None:
            raise ValueError("QuantizeLinear without input or scale")
        low, high = LIMITS[zero.dtype if zero is not None else torch.uint8]
        axis = attributes.get("axis", 1)
        point = 0.0 if zero is None else _spread(zero, x, axis).float()
        return torch.clamp(round_through(x / _spread(scale, x, axis)) + point, low, high)


def dequantize(inputs: list[Tensor | None], attributes: Mapping[str, Any]) -> Tensor:
    """(levels - zero point) * scale, per tensor or along an axis."""
    levels, scale = inputs[0], inputs[1]
    zero = inputs[2] if len(inputs) > 2 else None
    if levels is None or scale is None:
        raise ValueError("DequantizeLinear without input or scale")
    axis = attributes.get("axis", 1)
    real = levels.to(scale.dtype)
    if zero is not None:
        real = real - _spread(zero, real, axis).to(scale.dtype)
    return real * _spread(scale, real, axis)


def _spread(value: Tensor, like: Tensor, axis: int) -> Tensor:
    if value.numel() == 1:
        return value.reshape(())
    axis %= like.ndim
    return value.reshape([-1 if place == axis else 1 for place in range(like.ndim)])


def round_through(x: Tensor) -> Tensor:
    """Round half to even; the gradient passes as if nothing were rounded (arXiv:1308.3432)."""
    return x + (torch.round(x) - x).detach()


def unsupported(graph: Graph) -> list[str]:
    """Return the operators of a graph that torch cannot execute here."""
    known = OPS.keys() | {"QuantizeLinear", "DequantizeLinear"}
    found = [
        f"{node.op_type} ({node.name})"
        for node in graph.nodes
        if node.op_type not in known or node.domain not in ("", "ai.onnx")
    ]
    return sorted(found)


def attributes_of(node: NodeProto) -> dict[str, Any]:
    """Return what a node says of itself; of a Split also into how many."""
    made = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    if node.op_type == "Split":
        made["_outputs"] = len(node.output)
    return made


def tensors(batch: Mapping[str, Any] | Any, graph: Graph, device: torch.device) -> dict[str, Tensor]:
    """Return a batch, an array or one array per input name, as what `run` is fed."""
    named = batch if isinstance(batch, Mapping) else {graph.inputs[0]: batch}
    return {name: torch.as_tensor(value, device=device) for name, value in named.items()}


def nodes_between(graph: Graph, begin: Iterable[str], end: Iterable[str]) -> Iterator[NodeProto]:
    """Give, in order, the nodes that make some tensors out of others."""
    known, ahead, needed = set(begin), list(end), set()
    while ahead:
        name = ahead.pop()
        node = graph.producers.get(name)
        if name in known or node is None or node.name in needed:
            continue
        needed.add(node.name)
        ahead += list(reads(node))
    yield from (node for node in graph.nodes if node.name in needed)
