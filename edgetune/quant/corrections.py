"""Corrections of a Q/DQ graph, layer by layer or block by block, against the FP32 network.

Each goes through both networks in order: what is corrected is fed by what was corrected before it, as it
will be once deployed, and aims at what FP32 gives. In memory is what is still to be read, of all inputs. It
may import quant's parameters, blocks, rounding, graph, torch_graph, and torch.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

import torch
from onnx import ModelProto, NodeProto
from torch import Tensor

from edgetune.quant.bias import fitted_bias
from edgetune.quant.blocks import Passage, alive, cut
from edgetune.quant.graph import Graph
from edgetune.quant.parameters import (
    Weight,
    bias_values,
    ceilings,
    fp16,
    put,
    real_bias,
    tied_scales,
    weights_of,
    written,
)
from edgetune.quant.rounding import can_round, rounded
from edgetune.quant.torch_graph import TorchGraph, nodes_between

# Inputs that are executed at a time.
CHUNK = 8
# Tried as multiples of a scale, of which the best is kept.
FACTORS = (0.7, 0.8, 0.9, 1.1, 1.25)
Told = Callable[[int, int], None]
# What a layer reads in the quantized network, and what it gives in FP32, of a few inputs each.
Pairs = Sequence[tuple[Tensor, Tensor]]
_SMALLEST_SCALE = 1e-30
_NOTHING = 1e-12


def correct_bias(
    model: ModelProto,
    fp32: Graph,
    inputs: Mapping[str, Tensor],
    told: Told | None = None,
    device: str = "cpu",
) -> ModelProto:
    """Shift biases so that what layers give behind their activations is FP32's on average (`bias`).

    The outputs of FP32 are those of the network as it was; those of the quantized network are taken layer by
    layer, with all biases before corrected.

    Args:
        model: Q/DQ, FP32 outside of it.
        fp32: the prepared network it was made from.
        inputs: calibration inputs by the network's input names, `[N, ...]`.
        told: is called with the numbers of layers done and to do.
        device: `cpu` or `cuda`.
    """
    return _layer_by_layer(model, fp32, inputs, _shift_bias, told, device)


def round_weights(
    model: ModelProto,
    fp32: Graph,
    inputs: Mapping[str, Tensor],
    told: Told | None = None,
    device: str = "cpu",
) -> ModelProto:
    """Choose the integers of all weights by the layers' outputs (`rounding`), and biases with them (`bias`).

    Arguments as for `correct_bias`.
    """

    def step(net: TorchGraph, reference: TorchGraph, weight: Weight, pairs: Pairs) -> None:
        if can_round(weight):
            put(net, rounded(net, weight, [x for x, _ in pairs]))
        _shift_bias(net, reference, weight, pairs)

    return _layer_by_layer(model, fp32, inputs, step, told, device)


def _shift_bias(net: TorchGraph, reference: TorchGraph, weight: Weight, pairs: Pairs) -> None:
    outputs = [(product(net, weight, x), y) for x, y in pairs]
    bias = fitted_bias(net, reference, weight, outputs)
    if bias is not None:
        put(net, bias_values(net, weight, bias))


def reconstruct_ranges(
    model: ModelProto,
    fp32: Graph,
    inputs: Mapping[str, Tensor],
    groups: Mapping[str, str],
    half: bool = False,
    told: Told | None = None,
    device: str = "cpu",
    fixed: Collection[str] = (),
) -> ModelProto:
    """Choose the scales of activations by the output of the block that they are in.

    A block's output is what the next one sees; errors inside of it count for as much as they do there
    (block reconstruction: Li et al. 2021, BRECQ, arXiv:2102.05426). Every scale is tried at a few multiples,
    in order, and keeps the one with the least squared error.

    Args:
        model: Q/DQ, FP32 outside of it.
        fp32: the prepared network it was made from.
        inputs: calibration inputs by the network's input names, `[N, ...]`.
        groups: of `Plan`: tensors whose scales stay equal.
        half: scales are numbers that FP16 can write down.
        told: is called with the numbers of blocks done and to do.
        device: `cpu` or `cuda`.
        fixed: tensors whose scales stay.
    """
    net, reference = TorchGraph(model, device), TorchGraph(fp32.model, device)
    weights = weights_of(net, fp32)
    ties = tied_scales(net, groups, fixed)
    names = {weight.node.name for weight in weights}
    quantized, exact = _passages(net, reference, inputs)
    found = cut(reference.graph, lambda node: node.name in names)
    left = set(ties)
    with torch.inference_mode():
        for index, block in enumerate(found):
            steps = list(nodes_between(net.graph, quantized.parts[0], block.ends))
            exact.go(block.nodes, block.ends)
            here = {node.input[1] for node in steps if node.op_type == "QuantizeLinear"}
            reading = [weight for weight in weights if weight.input_scale in here]
            error = partial(_error, quantized, steps, exact.parts)
            least = error()
            for group in [group for group in ties if group in left and set(ties[group]) <= here]:
                least = _best_factor(net, ties[group], reading, least, half, error)
                left.remove(group)
            quantized.go(steps, block.ends)
            if told:
                told(index + 1, len(found))
    return written(model, net)


def _best_factor(
    net: TorchGraph, tied: Sequence[str], reading: Sequence[Weight], least: float, half: bool,
    error: Callable[[], float],
) -> float:  # fmt: skip
    """Give a group of scales the best multiple; return the error that is left."""
    readers = [weight for weight in reading if weight.input_scale in tied]
    biases = [(weight, real_bias(net, weight)) for weight in readers]
    before = {name: net.constants[name] for name in tied}
    best, found = 1.0, least
    for factor in (*FACTORS, None):
        _scale_by(net, before, best if factor is None else factor, half)
        for weight, bias in biases:
            if bias is not None and weight.bias_levels:
                put(net, bias_values(net, weight, bias))
        if factor is not None and (now := error()) < found:
            best, found = factor, now
    return found


def _scale_by(net: TorchGraph, before: Mapping[str, Tensor], factor: float, half: bool) -> None:
    most = ceilings(net)
    for name, scale in before.items():
        # What is above its ceiling already stays there.
        ceiling = max(float(scale), min(most.get(other, math.inf) for other in before))
        changed = (scale * factor).clamp(_SMALLEST_SCALE, ceiling)
        put(net, {name: fp16(changed) if half else changed})


def _error(quantized: Passage, steps: Sequence[NodeProto], aims: Sequence[Mapping[str, Tensor]]) -> float:
    """Return the squared error of a block's ends over their mean squares."""
    errors: dict[str, float] = {}
    powers: dict[str, float] = {}
    for found, aim in zip(quantized.look(steps, aims[0]), aims, strict=True):
        for name, value in aim.items():
            if value.is_floating_point():
                errors[name] = errors.get(name, 0.0) + float((found[name] - value).square().sum())
                powers[name] = powers.get(name, 0.0) + float(value.square().sum())
    return sum(error / max(powers[name], _NOTHING) for name, error in errors.items())


