"""Speaks to the CUDA driver and the CUDA runtime, with ctypes alone.

`answer` asks the driver whether there is a GPU; nothing of TensorRT may be touched before it has said so, since
TensorRT's objects kill the process where it does not. `Runtime` is what running an engine needs: memory,
copies, streams, events, graphs. It knows nothing of engines or networks.
Signatures are those of cuda.h and cuda_runtime_api.h, CUDA 11.4 to 13. It may import problem.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import re
from pathlib import Path
from typing import Any, Callable, Iterable

from .problem import Problem

# Where JetPack 5, 6 and 7 put the driver, for a linker whose cache does not name it.
_DRIVERS = (
    "libcuda.so.1",
    "/usr/lib/aarch64-linux-gnu/nvidia/libcuda.so.1",
    "/usr/lib/aarch64-linux-gnu/tegra/libcuda.so.1",
)
_RUNTIMES = (
    "usr/local/cuda*/lib64",
    "usr/local/cuda*/targets/*-linux/lib",
    "usr/lib/*-linux-gnu",
)
# CUdevice_attribute
_SMS, _MAJOR, _MINOR = 16, 75, 76
_TO_DEVICE, _TO_HOST = 1, 2
_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
_RELAXED = 2  # cudaStreamCaptureModeRelaxed: other threads may allocate meanwhile

_POINTER, _OUT, _SIZE, _INT = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t, ctypes.c_int
# Arguments have to be declared: ctypes would pass addresses as 32-bit integers.
_SIGNATURES: dict[str, list[Any]] = {
    "cudaRuntimeGetVersion": [ctypes.POINTER(_INT)],
    "cudaDeviceGetAttribute": [ctypes.POINTER(_INT), _INT, _INT],
    "cudaMemGetInfo": [ctypes.POINTER(_SIZE), ctypes.POINTER(_SIZE)],
    "cudaMalloc": [_OUT, _SIZE],
    "cudaFree": [_POINTER],
    "cudaMallocHost": [_OUT, _SIZE],
    "cudaFreeHost": [_POINTER],
    "cudaMemcpyAsync": [_POINTER, _POINTER, _SIZE, _INT, _POINTER],
    "cudaStreamCreate": [_OUT],
    "cudaStreamDestroy": [_POINTER],
    "cudaStreamSynchronize": [_POINTER],
    "cudaEventCreate": [_OUT],
    "cudaEventDestroy": [_POINTER],
    "cudaEventRecord": [_POINTER, _POINTER],
    "cudaEventSynchronize": [_POINTER],
    "cudaEventElapsedTime": [ctypes.POINTER(ctypes.c_float), _POINTER, _POINTER],
    "cudaStreamBeginCapture": [_POINTER, _INT],
    "cudaStreamEndCapture": [_POINTER, _OUT],
    "cudaGraphInstantiateWithFlags": [_OUT, _POINTER, ctypes.c_ulonglong],
    "cudaGraphDestroy": [_POINTER],
    "cudaGraphExecDestroy": [_POINTER],
    "cudaGraphLaunch": [_POINTER, _POINTER],
}


def answer() -> dict[str, Any] | None:
    """Ask the driver for the first GPU: `ask` without the reason."""
    return ask()[0]


def ask(paths: Iterable[str] = _DRIVERS) -> tuple[dict[str, Any] | None, str]:
    """Ask the CUDA driver for the first GPU.

    Args:
        paths: of the driver's library, the first that loads counts.

    Returns:
        `name`, `compute_capability` ("8.7"), `sms` and `driver` (the CUDA version that it can serve, "12.6"),
        and an empty reason; or None, and why there is no GPU to use.
    """
    driver, reason = None, ""
    for path in paths:
        try:
            driver = ctypes.CDLL(path)
            break
        except OSError as error:
            reason = reason or str(error)
    if driver is None:
        return None, f"no CUDA driver: {reason}"
    try:
        return _first_gpu(driver), ""
    except Problem as problem:
        return None, problem.message
    except AttributeError as error:
        return None, f"not a CUDA driver: {error}"


def _first_gpu(driver: Any) -> dict[str, Any]:
    def call(name: str, *arguments: Any) -> None:
        code = getattr(driver, name)(*arguments)
        if code:
            text = ctypes.c_char_p()
            driver.cuGetErrorString(code, ctypes.byref(text))
            said = (text.value or b"no explanation").decode(errors="replace")
            raise Problem(f"the CUDA driver refused {name}: {said} (error {code})", code=4)

    def number(name: str, *arguments: Any) -> int:
        value = ctypes.c_int()
        call(name, ctypes.byref(value), *arguments)
        return value.value

    call("cuInit", ctypes.c_uint(0))
    if number("cuDeviceGetCount") == 0:
        raise Problem("the CUDA driver sees no GPU", code=4)
    gpu = number("cuDeviceGet", 0)
    name = ctypes.create_string_buffer(256)
    call("cuDeviceGetName", name, len(name), gpu)
    major, minor, sms = (number("cuDeviceGetAttribute", a, gpu) for a in (_MAJOR, _MINOR, _SMS))
    return {
        "name": name.value.decode(errors="replace"),
        "compute_capability": f"{major}.{minor}",
        "sms": sms,
        "driver": _version(number("cuDriverGetVersion")),
    }


def libraries() -> list[str]:
    """Return where a CUDA runtime may be: what the linker knows, then the usual places, newest first."""
    named = ctypes.util.find_library("cudart")
    # Each is there under several names.
    places = {path.resolve() for place in _RUNTIMES for path in Path("/").glob(f"{place}/libcudart.so.*")}
    return ([named] if named else []) + [str(path) for path in sorted(places, key=_numbers, reverse=True)]


def _numbers(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", str(path))]


def _version(number: int) -> str:
    """Write CUDA's version number, 12060, as 12.6."""
    return f"{number // 1000}.{number % 1000 // 10}"


