"""A part of a batch drops and normalises as the whole batch would."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from several import several
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import StochasticDepth

from edgetune.training import ranks
from edgetune.training.share import Share


class Functional(nn.Module):
    """Drops without a module of its own."""

    def forward(self, inputs: Tensor) -> Tensor:
        return functional.dropout(inputs, 0.4, self.training)


DROPS: dict[str, Callable[[], nn.Module]] = {
    "dropout": lambda: nn.Dropout(0.3),
    "in place": lambda: nn.Dropout(0.3, inplace=True),
    "whole maps": lambda: nn.Dropout2d(0.5),
    "rows": lambda: StochasticDepth(0.5, "row"),
    "function": Functional,
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", DROPS)
def test_parts_drop_what_the_whole_drops(kind: str, layout: torch.memory_format) -> None:
    net = DROPS[kind]()
    given = torch.rand(9, 4, 5, 5).contiguous(memory_format=layout) + 1
    torch.manual_seed(3)
    whole = net(given.clone())
    assert (whole == 0).any()
    for rows in (slice(0, 4), slice(4, 5), slice(5, 9), slice(9, 9)):
        torch.manual_seed(3)
        with Share(rows, 9):
            part = net(given[rows].clone())
        torch.testing.assert_close(part, whole[rows])


def test_timm_s_drop_path_too() -> None:
    layers = pytest.importorskip("timm.layers")
    net, given = layers.DropPath(0.5), torch.rand(8, 3) + 1
    torch.manual_seed(1)
    whole = net(given)
    torch.manual_seed(1)
    with Share(slice(3, 8), 8):
        torch.testing.assert_close(net(given[3:8]), whole[3:8])


def test_nothing_is_dropped_in_eval_mode() -> None:
    given = torch.rand(4, 3)
    with Share(slice(0, 2), 4):
        assert torch.equal(nn.Dropout(0.5).eval()(given[:2]), given[:2])


def learned(kind: type[nn.Module], shape: tuple[int, ...], **options: Any) -> list[Tensor]:
    """Gradients and statistics after one pass over this process' share of a batch."""
    torch.manual_seed(0)
    net = nn.Sequential(kind(shape[1], **options), nn.Dropout(0.3), nn.Flatten(), nn.LazyLinear(2)).double()
    given = torch.randn(shape).double() * 3 + 1
    net(given[:2].requires_grad_())
    net[0].reset_running_stats()
    given = given.detach().requires_grad_()
    torch.manual_seed(5)
    (rows,) = ranks.parts(len(given), len(given))
    with Share(rows, len(given)):
        (net(given[rows]).square().sum() / len(given)).backward()
    assert given.grad is not None
    return [ranks.total(p.grad.clone()) for p in [given, *net.parameters()]] + list(net[0].buffers())


@pytest.mark.forks
@pytest.mark.parametrize("processes", [2, 5])
@pytest.mark.parametrize(
    ("kind", "shape", "options"),
    [
        (nn.BatchNorm2d, (4, 3, 5, 6), {}),
        (nn.BatchNorm2d, (4, 3, 5, 6), {"affine": False, "momentum": None}),
        (nn.BatchNorm2d, (4, 3, 5, 6), {"track_running_stats": False}),
        (nn.BatchNorm1d, (4, 7), {"eps": 0.1, "momentum": 0.4}),
    ],
)
def test_batchnorm_sees_all_processes(
    processes: int, kind: type[nn.Module], shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    alone = learned(kind, shape, **options)
    for found in several(processes, lambda: [t.numpy() for t in learned(kind, shape, **options)]):
        for one, other in zip(alone, found, strict=True):
            torch.testing.assert_close(torch.from_numpy(other), one.detach())


@pytest.mark.forks
def test_one_value_in_all_processes_is_too_few() -> None:
    def work() -> None:
        (rows,) = ranks.parts(1, 1)
        with Share(rows, 1), pytest.raises(ValueError, match="more than 1 value per channel"):
            nn.BatchNorm1d(3)(torch.rand(1, 3)[rows])

    several(2, work)
