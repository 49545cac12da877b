"""Trained weights, or an ONNX file, become an artifact that teaches; nothing is guessed."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from edgetune.errors import ConfigError
from edgetune.models import build_model
from edgetune.recipe import TeacherSection
from edgetune.stages.teacher import teacher
from edgetune.training.checkpoint import load_network, save_network

NETWORK = "mobilenet_v2_035_cifar10"


@pytest.mark.parametrize("gray", [False, True])
def test_weights_come_with_their_head(tmp_path: Path, gray: bool) -> None:
    channels = 1 if gray else 3
    net = build_model(NETWORK, 7, channels, "none").eval()
    save_network(net, tmp_path / "net.safetensors")
    section = TeacherSection(name=NETWORK, weights="net.safetensors", size_px=48)
    made = teacher(section, gray, into=tmp_path / "made", weights=tmp_path / "net.safetensors")
    images = torch.rand(2, channels, 48, 48)
    assert torch.equal(load_network(made)(images), net(images))
    assert made.preprocess is not None
    assert (made.preprocess.size_px, made.preprocess.channels, made.classes) == (48, channels, ())


def test_default_weights_are_taken_with_their_head(tmp_path: Path) -> None:
    made = teacher(TeacherSection(name=NETWORK), False, into=tmp_path / "made")
    assert load_network(made)(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    again = teacher(TeacherSection(name=NETWORK), False, into=tmp_path / "again")
    assert again.digest == made.digest


def test_weights_without_a_head_know_nothing(tmp_path: Path) -> None:
    body = {n: t for n, t in build_model(NETWORK, 7, 3, "none").state_dict().items() if "classifier" not in n}
    save_file(body, tmp_path / "body.safetensors")
    section = TeacherSection(name=NETWORK, weights="body.safetensors")
    with pytest.raises(ConfigError, match="without a head that was trained"):
        teacher(section, False, into=tmp_path / "made", weights=tmp_path / "body.safetensors")
    with pytest.raises(ConfigError, match="random weights knows nothing"):
        teacher(TeacherSection(name=NETWORK, weights="none"), False, into=tmp_path / "made")
