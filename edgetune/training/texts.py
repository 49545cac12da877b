"""Batches of texts for training, those of like length together, so that little of what only fills is computed.

As everywhere, every random choice is seeded by what it is for. It knows no optimizer and no loop. It may import
data.tokens and this package.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgetune.data.tokens import filled
from edgetune.training import ranks
from edgetune.training.accelerator import Accelerator
from edgetune.training.features import Batch, Feed, epoch_order, seed_for

# Texts of so many batches are sorted by their lengths: nearly all of the filling is saved, and which texts meet in
# a batch stays as good as random.
POOL = 32


@dataclass(frozen=True)
class Texts:
    """A split's texts as numbers of tokens.

    Attributes:
        ids: of each text.
        labels: [N].
        pad: the number that fills.
    """

    ids: Sequence[NDArray[np.int32]]
    labels: Tensor
    pad: int


def text_feed(
    texts: Texts,
    batch: int,
    accelerator: Accelerator,
    *,
    seed: int,
    shuffled: bool = True,
    share: int = 0,
) -> Feed:
    """Return batches of texts [N, 2, L], each filled up to its own longest one.

    Args:
        texts: of one split.
        batch: texts per batch.
        accelerator: where the batches go.
        seed: of the order and of dropout.
        shuffled: false: the same order in every epoch, by length.
        share: where several processes train together, give this one its share of every so many texts of a batch.
    """
    lengths = torch.tensor([len(own) for own in texts.ids])
    steps = len(epoch_order(len(lengths), batch, seed if shuffled else None, 1))

    def batches(epoch: int) -> Iterator[Batch]:
        if shuffled or ranks.size() == 1:
            cut = bucketed(lengths, batch, seed if shuffled else None, epoch)
        else:
            # What several processes keep of texts is put together in order.
            cut = epoch_order(len(lengths), batch, None, epoch)
        for step, pick in enumerate(cut):
            own = pick
            if share and ranks.size() > 1:
                own = torch.cat([pick[rows] for rows in ranks.parts(len(pick), share)])
            # Whoever has nothing to do still needs to know the inputs' shape.
            made = filled([texts.ids[index] for index in (own if len(own) else pick[:1]).tolist()], texts.pad)
            torch.manual_seed(seed_for(seed, epoch, step))
            inputs = accelerator.move(torch.from_numpy(made[: len(own)]))
            # Texts are not augmented: there is one view of each.
            yield Batch(inputs, accelerator.move(texts.labels[own]), own, 1, len(pick))

    return Feed(len(lengths), steps, batches, ragged=True)


def bucketed(lengths: Tensor, batch: int, seed: int | None, epoch: int) -> list[Tensor]:
    """Cut texts' numbers into an epoch's batches of like lengths.

    Args:
        lengths: of the texts [N].
        batch: texts per batch.
        seed: of the order; None: all sorted by length, the longest first, where memory that does not do shows.
        epoch: from 1.
    """
    if seed is None:
        return list(torch.split(torch.argsort(lengths, descending=True, stable=True), batch))
    order = epoch_order(len(lengths), batch, seed, epoch)
    made = []
    for start in range(0, len(order), POOL):
        pool = torch.cat(order[start : start + POOL])
        made += list(torch.split(pool[torch.argsort(lengths[pool], stable=True)], batch))
    shuffle = torch.Generator().manual_seed(seed_for(seed, epoch, 1))
    return [made[index] for index in torch.randperm(len(made), generator=shuffle).tolist()]
