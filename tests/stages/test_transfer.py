"""What transfer bought is counted on the same test images for both networks."""

import json
from pathlib import Path

import pytest

from edgetune.artifact import Artifact
from edgetune.data.folders import scan
from edgetune.errors import ArtifactError
from edgetune.recipe import DataSection, FinetuneSection, ModelSection
from edgetune.stages.finetune import finetune
from edgetune.stages.transfer import transfer

MODEL = ModelSection(name="mobilenet_v2_035_cifar10", weights="none")


def test_both_sides_are_counted(class_folders: Path, tmp_path: Path) -> None:
    data = scan(DataSection(path="images", min_images=2), class_folders)
    made: list[Artifact] = []
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        settings = FinetuneSection(strategy="full", epochs=1, batch=8, seed=seed)
        made.append(finetune(MODEL, data, settings, into=tmp_path / str(seed)))
    (tmp_path / "transfer").mkdir()
    out = transfer(made[0], made[1], data, into=tmp_path / "transfer")
    found = json.loads(out.file("measures.json").read_text())["transfer"]
    assert found["images"] == len(data.splits["test"])
    assert found["points"] == pytest.approx(100 * (found["pretrained_top1"] - found["scratch_top1"]))
    assert found["low"] <= found["points"] <= found["high"]
    assert len(found["epochs_pretrained"]) == len(found["epochs_scratch"]) == 1
    other = made[1].model_copy(update={"classes": ("x", "y", "z")})
    with pytest.raises(ArtifactError, match="other inputs or classes"):
        transfer(made[0], other, data, into=tmp_path / "transfer")
