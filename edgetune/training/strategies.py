"""Which parts of a network learn, at which rates, in which epochs.

A network is cut into parts: its groups from the input to the output, then the head. A strategy turns
settings into phases, and a phase gives every part its share of the peak learning rate; 0 freezes it.
It knows no data and no loop. It may import errors, recipe and models.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from edgetune.errors import ConfigError
from edgetune.recipe import FinetuneSection


@dataclass(frozen=True)
class Layout:
    """How a network is cut into parts.

    Attributes:
        head: name of the module that makes logits of features; empty: there is none to tell apart.
        groups: names of modules or parameters, one tuple for each group, from the input to the output; an
            empty name stands for everything outside the head.
    """

    head: str
    groups: tuple[tuple[str, ...], ...]

    def part(self, name: str) -> int:
        """Return the part that a module or parameter belongs to: 0 is next to the input, the head is last.

        -1 stands for none: a module that only holds others, or that has nothing to learn.
        """
        for index, names in reversed(list(enumerate((*self.groups, (self.head,))))):
            if any(not own or name == own or name.startswith(f"{own}.") for own in names):
                return index
        return -1


@dataclass(frozen=True)
class Phase:
    """Some epochs in which the same parts learn.

    Attributes:
        name: for the history and the progress line.
        epochs: how many.
        rates: share of the peak learning rate for each group, then for the head; 0: frozen, BatchNorm too.
    """

    name: str
    epochs: int
    rates: tuple[float, ...]

    @property
    def head_only(self) -> bool:
        """Whether nothing below the head changes, so that its features can be computed once."""
        return len(self.rates) > 1 and not any(self.rates[:-1])


def feature_extractor(settings: FinetuneSection, groups: int) -> tuple[Phase, ...]:
    """Train the head alone."""
    return (Phase("head", settings.epochs, (0.0,) * groups + (1.0,)),)


def partial(settings: FinetuneSection, groups: int) -> tuple[Phase, ...]:
    """Train the head and the last `stages` groups, at one rate.

    Raises:
        ConfigError: the network has fewer groups.
    """
    if settings.stages > groups:
        raise ConfigError(
            f"finetune.stages: {settings.stages}, but the network has {groups} groups",
            hint=f"write {groups} or less; strategy full trains them all",
        )
    frozen = groups - settings.stages
    return (Phase("partial", settings.epochs, (0.0,) * frozen + (1.0,) * (settings.stages + 1)),)


def full(settings: FinetuneSection, groups: int) -> tuple[Phase, ...]:
    """Train everything at one rate."""
    return (Phase("full", settings.epochs, (1.0,) * (groups + 1)),)


def gradual(settings: FinetuneSection, groups: int) -> tuple[Phase, ...]:
    """Train the head, then open group after group (Howard and Ruder 2018, section 3.3, arXiv:1801.06146).

    The epochs are spread evenly over the phases; with fewer epochs than groups several groups open at
    once. Each group learns at `group_decay` times the rate of the one above it, from the same paper's
    discriminative rates.
    """
    count = min(settings.epochs, groups + 1)
    share, rest = divmod(settings.epochs, count)
    phases = []
    for index in range(count):
        opened = math.ceil(index * groups / (count - 1)) if index else 0
        rates = [settings.group_decay**depth if depth <= opened else 0.0 for depth in range(groups, -1, -1)]
        name = "head" if not opened else "full" if opened == groups else f"last {opened}"
        # What is left over goes to the last phases: they have the most to learn.
        phases.append(Phase(name, share + (index >= count - rest), tuple(rates)))
    return tuple(phases)


STRATEGIES: dict[str, Callable[[FinetuneSection, int], tuple[Phase, ...]]] = {
    "feature-extractor": feature_extractor,
    "partial": partial,
    "full": full,
    "gradual": gradual,
}

# AdamW moves each weight by about its rate per step, whatever the gradient's size. A new head over features
# of size 1 bears 3e-3: on ants-bees with mobilenet_v2, over six seeds and 5, 10 and 20 epochs, 1e-3 still
# learns too slowly and 1e-2 overshoots. Pretrained kernels are 0.01 to 0.1 large: a hundred steps of 1e-3
# already rewrite them, so nothing above it where they learn too; gradual gives them less by itself.
# SGD's steps follow the gradient: for a head 0.01 to 0.03 did equally well there, 0.1 worse, and it is
# where one fine-tunes whole networks too, at a fifth of the 0.1 of training from scratch.
LEARNING_RATES: dict[tuple[str, str], float] = {
    ("adamw", "feature-extractor"): 3e-3,
    ("adamw", "partial"): 1e-3,
    ("adamw", "full"): 1e-3,
    ("adamw", "gradual"): 2e-3,
    ("sgd", "feature-extractor"): 0.02,
    ("sgd", "partial"): 0.02,
    ("sgd", "full"): 0.02,
    ("sgd", "gradual"): 0.02,
}

# Without normalisation nothing undoes a step that was too large: squeezenet1_0 on ants-bees at 96 pixels stays at
# chance with 1e-3, its ReLUs dead, and learns with 1e-4.
WITHOUT_NORMALISATION = 0.1


def peak_rate(settings: FinetuneSection, net: nn.Module, share: float = 1.0) -> float:
    """Return the head's highest learning rate: the one set, or a default for optimizer, strategy and network.

    Args:
        settings: how it learns.
        net: the network.
        share: of the default that its pretrained layers bear, where they learn as well.
    """
    if settings.learning_rate:
        return settings.learning_rate
    known = LEARNING_RATES[settings.optimizer, settings.strategy]
    if settings.strategy == "feature-extractor":
        return known
    bare = not any("Norm" in type(module).__name__ for module in net.modules())
    return known * share * (WITHOUT_NORMALISATION if bare else 1.0)


# AdamW's is torch's own; it acts decoupled from the gradient, SGD's is added to it (arXiv:1711.05101).
WEIGHT_DECAYS: dict[str, float] = {"adamw": 0.01, "sgd": 1e-4}


def decay(settings: FinetuneSection) -> float:
    """Return the weight decay: the one set, or the optimizer's default."""
    return WEIGHT_DECAYS[settings.optimizer] if settings.weight_decay is None else settings.weight_decay


