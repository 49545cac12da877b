"""The one training loop: epochs over feeds, best epoch kept, killed and resumed without a trace.

It knows no files of images and no network by name: a layout says what the parts are, feeds give batches.
It may import errors, recipe, progress and this package.
"""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgetune.errors import ArtifactError, ConfigError, StageError
from edgetune.progress import Progress
from edgetune.recipe import FinetuneSection
from edgetune.training.accelerator import Accelerator
from edgetune.training.evaluate import Score, score
from edgetune.training.features import Batch, Feed, Waits
from edgetune.training.resume import (
    State,
    fill_optimizer,
    load_state,
    optimizer_tensors,
    save_state,
)
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

# Of logits [N, K] and what they were computed from: a scalar.
Loss = Callable[[Tensor, Batch], Tensor]
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


@dataclass
class Course:
    """What changes from epoch to epoch, and is all of what a resumed training needs.

    Attributes:
        net: the network that learns.
        average: the moving average of its weights, where one is kept; it is what is evaluated and saved.
        history: one entry per epoch.
        best: the learned tensors of the best epoch.
        stale: epochs since the best one.
        finished: whether the training is over.
    """

    net: nn.Module
    average: nn.Module | None
    names: frozenset[str]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: int = 0
    stale: int = 0
    step: int = 0
    finished: bool = False

    @property
    def judged(self) -> nn.Module:
        """The network that is evaluated and saved."""
        return self.net if self.average is None else self.average


def train(net: nn.Module, task: Task, progress: Progress) -> Course:
    """Train a network in place; it ends with the weights of the epoch with the best validation accuracy.

    Killed at any moment and called again with the same task, it goes on after the last complete epoch and
    ends with the same weights.

    Raises:
        StageError: the loss is no number, memory does not do, or the state cannot be written.
        ConfigError: batches of one that BatchNorm cannot learn from.
    """
    course = begin(net, task)
    restore(course, task, progress)
    watch = task.watch or (lambda _: None)
    watch(course.history)
    for phase, first in zip(task.phases, _first_epochs(task.phases), strict=True):
        if course.finished or len(course.history) >= first + phase.epochs - 1:
            continue
        feeds = task.feeds(phase)
        while len(course.history) < first + phase.epochs - 1 and not course.finished:
            run_epoch(course, task, phase, feeds, progress)
            save_state(task.folder, state_of(course), len(course.history), task.fingerprint)
            watch(course.history)
    net.load_state_dict(course.best, strict=False)
    return course


def begin(net: nn.Module, task: Task) -> Course:
    """Put a network on its accelerator and give it an optimizer."""
    settings = task.settings
    task.accelerator.place(net)
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
    return Course(net, average, names, optimizer, scaler)


def run_epoch(course: Course, task: Task, phase: Phase, feeds: Feeds, progress: Progress) -> None:
    """Train for one epoch, evaluate, and remember whether it was the best."""
    epoch = len(course.history) + 1
    waits = Waits()
    feeds = replace(feeds, train=waits.around(feeds.train), val=waits.around(feeds.val))
    began = time.perf_counter()
    progress.begin(f"epoch {epoch}/{task.epochs}", total=feeds.train.images)
    try:
        loss, top1, rate = learn(course, task, phase, feeds, epoch, progress)
        learned = time.perf_counter()
        found = score(_runs(course.judged, task, feeds), feeds.val, task.accelerator)
    finally:
        progress.end()
    if not math.isfinite(found.loss):
        raise _diverged(f"the validation loss after epoch {epoch}", task)
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
        course.best = _tensors(course.judged, course.names)
    patience = task.settings.patience
    impatient = patience > 0 and course.stale >= patience and phase is task.phases[-1]
    course.finished = impatient or len(course.history) == task.epochs


