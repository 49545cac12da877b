"""Loads an engine through TensorRT's Python bindings, runs it, times it and asks about its layers.

A plan is refused by TensorRT with None and a message to the logger; the message is put into words that name
both sides. Memory is page-locked on the host and allocated once. It knows nothing of building, samples or
statistics. It may import lengths, messages, plan, problem and sidecar.
"""

from __future__ import annotations

import ctypes
import json
import re
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Callable

from . import messages, sidecar
from .lengths import profiles_of
from .plan import Tensor
from .problem import Problem

OLDEST = (8, 5)  # where tensors are addressed by name
_BYTES = {
    **{"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "uint8": 1, "bool": 1, "int32": 4, "int64": 8},
}
_DTYPES = {
    **{"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT8": "int8", "UINT8": "uint8"},
    **{"BOOL": "bool", "INT32": "int32", "INT64": "int64"},
}


def version_of(trt: Any) -> tuple[int, ...]:
    """Return TensorRT's version: (10, 3, 0)."""
    return tuple(int(number) for number in re.findall(r"\d+", str(trt.__version__))[:4])


def refuse_version(trt: Any) -> None:
    """Refuse a TensorRT that is too old for these calls.

    Raises:
        Problem: it is.
    """
    if version_of(trt) < OLDEST:
        raise Problem(
            f"TensorRT {trt.__version__} is older than 8.5, which JetPack 5.1 brings",
            "install a later JetPack, or build with trtexec",
            4,
        )


def created(log: Any, what: str, call: Callable[[], Any]) -> Any:
    """Create one of TensorRT's objects; the bindings raise a TypeError where the library gives none.

    Raises:
        Problem: it gave none, or one whose use would end the process.
    """
    try:
        made = given(log, f"a {what}", call())
    except (TypeError, RuntimeError) as error:
        raise Problem(f"TensorRT did not create a {what}: {messages.reasons(log, str(error))}") from error
    # A driver that answers may be too old for this CUDA: TensorRT says so, and gives an object all the same.
    if any("CUDA initialization failure" in error for error in log.errors):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(made))  # to destroy it ends the process as well
        raise Problem(
            f"TensorRT cannot use the GPU: {messages.reasons(log)}",
            "install a driver that serves the CUDA version of this TensorRT, or another TensorRT",
            4,
        )
    return made


def given(log: Any, what: str, made: Any) -> Any:
    """Return what TensorRT made.

    Raises:
        Problem: it made None.
    """
    if made is None:
        raise Problem(f"TensorRT did not create {what}: {messages.reasons(log)}")
    return made


