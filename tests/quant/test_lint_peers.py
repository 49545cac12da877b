"""Files that other quantizers write, diagnosed: onnxruntime's are made here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgetune.profile import load_target
from edgetune.quant.lint import Finding, examine, repair
from edgetune.quant.lint_view import reader_of

Nets = Callable[..., Any]
READER = reader_of(load_target("jetson-orin-nano-8gb@6.2"))


def network(n: Any) -> str:
    """Convolutions, a residual block, SiLU, a Concat, a head."""
    start = n.op("Relu", n.conv("x", name="stem"))
    total = n.op("Add", n.conv(n.op("Relu", n.conv(start, name="a")), name="b"), start, name="add")
    c = n.conv(total, name="silu")
    parts = [n.op("Mul", c, n.op("Sigmoid", c)), n.op("Relu", n.conv(start, kernel=1, name="beside"))]
    pooled = n.op("GlobalAveragePool", n.conv(n.op("Concat", *parts, axis=1, name="cat"), into=32))
    return str(n.gemm(n.op("Flatten", pooled), 16, 20, name="head"))


def made_by_onnxruntime(net: Nets, folder: Path, **options: Any) -> onnx.ModelProto:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    n = net()
    onnx.save(n.model(network(n)), folder / "float.onnx")

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.inputs = iter({"x": batch[None]} for batch in n.inputs(4))

        def get_next(self) -> Any:
            return next(self.inputs, None)

    quantize_static(str(folder / "float.onnx"), str(folder / "int8.onnx"), Reader(), **options)
    return onnx.load(folder / "int8.onnx")


def by_rule(items: tuple[Finding, ...], severity: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for item in items:
        if item.severity == severity:
            counts[item.rule] = counts.get(item.rule, 0) + 1
    return counts


def test_onnxruntime_as_it_comes(net: Nets, tmp_path: Path) -> None:
    model = made_by_onnxruntime(net, tmp_path)
    items = examine(model, READER)
    errors = by_rule(items, "error")
    assert set(errors) == {"zero-point", "int32-bias"}
    assert errors["int32-bias"] == 7
    assert errors["zero-point"] >= 7
    assert by_rule(items, "warning")["weight-tensor"] == 6
    assert all(item.fixable for item in items if item.rule == "int32-bias")


def test_onnxruntime_symmetric_and_per_channel_lacks_little(net: Nets, tmp_path: Path) -> None:
    symmetric = {"ActivationSymmetric": True, "WeightSymmetric": True}
    model = made_by_onnxruntime(net, tmp_path, per_channel=True, extra_options=symmetric)
    items = examine(model, READER)
    assert set(by_rule(items, "error")) == {"int32-bias"}
    warnings = by_rule(items, "warning")
    assert warnings["output-quantized"] == 4, "signed integers do not fold Relu, so its convolution has a Q"
    assert warnings["unequal-scales"] >= 1, "around the Concat"
    assert "weight-tensor" not in warnings
    _, fixed, left = repair(model, READER)
    assert sum(item.rule == "int32-bias" for item in fixed) == 7
    assert not by_rule(left, "error")
    assert by_rule(left, "warning")["output-quantized"] == 1, "before SiLU; behind Relu it is the same"


def test_onnxruntime_unsigned(net: Nets, tmp_path: Path) -> None:
    from onnxruntime.quantization import QuantType

    model = made_by_onnxruntime(net, tmp_path, activation_type=QuantType.QUInt8)
    assert {"uint8", "zero-point", "int32-bias"} <= set(by_rule(examine(model, READER), "error"))


def test_onnxruntime_with_integer_operators(net: Nets, tmp_path: Path) -> None:
    from onnxruntime.quantization import QuantFormat

    model = made_by_onnxruntime(net, tmp_path, quant_format=QuantFormat.QOperator)
    refused = {item.node for item in examine(model, READER) if item.rule == "unsupported-op"}
    assert len(refused) == 6
    assert "custom-op" in by_rule(examine(model, READER), "error"), "QLinearAdd and its like"


@pytest.mark.parametrize("bits", ["QInt16", "QUInt16"])
def test_onnxruntime_with_16_bits(net: Nets, tmp_path: Path, bits: str) -> None:
    from onnxruntime.quantization import QuantType

    model = made_by_onnxruntime(net, tmp_path, activation_type=getattr(QuantType, bits))
    errors = set(by_rule(examine(model, READER), "error"))
    assert {"stored-type", "opset"} <= errors


def test_nothing_of_it_is_by_chance(net: Nets, tmp_path: Path) -> None:
    model = made_by_onnxruntime(net, tmp_path)
    assert examine(model, READER) == examine(model, READER)
    assert np.isfinite(model.ByteSize())
