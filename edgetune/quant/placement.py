"""Where TensorRT wants Q/DQ: on what goes into weighted operators, and at few other places.

The rules, from TensorRT's guide on explicit quantization and from the placement in NVIDIA's
Model-Optimizer (`modelopt/onnx/quantization`):

1. Inputs and weights of Conv, ConvTranspose, Gemm and MatMul with constant weights. One Q/DQ pair per
   tensor, shared by all who read it. Nothing on a weighted operator's output before its activation.
2. A residual Add is fused with the convolution before it; only the other side, the skip, gets Q/DQ.
   Not so the residual stream of a transformer, which goes on into a LayerNorm: it stays float. Outliers of
   1,000 and more lie in it, and quantizing it left ViT-B with 0.03 to 5% (onnxsim, scripts/nvidia/README).
3. Mul of two computed tensors (a gate), and an Add without such a convolution: both inputs, where both
   come from INT8. An activation written out (`x * sigmoid(x)`, GELU with erf or tanh) is no gate: it stays
   with its convolution or matrix product.
4. Pooling and Resize: the input, where a neighbour is INT8.
5. Concat before INT8: all inputs and the output, with one scale, so that it only moves bytes. Equal scales
   also through everything that copies (MaxPool, Reshape, Transpose, ...), which then needs nothing itself.
6. Small shapes that have no INT8 kernel stay in float.
7. So does what comes after the last INT8 operator with weights: nothing reads integers there, and what is
   rounded there is what leaves the network. (Model-Optimizer: output layers without weights are left out.)
8. Products of two computed matrices (attention) get Q/DQ on both inputs where `quant.attention` finds that it
   costs next to nothing, and stay float else, as the Softmax between them always does: TensorRT has fused
   kernels for attention in FP16, and of int8's levels Softmax, which is not negative, could use half.
   Model-Optimizer leaves attention above 512 tokens out.

It may import quant.graph, quant.plan and quant.trace.
"""

import re
from dataclasses import dataclass, field

from onnx import NodeProto

from edgetune.quant.graph import Graph, attribute, is_standard
from edgetune.quant.plan import (
    WEIGHTED,
    Groups,
    Layer,
    Plan,
    copied_from,
    is_copy,
    readers,
    weight_axis,
    why_no_weights,
)
from edgetune.quant.trace import (
    POINTWISE,
    is_fed,
    is_normalised,
    joins_two,
    longer,
    needed_by,
    pointwise_of,
    source_of,
)

POOLS = frozenset({"AveragePool", "GlobalAveragePool"})
_SMALLEST = 16


@dataclass
class _Draft:
    graph: Graph
    excluded: frozenset[str]
    int8: dict[str, str] = field(default_factory=dict)  # node name -> remark
    why_not: dict[str, str] = field(default_factory=dict)  # node name -> reason
    reads: dict[str, set[str]] = field(default_factory=dict)
    groups: Groups = field(default_factory=Groups)
    # Tensors on which an operator with weights depends: any, and one that is INT8.
    before_weights: frozenset[str] = frozenset()
    before_int8: frozenset[str] = frozenset()

    def quantize(self, node: NodeProto, *tensors: str, remark: str = "") -> None:
        self.int8[node.name] = remark
        for tensor in tensors:
            self.reads.setdefault(tensor, set()).add(node.name)

    def from_int8(self, tensor: str) -> bool:
        """Whether a tensor holds what an INT8 node gives, after its activation."""
        source = source_of(self.graph, copied_from(self.graph, tensor))
        return source is not None and source.name in self.int8

    def near_int8(self, node: NodeProto) -> bool:
        """Whether what makes an input of a node, or what reads its output, is INT8."""
        after = [reader for output in node.output for reader in readers(self.graph, output)]
        return any(map(self.from_int8, self.graph.variables(node))) or any(n.name in self.int8 for n in after)


