"""The first run's digits and recipe."""

from pathlib import Path

import pytest
from PIL import Image

from edgetune.data.folders import scan
from edgetune.errors import StageError
from edgetune.stages.quickstart import quickstart_recipe, write_digits


def test_the_digits_are_all_there(tmp_path: Path) -> None:
    assert write_digits(tmp_path) == 1797
    files = sorted(tmp_path.glob("*/*.png"))
    assert len(files) == 1797
    with Image.open(files[0]) as image:
        assert (image.mode, image.size) == ("L", (8, 8))
        assert image.getextrema()[1] >= 200, "the full range of gray is used"


def test_a_second_call_touches_nothing(tmp_path: Path) -> None:
    quickstart_recipe(tmp_path)
    (tmp_path / "recipe.yaml").write_text(
        (tmp_path / "recipe.yaml").read_text().replace("seed: 0", "seed: 0")
    )
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    quickstart_recipe(tmp_path)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before


def test_the_recipe_finds_the_digits(tmp_path: Path) -> None:
    recipe = quickstart_recipe(tmp_path)
    found = scan(recipe.data, recipe.resolve(recipe.data.path))
    assert found.gray
    assert len(found.classes) == 10
    assert 350 <= len(found.splits["test"]) <= 370
    assert recipe.finetune.scratch_baseline


def test_a_folder_that_cannot_be_written_is_named() -> None:
    with pytest.raises(StageError, match="/proc"):
        quickstart_recipe(Path("/proc/edgetune"))
