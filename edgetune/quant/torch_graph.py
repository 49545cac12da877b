"""An ONNX graph as a differentiable torch module, Q/DQ pairs included.

Corrections and training work on it: what is optimised here is the very graph that is deployed. A pair of
QuantizeLinear and DequantizeLinear passes gradients straight through its rounding, to the tensor and to the
scale. It may import errors, quant.graph and quant.torch_ops.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, NodeProto, helper
from torch import Tensor

from edgetune.errors import ConfigError, StageError
from edgetune.quant.graph import Graph, reads
from edgetune.quant.torch_ops import OPS

LIMITS = {torch.int8: (-128, 127), torch.uint8: (0, 255)}
# Two ways to run the same inputs differ by less than this share: rounding may fall either way.
_SAME = 0.1
# Say where and how much, so they are read on the CPU.
_CONTROL = frozenset({"Resize", "Pad"})


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
        self.steps = self.graph.nodes
        read = {name for node in self.steps if node.op_type in _CONTROL for name in node.input[1:]}
        self.constants: dict[str, Tensor] = {
            name: torch.from_numpy(np.array(value)).to(
                "cpu" if name in read or value.dtype == np.int64 else self.device
            )
            for name, value in self.graph.constants.items()
        }
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
    ) -> dict[str, Tensor]:
        """Execute the whole graph; a tensor is dropped when the last node has read it.

        Args:
            feeds: the network's inputs, `[N, ...]` each.
            wanted: names of tensors to return; the network's outputs where none are named.
            replaced: tensors that take the place of constants or of dequantized weights.

        Raises:
            StageError: an operator stops; names the node.
        """
        keep = tuple(dict.fromkeys(wanted)) or self.graph.outputs
        rows = len(next(iter(feeds.values())))
        if self.at_once(rows) == rows:
            return self.execute(self.steps, feeds, keep, rows, replaced)
        return self._piecewise(feeds, keep, replaced)

    def at_once(self, most: int) -> int:
        """Return how many inputs can be executed together: so many, or the static batch alone."""
        return most if most == self._batch or not self._batch or self._stretches else self._batch

    def execute(
        self,
        steps: Iterable[NodeProto],
        feeds: Mapping[str, Tensor],
        keep: Iterable[str],
        rows: int,
        replaced: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Execute some nodes, in order.

        Args:
            steps: the nodes.
            feeds: what they begin on.
            keep: names of tensors to return, of those that are fed too.
            rows: for how many inputs this is: one of the numbers that `at_once` gives.
            replaced: as for `run`.

        Raises:
            StageError: an operator stops; names the node.
        """
        chosen, kept, given = list(steps), frozenset(keep), replaced or {}
        left = Counter(name for node in chosen for name in set(reads(node)))
        values: dict[str, Tensor] = dict(feeds)
        for node in chosen:
            if node.output[0] in given:
                values[node.output[0]] = given[node.output[0]]
                continue
            inputs = [self._value(name, values, given) for name in node.input]
            values.update(zip(node.output, self._execute(node, inputs, rows), strict=False))
            for name in set(reads(node)):
                left[name] -= 1
                if not left[name] and name not in kept:
                    values.pop(name, None)
        return {name: self._value(name, values, given) for name in kept}  # type: ignore[misc]

    def _piecewise(
        self, feeds: Mapping[str, Tensor], keep: Iterable[str], replaced: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Execute nodes for as many inputs at a time as the graph was exported for."""
        found: dict[str, list[Tensor]] = {name: [] for name in keep}
        rows = len(next(iter(feeds.values())))
        for start in range(0, rows, self._batch):
            places = torch.arange(start, start + self._batch).clamp_max(rows - 1)
            part = {name: value[places.to(value.device)] for name, value in feeds.items()}
            for name, value in self.execute(self.steps, part, found, self._batch, replaced).items():
                # Repetitions fill up the last batch; where the first dimension is another one, they stay.
                found[name].append(value[: rows - start] if len(value) == self._batch else value)
        return {name: torch.cat(parts) for name, parts in found.items()}

    @cached_property
    def _stretches(self) -> bool:
        """Whether other batch sizes than the static one give for each input what that gives.

        Sizes that are written into the graph may say otherwise (attention whose first dimension is not the
        batch), so it is tried: two batches at once, and one after the other.
        """
        noise = torch.Generator().manual_seed(0)
        feeds = {name: self._probe(name, noise) for name in self.graph.inputs}
        try:
            with torch.inference_mode():
                whole = self.execute(self.steps, feeds, self.graph.outputs, 2 * self._batch)
                parts = self._piecewise(feeds, self.graph.outputs)
        except StageError:
            return False
        return all(_same(value, parts[name]) for name, value in whole.items())

    def _probe(self, name: str, noise: torch.Generator) -> Tensor:
        sizes = [size if isinstance(size, int) else self._batch for size in self.graph.shape(name) or ()]
        shape = [2 * self._batch, *sizes[1:]]
        if not self.graph.is_float(name):
            return torch.zeros(shape, dtype=torch.int64, device=self.device)
        return torch.randn(shape, generator=noise).to(self.device)

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
        except (RuntimeError, ValueError, IndexError, TypeError, KeyError) as error:
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
        # Without a zero point, ONNX means uint8.
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


def _same(first: Tensor, second: Tensor) -> bool:
    """Whether two results are the same but for rounding."""
    if first.shape != second.shape:
        return False
    a, b = first.double().nan_to_num(), second.double().nan_to_num()
    return float((a - b).norm()) <= _SAME * float(b.norm())


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
