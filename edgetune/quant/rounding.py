"""Rounding weights so that each layer's output stays, instead of each weight.

Rounding to the nearest integer is best for single weights and not for their sum: errors of weights whose
inputs go together can cancel. This minimises the squared error of a layer's output, which is AdaRound's
objective (Nagel et al. 2020, arXiv:2004.10568, section 3), without its gradients: column by column, the
columns still to come making good for each error (OBQ and GPTQ: Frantar et al. 2022, arXiv:2208.11580 and
arXiv:2210.17323). It may import quant's parameters, graph, torch_graph, torch_ops and torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from edgetune.quant.graph import attribute
from edgetune.quant.parameters import Weight, bias_values, real_bias, spread
from edgetune.quant.torch_graph import TorchGraph, attributes_of
from edgetune.quant.torch_ops import pads_of

# Rows of inputs (positions of images) that a layer's statistics are made of, per weight of an output.
ROWS_PER_WEIGHT = 24
LEAST_ROWS = 4096
# Share of the mean square that is added to every input's own: keeps rare inputs from being overfitted. Where
# rows are few beside the weights that they decide on, it grows, and weights stay where they are.
DAMPING = 0.02
# Columns whose errors reach the far ones together.
COLUMNS = 64
_NOTHING, _PRECISION = 1e-12, 1e-5


@dataclass
class _Moments:
    """Sums over rows of a layer's inputs x `[G, rows, K]` and outputs y `[G, rows, O]`, in float64."""

    rows: int
    x: Tensor
    y: Tensor
    xx: Tensor
    yx: Tensor

    def center(self) -> tuple[Tensor, Tensor]:
        """Return means of products after means are taken off."""
        x, y = self.x / self.rows, self.y / self.rows
        return (
            self.xx / self.rows - x[:, :, None] * x[:, None, :],
            self.yx / self.rows - y[:, :, None] * x[:, None, :],
        )


def can_round(weight: Weight) -> bool:
    """Whether a layer's output can be written as products of rows and weights here."""
    kinds = {"Conv": 4, "Gemm": 2, "MatMul": 2}
    plain = all(attribute(weight.node, key, 1.0) == 1 for key in ("alpha", "beta"))
    return (
        kinds.get(weight.node.op_type) == weight.real.ndim
        and plain
        and not attribute(weight.node, "transA", 0)
    )


def rounded(net: TorchGraph, weight: Weight, pairs: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Return the initializers of a layer whose integers make its output closest to an aim.

    Outputs for which nothing better is found than the integers that are there keep those.

    Args:
        net: the Q/DQ graph; it stays as it is.
        weight: the layer, a Conv, Gemm or MatMul.
        pairs: what it reads, `[N, ...]`, as the layers before it give it, and what its output should be, of a
            few inputs each.

    Returns:
        Values by name; none where the inputs do not determine any.
    """
    seen = _moments(weight, pairs)
    scale = net.constants[weight.scale].double()
    real = _matrix(weight, weight.real.double() / spread(scale, weight))
    now = _matrix(weight, net.constants[weight.levels].double())
    unit = scale.reshape(-1).expand(real.shape[0] * real.shape[1]).reshape(*real.shape[:2], 1)
    bias = real_bias(net, weight)
    # Without a bias to shift, means have to be met by the weights.
    gram, aim = (seen.xx / seen.rows, seen.yx / seen.rows) if bias is None else seen.center()
    aim = aim / unit
    own = gram.diagonal(dim1=1, dim2=2)
    few = real.shape[2] / seen.rows
    # Differences of sums in float32 are no more precise than this.
    least = _PRECISION * seen.xx.diagonal(dim1=1, dim2=2).mean(1, keepdim=True) / seen.rows
    damp = (DAMPING + few) * own.mean(1, keepdim=True).clamp_min(0) + least + _NOTHING
    damped = gram + torch.diag_embed(damp.expand_as(own))
    # Least squares, drawn to the weights as they are.
    pulled = (aim + damp[:, None] * real).transpose(1, 2)
    try:
        best = torch.cholesky_solve(pulled, torch.linalg.cholesky(damped)).transpose(1, 2)
        levels = _solve(damped, best, weight.largest).double()
    except RuntimeError:
        return {}  # nothing can be said of inputs like these
    better = _errors(gram, aim, levels) < _errors(gram, aim, now)
    levels = torch.where(better[:, :, None], levels, now)
    values = {weight.levels: _unmatrix(weight, levels)}
    if bias is not None:
        shift = (seen.y - ((levels * unit) @ seen.x[:, :, None])[:, :, 0]) / seen.rows
        values |= bias_values(net, weight, shift.reshape(-1))
    return values


def _errors(gram: Tensor, aim: Tensor, levels: Tensor) -> Tensor:
    """Return each output's squared error [G, O], less what is the same for all levels."""
    return ((levels @ gram - 2 * aim) * levels).sum(2)


def _solve(gram: Tensor, real: Tensor, largest: int) -> Tensor:
    """Round [G, O, K] column by column; each error is made good by the columns still to come.

    Columns of the largest inputs come first: later ones have fewer left to help them.
    """
    order = gram.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True)
    sorted_gram = torch.gather(
        torch.gather(gram, 1, order[:, :, None].expand_as(gram)), 2, order[:, None, :].expand_as(gram)
    )
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(sorted_gram)), upper=True)
    inverse = inverse.float()
    places = order[:, None, :].expand_as(real)
    left = torch.gather(real, 2, places).float()
    levels = torch.empty_like(left)
    for begin in range(0, left.shape[2], COLUMNS):
        end = min(begin + COLUMNS, left.shape[2])
        errors = torch.zeros_like(left[:, :, begin:end])
        for column in range(begin, end):
            levels[:, :, column] = left[:, :, column].round().clamp(-largest, largest)
            error = (left[:, :, column] - levels[:, :, column]) / inverse[:, None, column, column]
            left[:, :, column + 1 : end] -= error[:, :, None] * inverse[:, None, column, column + 1 : end]
            errors[:, :, column - begin] = error
        left[:, :, end:] -= errors @ inverse[:, begin:end, end:]
    return torch.zeros_like(left).scatter(2, places, levels)


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


