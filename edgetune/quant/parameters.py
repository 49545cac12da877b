"""What may change in a Q/DQ graph after it is written: integers, biases and scales, by their initializers.

The graph itself stays: what a correction or a training finds is written into the file that is deployed. It
may import quant.graph, quant.plan, quant.torch_graph and torch.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper
from torch import Tensor

from edgetune.quant.graph import Graph, attribute
from edgetune.quant.plan import WEIGHTED, half_scale
from edgetune.quant.torch_graph import TorchGraph, round_through


@dataclass(frozen=True)
class Weight:
    """The weights of one node of a Q/DQ graph. Names are those of initializers, empty where there is none.

    Attributes:
        node: the node, which has the same name in the FP32 network.
        made: the tensor that the node reads: its weights, dequantized.
        levels: the integers.
        scale: their scale, one per channel or a single one.
        axis: of the channels.
        bias: the bias as float, or as what a DequantizeLinear makes of `bias_levels` and `bias_scale`.
        input_scale: the scale of the node's other input.
        real: the FP32 network's weights.
        largest: magnitude of the largest integer.
        alone: no other node reads the weights or the bias.
    """

    node: NodeProto
    made: str
    levels: str
    scale: str
    axis: int
    bias: str
    bias_levels: str
    bias_scale: str
    input_scale: str
    real: Tensor
    largest: int
    alone: bool


def weights_of(net: TorchGraph, fp32: Graph) -> list[Weight]:
    """Find the nodes whose weights are integers, in running order.

    Args:
        net: the Q/DQ graph.
        fp32: the prepared network it was made from.
    """
    originals = {node.name: node for node in fp32.nodes}
    found = []
    for node in net.steps:
        made = net.graph.producers.get(node.input[1]) if len(node.input) > 1 else None
        if node.op_type not in WEIGHTED or made is None or made.op_type != "DequantizeLinear":
            continue
        if made.input[0] in net.constants and node.name in originals:
            found.append(_weight(net, node, made, fp32.constants[originals[node.name].input[1]]))
    return found


def _weight(net: TorchGraph, node: NodeProto, made: NodeProto, real: NDArray[Any]) -> Weight:
    axis = attribute(made, "axis", 1)
    bias = _bias(net, node, real.shape[axis % real.ndim])
    integer = net.graph.producers.get(bias)
    fed = net.graph.producers.get(node.input[0])
    return Weight(
        node=node,
        made=node.input[1],
        levels=made.input[0],
        scale=made.input[1],
        axis=axis,
        bias=bias,
        bias_levels=integer.input[0] if integer else "",
        bias_scale=integer.input[1] if integer else "",
        input_scale=fed.input[1] if fed is not None and fed.op_type == "DequantizeLinear" else "",
        real=torch.from_numpy(np.array(real, np.float32)).to(net.device),
        largest=64 if int(net.constants[made.input[0]].abs().max()) <= 64 else 127,
        alone=all(len(net.graph.consumers[name]) == 1 for name in (node.input[1], bias) if name),
    )


def _bias(net: TorchGraph, node: NodeProto, channels: int) -> str:
    """Return a node's own bias, or the constant that alone is added to its result; one value per channel."""
    if len(node.input) > 2 and node.input[2]:
        name = str(node.input[2])
        plain = attribute(node, "alpha", 1.0) == 1 == attribute(node, "beta", 1.0)
        return name if plain and _values(net, name) == channels else ""
    follower = net.graph.sole_consumer(node.output[0])
    while follower is not None and follower.op_type in ("QuantizeLinear", "DequantizeLinear"):
        follower = net.graph.sole_consumer(follower.output[0])
    if follower is None or follower.op_type != "Add" or node.op_type not in ("MatMul", "Gemm"):
        return ""
    name = next((str(n) for n in follower.input if n in net.constants), "")
    return name if name and list(net.constants[name].shape) == [channels] else ""


def _values(net: TorchGraph, name: str) -> int:
    """Return how many values a constant has, or the integers that it is made of."""
    made = net.graph.producers.get(name)
    source = net.constants.get(made.input[0] if made is not None else name)
    return 0 if source is None else source.numel()


def spread(values: Tensor, weight: Weight) -> Tensor:
    """Return one value per channel (or a single one) so that it meets the weights channel by channel."""
    if values.numel() == 1:
        return values.reshape(())
    return values.reshape([-1 if place == weight.axis else 1 for place in range(weight.real.ndim)])


