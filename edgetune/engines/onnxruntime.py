"""Networks in ONNX Runtime: on its CPU kernels, on request on a GPU through CUDA or TensorRT.

ONNX Runtime goes on without a GPU that it cannot use and says so to its log alone; here that is an error. No
library of NVIDIA's is loaded before the CUDA driver has answered.
It knows nothing of quantization, images or latency protocols. It may import errors, artifact, machine, and
device.program.cuda, which asks the driver.
"""

import ctypes
import re
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
import psutil
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as raised

from edgetune.artifact import TensorSpec
from edgetune.device.program import cuda
from edgetune.errors import ArtifactError, ConfigError, EdgetuneError, MissingTool, StageError, nearest
from edgetune.machine import RUNTIME_FOR_GPU, cores

Feed = dict[str, NDArray[Any]]

# ONNX Runtime raises one class per status code, which share no base of their own.
_REFUSALS = (
    raised.EPFail,
    raised.Fail,
    raised.InvalidArgument,
    raised.InvalidGraph,
    raised.InvalidProtobuf,
    raised.NoModel,
    raised.NoSuchFile,
    raised.NotImplemented,
    raised.RuntimeException,
)
_OF_THE_FILE = (raised.InvalidGraph, raised.InvalidProtobuf, raised.NoModel, raised.NoSuchFile)
_DTYPES = {"float": "float32", "double": "float64"}
_LOG_ERRORS = 3
# Else nothing is known of which provider took which operator; ONNX Runtime 1.24 and later keep it.
_RECORD = "session.record_ep_graph_assignment_info"


def _no_options(_: Path | bytes) -> dict[str, bool]:
    return {}


