"""Batches of texts for training, those of like length together, so that little of what only fills is computed.

As everywhere, every random choice is seeded by what it is for. It knows no optimizer and no loop. It may import
errors, machine, data.tokens and this package.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from edgetune.data.tokens import filled
from edgetune.errors import StageError
from edgetune.machine import free_bytes
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
        seed: of the order; None: all sorted by length.
        epoch: from 1.

    Returns:
        The largest batch first, where memory that does not do shows at once, and not after hours.
    """
    if seed is None:
        return list(torch.split(torch.argsort(lengths, descending=True, stable=True), batch))
    order = epoch_order(len(lengths), batch, seed, epoch)
    made = []
    for start in range(0, len(order), POOL):
        pool = torch.cat(order[start : start + POOL])
        made += list(torch.split(pool[torch.argsort(lengths[pool], stable=True)], batch))
    shuffle = torch.Generator().manual_seed(seed_for(seed, epoch, 1))
    made = [made[index] for index in torch.randperm(len(made), generator=shuffle).tolist()]
    made.insert(0, made.pop(max(range(len(made)), key=lambda index: _size(lengths[made[index]]))))
    return made


def _size(lengths: Tensor) -> int:
    """Return what a batch's attention grows with."""
    return len(lengths) * int(lengths.max()) ** 2


def check_memory(net: nn.Module, texts: Texts, batch: int) -> None:
    """Refuse a batch of the longest texts that this machine's memory cannot hold: its system would end the process.

    Args:
        net: on the CPU, its parameters set to learn or not.
        texts: of the training split.
        batch: texts that go through at once.

    Raises:
        StageError: it takes more than is free.
    """
    rows, longest = min(batch, len(texts.ids)), max(map(len, texts.ids))
    needed, free = step_bytes(net, (rows, 2, longest)), free_bytes()
    if needed > free:
        raise StageError(
            f"a batch of {rows} texts of up to {longest} tokens takes {needed / 1e9:.1f} GB of memory, and "
            f"{free / 1e9:.1f} GB are free",
            hint="lower finetune.batch (finetune.accumulate makes up for it), or model.length",
        )


def step_bytes(net: nn.Module, shape: Sequence[int]) -> int:
    """Return the bytes that a training step on tokens takes at least: what it keeps for gradients, and those.

    Nothing is computed: tensors without memory go through the network.
    """
    given = {
        name: torch.empty_like(tensor, device="meta").requires_grad_(tensor.requires_grad)
        for name, tensor in chain(net.named_parameters(), net.named_buffers())
    }
    own = {tensor.untyped_storage()._cdata for tensor in given.values()}
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        # By its storage, which is held on to: what views share counts once.
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        functional_call(net, given, (torch.zeros(tuple(shape), dtype=torch.int64, device="meta"),))
    # A gradient, and AdamW's two means of it, for all that learns.
    learning = sum(3 * tensor.nbytes for tensor in given.values() if tensor.requires_grad)
    return learning + sum(storage.nbytes() for key, storage in kept.items() if key not in own)
