"""Teacher, student alone and student distilled are counted on the same test images."""

import json
from pathlib import Path

import pytest

from edgetune.artifact import Artifact
from edgetune.data.folders import Dataset, scan
from edgetune.errors import ArtifactError, ConfigError
from edgetune.models import build_model, preprocess_for
from edgetune.recipe import DataSection
from edgetune.stages.distillation import distillation
from edgetune.training.checkpoint import save_network

NETWORK = "mobilenet_v2_035_cifar10"


@pytest.fixture
def data(class_folders: Path) -> Dataset:
    return scan(DataSection(path="images", min_images=2), class_folders)


def checkpoint(folder: Path, data: Dataset, seed: int, size_px: int = 32) -> Artifact:
    folder.mkdir()
    save_network(build_model(NETWORK, 3, 3, "none", seed=seed), folder / "model.safetensors")
    told = {
        "loss": "soft", "temperature": 4.0, "labels": 0.1, "features": {}, "views": 1, "unlabelled": 0,
        "asking_seconds": 0.1, "asked_earlier": False, "warnings": [],
    }  # fmt: skip
    training = {"seconds": 2.0 + seed, "epochs": [{"epoch": 1, "val_top1": 0.5, "loss": 1.0}]}
    model = {"name": NETWORK, "weights": "none", "channels": 0, "adapter": "sum", "size_px": size_px}
    details = {"model": model, "channels": 3, "training": training, "distillation": told}
    return Artifact(
        kind="checkpoint",
        classes=data.classes,
        preprocess=preprocess_for(NETWORK, 3, size_px),
        details=details,
    ).write(folder)


def test_all_three_are_counted(data: Dataset, tmp_path: Path) -> None:
    teacher = checkpoint(tmp_path / "teacher", data, 1, 48)
    alone, distilled = (checkpoint(tmp_path / name, data, seed) for name, seed in (("a", 2), ("b", 3)))
    made = distillation(teacher, alone, distilled, data, into=tmp_path / "made", accelerator="cpu")
    found = json.loads(made.file("measures.json").read_text())["distillation"]
    assert found["images"] == len(data.splits["test"])
    models = found["models"]
    share = {name: 100 * models[name]["top1"] for name in models}
    assert found["gain"]["points"] == pytest.approx(share["distilled"] - share["alone"])
    assert found["gap"]["points"] == pytest.approx(share["teacher"] - share["distilled"])
    assert found["gain"]["low"] <= found["gain"]["points"] <= found["gain"]["high"]
    net_gain = found["gain"]["gained"] - found["gain"]["lost"]
    assert net_gain == models["distilled"]["right"] - models["alone"]["right"]
    assert models["teacher"]["operations"] > 2 * models["alone"]["operations"]
    assert models["teacher"]["size_px"] == 48
    assert (models["alone"]["seconds"], models["distilled"]["seconds"]) == (4.0, 5.0)
    assert made.parents.keys() == {"teacher", "checkpoint", "alone"}
    bare = distillation(teacher, None, distilled, data, into=tmp_path / "bare", accelerator="cpu")
    assert json.loads(bare.file("measures.json").read_text())["distillation"]["gain"] is None


def test_what_cannot_be_compared_is_refused(data: Dataset, tmp_path: Path) -> None:
    one, other = checkpoint(tmp_path / "one", data, 1), checkpoint(tmp_path / "other", data, 2, 48)
    with pytest.raises(ArtifactError, match="other inputs or classes"):
        distillation(one, other, one, data, into=tmp_path / "made")
    bare = Dataset(data.root, data.classes, {**data.splits, "test": ()})
    with pytest.raises(ConfigError, match="the test split has no images"):
        distillation(one, None, one, bare, into=tmp_path / "made")
