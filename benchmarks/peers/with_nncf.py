"""Quantize with nncf at its defaults: with_nncf.py MODEL CALIBRATION.npy OUT.

Every calibration input is looked at; nncf's own default stops at 300.
"""

import sys

import nncf
import numpy as np
import onnx
from account import tell


def main(model: str, inputs: str, out: str) -> None:
    """Quantize one file."""
    network = onnx.load(model)
    name = network.graph.input[0].name
    data = np.load(inputs, mmap_mode="r")
    dataset = nncf.Dataset(data, lambda found: {name: np.ascontiguousarray(found[None])})
    onnx.save(nncf.quantize(network, dataset, subset_size=len(data)), out)
    tell()


if __name__ == "__main__":
    main(*sys.argv[1:])
