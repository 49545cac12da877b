"""Batches for training: of images, or of features that a frozen network has computed.

Every random choice is seeded by what it is for (epoch, step, image), never by what came before, so that a
resumed training and any number of workers see the same batches. It knows no optimizer and no loop. It may
import artifact, data.augment, data.images and this package's accelerator and ranks.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgetune.artifact import Preprocess
from edgetune.data.augment import Augment, Mix, Plan
from edgetune.data.images import in_threads
from edgetune.training import ranks
from edgetune.training.accelerator import Accelerator

# Batches that are made while the model learns from another one.
AHEAD = 2

Item = TypeVar("Item")


class Batch(NamedTuple):
    """What a step learns from.

    Attributes:
        inputs: on the accelerator.
        targets: class numbers [N], below 0 where there is none, or shares [N, K] where inputs are mixed; on the
            accelerator.
        picks: the inputs' numbers in their split [N], on the CPU.
        view: which augmented version of them this is; the same number gives the same version.
        whole: inputs of the step over all processes; 0: these are all.
    """

    inputs: Tensor
    targets: Tensor
    picks: Tensor
    view: int
    whole: int = 0

    @property
    def rows(self) -> int:
        """Of the step over all processes."""
        return self.whole or len(self.picks)


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
        ragged: inputs of one batch are longer than those of another.
    """

    images: int
    steps: int
    batches: Callable[[int], Iterator[Batch]]
    ragged: bool = False


