"""The one training loop: epochs over feeds, best epoch kept, killed and resumed without a trace.

It knows no files of images and no network by name: a layout says what the parts are, feeds give batches.
It may import errors, recipe, progress and this package.
"""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgetune.errors import StageError
from edgetune.progress import Progress
from edgetune.recipe import FinetuneSection
from edgetune.training import ranks
from edgetune.training.accelerator import Accelerator
from edgetune.training.compiling import Compiling, Verdict
from edgetune.training.course import Course, agree, restore, state_of, tensors_of
from edgetune.training.evaluate import Score, score
from edgetune.training.features import Feed
from edgetune.training.resume import save_state
from edgetune.training.step import Loss, Stepper
from edgetune.training.strategies import (
    Layout,
    Phase,
    decay,
    learning_names,
    parameter_groups,
    peak_rate,
    scheduled,
    set_phase,
)
from edgetune.training.waits import Waits

# Told the history so far, before the first epoch and after each; what it raises ends the training.
Watch = Callable[[list[dict[str, Any]]], None]


@dataclass(frozen=True)
class Feeds:
    """What a phase learns from.

    Attributes:
        train: shuffled batches of the training split.
        val: the validation split, in order.
        features: whether both give the head's input instead of the network's.
    """

    train: Feed
    val: Feed
    features: bool = False


@dataclass(frozen=True)
class Task:
    """All that one training is given.

    Attributes:
        layout: the network's parts.
        phases: which parts learn in which epochs.
        feeds: makes a phase's batches.
        loss: of logits and batches.
        settings: of the recipe.
        accelerator: where it runs.
        folder: for the state that survives a kill.
        fingerprint: of everything that the result depends on; a state with another one is not used.
        watch: looks on, and may end the training early; the state of the last epoch is then kept.
    """

    layout: Layout
    phases: tuple[Phase, ...]
    feeds: Callable[[Phase], Feeds]
    loss: Loss
    settings: FinetuneSection
    accelerator: Accelerator
    folder: Path
    fingerprint: str
    watch: Watch | None = None

    @property
    def epochs(self) -> int:
        """Of all phases."""
        return sum(phase.epochs for phase in self.phases)


class Diverged(StageError):
    """The loss is no number. The network that was trained holds the best epoch before, where there was one.

    Attributes:
        course: as it was.
    """

    def __init__(self, message: str, hint: str, course: Course) -> None:
        super().__init__(message, hint=hint)
        self.course = course


def train(net: nn.Module, task: Task, progress: Progress) -> Course:
    """Train a network in place; it ends with the weights of the epoch with the best validation accuracy.

    Killed at any moment and called again with the same task, it goes on after the last complete epoch and
    ends with the same weights. Of several processes each does its share of every step; the first one reads and
    writes what survives a kill, so that any number of them goes on.

    Raises:
        Diverged: the loss is no number.
        StageError: memory does not do, or the state cannot be written.
        ConfigError: batches of one that BatchNorm cannot learn from, an operation that is not deterministic.
    """
    with task.accelerator.kernels(task.settings.deterministic):
        course = begin(net, task)
        ranks.by_leader(lambda: restore(course, task.folder, task.fingerprint, progress))
        agree(course)
        watch = task.watch or (lambda _: None)
        ranks.by_leader(lambda: watch(course.history))
        try:
            for phase, first in zip(task.phases, _first_epochs(task.phases), strict=True):
                if not course.finished and len(course.history) < first + phase.epochs - 1:
                    _run_phase(course, task, phase, first + phase.epochs - 1, progress)
        except Diverged:
            net.load_state_dict(course.best, strict=False)
            raise
    net.load_state_dict(course.best, strict=False)
    return course


def _run_phase(course: Course, task: Task, phase: Phase, last: int, progress: Progress) -> None:
    feeds = task.feeds(phase)
    # A head on features takes next to no time: sharing its steps would take longer than they do.
    alone = feeds.features and ranks.size() > 1
    if not alone or ranks.rank() == 0:
        with ranks.alone(alone):
            stepper = _stepper(course, task, phase, feeds, last, progress)
            while len(course.history) < last and not course.finished:
                run_epoch(course, task, phase, feeds, stepper, progress)
                ranks.by_leader(lambda: _after_epoch(course, task))
    if alone:
        agree(course)


