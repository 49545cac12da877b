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
from edgetune.data.images import batches
from edgetune.errors import ArtifactError, ConfigError, MissingTool, StageError
from edgetune.progress import Silent
from edgetune.recipe import DataSection, FinetuneSection, ModelSection
from edgetune.stages.finetune import finetune
from edgetune.store import Store
from edgetune.training import ranks
from edgetune.training.checkpoint import load_network, read_tensors
from edgetune.training.evaluate import predict_logits

SMALL = ModelSection(name="mobilenet_v2_035_cifar10", weights="none")
CUSTOM = ModelSection(name="custom")
PREPROCESS = Preprocess(resize_px=16, size_px=16, channels=3, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


class Own(nn.Module):
    """A user's network, with two linear layers."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2)
        )
        self.between = nn.Linear(32, 16)
        self.last = nn.Linear(16, classes)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.between(self.body(batch).flatten(1))))


class Dropping(Own):
    """Has Dropout outside of its head."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.last(self.drop(torch.relu(self.between(self.body(batch).flatten(1)))))


class Unused(Own):
    """Registers a linear layer that it does not use after its last one."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Linear(32, 3)


class Excited(Own):
    """Its last registered linear layer weighs channels, as many as there are classes."""

    def __init__(self) -> None:
        super().__init__()
        self.excite = nn.Linear(3, 3)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return super().forward(batch * self.excite(batch.mean((2, 3))).sigmoid()[:, :, None, None])


class Twice(Own):
    """Asks its head twice."""

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return (super().forward(batch) + super().forward(batch.flip(3))) / 2


class Scaled(Own):
    """Has a temperature behind its head."""

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return super().forward(batch) / 2


class Named(Own):
    """Gives its head the input by name."""

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.last(input=torch.relu(self.between(self.body(batch).flatten(1))))


class Pair(Own):
    """Gives more than logits."""

    def forward(self, batch: torch.Tensor) -> Any:
        return super().forward(batch), batch


class Lines(Silent):
    """Keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


def own(classes: int = 3) -> Own:
    torch.manual_seed(7)
    return Own(classes)


@pytest.fixture
def data(class_folders: Path) -> Dataset:
    return scan(DataSection(path="images", min_images=2), class_folders)


def settings(**values: Any) -> FinetuneSection:
    return FinetuneSection.model_validate({"epochs": 2, "batch": 8, "strategy": "full", **values})


def train(data: Dataset, into: Path, model: ModelSection = SMALL, **options: Any) -> Artifact:
    section = settings(**options.pop("settings", {}))
    return finetune(model, data, section, into=into, accelerator="cpu", **options)


def test_a_checkpoint_is_whole_and_says_how_it_was_made(data: Dataset, tmp_path: Path) -> None:
    into = tmp_path / "checkpoint"
    made = train(data, into)
    files = ["artifact.json", "data.json", "model.safetensors"]
    assert sorted(p.name for p in into.iterdir()) == [".decoded", ".resume", *files]
    found = Artifact.load(into, "checkpoint")
    assert sorted(found.files) == files[1:]
    assert found.classes == data.classes == ("blue", "green", "red")
    assert found.preprocess is not None
    assert found.preprocess.size_px == 32
    assert found.details["model"] == SMALL.model_dump(mode="json")
    assert (found.details["channels"], found.details["classes"]) == (3, 3)
    training = found.details["training"]
    assert training["parameters"] == training["trained_parameters"] > 100_000
    assert training["accelerator"] == "cpu"
    assert not training["stopped_early"]
    assert [entry["epoch"] for entry in training["epochs"]] == [1, 2]
    assert set(training["epochs"][0]) == {
        "epoch", "phase", "loss", "train_top1", "val_loss", "val_top1", "learning_rate", "seconds",
        "images_per_second",
        "waited_seconds",
    }  # fmt: skip
    assert training["val_top1"] == training["epochs"][training["best_epoch"] - 1]["val_top1"]
    assert load_dataset(made.file("data.json"), data.root).digest == data.digest


@pytest.mark.slow
def test_the_same_recipe_gives_the_same_checkpoint(data: Dataset, tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = train(data, tmp_path / "first")
    torch.manual_seed(2)
    second = train(data, tmp_path / "second")
    other = train(data, tmp_path / "other", settings={"seed": 1})
    assert first.digest == second.digest
    assert first.digest != other.digest


def test_the_global_generator_is_left_alone(data: Dataset, tmp_path: Path) -> None:
    module = own()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(data, tmp_path / "made", CUSTOM, module=module, preprocess=PREPROCESS)
    assert torch.equal(torch.rand(3), expected)


def test_a_loaded_network_scores_what_was_recorded(data: Dataset, tmp_path: Path) -> None:
    made = train(data, tmp_path / "made", settings={"epochs": 4})
    assert made.preprocess is not None
    samples = data.splits["val"]
    logits = predict_logits(load_network(made), batches(data.root, samples, made.preprocess, 4))
    top1 = np.mean(logits.argmax(1) == [sample.label for sample in samples])
    assert top1 == pytest.approx(made.details["training"]["val_top1"])


@pytest.mark.parametrize("preset", ["light", "strong"])
def test_features_of_augmented_views(data: Dataset, tmp_path: Path, preset: str) -> None:
    wanted = {"strategy": "feature-extractor", "views": 2, "epochs": 3, "augment": {"preset": preset}}
    made = train(data, tmp_path / "made", settings=wanted)
    training = made.details["training"]
    assert training["trained_parameters"] < training["parameters"] / 10
    assert [entry["phase"] for entry in training["epochs"]] == ["head"] * 3


@pytest.mark.parametrize(
    ("name", "strategy", "preset"),
    [
        ("custom", "feature-extractor", "light"),
        (SMALL.name, "feature-extractor", "strong"),
        (SMALL.name, "gradual", "light"),
    ],
)
@pytest.mark.slow
def test_features_too_large_to_keep_change_nothing(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preset: str, strategy: str, name: str
) -> None:
    torch.manual_seed(7)
    own_module: dict[str, Any] = {"module": Dropping(), "preprocess": PREPROCESS}
    options = own_module if name == "custom" else {}
    model = ModelSection(name=name, weights="default" if name == "custom" else "none")
    mixing = {"preset": preset, "mixup": 0.4}
    wanted = {"strategy": strategy, "views": 2, "epochs": 4, "batch": 7, "augment": mixing}
    said = Lines()
    kept = train(data, tmp_path / "kept", model, settings=wanted, progress=said, **options)
    assert not any("too large" in line for line in said.lines)
    assert sum("goes without" in line for line in said.lines) == 1
    monkeypatch.setattr("edgetune.training.frozen.FEATURE_BYTES", 0)
    said = Lines()
    anew = train(data, tmp_path / "anew", model, settings=wanted, progress=said, **options)
    assert any("too large" in line for line in said.lines)
    assert sum("goes without" in line for line in said.lines) == 1
    one, other = (read_tensors(made.file("model.safetensors")) for made in (kept, anew))
    assert one.keys() == other.keys()
    for key, tensor in one.items():  # in batches of another size the last bits differ
        torch.testing.assert_close(tensor, other[key], atol=1e-4, rtol=1e-3)


def test_mixed_images_have_no_training_accuracy(data: Dataset, tmp_path: Path) -> None:
    wanted = {"augment": {"mixup": 0.4}, "epochs": 1}
    made = train(data, tmp_path / "made", CUSTOM, module=own(), preprocess=PREPROCESS, settings=wanted)
    assert made.details["training"]["epochs"][0]["train_top1"] is None


def test_gray_images_need_one_channel(class_folders: Path, tmp_path: Path) -> None:
    for path in sorted(class_folders.rglob("*.png")):
        Image.open(path).convert("L").save(path)
    gray = scan(DataSection(path="images", min_images=2), class_folders)
    made = train(gray, tmp_path / "made", settings={"epochs": 1})
    assert made.details["channels"] == 1
    assert made.preprocess is not None
    assert load_network(made)(torch.zeros(2, 1, 32, 32)).shape == (2, 3)


def test_own_module_learns_and_is_not_changed_itself(data: Dataset, tmp_path: Path) -> None:
    module = own()
    wanted = {"epochs": 12, "learning_rate": 0.02}
    made = train(data, tmp_path / "made", CUSTOM, module=module, preprocess=PREPROCESS, settings=wanted)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), own().parameters(), strict=True))
    assert made.details["model"]["name"] == "custom"
    assert made.details["training"]["val_top1"] > 0.8
    loaded = load_network(made, own())
    assert not loaded.training
    assert not torch.equal(loaded.get_parameter("last.bias"), module.last.bias)


