"""Calibration sets: every preset is whole, the choice is stable, and a pinned set is found again."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from edgetune.data import calibration
from edgetune.data.calibration import (
    CHOICES,
    choose_samples,
    folder,
    load_manifest,
    load_preset,
    presets,
    save_manifest,
)
from edgetune.data.folders import Dataset, Sample, scan
from edgetune.errors import ArtifactError, ConfigError
from edgetune.recipe import DataSection, QuantizeSection

SECTION = DataSection(path="images", min_images=2)


@pytest.fixture
def dataset(class_folders: Path) -> Dataset:
    return scan(SECTION, class_folders)


def test_there_are_presets_and_the_default_is_one() -> None:
    assert len(presets()) >= 3
    assert QuantizeSection().preset in presets()


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_whole(name: str) -> None:
    preset = load_preset(name)
    assert preset.name == name
    assert preset.choose in CHOICES
    row = f"| {name} | {preset.images} | {preset.choose} | {preset.ranges} |"
    assert row in (folder() / "README.md").read_text(), "the table in calibration/README.md is current"


def test_an_unknown_preset_is_answered_with_the_known() -> None:
    with pytest.raises(ConfigError, match="standart") as caught:
        load_preset("standart")
    assert "standard" in caught.value.hint


@pytest.mark.parametrize("choose", ["balanced", "diverse"])
def test_as_many_of_each_class_are_taken(dataset: Dataset, choose: str) -> None:
    chosen = choose_samples(dataset, 9, choose, 0)
    assert Counter(sample.label for sample in chosen) == {0: 3, 1: 3, 2: 3}
    assert set(chosen) <= set(dataset.splits["train"])


@pytest.mark.parametrize("choose", sorted(CHOICES))
def test_a_choice_is_stable_and_grows(dataset: Dataset, choose: str) -> None:
    few, many = choose_samples(dataset, 5, choose, 0), choose_samples(dataset, 12, choose, 0)
    assert many[:5] == few
    assert choose_samples(dataset, 5, choose, 1) != few
    assert len(choose_samples(dataset, 10_000, choose, 0)) == len(dataset.splits["train"])


def test_an_image_of_one_class_changes_no_other_choice(dataset: Dataset, class_folders: Path) -> None:
    before = choose_samples(dataset, 9, "balanced", 0)
    Image.new("RGB", (20, 20), (1, 2, 3)).save(class_folders / "red" / "new.png")
    after = choose_samples(scan(SECTION, class_folders), 9, "balanced", 0)
    assert [s.sha256 for s in before if s.label == 0] == [s.sha256 for s in after if s.label == 0]


def many_classes(root: Path, classes: int, colours: list[tuple[int, int, int]]) -> Dataset:
    """A data set of flat images, the i-th of class `i % classes`."""
    samples = []
    for index, colour in enumerate(colours):
        path = root / f"{index:03d}.png"
        Image.new("RGB", (20, 20), colour).save(path)
        content = f"{index:064x}"
        samples.append(Sample(path.name, index % classes, content, path.stat().st_size, 0))
    names = tuple(f"class {index}" for index in range(classes))
    return Dataset(root, names, {"train": tuple(samples), "val": (), "test": ()})


def test_where_classes_are_more_than_images_any_of_them_may_be_taken(tmp_path: Path) -> None:
    wide = many_classes(tmp_path, 40, [(index, 0, 0) for index in range(80)])
    labels = [sample.label for sample in choose_samples(wide, 10, "balanced", 0)]
    assert len(set(labels)) == 10
    assert max(labels) >= 20
    assert labels != [sample.label for sample in choose_samples(wide, 10, "balanced", 1)]


def test_diverse_takes_what_is_unlike_the_others_first(tmp_path: Path) -> None:
    colours = [(200 + index % 9, index % 7, 0) for index in range(30)]
    odd = {4: (0, 0, 255), 17: (0, 255, 0), 23: (255, 255, 255)}
    pool = many_classes(tmp_path, 1, [odd.get(index, colour) for index, colour in enumerate(colours)])
    for seed in range(3):
        chosen = {int(sample.path[:3]) for sample in choose_samples(pool, 4, "diverse", seed)}
        assert set(odd) <= chosen


def test_diverse_looks_at_no_more_images_than_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = many_classes(tmp_path, 3, [(index, 0, 0) for index in range(30)])
    monkeypatch.setattr(calibration, "LOOKED_AT", 12)
    looked_at = []
    thumbnail = calibration._thumbnail
    monkeypatch.setattr(calibration, "_thumbnail", lambda path: (looked_at.append(path), thumbnail(path))[1])
    assert len(choose_samples(pool, 9, "diverse", 0)) == 9
    assert len(looked_at) == 12
    assert len(choose_samples(pool, 20, "diverse", 0)) == 20


def test_a_pinned_set_is_found_again_also_where_files_moved(
    dataset: Dataset, class_folders: Path, tmp_path: Path
) -> None:
    chosen = choose_samples(dataset, 6, "balanced", 0)
    save_manifest(chosen, dataset, tmp_path / "calibration.json")
    assert load_manifest(tmp_path / "calibration.json", dataset) == chosen
    first = class_folders / chosen[0].path
    first.rename(first.with_name("moved.png"))
    again = load_manifest(tmp_path / "calibration.json", scan(SECTION, class_folders))
    assert [s.sha256 for s in again] == [s.sha256 for s in chosen]


def test_missing_changed_and_judging_images_are_named(
    dataset: Dataset, class_folders: Path, tmp_path: Path
) -> None:
    chosen = choose_samples(dataset, 6, "balanced", 0)
    pinned = [*chosen, dataset.splits["test"][0]]
    save_manifest(pinned, dataset, tmp_path / "calibration.json")
    (class_folders / chosen[0].path).unlink()
    Image.new("RGB", (20, 20), (5, 5, 5)).save(class_folders / chosen[1].path)
    # A manifest pins contents; the cut is the old one, as in a run that goes on.
    rest = tuple(s for s in dataset.splits["train"] if s not in chosen[:2])
    now = Dataset(dataset.root, dataset.classes, dataset.splits | {"train": rest})
    with pytest.raises(ArtifactError, match="3 of 7 calibration images") as caught:
        load_manifest(tmp_path / "calibration.json", now)
    assert f"{chosen[0].path} (missing)" in caught.value.message
    assert f"{chosen[1].path} (changed)" in caught.value.message
    assert "(in the test split" in caught.value.message


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"schema_version": 1, "classes": [], "samples": []}',
        '{"schema_version": 1, "classes": [], "samples": [{"path": "a", "sha256": "short"}]}',
        '{"schema_version": 2, "classes": [], "samples": [{"path": "a", "sha256": "%s"}]}' % ("0" * 64),
    ],
)
def test_something_else_is_no_manifest(dataset: Dataset, tmp_path: Path, content: str) -> None:
    (tmp_path / "calibration.json").write_text(content)
    with pytest.raises(ArtifactError, match="not a calibration manifest"):
        load_manifest(tmp_path / "calibration.json", dataset)


def test_a_path_that_leads_out_is_never_opened(dataset: Dataset, class_folders: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    shutil.copy(secret, class_folders / "x")
    content = {"schema_version": 1, "classes": [], "samples": [{"path": "../secret", "sha256": "0" * 64}]}
    (tmp_path / "calibration.json").write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match="leads out"):
        load_manifest(tmp_path / "calibration.json", dataset)


def test_images_that_changed_since_the_scan_are_noticed_and_touched_ones_are_not(
    dataset: Dataset, class_folders: Path, tmp_path: Path
) -> None:
    chosen = choose_samples(dataset, 12, "balanced", 0)
    save_manifest(chosen, dataset, tmp_path / "calibration.json")
    (class_folders / chosen[0].path).touch()
    assert load_manifest(tmp_path / "calibration.json", dataset) == chosen
    for sample in chosen[1:9]:
        (class_folders / sample.path).unlink()
    Image.new("RGB", (20, 20), (5, 5, 5)).save(class_folders / chosen[9].path)
    with pytest.raises(ArtifactError, match="9 of 12 calibration images") as caught:
        load_manifest(tmp_path / "calibration.json", dataset)
    for sample in chosen[1:9]:
        assert f"{sample.path} (missing)" in caught.value.message
    assert f"{chosen[9].path} (changed)" in caught.value.message


@pytest.mark.parametrize("choose", sorted(CHOICES))
def test_no_content_is_chosen_twice(class_folders: Path, choose: str) -> None:
    for index in range(12):
        shutil.copy(class_folders / "red" / f"{index:02d}.png", class_folders / "red" / f"copy{index}.png")
    chosen = choose_samples(scan(SECTION, class_folders), 1000, choose, 0)
    assert len({sample.sha256 for sample in chosen}) == len(chosen) > 20


def test_names_and_their_order_do_not_decide(class_folders: Path) -> None:
    before = choose_samples(scan(SECTION, class_folders), 7, "balanced", 3)
    for file in sorted((class_folders / "green").iterdir()):
        file.rename(file.with_name(f"x{99 - int(file.stem)}.png"))
    after = choose_samples(scan(SECTION, class_folders), 7, "balanced", 3)
    assert [sample.sha256 for sample in after] == [sample.sha256 for sample in before]
