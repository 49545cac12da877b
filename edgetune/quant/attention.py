"""Which attentions run in INT8: those of which the two products cost next to no accuracy, judged by themselves.

An attention is two products of computed matrices, the scores (queries with keys) and what weighs values by their
Softmax, which TensorRT can fuse into one kernel in FP16, and in INT8 where all four of their inputs come from
Q/DQ. Whether a device gains by the latter is known when it was timed there. Between the two, Softmax and mask
stay in float. It may import quant.choose, quant.draft, quant.graph, quant.placement, quant.sensitivity and quant.trace.
"""

from collections.abc import Sequence
from dataclasses import replace

from onnx import NodeProto

from edgetune.engines.onnxruntime import Feed
from edgetune.quant.choose import find_ranges
from edgetune.quant.draft import Draft, Rendering, grid_of
from edgetune.quant.graph import Graph
from edgetune.quant.plan import readers
from edgetune.quant.sensitivity import carried, network_sqnr
from edgetune.quant.trace import POINTWISE

# What all attentions in INT8 may cost together, of the network's signal-to-noise ratio: by the sum of what each
# costs alone, and then as it is measured on held-out inputs.
COST_DB = 0.3
# TensorRT has no INT8 kernel for smaller sums; Model-Optimizer leaves attention over more tokens in float.
_SMALLEST, _LONGEST = 16, 512
# Between scores and Softmax: they are scaled, and a mask is added.
_BETWEEN = POINTWISE | {"Where"}


def attentions(graph: Graph) -> list[frozenset[str]]:
    """Return the names of the two products of each attention, in running order."""
    found = []
    for node in graph.nodes:
        if node.op_type == "Softmax":
            scores = _product_before(graph, node.input[0])
            weighed = [other for other in readers(graph, node.output[0]) if is_product(graph, other)]
            if scores is not None and len(weighed) == 1:
                found.append(frozenset({scores.name, weighed[0].name}))
    return found


def is_product(graph: Graph, node: NodeProto) -> bool:
    """Whether a node multiplies two computed matrices of sizes that INT8 is for."""
    if node.op_type != "MatMul" or len(graph.variables(node)) != 2:
        return False
    sizes = [size for name in node.input for size in (graph.shape(name) or ())[-2:] if isinstance(size, int)]
    depth = (graph.shape(node.input[0]) or ("?",))[-1]
    return max(sizes, default=0) <= _LONGEST and not (isinstance(depth, int) and depth < _SMALLEST)


def _product_before(graph: Graph, tensor: str) -> NodeProto | None:
    """Return the product whose scaled and masked result a tensor is."""
    node = graph.producers.get(tensor)
    if node is None or is_product(graph, node):
        return node
    inputs = graph.variables(node) if node.op_type in _BETWEEN else []
    return next(filter(None, (_product_before(graph, name) for name in inputs)), None)


def attend(
    base: Draft,
    rendering: Rendering,
    found: Sequence[frozenset[str]],
    batches: Sequence[Feed],
    held: Sequence[Feed],
    ranges: str,
) -> tuple[Draft | None, str]:
    """Take those attentions into INT8 that make the least noise, as many as `COST_DB` allows together.

    Noise powers add up, so what an attention costs follows from what it makes alone, all else in float.

    Args:
        base: quantized; what was corrected in it stays.
        rendering: how it is written down.
        found: of `attentions`, those that may be taken.
        batches: inputs that ranges are found on.
        held: others, on which noise is measured; a few are enough.
        ranges: how ranges are found.
    """
    graph = base.graph
    floats = base.excluded | base.plan.weighted
    inputs = rendering.place(graph, floats, frozenset().union(*found))
    found_ranges = find_ranges(graph, inputs, batches, ranges, grid_of(rendering))
    scales = rendering.scales(found_ranges.ranges)
    own = network_sqnr(base, held)

    def noise(block: frozenset[str]) -> float:
        plan = rendering.place(graph, floats, block)
        alone = rendering.render(graph, plan, {tensor: scales[tensor] for tensor in plan.reads})
        return float(10 ** ((own - network_sqnr(replace(base, model=alone), held)) / 10))

    left, chosen = 10 ** (COST_DB / 10) - 1, list[frozenset[str]]()
    for made, block in sorted((noise(block), index) for index, block in enumerate(found)):
        if made <= left:
            left -= made
            chosen.append(found[block])
    said = f"{len(chosen)} of {len(found)} attentions in INT8"
    if not chosen:
        return None, f"{said}: each costs more than {COST_DB} dB"
    products = frozenset[str]().union(*chosen)
    plan = rendering.place(graph, base.excluded, products)
    known = {**scales, **base.scales}
    kept = {tensor: known[tensor] for tensor in plan.reads}
    model = carried(base.model, rendering.render(graph, plan, kept), graph)
    return replace(base, plan=plan, scales=kept, products=products, model=model), said
