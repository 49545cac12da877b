"""Quantization-aware training of the Q/DQ graph itself, with the FP32 network as teacher.

What is executed is the graph that will be deployed, rounding included; gradients pass straight through the
rounding to weights and scales (learned step size: Esser et al. 2020, arXiv:1902.08153). Weights, biases and
scales are written back into the same graph, so the exported network is the trained one. Labels are optional:
the teacher's outputs are what is learned. It may import errors, quant's parameters, graph and torch_graph,
safetensors and torch.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from onnx import ModelProto
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from edgetune.errors import StageError
from edgetune.quant.graph import Graph
from edgetune.quant.parameters import (
    Weight,
    bias_values,
    dequantized,
    fp16,
    put,
    real_bias,
    spread,
    tied_scales,
    weights_of,
    written,
)
from edgetune.quant.torch_graph import TorchGraph

Told = Callable[[int, int], None]


@dataclass(frozen=True)
class Training:
    """How long and how fast.

    Attributes:
        epochs: passes over the inputs.
        batch: inputs of a step.
        weight_rate: learning rate of weights, in units of their scale.
        scale_rate: of the logarithms of activations' scales.
        label_weight: share of the labels' cross-entropy in the loss, where there are labels.
        seed: of the order.
    """

    epochs: int = 4
    batch: int = 16
    weight_rate: float = 5e-3
    scale_rate: float = 1e-3
    label_weight: float = 0.2
    seed: int = 0


@dataclass
class _Learned:
    """Parameters in place of a graph's constants."""

    net: TorchGraph
    weights: list[Weight]
    ties: dict[str, list[str]]
    latent: dict[str, Tensor] = field(default_factory=dict)
    bias: dict[str, Tensor] = field(default_factory=dict)
    log_scale: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for weight in self.weights:
            scale = self.net.constants[weight.scale].float()
            levels = self.net.constants[weight.levels].float()
            # Starts from the integers that are there, as near to the real weights as those allow.
            inside = torch.clamp(weight.real / spread(scale, weight) - levels, -0.49, 0.49)
            self.latent[weight.made] = (levels + inside).requires_grad_()
            bias = real_bias(self.net, weight)
            if bias is not None:
                self.bias[weight.bias] = bias.clone().requires_grad_()
        for group, tied in self.ties.items():
            self.log_scale[group] = self.net.constants[tied[0]].float().log().clone().requires_grad_()

    def parameters(self) -> dict[str, Tensor]:
        kinds = {"latent": self.latent, "bias": self.bias, "log_scale": self.log_scale}
        return {f"{kind}:{name}": value for kind, found in kinds.items() for name, value in found.items()}

    def replaced(self) -> dict[str, Tensor]:
        """Return what takes the place of constants, differentiable."""
        made = {
            w.made: dequantized(w, self.latent[w.made], self.net.constants[w.scale].float())
            for w in self.weights
        }
        scales = {name: self.log_scale[group].exp() for group, tied in self.ties.items() for name in tied}
        return made | self.bias | scales

    def settle(self, half: bool) -> None:
        """Give the graph's constants what was learned."""
        for group, tied in self.ties.items():
            scale = self.log_scale[group].detach().exp()
            if half:
                scale = fp16(scale)
            put(self.net, dict.fromkeys(tied, scale))
        for weight in self.weights:
            put(
                self.net,
                {
                    weight.levels: torch.clamp(
                        self.latent[weight.made].detach().round(), -weight.largest, weight.largest
                    )
                },
            )
            if weight.bias in self.bias:
                put(self.net, bias_values(self.net, weight, self.bias[weight.bias].detach()))


