"""Batches for training: of images, or of features that a frozen network computed once.

Every random choice is seeded by what it is for (epoch, step, image), never by what came before, so that a
resumed training and any number of workers see the same batches. It knows no optimizer and no loop. It may
import artifact, progress, data.augment (for the types) and this package's accelerator.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from edgetune.artifact import Preprocess
from edgetune.data.augment import Augment, Mix
from edgetune.progress import Progress
from edgetune.training.accelerator import Accelerator

# Not a share of the memory that is free: features computed anew, in other batches, differ in the last bits,
# and the same recipe must give the same bits on any machine. 400 000 vectors of 1280.
FEATURE_BYTES = 2 << 30


class Batch(NamedTuple):
    """What a step learns from.

    Attributes:
        inputs: on the accelerator.
        targets: class numbers [N], below 0 where there is none, or shares [N, K] where inputs are mixed; on the
            accelerator.
        picks: the inputs' numbers in their split [N], on the CPU.
        view: which augmented version of them this is; the same number gives the same version.
    """

    inputs: Tensor
    targets: Tensor
    picks: Tensor
    view: int


class Pixels(Protocol):
    """Decoded images by number, uint8 [C, H, W] each; a tensor [N, C, H, W] is one as well."""

    def __getitem__(self, index: int, /) -> Any:
        """Return an image."""


@dataclass(frozen=True)
class Feed:
    """Where an epoch's batches come from.

    Attributes:
        images: per epoch, for the progress bar.
        steps: batches per epoch.
        batches: gives the batches of an epoch (from 1).
    """

    images: int
    steps: int
    batches: Callable[[int], Iterator[Batch]]


@dataclass(frozen=True)
class Images:
    """A split's decoded images.

    Attributes:
        pixels: of all images, cropped to one size or not.
        labels: [N].
        preprocess: how they are scaled.
    """

    pixels: Pixels
    labels: Tensor
    preprocess: Preprocess


def seed_for(*parts: int) -> int:
    """Mix numbers into one seed; neighbouring numbers give unrelated seeds."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def epoch_order(images: int, batch: int, seed: int | None, epoch: int) -> list[Tensor]:
    """Cut image numbers into an epoch's batches, shuffled where there is a seed.

    When shuffled, the last, smaller batch is kept unless it is one image: BatchNorm has no variance of one.
    """
    if seed is None:
        return list(torch.split(torch.arange(images), batch))
    shuffle = torch.Generator().manual_seed(seed_for(seed, epoch))
    order = list(torch.split(torch.randperm(images, generator=shuffle), batch))
    if len(order) > 1 and len(order[-1]) == 1 < batch:
        order.pop()
    return order


def image_feed(
    images: Images,
    batch: int,
    accelerator: Accelerator,
    *,
    seed: int,
    shuffled: bool = True,
    augment: Augment | None = None,
    mix: Mix | None = None,
    views: int = 0,
    workers: int = 0,
) -> Feed:
    """Return batches of normalised images.

    Args:
        images: of one split.
        batch: images per batch.
        accelerator: where the batches go.
        seed: of the order, the augmentation, the mix and dropout.
        shuffled: false: in order, as for evaluation.
        augment: changes one image, uint8 [C, H, W] to uint8 [C, size, size].
        mix: changes a batch and turns class numbers into shares.
        views: augmented versions of each image that epochs take turns with, as cached features do; 0: every
            epoch makes a new one.
        workers: processes that augment; 0: this one. The batches do not depend on it.
    """
    count = len(images.labels)

    def order(epoch: int) -> list[Tensor]:
        return epoch_order(count, batch, seed if shuffled else None, epoch)

    def batches(epoch: int) -> Iterator[Batch]:
        picks = order(epoch)
        view = (epoch - 1) % views + 1 if views else epoch
        loaded = _load(images.pixels, picks, augment, (seed, view), workers)
        for step, (pick, pixels) in enumerate(zip(picks, loaded, strict=True)):
            inputs = normalise(accelerator.move(pixels), images.preprocess)
            targets = accelerator.move(images.labels[pick])
            # For the mix here, and for dropout in the step that follows.
            torch.manual_seed(seed_for(seed, epoch, step))
            if mix:
                inputs, targets = mix(inputs, targets)
            yield Batch(inputs, targets, pick, view)

    return Feed(count, len(order(1)), batches)


