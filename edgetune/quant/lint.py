"""Why TensorRT or a DLA will refuse a file, fall back, or run slower: found without either, on any CPU.

Every rule is a row of RULES: what finds it, how bad it is, where it is known from and what to do about it.
`error`: the file is refused, or computes something else. `warning`: it is slower, less accurate, or falls
back. `info`: worth knowing. Nothing here was found out by running TensorRT; every rule names its source.
It may import the rest of quant.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from onnx import ModelProto

from edgetune.quant import lint_dla, lint_fusion, lint_model, lint_qdq
from edgetune.quant.lint_fix import Fixed, fix_model
from edgetune.quant.lint_view import Hit, Reader, Severity, View, view_of

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
_TENSORRT = frozenset({"weak", "strong"})
_DLA = frozenset({"dla"})
_CPU = frozenset({"cpu"})
_ALL = _TENSORRT | _CPU
_PARSER = "onnx-tensorrt, QuantDequantLinearHelper"
_GUIDE = "TensorRT guide, explicit quantization"
_MATRIX = "onnx-tensorrt docs/operators.md"
_DLA_GUIDE = "TensorRT guide, DLA supported layers and restrictions"
_PLACEMENT = "NVIDIA Model-Optimizer, modelopt/onnx/quantization"
_AGAIN = "quantize again: edgetune quantize MODEL.onnx --profile ..."


@dataclass(frozen=True)
class Rule:
    """One reason, and who it concerns.

    Attributes:
        check: finds the places.
        severity: unless a place says otherwise.
        source: the document, source file or issue that it is known from.
        remedy: what to do.
        concerns: `weak`, `strong` (TensorRT), `cpu` (ONNX Runtime), `dla`.
    """

    check: Callable[[View], Iterable[Hit]]
    severity: Severity
    source: str
    remedy: str
    concerns: frozenset[str] = _TENSORRT


@dataclass(frozen=True)
class Finding:
    """A rule that holds at a node; no node: for the whole file. `fixable`: `--fix` takes it away."""

    rule: str
    severity: Severity
    node: str
    reason: str
    source: str
    remedy: str
    fixable: bool = False

    def dump(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)


RULES: dict[str, Rule] = {
    "invalid": Rule(
        lint_model.invalid, "error", "ONNX's checker", "export it again, or repair what it names", _ALL
    ),
    "opset": Rule(
        lint_model.opset,
        "error",
        "NVIDIA support matrix; NVIDIA/TensorRT issues 3841 and 3934",
        "export for this profile's opset; --fix writes the older one where every operator means the same there",
        _ALL,
    ),
    "ir-version": Rule(
        lint_model.ir_version,
        "warning",
        "onnx-tensorrt ModelImporter.cpp (warns); onnxruntime issue 20559 (refuses)",
        "write the older IR version; --fix does",
    ),
    "file-size": Rule(
        lint_model.file_size,
        "error",
        "Protocol Buffers: 2 GiB a message",
        "save with external data: onnx.save_model(..., save_as_external_data=True)",
        _ALL,
    ),
    "unsupported-op": Rule(
        lint_model.unsupported,
        "error",
        f"{_MATRIX} and Changelog.md",
        "integer operators (QLinearConv, MatMulInteger, ...): quantize the FP32 network with Q/DQ instead; "
        "others: express them by operators that are parsed, or write a plugin",
    ),
    "unknown-op": Rule(
        lint_model.undocumented,
        "warning",
        _MATRIX,
        "try it on the device, or export to an older opset, which writes it with older operators",
    ),
    "custom-op": Rule(
        lint_model.custom,
        "error",
        f"{_MATRIX}; TensorRT guide, plugins",
        "express it by operators of ONNX's own, or write a plugin of that name; "
        "--fix moves ONNX Runtime's 8-bit Q/DQ into ONNX's own domain",
    ),
    "local-function": Rule(
        lint_model.local_functions, "error", "onnx-tensorrt Changelog.md, 9.0", "inline them; --fix does"
    ),
    "op-form": Rule(
        lint_model.restricted, "error", f"{_MATRIX}, restrictions", "export it without, or in another form"
    ),
    "dynamic-shape": Rule(
        lint_model.dynamic_shapes,
        "warning",
        "TensorRT guide, dynamic shapes",
        "export with fixed sizes, or build with a profile of shapes: trtexec --minShapes --optShapes --maxShapes",
    ),
    "long-integers": Rule(
        lint_model.long_integers,
        "warning",
        f"{_MATRIX}, note on types; Changelog.md, 9.0 (int64)",
        "write them as 32-bit values where they do not fit",
    ),
    "not-finite": Rule(
        lint_model.not_finite,
        "error",
        "IEEE 754; NVIDIA/TensorRT issue 1480 (infinite scales)",
        "look at the checkpoint; keep what exceeds FP16 in FP32",
        _ALL,
    ),
    "no-int8": Rule(
        lint_qdq.no_path,
        "error",
        "NVIDIA support matrix, hardware and precision",
        "give TensorRT the network as it was before quantization, and build it in FP16: trtexec --fp16",
    ),
    "zero-point": Rule(
        lint_qdq.zero_point,
        "error",
        f"{_PARSER}: shiftIsAllZeros; NVIDIA/TensorRT issues 2774 and 4698",
        f"{_AGAIN}; --fix shifts 128 of uint8, and constants that fit",
    ),
    "uint8": Rule(
        lint_qdq.unsigned,
        "error",
        f"{_PARSER}; NVIDIA/TensorRT issue 4698",
        f"{_AGAIN}; --fix makes int8 of it where the zero point is 128, or constants fit",
    ),
    "int32-bias": Rule(
        lint_qdq.integer_bias,
        "error",
        "onnxruntime issues 17738 and 14229; onnx-tensorrt issue 850",
        "write biases as floats (QuantizeBias=False in onnxruntime); --fix does",
    ),
    "stored-type": Rule(lint_qdq.other_type, "error", _PARSER, f"store int8: {_AGAIN}"),
    "no-zero-point": Rule(
        lint_qdq.no_zero_point,
        "error",
        f"{_PARSER}; ONNX, QuantizeLinear",
        "give an int8 zero point of 0; --fix does where the type is known",
    ),
    "scale-value": Rule(
        lint_qdq.scale_value,
        "error",
        f"{_PARSER}: Scale coefficients must all be positive; NVIDIA/TensorRT issue 1480",
        f"look at what was calibrated with, and {_AGAIN}",
        _ALL,
    ),
    "scale-computed": Rule(
        lint_qdq.scale_computed, "error", f"{_GUIDE}: scales are constants", "fold the constants into initializers"
    ),
    "scale-size": Rule(
        lint_qdq.scale_size,
        "error",
        f"{_PARSER}: number of scales, size of zero points",
        f"{_AGAIN}; --fix repeats a zero point of 0",
        _ALL,
    ),
    "fp16-scale": Rule(
        lint_qdq.half_scale,
        "error",
        f"ONNX, QuantizeLinear 19; {_PARSER} of 8.x",
        "quantize for this profile, with FP32 scales",
        _ALL,
    ),
    "pair-differs": Rule(
        lint_qdq.pair_differs,
        "warning",
        _GUIDE,
        "give both sides of the pair the same scale and zero point, or quantize again",
    ),
    "activation-channels": Rule(
        lint_qdq.activation_channels,
        "error",
        f"{_GUIDE}: activations per tensor; NVIDIA/TensorRT issue 3391",
        f"{_AGAIN}; --fix writes one scale where all are equal",
    ),
    "weight-axis": Rule(
        lint_qdq.weight_channels, "error", f"{_GUIDE}: weights per output channel", f"{_AGAIN}"
    ),
    "weight-tensor": Rule(
        lint_qdq.weight_tensor,
        "warning",
        f"{_GUIDE}: weights per output channel",
        f"more accurate at the same speed: {_AGAIN}; --fix only writes the same scale once per channel",
    ),
    "half-quantized": Rule(
        lint_fusion.half_quantized,
        "warning",
        f"{_GUIDE}: quantize all inputs of weighted operators",
        "quantize both of its inputs, or none: it runs in float",
    ),
    "output-quantized": Rule(
        lint_fusion.output_quantized,
        "warning",
        f"{_GUIDE}: do not quantize outputs of weighted operators",
        f"put Q/DQ behind the activation: {_AGAIN}; --fix does behind Relu, where it computes the same",
    ),
    "skip-unquantized": Rule(
        lint_fusion.skip_unquantized,
        "warning",
        f"{_GUIDE}: quantize the residual input",
        f"quantize the skip side, so that convolution and Add give INT8 together: {_AGAIN}",
    ),
    "unequal-scales": Rule(
        lint_fusion.unequal_scales,
        "warning",
        f"{_GUIDE}: equal scales; {_PLACEMENT}: concat elimination",
        f"one scale for all inputs and the output: {_AGAIN}",
    ),
    "isolated": Rule(
        lint_fusion.isolated,
        "warning",
        f"{_GUIDE}: be conservative; NVIDIA/TensorRT issues 2067 and 3197",
        "remove the pair: it costs two conversions and accuracy",
    ),
    "repeated": Rule(
        lint_fusion.repeated,
        "info",
        f"{_GUIDE}; onnxruntime, DedicatedQDQPair",
        "one pair for all readers; --fix merges equal ones",
    ),
    "no-kernel": Rule(
        lint_fusion.no_kernel,
        "warning",
        f"{_PLACEMENT}: shapes without INT8 kernels",
        "leave it in float: quantize with --exclude NODE; at worst no engine is built",
    ),
    "one-row": Rule(
        lint_fusion.one_row, "info", f"{_PLACEMENT}: products of one row", "nothing to do; it is a small part"
    ),
    "depthwise": Rule(
        lint_fusion.depthwise,
        "warning",
        "NVIDIA/TensorRT issues 3385 and 4060",
        "if the engine does not build, leave it in float: quantize with --exclude NODE; TensorRT 10 has the kernels",
    ),
    "left-float": Rule(
        lint_fusion.left_float, "info", f"{_GUIDE}; {_PLACEMENT}", "nothing to do where that is meant"
    ),
    "not-quantized": Rule(
        lint_fusion.not_quantized, "info", _GUIDE, "edgetune quantize makes an INT8 network of it", _ALL
    ),
    "fp32-rest": Rule(
        lint_fusion.runs_fp32,
        "warning",
        "TensorRT guide, strongly typed networks",
        "write FP16 into the file; edgetune quantize does for this profile",
    ),
    "fp16-weak": Rule(
        lint_fusion.half_in_weak,
        "warning",
        "TensorRT guide, strongly typed networks; NVIDIA/TensorRT issue 3762",
        "build it with --stronglyTyped, or with both --int8 and --fp16; or quantize for this profile",
    ),
    "signed-on-cpu": Rule(
        lint_fusion.signed_on_cpu,
        "warning",
        "measured: 37 of 52 convolutions of mobilenet_v2 run in INT8, 52 of 52 with uint8",
        "quantize for host-cpu",
        _CPU,
    ),
    "dla-absent": Rule(
        lint_dla.absent, "error", "TensorRT guide, working with DLA", "build for the GPU", _DLA
    ),
    "dla-explicit": Rule(
        lint_dla.explicit,
        "error",
        "NVIDIA/TensorRT issues 2222 and 3211",
        "give the network without Q/DQ and its scales as a calibration cache, or FP16",
        _DLA,
    ),
    "dla-dynamic": Rule(lint_dla.dynamic, "error", _DLA_GUIDE, "export with fixed sizes", _DLA),
    "dla-size": Rule(lint_dla.sizes, "warning", _DLA_GUIDE, "it runs on the GPU, if fallback is allowed", _DLA),
    "dla-op": Rule(
        lint_dla.operators,
        "warning",
        f"{_DLA_GUIDE}; NVIDIA Deep-Learning-Accelerator-SW, operators",
        "it runs on the GPU, if fallback is allowed; else the build fails; "
        "--fix writes small global pooling as AveragePool",
        _DLA,
    ),
    "dla-pieces": Rule(lint_dla.loadables, "warning", _DLA_GUIDE, "put fewer operators on the GPU between", _DLA),
}  # fmt: skip


def examine(model: ModelProto, reader: Reader, beside: bool = False) -> tuple[Finding, ...]:
    """Find every known reason against a file.

    Args:
        model: any network, with Q/DQ or without; it stays as it is.
        reader: what is going to read it.
        beside: whether its weights lie in files of their own.

    Returns:
        Findings, errors first, then in the order of RULES and of the file's nodes.
    """
    found = _findings(model, reader, beside)
    if not found:
        return ()
    # Whether it can be fixed is found out by fixing it.
    fixed, changes = fix_model(model, reader)
    left = {(item.rule, item.node) for item in _findings(fixed, reader, beside)} if changes else None
    return tuple(
        replace(item, fixable=left is not None and (item.rule, item.node) not in left) for item in found
    )


def repair(
    model: ModelProto, reader: Reader, beside: bool = False
) -> tuple[ModelProto, tuple[Fixed, ...], tuple[Finding, ...]]:
    """Fix what can be fixed without changing what is computed, beyond rounding.

    Returns:
        The network made, what was done, and what is left to find.
    """
    made, changes = fix_model(model, reader)
    return made, changes, tuple(_findings(made, reader, beside))


def _findings(model: ModelProto, reader: Reader, beside: bool) -> list[Finding]:
    view = view_of(model, reader, beside)
    concerned = {reader.typing} | ({"dla"} if reader.dla else set())
    found = [
        Finding(name, hit.severity or rule.severity, hit.node, hit.reason, rule.source, rule.remedy)
        for name, rule in RULES.items()
        if rule.concerns & concerned
        for hit in rule.check(view)
    ]
    return sorted(found, key=lambda item: SEVERITIES.index(item.severity))
