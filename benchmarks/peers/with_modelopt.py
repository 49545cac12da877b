"""Quantize with nvidia-modelopt: with_modelopt.py MODEL CALIBRATION.npy OUT max|entropy.

What stays in float stays FP32, which favours it: its default is FP16.
"""

import sys

import numpy as np
from account import tell
from modelopt.onnx.quantization import quantize


def main(model: str, inputs: str, out: str, method: str) -> None:
    """Quantize one file."""
    quantize(
        model,
        quantize_mode="int8",
        calibration_data=np.load(inputs),
        calibration_method=method,
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=out,
    )
    tell()


if __name__ == "__main__":
    main(*sys.argv[1:])
