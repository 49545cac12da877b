"""Runs the FP32 network over calibration inputs and keeps statistics of some of its tensors.

It knows nothing of placement or hardware. It may import errors, engines, quant.graph and quant.ranges.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from edgetune.engines.onnxruntime import Session
from edgetune.errors import ConfigError, StageError
from edgetune.quant.graph import Graph
from edgetune.quant.ranges import Statistics


def collect(
    graph: Graph, tensors: Iterable[str], batches: Iterable[NDArray[np.float32]], keep_counts: bool
) -> tuple[dict[str, Statistics], int]:
    """Run the FP32 network on every input and keep fixed-size statistics of some of its tensors.

    In memory at a time: one batch of inputs, and the activations of as many inputs as the network takes
    at once (one, where its batch is dynamic).

    Returns:
        Statistics by tensor, and how many inputs there were.

    Raises:
        StageError: no input, or activations that are NaN or infinite.
    """
    statistics = {name: Statistics(name, keep_counts) for name in tensors}
    computed = [name for name in statistics if name not in graph.inputs]
    if len(graph.inputs) != 1:
        raise ConfigError(f"the network has {len(graph.inputs)} inputs ({', '.join(graph.inputs)}), not one")
    session = Session(_with_outputs(graph, computed).SerializeToString())
    size = session.inputs[0].shape[0] if session.inputs[0].shape else 1
    images = 0
    for part in _parts(batches, size if isinstance(size, int) else 1):
        images += len(part)
        for name in graph.inputs:
            if name in statistics:
                statistics[name].add(part)
        results = session.run(part)
        for name, values in zip(computed, results[len(results) - len(computed) :], strict=True):
            statistics[name].add(values)
    if not images:
        raise StageError(
            "no calibration images", hint="the training split gives them; quantize needs at least one"
        )
    return statistics, images


def _parts(batches: Iterable[NDArray[np.float32]], size: int) -> Iterator[NDArray[np.float32]]:
    for batch in batches:
        for start in range(0, len(batch), size):
            yield batch[start : start + size]


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
