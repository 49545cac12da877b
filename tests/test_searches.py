"""The verbs tune and compare: what they print, and what they say of what is not there."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgetune import cli
from edgetune.errors import ArtifactError, ConfigError, EdgetuneError
from edgetune.progress import Silent
from edgetune.steps import compare_runs, finetune_alone

PLAIN = {"NO_COLOR": "1", "COLUMNS": "200", "TERM": "dumb"}
RECIPE = """\
schema_version: 1
name: colours
data: {path: images, min_images: 2}
model: {name: mobilenet_v2_035_cifar10, weights: none}
finetune: {strategy: full, epochs: 1, batch: 16, seed: %d}
tune:
  space: {finetune.learning_rate: [0.001, 0.01]}
"""


@pytest.fixture
def run(class_folders: Path) -> Callable[[int], Path]:
    """Trains with a seed; returns the run's folder."""

    def make(seed: int) -> Path:
        recipe = class_folders.parent / f"recipe-{seed}.yaml"
        recipe.write_text(RECIPE % seed)
        folder = class_folders.parent / f"run-{seed}"
        finetune_alone(recipe, folder / "checkpoint", "cpu", Silent())
        return folder

    return make


def test_compare_draws_a_page_and_prints_a_table(run: Callable[[int], Path], tmp_path: Path) -> None:
    folders = [str(run(0)), str(run(1) / "checkpoint")]
    out = tmp_path / "compared"
    shown = CliRunner(env=PLAIN).invoke(cli.app, ["compare", *folders, "-o", str(out), "-q"])
    assert shown.exit_code == 0, shown.output
    assert "from scratch" in shown.stdout
    assert f"report: {out / 'compare.html'}" in shown.stdout
    assert "Against epochs" in (out / "compare.html").read_text()
    listed = CliRunner(env=PLAIN).invoke(cli.app, ["compare", *folders, "-o", str(out), "-q", "--json"])
    found = json.loads(listed.stdout)
    assert [group["seeds"] for group in found["groups"]] == [[0, 1]]
    assert found["groups"][0]["curve"][0]["low"] is not None
    written = json.loads((out / "compare.json").read_text())
    assert written["groups"] == found["groups"]
    assert len(list((out / "answers").iterdir())) == 2


def refusal(kind: type[EdgetuneError], message: str, runs: list[Path], out: Path) -> str:
    with pytest.raises(kind, match=message) as caught:
        compare_runs(runs, out, None, "", Silent())
    return caught.value.hint


def test_what_is_no_finished_run_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "compared"
    assert "edgetune run RECIPE" in refusal(ArtifactError, "no run with a checkpoint", [tmp_path / "no"], out)
    (tmp_path / "begun" / "checkpoint.partial").mkdir(parents=True)
    hint = refusal(ArtifactError, r"begun: not finished \(checkpoint\.partial\)", [tmp_path / "begun"], out)
    assert "goes on" in hint


def test_a_run_named_twice_is_refused(run: Callable[[int], Path], tmp_path: Path) -> None:
    folder = run(0)
    refusal(ConfigError, "named twice", [folder, folder / "checkpoint"], tmp_path / "compared")


def test_images_that_changed_are_refused(
    run: Callable[[int], Path], class_folders: Path, tmp_path: Path
) -> None:
    folder = run(0)
    for image in class_folders.glob("red/*.png"):
        image.unlink()
    hint = refusal(ConfigError, "12 images are gone or changed", [folder], tmp_path / "compared")
    assert "--data" in hint


@pytest.mark.slow
def test_tune_prints_the_best_and_what_to_do_next(class_folders: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE % 0)
    arguments = ["tune", str(recipe), "--trials", "1", "-o", str(tmp_path / "study"), "-q"]
    shown = CliRunner(env=PLAIN).invoke(cli.app, [*arguments, "--accelerator", "cpu"])
    assert shown.exit_code == 0, shown.output
    assert f"next: edgetune run {tmp_path / 'study' / 'best.yaml'}" in shown.stdout
    assert "looked at once, for this trial" in shown.stdout
    listed = CliRunner(env=PLAIN).invoke(cli.app, [*arguments, "--json"])
    assert json.loads(listed.stdout)["winner"]["number"] == 0
    assert CliRunner(env=PLAIN).invoke(cli.app, ["tune", str(recipe), "--trials", "0"]).exit_code == 2
