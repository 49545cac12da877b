"""Runs the FP32 network over calibration inputs and keeps statistics of some of its tensors.

In memory at a time: one batch, the activations of one input, statistics of fixed size. It knows nothing of
placement or hardware. It may import errors, engines, quant.graph,
quant.large and quant.ranges.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from edgetune.artifact import TensorSpec
from edgetune.engines.onnxruntime import Feed
from edgetune.errors import ConfigError, StageError
from edgetune.quant.graph import Graph
from edgetune.quant.large import open_model
from edgetune.quant.ranges import Statistics

# One array for a network with one input, `[N, ...]`; or for any network an array for each input's name, with
# N rows each. (Where the inputs have no common batch dimension, arrays that fit as they are.) What holds them
# is gone through more than once by some methods: a list, or an object whose `__iter__` begins anew.
Batch = NDArray[Any] | Mapping[str, NDArray[Any]]


class Part(NamedTuple):
    """What the network takes at once.

    Attributes:
        feed: an array by the name of each input.
        rows: how many inputs are in it.
        slots: how many would fit; the others are repetitions.
    """

    feed: Feed
    rows: int
    slots: int


@dataclass(frozen=True)
class Collected:
    """What one pass over the calibration inputs leaves.

    Attributes:
        statistics: by tensor.
        images: how many inputs there were.
        earlier: the statistics after 1, 2, 4, ... inputs, by the number of inputs.
        kept: the first few inputs, as the network takes them.
    """

    statistics: dict[str, Statistics]
    images: int
    earlier: dict[int, dict[str, Statistics]]
    kept: list[Feed]


def collect(
    graph: Graph, tensors: Iterable[str], batches: Iterable[Batch], *, counts: bool = True, keep: int = 0
) -> Collected:
    """Run the FP32 network on every input and keep fixed-size statistics of some of its tensors.

    Every input is run by itself where the network's batch is dynamic, else as many as it takes at once.

    Args:
        graph: the network.
        tensors: names of float32 tensors, inputs included.
        batches: calibration inputs, gone through once; how they are cut into batches makes no difference.
        counts: whether histograms are kept; extremes alone cost less time.
        keep: so many inputs are kept.

    Raises:
        ConfigError: an input does not fit the network.
        StageError: no input, or activations that are NaN or infinite.
    """
    statistics = {name: Statistics(name, counts) for name in tensors}
    network = Tapped(graph, [name for name in statistics if name not in graph.inputs])
    images, due = 0, 1
    earlier: dict[int, dict[str, Statistics]] = {}
    kept: list[Feed] = []
    for part in parts(batches, network.inputs):
        if len(kept) < keep:
            kept.append({name: values.copy() for name, values in part.feed.items()})
        _add(statistics, network.run(part.feed), part)
        images += part.rows
        if images >= due:
            earlier[images] = {name: item.copy() for name, item in statistics.items()}
            due = 2 * images
    if not images:
        raise StageError("no calibration inputs", hint="ranges come from inputs: give at least one")
    return Collected(statistics, images, earlier, kept)


class Tapped:
    """A network that also gives some of the tensors inside of it."""

    def __init__(self, graph: Graph, tensors: list[str]) -> None:
        """Load it; `tensors` are computed ones."""
        self._tensors = tensors
        self._session = open_model(_with_outputs(graph, tensors))
        self.inputs = self._session.inputs

    def run(self, feed: Feed) -> Feed:
        """Return the inputs and the tensors by name, of a feed that fits."""
        results = self._session.run(feed)
        return feed | dict(zip(self._tensors, results[len(results) - len(self._tensors) :], strict=True))


def parts(batches: Iterable[Batch], inputs: tuple[TensorSpec, ...]) -> Iterator[Part]:
    """Cut batches into what the network takes at once: one input, or its static batch.

    Raises:
        ConfigError: a network with several inputs was given one array, or other names than it has.
    """
    names = [spec.name for spec in inputs]
    for batch in batches:
        if isinstance(batch, np.ndarray) and len(inputs) != 1:
            raise ConfigError(
                f"the network has {len(inputs)} inputs ({', '.join(names)}), and was given one array",
                hint="give an array for each, by its name",
            )
        named = {names[0]: batch} if isinstance(batch, np.ndarray) else batch
        if set(named) != set(names):
            raise ConfigError(f"the network takes {', '.join(names)}, not {', '.join(named) or 'nothing'}")
        yield from _cut({name: np.asarray(named[name]) for name in names}, inputs)


def _cut(batch: Feed, inputs: tuple[TensorSpec, ...]) -> Iterator[Part]:
    lengths = {values.shape[:1] for values in batch.values()}
    sizes = {spec.shape[0] if spec.shape and isinstance(spec.shape[0], int) else 0 for spec in inputs}
    if len(sizes) > 1 or len(lengths) > 1 or lengths == {()}:
        yield Part(batch, 1, 1)
        return
    size, length = sizes.pop() or 1, lengths.pop()[0]
    for start in range(0, length, size):
        rows = min(size, length - start)
        places = np.minimum(np.arange(start, start + size), length - 1)
        whole = {name: v[start : start + size] if rows == size else v[places] for name, v in batch.items()}
        yield Part(whole, rows, size)


def _add(statistics: dict[str, Statistics], values: Feed, part: Part) -> None:
    """Add every input's activations by themselves, where they can be told apart."""
    for name, item in statistics.items():
        found = values[name]
        apart = part.slots > 1 and found.shape[:1] == (part.slots,)
        for own in found[: part.rows] if apart else [found]:
            item.add(own)


def _with_outputs(graph: Graph, tensors: list[str]) -> ModelProto:
    model = ModelProto()
    model.CopyFrom(graph.model)
    kept = [value for value in model.graph.output if value.name not in tensors]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in tensors
    )
    return model