def _layer_by_layer(
    model: ModelProto, fp32: Graph, inputs: Mapping[str, Tensor],
    step: Callable[[TorchGraph, TorchGraph, Weight, Pairs], None], told: Told | None, device: str,
) -> ModelProto:  # fmt: skip
    """Give each weighted node, in order, the input it now gets and the output that FP32 has.

    Both networks run once: what a layer reads is computed after all before it are corrected.
    """
    net, reference = TorchGraph(model, device), TorchGraph(fp32.model, device)
    weights = {weight.node.name: weight for weight in weights_of(net, fp32)}
    ends = {node.name: place + 1 for place, node in enumerate(reference.steps)}
    alive_here, alive_there = alive(net.graph), alive(reference.graph)
    quantized, exact = _passages(net, reference, inputs)
    here = there = done = 0
    with torch.inference_mode():
        for node in net.steps:
            weight = weights.get(node.name)
            if weight is None:
                continue
            begin, end = _begin(net.graph, node), ends[node.name]
            if weight.alone and begin >= here:
                quantized.go(net.steps[here:begin], alive_here[begin])
                exact.go(reference.steps[there:end], alive_there[end])
                here, there = begin, end
                made = reference.steps[end - 1].output[0]
                read = node.input[0]
                pairs = [(q[read], e[made]) for q, e in zip(quantized.parts, exact.parts, strict=True)]
                step(net, reference, weight, pairs)
            done += 1
            if told:
                told(done, len(weights))
    return written(model, net)


def _begin(graph: Graph, node: NodeProto) -> int:
    """Return the place of a node or of the first that makes its weights and bias, from where it is run."""
    makers = [graph.producers[name] for name in node.input[1:] if name in graph.producers]
    return min(graph.positions[n.name] for n in (node, *makers))


def _passages(
    net: TorchGraph, reference: TorchGraph, inputs: Mapping[str, Tensor]
) -> tuple[Passage, Passage]:
    rows = min(net.at_once(CHUNK), reference.at_once(CHUNK))
    return Passage(net, inputs, rows), Passage(reference, inputs, rows)


def product(net: TorchGraph, weight: Weight, x: Tensor) -> Tensor:
    """Run one node, its weights and bias as they now are, on what it reads."""
    node = weight.node
    steps = net.steps[_begin(net.graph, node) : net.graph.positions[node.name] + 1]
    made: str = node.output[0]
    return net.execute(steps, {node.input[0]: x}, [made], len(x))[made]
