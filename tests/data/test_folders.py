"""Reading a folder: what is found, what is refused, and what a second look costs."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest
from PIL import Image

from edgetune.data import files
from edgetune.data.folders import Dataset, load_dataset, save_dataset, scan
from edgetune.errors import ArtifactError, ConfigError
from edgetune.progress import Silent
from edgetune.recipe import DataSection

SECTION = DataSection(path="images", min_images=2, broken_share=0.1)


def look(root: Path, known: Path | None = None, **changes: object) -> Dataset:
    return scan(SECTION.model_copy(update=changes), root, known)


def paths(dataset: Dataset, split: str) -> set[str]:
    return {sample.path for sample in dataset.splits[split]}


def test_class_folders_are_cut_in_three(class_folders: Path) -> None:
    found = look(class_folders)
    assert found.classes == ("blue", "green", "red")
    assert {split: len(samples) for split, samples in found.splits.items()} == {
        "train": 24,
        "val": 6,
        "test": 6,
    }
    assert not paths(found, "train") & paths(found, "test")
    assert not found.gray
    assert found.warnings == ()


@pytest.mark.parametrize("held_out", ["val", "test", "valid", "validation"])
def test_the_users_held_out_folder_judges(class_folders: Path, tmp_path: Path, held_out: str) -> None:
    root = tmp_path / "own"
    shutil.copytree(class_folders, root / "train")
    for name in ("blue", "green", "red"):
        (root / held_out / name).mkdir(parents=True)
        (root / "train" / name / "00.png").rename(root / held_out / name / "00.png")
    found = look(root)
    assert paths(found, "test") == {f"{held_out}/{name}/00.png" for name in ("blue", "green", "red")}
    assert found.splits["val"]
    assert all(path.startswith("train/") for path in paths(found, "val") | paths(found, "train"))


def test_with_both_each_is_itself(class_folders: Path, tmp_path: Path) -> None:
    root = tmp_path / "own"
    shutil.copytree(class_folders, root / "train")
    for split, number in (("val", "01"), ("test", "02")):
        for name in ("blue", "green", "red"):
            (root / split / name).mkdir(parents=True)
            (root / "train" / name / f"{number}.png").rename(root / split / name / f"{number}.png")
    found = look(root)
    assert {split: len(samples) for split, samples in found.splits.items()} == {
        "train": 30,
        "val": 3,
        "test": 3,
    }
    assert all(path.startswith("val/") for path in paths(found, "val"))


def test_a_train_folder_alone_is_cut(class_folders: Path, tmp_path: Path) -> None:
    shutil.copytree(class_folders, tmp_path / "own" / "train")
    found = look(tmp_path / "own")
    assert found.classes == ("blue", "green", "red")
    assert all(found.splits[split] for split in ("train", "val", "test"))


def test_the_cut_and_the_digest_do_not_depend_on_names_or_place(class_folders: Path, tmp_path: Path) -> None:
    before = look(class_folders)
    moved = tmp_path / "elsewhere"
    shutil.copytree(class_folders, moved)
    assert look(moved).digest == before.digest
    names = sorted(p for p in (moved / "red").iterdir())
    random.Random(0).shuffle(names)
    for index, path in enumerate(names):
        path.rename(path.with_name(f"renamed{index}.png"))
    hashes = {sample.sha256 for sample in look(moved).splits["test"]}
    assert hashes == {sample.sha256 for sample in before.splits["test"]}


def test_another_seed_cuts_otherwise(class_folders: Path) -> None:
    assert paths(look(class_folders), "test") != paths(look(class_folders, seed=1), "test")


def test_broken_files_are_named_and_left_out(class_folders: Path) -> None:
    (class_folders / "red" / "empty.png").write_bytes(b"")
    (class_folders / "red" / "text.jpg").write_text("hello")
    found = look(class_folders)
    assert {path for path, _ in found.broken} == {"red/empty.png", "red/text.jpg"}
    assert dict(found.broken)["red/empty.png"] == "empty file"
    assert any("2 unreadable" in warning and "red/empty.png" in warning for warning in found.warnings)
    assert not any("empty" in path for split in found.splits for path in paths(found, split))


def test_a_truncated_image_is_broken(class_folders: Path) -> None:
    victim = class_folders / "red" / "00.png"
    victim.write_bytes(victim.read_bytes()[:-600])
    assert [path for path, _ in look(class_folders).broken] == ["red/00.png"]


def test_a_small_folder_bears_two_broken_files(class_folders: Path) -> None:
    for index in range(2):
        (class_folders / "red" / f"bad{index}.png").write_bytes(b"x")
    assert len(look(class_folders, broken_share=0.0).broken) == 2
    (class_folders / "red" / "bad2.png").write_bytes(b"x")
    with pytest.raises(ConfigError, match="3 of 39 images"):
        look(class_folders, broken_share=0.02)
    assert len(look(class_folders, broken_share=0.08).broken) == 3, "a larger share still counts"


def test_too_many_broken_files_stop_it(class_folders: Path) -> None:
    for index in range(6):
        (class_folders / "red" / f"bad{index}.png").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"6 of 42 images \(14.3%\) cannot be read: red/bad0.png") as caught:
        look(class_folders)
    assert "data.broken_share" in caught.value.hint


def test_duplicates_across_splits_are_named(class_folders: Path, tmp_path: Path) -> None:
    root = tmp_path / "own"
    shutil.copytree(class_folders, root / "train")
    for name in ("blue", "green", "red"):
        (root / "test" / name).mkdir(parents=True)
        shutil.copy(root / "train" / name / "03.png", root / "test" / name / "leak.png")
    found = look(root)
    assert ("test/red/leak.png", "train/red/03.png") in found.duplicates
    assert any("3 images are in more than one split" in warning for warning in found.warnings)


def test_one_content_under_two_classes_is_named(class_folders: Path) -> None:
    shutil.copy(class_folders / "red" / "00.png", class_folders / "blue" / "wrong.png")
    found = look(class_folders)
    assert "1 images are in more than one class: blue/wrong.png = red/00.png" in found.warnings
    assert {"blue/wrong.png", "red/00.png"} <= paths(found, "train"), "what is contradictory judges nothing"
    assert found.duplicates == ()


def test_our_cut_separates_no_duplicates(class_folders: Path) -> None:
    for index in range(12):
        shutil.copy(class_folders / "red" / f"{index:02d}.png", class_folders / "red" / f"copy{index}.png")
    assert look(class_folders).duplicates == ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "no such folder"),
        (lambda root: root.write_text("x"), "is a file"),
        (lambda root: root.mkdir(), "no image"),
        (lambda root: (root / "a").mkdir(parents=True), "no image"),
        (lambda root: fill(root, {"a": 9}), "one class only"),
        (
            lambda root: fill(root, {"a": 9, "b": 1}),
            r"2 images of each class are needed for training; fewer are there of: 'b' \(1\)",
        ),
        (
            lambda root: fill(root, {"train/a": 9, "train/b": 9, "test/a": 2, "test/c": 2}),
            r"no training image of: 'c' \(test/c/0",
        ),
    ],
)
def test_a_folder_that_cannot_be_learned_from(tmp_path: Path, make: object, message: str) -> None:
    make(tmp_path / "root")  # type: ignore[operator]
    with pytest.raises(ConfigError, match=message) as caught:
        look(tmp_path / "root")
    assert caught.value.hint


def fill(root: Path, counts: dict[str, int]) -> None:
    shade = 0
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            shade += 1
            Image.new("L", (8, 8), shade).save(root / name / f"{index}.png")


def test_an_unreadable_folder_is_a_config_error(class_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def refuse(path: object) -> object:
        if str(path).endswith("red"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ConfigError, match=r"red: Permission denied"):
        look(class_folders)


def test_gray_images_lopsided_classes_and_strangers_are_noticed(tmp_path: Path) -> None:
    fill(tmp_path / "root", {"a": 60, "b": 5})
    (tmp_path / "root" / "a" / "notes.txt").write_text("x")
    (tmp_path / "root" / "a" / ".hidden.png").write_bytes(b"x")
    found = look(tmp_path / "root")
    assert found.gray
    assert any("'a' has" in warning and "class_weights" in warning for warning in found.warnings)
    assert any("1 files are not images" in warning for warning in found.warnings)


def test_odd_names_and_loops_of_links_do_not_stop_it(class_folders: Path) -> None:
    image = (class_folders / "red" / "00.png").read_bytes()
    odd = class_folders / "red" / "naïve\n日本 (1).PNG"
    Image.new("RGB", (9, 9), (1, 2, 3)).save(odd, format="PNG")
    (class_folders / "red" / "loop").symlink_to(class_folders / "red")
    os.link(class_folders / "red" / "01.png", class_folders / "red" / "linked.png")
    (class_folders / "red" / "dangling.png").symlink_to("nowhere.png")
    not_utf8 = os.fsencode(class_folders / "red") + b"/\xff.png"
    with open(not_utf8, "wb") as file:  # noqa: PTH123
        file.write(image)
    found = look(class_folders)
    assert any(odd.name in path for split in found.splits for path in paths(found, split))
    reasons = dict(found.broken)
    assert reasons["red/dangling.png"] == "No such file or directory"
    assert reasons["red/\\udcff.png"] == "its name is not UTF-8"
    save_dataset(found, class_folders.parent / "data.json")


def test_a_second_look_reads_only_what_changed(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = look(class_folders)
    save_dataset(first, tmp_path / "data.json")
    Image.new("RGB", (40, 40), (9, 9, 9)).save(class_folders / "red" / "05.png")
    (class_folders / "red" / "broken.png").write_bytes(b"x")
    save_dataset(look(class_folders), tmp_path / "data.json")
    os.utime(class_folders / "red" / "06.png")
    opened = []
    real = files._read
    monkeypatch.setattr(files, "_read", lambda image: opened.append(image.path) or real(image))  # type: ignore[func-returns-value]
    second = look(class_folders, tmp_path / "data.json")
    assert opened == ["red/06.png"]
    assert [path for path, _ in second.broken] == ["red/broken.png"]
    assert second.digest != first.digest
    assert look(class_folders).digest == second.digest


def test_a_manifest_comes_back_whole(class_folders: Path, tmp_path: Path) -> None:
    found = look(class_folders)
    save_dataset(found, tmp_path / "data.json")
    again = load_dataset(tmp_path / "data.json")
    assert again == found
    assert load_dataset(tmp_path / "data.json", tmp_path / "x").root == tmp_path / "x"


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "a/../../b.png"])
def test_a_manifest_that_leads_out_is_refused(class_folders: Path, tmp_path: Path, path: str) -> None:
    save_dataset(look(class_folders), tmp_path / "data.json")
    content = json.loads((tmp_path / "data.json").read_text())
    content["splits"]["train"][0]["path"] = path
    (tmp_path / "data.json").write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match="leads out"):
        load_dataset(tmp_path / "data.json")


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"schema_version": 2}', '{"schema_version": 1, "classes": 3}']
)
def test_something_else_is_no_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(ArtifactError):
        load_dataset(tmp_path / "data.json")


def test_what_is_remembered_makes_no_difference(class_folders: Path, tmp_path: Path) -> None:
    """Gray is of each image: when the only colour image goes, the rest is gray, read anew or not."""
    for name in ("blue", "green", "red"):
        for file in (class_folders / name).iterdir():
            Image.open(file).convert("L").save(file)
    Image.new("RGB", (4, 4), (9, 8, 7)).save(class_folders / "red" / "colour.png")
    save_dataset(look(class_folders), tmp_path / "data.json")
    (class_folders / "red" / "colour.png").unlink()
    again = look(class_folders, tmp_path / "data.json")
    assert again == look(class_folders)
    assert again.gray


def test_another_pillow_may_read_what_was_broken(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (class_folders / "red" / "broken.png").write_bytes(b"x")
    manifest = tmp_path / "data.json"
    save_dataset(look(class_folders), manifest)
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"pillow": "0.1"}))
    opened = []
    real = files._read
    monkeypatch.setattr(files, "_read", lambda image: opened.append(image.path) or real(image))  # type: ignore[func-returns-value]
    look(class_folders, manifest)
    assert opened == ["red/broken.png"]


@pytest.mark.parametrize(
    "change",
    [
        {"classes": ["one"]},
        {"splits": {"train": []}},
        {"stamps": [[1, 2]]},
        {"extra": 1},
        {"gray": "yes"},
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    class_folders: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    manifest = tmp_path / "data.json"
    save_dataset(look(class_folders), manifest)
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | change))
    with pytest.raises(ArtifactError) as caught:
        load_dataset(manifest)
    assert caught.value.hint
    assert look(class_folders, manifest) == look(class_folders), "as `known` it is passed over"


def test_the_same_folder_gives_the_same_manifest(class_folders: Path, tmp_path: Path) -> None:
    for name in ("1.json", "2.json"):
        save_dataset(look(class_folders), tmp_path / name)
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()


def test_the_digest_is_of_content_not_of_place_or_time(class_folders: Path, tmp_path: Path) -> None:
    before = look(class_folders)
    shutil.copytree(class_folders, tmp_path / "moved", copy_function=shutil.copyfile)
    assert look(tmp_path / "moved").digest == before.digest
    (class_folders / "red" / "00.png").rename(class_folders / "blue" / "zz.png")
    assert look(class_folders).digest != before.digest


def test_images_without_a_class_are_counted(tmp_path: Path) -> None:
    fill(tmp_path / "root", {"flat": 3})
    with pytest.raises(ConfigError, match="3 lie beside them, without a class"):
        look(tmp_path / "root" / "flat")


def test_one_folder_too_high_is_answered_with_the_way_down(class_folders: Path) -> None:
    with pytest.raises(ConfigError, match="one class only") as caught:
        look(class_folders.parent)
    assert "images holds blue, green, red" in caught.value.hint


def test_the_bar_is_ended_and_counts_what_is_read(class_folders: Path, tmp_path: Path) -> None:
    class Counting(Silent):
        def __init__(self) -> None:
            self.calls: list[object] = []

        def begin(self, what: str, total: int, unit: str = "image") -> None:
            self.calls.append(total)

        def advance(self, count: int = 1, **shown: float) -> None:
            self.calls.append(count)

        def end(self) -> None:
            self.calls.append("end")

    first, second = Counting(), Counting()
    save_dataset(scan(SECTION, class_folders, progress=first), tmp_path / "data.json")
    scan(SECTION, class_folders, tmp_path / "data.json", second)
    assert first.calls == [36, *[1] * 36, "end"]
    assert second.calls == []
