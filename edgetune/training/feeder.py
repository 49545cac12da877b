"""A data set's images, decoded once, become each phase's batches; a frozen network's features as well.

It knows no optimizer. It may import errors, artifact, recipe, machine, progress, data and this package.
"""

import time
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from edgetune.artifact import How, Preprocess, Tokens, library_versions
from edgetune.data.augment import build_augment, build_mix, knobs
from edgetune.data.cache import TAG_FILE, Undecoded, decoded, owned
from edgetune.data.folders import Dataset
from edgetune.data.reader import example
from edgetune.data.tokens import read_tokens
from edgetune.progress import Progress
from edgetune.recipe import FinetuneSection
from edgetune.training import ranks
from edgetune.training.accelerator import Accelerator
from edgetune.training.features import Feed, Images, feature_feed, image_feed
from edgetune.training.frozen import compute_features
from edgetune.training.loop import Feeds
from edgetune.training.strategies import Layout, Phase, set_phase
from edgetune.training.texts import Texts, check_memory, text_feed

# In the folder of decoded images.
FEATURES = "features"


class Feeder:
    """Makes a phase's batches. Images are decoded when they are first needed, features computed likewise.

    Attributes:
        labels: of the training split [N].
        decode_seconds: spent on decoding images before they were needed.
        cut: texts of the training split that are longer than what the network takes.
        features_earlier: whether an earlier training had computed the features.
    """

    def __init__(
        self,
        net: nn.Module,
        layout: Layout,
        data: Dataset,
        preprocess: How,
        settings: FinetuneSection,
        accelerator: Accelerator,
        progress: Progress,
        cache: Path,
        *,
        view: How | None = None,
        views: int | None = None,
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            net: what features are computed with.
            layout: its parts.
            data: the images.
            preprocess: how they become its input.
            settings: batch, seed, augmentation, views.
            accelerator: where batches go.
            progress: who is told.
            cache: folder of the decoded images.
            view: how training images are cut, where a teacher sees them too; by default as `preprocess` says.
            views: augmented versions that all epochs take turns with; 0: each epoch makes new ones, and nothing
                is kept; None: the settings' where only the head learns, else new ones.
        """
        self._net = net
        self._layout, self._head = layout, layout.head
        self._data = data
        self._preprocess = preprocess
        self._view = view or preprocess
        self._views = views
        self._settings = settings
        self._accelerator = accelerator
        self._progress = progress
        self._cache = cache
        self.decode_seconds = 0.0
        self.cut = 0
        self.features_earlier = False
        chosen = knobs(settings.augment)
        self._augment = None if isinstance(self._view, Tokens) else build_augment(chosen, self._view.size_px)
        self._mix = build_mix(chosen, len(data.classes))
        self.labels = _labels(data, "train")

    def __call__(self, phase: Phase) -> Feeds:
        """Return the batches of a phase: of features where only the head learns and they are few enough to keep.

        Where they are too many, the head is given the same ones, computed anew: more images must not turn
        the training into another one.
        """
        if phase.head_only and self._mix:
            self._progress.line("MixUp and CutMix mix images: a head that learns from features goes without")
        views = self._views if self._views is not None else self._settings.views if phase.head_only else 0
        if phase.head_only and views and (kept := self._features(views)):
            return kept
        whole, seed = self._settings.batch * self._settings.accumulate, self._settings.seed
        if isinstance(self._train, Texts):
            if self._accelerator.name == "cpu":
                set_phase(self._net, self._layout, phase)
                check_memory(self._net, self._train, self._settings.batch)
            feed = text_feed(self._train, whole, self._accelerator, seed=seed, share=self._settings.batch)
            return Feeds(feed, self._ordered(self._val))
        return Feeds(
            image_feed(
                self._train,
                whole,
                self._accelerator,
                seed=seed,
                augment=self._augment,
                mix=None if phase.head_only else self._mix,
                views=views,
                decodes=isinstance(self._train.pixels, Undecoded),
                share=self._settings.batch,
            ),
            self._ordered(self._val),
        )

    def in_order(self, views: int, preprocess: How) -> list[Feed]:
        """Return the training images in order, one feed for each view, scaled as another preprocessing says."""
        train = self._train
        if isinstance(train, Images) and isinstance(preprocess, Preprocess):
            train = replace(train, preprocess=preprocess)
        return [self._ordered(train, augmented=True)] * views

    @cached_property
    def _train(self) -> Images | Texts:
        return self._images("train", self._view)

    @cached_property
    def _val(self) -> Images | Texts:
        return self._images("val", self._preprocess)

    def _images(self, split: str, preprocess: How) -> Images | Texts:
        began = time.perf_counter()
        samples = self._data.splits[split]
        if isinstance(preprocess, Tokens):
            found = read_tokens(self._data.root, samples, preprocess)
            if cut := sum(found.cut):
                self._progress.line(
                    f"{cut} of {len(samples)} {split} texts are longer than {preprocess.length} tokens and are cut "
                    "(model.length)"
                )
            self.cut += cut if split == "train" else 0
            # What is computed of them is kept where what images are decoded into is.
            with suppress(OSError), owned(self._cache):
                pass
            return Texts(found.ids, _labels(self._data, split), preprocess.pad)
        pixels = decoded(self._cache, split, self._data.root, samples, preprocess, self._progress)
        self.decode_seconds += time.perf_counter() - began
        return Images(pixels, _labels(self._data, split), preprocess)

    def _ordered(self, images: Images | Texts, augmented: bool = False) -> Feed:
        if isinstance(images, Texts):
            batch, seed = self._settings.batch, self._settings.seed
            return text_feed(images, batch, self._accelerator, seed=seed, shuffled=False, share=batch)
        return image_feed(
            images,
            self._settings.batch,
            self._accelerator,
            seed=self._settings.seed,
            shuffled=False,
            augment=self._augment if augmented else None,
            decodes=isinstance(images.pixels, Undecoded),
            share=self._settings.batch,
        )

    def _features(self, views: int) -> Feeds | None:
        """Compute features once; None where they are too large to be kept."""
        feeds = self.in_order(views if self._augment else 1, self._view)
        train = self._kept("train", feeds, self._view)
        val = None if train is None else self._kept("val", [self._ordered(self._val)], self._preprocess)
        if train is None or val is None:
            self._progress.line("features are too large to be kept: they are computed anew in each epoch")
            return None
        batch, seed = self._settings.batch * self._settings.accumulate, self._settings.seed
        return Feeds(
            feature_feed(train, self._train.labels, batch, self._accelerator, seed=seed),
            feature_feed(val, self._val.labels, batch, self._accelerator, seed=seed, shuffled=False),
            features=True,
        )

    def _kept(self, split: str, feeds: list[Feed], preprocess: How) -> torch.Tensor | None:
        settings = self._settings
        images = [
            [sample.sha256 for sample in self._data.splits[split]],
            preprocess.model_dump(mode="json"),
            # In batches of another size the last bits differ.
            settings.batch,
            [settings.augment.model_dump(mode="json"), settings.seed]
            if split == "train" and self._augment
            else [],
            library_versions(
                "edgetune", "torch", "torchvision", "pillow", "numpy", "timm", "transformers", "tokenizers"
            ),
        ]

        def earlier() -> None:
            self.features_earlier = True
            self._progress.line(f"features of {split}: {feeds[0].images} inputs, computed earlier")

        # Only in a folder that is ours.
        ours = ranks.leaders((self._cache / TAG_FILE).is_file())
        return compute_features(
            self._net, self._net.get_submodule(self._head), feeds, self._accelerator, self._progress,
            sample=torch.from_numpy(example(preprocess, 1)), folder=self._cache / FEATURES if ours else None,
            images=images, earlier=earlier,
        )  # fmt: skip


def _labels(data: Dataset, split: str) -> torch.Tensor:
    return torch.tensor([sample.label for sample in data.splits[split]])
