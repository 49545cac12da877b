"""What a device's profiler timed, layer by layer, against the peaks of its profile.

Times come from TensorRT's profiler, kinds and bytes from the engine, operations from the ONNX nodes that a layer
computes. It may import errors, profile, device, engines and latency.
"""

from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto

from edgetune.device.program.layers import BETWEEN
from edgetune.device.results import Engine
from edgetune.engines.profiling import operations
from edgetune.errors import EdgetuneError
from edgetune.latency.layers import Layers, with_roof
from edgetune.profile import load_target


def device_layers(engine: Engine, network: Path | ModelProto, profile: str, tool: str) -> Layers | None:
    """Return an engine's layers against the roofline; None where none were timed.

    Args:
        engine: with its profile.
        network: the ONNX file that it was built from; or the network, where its shapes are not those of the file.
        profile: of the device, with its power mode; one that is not known here gives no peaks.
        tool: that timed them.
    """
    if not engine.profile.layers:
        return None
    told = {layer.name: layer for layer in engine.build.layers.layers}
    counted = node_operations(network)
    timed = []
    for layer in engine.profile.layers:
        facts = told.get(layer.name)
        nodes = (facts.onnx if facts else ()) or tuple(filter(None, BETWEEN.split(layer.name)))
        known = [counted[name] for name in nodes if name in counted]
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
    source = f"{tool} on the device, in a run of its own"
    return with_roof(timed, _roof(profile), source)


def node_operations(network: Path | ModelProto) -> dict[str, int | None]:
    """Return how many operations each node of a network takes; None where shapes do not tell."""
    try:
        read = network if isinstance(network, ModelProto) else onnx.load(str(network))
        model = onnx.shape_inference.infer_shapes(read)
    except (OSError, DecodeError, onnx.shape_inference.InferenceError):
        return {}
    graph = model.graph
    shapes = {item.name: tuple(item.dims) for item in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shapes[value.name] = tuple(size.dim_value for size in value.type.tensor_type.shape.dim)
    found: dict[str, int | None] = {}
    for node in graph.node:
        reads = [shapes[name] for name in node.input if name in shapes]
        writes = [shapes[name] for name in node.output if name in shapes]
        known = reads and writes and all(all(shape) for shape in (*reads, *writes))
        found[node.name] = operations(node.op_type, reads, writes, []) if known else None
    return found


def _roof(profile: str) -> dict[str, Any]:
    """Return the peaks of a power mode."""
    try:
        target = load_target(profile)
    except EdgetuneError:
        return {"source": f"unknown: no profile {profile!r} here"}
    mode = target.profile.modes[target.mode]
    tops, half = mode.int8_dense_tops, mode.fp16_dense_tflops
    return {
        "int8_ops_s": tops * 1e12 if tops else None,
        "fp16_ops_s": half * 1e12 if half else None,
        "fp32_ops_s": None,
        "bytes_s": mode.bandwidth_gb_s * 1e9 if mode.bandwidth_gb_s else None,
        "source": f"of the profile {target.label}, {mode.confidence}",
    }
