"""TensorRT's real lean runtime: what this program makes of its words, and that the process outlives wrong plans.

The runtime comes by `pip install tensorrt-lean-cu13-bindings tensorrt-lean-cu13-libs` and imports without a GPU;
there its objects end the process. Every test that might runs it in a process of its own.
"""

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from edgetune.device.program import cuda

LEAN = next((name for name in ("tensorrt_lean", "tensorrt_lean_bindings") if find_spec(name)), "")
GPU, REASON = cuda.ask()
pytestmark = pytest.mark.skipif(not LEAN, reason="TensorRT's lean runtime is not installed")
on_a_gpu = pytest.mark.skipif(GPU is None, reason=REASON)
MAGIC = b"ptrt"  # what plans begin with, as the library compares it

CHILD = f"""
import json, sys
from types import SimpleNamespace
import {LEAN or "sys"} as trt
from edgetune.device.program import bindings, cuda, engine, sidecar, tools
from edgetune.device.program.plan import Build
from edgetune.device.program.problem import Problem
sys.modules["tensorrt"] = trt
path = sys.argv[1]
def told(call):
    try:
        return {{"value": call()}}
    except Problem as problem:
        return {{"message": problem.message, "hint": problem.hint, "code": problem.code}}
def load():
    found = bindings.load()
    return None if found is None else found.__version__
def deserialize():
    gpu = SimpleNamespace(compute_capability=cuda.answer()["compute_capability"])
    engine.Engine(bindings.load(), gpu, path)
def forced():
    engine.Engine(trt, SimpleNamespace(compute_capability="8.7"), path)
def outputs():
    sidecar.write(path, {{"tensorrt": "10.3.0", "compute_capability": "8.7"}})
    job = Build("int8", "int8.onnx", path, "int8", "weak", 64)
    next(tools.Bindings(trt, lambda: None, print).outputs(job, None, [b""]))
"""


def told(call: str, path: Path) -> dict[str, Any]:
    """Call one of the child's functions in a process of its own, which has to come through."""
    code = f"{CHILD}\nprint(json.dumps(told({call})))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, f"the process ended with {done.returncode}: {done.stderr}"
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def version() -> str:
    code = f"import {LEAN} as trt; print(trt.__version__)"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_it_is_taken_only_where_the_driver_answers(tmp_path: Path) -> None:
    assert told("load", tmp_path) == {"value": version() if GPU else None}


def test_what_is_looked_for_in_its_words_is_in_the_library() -> None:
    folder = find_spec("tensorrt_lean_libs")
    if folder is None or not folder.submodule_search_locations:
        pytest.skip("the library is not of a package")
    (library,) = Path(folder.submodule_search_locations[0]).glob("libnvinfer_lean.so*")
    content = library.read_bytes()
    for words in (
        b"expecting library version ",
        b"expecting compute ",
        b" got compute ",
        b"MAGIC_TAG",
        MAGIC,
    ):
        assert words in content, words


def test_the_facts_beside_a_plan_refuse_it_before_it_is_loaded(tmp_path: Path) -> None:
    plan = tmp_path / "int8.plan"
    plan.write_bytes(MAGIC + bytes(4096))
    found = told("outputs", plan)  # without a GPU, to load it would end the process
    here = ".".join(re.findall(r"\d+", version())[:4])
    assert f"built by TensorRT 10.3.0, here is {here}" in found["message"]
    assert found["code"] == 5
    assert "build it here" in found["hint"]


@pytest.mark.skipif(GPU is not None, reason="a GPU answers")
def test_a_driver_that_does_not_do_for_it_ends_no_process(tmp_path: Path) -> None:
    # As where the driver answers and is older than the CUDA of this TensorRT: it logs that, and gives an object
    # that must be neither used nor destroyed.
    plan = tmp_path / "int8.plan"
    plan.write_bytes(MAGIC + bytes(4096))
    found = told("forced", plan)
    assert found["message"].startswith("TensorRT cannot use the GPU: ")
    assert "CUDA initialization failure with error" in found["message"]
    assert (found["code"], "driver" in found["hint"]) == (4, True)


@on_a_gpu
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage" * 1000,
        MAGIC,
        MAGIC + bytes(4096),
        MAGIC + bytes(range(256)) * 16,
        (70).to_bytes(4, "little") + b'{"task": "detect"}' + bytes(52) + MAGIC + bytes(4096),
    ],
    ids=["empty", "garbage", "cut", "zeros", "another", "ultralytics"],
)
def test_a_wrong_plan_is_refused_in_words(content: bytes, tmp_path: Path) -> None:
    plan = tmp_path / "wrong.plan"
    plan.write_bytes(content)
    found = told("deserialize", plan)
    assert found.get("code") == 5, found
    assert found["message"].startswith(f"{plan}: the engine cannot be loaded: ")
    assert found["hint"]
    assert "gave no reason" not in found["message"]
    assert ("no plain plan" in found["message"]) == ("magic" in found["message"].lower())