def place(
    graph: Graph, excluded: frozenset[str] = frozenset(), products: frozenset[str] = frozenset()
) -> Plan:
    """Decide where Q/DQ goes for TensorRT.

    Args:
        graph: a prepared network.
        excluded: names of nodes that stay in float.
        products: names of products of two computed matrices (attention) that run in INT8.
    """
    draft = _Draft(graph, excluded)
    for node in graph.nodes:
        if node.name in excluded:
            draft.why_not[node.name] = "excluded"
        elif node.name in products:
            draft.quantize(node, *node.input, remark="attention: it costs next to no accuracy in INT8")
        elif node.op_type in WEIGHTED:
            _place_weighted(draft, node)
    weighted = frozenset(draft.int8) - products
    every = frozenset(node.name for node in graph.nodes if node.op_type in WEIGHTED)
    draft.before_weights, draft.before_int8 = needed_by(graph, every), needed_by(graph, weighted)
    free = [node for node in graph.nodes if node.name not in excluded]
    for node in free:
        if node.op_type == "Add" and joins_two(graph, node):
            _place_residual(draft, node)
    # A gate between a pool and a convolution makes the pool's neighbourhood INT8, and the other way round.
    for _ in range(2):
        for node in free:
            _place_neighbour(draft, node)
    for node in reversed(free):
        if node.op_type == "Concat":
            _place_concat(draft, node)
    _join_copies(draft)
    layers = tuple(_layer(draft, node, weighted) for node in graph.nodes)
    return Plan(
        layers=layers,
        reads={tensor: frozenset(names) for tensor, names in draft.reads.items()},
        weighted=weighted,
        groups={tensor: draft.groups.of(tensor) for tensor in draft.reads},
    )


def _place_weighted(draft: _Draft, node: NodeProto) -> None:
    reason, remark = why_float(draft.graph, node)
    if reason:
        draft.why_not[node.name] = reason
    else:
        draft.quantize(node, node.input[0], remark=remark)


def why_float(graph: Graph, node: NodeProto) -> tuple[str, str]:
    """Return why a weighted node has to stay in float, or nothing and a remark."""
    axis = weight_axis(graph, node)
    if axis is None:
        return why_no_weights(graph, node), ""
    if not graph.variables(node) or not graph.is_float(node.input[0]):
        return "its input is not a computed float32 tensor", ""
    weight = graph.constants[node.input[1]]
    if node.op_type in ("Gemm", "MatMul"):
        return _why_float_matmul(
            graph, node, weight.shape[1 - axis] if weight.ndim == 2 else weight.shape[-2], axis
        )
    if node.op_type == "Conv":
        return _why_float_conv(graph, node, weight.shape), ""
    if attribute(node, "group", 1) > 1:
        return "transposed and grouped: its channels lie on two axes, and scales on one", ""
    return "", ""


def _why_float_matmul(graph: Graph, node: NodeProto, depth: int, axis: int) -> tuple[str, str]:
    width = graph.constants[node.input[1]].shape[axis]
    if depth < _SMALLEST or width < _SMALLEST:
        return f"{depth} inputs and {width} outputs: TensorRT has no INT8 kernel below {_SMALLEST}", ""
    rows = (graph.shape(node.output[0]) or ("?",))[:-1]
    if all(row == 1 for row in rows):
        return "", (
            "one row at a time (matrix times vector): TensorRT may run it in float by its own choice, "
            "FP16 where the engine allows it"
        )
    return "", ""


def _why_float_conv(graph: Graph, node: NodeProto, shape: tuple[int, ...]) -> str:
    channels, per_group, *kernel = shape
    group = attribute(node, "group", 1)
    if channels >= _SMALLEST and per_group >= _SMALLEST:
        return ""
    if group > 1:
        if channels % 8:
            return f"grouped, and {channels} output channels are no multiple of 8"
        return "" if min(kernel) >= 3 else "grouped, with few channels per group and a kernel below 3"
    if channels % 8 and per_group % 8:
        return f"neither {per_group} input nor {channels} output channels are a multiple of 8"
    first = is_fed(graph, node.input[0])
    if not first and channels < _SMALLEST and per_group < _SMALLEST:
        return (
            f"{per_group} input and {channels} output channels: TensorRT has no INT8 kernel below {_SMALLEST}"
        )
    return "" if len(set(kernel)) == 1 else "few channels and a kernel that is not square"


