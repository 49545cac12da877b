"""The two examples that a bundle carries: they classify a frame, or say why they cannot."""

import ast
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import standin_tensorrt as standin

from edgetune.artifact import Artifact
from edgetune.data.folders import Dataset
from edgetune.device.program import bindings, plan
from edgetune.engines.onnxruntime import Session
from edgetune.profile import load_target
from edgetune.stages.bundle import EXAMPLES, bundle

# A compiler, and whole processes.
pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
SOURCES = Path(str(bindings.__file__)).parents[1] / "examples"
HOSTILE = ["plain", '"classes": ["no"], ', "back\\slash \n \x01", "Übergrößenträger 道", "]"]
# In place of what pip or JetPack installs. Streams are the C library's own, and what is queued runs at once. The
# stand-in leaves out that TensorRT's own Logger is an ILogger.
INSTALLED = """\
import sys
sys.path[:0] = {paths}
from pathlib import Path
import standin_tensorrt as standin
trt = standin.load(Path({recording!r}))
standin.Cuda.enqueue = lambda stream, work: work()
class Logger(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
    def log(self, severity, text):
        print(text, file=sys.stderr)
trt.Logger = Logger
sys.modules[__name__] = trt
"""
BOARD = "jetson-orin-nano-8gb"
recorded = pytest.mark.skipif(not standin.RECORDINGS, reason="no recorded API in shared/tensorrt-api")


