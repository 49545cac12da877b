"""Interrupted, killed and repeated: fine-tuning goes on where it may, and starts over where it must."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgetune.artifact import Artifact, Preprocess
from edgetune.data.folders import Dataset, scan
from edgetune.models import build_model
from edgetune.progress import Silent
from edgetune.recipe import DataSection, FinetuneSection, ModelSection
from edgetune.stages.finetune import finetune
from edgetune.store import Store
from edgetune.training import frame
from edgetune.training.checkpoint import save_network

SMALL = ModelSection(name="mobilenet_v2_035_cifar10", weights="none")
CUSTOM = ModelSection(name="custom")
PREPROCESS = Preprocess(resize_px=16, size_px=16, channels=3, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def own(seed: int = 7) -> nn.Module:
    """A user's network."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 3),
    )


@pytest.fixture
def data(class_folders: Path) -> Dataset:
    return scan(DataSection(path="images", min_images=2), class_folders)


def settings(**values: Any) -> FinetuneSection:
    return FinetuneSection.model_validate({"epochs": 2, "batch": 8, "strategy": "full", **values})


def train(data: Dataset, into: Path, model: ModelSection = SMALL, **options: Any) -> Artifact:
    section = settings(**options.pop("settings", {}))
    return finetune(model, data, section, into=into, accelerator="cpu", **options)


class Lines(Silent):
    """Keeps the lines and what was begun."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.begun: list[str] = []

    def begin(self, what: str, total: int, unit: str = "image") -> None:
        self.begun.append(what)

    def line(self, text: str) -> None:
        self.lines.append(text)


class Interrupting(Silent):
    """Presses Ctrl-C in an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.inside = False

    def begin(self, what: str, total: int, unit: str = "image") -> None:
        self.inside = what.startswith(f"epoch {self.epoch}/")

    def advance(self, count: int = 1, **shown: float) -> None:
        if self.inside:
            raise KeyboardInterrupt


def test_ctrl_c_and_the_same_command_again_through_the_store(data: Dataset, tmp_path: Path) -> None:
    wanted = settings(epochs=4, average=0.9, augment={"preset": "light"})
    options: dict[str, Any] = {"accelerator": "cpu", "module": own(), "preprocess": PREPROCESS}
    whole = Store(tmp_path / "whole")("checkpoint", finetune, CUSTOM, data, wanted, **options)
    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path / "cut")(
            "checkpoint", finetune, CUSTOM, data, wanted, progress=Interrupting(3), **options
        )
    left = tmp_path / "cut" / "checkpoint.partial"
    assert (left / ".resume" / "state.json").is_file()
    assert not (left / "artifact.json").exists()
    again = Store(tmp_path / "cut")("checkpoint", finetune, CUSTOM, data, wanted, **options)
    assert again.digest == whole.digest
    assert not left.exists()
    assert not (again.path / ".resume").exists()


def test_other_settings_do_not_go_on_from_this_state(data: Dataset, tmp_path: Path) -> None:
    options: dict[str, Any] = {"module": own(), "preprocess": PREPROCESS}
    into = tmp_path / "made"
    with pytest.raises(KeyboardInterrupt):
        train(data, into, CUSTOM, progress=Interrupting(2), settings={"seed": 3}, **options)
    made = train(data, into, CUSTOM, **options)
    assert made.digest == train(data, tmp_path / "fresh", CUSTOM, **options).digest


def test_another_module_of_equal_shapes_starts_over(data: Dataset, tmp_path: Path) -> None:
    into = tmp_path / "made"
    options: dict[str, Any] = {"module": own(seed=8), "preprocess": PREPROCESS}
    with pytest.raises(KeyboardInterrupt):
        train(data, into, CUSTOM, progress=Interrupting(2), **options)
    said = Lines()
    made = train(data, into, CUSTOM, progress=said, module=own(), preprocess=PREPROCESS)
    assert not any("going on" in line for line in said.lines)
    fresh = train(data, tmp_path / "fresh", CUSTOM, module=own(), preprocess=PREPROCESS)
    assert made.digest == fresh.digest


