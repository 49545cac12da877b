"""The CUDA driver and runtime by ctypes, tried on compiled libraries that have their names and host memory."""

import ctypes
import inspect
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import standin_cuda

from edgetune.device.program import cuda
from edgetune.device.program.problem import Problem

SOURCE = Path(standin_cuda.__file__).with_suffix(".c")
Library = Callable[..., str]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")

    def make(**defines: int) -> str:
        given = {"DRIVER": 0, "GPUS": 1} | defines
        path = tmp_path_factory.mktemp("cuda") / "libcuda.so.1"
        flags = [f"-D{name}={value}" for name, value in given.items()]
        subprocess.run([compiler, "-shared", "-fPIC", *flags, "-o", path, SOURCE], check=True)
        return str(path)

    return make


@pytest.fixture
def runtime(library: Library) -> cuda.Runtime:
    return cuda.Runtime(["/nowhere/libcudart.so.12", library()])


def test_a_driver_that_answers(library: Library) -> None:
    found, reason = cuda.ask(["/nowhere/libcuda.so.1", library()])
    assert found == {"name": "Orin", "compute_capability": "8.7", "sms": 16, "driver": "12.6"}
    assert reason == ""


def test_no_driver_and_no_gpu_are_told(library: Library) -> None:
    assert cuda.ask(["/nowhere/libcuda.so.1"]) == (None, cuda.ask(["/nowhere/libcuda.so.1"])[1])
    for paths, reason in (
        (["/nowhere/libcuda.so.1"], "no CUDA driver: /nowhere/libcuda.so.1: cannot open"),
        ([library(DRIVER=100)], "refused cuInit: no CUDA-capable device (error 100)"),
        ([library(DRIVER=3)], "refused cuInit: no explanation (error 3)"),
        ([library(GPUS=0)], "sees no GPU"),
        (["libc.so.6"], "not a CUDA driver"),
    ):
        found, told = cuda.ask(paths)
        assert found is None
        assert reason in told


def test_answer_is_ask_without_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "ask", lambda: ({"name": "Orin"}, ""))
    assert cuda.answer() == {"name": "Orin"}


def test_a_runtime_is_taken_that_the_driver_can_serve(library: Library) -> None:
    old, good = library(WORKS=0), library()
    made = cuda.Runtime([old, good])
    assert (made.path, made.version, made.compute_capability) == (good, "11.4", "8.7")
    with pytest.raises(Problem, match="driver version is insufficient") as failed:
        cuda.Runtime([old])
    assert failed.value.code == 4
    assert "cuda-cudart" in failed.value.hint
    with pytest.raises(Problem, match="none is installed"):
        cuda.Runtime([])
    with pytest.raises(Problem, match="libc"):
        cuda.Runtime(["libc.so.6"])


def test_libraries_are_looked_for_newest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version, name in (("12.2", "libcudart.so.12.2.140"), ("12.10", "libcudart.so.12.10.1")):
        folder = tmp_path / f"cuda-{version}/targets/aarch64-linux/lib"
        folder.mkdir(parents=True)
        (folder / name).touch()
        (folder / "libcudart.so.12").symlink_to(name)
    monkeypatch.setattr(cuda, "_RUNTIMES", (f"{str(tmp_path)[1:]}/cuda*/targets/*-linux/lib",))
    monkeypatch.setattr(ctypes.util, "find_library", lambda _: None)
    assert [Path(path).name for path in cuda.libraries()] == ["libcudart.so.12.10.1", "libcudart.so.12.2.140"]
    monkeypatch.setattr(ctypes.util, "find_library", lambda _: "libcudart.so.12")
    assert cuda.libraries()[0] == "libcudart.so.12"
    assert len(cuda.libraries()) == 3


def test_memory_copies_and_marks(runtime: cuda.Runtime) -> None:
    host, device, back = runtime.malloc_host(5), runtime.malloc(5), runtime.malloc_host(5)
    assert device > 1 << 32
    stream, start, end = runtime.stream(), runtime.event(), runtime.event()
    ctypes.memmove(host, b"edge!", 5)
    runtime.record(start, stream)
    runtime.to_device(device, host, 5, stream)
    runtime.to_host(back, device, 5, stream)
    runtime.record(end, stream)
    assert runtime.elapsed_ms(start, end) == 1.5
    runtime.wait(stream)
    assert ctypes.string_at(back, 5) == b"edge!"
    assert runtime.memory() == (5 << 30, 6 << 30)
    for address in (host, back):
        runtime.free_host(address)
    runtime.free(device)
    runtime.end_stream(stream)
    for event in (start, end):
        runtime.end_event(event)
    assert ctypes.c_long.in_dll(runtime._library, "live").value == 0


def test_refusals_name_the_call_and_the_reason(runtime: cuda.Runtime) -> None:
    with pytest.raises(Problem, match=r"refused cudaMalloc: out of memory \(error 2\)") as failed:
        runtime.malloc(1 << 41)
    assert "swap" in failed.value.hint
    with pytest.raises(Problem, match="cudaStreamSynchronize: other"):
        runtime.wait(0)


def test_graphs(runtime: cuda.Runtime) -> None:
    stream, host, device = runtime.stream(), runtime.malloc_host(1), runtime.malloc(1)
    graph = runtime.capture(stream, lambda: runtime.to_device(device, host, 1, stream))
    runtime.launch(graph, stream)
    assert ctypes.c_long.in_dll(runtime._library, "launched").value == 1
    runtime.end_graph(graph)

    def fails() -> None:
        raise Problem("not now")

    with pytest.raises(Problem, match="not now"):
        runtime.capture(stream, fails)
    ctypes.memmove(host, b"a", 1)
    runtime.to_device(device, host, 1, stream)  # the capture has ended
    assert ctypes.string_at(device, 1) == b"a"


def test_a_cuda_without_graphs_serves_all_else(library: Library) -> None:
    runtime = cuda.Runtime([library(NO_GRAPHS=1)])
    stream = runtime.stream()
    with pytest.raises(Problem, match=r"CUDA 11\.4 cannot replay"):
        runtime.capture(stream, lambda: None)
    runtime.wait(stream)


def test_the_stand_in_has_the_interface() -> None:
    def interface(owner: type) -> dict[str, str]:
        found = {n: f for n, f in inspect.getmembers(owner, inspect.isfunction) if not n.startswith("_")}
        return {name: ",".join(inspect.signature(f).parameters) for name, f in found.items()}

    real, stand = interface(cuda.Runtime), interface(standin_cuda.Runtime)
    assert len(real) > 10
    for name in ("free_host", "malloc_host"):
        real.pop(name), stand.pop(name)
    assert real == stand
    made = standin_cuda.Runtime()
    assert all(hasattr(made, name) for name in ("path", "version", "compute_capability", "free_host"))