def learn(
    course: Course, task: Task, phase: Phase, feeds: Feeds, epoch: int, progress: Progress
) -> tuple[float, float | None, float]:
    """Take an epoch's steps.

    Returns:
        Mean training loss, training accuracy (None where targets are mixed or missing), the head's last learning rate.

    Raises:
        StageError: the loss is no number.
    """
    set_phase(course.net, task.layout, phase)
    runs = _runs(course.net, task, feeds)
    steps = feeds.train.steps * task.epochs
    total, right, seen, labelled, rate = 0.0, 0, 0, 0, 0.0
    for number, batch in enumerate(feeds.train.batches(epoch), start=1):
        rate = peak_rate(task.settings) * scheduled(course.step, steps, task.settings.warmup)
        for group in course.optimizer.param_groups:
            group["lr"] = rate * phase.rates[group["part"]]
        with task.accelerator.guarded():
            logits, loss = _step(course, task, runs, batch)
        if not math.isfinite(loss):
            raise _diverged(f"epoch {epoch}, step {number} of {feeds.train.steps}: the loss", task)
        count = len(batch.targets)
        total += loss * count
        seen += count
        if batch.targets.ndim == 1:
            right += int((logits.argmax(1) == batch.targets).sum())
            labelled += int((batch.targets >= 0).sum())
        progress.advance(count, loss=loss)
    return total / seen, right / labelled if labelled else None, rate


def _step(course: Course, task: Task, runs: nn.Module, batch: Batch) -> tuple[Tensor, float]:
    with task.accelerator.mixed():
        try:
            logits = runs(batch.inputs).flatten(1)
        except ValueError as error:
            # What torch's BatchNorm says of a batch of one whose maps have shrunk to one value.
            if "more than 1 value per channel" not in str(error):
                raise
            raise ConfigError("finetune.batch: 1 is too few for BatchNorm", hint="2 or more") from error
        loss = task.loss(logits, batch)
    course.optimizer.zero_grad()
    torch.autograd.backward(course.scaler.scale(loss))
    if task.settings.clip:
        course.scaler.unscale_(course.optimizer)
        learning = [p for group in course.optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(learning, task.settings.clip)
    course.scaler.step(course.optimizer)
    course.scaler.update()
    course.step += 1
    if course.average is not None:
        follow(course.average, course.net, course.names, task.settings.average, course.step)
    return logits.detach(), loss.item()


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


def state_of(course: Course) -> State:
    """Return everything that `restore` needs."""
    tensors = {f"net/{name}": t for name, t in _tensors(course.net, course.names).items()}
    tensors |= {f"best/{name}": t for name, t in course.best.items()}
    tensors |= {f"optimizer/{name}": t for name, t in optimizer_tensors(course.optimizer).items()}
    if course.average is not None:
        tensors |= {f"average/{name}": t for name, t in _tensors(course.average, course.names).items()}
    counters = {
        "history": course.history,
        "best_epoch": course.best_epoch,
        "stale": course.stale,
        "step": course.step,
        "finished": course.finished,
        "scaler": course.scaler.state_dict(),
    }
    return State(tensors, counters)


def restore(course: Course, task: Task, progress: Progress) -> None:
    """Go on from the state of an earlier call, where there is a whole one of the same task."""
    try:
        state = load_state(task.folder, task.fingerprint)
    except ArtifactError as error:
        progress.line(f"resume state is of no use ({error.message}); training starts over")
        return
    if state is None:
        return

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t for name, t in state.tensors.items() if name.startswith(prefix)}

    course.net.load_state_dict(part("net/"), strict=False)
    if course.average is not None:
        course.average.load_state_dict(part("average/"), strict=False)
    fill_optimizer(course.optimizer, part("optimizer/"))
    if state.counters["scaler"]:
        course.scaler.load_state_dict(state.counters["scaler"])
    course.history = state.counters["history"]
    course.best, course.best_epoch = part("best/"), state.counters["best_epoch"]
    course.stale, course.step = state.counters["stale"], state.counters["step"]
    course.finished = state.counters["finished"]
    progress.line(f"going on after epoch {len(course.history)}/{task.epochs}")


def _runs(net: nn.Module, task: Task, feeds: Feeds) -> nn.Module:
    """Return what is given the batches: the network, or its head where they are features."""
    return net.get_submodule(task.layout.head) if feeds.features else net


def _tensors(net: nn.Module, names: frozenset[str]) -> dict[str, Tensor]:
    # contiguous: safetensors takes no other layout, and a copy must not follow the network.
    return {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in net.state_dict().items()
        if name in names
    }


def _first_epochs(phases: tuple[Phase, ...]) -> list[int]:
    return [1 + sum(phase.epochs for phase in phases[:index]) for index in range(len(phases))]


def _diverged(what: str, task: Task) -> StageError:
    rate = peak_rate(task.settings)
    return StageError(
        f"{what} is no finite number: training diverged at a peak learning rate of {rate:.2g}",
        hint=f"set finetune.learning_rate to {rate / 10:.1g} or so, or a finetune.clip above 0",
    )
