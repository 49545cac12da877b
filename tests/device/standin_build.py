"""What parsing, building and inspecting do in the stand-in for TensorRT (standin_tensorrt)."""

import ctypes
import json
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from standin_int8 import built, header

TYPES = {
    TensorProto.FLOAT: "FLOAT",
    TensorProto.FLOAT16: "HALF",
    TensorProto.UINT8: "UINT8",
    TensorProto.INT8: "INT8",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
}


def parse_errors(kit: Any, network: Any, content: bytes) -> list[tuple[int, str, str, str]]:
    if kit.numbers[0] < 10 and "EXPLICIT_BATCH" not in network._flags:
        text = "This version of the ONNX parser only supports networks with an explicit batch dimension"
        return [(-1, "", "", text)]
    try:
        model = onnx.load_from_string(content)
        onnx.checker.check_model(model)
    except Exception:
        return [(-1, "", "", "Failed to parse the ONNX model: ModelProto is damaged")]
    network._model = onnx.shape_inference.infer_shapes(model)
    plugin = "Plugin not found, are the plugin name, version, and namespace correct?"
    return [
        (index, node.op_type, node.name, plugin)
        for index, node in enumerate(model.graph.node)
        if node.domain not in ("", "ai.onnx")
    ]


def build(kit: Any, network: Any, config: Any) -> Any:
    """Build as `IBuilder::buildSerializedNetwork` does: a plan, or None and a message."""
    world, model = kit.world, network._model
    operators = {node.op_type for node in model.graph.node}
    pairs = bool(operators & {"QuantizeLinear", "DequantizeLinear"})
    flags = config._set & set(kit.version.api["enums"]["BuilderFlag"])
    calibrator = config.__dict__.get("_int8_calibrator")
    world.asked = {
        "strong": network._strong,
        "network_flags": network._flags,
        "flags": flags,
        "pools": config._pools,
        "workspace": config.__dict__.get("_max_workspace_size"),
        "level": config.__dict__.get("_builder_optimization_level"),
        "verbosity": config._profiling_verbosity.name,
        "device": config._default_device_type.name,
        "dla_core": config.__dict__.get("_DLA_core"),
        "calibration": kit.version.call("IInt8EntropyCalibrator2", calibrator, "read_calibration_cache")
        if calibrator
        else None,
    }
    if kit.fails("build_serialized_network"):
        return None
    if network._strong and flags & {"INT8", "FP16"}:
        kit.say(
            "ERROR",
            "Error Code 3: API Usage Error (precision flags are not allowed in a strongly typed network)",
        )
        return None
    if pairs and not network._strong and "INT8" not in flags:
        kit.say(
            "ERROR",
            "Error Code 4: Internal Error (Int8 precision has been set for a layer or layer output, but int8 is not "
            "configured in the builder)",
        )
        return None
    if "INT8" in flags and not pairs:
        cache = world.asked["calibration"]
        if not _calibrated(kit, calibrator, cache):
            return None
        content, missing = built(model.SerializeToString(), bytes(cache), kit.numbers)
        model = onnx.load_from_string(content)
        for text in missing:
            kit.say("WARNING", text)
    if "INT8" in flags and kit.numbers >= (10, 12):
        kit.say("WARNING", "Weakly-typed networks have been deprecated")
    if not _told(kit, config.__dict__.get("_progress_monitor"), len(model.graph.node)):
        return None
    detailed = config._profiling_verbosity.name == "DETAILED"
    profiles = config.__dict__.get("_profiles", [])
    if not _bounded(kit, model, profiles):
        return None
    head = {**kit.header(), "detailed": detailed, "half": "FP16" in flags, "profiles": profiles}
    return kit.memory(kit.packed(head, model.SerializeToString()))


def _bounded(kit: Any, model: Any, profiles: list[dict[str, list[list[int]]]]) -> bool:
    """Whether each open input has shapes in each profile that fit it, and there is a profile where there is one."""
    for info in inputs_of(model):
        said = shape_of(info)
        if min(said) > 0:
            continue
        fits = all(
            name == info.name and all(s in (-1, g) for s, g in zip(said, shape, strict=True))
            for profile in profiles
            for name, ends in profile.items()
            if name == info.name
            for shape in ends
        )
        if not profiles or not fits or any(info.name not in profile for profile in profiles):
            kit.say(
                "ERROR",
                "Error Code 4: API Usage Error (Network has dynamic or shape inputs, but no optimization profile has "
                "been defined.)",
            )
            return False
    return True


