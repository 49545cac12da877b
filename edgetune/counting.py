"""Operations of a node, from its operator and the shapes around it: the one place that counts them.

Two for each multiplication with its addition, one for each value visited where nothing is multiplied, none where
values only move. Estimates, layers that were timed and the choice of what stays in float all count by it. It knows
nothing of files, graphs or time, and imports nothing of this package.
"""

import math
from collections.abc import Sequence

Shape = Sequence[int]

PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum"})
_UNARY = frozenset(
    {
        *("Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "Sigmoid"),
        *("HardSigmoid", "HardSwish", "Swish", "Mish", "Softplus", "Softsign", "Tanh", "Gelu", "Erf", "Exp"),
        *("Log", "Sqrt", "Abs", "Neg", "Reciprocal", "Ceil", "Floor", "Round", "Sign", "Sin", "Cos", "Tan"),
        *("Asin", "Acos", "Atan", "Sinh", "Cosh", "Not", "IsInf", "IsNaN", "BatchNormalization", "Cast"),
    }
)
_BINARY = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Mean", "Sum", "Mod", "Where", "And", "Or", "Xor"),
        *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"),
    }
)
POINTWISE = _UNARY | _BINARY
REDUCE = frozenset(
    {
        *("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2"),
        *("ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp", "Softmax", "LogSoftmax"),
        *("LayerNormalization", "GroupNormalization", "InstanceNormalization", "RMSNormalization"),
        *("LpNormalization", "LRN", "ArgMax", "ArgMin", "TopK", "CumSum"),
    }
)
POOL = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "GlobalLpPool"})
COPY = frozenset(
    {
        *("Transpose", "Slice", "Split", "Concat", "Resize", "Upsample", "Pad", "Tile", "Expand", "Gather"),
        *("GatherElements", "GatherND", "DepthToSpace", "SpaceToDepth", "ScatterND", "ScatterElements"),
        *("OneHot", "ConstantOfShape", "Range", "Trilu", "EyeLike"),
    }
)
# They change how a tensor is called, not where it lies.
FREE = frozenset(
    {"Identity", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Shape", "Size", "Constant"}
)


def multiply_accumulates(operator: str, reads: Sequence[Shape], out: Shape, equation: str = "") -> int:
    """Return those of a convolution or matrix product, for the whole batch; 0: it is none, or none is known.

    Args:
        operator: as ONNX calls it.
        reads: shapes of data and weights, in this order.
        out: the shape of the result.
        equation: of an Einsum.
    """
    if operator not in PRODUCTS or not reads or not reads[0]:
        return 0
    if operator == "Einsum":
        return _einsum(equation, reads)
    data = reads[0]
    if operator == "MatMul":
        return math.prod(out) * data[-1]
    if operator == "Gemm":
        return math.prod(data) // out[0] * math.prod(out) if out and out[0] else 0
    if len(reads) < 2 or len(reads[1]) < 3:
        return 0
    return math.prod(out if operator == "Conv" else data) * math.prod(reads[1][1:])


def operations(
    operator: str,
    reads: Sequence[Shape],
    writes: Sequence[Shape],
    window: Sequence[int] = (),
    equation: str = "",
) -> int | None:
    """Return how many operations a node takes, for the whole batch; None: its operator is not known.

    Args:
        operator: as ONNX calls it.
        reads: shapes of what it reads, its data first.
        writes: shapes of what it writes.
        window: of a pool.
        equation: of an Einsum.
    """
    if operator in FREE or operator in COPY:
        return 0
    if not reads or not writes:
        return None
    if operator in PRODUCTS:
        return 2 * multiply_accumulates(operator, reads, writes[0], equation) or None
    made = sum(math.prod(shape) for shape in writes)
    if operator in POINTWISE:
        return made
    if operator in REDUCE or operator in POOL:
        return made * math.prod(window) if window else max(made, math.prod(reads[0]))
    return None


def _einsum(equation: str, reads: Sequence[Shape]) -> int:
    """Return one for every combination of its indices; with an ellipsis these are not named."""
    names = [side.strip() for side in equation.replace(" ", "").split("->")[0].split(",")]
    if [len(name) for name in names] != [len(shape) for shape in reads] or "." in equation:
        return 0
    return math.prod(dict(zip("".join(names), [n for shape in reads for n in shape], strict=True)).values())