class Runtime:
    """The CUDA runtime on the first GPU.

    Addresses, streams, events and graphs are plain integers, as TensorRT's bindings take them.

    Attributes:
        path: where the library was found.
        version: of the runtime, "12.6".
        compute_capability: of the GPU, "8.7".
    """

    def __init__(self, paths: Iterable[str] | None = None) -> None:
        """Load the first library that works with this driver, where several CUDA versions are installed.

        Raises:
            Problem: there is none.
        """
        reasons = []
        for path in libraries() if paths is None else paths:
            reason = self._open(path)
            if not reason:
                return
            reasons.append(f"{path}: {reason}")
        raise Problem(
            "no CUDA runtime (libcudart.so) that works: " + ("; ".join(reasons) or "none is installed"),
            "install JetPack's cuda-cudart package, or set LD_LIBRARY_PATH to where the library is",
            4,
        )

    def _open(self, path: str) -> str:
        """Load a library, or say why it is of no use."""
        try:
            self._library = _declared(ctypes.CDLL(path))
            self._call("cudaFree", None)  # the first call of any kind fails where the driver is too old
            self.path = path
            self.version = _version(self._number("cudaRuntimeGetVersion"))
            major, minor = (self._number("cudaDeviceGetAttribute", a, 0) for a in (_MAJOR, _MINOR))
            self.compute_capability = f"{major}.{minor}"
        except (OSError, AttributeError) as error:
            return str(error)
        except Problem as problem:
            return problem.message
        return ""

    def malloc(self, size: int) -> int:
        """Allocate bytes on the GPU."""
        return self._made("cudaMalloc", max(size, 1))

    def free(self, address: int) -> None:
        """Give back what `malloc` gave."""
        self._call("cudaFree", address)

    def malloc_host(self, size: int) -> int:
        """Allocate page-locked bytes on the host, from which copies run at full speed."""
        return self._made("cudaMallocHost", max(size, 1))

    def free_host(self, address: int) -> None:
        """Give back what `malloc_host` gave."""
        self._call("cudaFreeHost", address)

    def to_device(self, device: int, host: int, size: int, stream: int) -> None:
        """Queue a copy onto the GPU."""
        self._call("cudaMemcpyAsync", device, host, size, _TO_DEVICE, stream)

    def to_host(self, host: int, device: int, size: int, stream: int) -> None:
        """Queue a copy from the GPU."""
        self._call("cudaMemcpyAsync", host, device, size, _TO_HOST, stream)

    def memory(self) -> tuple[int, int]:
        """Return the GPU's free bytes and all of its bytes; on a Jetson it shares them with the CPU."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def stream(self) -> int:
        """Create a queue of work."""
        return self._made("cudaStreamCreate")

    def end_stream(self, stream: int) -> None:
        """Destroy a queue."""
        self._call("cudaStreamDestroy", stream)

    def wait(self, stream: int) -> None:
        """Wait until a queue is empty; failures of what was queued are raised here."""
        self._call("cudaStreamSynchronize", stream)

    def event(self) -> int:
        """Create a mark that keeps the time at which a queue reaches it."""
        return self._made("cudaEventCreate")

    def end_event(self, event: int) -> None:
        """Destroy a mark."""
        self._call("cudaEventDestroy", event)

    def record(self, event: int, stream: int) -> None:
        """Queue a mark."""
        self._call("cudaEventRecord", event, stream)

    def elapsed_ms(self, start: int, end: int) -> float:
        """Wait for the second mark and return the milliseconds between the two, by the GPU's clock."""
        self._call("cudaEventSynchronize", end)
        value = ctypes.c_float()
        self._call("cudaEventElapsedTime", ctypes.byref(value), start, end)
        return value.value

    def capture(self, stream: int, work: Callable[[], None]) -> int:
        """Record what `work` puts into a queue as a graph, instead of doing it.

        Raises:
            Problem: the work cannot be captured, or this CUDA has no graphs.
        """
        if not hasattr(self._library, "cudaGraphInstantiateWithFlags"):
            raise Problem(f"CUDA {self.version} cannot replay an inference as a graph", "time it without", 3)
        self._call("cudaStreamBeginCapture", stream, _RELAXED)
        graph = ctypes.c_void_p()
        try:
            work()
        finally:
            # Also after a failure, or the stream stays in capture for good.
            code = self._library.cudaStreamEndCapture(stream, ctypes.byref(graph))
        self._check("cudaStreamEndCapture", code)
        try:
            return self._made("cudaGraphInstantiateWithFlags", graph.value, 0)
        finally:
            self._call("cudaGraphDestroy", graph.value)

    def launch(self, graph: int, stream: int) -> None:
        """Queue a graph."""
        self._call("cudaGraphLaunch", graph, stream)

    def end_graph(self, graph: int) -> None:
        """Destroy a graph."""
        self._call("cudaGraphExecDestroy", graph)

    def _made(self, name: str, *arguments: Any) -> int:
        made = ctypes.c_void_p()
        self._call(name, ctypes.byref(made), *arguments)
        return made.value or 0

    def _number(self, name: str, *arguments: Any) -> int:
        value = ctypes.c_int()
        self._call(name, ctypes.byref(value), *arguments)
        return value.value

    def _call(self, name: str, *arguments: Any) -> None:
        self._check(name, getattr(self._library, name)(*arguments))

    def _check(self, name: str, code: int) -> None:
        if code == 0:
            return
        said = (self._library.cudaGetErrorString(code) or b"no explanation").decode(errors="replace")
        hint = "close other programs, add swap, or run a smaller batch" if code == _OUT_OF_MEMORY else ""
        raise Problem(f"CUDA refused {name}: {said} (error {code})", hint)


def _declared(library: Any) -> Any:
    for name, arguments in _SIGNATURES.items():
        if hasattr(library, name) or "Graph" not in name:
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, ctypes.c_int
    library.cudaGetErrorString.argtypes = [ctypes.c_int]
    library.cudaGetErrorString.restype = ctypes.c_char_p
    return library
