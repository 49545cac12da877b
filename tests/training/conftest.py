"""A tiny network of three groups and a head, and a task whose classes differ in colour."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from edgetune.artifact import Preprocess
from edgetune.progress import Silent
from edgetune.recipe import FinetuneSection
from edgetune.training.accelerator import choose_accelerator
from edgetune.training.features import Images, feature_feed, image_feed
from edgetune.training.frozen import compute_features
from edgetune.training.loop import Feeds, Task
from edgetune.training.losses import objective
from edgetune.training.strategies import STRATEGIES, Layout, Phase

PREPROCESS = Preprocess(resize_px=8, size_px=8, channels=3, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
LAYOUT = Layout("head", (("stem",), ("first",), ("second",)))
CLASSES = 3


class Tiny(nn.Module):
    """Three convolutions with BatchNorm, pooling, dropout and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.first = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(8, CLASSES))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.head(self.pool(self.second(self.first(self.stem(batch)))).flatten(1))


@pytest.fixture
def tiny() -> Callable[[], Tiny]:
    """Return a function that makes the same tiny network each time."""

    def make() -> Tiny:
        torch.manual_seed(0)
        return Tiny()

    return make


def coloured(images: int, seed: int) -> Images:
    """Noise, one colour stronger than the others."""
    noise = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % CLASSES
    pixels = torch.randint(0, 120, (images, 3, 8, 8), generator=noise, dtype=torch.uint8)
    pixels[torch.arange(images), labels] += 60
    return Images(pixels, labels, PREPROCESS)


@pytest.fixture
def images() -> Images:
    """Return 31 images, labels and preprocessing: with a batch of 7 the last batch would hold 3."""
    return coloured(31, 1)


@pytest.fixture
def make_task(tmp_path: Path) -> Callable[..., Task]:
    """Return a function from settings to a task on CPU, with its resume folder in a place of its own."""

    def make(net: nn.Module, folder: str = "resume", fingerprint: str = "x", **settings: object) -> Task:
        section = FinetuneSection.model_validate({"epochs": 4, "batch": 7, "learning_rate": 0.02, **settings})
        train, val, cpu = coloured(31, 1), coloured(12, 2), choose_accelerator("cpu")

        def feeds(phase: Phase) -> Feeds:
            kept = image_feed(val, 7, cpu, seed=0, shuffled=False, share=7)
            group = section.batch * section.accumulate
            if not phase.head_only:
                return Feeds(image_feed(train, group, cpu, seed=section.seed, share=section.batch), kept)
            ordered = [image_feed(train, 7, cpu, seed=0, shuffled=False, share=7)]
            found = compute_features(net, net.head, ordered, cpu, Silent(), sample=torch.rand(1, 3, 8, 8))
            tested = compute_features(net, net.head, [kept], cpu, Silent(), sample=torch.rand(1, 3, 8, 8))
            return Feeds(
                feature_feed(found, train.labels, group, cpu, seed=section.seed),
                feature_feed(tested, val.labels, 7, cpu, seed=0, shuffled=False),
                features=True,
            )

        return Task(
            layout=LAYOUT,
            phases=STRATEGIES[section.strategy](section, 3),
            feeds=feeds,
            loss=objective(section, train.labels, CLASSES),
            settings=section,
            accelerator=cpu,
            folder=tmp_path / folder,
            fingerprint=fingerprint,
        )

    return make
