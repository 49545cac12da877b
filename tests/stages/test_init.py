"""`edgetune init` writes a recipe that runs, fitted to what lies in the folder."""

from pathlib import Path

import pytest
from PIL import Image

from edgetune.errors import ConfigError
from edgetune.recipe import load_recipe
from edgetune.stages.init import _advice, init


def write(data: Path, out: Path, **options: object) -> None:
    given = {"model": "mobilenet_v2", "profile": "jetson-orin-nano-8gb"} | options
    init(data, out=out, **given)  # type: ignore[arg-type]


def test_the_recipe_can_be_read_and_finds_its_images(class_folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "elsewhere" / "recipe.yaml"
    write(class_folders, out)
    recipe = load_recipe(out)
    assert recipe.resolve(recipe.data.path).resolve() == class_folders
    assert (recipe.profile, recipe.model.name) == ("jetson-orin-nano-8gb", "mobilenet_v2")
    assert recipe.finetune.strategy == "feature-extractor", "few images"
    assert out.read_text().startswith("# edgetune run recipe.yaml")
    assert "3 classes; images: 24 train, 6 val, 6 test" in out.read_text()


def test_every_line_of_the_recipe_says_what_it_is(class_folders: Path, tmp_path: Path) -> None:
    write(class_folders, tmp_path / "recipe.yaml")
    keys = [
        line for line in (tmp_path / "recipe.yaml").read_text().splitlines() if ": " in line and "#" in line
    ]
    assert len(keys) >= 10


def test_a_recipe_that_is_there_is_not_lost(class_folders: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("mine")
    with pytest.raises(ConfigError, match="is there already"):
        write(class_folders, tmp_path / "recipe.yaml")
    assert (tmp_path / "recipe.yaml").read_text() == "mine"
    write(class_folders, tmp_path / "recipe.yaml", force=True)
    load_recipe(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"model": "mobilenet"}, "mobilenet"), ({"profile": "jetson"}, "unknown profile")],
)
def test_unknown_names_are_refused(
    class_folders: Path, tmp_path: Path, options: object, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        write(class_folders, tmp_path / "recipe.yaml", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "recipe.yaml").exists()


@pytest.mark.parametrize("name", ["my photos: 1", "it's", "#odd", "日本", "-", "007", "a\tb", "null", '"q"'])
def test_odd_folder_names_survive(tmp_path: Path, name: str) -> None:
    data = tmp_path / name
    for label in ("a", "b"):
        (data / label).mkdir(parents=True)
        for index in range(12):
            Image.new("L", (8, 8), index + (100 if label == "b" else 0)).save(data / label / f"{index}.png")
    write(data, tmp_path / "recipe.yaml")
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert recipe.resolve(recipe.data.path).resolve() == data
    assert "adapter: sum" in (tmp_path / "recipe.yaml").read_text(), "gray images"


def test_more_images_let_more_layers_learn() -> None:
    advised = [_advice("image", count).strategy for count in (20, 500, 5000)]
    assert advised == ["feature-extractor", "partial", "full"]
    assert [_advice("text", count).strategy for count in (20, 500, 5000)][1:] == ["partial", "partial"]
