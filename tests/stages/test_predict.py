"""Any artifact classifies images, alike."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import edgetune
from edgetune.artifact import Artifact
from edgetune.errors import ArtifactError, ConfigError
from edgetune.pipeline import run
from edgetune.recipe import recipe_from
from edgetune.stages.predict import predict


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("predict")
    noise = np.random.default_rng(0)
    for label, name in enumerate(("blue", "red")):
        (root / "images" / name).mkdir(parents=True)
        for index in range(16):
            pixels = noise.integers(0, 60, (32, 32, 3), dtype=np.uint8)
            pixels[..., 2 - 2 * label] += 180
            Image.fromarray(pixels).save(root / "images" / name / f"{index}.png")
    return root


@pytest.fixture(scope="module", params=["float32_nchw", "uint8_nhwc"])
def made(root: Path, request: pytest.FixtureRequest) -> Path:
    """A run; the second one finds the first one's checkpoint."""
    recipe = recipe_from({
        "data": {"path": str(root / "images")},
        "model": {"name": "mobilenet_v2_035_cifar10", "weights": "none"},
        "finetune": {"strategy": "full", "epochs": 6, "batch": 8, "learning_rate": 0.01},
        "export": {"input": request.param},
    })  # fmt: skip
    run(recipe, edgetune.load_target("jetson-orin-nano-8gb"), root / "run")
    return root


@pytest.mark.slow
def test_checkpoint_onnx_and_int8_agree(made: Path) -> None:
    images = [made / "images" / "blue", made / "images" / "red" / "0.png"]
    answers = {
        kind: predict(Artifact.load(made / "run" / kind), images) for kind in ("checkpoint", "onnx", "int8")
    }
    for found in answers.values():
        assert len(found) == 17
        for entry in found:
            assert sum(c["probability"] for c in entry["classes"]) == pytest.approx(1, abs=1e-6)
            assert {c["name"] for c in entry["classes"]} == {"blue", "red"}
    for torch_entry, onnx_entry in zip(answers["checkpoint"], answers["onnx"], strict=True):
        for ours, theirs in zip(torch_entry["classes"], onnx_entry["classes"], strict=True):
            assert ours["probability"] == pytest.approx(theirs["probability"], abs=1e-4)


@pytest.mark.slow
def test_an_unreadable_image_is_named_and_the_rest_answered(made: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"x")
    good = made / "images" / "red" / "1.png"
    found = predict(Artifact.load(made / "run" / "onnx"), [tmp_path / "bad.png", good], top=1)
    assert "not a readable image" in found[0]["error"]
    assert len(found[1]["classes"]) == 1


def test_what_cannot_be_classified(made: Path, tmp_path: Path) -> None:
    network = Artifact.load(made / "run" / "onnx")
    with pytest.raises(ConfigError, match="no such file"):
        predict(network, [tmp_path / "none.png"])
    with pytest.raises(ConfigError, match="no image in this folder"):
        predict(network, [tmp_path])
    with pytest.raises(ArtifactError, match="'measures' artifact classifies nothing"):
        predict(Artifact.load(made / "run" / "check"), [made / "images"])


def test_a_corrupt_onnx_is_an_artifact_error(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "onnx"
    folder.mkdir()
    network = Artifact.load(made / "run" / "onnx")
    (folder / "model.onnx").write_bytes(network.file("model.onnx").read_bytes()[:2000])
    broken = network.write(folder)
    with pytest.raises(ArtifactError, match=r"model\.onnx"):
        predict(broken, [made / "images"])