def test_own_module_as_feature_extractor_trains_its_last_linear_layer(data: Dataset, tmp_path: Path) -> None:
    wanted = {"strategy": "feature-extractor"}
    made = train(data, tmp_path / "made", CUSTOM, module=own(), preprocess=PREPROCESS, settings=wanted)
    loaded, before = load_network(made, own()).state_dict(), own().state_dict()
    changed = {name for name in before if not torch.equal(before[name], loaded[name])}
    assert changed == {"last.weight", "last.bias"}


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Unused, "'auxiliary', is called 0 times"),
        (Excited, "'excite', does not make the network's logits"),
        (Scaled, "'last', does not make the network's logits"),
        (Twice, "'last', is called 2 times"),
        (Named, "'last', is not given exactly one positional"),
    ],
)
def test_a_last_linear_layer_that_makes_no_logits_is_no_head(
    data: Dataset, tmp_path: Path, kind: type[Own], words: str
) -> None:
    options: dict[str, Any] = {"module": kind(), "preprocess": PREPROCESS}
    with pytest.raises(ConfigError, match=words) as caught:
        train(data, tmp_path / "none", CUSTOM, settings={"strategy": "feature-extractor"}, **options)
    assert "finetune.strategy: full" in caught.value.hint
    assert not options["module"].last._forward_hooks
    made = train(data, tmp_path / "made", CUSTOM, settings={"epochs": 1}, **options)
    assert made.details["training"]["epochs"], "full needs no head"


