"""A bundle worked off on this machine: with a stand-in trtexec on PATH, and with nothing."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import standin

from edgetune.device import local
from edgetune.errors import ArtifactError, MissingTool
from edgetune.progress import Silent

Make = Callable[..., Path]


class Lines(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def line(self, text: str) -> None:
        self.said.append(text)


def test_it_is_worked_off_where_a_tool_is(
    bundled: Make, quick: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, progress = bundled(), Lines()
    quick(folder)
    standin("standin_trtexec").install(tmp_path / "bin", "10.3.0")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    local.run(folder, ["--only", "build"], progress)
    result = json.loads((folder / "results/result.json").read_text())
    assert (result["finished"], set(result["engines"])) == (True, {"fp16", "int8"})
    assert any(line.startswith("build-int8") for line in progress.said)


def test_without_a_tool_it_says_where_else(bundled: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    folder, progress = bundled(), Lines()
    with pytest.raises(MissingTool, match="neither TensorRT's Python bindings nor trtexec") as caught:
        local.run(folder, ["--only", "build"], progress)
    assert "--on ssh://" in caught.value.hint
    assert not any("neither" in line for line in progress.said), "told once"


def test_a_damaged_bundle_is_not_touched(bundled: Make) -> None:
    folder = bundled()
    (folder / "int8.onnx").write_bytes(b"cut")
    with pytest.raises(ArtifactError, match=r"int8\.onnx: not the file that was bundled"):
        local.run(folder, [], Silent())
    assert not (folder / "results/result.json").exists()
