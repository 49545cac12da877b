"""Quantize with edgetune: with_edgetune.py MODEL CALIBRATION.npy OUT PROFILE RANGES METHOD [untrained] [LIMIT].

`preset` in the place of RANGES or METHOD: what the preset `standard` says. `untrained` leaves out the last
rung, training, so that it can be told what the others reach. LIMIT is the agreement that METHOD `auto` climbs
to; without it, the profile's.
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
from edgetune.quant.plan import WEIGHTED, weight_axis
from edgetune.quant.prepare import prepare
from edgetune.quant.quantizer import quantize_model
from edgetune.quant.sensitivity import operations


def main(
    model: str, inputs: str, out: str, profile: str, ranges: str, method: str, last: str = "", limit: str = ""
) -> None:
    """Quantize one file."""
    target, preset = load_target(profile), load_preset("standard")
    if last == "untrained":
        ladder.RUNGS.pop("training")
    fp32 = read(Path(model), target.runtime)
    made, details = quantize_model(
        fp32,
        [found[None] for found in np.load(inputs, mmap_mode="r")],
        target.runtime.rendering,
        preset.ranges if ranges == "preset" else ranges,
        tensorrt=target.runtime.tensorrt,
        method=preset.method if method == "preset" else method,
        limits=Limits(float(limit), None) if limit else Limits.of(target.profile.gates),
    )
    made.ir_version = target.runtime.ir
    write(made, Path(out))
    for rung in details["ladder"]:
        print(rung)
    graph = prepare(fp32)
    work = {
        node.name: operations(graph, node)
        for node in graph.nodes
        if node.op_type in WEIGHTED and weight_axis(graph, node) is not None
    }
    float_work = [work.get(layer["name"], 0) for layer in details["layers"] if layer["precision"] != "INT8"]
    tell(float_percent=100 * sum(float_work) / max(sum(work.values()), 1))


if __name__ == "__main__":
    main(*sys.argv[1:])