def _calibrated(kit: Any, calibrator: Any, cache: bytes | None) -> bool:
    if cache and bytes(cache).decode().splitlines()[0] == header(kit.numbers):
        return True
    if calibrator is not None:
        kit.version.call("IInt8EntropyCalibrator2", calibrator, "get_batch_size")
        kit.version.call("IInt8EntropyCalibrator2", calibrator, "get_batch", ["x"])
    kit.say("ERROR", "Error Code 1: Myelin (Calibration failure occurred with no scaling factors detected.)")
    return False


def _told(kit: Any, monitor: Any, layers: int) -> bool:
    """Tell a monitor of a build, two phases one inside the other; it may cancel."""
    if monitor is None:
        return True

    def tell(method: str, *arguments: Any) -> Any:
        return kit.version.call("IProgressMonitor", monitor, method, *arguments)

    tell("phase_start", "Building Engine", None, 2)
    tell("phase_start", "Computing profile costs", "Building Engine", layers)
    going = all(tell("step_complete", "Computing profile costs", step) for step in range(layers))
    tell("phase_finish", "Computing profile costs")
    going = going and tell("step_complete", "Building Engine", 0)
    tell("phase_finish", "Building Engine")
    if not going:
        kit.say("ERROR", "Error Code 10: Internal Error (the build was cancelled)")
    return going


def information(engine: Any, numbers: tuple[int, ...]) -> str:
    """Write what the inspector tells: a layer for each node but Q/DQ, and a reformat ahead of each pair."""
    words = {
        "int8": ("Thirty-two wide channel vectorized row major Int8 format.", "Int8 NC/32HW32"),
        "half": ("Channel major FP16 format where channel % 8 == 0", "Half NHWC8"),
        "float": ("Row major linear FP32", "Float"),
    }
    model = engine._model
    made_by = {name: node for node in model.graph.node for name in node.output}
    halves = {i.name for i in model.graph.value_info if i.type.tensor_type.elem_type == TensorProto.FLOAT16}

    def kind(name: str) -> str:
        node = made_by.get(name)
        if node is not None and node.op_type == "DequantizeLinear":
            return "int8"
        return "half" if engine._head["half"] or name in halves else "float"

    def tensor(name: str) -> dict[str, Any]:
        text = words[kind(name)][numbers[0] >= 10]
        return {"Name": name, "Location": "Device", "Dimensions": [1], "Format/Datatype": text}

    layers: list[Any] = []
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            ends = {"Inputs": [tensor(node.input[0])], "Outputs": [tensor(node.input[0])]}
            layers.append(
                {"Name": f"Reformatting CopyNode for {node.input[0]}", "LayerType": "Reformat", **ends}
            )
        elif node.op_type != "DequantizeLinear":
            layer = {
                "Name": node.name,
                "LayerType": "CaskConvolution" if node.op_type == "Conv" else "PointWiseV2",
                "ParameterType": {"Conv": "Convolution", "Gemm": "MatrixMultiply"}.get(
                    node.op_type, "PointWise"
                ),
                "Inputs": [tensor(node.input[0])],
                "Outputs": [tensor(name) for name in node.output],
                "Metadata": f"[ONNX Layer: {node.name}]",
            }
            if node.op_type == "Conv":
                layer["Weights"] = {"Type": kind(node.input[1]).capitalize(), "Count": 1}
            layers.append(layer)
    if not engine._head["detailed"]:
        layers = [layer["Name"] for layer in layers]
    return json.dumps({"Layers": layers, "Bindings": list(engine._tensors)})


def inputs_of(model: Any) -> list[Any]:
    constant = {item.name for item in model.graph.initializer}
    return [info for info in model.graph.input if info.name not in constant]


def shape_of(info: Any) -> list[int]:
    return [dim.dim_value or -1 for dim in info.type.tensor_type.shape.dim]


def view_of(shape: list[int], kind: str, address: int) -> np.ndarray:
    """What lies at an address, as an array."""
    number = next(key for key, name in TYPES.items() if name == kind)
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(number))
    block = (ctypes.c_char * (int(np.prod(shape)) * dtype.itemsize)).from_address(address)
    return np.frombuffer(block, dtype).reshape(shape)
