"""Quantize with ONNX Runtime's own quantizer: with_onnxruntime.py MODEL CALIBRATION.npy OUT int8|uint8.

`int8` is symmetric, as ONNX Runtime advises for TensorRT; `uint8` is what it advises for CPUs. Both min-max,
int8 weights per channel.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from account import tell
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Gives one input at a time."""

    def __init__(self, name: str, inputs: Path) -> None:
        self._name = name
        self._rest: Iterator[Any] = iter(np.load(inputs, mmap_mode="r"))

    def get_next(self) -> dict[str, Any] | None:
        found = next(self._rest, None)
        return None if found is None else {self._name: np.ascontiguousarray(found[None])}


def main(model: str, inputs: str, out: str, kind: str) -> None:
    """Quantize one file."""
    name = onnx.load(model, load_external_data=False).graph.input[0].name
    quantize_static(
        model,
        out,
        Reader(name, Path(inputs)),
        per_channel=True,
        activation_type=QuantType.QInt8 if kind == "int8" else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": kind == "int8", "WeightSymmetric": True},
    )
    tell()


if __name__ == "__main__":
    main(*sys.argv[1:])
