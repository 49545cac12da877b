"""A data set's images, decoded once, become each phase's batches; a frozen network's features as well.

It knows no optimizer. It may import errors, artifact, recipe, machine, progress, data and this package.
"""

import time
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from edgetune.artifact import Preprocess
from edgetune.data.augment import build_augment, build_mix, knobs
from edgetune.data.cache import Undecoded, decoded
from edgetune.data.folders import Dataset
from edgetune.progress import Progress
from edgetune.recipe import FinetuneSection
from edgetune.training.accelerator import Accelerator
from edgetune.training.features import Feed, Images, compute_features, feature_feed, image_feed
from edgetune.training.loop import Feeds
from edgetune.training.strategies import Layout, Phase


class Feeder:
    """Makes a phase's batches. Images are decoded when they are first needed, features computed likewise.

    Attributes:
        labels: of the training split [N].
        decode_seconds: spent on decoding images before they were needed.
    """

    def __init__(
        self,
        net: nn.Module,
        layout: Layout,
        data: Dataset,
        preprocess: Preprocess,
        settings: FinetuneSection,
        accelerator: Accelerator,
        progress: Progress,
        cache: Path,
    ) -> None:
        """Args as of the training; cache: folder of the decoded images."""
        self._net = net
        self._head = layout.head
        self._data = data
        self._preprocess = preprocess
        self._settings = settings
        self._accelerator = accelerator
        self._progress = progress
        self._cache = cache
        self.decode_seconds = 0.0
        chosen = knobs(settings.augment)
        self._augment = build_augment(chosen, preprocess.size_px)
        self._mix = build_mix(chosen, len(data.classes))
        self.labels = _labels(data, "train")

    def __call__(self, phase: Phase) -> Feeds:
        """Return the batches of a phase: of features where only the head learns and they are few enough to keep.

        Where they are too many, the head is given the same ones, computed anew: more images must not turn
        the training into another one.
        """
        if phase.head_only and self._mix:
            self._progress.line("MixUp and CutMix mix images: a head that learns from features goes without")
        return (self._features() if phase.head_only else None) or Feeds(
            image_feed(
                self._train,
                self._settings.batch,
                self._accelerator,
                seed=self._settings.seed,
                augment=self._augment,
                mix=None if phase.head_only else self._mix,
                views=self._settings.views if phase.head_only else 0,
                decodes=isinstance(self._train.pixels, Undecoded),
            ),
            self._ordered(self._val),
        )

    @cached_property
    def _train(self) -> Images:
        return self._images("train")

    @cached_property
    def _val(self) -> Images:
        return self._images("val")

    def _images(self, split: str) -> Images:
        began = time.perf_counter()
        samples = self._data.splits[split]
        pixels = decoded(self._cache, split, self._data.root, samples, self._preprocess, self._progress)
        self.decode_seconds += time.perf_counter() - began
        return Images(pixels, _labels(self._data, split), self._preprocess)

    def _ordered(self, images: Images, augmented: bool = False) -> Feed:
        return image_feed(
            images,
            self._settings.batch,
            self._accelerator,
            seed=self._settings.seed,
            shuffled=False,
            augment=self._augment if augmented else None,
            decodes=isinstance(images.pixels, Undecoded),
        )

    def _features(self) -> Feeds | None:
        """Compute features once; None where they are too large to be kept."""
        head = self._net.get_submodule(self._head)
        views = self._settings.views if self._augment else 1
        feeds = [self._ordered(self._train, augmented=True)] * views
        train = compute_features(self._net, head, feeds, self._accelerator, self._progress, self._cache)
        if train is None:
            self._progress.line("features are too large to be kept: they are computed anew in each epoch")
            return None
        val = compute_features(
            self._net, head, [self._ordered(self._val)], self._accelerator, self._progress, self._cache
        )
        if val is None:
            return None
        batch, seed = self._settings.batch, self._settings.seed
        return Feeds(
            feature_feed(train, self._train.labels, batch, self._accelerator, seed=seed),
            feature_feed(val, self._val.labels, batch, self._accelerator, seed=seed, shuffled=False),
            features=True,
        )


def _labels(data: Dataset, split: str) -> torch.Tensor:
    return torch.tensor([sample.label for sample in data.splits[split]])
