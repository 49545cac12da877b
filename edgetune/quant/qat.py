"""Quantization-aware training of the Q/DQ graph itself, with the FP32 network as teacher.

What is executed is the graph that will be deployed, rounding included; gradients pass straight through the
rounding to weights and scales (learned step size: Esser et al. 2020, arXiv:1902.08153). Weights, biases and
scales are written back into the same graph, so the exported network is the trained one. Labels are optional:
the teacher's outputs are what is learned, and its tensors between blocks, of which few inputs tell more than
a few outputs do (arXiv:1412.6550). It may import errors, quant's parameters, blocks, graph and torch_graph,
safetensors and torch.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from onnx import ModelProto
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from edgetune.errors import ConfigError, StageError
from edgetune.quant.blocks import cut
from edgetune.quant.graph import Graph
from edgetune.quant.parameters import (
    Weight,
    bias_values,
    ceilings,
    channel_sums,
    dequantized,
    fp16,
    put,
    real_bias,
    shift_of,
    spread,
    tied_scales,
    weights_of,
    written,
)
from edgetune.quant.torch_graph import TorchGraph

Told = Callable[[int, int], None]
Feeds = dict[str, Tensor]
# Gets a batch of inputs and a source of chance, and gives the batch that teacher and student see instead.
Augment = Callable[[Feeds, torch.Generator], Feeds]
_NOTHING = 1e-12


@dataclass(frozen=True)
class Training:
    """How long and how fast.

    Attributes:
        epochs: passes over the inputs.
        batch: inputs of a step.
        weight_rate: learning rate of weights and biases, in units of the scale.
        scale_rate: of the logarithms of activations' scales.
        inner_weight: share of the tensors between blocks in the loss, beside the outputs' 1.
        label_weight: share of the labels' cross-entropy in the loss, where there are labels.
        seed: of the order.
    """

    epochs: int = 12
    batch: int = 16
    weight_rate: float = 1e-3
    scale_rate: float = 5e-3
    inner_weight: float = 1.0
    label_weight: float = 0.2
    seed: int = 0


def mixed(feeds: Feeds, generator: torch.Generator) -> Feeds:
    """Return inputs of which each is mixed with another one, where all of them are float.

    The teacher says what the mixtures are (mixup: Zhang et al. 2018, arXiv:1710.09412, but for its labels).
    Without them, a few hundred inputs are learned by heart within four epochs.
    """
    if not all(value.is_floating_point() for value in feeds.values()):
        return feeds
    rows = len(next(iter(feeds.values())))
    other = torch.randperm(rows, generator=generator)
    share = torch.rand(rows, generator=generator)
    share = torch.maximum(share, 1 - share)
    return {
        name: value * (kept := share.reshape(-1, *[1] * (value.ndim - 1)).to(value))
        + value[other] * (1 - kept)
        for name, value in feeds.items()
    }


@dataclass
class _Learned:
    """Parameters in place of a graph's constants."""

    net: TorchGraph
    weights: list[Weight]
    ties: dict[str, list[str]]
    half: bool
    shift: Mapping[str, float]
    latent: dict[str, Tensor] = field(default_factory=dict)
    bias: dict[str, Tensor] = field(default_factory=dict)
    log_scale: dict[str, Tensor] = field(default_factory=dict)
    units: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for weight in self.weights:
            scale = self.net.constants[weight.scale].float()
            levels = self.net.constants[weight.levels].float()
            # Starts from the integers that are there, as near to the real weights as those allow.
            inside = torch.clamp(weight.real / spread(scale, weight) - levels, -0.49, 0.49)
            self.latent[weight.made] = (levels + inside).requires_grad_()
            self.units[weight.made] = scale
            bias = real_bias(self.net, weight)
            if bias is not None:
                # What one step of a weight adds to a product at the end of the range of what is read.
                step = self.net.constants[weight.input_scale].float() if weight.input_scale else 1.0
                unit = 127 * step * scale.mean()
                self.units[weight.bias] = unit
                self.bias[weight.bias] = ((bias - self._shifted(weight)) / unit).detach().requires_grad_()
        most = ceilings(self.net)
        for group, tied in self.ties.items():
            scale = self.net.constants[tied[0]].float()
            self.log_scale[group] = scale.log().clone().requires_grad_()
            limits = [most[name] for name in tied if name in most]
            self.units[group] = scale.clamp_min(min(limits)) if limits else torch.full_like(scale, math.inf)

    def parameters(self) -> dict[str, Tensor]:
        kinds = {"latent": self.latent, "bias": self.bias, "log_scale": self.log_scale}
        return {f"{kind}:{name}": value for kind, found in kinds.items() for name, value in found.items()}

    def state(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.parameters().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in self.parameters().items():
                value.copy_(state[name])

    def _scale(self, group: str) -> Tensor:
        scale = torch.minimum(self.log_scale[group].exp(), self.units[group])
        # Rounded, and the gradient passes.
        return scale + (fp16(scale.detach()) - scale.detach()) if self.half else scale

    def _shifted(self, weight: Weight) -> Tensor:
        """Return what a bias owes to a shift of what the layer reads (`center`): it follows the weights.

        Otherwise a step of the weights, all of which see the shift, would move the output far.
        """
        by = shift_of(weight, self.shift)
        if not by:
            return torch.zeros((), device=weight.real.device)
        made = dequantized(weight, self.latent[weight.made], self.units[weight.made])
        return by * channel_sums(weight, made)

    def _bias(self, weight: Weight) -> Tensor:
        return self.bias[weight.bias] * self.units[weight.bias] + self._shifted(weight)

    def replaced(self) -> dict[str, Tensor]:
        """Return what takes the place of constants, differentiable."""
        made = {w.made: dequantized(w, self.latent[w.made], self.units[w.made]) for w in self.weights}
        biases = {w.bias: self._bias(w) for w in self.weights if w.bias in self.bias}
        scales = {name: scale for group, tied in self.ties.items() for name, scale in self._tied(group, tied)}
        return made | biases | scales

    def _tied(self, group: str, tied: list[str]) -> list[tuple[str, Tensor]]:
        scale = self._scale(group)
        return [(name, scale) for name in tied]

    def settle(self) -> None:
        """Give the graph's constants what was learned."""
        with torch.no_grad():
            for group, tied in self.ties.items():
                put(self.net, dict(self._tied(group, tied)))
            for weight in self.weights:
                levels = torch.clamp(self.latent[weight.made].round(), -weight.largest, weight.largest)
                put(self.net, {weight.levels: levels})
                if weight.bias in self.bias:
                    put(self.net, bias_values(self.net, weight, self._bias(weight)))


@dataclass
class _Progress:
    """Where a training has got to: what is kept between epochs."""

    history: list[dict[str, Any]]
    best: dict[str, Tensor]


def train(
    model: ModelProto,
    fp32: Graph,
    inputs: Mapping[str, Tensor],
    groups: Mapping[str, str],
    settings: Training | None = None,
    *,
    labels: Tensor | None = None,
    held: Mapping[str, Tensor] | None = None,
    augment: Augment | None = None,
    half: bool = False,
    device: str = "cpu",
    resume: Path | None = None,
    told: Told | None = None,
    shift: Mapping[str, float] | None = None,
) -> tuple[ModelProto, list[dict[str, Any]]]:
    """Train a quantized network to give what FP32 gives.

    Args:
        model: Q/DQ, FP32 outside of it.
        fp32: the prepared network it was made from.
        inputs: by the network's input names, `[N, ...]`.
        groups: of `Plan`: tensors whose scales stay equal.
        settings: how long and how fast.
        labels: classes `[N]`, for a classifier.
        held: inputs that nothing is learned from; what is returned is the epoch (or the beginning) at which
            the outputs for them are nearest to FP32's.
        augment: changes batches of inputs, labels staying right.
        half: scales are numbers that FP16 can write down.
        device: `cpu` or `cuda`.
        resume: a file that keeps the state after each epoch; where it is there, training goes on from it.
        told: is called with the numbers of steps done and to do.
        shift: of `Draft`; scales of shifted tensors stay.

    Returns:
        The trained graph, and `epoch`, `loss` and `held` (the outputs' part of the loss on held inputs) of
        each epoch, 0 being the beginning; an outputs' loss of 1 is an output of nothing.

    Raises:
        ConfigError: no output is float; or there are labels, and outputs that are no classes.
        StageError: the loss is no longer a number, or the state in `resume` is of another training.
    """
    settings = settings or Training()
    net, teacher = TorchGraph(model, device), TorchGraph(fp32.model, device)
    shift = shift or {}
    ties = tied_scales(net, groups, shift)
    learned = _Learned(net, weights_of(net, fp32), ties, half, shift)
    lesson = _Lesson(learned, teacher, settings, labels)
    optimizer = torch.optim.Adam(
        [
            {"params": list(learned.latent.values()), "peak": settings.weight_rate},
            {"params": list(learned.bias.values()), "peak": settings.weight_rate},
            {"params": list(learned.log_scale.values()), "peak": settings.scale_rate},
        ]
    )
    rows = len(next(iter(inputs.values())))
    steps = -(-rows // settings.batch)
    kept = _restored(resume, learned, optimizer, settings)
    if not kept.history:
        kept.history.append({"epoch": 0, "loss": None, "held": lesson.judged(held)})
    for epoch in range(len(kept.history) - 1, settings.epochs):
        generator = torch.Generator().manual_seed(settings.seed + epoch)
        order = torch.randperm(rows, generator=generator)
        total = 0.0
        for step in range(steps):
            pick = order[step * settings.batch : (step + 1) * settings.batch]
            share = (epoch * steps + step) / (settings.epochs * steps)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * 0.5 * (1 + math.cos(math.pi * share))
            feeds = {name: value[pick] for name, value in inputs.items()}
            loss = lesson.loss(augment(feeds, generator) if augment else feeds, pick)
            if not torch.isfinite(loss):
                raise StageError(
                    "quantization-aware training: the loss is not a number", hint="lower its rates"
                )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.item() * len(pick)
            if told:
                told(epoch * steps + step + 1, settings.epochs * steps)
        judged = lesson.judged(held)
        if judged is None or judged < min(entry["held"] for entry in kept.history):
            kept.best = learned.state()
        kept.history.append({"epoch": epoch + 1, "loss": total / rows, "held": judged})
        _keep(resume, learned, optimizer, settings, kept)
    learned.load(kept.best)
    learned.settle()
    return written(model, net), kept.history


class _Lesson:
    """What is learned: the teacher's outputs and inner tensors, and labels."""

    def __init__(
        self, learned: _Learned, teacher: TorchGraph, settings: Training, labels: Tensor | None
    ) -> None:
        self._learned, self._teacher, self._settings, self._labels = learned, teacher, settings, labels
        self._outputs = [name for name in teacher.graph.outputs if teacher.graph.is_float(name)]
        if not self._outputs:
            raise ConfigError("quantization-aware training: no output of the network is float")
        if labels is not None and len(teacher.graph.outputs) != 1:
            raise ConfigError("quantization-aware training: labels are for networks with one output")
        weighted = {weight.node.name for weight in learned.weights}
        ends = [end for block in cut(teacher.graph, lambda node: node.name in weighted) for end in block.ends]
        self._inner = [n for n in dict.fromkeys(ends) if n not in self._outputs and teacher.graph.is_float(n)]

    def loss(self, feeds: Feeds, pick: Tensor) -> Tensor:
        """Return the loss of a batch: squared errors over mean squares, and the labels' share."""
        settings, device = self._settings, self._learned.net.device
        feeds = {name: value.to(device) for name, value in feeds.items()}
        inner = self._inner if settings.inner_weight else []
        with torch.no_grad():
            aims = self._teacher.run(feeds, [*self._outputs, *inner])
        found = self._learned.net.run(feeds, list(aims), self._learned.replaced())
        loss = _distance(found, aims, self._outputs)
        if inner:
            loss = loss + settings.inner_weight * _distance(found, aims, inner)
        if self._labels is None:
            return loss
        entropy = F.cross_entropy(found[self._outputs[0]].flatten(1), self._labels[pick].to(device))
        return (1 - settings.label_weight) * loss + settings.label_weight * entropy

    def judged(self, held: Mapping[str, Tensor] | None) -> float | None:
        """Return how far the outputs for held inputs are from the teacher's."""
        if held is None:
            return None
        batch, rows = self._settings.batch, len(next(iter(held.values())))
        total = 0.0
        with torch.no_grad():
            replaced = self._learned.replaced()
            for start in range(0, rows, batch):
                feeds = {n: v[start : start + batch].to(self._teacher.device) for n, v in held.items()}
                aims = self._teacher.run(feeds, self._outputs)
                found = self._learned.net.run(feeds, self._outputs, replaced)
                total += float(_distance(found, aims, self._outputs)) * min(batch, rows - start)
        return total / rows


def _distance(found: Mapping[str, Tensor], aims: Mapping[str, Tensor], names: list[str]) -> Tensor:
    """Return the mean over some tensors of their squared error over their mean square."""
    losses = [
        (found[name] - aims[name]).square().mean() / aims[name].square().mean().clamp_min(_NOTHING)
        for name in names
    ]
    return torch.stack(losses).mean()


def _keep(
    resume: Path | None, learned: _Learned, optimizer: torch.optim.Adam, settings: Training, kept: _Progress
) -> None:
    """Write the state to a file, whole or not at all."""
    if resume is None:
        return
    tensors = learned.state() | {f"best:{name}": value for name, value in kept.best.items()}
    for name, value in learned.parameters().items():
        for key, entry in optimizer.state.get(value, {}).items():
            tensors[f"adam:{key}:{name}"] = torch.as_tensor(entry).detach()
    tensors |= {f"unit:{name}": value for name, value in learned.units.items()}
    for key in ("loss", "held"):
        values = [math.nan if entry[key] is None else entry[key] for entry in kept.history]
        tensors[f"history:{key}"] = torch.tensor(values, dtype=torch.float64)
    partial = resume.with_suffix(".partial")
    copies = {name: value.cpu().contiguous().clone() for name, value in tensors.items()}
    save_file(copies, partial, {"settings": repr(settings)})
    partial.replace(resume)


def _restored(
    resume: Path | None, learned: _Learned, optimizer: torch.optim.Adam, settings: Training
) -> _Progress:
    """Take up the state of a file; return what was kept with it."""
    if resume is None or not resume.is_file():
        return _Progress([], learned.state())
    try:
        tensors = load_file(resume)
        with safe_open(resume, "pt") as file:
            own = file.metadata() == {"settings": repr(settings)}
        if not own or not all(_close(tensors[f"unit:{name}"], unit) for name, unit in learned.units.items()):
            raise ValueError("other settings, or another network")
        learned.load(tensors)
        for name, value in learned.parameters().items():
            state = {key: tensors[f"adam:{key}:{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            optimizer.state[value] = {
                key: entry if key == "step" else entry.to(value.device) for key, entry in state.items()
            }
        best = {name: tensors[f"best:{name}"] for name in learned.parameters()}
        losses, held = (tensors[f"history:{key}"].tolist() for key in ("loss", "held"))
    except (SafetensorError, KeyError, RuntimeError, ValueError, OSError) as error:
        raise StageError(
            f"{resume}: is not the state of this training", hint="remove it to begin anew"
        ) from error
    history = [
        {"epoch": epoch, "loss": _known(loss), "held": _known(value)}
        for epoch, (loss, value) in enumerate(zip(losses, held, strict=True))
    ]
    return _Progress(history, best)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _close(first: Tensor, second: Tensor) -> bool:
    """Whether units are the same; those of two machines differ in their last digits."""
    return first.shape == second.shape and torch.allclose(first, second.cpu(), rtol=1e-3, atol=0.0)