def test_weights_count_by_their_values_not_by_their_path(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    seeds = [build_model(SMALL.name, 3, 3, "none", seed=seed) for seed in (1, 2)]
    save_network(seeds[0], Path("one.safetensors"))
    save_network(seeds[1], Path("two.safetensors"))
    into = tmp_path / "made"
    train(data, into, ModelSection(name=SMALL.name, weights="one.safetensors"), settings={"epochs": 1})
    expected = {"./one.safetensors": True, str(tmp_path / "one.safetensors"): True, "two.safetensors": False}
    for weights, goes_on in expected.items():
        said = Lines()
        model = ModelSection(name=SMALL.name, weights=weights)
        train(data, into, model, settings={"epochs": 1}, progress=said)
        assert any("going on after epoch 1/1" in line for line in said.lines) == goes_on


def test_another_timm_starts_over(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    net, version = own(), "1.0.15"
    monkeypatch.setattr(
        frame, "library_versions", lambda *names: {name: version for name in names if name == "timm"}
    )
    models = (ModelSection(name=name) for name in ("mobilenet_v2", "timm:mobilenetv3_small_050"))
    begun = [frame.Begun(net, frame.Layout("", ()), PREPROCESS, model, (), settings()) for model in models]
    before = [frame.fingerprint(one, data, settings()) for one in begun]
    version = "1.0.16"
    after = [frame.fingerprint(one, data, settings()) for one in begun]
    assert [one == two for one, two in zip(before, after, strict=True)] == [True, False]


def test_a_complete_training_is_not_lost_before_it_is_in_its_place(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"accelerator": "cpu", "module": own(), "preprocess": PREPROCESS}

    def make(**more: Any) -> Artifact:
        return Store(tmp_path)("checkpoint", finetune, CUSTOM, data, settings(), **options, **more)

    def killed(*args: Any, **more: Any) -> Artifact:
        finetune(*args, **more)
        raise KeyboardInterrupt

    killed.__name__ = "finetune"
    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path)("checkpoint", killed, CUSTOM, data, settings(), **options)
    left = Artifact.load(tmp_path / "checkpoint.partial")
    said = Lines()
    made = make(progress=said)
    assert said.begun == [], "nothing is decoded or trained again"
    assert made.digest == left.digest
    assert not (made.path / ".resume").exists()


PROGRAM = """
import sys
from pathlib import Path
from edgetune.data.folders import scan
from edgetune.progress import Silent
from edgetune.recipe import DataSection, FinetuneSection, ModelSection
from edgetune.stages.finetune import finetune

class Said(Silent):
    def line(self, text):
        print(text, flush=True)

data = scan(DataSection(path="images", min_images=2), Path(sys.argv[1]))
section = FinetuneSection(epochs=8, batch=8, strategy="gradual", average=0.9)
model = ModelSection(name="mobilenet_v2_035_cifar10", weights="none")
finetune(model, data, section, into=Path(sys.argv[2]), accelerator="cpu", progress=Said())
print("made", flush=True)
"""


@pytest.mark.slow
def test_killed_again_and_again_it_ends_the_same(class_folders: Path, tmp_path: Path) -> None:
    def start(into: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PROGRAM, str(class_folders), str(tmp_path / into)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    with start("whole") as process:
        assert process.stdout is not None
        assert process.stdout.read().endswith("made\n")
    dice = random.Random(0)
    kills = 0
    for _ in range(6):
        with start("cut") as process:
            assert process.stdout is not None
            first = process.stdout.readline()
            if "made" in first:
                break
            time.sleep(dice.uniform(0, 0.4))
            process.send_signal(signal.SIGKILL)
        if process.returncode == 0:
            break
        kills += process.returncode == -signal.SIGKILL
    else:
        with start("cut") as process:
            process.wait()
    assert kills >= 2
    whole, cut = (Artifact.load(tmp_path / name, "checkpoint") for name in ("whole", "cut"))
    assert cut.digest == whole.digest
