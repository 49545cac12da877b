from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from edgetune.artifact import Artifact, Preprocess
from edgetune.errors import ArtifactError, StageError
from edgetune.models import build_model
from edgetune.recipe import ModelSection
from edgetune.training.checkpoint import MODEL_FILE, load_network, save_network

SECTION = ModelSection(name="mobilenet_v2_035_cifar10", weights="none", adapter="conv")
PREPROCESS = Preprocess(resize_px=32, size_px=32, channels=1, mean=(0.5,), std=(0.25,))


def network() -> nn.Module:
    return build_model(SECTION.name, 4, 1, "none", "conv", 32, 3)


def checkpoint(folder: Path, net: nn.Module, classes: int = 4, **details: Any) -> Artifact:
    folder.mkdir()
    save_network(net, folder / MODEL_FILE)
    told = {"model": SECTION.model_dump(mode="json"), "channels": 1, "classes": classes, **details}
    names = tuple("abcdefgh"[:classes])
    return Artifact(kind="checkpoint", classes=names, preprocess=PREPROCESS, details=told).write(folder)


def test_a_network_comes_back_whole(tmp_path: Path) -> None:
    net = network()
    net(torch.randn(4, 1, 32, 32))  # moves BatchNorm's statistics
    found = load_network(checkpoint(tmp_path / "made", net))
    assert not found.training
    inputs = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(found(inputs), net.eval()(inputs))


def test_equal_networks_give_equal_files(tmp_path: Path) -> None:
    net = network()
    save_network(net, tmp_path / "one")
    net.get_buffer("features.0.1.num_batches_tracked").add_(5)
    save_network(net.to(memory_format=torch.channels_last), tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert not any("num_batches_tracked" in name for name in load_file(str(tmp_path / "one")))


def test_a_corrupt_file_is_named(tmp_path: Path) -> None:
    made = checkpoint(tmp_path / "made", network())
    path = made.file(MODEL_FILE)
    for content in (b"", b"abc", path.read_bytes()[:-9], b"\x80\x04cos\nsystem\n"):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match=f"{MODEL_FILE}: not whole safetensors"):
            load_network(made)


def test_another_number_of_classes_is_said_in_shapes(tmp_path: Path) -> None:
    made = checkpoint(tmp_path / "made", network(), classes=5)
    with pytest.raises(ArtifactError, match=r"classifier\.1\.weight: \[4, 1280\] in the file, \[5, 1280\]"):
        load_network(made)


def test_missing_and_unknown_tensors_are_named_a_few_at_a_time(tmp_path: Path) -> None:
    made = checkpoint(tmp_path / "made", network())
    path = made.file(MODEL_FILE)
    tensors = load_file(str(path))
    save_file({f"old.{name}": tensor for name, tensor in tensors.items()}, str(path))
    with pytest.raises(ArtifactError, match=r"missing in the file.*; and \d+ more"):
        load_network(made)
    save_file({**tensors, "extra": torch.zeros(1)}, str(path))
    with pytest.raises(ArtifactError, match="extra: unknown to the network"):
        load_network(made)


def test_a_network_that_does_not_fit_is_left_as_it_was(tmp_path: Path) -> None:
    made = checkpoint(tmp_path / "made", network())
    own = nn.Linear(3, 4)
    before = own.weight.clone()
    with pytest.raises(ArtifactError):
        load_network(made, own)
    assert torch.equal(own.weight, before)


def test_other_kinds_and_nameless_checkpoints_are_refused(tmp_path: Path) -> None:
    made = checkpoint(tmp_path / "made", network())
    with pytest.raises(ArtifactError, match="'onnx' artifact"):
        load_network(made.model_copy(update={"kind": "onnx"}))
    with pytest.raises(ArtifactError, match="does not say which network"):
        load_network(made.model_copy(update={"details": {}}))


def test_a_full_disk_is_a_stage_error() -> None:
    full = Path("/dev/full")
    if not full.is_char_device():
        pytest.skip("no /dev/full here")
    with pytest.raises(StageError, match="the disk is full"):
        save_network(nn.Linear(300, 300), full)
