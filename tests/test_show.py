"""What verbs print: measures with their doubts, artifacts with their warnings."""

import pytest

from edgetune import show
from edgetune.artifact import Artifact

LATENCY = {
    "engine": "onnxruntime CPU", "threads": 2, "batch": 1, "trusted": False, "why": "p90 is 2.0 times p50",
    "models": {"model.onnx": {"p50_ms": 1.5, "p90_ms": 3.0, "p99_ms": 4.0, "cv": 0.5, "count": 60}},
}  # fmt: skip


def test_a_measurement_that_is_not_to_be_trusted_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    show.show_measures({"latency": LATENCY})
    out = capsys.readouterr().out
    assert "1.5" in out
    assert "not to be trusted: p90 is 2.0 times p50" in out


def test_operators_that_a_gpu_left_to_others_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    models = {
        "fp32.onnx": LATENCY["models"]["model.onnx"] | {"operators": {"CUDA": 100}},
        "int8.onnx": LATENCY["models"]["model.onnx"] | {"operators": {"CUDA": 88, "CPU": 12}},
    }
    show.show_measures({"latency": LATENCY | {"engine": "ONNX Runtime 1.31.1, CUDA", "models": models}})
    out = capsys.readouterr().out
    assert "ONNX Runtime 1.31.1, CUDA, 2 threads" in out
    assert "int8.onnx: operators by provider: 88 CUDA, 12 CPU" in out
    assert "fp32.onnx: operators" not in out


def test_an_artifact_shows_its_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    made = Artifact(kind="qdq", details={"quantized_ops": 3, "float_ops": 1, "warnings": ["odd [thing]"]})
    show.show_artifact(made)
    out = capsys.readouterr().out
    assert "warning: odd [thing]" in out
    assert "INT8: 3 operations, float: 1" in out
