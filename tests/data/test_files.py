"""What counts as a split, a class and an image; links, odd names and threads."""

import os
import threading
from pathlib import Path

import pytest
from PIL import Image

from edgetune.data import files
from edgetune.data.files import SPLIT_NAMES, examine, list_images
from edgetune.errors import ConfigError
from edgetune.progress import Silent


def put(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(root / path, "PNG")
    return root


def listed(root: Path) -> dict[str, list[tuple[str, str]]]:
    return {
        split: [(image.name, image.path) for image in images]
        for split, images in list_images(root).files.items()
    }


@pytest.mark.parametrize("name", sorted(SPLIT_NAMES))
def test_split_folders_are_known_by_many_names(tmp_path: Path, name: str) -> None:
    root = put(tmp_path, "Train/a/1.png", "Train/b/1.png", f"{name.upper()}/a/2.png")
    found = listed(root)
    if SPLIT_NAMES[name] == "train":
        assert len(found[""]) == 3
    else:
        assert found[SPLIT_NAMES[name]] == [("a", f"{name.upper()}/a/2.png")]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    root = put(tmp_path, "bus/1.png", "car/1.png", "train/1.png", "test/1.png")
    assert [name for name, _ in listed(root)[""]] == ["bus", "car", "test", "train"]


def test_classes_may_have_subfolders(tmp_path: Path) -> None:
    root = put(tmp_path, "cat/indoor/1.png", "cat/outdoor/deep/2.png", "dog/3.png")
    assert listed(root)[""] == [
        ("cat", "cat/indoor/1.png"),
        ("cat", "cat/outdoor/deep/2.png"),
        ("dog", "dog/3.png"),
    ]


def test_a_held_out_folder_without_classes_is_named_and_not_used(tmp_path: Path) -> None:
    root = put(tmp_path, "train/a/1.png", "train/b/1.png", "test/unlabelled.png", "annotations/x.png")
    (root / "val" / "a").mkdir(parents=True)
    found = list_images(root)
    assert set(found.files) == {""}
    assert found.classes == ("a", "b")
    assert set(found.unused) == {"test/", "annotations/", "val/a/"}


@pytest.mark.parametrize(
    "paths",
    [
        ("train/1.png", "val/2.png"),
        ("val/a/1.png", "val/b/1.png", "test/a/1.png"),
        ("testing/a/1.png", "validation/b/1.png"),
    ],
)
def test_splits_that_make_no_sense_are_refused(tmp_path: Path, paths: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="no train/ with class folders") as caught:
        list_images(put(tmp_path, *paths))
    assert "per class" in caught.value.hint


def test_endings_count_in_any_case_and_hidden_files_do_not(tmp_path: Path) -> None:
    names = ["a.JPG", "b.Jpeg", "c.png", "d.BMP", "e.webp", "f.TIF", "g.tiff", ".h.png", "i.txt", "j"]
    root = put(tmp_path, *(f"x/{name}" for name in names), ".git/y/1.png", "x/.thumbs/2.png")
    found = list_images(root)
    assert [Path(path).stem for _, path in listed(root)[""]] == list("abcdefg")
    assert found.others == 2


def test_empty_class_folders_are_named(tmp_path: Path) -> None:
    root = put(tmp_path, "a/1.png", "b/1.png")
    (root / "c").mkdir()
    assert list_images(root).unused == ["c/"]


def test_links_lead_to_files_and_folders_but_not_back_up(tmp_path: Path) -> None:
    root = put(tmp_path / "root", "a/1.png", "b/1.png")
    elsewhere = put(tmp_path / "elsewhere", "2.png", "more/3.png")
    (root / "a" / "file.png").symlink_to(elsewhere / "2.png")
    (root / "a" / "folder").symlink_to(elsewhere / "more")
    (root / "c").symlink_to(elsewhere)
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "self").symlink_to("self")
    (root / "a" / "twice").symlink_to(root / "a" / "folder")
    found = listed(root)[""]
    assert [path for name, path in found if name == "a"] == ["a/1.png", "a/file.png", "a/folder/3.png"]
    assert [path for name, path in found if name == "c"] == ["c/2.png", "c/more/3.png"]


def test_a_pipe_with_the_name_of_an_image_does_not_hang(tmp_path: Path) -> None:
    root = put(tmp_path, "a/1.png", "b/1.png")
    os.mkfifo(root / "a" / "pipe.png")
    (root / "a" / "folder.png").mkdir()
    (verdict,) = [v for _, v in examine(list_images(root), {}, Silent())[""] if v.reason]
    assert (verdict.path, verdict.reason) == ("a/pipe.png", "not a file")


def test_a_class_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png")
    os.mkdir(os.fsencode(tmp_path) + b"/\xff")  # noqa: PTH102
    with pytest.raises(ConfigError, match=r"class name \\udcff is not UTF-8"):
        list_images(tmp_path)


def test_an_interrupt_waits_for_no_other_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = put(tmp_path, *(f"a/{index:03d}.png" for index in range(200)))
    looked, real = [], files._read
    stopped = threading.Event()

    class Impatient(Silent):
        def advance(self, count: int = 1, **shown: float) -> None:
            stopped.set()
            raise KeyboardInterrupt

    def read(image: files.ImageFile) -> files.Verdict:
        looked.append(image)
        if len(looked) > 1:
            stopped.wait(10)
        return real(image)

    monkeypatch.setattr(files, "_read", read)
    with pytest.raises(KeyboardInterrupt):
        examine(list_images(root), {}, Impatient())
    assert len(looked) < 200
