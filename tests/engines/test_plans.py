"""Engines on this machine's TensorRT: the recorded API, or a stand-in for trtexec."""

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

sys.path.insert(0, str(Path(__file__).parents[1] / "device"))
import standin_cuda
import standin_tensorrt as standin

from edgetune.artifact import sha256_of
from edgetune.device.program import bindings, cuda
from edgetune.device.program.plan import Build
from edgetune.engines.plans import Plans, is_plan
from edgetune.errors import ArtifactError
from edgetune.latency.subjects import Asked
from edgetune.stages.bench import bench_models

recorded = pytest.mark.skipif(not standin.RECORDINGS, reason="no recorded API in shared/tensorrt-api")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes this machine one with a TensorRT, and builds an engine there; returns the plan."""
    recording = next(path for path in standin.RECORDINGS if path.stem.startswith("10.3"))
    trt = standin.load(recording)
    monkeypatch.setattr(bindings, "load", lambda say: trt)
    monkeypatch.setattr(cuda, "libraries", lambda: ["libcudart.so"])
    monkeypatch.setattr(cuda, "Runtime", standin_cuda.Runtime)
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"], "relu")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    plan = tmp_path / "fp16.plan"
    bindings.build(trt, Build("fp16", str(tmp_path / "m.onnx"), str(plan), "fp16", "weak", 64))
    return plan


@recorded
def test_an_engine_beside_an_onnx_file(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgetune.latency.protocol import PRESETS, Preset

    monkeypatch.setitem(PRESETS, "quick", Preset(0.02, 20, 6, 0.05, 1.0))
    found = bench_models({"plan": here, "onnx": here.with_name("m.onnx")}, threads=1)
    assert "TensorRT 10.3.0 (TensorRT's Python bindings) and ONNX Runtime" in found["engine"]
    assert set(found["models"]) == {"plan", "onnx"}
    assert found["models"]["plan"]["peak_memory_mb"] >= here.stat().st_size / 1e6
    assert found["ranking"] is not None
    assert found["layers"] == {}
    Path(f"{here}.json").write_text(json.dumps({"onnx_sha256": sha256_of(here.with_name("m.onnx"))}))
    both = {"plan": here, "onnx": here.with_name("m.onnx")}
    board = Asked(layers=True, profile="jetson-orin-nano-8gb")
    layers = bench_models(both, threads=1, asked=board)["layers"]
    assert set(layers) == {"plan", "onnx"}
    # Three values, of the ONNX file that is named beside it.
    assert [(one["name"], one["operations"]) for one in layers["plan"]["layers"]] == [("relu", 3)]
    assert "jetson-orin-nano-8gb" in layers["plan"]["roof"]["source"]
    alone = bench_models({"plan": here}, threads=1, asked=board)
    assert alone["compute"] is not None
    assert alone["compute"]["models"]["plan"]["count"] >= 20
    assert any("name the ONNX file that it was built from" in note for note in alone["notes"])


@recorded
@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"tensorrt": "8.6.1"}, r"built by TensorRT 8\.6\.1, here is 10\.3\.0"),
        (
            {"compute_capability": "7.2", "gpu": "Xavier"},
            r"built on Xavier of compute capability 7\.2, here is",
        ),
    ],
)
def test_an_engine_for_another_device_is_refused_with_both_named(
    here: Path, facts: dict[str, str], message: str
) -> None:
    Path(f"{here}.json").write_text(json.dumps(facts))
    with ExitStack() as stack, pytest.raises(ArtifactError, match=message) as caught:
        Plans({"fp16": here}, stack)
    assert str(here) in caught.value.message
    assert "build it here" in caught.value.hint


@recorded
def test_what_is_no_engine_is_refused(here: Path) -> None:
    here.write_bytes(b"nothing of the kind")
    with ExitStack() as stack, pytest.raises(ArtifactError, match="cannot be loaded"):
        Plans({"fp16": here}, stack)


def test_engines_are_known_by_their_endings() -> None:
    assert [is_plan(Path(name)) for name in ("a.plan", "a.ENGINE", "a.trt", "a.onnx")] == [
        True,
        True,
        True,
        False,
    ]