def scheduled(step: int, steps: int, warmup: float) -> float:
    """Return the share of the peak rate at a step: linear warm-up, then a cosine towards 0.

    Args:
        step: from 0 to `steps` - 1.
        steps: of the whole training.
        warmup: share of the steps.
    """
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def set_phase(net: nn.Module, layout: Layout, phase: Phase) -> None:
    """Make exactly the phase's parts learn; frozen ones are in eval mode, so that BatchNorm keeps still.

    Where only the head learns, everything else is in eval mode, Dropout outside of the parts too: it then
    makes the same features in every epoch, kept or computed anew.
    """
    net.train()
    for name, module in net.named_modules():
        part = layout.part(name) if name else -1
        if phase.head_only if part < 0 else not phase.rates[part]:
            module.training = False
    for name, parameter in net.named_parameters():
        part = layout.part(name)
        parameter.requires_grad_(part >= 0 and phase.rates[part] > 0)


def learning_names(net: nn.Module, layout: Layout, phases: Sequence[Phase]) -> frozenset[str]:
    """Name the parameters and buffers that any of the phases changes."""
    parts = {part for phase in phases for part, rate in enumerate(phase.rates) if rate}
    return frozenset(name for name in net.state_dict() if layout.part(name) in parts)


def parameter_groups(
    net: nn.Module, layout: Layout, phases: Sequence[Phase], weight_decay: float
) -> list[dict[str, Any]]:
    """Sort what ever learns into an optimizer's groups, each with its `part` and its weight decay.

    Biases and the factors of norms (one dimension) are not decayed: pulling them to 0 regularizes nothing
    (Goyal et al. 2017, section 5.3, arXiv:1706.02677, leave norms out; Jia et al. 2018, arXiv:1807.11205,
    biases as well).
    """
    learning = learning_names(net, layout, phases)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in net.named_parameters():
        if name in learning:
            groups.setdefault((layout.part(name), parameter.ndim > 1), []).append(parameter)
    return [
        {"params": parameters, "part": part, "weight_decay": weight_decay if decayed else 0.0}
        for (part, decayed), parameters in sorted(groups.items())
    ]