def test_own_module_is_needed_again(data: Dataset, tmp_path: Path) -> None:
    made = train(data, tmp_path / "made", CUSTOM, module=own(), preprocess=PREPROCESS, settings={"epochs": 1})
    with pytest.raises(ArtifactError, match="your own torch module") as caught:
        load_network(made)
    assert "edgetune.export(..., module=net)" in caught.value.hint
    assert "edgetune.predict(..., module=net)" in caught.value.hint


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (CUSTOM, {}, "needs your own torch module"),
        (CUSTOM, {"module": own()}, "needs preprocess"),
        (CUSTOM, {"module": own(5), "preprocess": PREPROCESS}, r"\[1, 5\] for one input, not \[1, 3\]"),
        (
            CUSTOM,
            {"module": nn.Linear(4, 3), "preprocess": PREPROCESS},
            r"does not take inputs \[1, 3, 16, 16\]",
        ),
        (
            CUSTOM,
            {"module": own(), "preprocess": PREPROCESS, "settings": {"strategy": "partial"}},
            "strategy",
        ),
        (CUSTOM, {"module": Pair(), "preprocess": PREPROCESS}, r"gives a tuple, not logits \[N, 3\]"),
        (SMALL, {"settings": {"strategy": "partial", "stages": 99}}, "finetune.stages: 99"),
        (ModelSection(name="mobilenet_v9"), {}, "mobilenet_v9"),
    ],
)
def test_what_cannot_be_trained_is_said(
    data: Dataset, tmp_path: Path, model: ModelSection, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        train(data, tmp_path / "made", model, **options)


def test_a_module_without_a_linear_layer_has_no_head_to_train(data: Dataset, tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    wanted = {"strategy": "feature-extractor", "epochs": 1}
    with pytest.raises(ConfigError, match="needs a linear layer"):
        train(data, tmp_path / "none", CUSTOM, module=module, preprocess=PREPROCESS, settings=wanted)
    made = train(
        data, tmp_path / "made", CUSTOM, module=module, preprocess=PREPROCESS, settings={"epochs": 1}
    )
    assert made.details["training"]["trained_parameters"] == 84


def test_an_empty_split_is_refused(data: Dataset, tmp_path: Path) -> None:
    bare = Dataset(data.root, data.classes, {**data.splits, "val": ()})
    with pytest.raises(ConfigError, match="no images in the val split"):
        train(bare, tmp_path / "made")


def test_a_gpu_that_is_not_there(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MissingTool):
        finetune(SMALL, data, settings(), into=tmp_path / "made", accelerator="cuda")


def test_strategies_share_decoded_images(data: Dataset, tmp_path: Path) -> None:
    cache = tmp_path / "decoded"
    first = train(data, tmp_path / "full", cache=cache, settings={"augment": {"preset": "standard"}})
    inodes = {file.name: file.stat().st_ino for file in cache.iterdir()}
    assert {name.split("-")[0] for name in inodes} == {"train", "val", "CACHEDIR.TAG"}
    second = train(data, tmp_path / "head", cache=cache, settings={"strategy": "feature-extractor"})
    there = {file.name: file.stat().st_ino for file in cache.iterdir() if file.is_file()}
    assert there == inodes, "nothing was made again"
    for made in (first, second):
        assert not any("decoded" in name for name in made.files)
        told = made.details["training"]
        assert told["decode_seconds"] >= 0
        assert all(0 <= epoch["waited_seconds"] <= epoch["seconds"] for epoch in told["epochs"])


@pytest.mark.slow
def test_trainings_that_share_a_folder_compute_features_once(data: Dataset, tmp_path: Path) -> None:
    wanted = {"strategy": "feature-extractor", "epochs": 1, "views": 2, "augment": {"preset": "light"}}
    cache, said = tmp_path / "decoded", [Lines(), Lines(), Lines()]
    rates: list[dict[str, Any]] = [{}, {"learning_rate": 0.01}, {"seed": 1}]
    made = [
        train(data, tmp_path / str(number), cache=cache, settings=wanted | rate, progress=told)
        for number, (rate, told) in enumerate(zip(rates, said, strict=True))
    ]
    earlier = [any("features of train" in line and "earlier" in line for line in told.lines) for told in said]
    assert earlier == [False, True, False], "another seed, other views"
    assert [one.details["training"]["features_earlier"] for one in made[:2]] == [False, True]
    alone = train(data, tmp_path / "alone", settings=wanted | rates[1])
    one, other = (read_tensors(found.file("model.safetensors")) for found in (made[1], alone))
    assert all(torch.equal(one[name], other[name]) for name in one), "the same to the bit"


@pytest.mark.slow
def test_without_room_for_decoded_images_the_network_is_the_same(data: Dataset, tmp_path: Path) -> None:
    made = []
    for name in ("kept", "not"):
        cache = tmp_path / name
        if name == "not":
            cache.write_text("no folder")
        told = Lines()
        section = {"augment": {"preset": "strong"}}
        made.append(
            train(data, tmp_path / f"{name}-checkpoint", cache=cache, settings=section, progress=told)
        )
        assert any("cannot be kept" in line for line in told.lines) == (name == "not")
    assert made[0].digest == made[1].digest


def test_a_training_that_diverges_leaves_its_best_epoch(data: Dataset, tmp_path: Path) -> None:
    class Diverging(Silent):
        epoch = 0

        def begin(self, what: str, total: int, unit: str = "image") -> None:
            self.epoch += what.startswith("epoch")

    told = Diverging()

    def poison(module: nn.Module, given: Any, made: torch.Tensor) -> torch.Tensor:
        return made * float("nan") if told.epoch == 3 and module.training else made

    module = own()
    module.last.register_forward_hook(poison)
    options = {"module": module, "preprocess": PREPROCESS, "accelerator": "cpu", "progress": told}
    with pytest.raises(StageError, match=r"epoch 3, step 1 of \d: the loss is no finite number") as caught:
        Store(tmp_path)("checkpoint", finetune, CUSTOM, data, settings(epochs=4, strategy="full"), **options)
    folder = tmp_path / "checkpoint-diverged"
    assert str(folder) in caught.value.hint
    assert "learning_rate" in caught.value.hint
    kept = Artifact.load(folder, "checkpoint")
    training = kept.details["training"]
    assert len(training["epochs"]) == 2
    assert training["best_epoch"] in (1, 2)
    net = load_network(kept, own())
    inputs = np.concatenate(list(batches(data.root, data.splits["val"], PREPROCESS, 8)))
    labels = np.array([sample.label for sample in data.splits["val"]])
    assert (predict_logits(net, [inputs]).argmax(1) == labels).mean() == pytest.approx(training["val_top1"])
    assert load_dataset(folder / "data.json").digest == data.digest
    assert not (tmp_path / "checkpoint").exists()


def test_a_training_that_diverges_at_once_leaves_nothing(data: Dataset, tmp_path: Path) -> None:
    module = own()
    with torch.no_grad():
        module.last.bias.fill_(float("nan"))
    with pytest.raises(StageError, match="epoch 1, step 1"):
        train(data, tmp_path / "made", CUSTOM, module=module, preprocess=PREPROCESS)
    assert not (tmp_path / "made-diverged").exists()


@pytest.mark.forks
@pytest.mark.slow
def test_several_processes_make_one_checkpoint(data: Dataset, tmp_path: Path) -> None:
    options = {"settings": {"strategy": "gradual", "optimizer": "sgd", "learning_rate": 0.005, "epochs": 3}}
    alone = train(data, tmp_path / "alone", **options)
    made = several(2, lambda: train(data, tmp_path / "shared", **options).details["training"])
    shared = Artifact.load(tmp_path / "shared", "checkpoint")
    assert shared.details["training"]["processes"] == 2
    assert [entry["epochs"][-1]["val_loss"] for entry in made] == [made[0]["epochs"][-1]["val_loss"]] * 2
    one, other = (read_tensors(made.file("model.safetensors")) for made in (alone, shared))
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, atol=1e-4, rtol=1e-3)


def test_more_processes_than_a_batch_has_images_are_refused(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "size", lambda: 9)
    with pytest.raises(ConfigError, match=r"finetune\.batch: 8, which 9 processes share"):
        train(data, tmp_path / "made")
    assert not (tmp_path / "made").exists()
