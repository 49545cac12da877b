"""Small ONNX networks, written node by node."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

Shape = Sequence[int | str]


def network(
    nodes: Sequence[NodeProto],
    inputs: dict[str, Shape],
    outputs: Sequence[str],
    weights: dict[str, Sequence[int]] | None = None,
    values: dict[str, np.ndarray] | None = None,
) -> ModelProto:
    """A model of opset 17 with zeros as weights, and constants with values."""
    constants = [
        numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in (weights or {}).items()
    ]
    constants += [numpy_helper.from_array(value, name) for name, value in (values or {}).items()]
    graph = helper.make_graph(
        list(nodes),
        "small",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        constants,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.acme", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def node(kind: str, inputs: str, outputs: str, **attributes: object) -> NodeProto:
    """A node named after its first output."""
    given, made = inputs.split(), outputs.split()
    return helper.make_node(kind, given, made, name=f"{kind.lower()}_{made[0]}", **attributes)


def conv(data: str, weight: str, out: str, kernel: int = 3, group: int = 1) -> NodeProto:
    """A convolution that keeps its size."""
    pads = [kernel // 2] * 4
    return node("Conv", f"{data} {weight}", out, kernel_shape=[kernel, kernel], pads=pads, group=group)


def residual(channels: int = 16, side: int = 8) -> ModelProto:
    """Two convolutions with activation around a shortcut, pooled, and a classifier."""
    nodes = [
        conv("x", "w1", "a"), node("Relu", "a", "b"), conv("b", "w2", "c"), node("Add", "c b", "d"),
        node("Relu", "d", "e"), node("GlobalAveragePool", "e", "f"), node("Flatten", "f", "g"),
        node("Gemm", "g w3 bias", "y", transB=1),
    ]  # fmt: skip
    weights = {
        "w1": (channels, 3, 3, 3), "w2": (channels, channels, 3, 3), "w3": (10, channels), "bias": (10,),
    }  # fmt: skip
    return network(nodes, {"x": (1, 3, side, side)}, ["y"], weights)


def saved(model: ModelProto, folder: Path, name: str = "small.onnx") -> Path:
    """The model as a file."""
    onnx.save(model, folder / name)
    return folder / name