def _after_epoch(course: Course, task: Task) -> None:
    save_state(task.folder, state_of(course), len(course.history), task.fingerprint)
    if task.watch:
        task.watch(course.history)


def _stepper(
    course: Course, task: Task, phase: Phase, feeds: Feeds, last: int, progress: Progress
) -> Stepper:
    set_phase(course.net, task.layout, phase)
    settings, runs = task.settings, _runs(course.net, task, feeds)
    compiling = None
    reasons = {
        "features": feeds.features, "several processes": ranks.size() > 1,
        "deterministic": settings.deterministic, "texts of many lengths": feeds.train.ragged,
    }  # fmt: skip
    if why := next((name for name, holds in reasons.items() if holds), ""):
        course.compiled[phase.name] = Verdict(False, f"not tried: {why}")
    else:
        left = feeds.train.steps * (last - len(course.history))
        compiling = Compiling(runs, task.accelerator, left, course.compiled.get(phase.name))
    return Stepper(
        runs,
        task.loss,
        course.optimizer,
        course.scaler,
        task.accelerator,
        clip=settings.clip,
        most=settings.batch * (settings.accumulate if feeds.features else 1),
        compiling=compiling,
        progress=progress,
    )


def begin(net: nn.Module, task: Task) -> Course:
    """Put a network on its accelerator and give it an optimizer."""
    settings = task.settings
    task.accelerator.place(net)
    ranks.same(net.state_dict().values())
    names = learning_names(net, task.layout, task.phases)
    groups = parameter_groups(net, task.layout, task.phases, decay(settings))
    # The fused kernels spare hundreds of small calls per step: a third of a small network's time.
    optimizer: torch.optim.Optimizer
    if settings.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, fused=True)
    else:
        optimizer = torch.optim.SGD(
            groups, momentum=settings.momentum, nesterov=settings.momentum > 0, fused=True
        )
    scaler = torch.amp.GradScaler(task.accelerator.name, enabled=task.accelerator.autocast is torch.float16)
    average = copy.deepcopy(net) if settings.average else None
    return Course(net, average, names, optimizer, scaler, task.epochs)


def run_epoch(
    course: Course, task: Task, phase: Phase, feeds: Feeds, stepper: Stepper, progress: Progress
) -> None:
    """Train for one epoch, evaluate, and remember whether it was the best."""
    epoch = len(course.history) + 1
    waits = Waits()
    feeds = replace(feeds, train=waits.around(feeds.train), val=waits.around(feeds.val))
    began = time.perf_counter()
    progress.begin(f"epoch {epoch}/{task.epochs}", total=feeds.train.images)
    try:
        loss, top1, rate = learn(course, task, phase, feeds, stepper, epoch, progress)
        learned = time.perf_counter()
        found = score(_runs(course.judged, task, feeds), feeds.val, task.accelerator)
    finally:
        progress.end()
    if not math.isfinite(found.loss):
        raise _diverged(f"the validation loss after epoch {epoch}", rate, course, task)
    if stepper.compiling:
        course.compiled[phase.name] = stepper.compiling.verdict or Verdict(False, "not tried: too few steps")
    course.micro_batch = min(stepper.most, feeds.train.images)
    seconds = time.perf_counter() - began
    course.history.append(
        {
            "epoch": epoch,
            "phase": phase.name,
            "loss": loss,
            "train_top1": top1,
            "val_loss": found.loss,
            "val_top1": found.top1,
            "learning_rate": rate,
            "seconds": round(seconds, 3),
            "waited_seconds": round(waits.seconds, 3),
            "images_per_second": round(feeds.train.images / (learned - began), 1),
        }
    )
    judge(course, task, phase, found)
    progress.line(
        f"epoch {epoch}/{task.epochs} {phase.name}  loss {loss:.3f}  "
        f"val {100 * found.top1:.1f}%  {seconds:.1f} s"
    )