class Engine:
    """A loaded engine with its memory, for one inference at a time.

    Use it in a `with` statement, or call `close`.

    Attributes:
        inputs: what goes in; of several lengths of texts, at the one that was chosen, the longest at first.
        outputs: what comes out.
        device_memory: bytes that running takes beside weights and inputs, None where the library does not tell.
    """

    def __init__(
        self,
        trt: Any,
        cuda: Any,
        plan: str,
        say: Callable[[str], None] | None = None,
        dla_core: int | None = None,
    ) -> None:
        """Load an engine.

        Args:
            trt: the module `tensorrt`, imported after the CUDA driver has answered.
            cuda: a `cuda.Runtime`.
            plan: path of the engine.
            say: is told TensorRT's warnings and errors.
            dla_core: that the engine was built for; None: it runs on the GPU alone.

        Raises:
            Problem: there is no such file, TensorRT refuses it (both sides are named), or memory is short.
        """
        refuse_version(trt)
        self._trt, self._cuda, self._plan = trt, cuda, plan
        self._log = messages.logger(trt, say)
        self._close: list[Callable[[], None]] = []
        try:
            content = Path(plan).read_bytes()
        except OSError as error:
            raise Problem(f"{plan}: {error.strerror}", "build the engine", 5) from error
        try:
            self._load(content, dla_core)
        except BaseException:
            self.close()
            raise

    def _load(self, content: bytes, dla_core: int | None) -> None:
        trt, cuda, log = self._trt, self._cuda, self._log
        self._runtime = _runtime(trt, log, dla_core)
        self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise sidecar.refusal(
                self._plan, content, messages.reasons(log), str(trt.__version__), cuda.compute_capability
            )
        self.inputs, self.outputs = _tensors(trt, self._engine, self._plan)
        self.device_memory = device_memory(self._engine)
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise Problem(
                f"{self._plan}: TensorRT could not prepare it for running: {messages.reasons(log)}",
                "memory is short: close other programs, or add swap",
            )
        self._stream = self._kept(cuda.stream(), cuda.end_stream)
        self._lengths = profiles_of(self._engine, self.inputs, self._plan)
        self.choose(max(self._lengths, default=0))
        for tensor in self.inputs + self.outputs:
            if any(size < 0 for size in tensor.shape):
                raise Problem(
                    f"{self._plan}: {tensor.name!r} is of open size {list(tensor.shape)}, which is not run here",
                    code=5,
                )
        self._marks = [self._kept(cuda.event(), cuda.end_event) for _ in range(2)]
        self._host: dict[str, int] = {}
        self._device: dict[str, int] = {}
        for tensor in self.inputs + self.outputs:
            size = size_of(tensor)
            self._host[tensor.name] = self._kept(cuda.malloc_host(size), cuda.free_host)
            ctypes.memset(self._host[tensor.name], 0, size)
            self._device[tensor.name] = self._kept(cuda.malloc(size), cuda.free)
            if not self._context.set_tensor_address(tensor.name, self._device[tensor.name]):
                raise self._failed(f"takes no memory for {tensor.name!r}")

    def choose(self, length: int) -> None:
        """Take texts of one length from here on; 0: its sizes are fixed.

        Raises:
            Problem: it has no profile of that length, or does not take it.
        """
        if not length:
            return
        if length not in self._lengths:
            raise Problem(f"{self._plan}: takes no texts of {length} tokens", "build it again", 5)
        index, shapes, context = list(self._lengths).index(length), self._lengths[length], self._context
        taken = context.set_optimization_profile_async(index, self._stream)
        if not (taken and all(context.set_input_shape(name, shape) for name, shape in shapes.items())):
            raise self._failed(f"takes no profile of {length} tokens")
        self._cuda.wait(self._stream)
        self.inputs, self.outputs = (
            [tensor._replace(shape=tuple(context.get_tensor_shape(tensor.name))) for tensor in side]
            for side in (self.inputs, self.outputs)
        )

    def _kept(self, made: int, end: Callable[[int], None]) -> int:
        self._close.append(lambda: end(made))
        return made

    def run(self, feed: dict[str, bytes]) -> dict[str, bytes]:
        """Run one inference.

        Args:
            feed: the content of every input, row-major, by name.

        Returns:
            The content of every output.

        Raises:
            Problem: the feed does not fit, or the inference failed.
        """
        self._fill(feed)
        self._copy_in()
        self._execute()
        self._copy_out()
        self._cuda.wait(self._stream)
        return {
            tensor.name: ctypes.string_at(self._host[tensor.name], size_of(tensor)) for tensor in self.outputs
        }

    def query(self, copies: bool, graph: bool = False) -> Callable[[], float]:
        """Return a function that runs one inference and returns its milliseconds by the GPU's clock.

        It runs on what was last fed, zeros at first.

        Args:
            copies: time the copies to the GPU and back as well, not the computation alone.
            graph: launch it as a CUDA graph, recorded once here.

        Raises:
            Problem: the inference cannot be recorded.
        """
        cuda, (start, end) = self._cuda, self._marks
        work = self._all if copies else self._execute
        self._all()  # fills the input on the GPU; what a first inference allocates cannot be recorded
        cuda.wait(self._stream)
        if graph:
            recorded = self._kept(cuda.capture(self._stream, work), cuda.end_graph)
            work = partial(cuda.launch, recorded, self._stream)

        def once() -> float:
            cuda.record(start, self._stream)
            work()
            cuda.record(end, self._stream)
            return float(cuda.elapsed_ms(start, end))

        return once

    def profile(self, runs: int) -> list[dict[str, Any]]:
        """Time every layer over so many inferences, by TensorRT's own profiler; to be done after all other timing.

        Returns:
            `name` of each layer in running order, `average_ms` and `median_ms`.

        Raises:
            Problem: an inference failed.
        """
        heard = _profiler(self._trt)
        self._context.profiler = heard
        self._copy_in()
        for _ in range(runs):
            # It tells while the inference is enqueued, layer by layer.
            self._execute()
            self._cuda.wait(self._stream)
        return [
            {"name": name, "average_ms": sum(times) / len(times), "median_ms": sorted(times)[len(times) // 2]}
            for name, times in heard.times.items()
        ]

    def layers(self) -> Any:
        """Return the inspector's JSON, read; None where it tells nothing."""
        return _inspected(self._trt, self._engine)

    def close(self) -> None:
        """Give everything back, TensorRT's objects first."""
        self._context = self._engine = self._runtime = None
        while self._close:
            # After an illegal access CUDA refuses everything; what came first is what to tell.
            with suppress(Problem):
                self._close.pop()()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _fill(self, feed: dict[str, bytes]) -> None:
        names = [tensor.name for tensor in self.inputs]
        if sorted(feed) != sorted(names):
            raise Problem(
                f"{self._plan}: takes {', '.join(names)}, not {', '.join(feed) or 'nothing'}", code=3
            )
        for tensor in self.inputs:
            content, size = feed[tensor.name], size_of(tensor)
            if len(content) != size:
                shape = "x".join(str(n) for n in tensor.shape)
                raise Problem(
                    f"{self._plan}: input {tensor.name!r} takes {size} bytes ({tensor.dtype} {shape}), "
                    f"not {len(content)}",
                    code=3,
                )
            ctypes.memmove(self._host[tensor.name], content, size)

    def _copy_in(self) -> None:
        for tensor in self.inputs:
            self._cuda.to_device(
                self._device[tensor.name], self._host[tensor.name], size_of(tensor), self._stream
            )

    def _execute(self) -> None:
        if not self._context.execute_async_v3(self._stream):
            raise self._failed("could not be run")

    def _copy_out(self) -> None:
        for tensor in self.outputs:
            self._cuda.to_host(
                self._host[tensor.name], self._device[tensor.name], size_of(tensor), self._stream
            )

    def _all(self) -> None:
        self._copy_in()
        self._execute()
        self._copy_out()

    def _failed(self, how: str) -> Problem:
        return Problem(f"{self._plan}: {how}: {messages.reasons(self._log)}")


def _profiler(trt: Any) -> Any:
    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.times: dict[str, list[float]] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times.setdefault(layer_name, []).append(float(ms))

    return Profiler()


def size_of(tensor: Tensor) -> int:
    """Return the bytes of a tensor."""
    count = _BYTES[tensor.dtype]
    for size in tensor.shape:
        count *= size
    return count


def _runtime(trt: Any, log: Any, dla_core: int | None) -> Any:
    runtime = created(log, "Runtime", lambda: trt.Runtime(log))
    if dla_core is not None:
        runtime.DLA_core = dla_core
    return runtime


def inspect(
    trt: Any, log: Any, plan: bytes, note: Callable[[str], None], dla_core: int | None = None
) -> tuple[Any, int | None]:
    """Load a fresh plan to ask about it: the inspector's JSON, and the bytes that running takes.

    Where that cannot be, for want of memory mostly, it is noted: the engine has been built all the same.
    """
    try:
        runtime = _runtime(trt, log, dla_core)
    except Problem as problem:
        note(f"layers are not known: {problem.message}")
        return None, None
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        note(f"layers are not known: the engine did not load: {messages.reasons(log)}")
        return None, None
    return _inspected(trt, engine), device_memory(engine)


def device_memory(engine: Any) -> int | None:
    """Return the bytes that running takes beside weights and inputs, by either name that versions have for it."""
    for name in ("device_memory_size_v2", "device_memory_size"):
        if hasattr(engine, name):
            return int(getattr(engine, name))
    return None


def _inspected(trt: Any, engine: Any) -> Any:
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON) if inspector is not None else ""
    try:
        return json.loads(text, strict=False)
    except ValueError:
        return None


def _tensors(trt: Any, engine: Any, plan: str) -> tuple[list[Tensor], list[Tensor]]:
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        kind = engine.get_tensor_dtype(name).name
        shape = tuple(engine.get_tensor_shape(name))
        if kind not in _DTYPES:
            raise Problem(f"{plan}: {name!r} is {kind} {list(shape)}, which is not run here", code=5)
        tensor = Tensor(name, _DTYPES[kind], shape)
        (inputs if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else outputs).append(tensor)
    return inputs, outputs
