"""What a device's profiler timed, layer by layer, against the peaks of its profile.

Times come from TensorRT's profiler, kinds and bytes from the engine; operations, of the ONNX nodes that a layer
computes, from whoever counts them. It may import errors, profile, device and latency.layers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from edgetune.device import results
from edgetune.device.program.layers import BETWEEN
from edgetune.errors import EdgetuneError
from edgetune.latency.layers import Layers, with_roof
from edgetune.profile import load_target


def device_layers(
    engine: results.Layers,
    times: Sequence[results.LayerTime],
    operations: Mapping[str, int | None],
    profile: str,
    source: str,
) -> Layers | None:
    """Return an engine's layers against the roofline; None where none were timed.

    Args:
        engine: what it tells of its layers.
        times: of each, in running order.
        operations: by ONNX node; None: not known.
        profile: of the device, with its power mode; one that is not known here gives no peaks.
        source: who timed them.
    """
    if not times:
        return None
    told = {layer.name: layer for layer in engine.layers}
    timed = []
    for layer in times:
        facts = told.get(layer.name)
        nodes = (facts.onnx if facts else ()) or tuple(filter(None, BETWEEN.split(layer.name)))
        known = [operations[name] for name in nodes if name in operations]
        whole = bool(known) and None not in known
        timed.append(
            {
                "name": layer.name,
                "kind": facts.kind if facts else "",
                "precision": facts.precision if facts else "",
                "ms": layer.average_ms if layer.median_ms is None else layer.median_ms,
                "bytes": facts.bytes if facts else None,
                "operations": sum(filter(None, known)) if whole else None,
            }
        )
    return with_roof(timed, _roof(profile), source)


def _roof(profile: str) -> dict[str, Any]:
    """Return the peaks of a power mode."""
    try:
        target = load_target(profile)
    except EdgetuneError:
        return {"source": f"unknown: no profile {profile!r} here"}
    if target.is_host:
        return {"source": f"unknown: {target.label} is no GPU; name the device with --profile"}
    mode = target.profile.modes[target.mode]
    tops, half = mode.int8_dense_tops, mode.fp16_dense_tflops
    return {
        "int8_ops_s": tops * 1e12 if tops else None,
        "fp16_ops_s": half * 1e12 if half else None,
        "fp32_ops_s": None,
        "bytes_s": mode.bandwidth_gb_s * 1e9 if mode.bandwidth_gb_s else None,
        "source": f"of the profile {target.label}, {mode.confidence}",
    }