def _place_residual(draft: _Draft, node: NodeProto) -> None:
    graph = draft.graph
    if any(is_normalised(graph, name) for name in [*node.input, node.output[0]]):
        draft.why_not[node.name] = "the residual stream of a transformer, whose outliers INT8 cannot hold"
        return
    if node.output[0] not in draft.before_weights:
        return
    backbones = []
    for name in node.input:
        source = source_of(graph, name)
        weighted = source is not None and source.name in draft.int8 and source.op_type in WEIGHTED
        if weighted and graph.sole_consumer(name) is not None:
            backbones.append(name)
    if not backbones:
        return
    main = backbones[0] if len(backbones) == 1 else longer(graph, *backbones)
    skip = node.input[1] if main == node.input[0] else node.input[0]
    if graph.shape(skip) == graph.shape(main):
        source = source_of(graph, main)
        draft.quantize(
            node, skip, remark=f"fused with {source.name if source else ''}; its skip side is quantized"
        )


def _place_neighbour(draft: _Draft, node: NodeProto) -> None:
    graph = draft.graph
    decided = node.name in draft.int8 or node.name in draft.why_not
    if decided or node.output[0] not in draft.before_int8:
        return
    if node.op_type in POOLS and draft.near_int8(node):
        draft.quantize(node, node.input[0])
    elif node.op_type == "Resize" and graph.variables(node) == [node.input[0]] and draft.near_int8(node):
        if attribute(node, "mode", b"nearest") != b"cubic":
            draft.quantize(node, node.input[0])
            draft.groups.join(node.input[0], node.output[0])
    elif node.op_type in ("Add", "Mul") and joins_two(graph, node) and all(map(draft.from_int8, node.input)):
        draft.quantize(node, *node.input, remark="both inputs are quantized")


def _place_concat(draft: _Draft, node: NodeProto) -> None:
    graph = draft.graph
    inputs = graph.variables(node)
    floats = all(graph.is_float(name) for name in node.input)
    if len(inputs) != len(node.input) or not floats:
        return
    if any(reader.name in draft.int8 for reader in readers(graph, node.output[0])):
        draft.quantize(node, *inputs, remark="moves bytes: inputs and output share a scale")
        draft.groups.join(node.output[0], *inputs)


def _join_copies(draft: _Draft) -> None:
    """Give everything that holds the same values the same scale, so that DQ and Q cancel between them."""
    for node in draft.graph.nodes:
        if is_copy(draft.graph, node):
            draft.groups.join(node.input[0], *[name for name in node.output if name])


def _layer(draft: _Draft, node: NodeProto, weighted: frozenset[str]) -> Layer:
    size = stored_bytes(draft.graph, node, node.name in weighted)
    if node.name in draft.int8:
        return Layer(node.name, node.op_type, "INT8", draft.int8[node.name], size)
    if node.name in draft.why_not:
        return Layer(node.name, node.op_type, "FP32", draft.why_not[node.name], size)
    precision, reason = _follower(draft, node)
    if precision != "INT8" and is_fed(draft.graph, node.output[0]):
        reason = "prepares the input, in front of the first Q/DQ"
    return Layer(node.name, node.op_type, precision, reason, size)


