"""When torch.compile is tried, and when it is used."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgetune.training.accelerator import choose_accelerator
from edgetune.training.compiling import Compiling, Verdict

CPU = choose_accelerator("cpu")


class Clock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def trained(
    steps: int, eager_s: float, fast_s: float, compile_s: float, known: Verdict | None = None
) -> tuple[Compiling, list[str]]:
    """Go through steps of 8 images, every fifth of 3, that take a known time."""
    net, clock, log = nn.Sequential(*[nn.ReLU() for _ in range(10)]), Clock(), []

    def fast(given: Tensor) -> Tensor:
        return given

    def rehearse(_: Any) -> None:
        clock.now += compile_s

    compiling = Compiling(net, CPU, steps, known, make=lambda _: fast, clock=clock)
    for number in range(min(steps, 60)):
        rows = 3 if number % 5 == 4 else 8
        if compiling.due():
            compiling.compile(rehearse, rows)
            log.append("compile")
        compiling.begin()
        compiled = compiling.forward(rows) is fast
        clock.now += fast_s if compiled else eager_s
        log.append("fast" if compiled else "eager")
        compiling.end(rows, compiled)
    return compiling, log


def test_a_short_training_does_not_try() -> None:
    compiling, log = trained(100, 1.0, 0.1, 10.0)
    assert compiling.verdict is not None
    assert compiling.verdict == (
        False,
        "not tried: about 14 s to compile are more than 5% of the 92 s left (92 steps of 1000 ms)",
    ), "of ten modules"
    assert set(log) == {"eager"}


def test_a_long_one_measures_in_turns_and_uses_what_is_faster() -> None:
    compiling, log = trained(1000, 1.0, 0.5, 20.0)
    assert compiling.verdict is not None
    assert compiling.verdict.used
    assert "500.0 ms a step against 1000.0 ms, after 20 s to compile; saves 4" in compiling.verdict.why
    start = log.index("compile")
    assert start == 8, "two to warm up, five to time, of whole batches"
    turns = [kind for number, kind in enumerate(log[:start] + log[start + 1 :]) if number % 5 != 4][7:17]
    assert turns == ["fast", "eager"] * 5
    assert [kind for number, kind in enumerate(log[:start] + log[start + 1 :]) if number % 5 == 4] == [
        "eager"
    ] * 12
    assert log[-3:] == ["fast", "fast", "eager"]


@pytest.mark.parametrize("fast_s", [0.99, 1.0, 1.5])
def test_what_is_no_faster_is_not_used(fast_s: float) -> None:
    compiling, log = trained(1000, 1.0, fast_s, 20.0)
    assert compiling.verdict is not None
    assert not compiling.verdict.used
    assert compiling.verdict.why.startswith("not used: no faster, ")
    assert set(log[30:]) == {"eager"}


def test_it_says_where_compiling_took_longer_than_it_saves() -> None:
    compiling, _ = trained(1000, 1.0, 0.9, 500.0)
    assert compiling.verdict is not None
    assert compiling.verdict.used, "the time is spent; the steps that are left are faster"
    assert "do not pay back" in compiling.verdict.why


def test_an_interrupted_training_goes_on_as_it_was() -> None:
    known = Verdict(True, "used: as before")
    compiling, log = trained(50, 1.0, 0.5, 20.0, known)
    assert log[:3] == ["compile", "fast", "fast"]
    assert compiling.verdict == known
    known = Verdict(False, "not tried: as before")
    compiling, log = trained(5000, 1.0, 0.5, 20.0, known)
    assert set(log) == {"eager"}
    assert compiling.verdict == known


@pytest.mark.slow
def test_torch_compiles_a_network() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    compiling, given = Compiling(net, CPU, 10, Verdict(True, "used")), torch.rand(8, 4)
    compiling.compile(lambda forward: forward(given).sum().backward(), 8)
    assert compiling.verdict == (True, "used") or "it fails here" in compiling.verdict.why
    torch.testing.assert_close(compiling.forward(8)(given), net(given))
