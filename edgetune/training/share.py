"""A part of a batch computes what it would in the whole: the same is dropped, and BatchNorm sees all processes.

Dropout and stochastic depth draw for the whole batch and drop in their own rows, so that neither micro-batches
nor the number of processes change what is learned. BatchNorm's statistics are those of all processes' shares of
a micro-batch: torch has that for CUDA; for the CPU it is here. It knows no network: it works on the functions
that networks call. It may import this package's ranks.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional
from torch.nn.modules._functions import SyncBatchNorm
from torch.overrides import TorchFunctionMode

from edgetune.training import ranks

_DROPS = frozenset(
    {functional.dropout, functional.dropout1d, functional.dropout2d, functional.dropout3d}
)  # fmt: skip


class Share(TorchFunctionMode):
    """While it is entered, forward passes are of some rows of a batch.

    Args:
        rows: of the batch.
        whole: rows of the whole batch.
    """

    def __init__(self, rows: slice, whole: int) -> None:
        super().__init__()
        self._rows = rows
        self._count = rows.stop - rows.start
        self._whole = whole

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Replace the functions in which rows depend on each other."""
        given = kwargs or {}
        if func in _DROPS and given.get("training", True) and len(args[0]) == self._count:
            noise = func(_ones(args[0], self._whole), p=given["p"], training=True)
            return args[0] * noise[self._rows]
        if func is Tensor.bernoulli_ and args[0].ndim and len(args[0]) == self._count:
            noise = _ones(args[0], self._whole).bernoulli_(*args[1:], **given)
            return args[0].copy_(noise[self._rows])
        if func is functional.batch_norm and given.get("training") and ranks.size() > 1:
            return _shared_batch_norm(*args, **given)
        return func(*args, **given)


def _ones(like: Tensor, rows: int) -> Tensor:
    """Return ones in a tensor's layout: in another one the same draws would fall on other values."""
    last = like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    shape = (rows, *like.shape[1:])
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout).fill_(1)


def _shared_batch_norm(
    inputs: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,  # noqa: ARG001
    momentum: float,
    eps: float,
) -> Tensor:
    if inputs.is_cuda:
        inputs = inputs if inputs.is_contiguous(memory_format=torch.channels_last) else inputs.contiguous()
        found: Tensor = SyncBatchNorm.apply(
            inputs, weight, bias, mean, variance, eps, momentum, dist.group.WORLD, ranks.size()
        )
        return found
    axes = [axis for axis in range(inputs.ndim) if axis != 1]
    shape = (1, -1, *[1] * (inputs.ndim - 2))
    count = float(ranks.total(torch.tensor(inputs.numel() // inputs.shape[1])))
    if count < 2:
        raise ValueError("Expected more than 1 value per channel when training")
    centre: Tensor = _Sum.apply(inputs.sum(axes)) / count
    shifted = inputs - centre.view(shape)
    spread: Tensor = _Sum.apply((shifted * shifted).sum(axes)) / count
    with torch.no_grad():
        if mean is not None:
            mean.lerp_(centre, momentum)
        if variance is not None:
            variance.lerp_(spread * (count / (count - 1)), momentum)
    scaled = shifted * (spread + eps).rsqrt().view(shape)
    if weight is not None:
        scaled = scaled * weight.view(shape)
    return scaled if bias is None else scaled + bias.view(shape)


class _Sum(torch.autograd.Function):
    """The sum over all processes; so is its gradient."""

    @staticmethod
    def forward(_: Any, own: Tensor) -> Tensor:
        return ranks.total(own.clone())

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return ranks.total(gradient.clone())
