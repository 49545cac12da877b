"""Sets of tensors are whole or not there, and a folder of them never fills a disk."""

import fcntl
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from edgetune.progress import Progress, Silent
from edgetune.training import kept as module
from edgetune.training.features import Batch
from edgetune.training.kept import NoRoom, Put, kept

SILENT = Silent()
SHAPES = {"one": (2, 3, 4), "other": (2, 3)}


def make(folder: Path, key: str, share: float = 0.5, progress: Progress = SILENT) -> bool:
    """Ask for a set whose values are all the image's number and the view's tenth."""

    def fill(put: Put) -> None:
        for view in range(2):
            for picks in (torch.tensor([0, 1]), torch.tensor([2])):
                values = picks + view / 10
                found = {"one": values[:, None].expand(-1, 4), "other": values}
                put(view, Batch(picks, picks, picks, view + 1), found)

    found, there = kept(folder, key, SHAPES, torch.float16, share, fill, progress)
    expected = torch.arange(3) + torch.tensor([[0.0], [0.1]])
    torch.testing.assert_close(found["other"].float(), expected, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found["one"][..., 3], found["other"])
    return there


def key(number: int) -> str:
    return f"{number:064x}"[::-1]


def test_every_row_is_in_its_place_and_found_again(tmp_path: Path) -> None:
    assert not make(tmp_path / "sets", key(1))
    assert make(tmp_path / "sets", key(1))
    (file,) = (tmp_path / "sets").iterdir()
    assert load_file(file)["one"].shape == (2, 3, 4)


def test_those_that_were_used_last_are_kept(tmp_path: Path) -> None:
    for number in range(module.MOST_SETS):
        make(tmp_path, key(number))
        os.utime(tmp_path / f"{key(number)[:24]}.safetensors", (number, number))
    assert make(tmp_path, key(0)), "used again: no longer the oldest"
    (tmp_path / "mine.safetensors").write_text("somebody's")
    (tmp_path / f".{key(99)[:24]}.safetensors.partial").write_text("left by a kill")
    make(tmp_path, key(77))
    names = {path.name for path in tmp_path.iterdir()}
    wanted = [0, 77, *range(2, module.MOST_SETS)]
    assert names == {"mine.safetensors", *(f"{key(number)[:24]}.safetensors" for number in wanted)}


def test_the_oldest_make_room_before_there_is_too_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, key(1))
    size = next(tmp_path.iterdir()).stat().st_size
    usage = type("Usage", (), {"free": size})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    make(tmp_path, key(2), share=0.9)
    assert [path.stem for path in tmp_path.iterdir()] == [key(2)[:24]]
    with pytest.raises(NoRoom, match="GB that are free"):
        make(tmp_path, key(3), share=0.3)
    assert [path.stem for path in tmp_path.iterdir()] == [key(2)[:24]], "nothing goes in vain"


def test_what_is_in_use_outlives_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(put: Put) -> None:
        for view in range(2):
            picks = torch.arange(3)
            put(view, Batch(picks, picks, picks, 1), {"one": torch.ones(3, 4), "other": torch.ones(3)})

    found, _ = kept(tmp_path, key(5), SHAPES, torch.float16, 0.5, fill, Silent())
    monkeypatch.setattr(module, "MOST_SETS", 1)
    make(tmp_path, key(6))
    assert [path.stem for path in tmp_path.iterdir()] == [key(6)[:24]]
    assert found["one"].min() == 1


def test_who_waits_for_another_process_says_so(tmp_path: Path) -> None:
    class Leaving(Silent):
        """Lets go of the folder as soon as it is told that somebody waits."""

        def line(self, text: str) -> None:
            said.append(text)
            os.close(other)

    said: list[str] = []
    other = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    assert not make(tmp_path, key(1), progress=Leaving())
    assert said == [f"{tmp_path}: another edgetune computes what lies there; waiting for it"]