def normalise(pixels: Tensor, preprocess: Preprocess) -> Tensor:
    """Scale uint8 [N, C, H, W] to 0..1, then to `(x - mean) / std` per channel; float32."""
    shape = (1, -1, 1, 1)
    mean = torch.tensor(preprocess.mean, device=pixels.device).view(shape)
    std = torch.tensor(preprocess.std, device=pixels.device).view(shape)
    return (pixels.float() / 255 - mean) / std


def feature_feed(
    features: Tensor,
    labels: Tensor,
    batch: int,
    accelerator: Accelerator,
    *,
    seed: int,
    shuffled: bool = True,
) -> Feed:
    """Return batches of cached features; with several views, epochs take turns.

    Args:
        features: [V, N, ...], of V views of each input.
        labels: [N].
        batch: inputs per batch.
        accelerator: where the batches go.
        seed: of the order and of dropout.
        shuffled: false: in order, as for evaluation.
    """
    count = len(labels)

    def order(epoch: int) -> list[Tensor]:
        return epoch_order(count, batch, seed if shuffled else None, epoch)

    def batches(epoch: int) -> Iterator[Batch]:
        view = (epoch - 1) % len(features) + 1
        for step, pick in enumerate(order(epoch)):
            torch.manual_seed(seed_for(seed, epoch, step))
            inputs, targets = features[view - 1][pick], labels[pick]
            yield Batch(accelerator.move(inputs), accelerator.move(targets), pick, view)

    return Feed(count, len(order(1)), batches)


@torch.no_grad()
def compute_features(
    net: nn.Module,
    head: nn.Module,
    feeds: Sequence[Feed],
    accelerator: Accelerator,
    progress: Progress,
) -> Tensor | None:
    """Run the frozen part of a network once and keep what its head is given.

    Args:
        net: put in eval mode.
        head: the module whose input is kept.
        feeds: one for each view, in order (no shuffling).
        accelerator: where the network is.
        progress: told of every batch.

    Returns:
        float32 [V, N, ...] on the CPU; None where that would take more than `FEATURE_BYTES`.
    """
    caught: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, given: caught.append(given[0].float().cpu()))
    net.eval()
    images = sum(feed.images for feed in feeds)
    kept: Tensor | None = None
    done = 0
    progress.begin("features", total=images)
    try:
        for number, feed in enumerate(feeds):
            for batch in feed.batches(number + 1):
                with accelerator.mixed(), accelerator.guarded():
                    net(batch.inputs)
                (found,) = caught
                caught.clear()
                if kept is None:
                    if images * found[0].nbytes > FEATURE_BYTES:
                        return None
                    kept = torch.empty(images, *found.shape[1:])
                kept[done : done + len(found)] = found
                done += len(found)
                progress.advance(len(found))
    finally:
        hook.remove()
        progress.end()
    return kept.reshape(len(feeds), -1, *kept.shape[1:]) if kept is not None else None


class _Augmented(Dataset[Tensor]):
    """Images by number, augmented; each is seeded by the epoch and its number."""

    def __init__(self, pixels: Pixels, augment: Augment | None, seeds: tuple[int, int]) -> None:
        self.pixels = pixels
        self.augment = augment
        self.seeds = seeds

    def __getitem__(self, index: int) -> Tensor:
        image = torch.as_tensor(self.pixels[index])
        if self.augment is None:
            return image
        # Not torch.manual_seed: that would seed the GPU's generators as well, for each image.
        torch.default_generator.manual_seed(seed_for(*self.seeds, index))
        return self.augment(image)


def _load(
    pixels: Pixels, picks: list[Tensor], augment: Augment | None, seeds: tuple[int, int], workers: int
) -> Iterator[Tensor]:
    if augment is None and isinstance(pixels, Tensor):
        yield from (pixels[pick] for pick in picks)
        return
    yield from DataLoader(
        _Augmented(pixels, augment, seeds),
        batch_sampler=[pick.tolist() for pick in picks],
        collate_fn=torch.stack,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
    )
