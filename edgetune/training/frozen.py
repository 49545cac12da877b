"""Features that the frozen part of a network computes once, for every epoch, and for every training that shares them.

It knows no optimizer and no loop. It may import artifact, data.cache, progress and this package.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from edgetune.artifact import hash_json
from edgetune.data.cache import DISK_SHARE
from edgetune.progress import Progress
from edgetune.training.accelerator import Accelerator
from edgetune.training.features import Feed
from edgetune.training.kept import NoRoom, Put, into, kept

# Not a share of the memory that is free: features computed anew, in other batches, differ in the last bits,
# and the same recipe must give the same bits on any machine. 400 000 vectors of 1280.
FEATURE_BYTES = 2 << 30
NAME = "features"


@torch.no_grad()
def compute_features(
    net: nn.Module,
    head: nn.Module,
    feeds: Sequence[Feed],
    accelerator: Accelerator,
    progress: Progress,
    *,
    sample: Tensor,
    folder: Path | None = None,
    images: Sequence[Any] = (),
    earlier: Callable[[], None] = lambda: None,
) -> Tensor | None:
    """Run the frozen part of a network once and keep what its head is given.

    Args:
        net: put in eval mode.
        head: the module whose input is kept.
        feeds: one for each view, in order (no shuffling).
        accelerator: where the network is.
        progress: told of every batch.
        sample: an input of the network, any; what comes of it tells networks and machines apart.
        folder: where features are kept on the disk, out of memory's way, and found again by whoever asks for the
            same; None: in memory.
        images: plain values that tell the feeds' images from all others.
        earlier: called where an earlier training has computed them.

    Returns:
        float32 [V, N, ...] on the CPU, of all processes' shares; None where that would take more than `FEATURE_BYTES`.
        Of several processes, those that do not see the folder get nothing of [V, N, 0].
    """
    net.eval()
    count = feeds[0].images
    with _caught(head) as caught:

        def features(inputs: Tensor) -> Tensor:
            with accelerator.mixed(), accelerator.guarded():
                net(inputs)
            (found,) = caught
            caught.clear()
            return found

        def fill(put: Put) -> None:
            progress.begin("features", total=count * len(feeds))
            try:
                for view, feed in enumerate(feeds):
                    for batch in feed.batches(view + 1):
                        put(view, batch, {NAME: features(batch.inputs)})
                        progress.advance(batch.rows)
            finally:
                progress.end()

        probe = features(accelerator.move(sample)).cpu()
        shapes = {NAME: (len(feeds), count, *probe.shape[1:])}
        if torch.Size(shapes[NAME]).numel() * 4 > FEATURE_BYTES:
            return None
        if folder is not None:
            try:
                key = hash_json([*images, len(feeds), _digest(net, head, probe), str(accelerator.autocast)])
                found, there = kept(folder, key, shapes, torch.float32, DISK_SHARE, fill, progress)
                if there:
                    earlier()
                return found.get(NAME, torch.empty(len(feeds), count, 0))
            except (NoRoom, OSError):
                pass
        made = torch.empty(shapes[NAME])
        fill(into({NAME: made.numpy()}, shapes, torch.float32))
        return made


@contextmanager
def _caught(head: nn.Module) -> Iterator[list[Tensor]]:
    """Catch what a head is given."""
    caught: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, given: caught.append(given[0].float()))
    try:
        yield caught
    finally:
        hook.remove()


def _digest(net: nn.Module, head: nn.Module, probe: Tensor) -> str:
    """Hash what features depend on: the weights, the head's aside, and what is made of noise.

    The second tells networks of the same weights apart that compute something else, and machines that compute
    other bits.
    """
    own = {id(tensor) for tensor in head.state_dict(keep_vars=True).values()}
    weights = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in net.state_dict(keep_vars=True).items()
        if id(tensor) not in own
    }
    return hashlib.sha256(save(weights | {NAME: probe.contiguous()})).hexdigest()
