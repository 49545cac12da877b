"""bench on networks of a few nodes: what is reported, what is refused. Nothing is asserted on wall time."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetune.artifact import Artifact
from edgetune.engines.onnxruntime import Session
from edgetune.errors import ArtifactError, ConfigError
from edgetune.latency import memory, subjects
from edgetune.latency.protocol import PRESETS, Preset
from edgetune.recipe import BenchSection
from edgetune.stages import bench as module_of_bench
from edgetune.stages.bench import bench, bench_models


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "quick", Preset(0.02, 20, 6, 0.05, 1.0))


def network(path: Path, size: int = 64, batch: int | str = 1, width: int | str = 16) -> Path:
    """A chain of two matrix products."""
    noise = np.random.default_rng(0)
    inner = width if isinstance(width, int) else 16
    weights = [noise.normal(size=shape).astype(np.float32) for shape in ((inner, size), (size, 4))]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["input", "w0"], ["h"]),
            helper.make_node("MatMul", ["h", "w1"], ["logits"]),
        ],
        "chain",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, width])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 4])],
        [numpy_helper.from_array(weight, f"w{index}") for index, weight in enumerate(weights)],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_measures_of_two_artifacts(tmp_path: Path) -> None:
    models = {}
    for name, kind, size in (("fp32", "onnx", 512), ("int8", "qdq", 8)):
        network(tmp_path / name / "model.onnx", size)
        models[name] = Artifact(kind=kind, classes=("a", "b")).write(tmp_path / name)
    (tmp_path / "bench").mkdir()
    made = bench(models, BenchSection(), 1, into=tmp_path / "bench")
    assert made.kind == "measures"
    assert made.parents == {name: artifact.digest for name, artifact in models.items()}
    latency = json.loads(made.file("measures.json").read_text())["latency"]
    said = {name: latency[name] for name in ("engine", "provider", "threads", "batch", "preset")}
    engine = f"ONNX Runtime {onnxruntime.__version__}, CPU"
    assert said == {"engine": engine, "provider": "cpu", "threads": 1, "batch": 1, "preset": "quick"}
    assert list(latency["models"]) == ["fp32", "int8"]
    for model in latency["models"].values():
        assert model["count"] >= 20
        assert 0 < model["min_ms"] <= model["p50_ms"] <= model["p99_ms"]
        assert 10 < model["peak_memory_mb"] < 2000
        assert model["operators"] == {}
    assert latency["speedup"]["low"] <= latency["speedup"]["high"]
    assert latency["trusted"] is (latency["why"] == "")


def test_one_file_has_no_speedup_and_its_own_batch(tmp_path: Path) -> None:
    found = bench_models({"m": network(tmp_path / "m.onnx", batch=8)}, threads=1)
    assert found["batch"] == 8
    assert found["speedup"] is None
    assert bench_models({"m": network(tmp_path / "n.onnx", batch="N")}, threads=1)["batch"] == 1


def test_what_cannot_be_timed_is_refused(tmp_path: Path) -> None:
    one, eight = network(tmp_path / "one.onnx"), network(tmp_path / "eight.onnx", batch=8)
    with pytest.raises(ConfigError, match="free dimensions: width"):
        bench_models({"m": network(tmp_path / "free.onnx", width="width")})
    with pytest.raises(ConfigError, match="batch sizes differ: 1, 8"):
        bench_models({"a": one, "b": eight})
    with pytest.raises(ConfigError, match="no model"):
        bench_models({})
    with pytest.raises(ConfigError, match="quikc") as caught:
        bench_models({"a": one}, "quikc")
    assert "quick" in caught.value.hint
    (tmp_path / "cut.onnx").write_bytes(one.read_bytes()[:100])
    with pytest.raises(ArtifactError):
        bench_models({"a": tmp_path / "cut.onnx"})


def test_on_a_gpu_the_provider_is_named_and_host_memory_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class OnGpu(Session):
        def __init__(self, model: Path, threads: int, provider: str) -> None:
            asked.append(provider)
            super().__init__(model, threads)
            self.engine, self.placed = "ONNX Runtime 1.31.1, CUDA", {"CUDA": 1, "CPU": 1}

    monkeypatch.setattr(subjects, "Session", OnGpu)
    monkeypatch.setattr(module_of_bench, "peak_memory_bytes", lambda *_: pytest.fail("the CPU's was taken"))
    found = bench_models({"m": network(tmp_path / "m.onnx")}, threads=1, provider="cuda")
    assert asked == ["cuda"]
    assert (found["engine"], found["provider"]) == ("ONNX Runtime 1.31.1, CUDA", "cuda")
    model = found["models"]["m"]
    assert (model["peak_memory_mb"], model["operators"]) == (None, {"CUDA": 1, "CPU": 1})


def test_presets_of_the_recipe_are_those_of_the_protocol() -> None:
    for name in PRESETS:
        assert BenchSection(preset=name).preset == name
    assert set(PRESETS) == {"quick", "standard", "mlperf"}


@pytest.mark.slow
def test_peak_memory_is_the_child_s_own(tmp_path: Path) -> None:
    ballast = np.ones(600 * 2**20 // 8)
    peak = memory.peak_memory_bytes(network(tmp_path / "m.onnx"), 1)
    assert peak is not None
    assert peak < ballast.nbytes / 2


def test_memory_is_in_megabytes_of_a_million(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_of_bench, "peak_memory_bytes", lambda *_: 85_500_000)
    found = bench_models({"m": network(tmp_path / "m.onnx")}, threads=1)
    assert found["models"]["m"]["peak_memory_mb"] == 85.5


@pytest.mark.slow
def test_a_larger_network_has_a_larger_peak(tmp_path: Path) -> None:
    small, large = (
        memory.peak_memory_bytes(network(tmp_path / f"{size}.onnx", size), 1) for size in (8, 2**20)
    )
    assert small is not None
    assert large is not None
    # 2 ** 20 x (16 + 4) weights of four bytes.
    assert large - small > 60 * 2**20


def test_no_peak_where_the_process_fails(tmp_path: Path) -> None:
    assert memory.peak_memory_bytes(tmp_path / "absent.onnx", 1) is None


def test_the_measuring_process_loads_no_torch(tmp_path: Path) -> None:
    model = network(tmp_path / "m.onnx")
    code = (
        "import runpy, sys; sys.argv = ['memory', sys.argv[1], '1', '{}'];"
        "runpy.run_module('edgetune.latency.memory', run_name='__main__');"
        "print('', *sorted({'torch', 'onnx', 'scipy', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(model)], capture_output=True, text=True, check=True
    )
    peak, *heavy = done.stdout.split()
    assert int(peak) > 0
    assert heavy == []
