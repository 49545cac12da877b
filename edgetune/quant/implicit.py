"""The rendering for a DLA up to TensorRT 10.7, which takes no Q/DQ: a graph without, and scales beside it.

The graph comes from the quantized network, not from the FP32 one: equalized channels and corrected biases are
what the scales belong to, and the weights are what the chosen integers stand for. TensorRT rounds weights
again, each channel by its largest one, and lands on the same integers where that is a 127, as it is unless
rounding took it off. Only centering is taken back, since a DLA clips from 0 alone: a shifted tensor gets the
scale of what it was, and half of its levels stay unused again.

A layer runs in INT8 only where all that it reads and makes has a scale; explicit quantization needs none for
what layers make. So the tensors that have Q/DQ keep their scales, and these get one as well:

1. What goes into a Relu or Clip alone: the scale of what comes out, as what it cuts off is clipped anyway. And
   what copies read and make: the same scale.
2. What else a layer makes that runs in INT8, or that a DLA runs between such layers: the scale with the least
   squared error over calibration inputs.

None for what no operator with weights comes after: logits stay float, as they do with Q/DQ, and so the layer
that makes them. None for what stays float by choice. It may import the rest of quant.
"""

from collections.abc import Iterable, Mapping

from onnx import ModelProto, NodeProto

from edgetune.quant.center import uncentered
from edgetune.quant.collect import Batch, collect
from edgetune.quant.graph import Graph, infer_types
from edgetune.quant.lint_dla import why_gpu
from edgetune.quant.lint_view import Reader, View, view_of
from edgetune.quant.plan import WEIGHTED, Groups, is_copy, symmetric, weight_axis
from edgetune.quant.ranges import mse
from edgetune.quant.trace import needed_by


def render(
    model: ModelProto, reader: Reader, batches: Iterable[Batch]
) -> tuple[ModelProto, dict[str, float]]:
    """Return a quantized network without Q/DQ, and the scales of its tensors: the real value of one step.

    Args:
        model: with Q/DQ, rendered for a weakly typed engine; it stays as it is.
        reader: what is going to read it.
        batches: inputs to observe tensors on that had no Q/DQ.

    Raises:
        StageError: no inputs, or activations that are NaN or infinite.
    """
    view = view_of(model, reader)
    made, shift = uncentered(view.bare)
    graph = Graph(infer_types(made))
    known = _known(view, shift)
    lacking = sorted(_in_int8(graph, known, view.int8) - known.keys())
    seen = collect(graph, lacking, batches).statistics if lacking else {}
    scales = known | {name: float(symmetric(*mse(item, True)).scale) for name, item in seen.items()}
    _spread(graph, scales, known)
    return graph.model, scales


def _known(view: View, shift: Mapping[str, float]) -> dict[str, float]:
    """Return the scales of tensors with Q/DQ; a shifted one reaches further once the shift is taken back."""
    return {
        item.tensor: float(item.scale) + shift.get(item.tensor, 0.0) / 127
        for item in view.stored
        if item.node.op_type == "QuantizeLinear" and not item.weight and item.scale is not None
    }


def _in_int8(graph: Graph, known: Mapping[str, float], int8: frozenset[str]) -> set[str]:
    """Return the tensors of layers that are to run in INT8."""
    found = set(known)
    for node in graph.nodes:
        reads = graph.variables(node)
        # An operator with weights that is not INT8 has its reason.
        between = weight_axis(graph, node) is None and found.issuperset(reads) and not why_gpu(graph, node)
        if node.name in int8 or (reads and between):
            found.update(name for name in node.output if graph.is_known_float(name))
    weights = frozenset(node.name for node in graph.nodes if node.op_type in WEIGHTED)
    return found & (needed_by(graph, weights) | known.keys())


def _spread(graph: Graph, scales: dict[str, float], known: Mapping[str, float]) -> None:
    """Give tensors that were observed the scale of what they are copied from or become."""
    groups = Groups()
    for node in graph.nodes:
        names = [name for name in (*graph.variables(node), *node.output) if name in scales]
        if len(names) > 1 and (is_copy(graph, node) or _cuts(graph, node)):
            groups.join(*names)
    shared: dict[str, float] = {}
    # Of one group the last one's: that is what it becomes. What has Q/DQ goes before what was observed.
    order = [*graph.inputs, *(name for node in graph.nodes for name in node.output)]
    for name in sorted((name for name in order if name in scales), key=known.__contains__):
        shared[groups.of(name)] = scales[name]
    scales |= {name: shared[groups.of(name)] for name in scales.keys() - known.keys()}


def _cuts(graph: Graph, node: NodeProto) -> bool:
    """Whether a node alone reads a tensor, and cuts off its values or makes no difference to them."""
    reads = graph.variables(node)
    return node.op_type in ("Relu", "Clip") and len(reads) == 1 and graph.sole_consumer(reads[0]) is not None