def judge(course: Course, task: Task, phase: Phase, found: Score) -> None:
    """Keep the weights of the best epoch so far, and say whether to stop.

    Best is the highest validation accuracy, among equals the lowest loss. Patience counts in the last phase
    only: before it, parts of the network have yet to learn.
    """
    best = course.history[course.best_epoch - 1] if course.best_epoch else None
    # Where few images are all right early on, the loss still tells whether it learns.
    better = best is None or (found.top1, -found.loss) > (best["val_top1"], -best["val_loss"])
    course.stale = 0 if better else course.stale + 1
    if better:
        course.best_epoch = len(course.history)
        course.best = tensors_of(course.judged, course.names)
    patience = task.settings.patience
    impatient = patience > 0 and course.stale >= patience and phase is task.phases[-1]
    course.finished = impatient or len(course.history) == task.epochs


def learn(
    course: Course, task: Task, phase: Phase, feeds: Feeds, stepper: Stepper, epoch: int, progress: Progress
) -> tuple[float, float | None, float]:
    """Take an epoch's steps.

    Returns:
        Mean training loss, training accuracy (None where targets are mixed or missing), the head's last learning rate.

    Raises:
        Diverged: the loss is no number.
    """
    set_phase(course.net, task.layout, phase)
    steps, peak = feeds.train.steps * task.epochs, peak_rate(task.settings, course.net)
    sums, seen, rate = [0.0, 0.0, 0.0], 0, 0.0
    # A step's figures are read once the next one is under way: a GPU would stand still until they are here.
    open_step: tuple[int, int, float, Tensor] | None = None

    def close() -> None:
        if open_step is None:
            return
        number, count, then, found = open_step
        values = found.tolist()
        if not math.isfinite(values[0]):
            what = f"epoch {epoch}, step {number} of {feeds.train.steps}: the loss"
            raise _diverged(what, then, course, task)
        sums[:] = [one + other for one, other in zip(sums, values, strict=True)]
        progress.advance(count, loss=values[0] / count)

    for number, batch in enumerate(feeds.train.batches(epoch), start=1):
        rate = peak * scheduled(course.step, steps, task.settings.warmup)
        for group in course.optimizer.param_groups:
            group["lr"] = rate * phase.rates[group["part"]]
        with task.accelerator.guarded():
            found = stepper.take(batch)
        course.step += 1
        if course.average is not None:
            follow(course.average, course.net, course.names, task.settings.average, course.step)
        close()
        open_step = number, batch.rows, rate, found
        seen += batch.rows
    close()
    loss, right, labelled = sums
    return loss / seen, right / labelled if labelled else None, rate


@torch.no_grad()
def follow(average: nn.Module, net: nn.Module, names: frozenset[str], decay: float, step: int) -> None:
    """Move an average's weights and BatchNorm statistics towards a network's.

    The decay grows with the steps, (1 + step) / (10 + step) up to its limit, so that the random weights of
    the beginning do not linger: TensorFlow's ExponentialMovingAverage, `num_updates`.
    """
    decay = min(decay, (1 + step) / (10 + step))
    current = net.state_dict()
    for name, tensor in average.state_dict().items():
        if name in names and tensor.is_floating_point():
            tensor.lerp_(current[name], 1 - decay)
        elif name in names:
            tensor.copy_(current[name])


def _runs(net: nn.Module, task: Task, feeds: Feeds) -> nn.Module:
    """Return what is given the batches: the network, or its head where they are features."""
    return net.get_submodule(task.layout.head) if feeds.features else net


def _first_epochs(phases: tuple[Phase, ...]) -> list[int]:
    return [1 + sum(phase.epochs for phase in phases[:index]) for index in range(len(phases))]


def _diverged(what: str, rate: float, course: Course, task: Task) -> Diverged:
    peak = peak_rate(task.settings, course.net)
    return Diverged(
        f"{what} is no finite number at a learning rate of {rate:.2g} (peak {peak:.2g}): training diverged",
        f"set finetune.learning_rate to {peak / 10:.1g} or so, or a finetune.clip above 0",
        course,
    )
