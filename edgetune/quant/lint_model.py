"""Rules of the lint about the whole file and about single operators: versions, shapes, sizes, what is parsed.

Which operators TensorRT parses is what onnx-tensorrt's `docs/operators.md` says for 8.5 and 9.2, with the
additions of its changelog up to 10.6. It may import quant.graph and quant.lint_view.
"""

import json
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

from edgetune.quant.graph import attribute, is_standard, opset_of
from edgetune.quant.lint_view import Hit, Reader, View, is_qdq

# Scales per channel begin here.
OPSET_CHANNELS = 13
LARGEST_BYTES = 1 << 31
_LARGEST_HALF = 65504.0
# Not parsed by any version known here, as the matrix says.
_REFUSED = frozenset(
    {
        *("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"),
        *("Bernoulli", "BitShift", "Compress", "ConcatFromSequence", "DFT", "Det", "MaxRoiPool", "MaxUnpool"),
        *("MelWeightMatrix", "Multinomial", "NegativeLogLikelihoodLoss", "Optional", "OptionalGetElement"),
        *("OptionalHasElement", "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase"),
        *("SequenceInsert", "SequenceLength", "SequenceMap", "SoftmaxCrossEntropyLoss", "SplitToSequence"),
        *("StringNormalizer", "TfIdfVectorizer", "Unique"),
    }
)
# Parsed from a version on.
_SINCE = {
    **dict.fromkeys(("GroupNormalization", "LayerNormalization", "IsInf"), (8, 6)),
    **dict.fromkeys(("Hardmax", "CastLike"), (9, 2)),
    "DeformConv": (10, 1),
    **dict.fromkeys(("BlackmanWindow", "HammingWindow", "HannWindow"), (10, 4)),
    "STFT": (10, 5),
}
_PARSED = frozenset(
    {
        *("Abs", "Acos", "Acosh", "Add", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh"),
        *("AveragePool", "BatchNormalization", "Cast", "Ceil", "Celu", "Clip", "Concat", "Constant"),
        *("ConstantOfShape", "Conv", "ConvTranspose", "Cos", "Cosh", "CumSum", "DepthToSpace"),
        *("DequantizeLinear", "Div", "Dropout", "Einsum", "Elu", "Equal", "Erf", "Exp", "Expand", "EyeLike"),
        *("Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Gemm", "GlobalAveragePool"),
        *("GlobalLpPool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "GridSample", "GRU", "HardSwish"),
        *("HardSigmoid", "Identity", "If", "ImageScaler", "InstanceNormalization", "IsNaN", "LeakyRelu"),
        *("Less", "LessOrEqual", "Log", "LogSoftmax", "Loop", "LRN", "LSTM", "LpNormalization", "LpPool"),
        *("MatMul", "Max", "MaxPool", "Mean", "MeanVarianceNormalization", "Min", "Mod", "Mul", "Neg"),
        *("NonMaxSuppression", "NonZero", "Not", "OneHot", "Or", "Pad", "ParametricSoftplus", "Pow", "PRelu"),
        *("QuantizeLinear", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
        *("Range", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax"),
        *("ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu", "Reshape"),
        *("Resize", "ReverseSequence", "RNN", "RoiAlign", "Round", "ScaledTanh", "Scan", "Scatter"),
        *("ScatterElements", "ScatterND", "Selu", "Shape", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh"),
        *("Size", "Slice", "Softmax", "Softplus", "Softsign", "SpaceToDepth", "Split", "Sqrt", "Squeeze"),
        *("Sub", "Sum", "Tan", "Tanh", "ThresholdedRelu", "Tile", "TopK", "Transpose", "Trilu"),
        *("Unsqueeze", "Upsample", "Where", "Xor"),
    }
)
_NEW_IN_17 = frozenset({"LayerNormalization"})
# Domains whose operators are plugins that come with TensorRT, or are known to its parser.
_PLUGIN_DOMAINS = ("trt", "trt.plugins", "com.nvidia", "tensorrt")
_WINDOWS = frozenset({"Conv", "ConvTranspose", "MaxPool", "AveragePool"})


def opset(view: View) -> Iterator[Hit]:
    """Opsets that the reader does not know."""
    found, most = opset_of(view.source), view.reader.opset_max
    if found > most:
        yield Hit("", f"opset {found}, where {view.reader.name} reads {most} at most")
    channels = any(item.scale is not None and item.scale.size > 1 for item in view.stored)
    if channels and found < OPSET_CHANNELS:
        yield Hit("", f"scales per channel at opset {found}; they begin with opset {OPSET_CHANNELS}")


def ir_version(view: View) -> Iterator[Hit]:
    """IR versions newer than needed and than was made sure of."""
    found, most = view.source.ir_version, needed_ir(view.source, view.reader)
    if found > most:
        yield Hit("", f"IR version {found}, where {most} is what is made sure of for {view.reader.label}")


def needed_ir(model: ModelProto, reader: Reader) -> int:
    """Return the IR version that a file should have: the profile's, or a newer one that its opset asks for."""
    standard = [item for item in model.opset_import if item.domain in ("", "ai.onnx")]
    try:
        return max(reader.ir, int(helper.find_min_ir_version_for(standard, ignore_unknown=True)))
    except ValueError:
        return reader.ir


def unsupported(view: View) -> Iterator[Hit]:
    """Operators that the parser refuses."""
    for node in view.graph.nodes:
        if not is_standard(node):
            continue
        since = _SINCE.get(node.op_type)
        if node.op_type in _REFUSED:
            yield Hit(node.name, f"{view.reader.name} does not parse {node.op_type}")
        elif since is not None and view.reader.version < since:
            later = f"TensorRT {since[0]}.{since[1]} is the first to parse it"
            older = (
                ", and an export with opset 16 writes plain operators" if node.op_type in _NEW_IN_17 else ""
            )
            yield Hit(node.name, f"{view.reader.name} does not parse {node.op_type}; {later}{older}")


def undocumented(view: View) -> Iterator[Hit]:
    """Standard operators that the parser's documents do not name."""
    for node in view.graph.nodes:
        if is_standard(node) and node.op_type not in _REFUSED | _PARSED and node.op_type not in _SINCE:
            yield Hit(
                node.name, f"{node.op_type} is not among the operators that TensorRT's parser documents"
            )


def custom(view: View) -> Iterator[Hit]:
    """Operators of other domains than ONNX's."""
    for node in view.graph.nodes:
        if is_standard(node):
            continue
        if node.domain in _PLUGIN_DOMAINS:
            yield Hit(node.name, f"{node.domain}.{node.op_type} needs its plugin on the device", "info")
        else:
            yield Hit(node.name, f"{node.op_type} of the domain {node.domain!r} is no operator of ONNX's")


def local_functions(view: View) -> Iterator[Hit]:
    """Functions defined in the file, before TensorRT read such."""
    if view.source.functions and view.reader.version < (9,):
        names = ", ".join(function.name for function in view.source.functions[:3])
        yield Hit(
            "", f"{len(view.source.functions)} local functions ({names}); TensorRT reads them from 9.0 on"
        )


def restricted(view: View) -> Iterator[Hit]:
    """Operators in a form that the parser refuses."""
    for node in view.graph.nodes:
        if is_standard(node) and (reason := _restriction(view, node)):
            yield Hit(node.name, reason)


def _restriction(view: View, node: NodeProto) -> str:
    outputs = [name for name in node.output if name]
    if node.op_type == "MaxPool" and len(outputs) > 1:
        return "MaxPool with Indices; TensorRT gives the maxima alone"
    if (
        node.op_type == "Dropout"
        and len(node.input) > 2
        and np.any(view.graph.constants.get(node.input[2], 0))
    ):
        return "Dropout in training mode"
    if node.op_type == "BatchNormalization" and attribute(node, "training_mode", 0):
        return "BatchNormalization in training mode"
    if node.op_type == "Resize":
        mode = attribute(node, "coordinate_transformation_mode", b"half_pixel").decode()
        if mode in ("tf_crop_and_resize", "half_pixel_symmetric"):
            return f"Resize with coordinates {mode!r}, which the parser does not have"
        if attribute(node, "antialias", 0):
            return "Resize with antialias, which the parser does not have"
    if node.op_type in _WINDOWS and node.input:
        shape = view.graph.shape(node.input[0])
        if (
            shape is not None
            and len(shape) not in (4, 5)
            and not (node.op_type.startswith("Conv") and len(shape) == 3)
        ):
            return f"{node.op_type} over {len(shape) - 2} dimensions; TensorRT has 2 and 3"
    if node.op_type == "Einsum" and b"..." in attribute(node, "equation", b""):
        return "Einsum with an ellipsis" if view.reader.version < (9,) else ""
    return ""


def dynamic_shapes(view: View) -> Iterator[Hit]:
    """Inputs without fixed sizes."""
    for name in view.graph.inputs:
        shape = view.graph.shape(name)
        if shape is None:
            yield Hit("", f"input {name!r} has no shape")
        elif any(isinstance(size, str) for size in shape):
            sizes = "x".join(str(size) for size in shape)
            lengths = _lengths(view) if isinstance(shape[0], int) else ""
            if lengths:
                reason = f"input {name!r} is {sizes}: a bundle builds it for texts of {lengths} tokens each"
                yield Hit("", reason, "info")
            else:
                yield Hit("", f"input {name!r} is {sizes}: the builder asks for the shapes to build for")


def _lengths(view: View) -> str:
    """Return the lengths of texts that edgetune exported a network for; nothing where it did not say any."""
    said = next((item.value for item in view.source.metadata_props if item.key == "preprocess"), "")
    try:
        return ", ".join(str(int(length)) for length in json.loads(said)["lengths"])
    except (ValueError, KeyError, TypeError):
        return ""


def long_integers(view: View) -> Iterator[Hit]:
    """64-bit integers and floats, which are read as 32-bit ones."""
    doubles, longs, cut = [], 0, []
    for item in view.graph.model.graph.initializer:
        if item.data_type == TensorProto.DOUBLE:
            doubles.append(item.name)
        elif item.data_type == TensorProto.INT64 and view.reader.version < (9,):
            longs += 1
            value = view.graph.constants[item.name]
            users = {node.op_type for node in view.graph.consumers.get(item.name, [])}
            # A Slice that ends at the largest integer ends at the largest 32-bit one as well.
            if value.size and np.abs(value).max() > np.iinfo(np.int32).max and users - {"Slice"}:
                cut.append(item.name)
    if doubles:
        yield Hit("", f"{len(doubles)} constants are float64, read as float32: {doubles[0]!r}")
    if cut:
        yield Hit("", f"{len(cut)} int64 constants do not fit into 32 bits and are cut off: {cut[0]!r}")
    elif longs:
        yield Hit("", f"{longs} int64 constants are read as int32; all of them fit", "info")


def not_finite(view: View) -> Iterator[Hit]:
    """Constants that are NaN or infinite, or beyond what FP16 holds."""
    scales = {name for node in view.graph.nodes if is_qdq(node) for name in node.input[1:]}
    weak = view.reader.typing == "weak"
    for name, value in view.graph.constants.items():
        if name in scales or value.dtype not in (np.float16, np.float32, np.float64) or not value.size:
            continue
        users = [node.name for node in view.graph.consumers.get(name, [])]
        largest = float(np.abs(value).max())
        if not np.isfinite(largest):
            bounds = {node.op_type for node in view.graph.consumers.get(name, [])} <= {"Clip", "Where", "Pad"}
            if np.isnan(value).any() or not bounds:
                yield Hit(", ".join(users[:1]), f"the constant {name!r} is not finite")
        elif weak and largest > _LARGEST_HALF and value.size > 1:
            reason = f"the constant {name!r} reaches {largest:.3g}, beyond FP16, which the builder may choose"
            yield Hit(", ".join(users[:1]), reason, "warning")


def file_size(view: View) -> Iterator[Hit]:
    """More than one file holds, without external data."""
    size = _bytes(view)
    if view.beside:
        yield Hit(
            "", f"{size / 1e6:.0f} MB of constants lie in files beside it, which go where it goes", "info"
        )
    elif size > LARGEST_BYTES:
        yield Hit("", f"{size / 1e9:.1f} GB of constants; a single file holds {LARGEST_BYTES / 1e9:.1f} GB")


def _bytes(view: View) -> int:
    return sum(value.nbytes for value in view.graph.constants.values())


def invalid(view: View) -> Iterator[Hit]:
    """What ONNX's own checker objects to."""
    if _bytes(view) > LARGEST_BYTES:
        return
    work = ModelProto()
    work.CopyFrom(view.graph.model)
    for value in work.graph.output:
        value.type.tensor_type.shape.SetInParent()  # an output without a shape is read all the same
    try:
        onnx.checker.check_model(work, full_check=True)
    except onnx.checker.ValidationError as error:
        yield Hit("", f"ONNX's checker: {_first_line(error)}")
    except onnx.shape_inference.InferenceError as error:
        yield Hit("", f"types or shapes that contradict each other: {_first_line(error)}", "warning")
    except (ValueError, TypeError) as error:
        yield Hit("", f"ONNX's checker cannot read it: {error}")


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")
