"""Trainings side by side: grouped by all but their seed, with the intervals that their number allows."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import t as student

from edgetune.artifact import Artifact
from edgetune.data.folders import Dataset, Sample, scan
from edgetune.errors import ConfigError
from edgetune.latency.statistics import paired_drop, wilson
from edgetune.recipe import DataSection, FinetuneSection, ModelSection
from edgetune.stages.compare import Training, answers, compare
from edgetune.stages.finetune import finetune

CLASSES = ("ant", "bee")


def images(split: str, count: int) -> tuple[Sample, ...]:
    return tuple(Sample(f"{split}/{i}", i % 2, f"{split}-{i}", 1, 1) for i in range(count))


DATA = Dataset(
    Path("photos"), CLASSES,
    {"train": images("train", 40), "val": images("val", 10), "test": images("test", 20)},
)  # fmt: skip


def made(
    name: str = "", *, strategy: str = "full", weights: str = "default", seed: int = 0, rate: float = 0.01,
    shares: tuple[float, ...] = (0.5, 0.8, 0.7), data: Dataset = DATA, classes: tuple[str, ...] = CLASSES,
    network: str = "net", accelerator: str = "cpu", **details: Any,
) -> Training:  # fmt: skip
    """A training that was never done: decoding, two seconds of features, then one second per epoch."""
    epochs = [
        {"epoch": i, "val_top1": share, "val_loss": 1.0, "seconds": 1.0} for i, share in enumerate(shares, 1)
    ]
    told = {
        "strategy": strategy, "accelerator": accelerator, "epochs": epochs,
        "seconds": 5.0 + len(epochs), "decode_seconds": 3.0,
        "val_top1": max(shares), "trained_parameters": 7,
    }  # fmt: skip
    settings = {"strategy": strategy, "learning_rate": rate, "seed": seed}
    model = {"name": network, "weights": weights}
    name = name or f"{strategy}-{weights}-{seed}-{rate}"
    checkpoint = Artifact(
        kind="checkpoint", classes=classes, path=Path(name),
        details={"model": model, "settings": settings, "training": told, **details},
    )  # fmt: skip
    return Training(name, checkpoint, data)


def right(wrong: int, data: Dataset = DATA) -> dict[str, bool]:
    """The first so many test images are answered wrongly."""
    return {f"{s.sha256}:{s.label}": index >= wrong for index, s in enumerate(data.splits["test"])}


def by_label(found: dict[str, Any]) -> dict[str, Any]:
    return {group["label"]: group for group in found["groups"]}


def test_one_seed_each_is_paired_by_image() -> None:
    found = compare([made(), made(weights="none", shares=(0.3, 0.6))], [right(2), right(7)])
    groups = by_label(found)
    assert list(groups) == ["full", "from scratch"]
    assert found["reference"] == "from scratch"
    against = groups["full"]["against"]
    drop = paired_drop(np.arange(20) >= 2, np.arange(20) >= 7)
    assert (against["points"], against["low"], against["high"]) == pytest.approx(drop[:3])
    assert against["points"] == pytest.approx(25)
    assert against["p_value"] == pytest.approx(drop.p_value)
    assert against["seeds_low"] is None
    assert groups["from scratch"]["against"] is None
    test = groups["full"]["test"]
    assert (test["low"], test["high"]) == pytest.approx(wilson(18, 20))
    assert (test["each"], test["over"]) == ([0.9], "inputs")
    assert all(point["low"] is None for point in groups["full"]["curve"])
    assert any("one seed only (full; from scratch): no interval over seeds" in w for w in found["warnings"])


def test_curves_count_epochs_images_and_the_wait_before_the_first() -> None:
    found = compare([made(), made(weights="none", shares=(0.3, 0.75))], [None, None])
    curve = by_label(found)["full"]["curve"]
    assert [(p["epoch"], p["images"], p["seconds"]) for p in curve] == [(1, 40, 3), (2, 80, 4), (3, 120, 5)]
    assert [p["top1"] for p in curve] == [0.5, 0.8, 0.7]
    assert by_label(found)["full"]["reached"] == {"epoch": 2, "images": 80, "seconds": 4}
    assert by_label(found)["full"]["test"] is None
    distilled = made(distillation={"unlabelled": 60, "loss": "soft"})
    assert by_label(compare([distilled], [None]))["distilled"]["curve"][0]["images"] == 100


def test_seeds_are_one_group_with_intervals_over_them() -> None:
    seeds = [made(seed=seed, shares=(0.5 + 0.1 * seed, 0.8, 0.7, 0.9)[: 4 - seed]) for seed in range(3)]
    others = [made(seed=seed, weights="none") for seed in range(3)]
    wrong = [1, 2, 3, 6, 8, 7]
    found = compare([*seeds, *others], [right(count) for count in wrong])
    groups = by_label(found)
    assert groups["full"]["seeds"] == [0, 1, 2]
    assert len(groups["full"]["curve"]) == 2, "to the end of the shortest"
    first = groups["full"]["curve"][0]
    half = student.ppf(0.975, 2) * np.std([0.5, 0.6, 0.7], ddof=1) / np.sqrt(3)
    assert (first["top1"], first["low"], first["high"]) == pytest.approx((0.6, 0.6 - half, 0.6 + half))
    assert groups["full"]["test"]["over"] == "seeds"
    assert groups["full"]["test"]["each"] == pytest.approx([0.95, 0.9, 0.85])
    against = groups["full"]["against"]
    assert against["points"] == pytest.approx(25)
    assert against["p_value"] is None
    assert against["low"] < against["points"] < against["high"]
    assert against["seeds_low"] == pytest.approx(25 - 100 * student.ppf(0.975, 4) * 0.05 * np.sqrt(2 / 3))
    assert not any("one seed" in warning for warning in found["warnings"])


def test_one_seed_against_several_has_an_interval_over_images_only() -> None:
    found = compare(
        [made(), made(weights="none"), made(weights="none", seed=1)], [right(2), right(6), right(8)]
    )
    against = by_label(found)["full"]["against"]
    assert against["seeds_low"] is None
    assert against["p_value"] is None
    assert against["points"] == pytest.approx(25)
    assert against["low"] < 25 < against["high"]


def test_the_same_seed_twice_is_counted_once_and_said() -> None:
    found = compare([made("one"), made("two"), made("three", seed=1)], [right(1), right(1), right(2)])
    assert by_label(found)["full"]["runs"] == ["one", "three"]
    assert any(w.startswith("two: the same settings, inputs and seed as one") for w in found["warnings"])
    assert any("one kind of training only" in w for w in found["warnings"])


def test_groups_of_one_kind_are_named_by_what_they_differ_in() -> None:
    found = compare([made(rate=0.01), made(rate=0.1), made(strategy="gradual")], [None] * 3)
    assert list(by_label(found)) == ["full, learning_rate 0.01", "full, learning_rate 0.1", "gradual"]
    fewer = replace(DATA, splits={**DATA.splits, "train": images("train", 20)})
    found = compare([made(), made(data=fewer)], [right(1), right(2)])
    assert list(by_label(found)) == ["full, 40 inputs", "full, 20 inputs"]
    assert any("not the same train inputs (20 and 40)" in warning for warning in found["warnings"])
    assert by_label(found)["full, 20 inputs"]["against"]["points"] == pytest.approx(-5)


def test_other_test_images_are_not_paired_and_that_is_said() -> None:
    other = replace(DATA, splits={**DATA.splits, "test": images("other", 20), "val": images("more", 12)})
    found = compare([made(), made(strategy="gradual", data=other)], [right(2), right(5, other)])
    assert by_label(found)["gradual"]["against"] is None
    said = "\n".join(found["warnings"])
    assert "not the same test inputs (20 each): final accuracies are shown without" in said
    assert "not the same val inputs (10 and 12): the curves are of different inputs" in said
    assert "train images" not in said


def test_what_else_makes_trainings_unlike_is_said() -> None:
    found = compare([made(), made(strategy="gradual", accelerator="cuda", network="big")], [None, None])
    said = "\n".join(found["warnings"])
    assert "different accelerators: seconds are not comparable" in said
    assert "different networks" in said
    taught = compare([made(), made(distillation={"loss": "soft"})], [None, None])
    assert any("the teacher itself" in warning for warning in taught["warnings"])
    assert not any("earlier training" in warning for warning in taught["warnings"])
    reused = made("second", distillation={"loss": "soft", "asked_earlier": True})
    head = made("third", strategy="feature-extractor")
    head.checkpoint.details["training"]["features_earlier"] = True
    said = compare([made(), reused, head], [None] * 3)["warnings"]
    assert any(warning.endswith("not part of the seconds: second; third") for warning in said)


def test_other_classes_are_refused() -> None:
    with pytest.raises(ConfigError, match="b: other classes than a") as caught:
        compare([made("a"), made("b", classes=("ant", "wasp"))], [None, None])
    assert "ant, wasp against ant, bee" in caught.value.hint


def test_a_training_without_settings_is_like_no_other() -> None:
    bare = [made("a"), made("b", seed=1)]
    for training in bare:
        del training.checkpoint.details["settings"]
    unlike = bare[1].checkpoint.model_copy(update={"classes": CLASSES, "kind": "other content"})
    found = compare([bare[0], bare[1]._replace(checkpoint=unlike)], [None, None])
    assert [group["runs"] for group in found["groups"]] == [["a"], ["b"]]


def test_answers_are_those_of_the_network(class_folders: Path, tmp_path: Path) -> None:
    data = scan(DataSection(path="images", min_images=2), class_folders)
    model = ModelSection(name="mobilenet_v2_035_cifar10", weights="none")
    settings = FinetuneSection(strategy="full", epochs=1, batch=8)
    checkpoint = finetune(model, data, settings, into=tmp_path / "checkpoint")
    found = answers(checkpoint, data, into=tmp_path / "answers")
    assert found.parents == {"checkpoint": checkpoint.digest}
    given = json.loads(found.file("right.json").read_text())
    assert set(given) == {f"{s.sha256}:{s.label}" for s in data.splits["test"]}
    told = compare([Training("a", checkpoint, data)], [given])["groups"][0]
    assert told["seeds"] == [0]
    assert told["epochs"] == 1
    assert told["test"]["top1"] == pytest.approx(np.mean(list(given.values())))
