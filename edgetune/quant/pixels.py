"""Puts normalisation in front of a network, so that what feeds it has nothing to repeat: pixels in, logits out.

It knows nothing of scales or hardware, but for one habit of TensorRT. It may import artifact and quant.graph.
"""

from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, TensorShapeProto, helper, numpy_helper

from edgetune.artifact import Preprocess
from edgetune.quant.graph import subgraphs


def take_pixels(model: ModelProto, preprocess: Preprocess) -> None:
    """Make a network's one input uint8 [N, H, W, C] instead of normalised float32 [N, C, H, W], in place.

    The graph computes what `data.images.normalise` computes, step by step, so to the bit the same. TensorRT takes
    uint8 as an input and does nothing with it but to cast it, so the cast comes first.

    Args:
        model: its first input takes normalised images.
        preprocess: how they were normalised.
    """
    graph = model.graph
    pixels = graph.input[0].name
    per_channel = (1, preprocess.channels, 1, 1)
    constants = {
        "levels": np.array(255, np.float32),
        "mean": np.array(preprocess.mean, np.float32).reshape(per_channel),
        "std": np.array(preprocess.std, np.float32).reshape(per_channel),
    }
    graph.initializer.extend(numpy_helper.from_array(v, f"{pixels}/{name}") for name, v in constants.items())
    _rename_reads(graph, pixels, f"{pixels}/normalised")
    # Each reads what the one before it gives.
    steps: list[tuple[str, str, dict[str, Any]]] = [
        ("Cast", "float", {"to": TensorProto.FLOAT}),
        ("Transpose", "planes", {"perm": [0, 3, 1, 2]}),
        ("Div", "levels", {}),
        ("Sub", "mean", {}),
        ("Div", "std", {}),
    ]
    tensor = pixels
    for place, (kind, name, attributes) in enumerate(steps):
        constant = [f"{pixels}/{name}"] if name in constants else []
        last = place == len(steps) - 1
        result = f"{pixels}/{'normalised' if last else f'after_{name}'}"
        node = helper.make_node(kind, [tensor, *constant], [result], name=f"/{pixels}/{name}", **attributes)
        graph.node.insert(place, node)
        tensor = result
    _retype(graph)


def _retype(graph: GraphProto) -> None:
    kind = graph.input[0].type.tensor_type
    batch, channels, height, width = kind.shape.dim
    shape = TensorShapeProto(dim=[batch, height, width, channels])
    kind.elem_type = TensorProto.UINT8
    kind.shape.CopyFrom(shape)


def _rename_reads(graph: GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        for inner in subgraphs(node):
            _rename_reads(inner, old, new)
