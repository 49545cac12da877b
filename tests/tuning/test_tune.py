"""`edgetune tune` end to end on three colours: selection on val, one look at test, a recipe that runs."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from colours import RECIPE

from edgetune.errors import ConfigError, MissingTool, StageError
from edgetune.pipeline import preflight
from edgetune.profile import load_target
from edgetune.progress import Silent
from edgetune.recipe import load_recipe
from edgetune.tuning import trial as trials
from edgetune.tuning.tune import tune

Write = Callable[..., Path]
SMALL = "  space:\n    finetune.learning_rate: [0.003, 0.01, 0.03]\n"
ONE = RECIPE.replace("epochs: 6", "epochs: 1")


class Told(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which splits networks are asked about."""
    asked: list[str] = []
    right = trials._right

    def look(network: Any, data: Any, split: str) -> Any:
        asked.append(split)
        return right(network, data, split)

    monkeypatch.setattr(trials, "_right", look)
    return asked


def test_the_test_split_is_looked_at_once_for_the_winner(
    written: Write, tmp_path: Path, looks: list[str]
) -> None:
    path, out, told = written(SMALL, ONE), tmp_path / "study", Told()
    found = tune(path, 2, out, accelerator="cpu", progress=told)
    assert looks == ["test"]
    assert [trial["state"] for trial in found["trials"]] == ["complete", "complete"]
    winner = found["winner"]
    assert winner["val"]["top1"] == max(trial["top1"] for trial in found["trials"])
    assert winner["test"]["images"] == found["images"]["test"]
    assert winner["test"]["low"] <= winner["test"]["top1"] <= winner["test"]["high"]
    assert found["as_it_is"] == 0
    assert sum(line.startswith("trial ") for line in told.lines) == 4
    # Only the best one's network stays.
    assert [folder.name for folder in (out / "trials").iterdir()] == [f"{winner['number']:04d}"]
    assert json.loads((out / "tune.json").read_text())["winner"]["number"] == winner["number"]
    assert "edgetune run" in (out / "tune.html").read_text()

    best = load_recipe(out / "best.yaml")
    assert best.finetune.learning_rate == winner["values"]["finetune.learning_rate"]
    assert best.resolve(best.data.path).resolve() == (path.parent / "images").resolve()
    preflight(best, load_target(best.profile))

    again = tune(path, 2, out, accelerator="cpu")
    assert looks == ["test"], "what is known is not looked at again"
    assert again["trials"] == found["trials"]


@pytest.mark.slow
def test_a_search_that_goes_on_says_that_it_looked_before(
    written: Write, tmp_path: Path, looks: list[str]
) -> None:
    path, out = written(SMALL, ONE), tmp_path / "study"
    tune(path, 1, out, accelerator="cpu")
    tested = json.loads((out / "tested.json").read_text())
    (out / "tested.json").write_text(json.dumps({"77": tested["0"]}))
    found = tune(path, 1, out, accelerator="cpu")
    assert found["winner"]["looks"] == [77]
    assert "as well" in (out / "tune.html").read_text()
    assert looks == ["test", "test"]


def test_every_trial_fails(written: Write, tmp_path: Path) -> None:
    recipe = ONE.replace("learning_rate: 0.003", "learning_rate: 1.0e30\n  clip: 0.0\n  optimizer: sgd")
    path = written("  space:\n    finetune.learning_rate: [1.0e30, 2.0e30]\n", recipe)
    with pytest.raises(
        StageError, match=r"every trial failed, the first one so: .*no finite number"
    ) as caught:
        tune(path, 2, tmp_path / "study", accelerator="cpu")
    assert "tune.space" in caught.value.hint
    assert "-o" in caught.value.hint
    report = json.loads((tmp_path / "study" / "tune.json").read_text())
    assert [trial["state"] for trial in report["trials"]] == ["failed", "failed"]
    assert report["winner"] is None


def test_another_recipe_in_the_folder(written: Write, tmp_path: Path) -> None:
    tune(written(SMALL, ONE), 1, tmp_path / "study", accelerator="cpu")
    path = written(SMALL, ONE.replace("epochs: 1", "epochs: 2"))
    with pytest.raises(
        ConfigError, match=r"holds a study of something else: finetune\.epochs differ"
    ) as caught:
        tune(path, 1, tmp_path / "study", accelerator="cpu")
    assert "-o" in caught.value.hint


def test_a_choice_that_names_nothing_is_refused_before_training(written: Write, tmp_path: Path) -> None:
    path = written("  space:\n    model.name: [mobilenet_v2_035_cifar10, mobilenet_v22]\n", ONE)
    with pytest.raises(ConfigError, match=r"recipe\.yaml:\d+: tune\.space\.model\.name: mobilenet_v22: "):
        tune(path, 1, tmp_path / "study", accelerator="cpu")
    assert not (tmp_path / "study").exists()
    partial = ONE.replace("strategy: full", "strategy: full\n  stages: 40")
    path = written("  space:\n    finetune.strategy: [full, partial]\n", partial)
    with pytest.raises(ConfigError, match=r"tune\.space\.finetune\.strategy: partial: finetune\.stages: 40"):
        tune(path, 1, tmp_path / "study", accelerator="cpu")


def test_latency_is_this_machine_s(written: Write, tmp_path: Path) -> None:
    path = written(SMALL + "  objective: int8\n  latency_ms: 4\n", ONE)
    with pytest.raises(ConfigError, match=r"tune\.latency_ms is this machine's.*jetson-orin-nano-8gb"):
        tune(path, 1, tmp_path / "study", profile="jetson-orin-nano-8gb", accelerator="cpu")


def test_torchrun_is_not_how_it_is_shared(
    written: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="not started by torchrun") as caught:
        tune(written(SMALL, ONE), 1, tmp_path / "study", accelerator="cpu")
    assert "CUDA_VISIBLE_DEVICES" in caught.value.hint


def test_without_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "edgetune.tuning.study")
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingTool, match="needs Optuna") as caught:
        __import__("edgetune.tuning.study")
    assert caught.value.hint == 'pip install "edgetune[tune]"'


def test_a_winner_whose_network_is_gone_is_made_again(
    written: Write, tmp_path: Path, looks: list[str]
) -> None:
    path, out = written(SMALL, ONE), tmp_path / "study"
    found = tune(path, 1, out, accelerator="cpu")
    shutil.rmtree(out / "trials" / "0000")
    (out / "tested.json").unlink()
    assert tune(path, 1, out, accelerator="cpu")["winner"]["test"] == found["winner"]["test"]


@pytest.mark.slow
def test_int8_under_a_latency_limit(written: Write, tmp_path: Path, looks: list[str]) -> None:
    space = "  space:\n    model.size_px: [32, 64]\n  objective: int8\n  latency_ms: {}\n"

    recipe = ONE.replace("\ntune:", "quantize:\n  preset: quick\n  images: 8\n  method: plain\n\ntune:")
    path = written(space.format(1000), recipe)
    found = tune(path, 2, tmp_path / "study", accelerator="cpu")
    assert looks == ["val", "val", "test"]
    assert all(trial["latency_ms"] > 0 for trial in found["trials"])
    assert found["front"]
    assert found["winner"]["number"] in found["front"] or len(found["front"]) == 1
    assert "INT8 accuracy against latency" in (tmp_path / "study" / "tune.html").read_text()
    path = written(space.format(0.001), recipe)
    with pytest.raises(
        StageError, match=r"no trial keeps to tune\.latency_ms: 0\.001; the fastest took"
    ) as caught:
        tune(path, 1, tmp_path / "fast", accelerator="cpu")
    assert "model.size_px" in caught.value.hint
