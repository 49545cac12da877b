"""A bundle of a tiny network, and the stand-in trtexec, for all tests of the way to a device."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edgetune.data.folders import Dataset
from edgetune.profile import load_target
from edgetune.stages.bundle import bundle

# Tests import the stand-ins beside this file.
sys.path.insert(0, str(Path(__file__).parent))

BOARD = "jetson-orin-nano-8gb"


def standin(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def bundled(tmp_path: Path, dataset: Dataset, artifacts: Any) -> Callable[..., Path]:
    """Writes a bundle and returns its folder."""

    def make(profile: str = BOARD, samples: int = 0, dla_core: int | None = None) -> Path:
        target = load_target(profile)
        network, int8 = artifacts(target)
        into = tmp_path / "bundle"
        bundle(network, int8, dataset, target, name="colours", samples=samples, into=into, dla_core=dla_core)
        return into

    return make


@pytest.fixture
def on_device(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a bundle's program by a Python that has nothing but its standard library, beside a trtexec."""

    def run(
        folder: Path, *arguments: str, trtexec: str = "10.3.0", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        tools = tmp_path / f"bin-{trtexec}"
        if trtexec:
            standin("standin_trtexec").install(tools, trtexec)
        env = {"PATH": f"{tools}:/usr/bin:/bin", "HOME": str(tmp_path), **environment}
        command = [sys.executable, "-I", "-S", str(folder / "edgetune.pyz"), *arguments]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False, cwd=tmp_path)

    return run


@pytest.fixture
def quick() -> Callable[[Path], None]:
    """Makes a bundle's timing short; its plan of work is written anew."""

    def change(folder: Path) -> None:
        path = folder / "work.json"
        work = json.loads(path.read_text())
        work["timing"] |= {"warmup_s": 0.01, "seconds": 0.02, "queries": 4, "rounds": 2}
        work["trtexec_samples"] = 3
        path.write_text(json.dumps(work))

    return change