def dequantized(weight: Weight, latent: Tensor, scale: Tensor) -> Tensor:
    """Return weights as the graph will hold them; the gradient passes through the rounding.

    Args:
        weight: whose.
        latent: real numbers in units of the scale.
        scale: of the integers.
    """
    return torch.clamp(round_through(latent), -weight.largest, weight.largest) * spread(scale, weight)


def real_bias(net: TorchGraph, weight: Weight) -> Tensor | None:
    """Return a node's bias as real numbers `[channels]`; None where it has none."""
    if weight.bias_levels:
        return net.constants[weight.bias_levels].float() * net.constants[weight.bias_scale]
    return net.constants[weight.bias].float().reshape(-1) if weight.bias in net.constants else None


def bias_values(net: TorchGraph, weight: Weight, bias: Tensor) -> dict[str, Tensor]:
    """Return the initializers that make up a bias, integers at the scale of the products where it has them."""
    if not weight.bias_levels:
        return {weight.bias: bias}
    scale = net.constants[weight.input_scale].float() * net.constants[weight.scale].float()
    return {weight.bias_scale: scale.reshape(-1), weight.bias_levels: torch.round(bias.double() / scale)}


def shift_of(weight: Weight, shift: Mapping[str, float]) -> float:
    """Return how far what a node reads is shifted down: what `shift` says of the tensor, 0 where nothing."""
    return shift.get(str(weight.node.input[0]).removesuffix("/dequantized"), 0.0)


def tied_scales(
    net: TorchGraph, groups: Mapping[str, str], fixed: Collection[str] = ()
) -> dict[str, list[str]]:
    """Return the scales of activations, by group: those of a group stay equal.

    Args:
        net: the Q/DQ graph.
        groups: of `Plan`: a representative for every quantized tensor.
        fixed: tensors whose groups are left out.
    """
    found: dict[str, list[str]] = {}
    for name in dict.fromkeys(n.input[1] for n in net.steps if n.op_type == "QuantizeLinear"):
        found.setdefault(groups.get(name.removesuffix("/scale"), name), []).append(name)
    stay = {f"{name}/scale" for name in fixed}
    return {group: tied for group, tied in found.items() if stay.isdisjoint(tied)}


def channel_sums(weight: Weight, values: Tensor) -> Tensor:
    """Return sums of values of the weights' shape over everything but the channels, `[channels]`."""
    return values.sum([axis for axis in range(values.ndim) if axis != weight.axis % values.ndim])


def ceilings(net: TorchGraph) -> dict[str, float]:
    """Return the largest scales at which an unsigned tensor's levels stay within the Clip that makes it.

    ONNX Runtime drops a Clip that the levels cannot leave; another one costs time.
    """
    found = {}
    for node in net.steps:
        clip = net.graph.producers.get(node.input[0]) if node.op_type == "QuantizeLinear" else None
        zero = net.constants[node.input[2]] if clip is not None and len(node.input) > 2 else None
        if clip is None or clip.op_type != "Clip" or zero is None or zero.dtype != torch.uint8:
            continue
        low, high = (net.constants.get(name) for name in [*clip.input[1:], "", ""][:2])
        above, below = 255 - int(zero), int(zero)
        limits = [float(high) / above] if high is not None and above else []
        limits += [-float(low) / below] if low is not None and below else []
        found[str(node.input[1])] = min(limits, default=math.inf)
    return found


def fp16(scale: Tensor) -> Tensor:
    """Return the nearest scales that FP16 can write down."""
    return torch.from_numpy(np.asarray(half_scale(scale.cpu().numpy()), np.float32)).to(scale.device)


def put(net: TorchGraph, values: Mapping[str, Tensor]) -> None:
    """Give constants of a graph in execution new values; integers are rounded and limited."""
    for name, value in values.items():
        net.constants[name] = _fitted(value.detach(), net.constants[name])


def _fitted(value: Tensor, old: Tensor) -> Tensor:
    if not old.is_floating_point():
        limits = torch.iinfo(old.dtype)
        value = torch.clamp(torch.round(value.double()), max(limits.min, -limits.max), limits.max)
    return value.to(old.dtype).reshape(old.shape).clone()


def written(model: ModelProto, net: TorchGraph) -> ModelProto:
    """Return a model with the constants that its execution now has."""
    made = ModelProto()
    made.CopyFrom(model)
    for item in made.graph.initializer:
        now = net.constants[item.name].cpu().numpy()
        if not np.array_equal(now, numpy_helper.to_array(item)):
            item.CopyFrom(numpy_helper.from_array(now, item.name))
    return made
