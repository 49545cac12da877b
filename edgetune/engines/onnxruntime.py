"""Networks on ONNX Runtime's CPU kernels.

It knows nothing of quantization, images or latency protocols. It may import errors, artifact and machine.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import psutil
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as raised

from edgetune.artifact import TensorSpec
from edgetune.errors import ArtifactError, ConfigError, StageError
from edgetune.machine import cores

Feed = dict[str, NDArray[Any]]

# ONNX Runtime raises one class per status code, which share no base of their own.
_REFUSALS = (
    raised.Fail,
    raised.InvalidArgument,
    raised.InvalidGraph,
    raised.InvalidProtobuf,
    raised.NoModel,
    raised.NoSuchFile,
    raised.NotImplemented,
    raised.RuntimeException,
)
_DTYPES = {"float": "float32", "double": "float64"}
_LOG_ERRORS = 3


class Session:
    """A loaded network, ready to run on the CPU.

    Attributes:
        inputs: name, type and shape of what goes in.
        outputs: the same of what comes out, in the order of the results of `run`.
        threads: how many work on one operator.
    """

    def __init__(self, model: Path | bytes, threads: int = 0, exact: bool = False) -> None:
        """Load a network.

        Args:
            model: an ONNX file, or its content.
            threads: 0: as many as there are physical cores that this process may keep busy.
            exact: leave every graph optimisation off, so that a graph with Q/DQ rounds where its Q nodes
                stand and nowhere else. Slow: for judging accuracy, not for latency.

        Raises:
            ArtifactError: not ONNX, not a valid graph, or with operators or an opset unknown here.
        """
        options = ort.SessionOptions()
        options.log_severity_level = _LOG_ERRORS
        options.intra_op_num_threads = threads or physical_cores()
        options.inter_op_num_threads = 1
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_DISABLE_ALL if exact else level.ORT_ENABLE_ALL
        self.threads: int = options.intra_op_num_threads
        self._name = str(model) if isinstance(model, Path) else "the ONNX model"
        source = str(model) if isinstance(model, Path) else model
        try:
            self._session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except _REFUSALS as error:
            raise ArtifactError(
                f"{self._name}: ONNX Runtime {ort.__version__} cannot load it: {_first_line(error)}",
                hint="export it again; a file that was cut off, or an opset that is too new, ends like this",
            ) from error
        self.inputs: tuple[TensorSpec, ...] = tuple(_spec(node) for node in self._session.get_inputs())
        self.outputs: tuple[TensorSpec, ...] = tuple(_spec(node) for node in self._session.get_outputs())

    def run(self, batch: NDArray[Any] | Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run a batch of any size through a network with one input, or an array for each of several.

        A network with a static batch of another size is fed in parts, the last one filled up with
        repetitions whose results are dropped.

        Args:
            batch: `[N, ...]`; or by the inputs' names, arrays that fit as they are.

        Returns:
            One array per output; an output with a batch dimension has N rows.

        Raises:
            ConfigError: the batch does not fit the network's inputs.
            StageError: ONNX Runtime stopped.
        """
        if not isinstance(batch, np.ndarray):
            return self._run(self._fitted(batch))
        spec = self._check(batch)
        size = spec.shape[0]
        if not isinstance(size, int) or size == len(batch):
            return self._run({spec.name: np.ascontiguousarray(batch)})
        parts = []
        for start in range(0, len(batch), size):
            part = batch[start : start + size]
            missing = size - len(part)
            filled = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]) if missing else part
            parts.append(self._run({spec.name: np.ascontiguousarray(filled)}))
        return [np.concatenate(list(output))[: len(batch)] for output in zip(*parts, strict=True)]

    def run_once(self, feed: Feed) -> list[NDArray[Any]]:
        """Run once on arrays that fit exactly, with nothing in the way: this is what gets timed.

        Args:
            feed: a contiguous array per input name.
        """
        outputs: list[NDArray[Any]] = self._session.run(None, feed)
        return outputs

    def _run(self, feed: Feed) -> list[NDArray[Any]]:
        try:
            return self.run_once(feed)
        except _REFUSALS as error:
            raise StageError(f"{self._name}: ONNX Runtime stopped: {_first_line(error)}") from error

    def _fitted(self, feed: Mapping[str, NDArray[Any]]) -> Feed:
        names = [spec.name for spec in self.inputs]
        if set(feed) != set(names):
            raise ConfigError(f"{self._name}: takes {', '.join(names)}, not {', '.join(feed) or 'nothing'}")
        for spec in self.inputs:
            self._refuse_unfit(spec, feed[spec.name], 0)
        return {name: np.ascontiguousarray(feed[name]) for name in names}

    def _check(self, batch: NDArray[Any]) -> TensorSpec:
        if len(self.inputs) != 1:
            names = ", ".join(spec.name for spec in self.inputs)
            raise ConfigError(
                f"{self._name}: has {len(self.inputs)} inputs ({names}), not one",
                hint="give an array for each, by its name",
            )
        spec = self.inputs[0]
        self._refuse_unfit(spec, batch, 1)
        return spec

    def _refuse_unfit(self, spec: TensorSpec, batch: NDArray[Any], begin: int) -> None:
        """Refuse an array of another type or shape; dimensions before `begin` may differ."""
        fits = len(spec.shape) == batch.ndim and all(
            isinstance(want, str) or want == got
            for want, got in zip(spec.shape[begin:], batch.shape[begin:], strict=False)
        )
        if not fits or spec.dtype != batch.dtype.name or batch.shape[:1] == (0,):
            raise ConfigError(
                f"{self._name}: input {spec.name!r} takes {spec.dtype} {list(spec.shape)}, "
                f"not {batch.dtype.name} {list(batch.shape)}"
            )


def node_seconds(model: bytes, feed: Feed, runs: int = 10) -> dict[str, float]:
    """Return how long each node of a network takes here, by its name, on one thread.

    Nodes that ONNX Runtime fuses count where the first of them stands.

    Args:
        model: the content of an ONNX file.
        feed: an array by the name of each input.
        runs: of which the median counts.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = _LOG_ERRORS
        options.intra_op_num_threads = 1
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        for _ in range(runs + 1):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
    times: dict[str, list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times.setdefault(event["name"].removesuffix("_kernel_time"), []).append(event["dur"] * 1e-6)
    return {name: float(np.median(found[1:] or found)) for name, found in times.items()}


def random_feed(session: Session, seed: int = 0) -> Feed:
    """Return normally distributed input for every input of a network, dynamic dimensions taken as 1.

    For uint8, which is what pixels are, all values are equally frequent.
    """
    noise = np.random.default_rng(seed)
    feed: Feed = {}
    for spec in session.inputs:
        shape = [d if isinstance(d, int) else 1 for d in spec.shape]
        pixels = spec.dtype == "uint8"
        made = noise.integers(0, 256, shape) if pixels else noise.standard_normal(shape)
        feed[spec.name] = made.astype(spec.dtype)
    return feed


def physical_cores() -> int:
    """Return how many physical cores this process may keep busy, where it may not have all of them."""
    return min(psutil.cpu_count(logical=False) or cores(), cores())


def _spec(node: Any) -> TensorSpec:
    inner = node.type.removeprefix("tensor(").removesuffix(")")
    shape = tuple(dim if isinstance(dim, int) else str(dim or "?") for dim in node.shape)
    return TensorSpec(name=node.name, dtype=_DTYPES.get(inner, inner), shape=shape)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