def _tensorrt_options(model: Path | bytes) -> dict[str, bool]:
    """Return the types that TensorRT must be allowed for what stands in a graph, and no others."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        if isinstance(model, bytes):
            graph = onnx.load_from_string(model).graph
        else:
            graph = onnx.load(model, load_external_data=False).graph
    except (DecodeError, OSError):
        return {}  # ONNX Runtime says what is wrong with it
    half = onnx.TensorProto.FLOAT16
    casts = (onnx.helper.get_node_attr_value(node, "to") for node in graph.node if node.op_type == "Cast")
    return {
        "trt_int8_enable": any(node.op_type == "DequantizeLinear" for node in graph.node),
        "trt_fp16_enable": half in casts or any(tensor.data_type == half for tensor in graph.initializer),
    }


class Provider(NamedTuple):
    """A way to run a network.

    Attributes:
        title: what reports call it.
        names: what ONNX Runtime calls it, and who takes the operators that it leaves, in turn.
        options: what ONNX Runtime is told, for a network.
    """

    title: str
    names: tuple[str, ...]
    options: Callable[[Path | bytes], dict[str, bool]] = _no_options


_CPU, _CUDA, _TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
# https://onnxruntime.ai/docs/execution-providers/ names them and their options.
PROVIDERS = {
    "cpu": Provider("CPU", (_CPU,)),
    "cuda": Provider("CUDA", (_CUDA, _CPU)),
    "tensorrt": Provider("TensorRT", (_TENSORRT, _CUDA, _CPU), _tensorrt_options),
}
_TITLES = {provider.names[0]: provider.title for provider in PROVIDERS.values()}


class Session:
    """A loaded network, ready to run.

    Attributes:
        inputs: name, type and shape of what goes in.
        outputs: the same of what comes out, in the order of the results of `run`.
        threads: how many work on one operator on the CPU.
        engine: what runs it, with its version.
        placed: how many operators each provider took, by its title; empty on the CPU, and where ONNX Runtime
            is too old to tell.
    """

    def __init__(
        self, model: Path | bytes, threads: int = 0, exact: bool = False, provider: str = "cpu"
    ) -> None:
        """Load a network.

        Args:
            model: an ONNX file, or its content.
            threads: 0: as many as there are physical cores that this process may keep busy.
            exact: leave every graph optimisation off, so that a graph with Q/DQ rounds where its Q nodes
                stand and nowhere else. Slow: for judging accuracy, not for latency.
            provider: a key of `PROVIDERS`. Only the CPU gives the same numbers everywhere.

        Raises:
            ArtifactError: not ONNX, not a valid graph, or with operators or an opset unknown here.
            ConfigError: an unknown provider.
            MissingTool: the provider, a driver, or a library that it needs, is not here.
            StageError: ONNX Runtime left the network to another provider than the one asked for.
        """
        _refuse_absent(provider)
        options = ort.SessionOptions()
        options.log_severity_level = _LOG_ERRORS
        options.intra_op_num_threads = threads or physical_cores()
        options.inter_op_num_threads = 1
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_DISABLE_ALL if exact else level.ORT_ENABLE_ALL
        self.threads: int = options.intra_op_num_threads
        self._name = str(model) if isinstance(model, Path) else "the ONNX model"
        self._provider = provider
        self.engine = f"ONNX Runtime {ort.__version__}, {PROVIDERS[provider].title}"
        source = str(model) if isinstance(model, Path) else model
        first, *rest = PROVIDERS[provider].names
        asked = [(first, PROVIDERS[provider].options(model)), *rest]
        if rest:
            options.add_session_config_entry(_RECORD, "1")
        try:
            # Its own way to fall back prints to stdout and tries again without a GPU.
            self._session = ort.InferenceSession(source, options, providers=asked, enable_fallback=0)
        except (*_REFUSALS, RuntimeError, ValueError) as error:
            raise self._not_loaded(error) from error
        self.placed: dict[str, int] = self._placed() if rest else {}
        self._refuse_fallback()
        self.inputs: tuple[TensorSpec, ...] = tuple(_spec(node) for node in self._session.get_inputs())
        self.outputs: tuple[TensorSpec, ...] = tuple(_spec(node) for node in self._session.get_outputs())

    def _not_loaded(self, error: Exception) -> EdgetuneError:
        said = f"{self._name}: ONNX Runtime {ort.__version__} cannot load it"
        if self._provider == "cpu" or isinstance(error, _OF_THE_FILE):
            return ArtifactError(
                f"{said}: {_first_line(error)}",
                hint="export it again; a file that was cut off, or an opset that is too new, ends like this",
            )
        return self._unusable(f"{said} with {PROVIDERS[self._provider].title}: {_first_line(error)}")

    def _unusable(self, what: str) -> EdgetuneError:
        """Return the error for a provider that failed: of what it lacks, where that can be found out."""
        title = PROVIDERS[self._provider].title
        if lacking := _lacking(self._provider):
            needs = (
                f"built for CUDA {ort.cuda_version}" if getattr(ort, "cuda_version", "") else "of this build"
            )
            return MissingTool(
                f"ONNX Runtime {ort.__version__}, {needs}, cannot load its part for {title}: {lacking}",
                hint="install that very version of the library, and set LD_LIBRARY_PATH to where it is",
            )
        return StageError(
            what, hint="ONNX Runtime says why above; --provider cpu tells whether the file is fine"
        )

    def _placed(self) -> dict[str, int]:
        told = getattr(self._session, "get_provider_graph_assignment_info", list)
        counts: Counter[str] = Counter()
        for part in told():
            counts[_TITLES.get(part.ep_name, part.ep_name)] += len(part.get_nodes())
        return dict(counts)

    def _refuse_fallback(self) -> None:
        title, (wanted, *_), _ = PROVIDERS[self._provider]
        took = self._session.get_providers()
        if took[0] != wanted:
            raise self._unusable(
                f"{self._name}: ONNX Runtime was asked for {title} and took {', '.join(took)}"
            )
        if self.placed and title not in self.placed:
            others = ", ".join(f"{count} to {name}" for name, count in self.placed.items())
            raise self._unusable(
                f"{self._name}: {title} takes none of its operators; ONNX Runtime gave {others}"
            )

    def run(self, batch: NDArray[Any] | Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run a batch of any size: an array for a network with one input, or one for each of several.

        A network with a static batch of another size is fed in parts, the last one filled up with
        repetitions whose results are dropped.

        Args:
            batch: `[N, ...]`; or by the inputs' names, arrays of N rows each, or such that fit as they are.

        Returns:
            One array per output; an output with a batch dimension has N rows.

        Raises:
            ConfigError: the batch does not fit the network's inputs.
            StageError: ONNX Runtime stopped.
        """
        feed = {self._check(batch).name: batch} if isinstance(batch, np.ndarray) else self._fitted(batch)
        rows = {values.shape[:1] for values in feed.values()}
        sizes = {spec.shape[:1] for spec in self.inputs}
        if len(rows) > 1 or len(sizes) > 1 or sizes <= rows or not all(isinstance(n, int) for (n,) in sizes):
            return self._run({name: np.ascontiguousarray(values) for name, values in feed.items()})
        (size,), (count,) = sizes.pop(), rows.pop()
        parts = []
        for start in range(0, count, int(size)):
            # The last one is repeated where too few are left.
            places = np.minimum(np.arange(start, start + int(size)), count - 1)
            parts.append(self._run({name: np.ascontiguousarray(v[places]) for name, v in feed.items()}))
        return [np.concatenate(list(output))[:count] for output in zip(*parts, strict=True)]

    def run_once(self, feed: Feed) -> list[NDArray[Any]]:
        """Run once on arrays that fit exactly, with nothing in the way: this is what gets timed.

        Args:
            feed: a contiguous array per input name.
        """
        outputs: list[NDArray[Any]] = self._session.run(None, feed)
        return outputs

    def alone(self, feed: Feed) -> Callable[[], None]:
        """Return a function that runs once on what lies on the device already, and leaves the outputs there."""
        device = "cpu" if self._provider == "cpu" else "cuda"
        binding = self._session.io_binding()
        for name, array in feed.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, device, 0))
        for spec in self.outputs:
            binding.bind_output(spec.name, device)

        def once() -> None:
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return once

    def _run(self, feed: Feed) -> list[NDArray[Any]]:
        try:
            return self.run_once(feed)
        except _REFUSALS as error:
            raise StageError(f"{self._name}: ONNX Runtime stopped: {_first_line(error)}") from error

    def _fitted(self, feed: Mapping[str, NDArray[Any]]) -> Feed:
        names = [spec.name for spec in self.inputs]
        if set(feed) != set(names):
            raise ConfigError(f"{self._name}: takes {', '.join(names)}, not {', '.join(feed) or 'nothing'}")
        # As many rows of each: they can be cut into what the network takes at once.
        common = len({feed[name].shape[:1] for name in names}) == len({s.shape[:1] for s in self.inputs}) == 1
        for spec in self.inputs:
            self._refuse_unfit(spec, feed[spec.name], int(common and len(spec.shape) > 0))
        return {name: feed[name] for name in names}

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