def _follower(draft: _Draft, node: NodeProto) -> tuple[str, str]:
    """Return precision and reason of a node that decides nothing itself."""
    graph = draft.graph
    if is_copy(graph, node):
        source = source_of(graph, copied_from(graph, node.input[0]))
        after = [reader for output in node.output for reader in readers(graph, output)]
        if any(n.name in draft.int8 for n in after):
            return "INT8", "moves values of a quantized tensor"
        return "FP32", f"nothing after it runs in INT8{'' if source else ', and nothing before it'}"
    if node.op_type in POINTWISE and not joins_two(graph, node):
        source = source_of(graph, node.output[0])
        if source is not None and source.name in draft.int8 and source.op_type in WEIGHTED | {"Add"}:
            return "INT8", f"fused with {source.name}"
        return "FP32", "not fused with an INT8 operator"
    if not is_standard(node):
        return "FP32", f"an operator of {node.domain}, unknown here"
    if node.op_type in POOLS | {"Resize", "Add", "Mul", "Concat"}:
        if node.output[0] not in draft.before_int8:
            return "FP32", "no INT8 operator with weights comes after it"
        if node.op_type in ("Add", "Mul"):
            return "FP32", "not both of its inputs come from INT8"
        return "FP32", "neither what is before it nor what is after it runs in INT8"
    return "FP32", "TensorRT has no INT8 kernel for it that pays"


def missing_kernels(graph: Graph, plan: Plan, tensorrt: str) -> list[str]:
    """Return a warning where a version of TensorRT has no INT8 kernels for what a plan quantizes.

    Args:
        graph: the prepared network.
        plan: from `place`.
        tensorrt: a version such as `8.5.2`; empty where it is not known.
    """
    named = kernels_missing(graph, plan.weighted, tensorrt)
    if not named:
        return []
    swish = sum(named.values())
    which = "before SiLU or HardSwish" if swish == len(named) else f"{swish} of them before SiLU or HardSwish"
    return [
        f"TensorRT {tensorrt} may find no INT8 kernel for {len(named)} depthwise convolutions, {which} "
        "(NVIDIA/TensorRT issues 3385 and 4060; not known of TensorRT 10). If the engine does not build, "
        f"leave them in float: quantize.exclude: [{', '.join(named)}]"
    ]


def kernels_missing(graph: Graph, int8: frozenset[str], tensorrt: str) -> dict[str, bool]:
    """Return the INT8 convolutions that a version may find no kernel for, each with whether swish follows.

    Depthwise convolutions failed to build in TensorRT 8.5.2 where SiLU or HardSwish follows, not with ReLU
    (NVIDIA/TensorRT issue 3385, AGX Orin), and in 8.6 by themselves (issue 4060).
    """
    version = tuple(int(part) for part in re.findall(r"\d+", tensorrt)[:2])
    if not version or version >= (10,):
        return {}
    found = [node for node in graph.nodes if node.name in int8 and _is_depthwise(graph, node)]
    swish = {node.name: _before_swish(graph, node) for node in found}
    return {name: before for name, before in swish.items() if before or version >= (8, 6)}


def _is_depthwise(graph: Graph, node: NodeProto) -> bool:
    weight = graph.constants[node.input[1]]
    return node.op_type == "Conv" and attribute(node, "group", 1) > 1 and weight.shape[1] == 1


def _before_swish(graph: Graph, node: NodeProto) -> bool:
    """Whether a node's result goes into `x * gate(x)`, written as one operator or as several."""
    result = node.output[0]
    return any(
        reader.op_type == "HardSwish"
        or (
            reader.op_type == "Mul"
            and len(graph.variables(reader)) == 2
            and all(pointwise_of(graph, name, result) for name in graph.variables(reader))
        )
        for reader in graph.consumers.get(result, [])
    )


def stored_bytes(graph: Graph, node: NodeProto, int8: bool) -> int:
    """Return how much a node's constants take: weights as INT8 with scales, the rest as it is."""
    size = sum(graph.constants[name].nbytes for name in set(node.input) if name in graph.constants)
    axis = weight_axis(graph, node) if int8 else None
    if axis is None:
        return size
    weight = graph.constants[node.input[1]]
    return int(size - weight.nbytes + weight.size + 5 * weight.shape[axis])
