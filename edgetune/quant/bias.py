"""Biases that make good for what rounding shifts, behind the activation.

What counts is what the next layer reads. Before a ReLU a mean can be right and yet wrong behind it, where
noise around 0 adds up instead of cancelling: matching means there cost squeezenet1_0 3 dB that matching them
behind it gains. So each channel's shift is the one with the least squared error behind the activation, by a
few steps of Gauss and Newton, halved where they go too far; without an activation it is the difference of the
means (Nagel et al. 2019, arXiv:1906.04721, section 4.2). It may import quant's graph, parameters, plan,
rounding, trace, torch_graph and torch.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from edgetune.quant.graph import Graph
from edgetune.quant.parameters import Weight, real_bias
from edgetune.quant.plan import ACTIVATIONS
from edgetune.quant.rounding import some
from edgetune.quant.torch_graph import TorchGraph, nodes_between
from edgetune.quant.trace import pointwise_of

# Positions of images that a channel's shift is fitted to, over all inputs.
ROWS = 16384
STEPS = 8
# Channels whose activation passes on less than this share of a change are left alone.
LEAST_SLOPE = 1e-4
# Outputs of a layer: in the quantized network, and in FP32; `[N, C, ...]` or `[..., C]`.
Outputs = Sequence[tuple[Tensor, Tensor]]


def fitted_bias(net: TorchGraph, reference: TorchGraph, weight: Weight, outputs: Outputs) -> Tensor | None:
    """Return the bias of a layer `[C]` with which its activation's output is closest to FP32's.

    Args:
        net: the Q/DQ graph.
        reference: the FP32 network.
        weight: the layer.
        outputs: what it gives now, and should give, before its activation.

    Returns:
        None where it has no bias of its own.
    """
    bias = real_bias(net, weight)
    if bias is None:
        return None
    given, wanted = _rows(weight, outputs)
    follow = _activation(reference, weight.node.output[0], "Conv" in weight.node.op_type)
    # A bias that an Add applies behind the node is as it was in the reference.
    away = (
        torch.zeros_like(bias)
        if weight.bias in weight.node.input
        else bias - reference.constants[weight.bias]
    )
    with torch.inference_mode(False), torch.enable_grad():
        return bias + _fit(given.clone() + away, follow(wanted.clone()), follow)


def _fit(given: Tensor, aim: Tensor, follow: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the shift of every channel of `given` [rows, C] with the least squared error to `aim`."""
    shift = torch.zeros_like(given[0])
    best, least = shift, torch.full_like(shift, torch.inf)
    for step in range(STEPS + 1):
        shifted = (given + shift).requires_grad_()
        made = follow(shifted)
        missing = (aim - made).detach()
        error = missing.square().mean(0)
        worse = error > least
        best, least = torch.where(worse, best, shift), torch.minimum(error, least)
        if step < STEPS:
            (slope,) = torch.autograd.grad(made.sum(), shifted)
            weight = slope.square().mean(0)
            newton = torch.where(weight > LEAST_SLOPE, (slope * missing).mean(0) / weight, 0.0)
            # Where an activation is flat a step goes too far: then half of it.
            shift = torch.where(worse, (shift + best) / 2, shift + newton)
    return best


def _rows(weight: Weight, outputs: Outputs) -> tuple[Tensor, Tensor]:
    """Return outputs at some positions, `[rows, C]` each."""
    generator = torch.Generator().manual_seed(0)
    axis = 1 if "Conv" in weight.node.op_type else -1
    pairs = [[value.movedim(axis, -1).flatten(0, -2) for value in pair] for pair in outputs]
    share = min(1.0, ROWS / max(sum(len(given) for given, _ in pairs), 1))
    picked = []
    for given, wanted in pairs:
        pick = some(len(given), share, generator)
        picked.append([value[pick.to(value.device)] for value in (given, wanted)])
    given, wanted = (torch.cat(parts) for parts in zip(*picked, strict=True))
    return given, wanted


def _activation(reference: TorchGraph, tensor: str, convolution: bool) -> Callable[[Tensor], Tensor]:
    """Return what the network does with a layer's output, row by row, up to what the next one reads."""
    end = activated(reference.graph, tensor)
    steps = tuple(nodes_between(reference.graph, [tensor], [end]))

    def run(rows: Tensor) -> Tensor:
        if not steps:
            return rows
        values = rows[:, :, None, None] if convolution else rows
        return reference.execute(steps, {tensor: values}, [end], len(rows))[end].flatten(1)

    return run


def activated(graph: Graph, tensor: str) -> str:
    """Return the tensor behind a tensor's activation, written as one operator or as several."""
    while tensor not in graph.outputs:
        after = graph.consumers.get(tensor, [])
        ends = [
            node for node in after if all(pointwise_of(graph, name, tensor) for name in graph.variables(node))
        ]
        single = len(after) == 1 and after[0].op_type in ACTIVATIONS | {"Add"} and ends
        # x * sigmoid(x): all but the product are on the way to it.
        product = len(after) > 1 and [
            node for node in ends if node.op_type == "Mul" and len(set(node.input)) > 1
        ]
        if not single and not product:
            break
        tensor = (product or after)[-1].output[0]
    return tensor
