"""A student learns from a teacher: same views for both, answers once, resumed without a trace."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from several import several
from torch import nn

from edgetune.artifact import Artifact, Preprocess
from edgetune.data.folders import Dataset, load_dataset, scan
from edgetune.data.unlabelled import gather
from edgetune.errors import ConfigError
from edgetune.progress import Silent
from edgetune.recipe import DataSection, DistillSection, FinetuneSection, ModelSection
from edgetune.stages.distill import distill, with_unlabelled
from edgetune.training.checkpoint import load_network, read_tensors, save_network

CUSTOM = ModelSection(name="custom")
SMALL = Preprocess(resize_px=16, size_px=16, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
LARGE = Preprocess(resize_px=24, size_px=24, channels=3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
CLASSES = ("blue", "green", "red")


class Net(nn.Module):
    """A body of two parts and a head."""

    def __init__(self, width: int = 8, seed: int = 7) -> None:
        super().__init__()
        # Without biases, whose gradient before BatchNorm is nothing but noise, which AdamW would follow.
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            first, second = nn.Conv2d(3, width, 3, 2, bias=False), nn.Conv2d(width, width, 3, 2, bias=False)
            self.last = nn.Linear(width, 3)
        self.stem = nn.Sequential(first, nn.BatchNorm2d(width), nn.ReLU())
        self.body = nn.Sequential(second, nn.BatchNorm2d(width), nn.ReLU())
        self.drop = nn.Dropout(0.2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(self.drop(self.body(self.stem(images)).mean((2, 3))))


class Colours(nn.Module):
    """A teacher that knows blue, green and red from each other, and counts what it was asked."""

    asked = 0

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(), torch.no_grad():
            self.body = nn.Conv2d(3, 3, 1, bias=False)
            self.body.weight.copy_(4 * torch.eye(3).flip(0)[:, :, None, None])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        Colours.asked += len(images)
        return self.body(images).mean((2, 3))


class Lines(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def data(class_folders: Path) -> Dataset:
    return scan(DataSection(path="images", min_images=2), class_folders)


@pytest.fixture
def teacher(tmp_path: Path) -> Callable[..., Artifact]:
    def make(preprocess: Preprocess = SMALL, classes: tuple[str, ...] = CLASSES) -> Artifact:
        folder = tmp_path / "taught"
        folder.mkdir(exist_ok=True)
        save_network(Colours(), folder / "model.safetensors")
        details = {"model": {"name": "custom"}, "channels": 3}
        return Artifact(kind="checkpoint", classes=classes, preprocess=preprocess, details=details).write(
            folder
        )

    return make


def section(**values: Any) -> DistillSection:
    return DistillSection.model_validate({"teacher": {"name": "x"}, **values})


def train(
    artifact: Artifact, data: Dataset, into: Path, unlabelled: Dataset | None = None, **options: Any
) -> Artifact:
    finetune = {
        "epochs": 2,
        "batch": 8,
        "strategy": "full",
        "learning_rate": 0.01,
        **options.pop("settings", {}),
    }
    distil = section(**options.pop("distil", {}))
    given: dict[str, Any] = {"module": Net(), "preprocess": SMALL, "teacher_module": Colours()}
    return distill(
        artifact, CUSTOM, data, FinetuneSection.model_validate(finetune), distil, unlabelled,
        into=into, accelerator="cpu", **given | options,
    )  # fmt: skip


def weights(made: Artifact) -> dict[str, torch.Tensor]:
    return read_tensors(made.file("model.safetensors"))


def close(one: Artifact, other: Artifact, atol: float = 2e-3) -> None:
    for name, tensor in weights(one).items():
        torch.testing.assert_close(tensor, weights(other)[name], atol=atol, rtol=1e-2)


def test_a_distilled_student_is_a_checkpoint(teacher: Callable, data: Dataset, tmp_path: Path) -> None:
    taught = teacher(LARGE)
    made = train(taught, data, tmp_path / "run" / "student", distil={"labels": 0}, settings={"epochs": 12})
    found = Artifact.load(tmp_path / "run" / "student", "checkpoint")
    assert sorted(found.files) == ["data.json", "model.safetensors"]
    assert (found.classes, found.preprocess) == (data.classes, SMALL)
    assert found.parents == {"teacher": taught.digest}
    assert load_dataset(made.file("data.json"), data.root).digest == data.digest
    told = found.details["distillation"]
    assert (told["teacher"], told["views"], told["labels"]) == (taught.digest, 1, 0)
    training = found.details["training"]
    assert (
        training["parameters"] == training["trained_parameters"] == sum(p.numel() for p in Net().parameters())
    )
    assert training["val_top1"] > 0.8, "from the teacher alone, without a label"
    assert set(weights(made)) == {n for n in Net().state_dict() if not n.endswith("num_batches_tracked")}


def test_answers_are_asked_once_for_every_epoch_and_student(
    teacher: Callable, data: Dataset, tmp_path: Path
) -> None:
    taught, run, count = teacher(), tmp_path / "run", len(data.splits["train"])
    light = {"epochs": 4, "augment": {"preset": "light"}}
    before = Colours.asked
    train(taught, data, run / "one", distil={"views": 3}, settings=light)
    assert Colours.asked - before <= 3 * count + 5
    before = Colours.asked
    made = train(taught, data, run / "two", distil={"views": 3, "labels": 0.5}, settings=light, module=Net(6))
    assert Colours.asked - before <= 5, "another student takes the same answers"
    assert made.details["distillation"]["asked_earlier"]
    before = Colours.asked
    train(taught, data, run / "three", distil={"views": 3}, settings=light | {"seed": 1})
    assert Colours.asked - before >= 3 * count, "other views, other answers"
    before = Colours.asked
    train(taught, data, run / "four", distil={"views": 0}, settings=light)
    assert Colours.asked - before >= 4 * count, "in every step"


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("strategy", ["full", "feature-extractor"])
def test_kept_answers_teach_what_the_teacher_in_the_loop_teaches(
    teacher: Callable, data: Dataset, tmp_path: Path, size: Preprocess, strategy: str
) -> None:
    taught, wanted = teacher(size), {"strategy": strategy}
    once = train(taught, data, tmp_path / "run" / "one", distil={"views": 1}, settings=wanted)
    always = train(taught, data, tmp_path / "run" / "two", distil={"views": 0}, settings=wanted)
    close(once, always)
    alone = train(taught, data, tmp_path / "run" / "three", distil={"labels": 0.99}, settings=wanted)
    with pytest.raises(AssertionError):
        close(once, alone)


def test_a_head_learns_from_features_of_the_same_views(
    teacher: Callable, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught = teacher(LARGE)
    wanted = {"strategy": "feature-extractor", "epochs": 4, "augment": {"preset": "standard"}}
    kept = train(taught, data, tmp_path / "run" / "one", distil={"views": 2}, settings=wanted)
    monkeypatch.setattr("edgetune.training.frozen.FEATURE_BYTES", 0)
    anew = train(taught, data, tmp_path / "run" / "two", distil={"views": 2}, settings=wanted)
    close(kept, anew, atol=1e-4)
    changed = {n for n, t in weights(kept).items() if not torch.equal(t, Net().state_dict()[n])}
    assert changed == {"last.weight", "last.bias"}


@pytest.mark.parametrize("views", [0, 2])
def test_killed_and_resumed_it_ends_the_same(
    teacher: Callable, data: Dataset, tmp_path: Path, views: int
) -> None:
    class Stop(Silent):
        def line(self, text: str) -> None:
            if text.startswith("epoch 2/"):
                raise KeyboardInterrupt

    taught = teacher(LARGE)
    options: dict[str, Any] = {
        "distil": {"views": views, "features": {"body": "body"}},
        "settings": {"epochs": 4, "augment": {"preset": "light"}, "average": 0.9},
    }
    whole = train(taught, data, tmp_path / "run" / "whole", **options)
    torch.manual_seed(99)
    with pytest.raises(KeyboardInterrupt):
        train(taught, data, tmp_path / "run" / "half", progress=Stop(), **options)
    said = Lines()
    resumed = train(taught, data, tmp_path / "run" / "half", progress=said, **options)
    assert any("going on after epoch" in line for line in said.lines)
    assert resumed.digest == whole.digest


def test_another_teacher_starts_over(teacher: Callable, data: Dataset, tmp_path: Path) -> None:
    into = tmp_path / "run" / "student"
    train(teacher(), data, into)
    said = Lines()
    train(teacher(), data, into, progress=said)
    assert any("going on" in line for line in said.lines)
    said = Lines()
    train(teacher(LARGE), data, into, progress=said)
    assert not any("going on" in line for line in said.lines)


def test_features_are_matched_and_their_projections_thrown_away(
    teacher: Callable, data: Dataset, tmp_path: Path
) -> None:
    taught, run = teacher(LARGE), tmp_path / "run"
    distil = {"features": {"stem": "body", "body": "body"}, "feature_weight": 5.0}
    with_features = train(taught, data, run / "one", distil=distil)
    without = train(taught, data, run / "two")
    assert set(weights(with_features)) == set(weights(without))
    with pytest.raises(AssertionError):
        close(with_features, without)
    load_network(with_features, Net())
    told = with_features.details["training"]
    assert told["parameters"] == told["trained_parameters"] == without.details["training"]["parameters"]


@pytest.mark.parametrize(
    ("distil", "settings", "words", "hint"),
    [
        ({"features": {"boddy": "body"}}, {}, "the student has no layer 'boddy'", "'body'"),
        ({"features": {"body": "boddy"}}, {}, "the teacher has no layer 'boddy'", "'body'"),
        ({"features": {"body": "body"}}, {"strategy": "feature-extractor"}, r"\(body\) never learn", "full"),
        ({"features": {"last": "body"}}, {}, "a map and a vector", ""),
    ],
)
def test_layers_that_cannot_be_matched_are_refused(
    teacher: Callable, data: Dataset, tmp_path: Path, distil: Any, settings: Any, words: str, hint: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        train(teacher(), data, tmp_path / "run" / "student", distil=distil, settings=settings)
    assert hint in caught.value.hint


def test_a_teacher_of_other_classes_is_refused(teacher: Callable, data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not know 1 of the data's 3 classes: red"):
        train(teacher(classes=("blue", "green", "pink")), data, tmp_path / "run" / "student")


def test_standardised_needs_three_classes(teacher: Callable, data: Dataset, tmp_path: Path) -> None:
    two = replace(data, classes=data.classes[:2])
    with pytest.raises(ConfigError, match="two classes"):
        train(teacher(), two, tmp_path / "run" / "student", distil={"loss": "standardised"})
    train(teacher(), data, tmp_path / "run" / "student", distil={"loss": "standardised"})


@pytest.mark.parametrize(("views", "left_out"), [(2, True), (0, False)])
def test_images_are_mixed_only_where_the_teacher_sees_the_mix(
    teacher: Callable, data: Dataset, tmp_path: Path, views: int, left_out: bool
) -> None:
    said = Lines()
    settings = {"augment": {"preset": "light", "mixup": 0.4, "cutmix": 1.0}}
    made = train(
        teacher(LARGE),
        data,
        tmp_path / "run" / "student",
        distil={"views": views},
        settings=settings,
        progress=said,
    )
    assert any("MixUp and CutMix" in line for line in said.lines) == left_out
    top1 = made.details["training"]["epochs"][0]["train_top1"]
    assert (top1 is None) == (not left_out)


@pytest.fixture
def unlabelled(tmp_path: Path, data: Dataset) -> Dataset:
    """Nine new images, one of the training images and one of the test images."""
    root, noise = tmp_path / "more", np.random.default_rng(5)
    (root / "deep" / "er").mkdir(parents=True)
    for index in range(9):
        pixels = noise.integers(0, 90, (40, 44, 3), dtype=np.uint8)
        pixels[..., index % 3] += 140
        Image.fromarray(pixels).save(root / "deep" / "er" / f"{index}.png")
    for split in ("train", "test"):
        source = data.root / data.splits[split][0].path
        (root / f"{split}.png").write_bytes(source.read_bytes())
    return gather(root, most=0)


def test_unlabelled_images_are_learned_from_but_none_that_decides(
    teacher: Callable, data: Dataset, tmp_path: Path, unlabelled: Dataset
) -> None:
    said = Lines()
    learned = with_unlabelled(data, unlabelled, said)
    assert len(learned.splits["train"]) == len(data.splits["train"]) + 9
    assert learned.splits["test"] == data.splits["test"]
    assert "2 images are in the data, or twice: left out" in said.lines[0]
    for labels in (0.0, 0.5):
        into = tmp_path / "run" / f"labels-{labels}"
        made = train(teacher(LARGE), data, into, unlabelled, distil={"labels": labels, "views": 2})
        assert made.details["distillation"]["unlabelled"] == 9
        top1 = made.details["training"]["epochs"][-1]["train_top1"]
        assert top1 is not None
        count = len(data.splits["train"])
        assert top1 * count == pytest.approx(round(top1 * count)), "a share of the labelled images"
        assert load_dataset(made.file("data.json"), data.root).digest == data.digest
    bare = train(teacher(LARGE), data, tmp_path / "run" / "bare", distil={"labels": 0.0, "views": 2})
    assert not torch.equal(weights(bare)["last.bias"], weights(made)["last.bias"])


def test_unlabelled_images_that_are_all_known_are_refused(data: Dataset) -> None:
    with pytest.raises(ConfigError, match="each of its 36 images is in the data already"):
        with_unlabelled(data, gather(data.root, most=0), Silent())


def test_nothing_of_it_depends_on_where_it_ran(teacher: Callable, data: Dataset, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "distil": {"features": {"body": "body"}},
        "settings": {"augment": {"preset": "light"}},
    }
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = train(teacher(LARGE), data, tmp_path / "run" / "one", **options)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert train(teacher(LARGE), data, tmp_path / "elsewhere" / "two", **options).digest == one.digest


@pytest.mark.forks
@pytest.mark.parametrize(
    ("processes", "distil", "settings"),
    [
        (2, {"views": 2}, {"augment": {"preset": "light"}}),
        (2, {"views": 0, "labels": 0.0}, {"augment": {"preset": "light"}}),
        # The last batch's 5 images go through as 2 and 3, and some of three processes have none.
        pytest.param(
            3, {"features": {"body": "body"}}, {"batch": 4, "accumulate": 2}, marks=pytest.mark.slow
        ),
        (2, {"views": 1}, {"strategy": "feature-extractor"}),
    ],
)
def test_several_processes_distill_what_one_does(
    teacher: Callable, data: Dataset, tmp_path: Path, processes: int, distil: dict, settings: dict
) -> None:
    artifact = teacher(LARGE)
    data = replace(data, splits={**data.splits, "train": data.splits["train"][:21]})
    options = {"distil": distil, "settings": {"optimizer": "sgd", **settings}}
    whole = train(artifact, data, tmp_path / "one" / "checkpoint", **options)
    Colours.asked = 0

    def work() -> int:
        train(artifact, data, tmp_path / "several" / "checkpoint", **options)
        return Colours.asked

    asked = several(processes, work)
    shared = Artifact.load(tmp_path / "several" / "checkpoint")
    assert shared.details["training"]["processes"] == processes
    close(whole, shared)
    views = distil.get("views", 4) if "augment" in settings else 1
    if views:
        # Beside it each shows it two images, and counts what one costs.
        assert sum(asked) == 21 * views + 3 * processes


def test_more_processes_than_images_are_refused(
    teacher: Callable, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgetune.training.ranks.size", lambda: 1000)
    with pytest.raises(ConfigError, match="1000 processes for"):
        train(teacher(), data, tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()
