"""What TensorRT makes of a graph without Q/DQ and a calibration cache, for both stand-ins.

Implicit quantization, as far as it is documented: a layer runs in INT8 only where what it reads and what it
makes have scales (else TensorRT warns of each: "Missing scale and zero-point for tensor"); weights are rounded
by TensorRT itself, each channel by its largest one. The result is a graph with Q/DQ where rounding takes place,
for ONNX Runtime to execute. Which of several layers are fused, and so not rounded between, is not modelled:
every tensor with a scale is rounded.
"""

import struct

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

MISSING = (
    "Missing scale and zero-point for tensor {}, expect fall back to non-int8 implementation for any layer "
    "consuming or producing given tensor"
)
_AXES = {"Conv": 0, "ConvTranspose": 1, "MatMul": 1}


def header(version: tuple[int, ...]) -> str:
    """The first line of a cache that a version takes."""
    major, minor, patch = version[:3]
    number = major * 10000 + minor * 100 + patch if major >= 10 else major * 1000 + minor * 100 + patch
    return f"TRT-{number}-EntropyCalibration2"


def scales_in(cache: bytes) -> dict[str, float]:
    """The scales of a cache, by tensor."""
    lines = [line.rpartition(": ") for line in cache.decode().splitlines()[1:]]
    return {name: struct.unpack(">f", bytes.fromhex(number))[0] for name, _, number in lines}


def calibrated(model: ModelProto, scales: dict[str, float]) -> tuple[ModelProto, list[str]]:
    """Return a network that rounds as an engine would, and the float tensors that have no scale."""
    made = ModelProto()
    made.CopyFrom(model)
    weights = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    shaped = onnx.shape_inference.infer_shapes(model).graph
    values = [*shaped.input, *shaped.value_info, *shaped.output]
    floats = [v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT]
    given = {value.name for value in model.graph.output}
    found = {name: scale for name, scale in scales.items() if name in floats}
    pairs = {name: _pair(made, name, scale, name in given) for name, scale in found.items()}
    nodes = [node for value in model.graph.input for node in pairs.get(value.name, [])]
    for node in made.graph.node:
        if node.input and node.op_type in (*_AXES, "Gemm") and {node.input[0], node.output[0]} <= set(found):
            _round(made, node, weights)
        node.input[:] = [f"{n}/implicit" if n in found and n not in given else n for n in node.input]
        named = [n for n in node.output if n in found]
        node.output[:] = [f"{n}/made" if n in found and n in given else n for n in node.output]
        nodes += [node, *(extra for name in named for extra in pairs[name])]
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del made.graph.node[:], made.graph.value_info[:]
    made.graph.node.extend(nodes)
    return made, sorted(set(floats) - set(found) - set(weights))


def built(network: bytes, cache: bytes, version: tuple[int, ...]) -> tuple[bytes, list[str]]:
    """Return the network that rounds, and TensorRT's warnings; ValueError where it does not take the cache."""
    if cache.decode().partition("\n")[0] != header(version):
        raise ValueError(
            "Error Code 1: Myelin (Calibration failure occurred with no scaling factors detected.)"
        )
    made, missing = calibrated(onnx.load_from_string(network), scales_in(cache))
    return made.SerializeToString(), [MISSING.format(name) for name in missing]


def _pair(model: ModelProto, name: str, scale: float, given: bool) -> list[onnx.NodeProto]:
    """Q and DQ behind a tensor; one that leaves the network keeps its name behind them."""
    model.graph.initializer.append(numpy_helper.from_array(np.float32(scale), f"{name}/implicit_scale"))
    model.graph.initializer.append(numpy_helper.from_array(np.int8(0), f"{name}/implicit_zero"))
    parameters = [f"{name}/implicit_scale", f"{name}/implicit_zero"]
    before, after = (f"{name}/made", name) if given else (name, f"{name}/implicit")
    levels = f"{name}/implicit_levels"
    return [
        helper.make_node("QuantizeLinear", [before, *parameters], [levels], name=f"{name}/Q"),
        helper.make_node("DequantizeLinear", [levels, *parameters], [after], name=f"{name}/DQ"),
    ]


def _round(model: ModelProto, node: onnx.NodeProto, weights: dict[str, np.ndarray]) -> None:
    weight = weights.get(node.input[1])
    if weight is None:
        return
    transposed = any(item.name == "transB" and item.i for item in node.attribute)
    axis = (0 if transposed else 1) if node.op_type == "Gemm" else _AXES[node.op_type]
    largest = np.abs(weight).max(axis=tuple(i for i in range(weight.ndim) if i != axis), keepdims=True)
    step = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    name = f"{node.name}/{node.input[1]}/implicit"
    model.graph.initializer.append(
        numpy_helper.from_array((np.rint(weight / step) * step).astype(np.float32), name)
    )
    node.input[1] = name
