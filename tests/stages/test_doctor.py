"""The doctor says what is missing and how to get it, and survives what is broken."""

import importlib
from importlib import metadata
from types import ModuleType
from typing import Any

import pytest

from edgetune import artifact
from edgetune.device.program import cuda
from edgetune.engines import onnxruntime as engine
from edgetune.errors import MissingTool
from edgetune.stages import doctor as module
from edgetune.stages.doctor import doctor

Found = dict[str, dict[str, Any]]


def found_here() -> Found:
    return {entry["what"]: entry for entry in doctor()}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretends that of ONNX Runtime's packages these are installed."""
    real = metadata.version

    def pretend(**versions: str) -> None:
        def version(name: str) -> str:
            if name not in ("onnxruntime", "onnxruntime-gpu"):
                return real(name)
            if name.replace("-", "_") in versions:
                return versions[name.replace("-", "_")]
            raise metadata.PackageNotFoundError(name)

        monkeypatch.setattr(module.metadata, "version", version)
        monkeypatch.setattr(artifact, "version", version)

    return pretend


def test_it_says_what_to_do_about_everything_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def broken(name: str) -> object:
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        return real(name)

    monkeypatch.setattr(module.importlib, "import_module", broken)
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    found = found_here()
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


def test_tensorrt_is_not_imported_before_the_driver_has_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    real, imported = importlib.import_module, []

    def importing(name: str) -> object:
        if name != "tensorrt":
            return real(name)
        imported.append(name)
        if broken:
            raise ImportError("libnvinfer.so.10: cannot open shared object file")
        made = ModuleType(name)
        made.__version__ = "10.3.0"  # type: ignore[attr-defined]
        return made

    broken = False
    monkeypatch.setattr(importlib, "import_module", importing)
    monkeypatch.setattr(module, "find_spec", lambda name: name)
    monkeypatch.setattr(cuda, "ask", lambda: (None, "no CUDA driver: not here"))
    found = found_here()["TensorRT"]
    assert imported == []
    assert (found["status"], found["way"]) == ("optional", "install NVIDIA's driver")
    assert found["found"] == "installed, of no use here: no CUDA driver: not here"

    monkeypatch.setattr(cuda, "ask", lambda: ({"name": "Orin"}, ""))
    found = found_here()["TensorRT"]
    assert imported == ["tensorrt"]
    assert (found["status"], found["found"]) == ("ok", "10.3.0")

    broken = True
    found = found_here()["TensorRT"]
    assert (found["status"], found["way"]) == ("optional", "install it again")
    assert "libnvinfer.so.10" in found["found"]


def test_both_packages_of_onnx_runtime_are_noticed(installed: Any) -> None:
    installed(onnxruntime="1.30.0", onnxruntime_gpu="1.31.1")
    found = found_here()["onnxruntime-gpu"]
    assert found["status"] == "warning"
    assert "onnxruntime 1.30.0 and onnxruntime-gpu 1.31.1" in found["found"]
    assert found["way"].startswith("pip uninstall -y onnxruntime onnxruntime-gpu && pip install ")
    assert "onnxruntime-gpu" in found["way"].partition("&&")[2]


@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime_gpu"])
def test_either_package_alone_is_right(name: str, installed: Any) -> None:
    installed(**{name: "1.31.1"})
    found = found_here()
    assert "onnxruntime-gpu" not in found
    assert (found["onnxruntime"]["status"], found["onnxruntime"]["found"]) == ("ok", "1.31.1")
    assert artifact.library_versions("onnxruntime") == {"onnxruntime": "1.31.1"}


def test_what_an_uninstalled_package_leaves_behind_is_no_library(
    monkeypatch: pytest.MonkeyPatch, installed: Any
) -> None:
    real = importlib.import_module
    # As after `pip uninstall onnxruntime` beside onnxruntime-gpu: the folder is there and imports.
    monkeypatch.setattr(
        importlib, "import_module", lambda name: ModuleType(name) if name == "onnxruntime" else real(name)
    )
    installed(onnxruntime_gpu="1.31.1")
    found = found_here()["onnxruntime"]
    assert (found["status"], found["found"]) == ("missing", "its files are gone")
    assert found["way"].startswith("pip uninstall -y onnxruntime onnxruntime-gpu")


def test_providers_are_tried_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tried:
        def __init__(self, model: bytes, provider: str) -> None:
            if provider == "tensorrt":
                raise MissingTool("libnvinfer.so.10: cannot open", hint="first this\nthen that")
            self.engine = "ONNX Runtime 1.31.1, CUDA"

    monkeypatch.setattr(engine, "Session", Tried)
    found = found_here()
    assert found["CUDA provider"]["status"] == "ok"
    assert "bench --provider cuda" in found["CUDA provider"]["found"]
    assert (found["TensorRT provider"]["status"], found["TensorRT provider"]["way"]) == (
        "optional",
        "then that",
    )
    assert "libnvinfer.so.10" in found["TensorRT provider"]["found"]
    titles = [provider.title for name, provider in engine.PROVIDERS.items() if name != "cpu"]
    assert [what for what in found if what.endswith(" provider")] == [f"{title} provider" for title in titles]


def test_the_network_that_is_tried_is_one() -> None:
    import onnx

    model = onnx.parser.parse_model(module.TINY)
    assert engine.Session(model.SerializeToString(), threads=1).inputs[0].shape == (1, 3, 8, 8)