def train(
    model: ModelProto,
    fp32: Graph,
    inputs: Mapping[str, Tensor],
    groups: Mapping[str, str],
    settings: Training | None = None,
    *,
    labels: Tensor | None = None,
    half: bool = False,
    device: str = "cpu",
    resume: Path | None = None,
    told: Told | None = None,
) -> tuple[ModelProto, list[dict[str, Any]]]:
    """Train a quantized network to give what FP32 gives.

    Args:
        model: Q/DQ, FP32 outside of it.
        fp32: the prepared network it was made from.
        inputs: by the network's input names, `[N, ...]`.
        groups: of `Plan`: tensors whose scales stay equal.
        settings: how long and how fast.
        labels: classes `[N]`, for a classifier.
        half: scales are numbers that FP16 can write down.
        device: `cpu` or `cuda`.
        resume: a file that keeps the state after each epoch; where it is there, training goes on from it.
        told: is called with the numbers of steps done and to do.

    Returns:
        The trained graph, and `epoch` and `loss` of each epoch; a loss of 1 is an output of nothing.

    Raises:
        StageError: the loss is no longer a number, or the state in `resume` is of another training.
    """
    settings = settings or Training()
    net, teacher = TorchGraph(model, device), TorchGraph(fp32.model, device)
    learned = _Learned(net, weights_of(net, fp32), tied_scales(net, groups))
    optimizer = torch.optim.Adam(
        [
            {"params": list(learned.latent.values()), "peak": settings.weight_rate},
            {"params": list(learned.bias.values()), "peak": settings.scale_rate},
            {"params": list(learned.log_scale.values()), "peak": settings.scale_rate},
        ]
    )
    rows = len(next(iter(inputs.values())))
    steps = -(-rows // settings.batch)
    aims = _teach(teacher, inputs, settings.batch)
    history = _restored(resume, learned, optimizer)
    for epoch in range(len(history), settings.epochs):
        generator = torch.Generator().manual_seed(settings.seed + epoch)
        order = torch.randperm(rows, generator=generator)
        total = 0.0
        for step in range(steps):
            pick = order[step * settings.batch : (step + 1) * settings.batch]
            share = (epoch * steps + step) / (settings.epochs * steps)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * 0.5 * (1 + math.cos(math.pi * share))
            loss = _loss(learned, inputs, aims, labels, pick, settings)
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
        history.append({"epoch": epoch + 1, "loss": total / rows})
        _keep(resume, learned, optimizer, history)
    learned.settle(half)
    return written(model, net), history


def _teach(teacher: TorchGraph, inputs: Mapping[str, Tensor], batch: int) -> dict[str, Tensor]:
    """Return FP32's float outputs for all inputs, computed once."""
    rows = len(next(iter(inputs.values())))
    parts = []
    with torch.inference_mode():
        for start in range(0, rows, batch):
            feeds = {name: value[start : start + batch].to(teacher.device) for name, value in inputs.items()}
            parts.append(teacher.run(feeds))
    floats = [name for name in teacher.graph.outputs if parts[0][name].is_floating_point()]
    return {name: torch.cat([part[name] for part in parts]).clone() for name in floats}


def _loss(
    learned: _Learned, inputs: Mapping[str, Tensor], aims: Mapping[str, Tensor], labels: Tensor | None,
    pick: Tensor, settings: Training,
) -> Tensor:  # fmt: skip
    """Squared error over the mean square of each output, and the labels' share."""
    device = learned.net.device
    feeds = {name: value[pick].to(device) for name, value in inputs.items()}
    found = learned.net.run(feeds, replaced=learned.replaced())
    where = pick.to(device)
    losses = [
        (found[name] - aim[where]).square().mean() / aim.square().mean().clamp_min(1e-12)
        for name, aim in aims.items()
    ]
    loss = torch.stack(losses).mean()
    if labels is None:
        return loss
    (name,) = aims
    entropy = F.cross_entropy(found[name].flatten(1), labels[pick].to(device))
    return (1 - settings.label_weight) * loss + settings.label_weight * entropy


def _keep(
    resume: Path | None, learned: _Learned, optimizer: torch.optim.Adam, history: list[dict[str, Any]]
) -> None:
    """Write the state to a file, whole or not at all."""
    if resume is None:
        return
    tensors = {name: value.detach().cpu() for name, value in learned.parameters().items()}
    for name, value in learned.parameters().items():
        for key, entry in optimizer.state.get(value, {}).items():
            tensors[f"adam:{key}:{name}"] = torch.as_tensor(entry).detach().cpu()
    tensors["losses"] = torch.tensor([entry["loss"] for entry in history], dtype=torch.float64)
    partial = resume.with_suffix(".partial")
    save_file({name: value.contiguous() for name, value in tensors.items()}, partial)
    partial.replace(resume)


def _restored(resume: Path | None, learned: _Learned, optimizer: torch.optim.Adam) -> list[dict[str, Any]]:
    """Take up the state of a file; return its history."""
    if resume is None or not resume.is_file():
        return []
    try:
        tensors = load_file(resume)
        with torch.no_grad():
            for name, value in learned.parameters().items():
                value.copy_(tensors[name])
                state = {key: tensors[f"adam:{key}:{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
                optimizer.state[value] = {
                    key: entry if key == "step" else entry.to(value.device) for key, entry in state.items()
                }
    except (SafetensorError, KeyError, RuntimeError, OSError) as error:
        raise StageError(
            f"{resume}: is not the state of this training", hint="remove it to begin anew"
        ) from error
    return [{"epoch": index + 1, "loss": float(loss)} for index, loss in enumerate(tensors["losses"])]
