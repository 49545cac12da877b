"""Rounding weights so that each layer's output stays, instead of each weight.

Rounding to the nearest integer is best for single weights and not for their sum: errors of weights whose
inputs go together can cancel. This minimises the squared error of a layer's output, which is AdaRound's
objective (Nagel et al. 2020, arXiv:2004.10568, section 3), without its gradients: column by column, the
columns still to come making good for each error (OBQ and GPTQ: Frantar et al. 2022, arXiv:2208.11580 and
arXiv:2210.17323). It may import quant's parameters, graph, torch_graph, torch_ops and torch.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from edgetune.quant.graph import attribute
from edgetune.quant.parameters import Weight, bias_values, real_bias, spread
from edgetune.quant.torch_graph import TorchGraph, attributes_of
from edgetune.quant.torch_ops import pads_of

CHUNK = 8
# Rows of inputs (positions of images) that a layer's statistics are made of, per weight of an output.
ROWS_PER_WEIGHT = 24
LEAST_ROWS = 4096
# Share of the mean square that is added to every input's own: keeps rare inputs from being overfitted. Where
# rows are few beside the weights that they decide on, it grows, and weights stay where they are.
DAMPING = 0.02


def can_round(weight: Weight) -> bool:
    """Whether a layer's output can be written as products of rows and weights here."""
    kinds = {"Conv": 4, "Gemm": 2, "MatMul": 2}
    return kinds.get(weight.node.op_type) == weight.real.ndim


def rounded(net: TorchGraph, weight: Weight, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Return the initializers of a layer whose integers make its output closest to an aim.

    Args:
        net: the Q/DQ graph; it stays as it is.
        weight: the layer, a Conv, Gemm or MatMul.
        x: what it reads, `[N, ...]`, as the layers before it give it.
        y: what its output should be.
    """
    rows, aims = _equations(weight, x, y)
    scale = net.constants[weight.scale].float()
    real = _matrix(weight, (weight.real / spread(scale, weight)))
    groups, outputs = real.shape[0], real.shape[1]
    aims = aims.reshape(len(aims), groups, outputs).permute(1, 2, 0)
    per_output = scale.reshape(-1) if scale.numel() > 1 else scale.reshape(1).expand(groups * outputs)
    unit = per_output.reshape(groups, outputs, 1)
    bias = real_bias(net, weight)
    mean_x, mean_y = rows.mean(1, keepdim=True), aims.mean(2, keepdim=True)
    # Without a bias to shift, means have to be met by the weights.
    if bias is not None:
        rows, aims = rows - mean_x, aims - mean_y
    gram = rows.transpose(1, 2) @ rows / rows.shape[1]
    aim = (aims / unit) @ rows / rows.shape[1]
    own = gram.diagonal(dim1=1, dim2=2)
    few = rows.shape[2] / rows.shape[1]
    damp = (DAMPING + few) * own.mean(1, keepdim=True).clamp_min(1e-12)
    gram = gram + torch.diag_embed(damp.expand_as(own))
    # Least squares, drawn to the weights as they are.
    best = torch.linalg.solve(gram, (aim + damp[:, None] * real).transpose(1, 2)).transpose(1, 2)
    levels = _solve(gram, best, weight.largest)
    values = {weight.levels: _unmatrix(weight, levels)}
    if bias is not None:
        shift = mean_y - ((levels * unit) @ mean_x.transpose(1, 2))
        values |= bias_values(net, weight, shift.reshape(-1))
    return values


def _solve(gram: Tensor, real: Tensor, largest: int) -> Tensor:
    """Round [G, O, K] column by column; each error is made good by the columns still to come.

    Columns of the largest inputs come first: later ones have fewer left to help them.
    """
    order = gram.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True)
    sorted_gram = torch.gather(
        torch.gather(gram, 1, order[:, :, None].expand_as(gram)), 2, order[:, None, :].expand_as(gram)
    )
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(sorted_gram)), upper=True)
    places = order[:, None, :].expand_as(real)
    left = torch.gather(real, 2, places).clone()
    levels = torch.empty_like(left)
    for column in range(left.shape[2]):
        levels[:, :, column] = left[:, :, column].round().clamp(-largest, largest)
        error = (left[:, :, column] - levels[:, :, column]) / inverse[:, None, column, column]
        left[:, :, column + 1 :] -= error[:, :, None] * inverse[:, None, column, column + 1 :]
    return torch.zeros_like(real).scatter(2, places, levels)


def _matrix(weight: Weight, values: Tensor) -> Tensor:
    """Return weights as [groups, outputs of a group, inputs]."""
    if weight.node.op_type == "Conv":
        group = attribute(weight.node, "group", 1)
        return values.reshape(group, values.shape[0] // group, -1)
    return (values if weight.axis == 0 else values.t())[None]


def _unmatrix(weight: Weight, levels: Tensor) -> Tensor:
    if weight.node.op_type == "Conv":
        return levels.reshape(weight.real.shape)
    return levels[0] if weight.axis == 0 else levels[0].t()


def _equations(weight: Weight, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return inputs [groups, rows, K] and outputs [rows, channels] at some positions of every input."""
    generator = torch.Generator().manual_seed(0)
    if weight.node.op_type != "Conv":
        flat, aims = x.flatten(0, -2), y.flatten(0, -2)
        pick = torch.randperm(len(flat), generator=generator)[
            : max(LEAST_ROWS, ROWS_PER_WEIGHT * flat.shape[1])
        ]
        return flat[pick][None], aims[pick]
    group = attribute(weight.node, "group", 1)
    size = weight.real[0].numel()
    places = y[0, 0].numel()
    per_input = min(places, max(1, -(-max(LEAST_ROWS, ROWS_PER_WEIGHT * size) // len(x))))
    rows: list[Tensor] = []
    outputs: list[Tensor] = []
    for start in range(0, len(x), CHUNK):
        patches = _patches(weight, x[start : start + CHUNK])
        pick = torch.randperm(places, generator=generator)[:per_input]
        part = patches[:, :, pick].reshape(len(patches), group, size, -1)
        rows.append(part.permute(1, 0, 3, 2).reshape(group, -1, size))
        outputs.append(y[start : start + CHUNK].flatten(2)[:, :, pick].permute(0, 2, 1).flatten(0, 1))
    return torch.cat(rows, 1), torch.cat(outputs)


def _patches(weight: Weight, x: Tensor) -> Tensor:
    """Return what each output position of a two-dimensional convolution reads, [N, C * kernel, places]."""
    node, kernel = weight.node, weight.real.shape[2:]
    top, left, bottom, right = pads_of(x, kernel, attributes_of(node))
    return F.unfold(
        F.pad(x, (left, right, top, bottom)),
        kernel,
        dilation=attribute(node, "dilations", [1, 1]),
        stride=attribute(node, "strides", [1, 1]),
    )