def _refuse_absent(provider: str) -> None:
    """Refuse a provider that cannot be had here, before any library of it is loaded.

    Raises:
        ConfigError: there is none of that name.
        MissingTool: ONNX Runtime is built without it, or no CUDA driver answers.
    """
    if provider not in PROVIDERS:
        raise ConfigError(f"unknown provider {provider!r}", hint=nearest(provider, PROVIDERS))
    if provider == "cpu":
        return
    title, (wanted, *_), _ = PROVIDERS[provider]
    found, reason = cuda.ask()
    if found is None:
        raise MissingTool(
            f"{title}: {reason}",
            hint="install NVIDIA's driver; the extra edgetune[gpu] names the ONNX Runtime that uses it",
        )
    if wanted not in ort.get_available_providers():
        raise MissingTool(
            f"ONNX Runtime {ort.__version__} here is built without {wanted}",
            hint=f"the extra edgetune[gpu] names the one that has it; it replaces onnxruntime:\n{RUNTIME_FOR_GPU}",
        )
    if hasattr(ort, "preload_dlls"):
        # The libraries that pip brings are on no search path. What it does not find it prints to stdout.
        with redirect_stdout(StringIO()):
            ort.preload_dlls()


def _lacking(provider: str) -> str:
    """Say which library a provider misses, empty where it misses none."""
    path = Path(ort.__file__).parent / "capi" / f"libonnxruntime_providers_{provider}.so"
    try:
        if path.is_file():
            ctypes.CDLL(str(path))
    except OSError as error:
        # It also refuses to be loaded by anyone but ONNX Runtime, once nothing is missing.
        return str(error) if "cannot open shared object file" in str(error) else ""
    return ""


def physical_cores() -> int:
    """Return how many physical cores this process may keep busy, where it may not have all of them."""
    return min(psutil.cpu_count(logical=False) or cores(), cores())


def _spec(node: Any) -> TensorSpec:
    inner = node.type.removeprefix("tensor(").removesuffix(")")
    shape = tuple(dim if isinstance(dim, int) else str(dim or "?") for dim in node.shape)
    return TensorSpec(name=node.name, dtype=_DTYPES.get(inner, inner), shape=shape)


def _first_line(error: Exception) -> str:
    line = str(error).strip().splitlines()[0]
    # A failure of CUDA stands behind a page of C++.
    failure = re.search(r"\bCU\w+ failure .*?(?= ; |$)", line)
    return failure[0] if failure else line
