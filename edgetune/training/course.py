"""What changes from epoch to epoch, kept through a kill and the same in all processes.

It knows no batches and no loop. It may import errors, progress and this package.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgetune.errors import ArtifactError
from edgetune.progress import Progress
from edgetune.training import ranks
from edgetune.training.compiling import Verdict
from edgetune.training.resume import State, fill_optimizer, load_state, optimizer_tensors


@dataclass
class Course:
    """What changes from epoch to epoch, and is all of what a resumed training needs.

    Attributes:
        net: the network that learns.
        average: the moving average of its weights, where one is kept; it is what is evaluated and saved.
        names: of the tensors that learn.
        epochs: of all phases.
        history: one entry per epoch.
        best: the learned tensors of the best epoch.
        stale: epochs since the best one.
        compiled: for each phase whether its steps are compiled, and why.
        micro_batch: images that went through at once, in the last phase.
        finished: whether the training is over.
    """

    net: nn.Module
    average: nn.Module | None
    names: frozenset[str]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    epochs: int
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: int = 0
    stale: int = 0
    step: int = 0
    compiled: dict[str, Verdict] = field(default_factory=dict)
    micro_batch: int = 0
    finished: bool = False

    @property
    def judged(self) -> nn.Module:
        """The network that is evaluated and saved."""
        return self.net if self.average is None else self.average


def state_of(course: Course) -> State:
    """Return everything that `restore` needs."""
    tensors = {f"net/{name}": t for name, t in tensors_of(course.net, course.names).items()}
    tensors |= {f"best/{name}": t for name, t in course.best.items()}
    tensors |= {f"optimizer/{name}": t for name, t in optimizer_tensors(course.optimizer).items()}
    if course.average is not None:
        tensors |= {f"average/{name}": t for name, t in tensors_of(course.average, course.names).items()}
    counters = {
        "history": course.history,
        "best_epoch": course.best_epoch,
        "stale": course.stale,
        "step": course.step,
        "finished": course.finished,
        "scaler": course.scaler.state_dict(),
        "compiled": course.compiled,
    }
    return State(tensors, counters)


def restore(course: Course, folder: Path, fingerprint: str, progress: Progress) -> None:
    """Go on from the state of an earlier call, where there is a whole one of the same task."""
    try:
        state = load_state(folder, fingerprint)
    except ArtifactError as error:
        progress.line(f"resume state is of no use ({error.message}); training starts over")
        return
    if state is not None:
        _fill(course, state)
        progress.line(f"going on after epoch {len(course.history)}/{course.epochs}")


def agree(course: Course) -> None:
    """Let all processes stand where the first one does."""
    if ranks.size() > 1:
        state = ranks.leaders(state_of(course))
        if ranks.rank():
            _fill(course, state)


def _fill(course: Course, state: State) -> None:
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
    course.compiled = {name: Verdict(*verdict) for name, verdict in state.counters["compiled"].items()}


def tensors_of(net: nn.Module, names: frozenset[str]) -> dict[str, Tensor]:
    """Return copies of the tensors of these names, on the CPU."""
    # contiguous: safetensors takes no other layout, and a copy must not follow the network.
    return {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in net.state_dict().items()
        if name in names
    }
