"""Corrections of a Q/DQ graph, layer by layer or block by block, against the FP32 network.

Each goes through both networks in order: what is corrected is fed by what was corrected before it, as it
will be once deployed, and aims at what FP32 gives. In memory are the inputs and outputs of one block. It may
import quant's parameters, blocks, rounding, graph, torch_graph, and torch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from onnx import ModelProto, NodeProto
from torch import Tensor

from edgetune.quant.blocks import Block, cut
from edgetune.quant.graph import Graph
from edgetune.quant.parameters import (
    Weight,
    bias_values,
    fp16,
    put,
    real_bias,
    tied_scales,
    weights_of,
    written,
)
from edgetune.quant.rounding import can_round, rounded
from edgetune.quant.torch_graph import TorchGraph, nodes_between

CHUNK = 8
# Tried as multiples of a scale, of which the best is kept.
FACTORS = (0.7, 0.8, 0.9, 1.1, 1.25)
Told = Callable[[int, int], None]
Feeds = dict[str, Tensor]
_SMALLEST_SCALE = 1e-30


def correct_bias(
    model: ModelProto, fp32: Graph, inputs: Mapping[str, Tensor], told: Told | None = None
) -> ModelProto:
    """Shift biases so that each channel's mean is FP32's (Nagel et al. 2019, arXiv:1906.04721, section 4.2).

    The means of FP32 are those of the network as it was; those of the quantized network are taken layer by
    layer, with all biases before corrected.

    Args:
        model: Q/DQ, FP32 outside of it.
        fp32: the prepared network it was made from.
        inputs: calibration inputs by the network's input names, `[N, ...]`.
        told: is called with the numbers of layers done and to do.
    """

    def step(net: TorchGraph, weight: Weight, x: Tensor, y: Tensor) -> None:
        bias = real_bias(net, weight)
        if bias is not None:
            made = _channels_last(weight, _product(net, weight, x))
            put(net, bias_values(net, weight, bias + (_channels_last(weight, y) - made).mean(0)))

    return _layer_by_layer(model, fp32, inputs, step, told)


def round_weights(
    model: ModelProto, fp32: Graph, inputs: Mapping[str, Tensor], told: Told | None = None
) -> ModelProto:
    """Choose the integers of all weights, and biases with them, by the layers' outputs (`rounding`).

    Arguments as for `correct_bias`.
    """

    def step(net: TorchGraph, weight: Weight, x: Tensor, y: Tensor) -> None:
        if can_round(weight):
            put(net, rounded(net, weight, x, y))

    return _layer_by_layer(model, fp32, inputs, step, told)


def reconstruct_ranges(
    model: ModelProto,
    fp32: Graph,
    inputs: Mapping[str, Tensor],
    groups: Mapping[str, str],
    half: bool = False,
    told: Told | None = None,
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
    """
    net, reference = TorchGraph(model), TorchGraph(fp32.model)
    weights = weights_of(net, fp32)
    ties = tied_scales(net, groups)
    names = {weight.node.name for weight in weights}
    with torch.inference_mode():
        for block, fed, aimed in blocks(net, reference, inputs, lambda node: node.name in names, told):
            steps = list(nodes_between(net.graph, fed, [block.end]))
            here = {node.input[1] for node in steps if node.op_type == "QuantizeLinear"}
            aim = run(reference, aimed, block.end)
            reading = [weight for weight in weights if weight.input_scale in here]
            error = partial(_error, net, fed, block.end, aim)
            least = error()
            for tied in ties.values():
                if set(tied) <= here:
                    least = _best_factor(net, tied, reading, least, half, error)
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
    for name, scale in before.items():
        changed = (scale * factor).clamp_min(_SMALLEST_SCALE)
        put(net, {name: fp16(changed) if half else changed})


def _error(net: TorchGraph, fed: Mapping[str, Tensor], wanted: str, aim: Tensor) -> float:
    return float((run(net, fed, wanted) - aim).square().mean())


def _layer_by_layer(
    model: ModelProto, fp32: Graph, inputs: Mapping[str, Tensor],
    step: Callable[[TorchGraph, Weight, Tensor, Tensor], None], told: Told | None,
) -> ModelProto:  # fmt: skip
    """Give each weighted node, in order, the input it now gets and the output that FP32 has."""
    net, reference = TorchGraph(model), TorchGraph(fp32.model)
    weights = {weight.node.name: weight for weight in weights_of(net, fp32)}
    outputs = {node.name: node.output[0] for node in fp32.nodes}
    done, total = 0, len(weights)
    with torch.inference_mode():
        for block, before, aimed in blocks(net, reference, inputs, lambda node: node.name in weights):
            for node in list(nodes_between(net.graph, before, [block.end])):
                weight = weights.get(node.name)
                if weight is None:
                    continue
                x = run(net, before, node.input[0])
                step(net, weight, x, run(reference, aimed, outputs[node.name]))
                done += 1
                if told:
                    told(done, total)
    return written(model, net)


def blocks(
    net: TorchGraph,
    reference: TorchGraph,
    inputs: Mapping[str, Tensor],
    counts: Callable[[NodeProto], bool],
    told: Told | None = None,
) -> Iterator[tuple[Block, Feeds, Feeds]]:
    """Go through both graphs block by block.

    Whoever takes a block may change the constants of `net` in it; what follows sees the result.

    Yields:
        The block, what the quantized network feeds it, and what FP32 does, `[N, ...]`.
    """
    quantized, exact = dict(inputs), dict(inputs)
    found = cut(reference.graph, counts)
    for index, block in enumerate(found):
        yield block, quantized, exact
        if told:
            told(index + 1, len(found))
        quantized = {block.end: run(net, quantized, block.end)}
        exact = {block.end: run(reference, exact, block.end)}


def run(net: TorchGraph, feeds: Mapping[str, Tensor], wanted: str) -> Tensor:
    """Return one tensor for all inputs; the rest of the activations is there for a few at a time."""
    if wanted in feeds:
        return feeds[wanted]
    steps = list(nodes_between(net.graph, feeds, [wanted]))
    parts = []
    for start in range(0, len(next(iter(feeds.values()))), CHUNK):
        part = {name: value[start : start + CHUNK] for name, value in feeds.items()}
        parts.append(net.run(part, [wanted], steps=steps)[wanted])
    return torch.cat(parts)


def _product(net: TorchGraph, weight: Weight, x: Tensor) -> Tensor:
    """Run one node on what it reads."""
    return run(net, {weight.node.input[0]: x}, weight.node.output[0])


def _channels_last(weight: Weight, y: Tensor) -> Tensor:
    """Return outputs as [rows, channels]."""
    return y.movedim(1, -1).flatten(0, -2) if "Conv" in weight.node.op_type else y.flatten(0, -2)
