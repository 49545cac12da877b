"""The doctor says what is missing and how to get it, and survives what is broken."""

import importlib

import pytest

from edgetune.stages import doctor as module
from edgetune.stages.doctor import doctor


def test_it_says_what_to_do_about_everything_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def broken(name: str) -> object:
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        if name == "tensorrt":
            raise ImportError("libnvinfer.so.10: cannot open shared object file")
        return real(name)

    monkeypatch.setattr(module.importlib, "import_module", broken)
    found = {entry["what"]: entry for entry in doctor()}
    assert found["torchvision"]["status"] == "missing"
    assert "nms does not exist" in found["torchvision"]["found"]
    assert found["torchvision"]["way"]
    assert found["TensorRT"]["status"] == "optional"
    assert "pip install tensorrt" in found["TensorRT"]["way"]


def test_it_names_what_it_looked_for() -> None:
    found = doctor()
    assert {"Python", "torch", "GPU", "TensorRT", "trtexec", "CPU", "memory", "disk", "profiles"} <= {
        entry["what"] for entry in found
    }
    for entry in found:
        assert entry["status"] in ("ok", "missing", "optional", "warning")
        assert entry["found"]
        assert entry["status"] != "missing" or entry["way"]