def _moments(weight: Weight, pairs: Sequence[tuple[Tensor, Tensor]]) -> _Moments:
    """Add up inputs and outputs at some positions of every input."""
    groups, outputs, size = _matrix(weight, weight.real).shape
    empty = torch.zeros(groups, outputs, size, dtype=torch.float64, device=weight.real.device)
    found = _Moments(
        0, empty[:, 0].clone(), empty[:, :, 0].clone(), empty[:, :0].new_zeros(groups, size, size), empty
    )
    generator = torch.Generator().manual_seed(0)
    share = max(LEAST_ROWS, ROWS_PER_WEIGHT * size) / max(sum(_positions(weight, y) for _, y in pairs), 1)
    for x, y in pairs:
        rows, aims = _equations(weight, x, y, share, generator)
        aims = aims.reshape(len(aims), groups, outputs).transpose(0, 1)
        found.rows += rows.shape[1]
        found.x += rows.sum(1)
        found.y += aims.sum(1)
        found.xx += rows.transpose(1, 2) @ rows
        found.yx += aims.transpose(1, 2) @ rows
    return found


def _positions(weight: Weight, y: Tensor) -> int:
    """Return how often a layer's weights are applied in an output."""
    return y.numel() // y.shape[1 if weight.node.op_type == "Conv" else -1]


def _equations(
    weight: Weight, x: Tensor, y: Tensor, share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return inputs [groups, rows, K] and outputs [rows, channels] at a share of the positions."""
    if weight.node.op_type != "Conv":
        flat, aims = x.flatten(0, -2), y.flatten(0, -2)
        pick = _some(len(flat), share, generator).to(x.device)
        return flat[pick][None], aims[pick]
    group, size = attribute(weight.node, "group", 1), weight.real[0].numel()
    patches = _patches(weight, x)
    pick = _some(patches.shape[2], share, generator).to(x.device)
    part = patches[:, :, pick].reshape(len(patches), group, size, -1)
    aims = y.flatten(2)[:, :, pick].permute(0, 2, 1).flatten(0, 1)
    return part.permute(1, 0, 3, 2).reshape(group, -1, size), aims


def _some(count: int, share: float, generator: torch.Generator) -> Tensor:
    """Return a random share of positions, at least one of them."""
    return torch.randperm(count, generator=generator)[: max(1, min(count, round(share * count)))]


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
