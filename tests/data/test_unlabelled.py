"""Any folder of images calibrates: flat, nested, in classes, in splits."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgetune.data.calibration import choose_samples
from edgetune.data.unlabelled import gather, held_out
from edgetune.errors import ConfigError


class Said:
    """Keeps what progress is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def begin(self, what: str, total: int, unit: str = "image") -> None: ...
    def advance(self, count: int = 1, **shown: float) -> None: ...
    def end(self) -> None: ...
    def line(self, text: str) -> None:
        self.lines.append(text)


def images(root: Path, *names: str) -> Path:
    for index, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6, 6, 3), index, np.uint8)).save(root / name)
    return root


def paths(data: object, split: str = "train") -> list[str]:
    return [sample.path for sample in data.splits[split]]  # type: ignore[attr-defined]


def test_a_flat_folder_has_no_classes(tmp_path: Path) -> None:
    found = gather(images(tmp_path, "b.png", "a.JPG", "c.bmp"))
    assert found.classes == ()
    assert paths(found) == ["a.JPG", "b.png", "c.bmp"]
    assert len({sample.sha256 for sample in found.splits["train"]}) == 3


def test_loose_images_beside_folders_make_one_heap(tmp_path: Path) -> None:
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    images(tmp_path, "a.png", "deep/er/b.png", ".hidden/c.png")
    found = gather(tmp_path)
    assert found.classes == ()
    assert paths(found) == ["a.png", "deep/er/b.png"]


def test_class_folders_are_classes_and_one_folder_is_none(tmp_path: Path) -> None:
    found = gather(images(tmp_path / "two", "cat/a.png", "dog/x/b.png", "cat/c.png"))
    assert found.classes == ("cat", "dog")
    assert [(sample.path, sample.label) for sample in found.splits["train"]] == [
        ("cat/a.png", 0),
        ("cat/c.png", 0),
        ("dog/x/b.png", 1),
    ]
    assert gather(images(tmp_path / "one", "only/a.png", "only/b.png")).classes == ()


def test_splits_are_taken_as_they_are_with_classes_or_without(tmp_path: Path) -> None:
    named = gather(images(tmp_path / "a", "train/cat/1.png", "train/dog/2.png", "val/cat/3.png"))
    assert (named.classes, paths(named, "val")) == (("cat", "dog"), ["val/cat/3.png"])
    bare = gather(images(tmp_path / "b", "train/1.png", "train/2.png", "test/3.png"))
    assert (bare.classes, paths(bare), paths(bare, "test")) == (
        (),
        ["train/1.png", "train/2.png"],
        ["test/3.png"],
    )


def test_val_without_train_is_all_there_is(tmp_path: Path) -> None:
    found = gather(images(tmp_path, "val/cat/1.png", "test/2.png"))
    assert sorted(paths(found)) == ["test/2.png", "val/cat/1.png"]


def test_a_folder_without_images_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x")
    for name, message in (
        ("empty", "empty: no image in this folder or below$"),
        ("texts", "holds 1 other file"),
        ("none", "none: no such folder"),
    ):
        with pytest.raises(ConfigError, match=message):
            gather(tmp_path / name)
    file = images(tmp_path, "a.png") / "a.png"
    with pytest.raises(ConfigError, match=r"a\.png: is a file"):
        gather(file)


def test_unreadable_images_are_left_out_and_named(tmp_path: Path) -> None:
    images(tmp_path, "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    found = gather(tmp_path)
    assert paths(found) == ["a.png"]
    assert "1 unreadable" in found.warnings[0]
    assert "b.png" in found.warnings[0]
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"none of its images can be read: a\.png"):
        gather(tmp_path)


def test_of_very_many_images_a_part_of_each_class_is_looked_at(tmp_path: Path) -> None:
    images(tmp_path, *[f"{name}/{i}.png" for name in ("a", "b", "c") for i in range(8)], "d/0.png")
    said = Said()
    found = gather(tmp_path, said, most=9)
    counts = [sum(s.label == label for s in found.splits["train"]) for label in range(4)]
    assert sorted(counts) == [1, 2, 3, 3]
    assert counts[3] == 1
    assert "25 images; 9 of them" in said.lines[0]
    again = gather(tmp_path, most=9)
    assert paths(again) == paths(found)
    assert len(gather(tmp_path, most=0).splits["train"]) == 25


def test_held_out_images_never_calibrated(tmp_path: Path) -> None:
    images(tmp_path, *[f"{i}.png" for i in range(9)])
    twin = (tmp_path / "0.png").read_bytes()
    (tmp_path / "twin.png").write_bytes(twin)
    data = gather(tmp_path)
    used = choose_samples(data, 4, "random", 0)
    rest = held_out(data, used, 100, 0)
    assert not {s.sha256 for s in used} & {s.sha256 for s in rest}
    assert len(rest) == 5, "of ten files two are equal"
    assert held_out(data, used, 3, 0) == rest[:3]
    assert held_out(data, data.splits["train"], 100, 0) == ()


def test_a_split_judges_before_what_is_left_of_train(tmp_path: Path) -> None:
    data = gather(images(tmp_path, "train/1.png", "train/2.png", "test/3.png"))
    rest = held_out(data, data.splits["train"][:1], 100, 0)
    assert [sample.path for sample in rest] == ["test/3.png"]