def compiler(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        if os.environ.get("EDGETUNE_REQUIRE_ALL"):
            pytest.fail(f"no {name}")
        pytest.skip(f"no {name}")
    return found


def test_both_are_there() -> None:
    assert sorted(path.name for path in SOURCES.iterdir() if path.is_file()) == sorted(EXAMPLES)


def test_the_python_one_is_plain() -> None:
    tree = ast.parse((SOURCES / "classify.py").read_text(), feature_version=(3, 8))
    names = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        )
    }  # fmt: skip
    assert names - {"__future__", "tensorrt"} <= set(sys.stdlib_module_names)
    vermin = Path(sys.executable).with_name("vermin")
    if vermin.is_file():
        subprocess.run(
            [vermin, "-t=3.8-", "--no-tips", SOURCES / "classify.py"], check=True, capture_output=True
        )


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with a CUDA runtime on host memory, by whether it works."""
    made = {}
    for works in (1, 0):
        folder = tmp_path_factory.mktemp("cuda")
        given = ["-DDRIVER=0", "-DGPUS=1", f"-DWORKS={works}"]
        target = ["-o", str(folder / "libcudart.so"), str(HERE / "standin_cuda.c")]
        subprocess.run([compiler("cc"), "-shared", "-fPIC", *given, *target], check=True)
        made["works" if works else "fails"] = folder
    return made


@pytest.fixture
def built(
    tmp_path: Path, dataset: Dataset, artifacts: Callable[..., tuple[Artifact, Artifact]]
) -> Callable[..., Path]:
    """Makes a bundle with engines built by the stand-in for a recorded version."""

    def make(recording: Path, profile: str, pixels: bool) -> Path:
        target = load_target(profile)
        folder = tmp_path / "bundle"
        bundle(*artifacts(target, pixels), dataset, target, name="colours", samples=4, into=folder)
        (folder / "results").mkdir()
        for job in plan.load(folder).builds:
            bindings.build(standin.load(recording), job)
        (tmp_path / "tensorrt.py").write_text(
            INSTALLED.format(paths=[str(HERE), str(HERE.parents[1])], recording=str(recording))
        )
        return folder

    return make


def classify(folder: Path, cuda: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(folder / "classify.py"), *map(str, arguments)],
        env={"LD_LIBRARY_PATH": str(cuda), "PYTHONPATH": str(folder.parent), "PATH": os.environ["PATH"]},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def frames(folder: Path) -> np.ndarray:
    """The samples as a camera gives them: [N, H, W, C]."""
    work = plan.load(folder)
    raw = np.fromfile(work.samples.inputs, np.uint8)
    if not work.samples.table:
        return raw.reshape(-1, *work.input.shape[1:])
    return np.ascontiguousarray(raw.reshape(-1, *work.input.shape[1:]).transpose(0, 2, 3, 1))


def shares(logits: np.ndarray) -> list[float]:
    powers = np.exp(logits.astype(np.float64) - logits.max())
    return [float(value) for value in 100 * powers / powers.sum()]


def told(stdout: str) -> list[tuple[float, str]]:
    rows = [line.partition("%  ") for line in stdout.splitlines()]
    return [(float(share), name) for share, _, name in rows]


@recorded
@pytest.mark.parametrize(
    ("version", "profile", "pixels"),
    [
        ("8.6", BOARD, True),
        ("10.3", BOARD, False),
        ("10.16", f"{BOARD}@7.2", True),
        ("11", f"{BOARD}@7.2", False),
    ],
)
def test_python_classifies_a_frame(
    version: str, profile: str, pixels: bool, built: Callable[..., Path], libraries: dict[str, Path]
) -> None:
    recording = next(path for path in standin.RECORDINGS if path.stem.startswith(version))
    folder = built(recording, profile, pixels)
    work = plan.load(folder)
    for engine in ("int8", "fp16"):
        expected = np.fromfile(work.samples.expected[engine], "<f4").reshape(4, -1)
        frame = folder.parent / "frame.bin"
        frame.write_bytes(frames(folder)[1].tobytes())
        done = classify(folder, libraries["works"], frame, *([engine] if engine == "fp16" else []))
        assert done.returncode == 0, done.stderr
        right = shares(expected[1])
        order = sorted(range(3), key=lambda index: -right[index])
        rows = told(done.stdout)
        assert [name for _, name in rows] == [work.classes[index] for index in order]
        # FP16 is compared with FP32's answer.
        loose = 3 if engine == "fp16" and "7.2" in profile else 0.06
        assert [share for share, _ in rows] == pytest.approx([right[index] for index in order], abs=loose)


@recorded
def test_python_says_why_it_cannot(
    built: Callable[..., Path], libraries: dict[str, Path], tmp_path: Path
) -> None:
    recording = next(path for path in standin.RECORDINGS if path.stem.startswith("10.3"))
    folder = built(recording, BOARD, True)
    frame = tmp_path / "frame.bin"
    frame.write_bytes(frames(folder)[0].tobytes()[:-1])
    assert "python3 classify.py FRAME [ENGINE]" in classify(folder, libraries["works"]).stderr
    assert "no such engine; build it first" in classify(folder, libraries["works"], frame, "int4").stderr
    assert "3071 bytes, and the engine takes 3072" in classify(folder, libraries["works"], frame).stderr
    # TensorRT must not be touched where no driver answers: its module would end this.
    (tmp_path / "tensorrt.py").write_text("raise SystemExit('touched')")
    assert "driver version is insufficient" in classify(folder, libraries["fails"], frame).stderr
    (tmp_path / "tensorrt.py").unlink()
    assert "No module named 'tensorrt'" in classify(folder, libraries["works"], frame).stderr


VERSIONS = [(8, 5), (10, 3), (11, 4)]


def compiled(folder: Path, version: tuple[int, int], *more: str) -> subprocess.CompletedProcess[str]:
    for header in ("NvInfer.h", "cuda_runtime_api.h"):
        (folder / header).write_text(f'#include "{HERE / "standin_nvinfer.h"}"\n')
    given = [f"-DMAJOR={version[0]}", f"-DMINOR={version[1]}", "-std=c++17", "-Wall", "-Wextra", "-Werror"]
    command = [compiler("g++"), *given, f"-I{folder}", str(SOURCES / "classify.cpp"), *more]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("version", VERSIONS, ids=str)
def test_cpp_compiles_for_every_version(tmp_path: Path, version: tuple[int, int]) -> None:
    done = compiled(tmp_path, version, "-fsyntax-only")
    assert (done.returncode, done.stderr) == (0, "")


def test_cpp_refuses_what_is_too_old(tmp_path: Path) -> None:
    done = compiled(tmp_path, (8, 4), "-fsyntax-only")
    assert done.returncode != 0
    assert "TensorRT 8.5 or later is needed" in done.stderr


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cpp")
    done = compiled(folder, (10, 3), "-fsanitize=address,undefined", "-o", str(folder / "classify"))
    assert done.returncode == 0, done.stderr
    return folder / "classify"


@pytest.mark.parametrize(("pixels", "core"), [(True, None), (False, None), (False, 1)])
def test_cpp_classifies_a_frame(program: Path, tmp_path: Path, pixels: bool, core: int | None) -> None:
    noise = np.random.default_rng(0)
    frame = noise.integers(0, 3, (5, 2, 3), dtype=np.uint8)
    table = noise.normal(size=(3, 256)).astype("<f4")
    planes = np.stack([table[c][frame[..., c]] for c in range(3)])
    values = (frame if pixels else planes).astype(np.float64).reshape(len(HOSTILE), -1)
    right = shares(values.sum(axis=1) - values.sum() / len(HOSTILE))
    (tmp_path / "results").mkdir()
    text = "uint8 1 5 2 3 5" if pixels else "float32 1 3 5 2 5"
    (tmp_path / "results/int8.plan").write_text(text)
    engines = [{"name": "int8", "dla_core": core}]
    work = {"name": '"classes": ["dla_core": 7', "outputs": [], "classes": HOSTILE, "engines": engines}
    (tmp_path / "work.json").write_text(json.dumps(work, indent=1, ensure_ascii=False), encoding="utf-8")
    (tmp_path / "table.bin").write_bytes(table.tobytes())
    (tmp_path / "frame").write_bytes(frame.tobytes())
    done = subprocess.run([program, "frame"], cwd=tmp_path, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"" if core is None else f"DLA core {core}\n".encode())
    order = sorted(range(len(HOSTILE)), key=lambda index: -right[index])
    lines = [f"{right[index]:5.1f}%  {HOSTILE[index]}\n" for index in order]
    assert done.stdout.decode() == "".join(lines)
    assert math.isclose(sum(right), 100)


def test_cpp_says_why_it_cannot(program: Path, tmp_path: Path) -> None:
    def run(*arguments: str, **environment: str) -> str:
        done = subprocess.run(
            [program, *arguments], cwd=tmp_path, env=os.environ | environment,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        return done.stderr

    (tmp_path / "results").mkdir()
    (tmp_path / "results/int8.plan").write_text("uint8 1 2 2 3 2")
    (tmp_path / "results/fp16.plan").write_text("no plan")
    (tmp_path / "work.json").write_text("{}")
    (tmp_path / "frame").write_bytes(bytes(11))
    assert "give a frame" in run()
    assert "no CUDA-capable device" in run("frame", NO_GPU="1")
    assert "results/int4.plan: cannot be read" in run("frame", "int4")
    refused = run("frame", "fp16")
    assert "magicTag failed" in refused
    assert "TensorRT does not take it" in refused
    assert "not as many bytes" in run("frame")
    assert "none.bin: cannot be read" in run("none.bin")


def test_a_session_says_the_same_as_the_bundle(
    tmp_path: Path, dataset: Dataset, artifacts: Callable[..., tuple[Artifact, Artifact]]
) -> None:
    """What the examples are held against is what ONNX Runtime makes of the frame itself."""
    target = load_target(BOARD)
    folder = tmp_path / "bundle"
    bundle(*artifacts(target, pixels=True), dataset, target, name="colours", samples=4, into=folder)
    expected = np.fromfile(plan.load(folder).samples.expected["int8"], "<f4").reshape(4, -1)
    np.testing.assert_array_equal(Session(folder / "int8.onnx", exact=True).run(frames(folder))[0], expected)
