"""Quantize with edgetune: with_edgetune.py MODEL CALIBRATION.npy OUT PROFILE RANGES METHOD [untrained].

`preset` in the place of RANGES or METHOD: what the preset `standard` says. `untrained` leaves out the last
rung, training, so that it can be told what the others reach.
"""

import sys
from pathlib import Path

import numpy as np
from account import tell

from edgetune.data.calibration import load_preset
from edgetune.profile import load_target
from edgetune.quant import ladder
from edgetune.quant.files import read, write
from edgetune.quant.ladder import Limits
from edgetune.quant.quantizer import quantize_model


def main(model: str, inputs: str, out: str, profile: str, ranges: str, method: str, last: str = "") -> None:
    """Quantize one file."""
    target, preset = load_target(profile), load_preset("standard")
    if last == "untrained":
        ladder.RUNGS.pop("training")
    made, details = quantize_model(
        read(Path(model), target.runtime),
        [found[None] for found in np.load(inputs, mmap_mode="r")],
        target.runtime.rendering,
        preset.ranges if ranges == "preset" else ranges,
        tensorrt=target.runtime.tensorrt,
        method=preset.method if method == "preset" else method,
        limits=Limits.of(target.profile.gates),
    )
    made.ir_version = target.runtime.ir
    write(made, Path(out))
    for rung in details["ladder"]:
        print(rung)
    tell()


if __name__ == "__main__":
    main(*sys.argv[1:])
