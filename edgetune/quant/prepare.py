"""From any ONNX model to a `Graph`: constants folded, BatchNorm folded into convolutions, nothing dead.

Global pooling is written as such. It knows nothing of scales or hardware. It may import errors, profile (for
the least opset), quant.accept and quant.graph.
"""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgetune.errors import ArtifactError, ConfigError
from edgetune.profile import LEAST_OPSET
from edgetune.quant.accept import accept
from edgetune.quant.graph import RANDOM_OPS, Graph, attribute, infer_types, is_standard, opset_of, reads

_FOLD_LIMIT = 1 << 16
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def prepare(model: ModelProto, opset: int = LEAST_OPSET) -> Graph:
    """Return the network cleaned up, computing the same. The model given stays as it is.

    Args:
        model: any ONNX network, with its weights loaded.
        opset: the least that the result may have.

    Raises:
        ConfigError: it cannot be quantized (see `accept.accept`), or its weights are no FP32.
        ArtifactError: it is not a valid graph.
    """
    work = accept(model, opset)
    try:
        # Folding shapes lets inference see further, which gives more to fold.
        while fold_constants(work):
            pass
        _fold_batch_norms(work)
        _write_pooling(work)
        drop_dead(work)
        graph = Graph(infer_types(work))
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        raise ArtifactError(
            f"not a valid graph: {str(error).splitlines()[0]}", hint="export it again"
        ) from error
    _refuse_other_floats(graph)
    return graph


def _refuse_other_floats(graph: Graph) -> None:
    """Refuse a network whose weights are floats, but none of them FP32."""
    inputs = [node.input[1] for node in graph.nodes if node.op_type in _WEIGHTED and len(node.input) > 1]
    kinds = [graph.constants[name].dtype.name for name in inputs if name in graph.constants]
    if kinds and "float32" not in kinds and any("float" in kind for kind in kinds):
        raise ConfigError(
            f"the network's weights are {kinds[0]}, not float32",
            hint="export it again in FP32: what FP16 has rounded off, INT8 cannot bring back",
        )


def fold_constants(model: ModelProto) -> bool:
    """Turn nodes whose result is known into initializers; return whether there were any."""
    graph = Graph(infer_types(model))
    known = dict(graph.constants)
    kept: list[NodeProto] = []
    folded: list[onnx.TensorProto] = []
    for node in model.graph.node:
        values = _evaluate(node, known, graph)
        if values is None:
            kept.append(node)
            continue
        folded.extend(
            numpy_helper.from_array(np.asarray(v), n) for n, v in zip(node.output, values, strict=True)
        )
        known.update(zip(node.output, values, strict=True))
    del model.graph.node[:]
    model.graph.node.extend(kept)
    model.graph.initializer.extend(folded)
    return bool(folded)


def _evaluate(node: NodeProto, known: dict[str, NDArray[Any]], graph: Graph) -> list[NDArray[Any]] | None:
    if not is_standard(node) or node.op_type in RANDOM_OPS or any(n in graph.outputs for n in node.output):
        return None
    if node.op_type == "Shape":
        shape = graph.shape(node.input[0])
        if shape is None or not all(isinstance(d, int) for d in shape):
            return None
        span = slice(attribute(node, "start", 0), attribute(node, "end", len(shape)))
        return [np.array(shape[span], np.int64)]
    if any(item.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for item in node.attribute):
        return None
    if not all(name in known for name in node.input if name):
        return None
    feeds = {name: known[name] for name in node.input if name}
    moves = node.op_type in ("Constant", "Identity")
    if not moves and sum(value.size for value in feeds.values()) > _FOLD_LIMIT:
        return None
    try:
        values = ReferenceEvaluator(node, opsets={"": opset_of(graph.model)}).run(None, feeds)
    except (NotImplementedError, RuntimeError, TypeError, ValueError):
        return None  # an operator that the evaluator lacks stays a node
    if not moves and sum(np.size(value) for value in values) > _FOLD_LIMIT:
        return None
    return [np.asarray(value) for value in values]


def _fold_batch_norms(model: ModelProto) -> None:
    """Fold a BatchNormalization that alone reads a convolution into the convolution's weights."""
    graph = Graph(model)
    weights = [n.input[1] for n in model.graph.node if n.op_type in ("Conv", "ConvTranspose")]
    for norm in [node for node in model.graph.node if node.op_type == "BatchNormalization"]:
        conv = graph.producers.get(norm.input[0])
        if conv is None or conv.op_type != "Conv" or graph.sole_consumer(norm.input[0]) is None:
            continue
        values = [graph.constants.get(name) for name in norm.input[1:5]]
        weight = graph.constants.get(conv.input[1])
        bias = graph.constants.get(conv.input[2]) if len(conv.input) > 2 and conv.input[2] else np.float32(0)
        if (
            weight is None
            or bias is None
            or any(v is None for v in values)
            or weights.count(conv.input[1]) > 1
        ):
            continue
        gamma, beta, mean, variance = (np.asarray(v, np.float64) for v in values)
        factor = gamma / np.sqrt(variance + attribute(norm, "epsilon", 1e-5))
        folded = {
            f"{norm.name}/weight": weight * factor.reshape(-1, *[1] * (weight.ndim - 1)),
            f"{norm.name}/bias": beta + (bias - mean) * factor,
        }
        model.graph.initializer.extend(
            numpy_helper.from_array(v.astype(weight.dtype), n) for n, v in folded.items()
        )
        del conv.input[1:]
        conv.input.extend(folded)
        conv.output[0] = norm.output[0]
        model.graph.node.remove(norm)


def _write_pooling(model: ModelProto) -> None:
    """Write the mean over height and width as GlobalAveragePool, for which there are INT8 kernels."""
    graph = Graph(model)
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        nodes.append(node)
        if node.op_type != "ReduceMean" or not is_standard(node):
            continue
        axes = attribute(node, "axes", None) or graph.constants.get(
            node.input[1] if len(node.input) > 1 else ""
        )
        if axes is None or sorted(int(axis) % 4 for axis in axes) != [2, 3]:
            continue
        if len(graph.shape(node.input[0]) or ()) != 4 or not graph.is_float(node.input[0]):
            continue
        result = node.output[0]
        keeps = attribute(node, "keepdims", 1)
        pooled = result if keeps else f"{result}/pooled"
        nodes[-1] = helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], name=node.name)
        if not keeps:
            nodes.append(helper.make_node("Flatten", [pooled], [result], name=f"{node.name}/flatten"))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def drop_dead(model: ModelProto) -> None:
    """Remove nodes and initializers that no output needs."""
    needed = {value.name for value in model.graph.output}
    kept = []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(reads(node))
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(kept))
    constants = [item for item in model.graph.initializer if item.name in needed]
    del model.graph.initializer[:]
    model.graph.initializer.extend(constants)
