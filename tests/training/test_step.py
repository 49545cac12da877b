"""One update: the same from a batch, from its parts, and from what fits after memory did not do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgetune.errors import ConfigError
from edgetune.progress import Silent
from edgetune.recipe import FinetuneSection
from edgetune.training.accelerator import Accelerator, choose_accelerator
from edgetune.training.compiling import Compiling
from edgetune.training.features import Batch
from edgetune.training.losses import objective
from edgetune.training.step import Stepper

CPU = choose_accelerator("cpu")


class Lines(Silent):
    """Keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


def network(norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    middle = [nn.BatchNorm2d(4)] if norm else []
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), *middle, nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(4 * 36, 3)
    )


def batch(images: int = 7) -> Batch:
    torch.manual_seed(1)
    return Batch(torch.randn(images, 3, 8, 8), torch.arange(images) % 3, torch.arange(images), 1, images)


def stepper(net: nn.Module, most: int, accelerator: Accelerator = CPU, **options: Any) -> Stepper:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", enabled=accelerator.autocast is torch.float16)
    settings = FinetuneSection.model_validate(options.pop("settings", {}))
    loss = objective(settings, torch.tensor([0, 0, 0, 1, 1, 2]), 3)
    given = {"clip": 1.0, "most": most, "progress": Silent(), **options}
    return Stepper(net, loss, optimizer, scaler, accelerator, **given)


def stepped(net: nn.Module, most: int, steps: int = 3, **options: Any) -> tuple[list[Tensor], list[float]]:
    taker, sums = stepper(net, most, **options), []
    for number in range(steps):
        torch.manual_seed(number)
        sums.append(taker.take(batch()))
    return [t.detach() for t in net.state_dict().values()], torch.stack(sums).flatten().tolist()


@pytest.mark.parametrize("most", [1, 2, 3, 6])
@pytest.mark.parametrize("settings", [{}, {"class_weights": "balanced", "label_smoothing": 0.1}])
def test_parts_make_the_same_update_as_the_whole_batch(most: int, settings: dict[str, Any]) -> None:
    whole, sums = stepped(network(), 7, settings=settings)
    parts, found = stepped(network(), most, settings=settings)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(other, one, atol=1e-6, rtol=1e-5)
    assert found == pytest.approx(sums, rel=1e-5)
    assert found[1::3] == sums[1::3], "right answers are counted, not estimated"
    assert found[2::3] == [7.0] * 3


def test_a_step_counts_losses_and_right_answers() -> None:
    net, given = network().eval(), batch()
    logits = net(given.inputs)
    loss, right, labelled = stepper(net, 3).take(given).tolist()
    assert labelled == 7
    assert right == int((logits.argmax(1) == given.targets).sum())
    smooth = nn.CrossEntropyLoss(label_smoothing=0.05, reduction="sum")(logits, given.targets).detach()
    assert loss == pytest.approx(float(smooth), rel=1e-5)


class Small(nn.Module):
    """Has memory for so many images; runs out behind the part whose statistics have moved."""

    def __init__(self, fits: int, norm: bool = False) -> None:
        super().__init__()
        self.net = network(norm)
        self.fits = fits
        self.failed = 0

    def forward(self, given: Tensor) -> Tensor:
        made: Tensor = self.net(given)
        if len(given) > self.fits:
            self.failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return made


@pytest.mark.parametrize(("fits", "tries", "parts"), [(4, 1, 4), (3, 2, 2), (2, 2, 2), (1, 3, 1)])
def test_too_little_memory_halves_the_parts_and_repeats_the_step(fits: int, tries: int, parts: int) -> None:
    whole, _ = stepped(network(), 7)
    net, said = Small(fits), Lines()
    found, _ = stepped(net, 64, progress=said)
    for one, other in zip(whole, found, strict=True):
        torch.testing.assert_close(other, one, atol=1e-6, rtol=1e-5)
    assert net.failed == tries == len(said.lines), "it is found out once, and said"
    assert f"in parts of {parts}" in said.lines[-1]


def test_a_failed_pass_moves_no_statistics() -> None:
    whole, halves = Small(9, norm=True), Small(4, norm=True)
    stepped(halves, 64, steps=1)
    stepped(whole, 4, steps=1)
    assert halves.failed == 1
    for one, other in zip(whole.state_dict().values(), halves.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_too_little_memory_for_one_image_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        stepped(Small(0), 64)


def test_one_image_at_once_is_too_few_for_batchnorm() -> None:
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 3))
    with pytest.raises(ConfigError, match="too few for BatchNorm"):
        stepped(net, 1)


def test_clipping_looks_at_gradients_that_are_not_scaled() -> None:
    def moved(fast: torch.dtype | None, clip: float) -> float:
        net = network()
        before = [p.detach().clone() for p in net.parameters()]
        stepped(net, 4, 1, accelerator=Accelerator(CPU.device, fast, CPU.layout), clip=clip)
        parameters = zip(net.parameters(), before, strict=True)
        return float(torch.cat([(p.detach() - b).flatten() for p, b in parameters]).norm())

    assert moved(torch.float16, 0.01) == pytest.approx(0.1 * 0.01, rel=1e-2), "rate times the largest norm"
    assert moved(torch.float16, 0.0) == pytest.approx(moved(None, 0.0), rel=0.05)


def timed(net: nn.Module, make: Callable[[nn.Module], Any], gain: float = 0.5) -> Compiling:
    """What compiling finds where a compiled step takes another time than an eager one."""
    made: list[Any] = []

    def compile_it(own: nn.Module) -> Any:
        made.append(make(own))
        return made[0]

    now = {"s": 0.0}

    def clock() -> float:
        now["s"] += 0.5
        return now["s"]

    compiling = Compiling(net, CPU, 10**6, make=compile_it, clock=clock)
    end = compiling.end

    def ending(whole: int, compiled: bool) -> None:
        now["s"] += (gain if compiled else 1.0) * 10
        end(whole, compiled)

    compiling.end = ending  # type: ignore[method-assign]
    return compiling


def test_compiled_steps_learn_the_same_and_leave_no_trace() -> None:
    whole, _ = stepped(network(norm=True), 7, steps=25)
    net, said, calls = network(norm=True), Lines(), []

    def make(own: nn.Module) -> Callable[[Tensor], Tensor]:
        def forward(given: Tensor) -> Tensor:
            calls.append(len(given))
            return own(given)

        return forward

    compiling = timed(net, make)
    found, _ = stepped(net, 7, steps=25, compiling=compiling, progress=said)
    assert compiling.verdict is not None
    assert compiling.verdict.used, compiling.verdict
    assert len(said.lines) == 1
    assert said.lines[0].startswith("torch.compile: used: ")
    assert len(calls) == 1 + 25 - 7 - 5, "a rehearsal, then in turns with five eager steps, then all"
    for one, other in zip(whole, found, strict=True):
        assert torch.equal(other, one)
    assert not any("_orig_mod" in name for name in net.state_dict())


def test_a_compiler_that_fails_changes_nothing() -> None:
    def missing(own: nn.Module) -> Callable[[Tensor], Tensor]:
        def forward(given: Tensor) -> Tensor:
            own(given)
            raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.\nmore")

        return forward

    whole, _ = stepped(network(norm=True), 7, steps=9)
    net, said = network(norm=True), Lines()
    found, _ = stepped(net, 7, steps=9, compiling=timed(net, missing), progress=said)
    (line,) = said.lines
    assert line.startswith("torch.compile: not used: it fails here (RuntimeError: Failed to find C compiler.")
    assert line.endswith("variable.)")
    for one, other in zip(whole, found, strict=True):
        assert torch.equal(other, one)
