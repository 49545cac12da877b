"""Rounding weights so that each layer's output stays, instead of each weight.

Rounding to the nearest integer is best for single weights and not for their sum: errors of weights whose
inputs go together can cancel. This minimises the squared error of a layer's output, which is AdaRound's
objective (Nagel et al. 2020, arXiv:2004.10568, section 3), without its gradients: column by column, the
columns still to come making good for each error (OBQ and GPTQ: Frantar et al. 2022, arXiv:2208.11580 and
arXiv:2210.17323).

The aim is what the real weights make of the quantized network's own inputs. Aiming at FP32's outputs instead
also makes good for noise in the inputs, by weaker weights; over the layers of a network the signal fades, and
that cost mobilenet_v2 2.6 dB, squeezenet1_0 0.7 dB. It may import quant's parameters, graph, torch_graph,
torch_ops and torch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from edgetune.quant.graph import attribute
from edgetune.quant.parameters import Weight, real_bias, spread
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
    """Sums over rows of a layer's inputs x `[G, rows, K]`, in float64.

    Of x less what it is about, so that products of nearly constant inputs keep their digits.
    """

    rows: int
    about: Tensor
    x: Tensor
    xx: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean of the inputs, `[G, K]`."""
        return self.about + self.x / self.rows

    def products(self, centered: bool) -> Tensor:
        """Return means of products `[G, K, K]`, of inputs as they are or with their means taken off."""
        x = self.x / self.rows
        xx = self.xx / self.rows - x[:, :, None] * x[:, None, :]
        return xx if centered else xx + self.mean[:, :, None] * self.mean[:, None, :]


def can_round(weight: Weight) -> bool:
    """Whether a layer's output can be written as products of rows and weights here."""
    kinds = {"Conv": 4, "Gemm": 2, "MatMul": 2}
    plain = all(attribute(weight.node, key, 1.0) == 1 for key in ("alpha", "beta"))
    return (
        kinds.get(weight.node.op_type) == weight.real.ndim
        and plain
        and not attribute(weight.node, "transA", 0)
    )


def rounded(net: TorchGraph, weight: Weight, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the integers of a layer that make of what it reads what its real weights would.

    Outputs for which nothing better is found than the integers that are there keep those. Where the layer has
    a bias, an output's mean is left to that.

    Args:
        net: the Q/DQ graph; it stays as it is.
        weight: the layer, a Conv, Gemm or MatMul.
        inputs: what it reads, `[N, ...]`, as the layers before it give it, of a few inputs each.

    Returns:
        Initializers by name; none where the inputs do not determine any.
    """
    seen = _moments(weight, inputs)
    scale = net.constants[weight.scale].double()
    real = _matrix(weight, weight.real.double() / spread(scale, weight))
    now = _matrix(weight, net.constants[weight.levels].double())
    gram = seen.products(centered=real_bias(net, weight) is not None)
    own = gram.diagonal(dim1=1, dim2=2)
    # Sums in float32 are no more precise than this.
    least = _PRECISION * seen.mean.square().mean(1, keepdim=True) + _NOTHING
    damp = (DAMPING + real.shape[2] / seen.rows) * own.mean(1, keepdim=True).clamp_min(0) + least
    try:
        levels = _solve(gram + torch.diag_embed(damp.expand_as(own)), real, weight.largest).double()
    except RuntimeError:
        return {}  # nothing can be said of inputs like these
    better = _errors(gram, levels - real) < _errors(gram, now - real)
    return {weight.levels: _unmatrix(weight, torch.where(better[:, :, None], levels, now))}


def _errors(gram: Tensor, away: Tensor) -> Tensor:
    """Return each output's mean squared error [G, O] where its weights are so far away."""
    return ((away @ gram) * away).sum(2)


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


def _moments(weight: Weight, inputs: Sequence[Tensor]) -> _Moments:
    """Add up what is read at some positions of every input."""
    groups, _, size = _matrix(weight, weight.real).shape
    nothing = torch.zeros(groups, size, dtype=torch.float64, device=weight.real.device)
    found = _Moments(0, nothing, nothing.clone(), nothing.new_zeros(groups, size, size))
    generator = torch.Generator().manual_seed(0)
    share = max(LEAST_ROWS, ROWS_PER_WEIGHT * size) / max(sum(_positions(weight, x) for x in inputs), 1)
    for x in inputs:
        rows = _reads(weight, x, share, generator)
        if not found.rows:
            found.about = rows.double().mean(1)
        rows = rows - found.about[:, None].float()
        found.rows += rows.shape[1]
        found.x += rows.sum(1)
        found.xx += rows.transpose(1, 2) @ rows
    return found


def _positions(weight: Weight, x: Tensor) -> int:
    """Return about how often a layer's weights are applied to an input."""
    if weight.node.op_type != "Conv":
        return x.numel() // x.shape[-1]
    strides = attribute(weight.node, "strides", [1, 1])
    return max(1, x.numel() // x.shape[1] // int(math.prod(strides)))


def _reads(weight: Weight, x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Return what outputs are made of [groups, rows, K] at a share of the positions."""
    if weight.node.op_type != "Conv":
        flat = x.flatten(0, -2)
        return flat[some(len(flat), share, generator).to(x.device)][None]
    group, size = attribute(weight.node, "group", 1), weight.real[0].numel()
    patches = _patches(weight, x)
    pick = some(patches.shape[2], share, generator).to(x.device)
    part = patches[:, :, pick].reshape(len(patches), group, size, -1)
    return part.permute(1, 0, 3, 2).reshape(group, -1, size)


def some(count: int, share: float, generator: torch.Generator) -> Tensor:
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