@dataclass(frozen=True)
class Images:
    """A split's decoded images.

    Attributes:
        pixels: of all images; no side is shorter than `preprocess.size_px`.
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
    decodes: bool = False,
    share: int = 0,
) -> Feed:
    """Return batches of normalised images; while a model learns from one, a thread makes the next.

    Args:
        images: of one split.
        batch: images per batch.
        accelerator: where the batches go.
        seed: of the order, the augmentation, the mix and dropout.
        shuffled: false: in order, as for evaluation.
        augment: changes images; without it the centre is cut out.
        mix: changes a batch and turns class numbers into shares.
        views: augmented versions of each image that epochs take turns with, as cached features do; 0: every
            epoch makes a new one.
        decodes: whether asking for an image takes long: then threads do. The batches do not depend on it.
        share: where several processes train together, give this one its share of every so many images of a
            batch (`ranks.parts`); 0: all of them.
    """
    count = len(images.labels)

    def order(epoch: int) -> list[Tensor]:
        return epoch_order(count, batch, seed if shuffled else None, epoch)

    def batches(epoch: int) -> Iterator[Batch]:
        wholes = order(epoch)
        cuts = [_cut(len(pick), share, mixed=mix is not None) for pick in wholes]
        picks = [pick[read] for pick, (read, _) in zip(wholes, cuts, strict=True)]
        view = (epoch - 1) % views + 1 if views else epoch
        read = _read(images, picks, augment, (seed, view), decodes, accelerator.name == "cuda")
        made = _made(read, images.preprocess, augment, accelerator)
        for step, (pick, inputs, targets) in enumerate(made):
            # For the mix here, and for dropout in the step that follows.
            torch.manual_seed(seed_for(seed, epoch, step))
            if mix:
                inputs, targets = mix(inputs, targets)
            own = cuts[step][1]
            yield Batch(inputs[own], targets[own], pick[own], view, len(wholes[step]))

    return Feed(count, len(order(1)), batches)


def _cut(images: int, share: int, mixed: bool) -> tuple[Tensor | slice, Tensor | slice]:
    """Return which rows of a batch this process reads, and which of those are its share."""
    if not share or ranks.size() == 1:
        return slice(None), slice(None)
    own = torch.cat([torch.arange(images)[rows] for rows in ranks.parts(images, share)])
    if mixed:  # A mixed image needs others of its batch.
        return slice(None), own
    # Whoever has nothing to do still needs to know the inputs' shape.
    return (own, slice(None)) if len(own) else (slice(1), slice(0))


class _Read(NamedTuple):
    """A batch before it is on the accelerator: uint8 [N, C, H, W] and what will be done to it."""

    picks: Tensor
    pixels: Tensor
    labels: Tensor
    plan: Plan | None


def _read(
    images: Images,
    picks: list[Tensor],
    augment: Augment | None,
    seeds: tuple[int, int],
    decodes: bool,
    pinned: bool,
) -> Iterator[_Read]:
    """Put together, of each batch's images, what is looked at."""
    key = int(np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0])
    side = images.preprocess.size_px

    def image(index: int) -> NDArray[np.uint8]:
        return np.asarray(images.pixels[index])

    numbers = [pick.tolist() for pick in picks]
    found = in_threads(image, numbers) if decodes else ([image(i) for i in part] for part in numbers)
    for pick, parts in zip(picks, found, strict=True):
        sizes = np.array([part.shape[1:] for part in parts])
        plan = augment.plan(key, pick.numpy(), sizes, len(parts[0])) if augment else None
        boxes = plan.boxes if plan else np.concatenate([(sizes - side) // 2, np.full_like(sizes, side)], 1)
        pixels, labels = _gathered(parts, boxes, pinned), images.labels[pick]
        yield _Read(pick, pixels, labels.pin_memory() if pinned else labels, plan)


def _gathered(parts: list[NDArray[np.uint8]], boxes: NDArray[np.int64], pinned: bool) -> Tensor:
    """Copy a box of each image into the top left of a batch, channels last in memory; the rest is black."""
    height, width = boxes[:, 2:].max(0).tolist()
    batch = torch.empty(len(parts), height, width, len(parts[0]), dtype=torch.uint8, pin_memory=pinned)
    for own, part, (top, left, tall, wide) in zip(batch.numpy(), parts, boxes.tolist(), strict=True):
        own[:tall, :wide] = part[:, top : top + tall, left : left + wide].transpose(1, 2, 0)
        own[tall:] = 0
        own[:tall, wide:] = 0
    return batch.permute(0, 3, 1, 2)


def _made(
    source: Iterator[_Read], preprocess: Preprocess, augment: Augment | None, accelerator: Accelerator
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield numbers, inputs and targets.

    A thread reads ahead. On a GPU it sends, augments and normalises as well, in a stream of its own, beside
    the model's work; on a CPU that would only take the model's cores.
    """

    def made(read: _Read) -> tuple[Tensor, Tensor, Tensor]:
        with accelerator.guarded():
            pixels = accelerator.move(read.pixels)
            if augment and read.plan:
                pixels = accelerator.move(
                    augment.apply(pixels, read.plan, accelerator.move(read.plan.numbers))
                )
            return read.picks, normalise(pixels, preprocess), accelerator.move(read.labels)

    if accelerator.name != "cuda":
        yield from map(made, _ahead(lambda: next(source, None)))
        return
    stream = torch.cuda.Stream(accelerator.device)  # type: ignore[no-untyped-call]

    def sent() -> tuple[Tensor, Tensor, Tensor] | None:
        with torch.cuda.stream(stream):
            read = next(source, None)
            batch = made(read) if read else None
        # Waiting here, not in the model's stream: a batch that is handed over is there.
        stream.synchronize()
        return batch

    for picks, inputs, targets in _ahead(sent):
        for tensor in (inputs, targets):
            tensor.record_stream(torch.cuda.current_stream())
        yield picks, inputs, targets


def _ahead(fetch: Callable[[], Item | None]) -> Iterator[Item]:
    """Yield what a thread fetches until there is nothing more, a few items ahead."""
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(fetch) for _ in range(AHEAD))
        try:
            while (item := waiting.popleft().result()) is not None:
                waiting.append(pool.submit(fetch))
                yield item
        finally:
            pool.shutdown(cancel_futures=True)


def normalise(pixels: Tensor, preprocess: Preprocess) -> Tensor:
    """Scale uint8 [N, C, H, W] to 0..1, then to `(x - mean) / std` per channel; float32."""

    def row(values: tuple[float, ...]) -> Tensor:
        # As wide as the images: loops over three channels take three times as long as loops over a row of pixels.
        wide = (
            torch.tensor(values, device=pixels.device).view(1, -1, 1, 1).expand(-1, -1, -1, pixels.shape[3])
        )
        return wide.contiguous(memory_format=torch.channels_last)

    return (pixels / 255).sub_(row(preprocess.mean)).div_(row(preprocess.std))


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
