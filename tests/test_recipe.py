"""Recipes: ten lines are enough, and every mistake is answered with file, line and key."""

from pathlib import Path

import pytest

from edgetune.errors import ConfigError
from edgetune.recipe import Recipe, RecipeGates, load_recipe, recipe_from, section_from

SMALL = "schema_version: 1\ndata:\n  path: images\nmodel:\n  name: mobilenet_v2\n"


def read(tmp_path: Path, text: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return load_recipe(path)


def test_five_lines_make_a_recipe(tmp_path: Path) -> None:
    recipe = read(tmp_path, SMALL)
    assert recipe.profile == "host-cpu"
    assert recipe.gates == RecipeGates()
    assert recipe.resolve("images") == tmp_path / "images"
    assert recipe.resolve("/data") == Path("/data")


def test_a_profile_of_ones_own_lies_beside_the_recipe(tmp_path: Path) -> None:
    text = SMALL + "profile: mine.yaml:15W@6.2\n"
    assert read(tmp_path, text).profile == "mine.yaml:15W@6.2", "it may lie where the command is typed"
    (tmp_path / "mine.yaml").touch()
    assert read(tmp_path, text).profile == f"{tmp_path}/mine.yaml:15W@6.2"
    assert read(tmp_path, SMALL + "profile: jetson-tx2\n").profile == "jetson-tx2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            SMALL + "finetune:\n  epoch: 3\n",
            r"recipe.yaml:7: finetune.epoch: unknown key; did you mean 'epochs'\?",
        ),
        (
            SMALL + "finetun:\n  epochs: 3\n",
            r"recipe.yaml:6: finetun: unknown key; did you mean 'finetune'\?",
        ),
        (SMALL + "zzz: 1\n", r"recipe.yaml:6: zzz: unknown key; known here: .*bench"),
        (SMALL + "finetune:\n  epochs: many\n", r"recipe.yaml:7: finetune.epochs: input should be .*'many'"),
        (SMALL + "finetune:\n  epochs: '3'\n", r"recipe.yaml:7: finetune.epochs"),
        (SMALL + "finetune:\n  epochs: true\n", r"recipe.yaml:7: finetune.epochs"),
        (SMALL + "finetune:\n  epochs: 0\n", r"recipe.yaml:7: finetune.epochs: .*greater than or equal to 1"),
        (SMALL + "finetune:\n  strategy: ful\n", r"recipe.yaml:7: finetune.strategy: .*'full'"),
        (SMALL + "finetune:\n  augment:\n    flipp: 1\n", r"recipe.yaml:8: finetune.augment.flipp: .*'flip'"),
        (SMALL + "finetune:\n  learning_rate: .nan\n", r"recipe.yaml:7: finetune.learning_rate"),
        (SMALL + "finetune: 3\n", r"recipe.yaml:6: finetune: "),
        (SMALL + "name: ../../etc\n", r"recipe.yaml:6: name: "),
        (SMALL.replace("schema_version: 1", "schema_version: 2"), r"recipe.yaml:1: schema_version"),
        (SMALL + "distill: {}\n", r"recipe.yaml:6: distill.teacher: missing"),
        (SMALL + "distill:\n  teacher: {}\n", r"recipe.yaml:7: distill.teacher: needs a name .* or a path"),
        (
            SMALL + "distill:\n  teacher: {name: a, path: b}\n",
            r"recipe.yaml:7: distill.teacher: needs a name",
        ),
        (
            SMALL + "distill:\n  teacher:\n    path: a\n    finetune: {}\n",
            r"recipe.yaml:7: distill.teacher: finetune does not go with a path",
        ),
        (
            SMALL + "distill:\n  teacher: {name: a, preprocess: {preset: imagenet}}\n",
            r"distill.teacher: preprocess does not go with a name",
        ),
        (
            SMALL + "distill:\n  teacher: {name: a}\n  labels: 1\n",
            r"recipe.yaml:6: distill: labels: 1 leaves nothing of the teacher",
        ),
        (
            SMALL + "distill:\n  teacher: {name: a}\n  tempera: 1\n",
            r"recipe.yaml:8: distill.tempera: .*'temperature'",
        ),
        (
            SMALL + "distill:\n  teacher:\n    name: a\n    finetune: {epoch: 3}\n",
            r"recipe.yaml:9: distill.teacher.finetune.epoch: unknown key; did you mean 'epochs'",
        ),
        (SMALL + "distill:\n  teacher: {name: a}\n  loss: hard\n", r"recipe.yaml:8: distill.loss: .*'soft'"),
        ("schema_version: 1\nmodel:\n  name: x\n", r"recipe.yaml:1: data: missing"),
        ("data:\n  path: x\nmodel:\n  name: x\n", r"recipe.yaml:1: schema_version: missing"),
    ],
)
def test_a_mistake_names_file_line_and_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, text)


def test_all_mistakes_are_listed_the_first_line_first(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r":7: finetune.epochs") as caught:
        read(tmp_path, SMALL + "finetune:\n  epochs: x\n  batch: y\n")
    assert "line 8" in caught.value.hint


def test_whole_numbers_do_for_fractions(tmp_path: Path) -> None:
    assert read(tmp_path, SMALL + "gates:\n  size_mb: 8\n  top1_drop_points: null\n").gates.size_mb == 8


def test_lists_and_from_python(tmp_path: Path) -> None:
    assert read(tmp_path, SMALL + "quantize:\n  exclude: [a, b]\n").quantize.exclude == ("a", "b")
    assert recipe_from({"data": {"path": "x"}, "model": {"name": "y"}}).model.name == "y"


def test_recipe_from_reports_mistakes_as_its_own_error() -> None:
    with pytest.raises(ConfigError, match=r"model\.nam"):
        recipe_from({"data": {"path": "x"}, "model": {"nam": "y"}})


def test_options_of_the_command_line_are_checked_alike() -> None:
    with pytest.raises(ConfigError, match=r"--ranges.*'msee'"):
        section_from("quantize", {"ranges": "msee"})


def test_shipped_recipes_are_valid() -> None:
    found = sorted((Path(__file__).parents[1] / "edgetune" / "recipes").glob("*.yaml"))
    assert found
    for path in found:
        assert path.read_text().startswith("# edgetune "), "a recipe opens with the command that runs it"
        load_recipe(path)
