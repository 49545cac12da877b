"""Nothing of TensorRT is touched before the CUDA driver has answered: without one its objects end the process.

The driver is a compiled stand-in that answers or refuses; TensorRT is a module that writes down that it was
imported, and does what the real one does when it is used: it ends the process.
"""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import small_bundle
import standin_cuda

import edgetune

PACKAGE = Path(edgetune.__file__).parent
DEADLY = """
import os
from pathlib import Path
TOUCHED = Path(__file__).with_name("touched")
TOUCHED.write_text("imported")
def __getattr__(name):
    TOUCHED.write_text(f"used: {name}")
    os._exit(139)
"""
NO_GPU = 100  # CUDA_ERROR_NO_DEVICE


def imports(path: Path) -> list[int]:
    """The lines at which a module imports TensorRT, by statement or by name."""
    lines = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            names = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
        else:
            continue
        lines += [node.lineno for name in names if str(name).partition(".")[0] == "tensorrt"]
    return lines


def test_tensorrt_is_imported_in_one_place_and_in_the_example() -> None:
    sources = sorted(PACKAGE.rglob("*.py"))
    assert len(sources) > 100
    found = {path.relative_to(PACKAGE).as_posix(): imports(path) for path in sources if imports(path)}
    assert sorted(found) == ["device/examples/classify.py", "device/program/bindings.py"]
    assert [len(lines) for lines in found.values()] == [1, 1]


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """A bundle on a device that has TensorRT's bindings and no trtexec."""
    (tmp_path / "python").mkdir()
    (tmp_path / "python/tensorrt.py").write_text(DEADLY)
    return small_bundle.make(tmp_path / "bundle")


def driver(folder: Path, answer: int) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder.mkdir()
    flags = [f"-DDRIVER={answer}", "-DGPUS=1"]
    source = Path(standin_cuda.__file__).with_suffix(".c")
    subprocess.run([compiler, "-shared", "-fPIC", *flags, "-o", folder / "libcuda.so.1", source], check=True)
    return folder


def call(device: Path, answer: int, *words: str) -> tuple["subprocess.CompletedProcess[str]", str]:
    """Run the program there; also return what was done with TensorRT."""
    python = device.parent / "python"
    done = subprocess.run(
        [sys.executable, "-S", device / "edgetune.pyz", *words], capture_output=True, text=True, check=False,
        env={
            "PYTHONPATH": str(python), "PATH": str(python),
            "LD_LIBRARY_PATH": str(driver(device.parent / f"driver-{answer}", answer)),
        },
    )  # fmt: skip
    touched = python / "touched"
    return done, touched.read_text() if touched.exists() else ""


@pytest.mark.parametrize("words", [["run"], ["probe"], ["build-one", "FOLDER", "int8", "64", ""]])
def test_without_a_driver_it_is_left_alone(device: Path, words: list[str]) -> None:
    if Path("/usr/src/tensorrt/bin/trtexec").exists() and words == ["run"]:
        pytest.skip("trtexec is in its usual place")
    done, touched = call(device, NO_GPU, *[str(device) if word == "FOLDER" else word for word in words])
    assert touched == ""
    assert done.returncode == (0 if words == ["probe"] else 4), done.stderr
    if words != ["probe"]:
        assert "refused cuInit: no CUDA-capable device (error 100)" in done.stderr
        assert "error: " in done.stderr


def test_with_a_driver_it_is_used(device: Path) -> None:
    # Else the tests above could not fail.
    done, touched = call(device, 0, "build-one", str(device), "int8", "64", "")
    assert (done.returncode, touched) == (139, "used: __version__")
