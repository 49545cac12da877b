"""A stand-in for TensorRT's Python bindings of any recorded version, without TensorRT.

`load(path)` makes a module with the classes, methods, arguments, properties and enum members of that recording
and no others (standin_recorded). What they do here is what is documented of TensorRT: failures are None or False
and a message to the logger, never an exception; the first logger of a process gets all messages; a plan is
refused by another version, another compute capability, when cut, or with a foreign header; a weakly typed
network with Q/DQ needs the INT8 flag; progress is told to a monitor, which may cancel; a timing cache is taken
only by the version and GPU that made it; a calibration cache only with this version in its first line.
A graph without Q/DQ is rounded by a calibration cache's scales (standin_int8).
An engine is the ONNX file, run by ONNX Runtime as it stands on what lies at the addresses that it was given.

Messages in quotes in the fact sheet are given word for word; others have TensorRT's shape. Kernels, fusion and
their numbers are not those of TensorRT, and the inspector's text follows its two styles (8.x and later) only as
far as types go.
"""

import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from standin_build import TYPES, build, information, inputs_of, parse_errors, shape_of, view_of
from standin_cuda import Runtime as Cuda
from standin_recorded import Version, host_memory

SHARED = Path(__file__).resolve().parents[3] / "shared"
RECORDINGS = sorted((SHARED / "tensorrt-api").glob("*.json"))

_MAGIC, _HEADER = b"ptrt", 8
_LAYERS = {"Conv": "CONVOLUTION", "QuantizeLinear": "QUANTIZE", "DequantizeLinear": "DEQUANTIZE"}
_DLA = {"Conv", "Relu", "Add", "MaxPool", "AveragePool", "Concat", "Gemm", "Clip"}


@dataclass
class World:
    """The device, what is to go wrong there, and what was asked for.

    Attributes:
        faults: by the call's name, the message of the error with which it fails.
        asked: what the last build was asked for, as far as it can be seen from outside.
    """

    compute: str = "8.7"
    model: str = "Orin"
    dla_cores: int = 0
    fast_int8: bool = True
    faults: dict[str, str] = field(default_factory=dict)
    asked: dict[str, Any] = field(default_factory=dict)
    loggers: list[Any] = field(default_factory=list)


def load(path: Path, world: World | None = None, without: tuple[str, ...] = ()) -> Any:
    """Return a module that stands for a recorded version; `module.world` is its device.

    Args:
        path: of the recording.
        world: the device.
        without: attributes (`CLASS.NAME`) and classes that are left out of the recording.
    """
    api = json.loads(path.read_text())
    for name in without:
        owner, _, attribute = name.partition(".")
        if not attribute:
            del api["classes"][owner]
        elif attribute in api["classes"][owner]["methods"]:
            del api["classes"][owner]["methods"][attribute]
        else:
            api["classes"][owner]["properties"].remove(attribute)
    version = Version(api)
    world = world or World()
    kit = _Kit(version, world)
    for name, behaviour in _behaviours(kit).items():
        if name in api["classes"]:
            version.forge(name, behaviour)
    version.module.world = world  # type: ignore[attr-defined]
    return version.module


class _Kit:
    """What the objects of one module share."""

    def __init__(self, version: Version, world: World) -> None:
        self.version, self.world = version, world
        self.numbers = tuple(int(n) for n in version.text.split("."))

    def say(self, level: str, text: str) -> None:
        severity = getattr(self.version.module.ILogger.Severity, level)
        if self.world.loggers:
            self.version.call("ILogger", self.world.loggers[0], "log", severity, text)

    def fails(self, call: str) -> bool:
        if call in self.world.faults:
            self.say("ERROR", self.world.faults[call])
        return call in self.world.faults

    def header(self) -> dict[str, str]:
        return {"version": self.version.text, "compute": self.world.compute, "model": self.world.model}

    def member(self, enum: str, name: str) -> Any:
        return getattr(getattr(self.version.module, enum), name)

    def memory(self, content: bytes) -> Any:
        return host_memory(self.version)(content)

    def packed(self, content: dict[str, Any], body: bytes) -> bytes:
        head = json.dumps({**content, "size": len(body), "sum": zlib.crc32(body)}).encode()
        return _MAGIC + len(head).to_bytes(4, "little") + head + body

    def unpacked(self, plan: bytes) -> tuple[dict[str, Any], bytes] | None:
        """Return header and body of a plan that fits here, or say why not."""
        where = "IRuntime::deserializeCudaEngine: "
        if plan[:4] != _MAGIC:
            self.say(
                "ERROR",
                where
                + "Error Code 1: Serialization (Serialization assertion plan->header.magicTag == "
                + "rt::kPLAN_MAGIC_TAG failed.)",
            )
            return None
        size = int.from_bytes(plan[4:8], "little")
        try:
            head = json.loads(plan[_HEADER : _HEADER + size])
        except ValueError:
            head = None
        body = plan[_HEADER + size :]
        if head is None or len(body) != head["size"] or zlib.crc32(body) != head["sum"]:
            self.say(
                "ERROR",
                where + "Error Code 1: Serialization (Size specified in header does not match archive size)",
            )
            return None
        if head["version"] != self.version.text:
            old = (
                "Error Code 1: Serialization (Serialization assertion stdVersionRead == serializationVersion "
            )
            old += "failed.Version tag does not match. Note: Current Version: 213, Serialized Engine Version: 232)"
            new = f"{where}Error Code 6: API Usage Error (The engine plan file is not compatible with this version of "
            new += f"TensorRT, expecting library version {self.version.text}.30 got {head['version']}.23, "
            new += "please rebuild.)"
            self.say("ERROR", old if self.numbers[0] < 10 else new)
            return None
        if head["compute"] != self.world.compute:
            self.say(
                "ERROR",
                "The engine plan file is generated on an incompatible device, expecting compute "
                f"{self.world.compute} got compute {head['compute']}, please rebuild.",
            )
            return None
        if head["model"] != self.world.model:
            self.say(
                "WARNING",
                "Using an engine plan file across different models of devices is not recommended and is likely to "
                "affect performance or even cause errors.",
            )
        return head, body


def _behaviours(kit: _Kit) -> dict[str, type]:
    version, world = kit.version, kit.world

    class ILogger:
        def log(self, severity: Any, msg: str) -> None: ...

    class Builder:
        platform_has_fast_int8 = property(lambda self: world.fast_int8)
        platform_has_fast_fp16 = property(lambda self: True)
        num_DLA_cores = property(lambda self: world.dla_cores)

        def _init(self, logger: Any) -> None:
            world.loggers.append(logger)
            if kit.fails("Builder"):
                raise TypeError("pybind11::init(): factory function returned nullptr")

        def create_network(self, flags: int = 0) -> Any:
            return None if kit.fails("create_network") else version.make("INetworkDefinition", flags)

        def create_builder_config(self) -> Any:
            return version.make("IBuilderConfig")

        def create_optimization_profile(self) -> Any:
            return version.make("IOptimizationProfile")

        def build_serialized_network(self, network: Any, config: Any) -> Any:
            return build(kit, network, config)

    class INetworkDefinition:
        num_layers = property(lambda self: len(self._model.graph.node))
        num_inputs = property(lambda self: len(inputs_of(self._model)))
        num_outputs = property(lambda self: len(self._model.graph.output))

        def _init(self, flags: int) -> None:
            known = version.module.NetworkDefinitionCreationFlag
            self._flags = {
                name
                for name in version.api["enums"]["NetworkDefinitionCreationFlag"]
                if flags >> int(getattr(known, name)) & 1
            }
            self._strong = kit.numbers[0] >= 11 or "STRONGLY_TYPED" in self._flags
            self._model = onnx.ModelProto()

        def get_input(self, index: int) -> Any:
            return version.make("ITensor", inputs_of(self._model)[index])

        def get_layer(self, index: int) -> Any:
            return version.make("ILayer", self._model.graph.node[index])

    class ITensor:
        def _init(self, info: Any) -> None:
            self._name, self._shape = info.name, version.module.Dims(shape_of(info))

    class ILayer:
        def _init(self, node: Any) -> None:
            self._node, self._name = node, node.name
            self._type = kit.member("LayerType", _LAYERS.get(node.op_type, "ELEMENTWISE"))

    class Dims:
        def _init(self, shape: Any = ()) -> None:
            self._sizes = list(shape)

        def __iter__(self) -> Any:
            return iter(self._sizes)

        def __len__(self) -> int:
            return len(self._sizes)

        def __getitem__(self, index: int) -> int:
            return self._sizes[index]

    class OnnxParser:
        num_errors = property(lambda self: len(self._errors))

        def _init(self, network: Any, logger: Any) -> None:
            self._network, self._errors = network, []

        def parse(self, model: bytes, path: str | None = None) -> bool:
            self._errors = parse_errors(kit, self._network, bytes(model))
            return not self._errors

        def get_error(self, index: int) -> Any:
            return version.make("ParserError", self._errors[index])

    class ParserError:
        def _init(self, error: tuple[int, str, str, str]) -> None:
            self._error = error

        def node(self) -> int:
            return self._error[0]

        def node_operator(self) -> str:
            return self._error[1]

        def node_name(self) -> str:
            return self._error[2]

        def desc(self) -> str:
            return self._error[3]

    class IBuilderConfig:
        def _init(self) -> None:
            self._set: set[str] = set()
            self._pools: dict[str, int] = {}
            self._default_device_type = kit.member("DeviceType", "GPU")
            self._profiling_verbosity = kit.member("ProfilingVerbosity", "LAYER_NAMES_ONLY")
            self._cache = None

        def set_flag(self, flag: Any) -> None:
            self._set.add(flag.name)

        def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
            self._pools[pool.name] = pool_size

        def can_run_on_DLA(self, layer: Any) -> bool:
            pairs = kit.numbers >= (11,) and layer._node.op_type in ("QuantizeLinear", "DequantizeLinear")
            return self._default_device_type.name == "DLA" and (pairs or layer._node.op_type in _DLA)

        def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
            content = bytes(serialized_timing_cache)
            head = kit.header()
            if content:
                try:
                    head = json.loads(content)
                except ValueError:
                    kit.say("ERROR", "Error Code 1: Serialization (the timing cache is damaged)")
                    return None
            return version.make("ITimingCache", head)

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            if not ignore_mismatch and {k: cache._head[k] for k in kit.header()} != kit.header():
                kit.say("ERROR", "the timing cache is not compatible with this version or device")
                return False
            self._cache = cache
            return True

        def get_timing_cache(self) -> Any:
            return self._cache

        def add_optimization_profile(self, profile: Any) -> int:
            self.__dict__.setdefault("_profiles", []).append(profile._shapes)
            return len(self._profiles) - 1

    class IOptimizationProfile:
        def _init(self) -> None:
            self._shapes: dict[str, list[list[int]]] = {}

        def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
            self._shapes[input] = [list(min), list(opt), list(max)]

    class ITimingCache:
        def _init(self, head: dict[str, Any]) -> None:
            self._head = head

        def serialize(self) -> Any:
            return kit.memory(json.dumps({**self._head, "times": self._head.get("times", 0) + 1}).encode())

    class Runtime:
        def _init(self, logger: Any) -> None:
            world.loggers.append(logger)
            if kit.fails("Runtime"):
                raise TypeError("pybind11::init(): factory function returned nullptr")

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
            world.asked["runtime_core"] = self._DLA_core if "_DLA_core" in self.__dict__ else None
            if kit.fails("deserialize_cuda_engine"):
                return None
            found = kit.unpacked(bytes(serialized_engine))
            return version.make("ICudaEngine", *found) if found else None

    class ICudaEngine:
        num_io_tensors = property(lambda self: len(self._tensors))
        num_optimization_profiles = property(lambda self: max(len(self._head["profiles"]), 1))
        device_memory_size = property(lambda self: 1 << 20)
        device_memory_size_v2 = property(lambda self: 1 << 20)

        def _init(self, head: dict[str, Any], body: bytes) -> None:
            self._head, self._model = head, onnx.load_from_string(body)
            ins, outs = inputs_of(self._model), list(self._model.graph.output)
            self._tensors = {info.name: (info, "INPUT") for info in ins}
            self._tensors |= {info.name: (info, "OUTPUT") for info in outs}

        def get_tensor_name(self, index: int) -> str:
            return list(self._tensors)[index]

        def get_tensor_mode(self, name: str) -> Any:
            return kit.member("TensorIOMode", self._tensors[name][1])

        def get_tensor_dtype(self, name: str) -> Any:
            kind = TYPES[self._tensors[name][0].type.tensor_type.elem_type]
            # 8.x has no INT64 and narrows it.
            known = hasattr(version.module.DataType, kind)
            return kit.member("DataType", kind if known else "INT32")

        def get_tensor_shape(self, name: str) -> Any:
            return version.module.Dims(shape_of(self._tensors[name][0]))

        def get_tensor_profile_shape(self, name: str, profile_index: int) -> Any:
            return [version.module.Dims(shape) for shape in self._head["profiles"][profile_index][name]]

        def create_execution_context(self, **_: Any) -> Any:
            return None if kit.fails("create_execution_context") else version.make("IExecutionContext", self)

        def create_engine_inspector(self) -> Any:
            return version.make("EngineInspector", self)

    class IExecutionContext:
        def _init(self, engine: Any) -> None:
            self._owner, self._addresses, self._profile = engine, {}, 0
            self._init_shapes()
            options = ort.SessionOptions()
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.intra_op_num_threads = 1
            body = engine._model.SerializeToString()
            self._session = ort.InferenceSession(body, options, providers=["CPUExecutionProvider"])

        def set_tensor_address(self, name: str, memory: int) -> bool:
            if name not in self._owner._tensors:
                kit.say("ERROR", f"IExecutionContext::setTensorAddress: given invalid tensor name: {name}")
                return False
            self._addresses[name] = memory
            return True

        def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
            if profile_index >= self._owner.num_optimization_profiles:
                kit.say("ERROR", "IExecutionContext::setOptimizationProfileAsync: no such profile")
                return False
            # Shapes are to be set anew for each.
            self._init_shapes()
            self._profile = profile_index
            return True

        def _init_shapes(self) -> None:
            tensors = self._owner._tensors
            self._shapes = {name: shape_of(info) for name, (info, _) in tensors.items()}

        def set_input_shape(self, name: str, shape: Any) -> bool:
            least, _, most = self._owner._head["profiles"][self._profile][name]
            if not all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True)):
                kit.say("ERROR", f"IExecutionContext::setInputShape: {name} does not satisfy the profile")
                return False
            self._shapes[name] = list(shape)
            return True

        def get_tensor_shape(self, name: str) -> Any:
            return version.module.Dims(self._shapes[name])

        def execute_async_v3(self, stream_handle: int) -> bool:
            missing = [name for name in self._owner._tensors if name not in self._addresses]
            if any(min(shape) < 0 for shape in self._shapes.values()):
                kit.say("ERROR", "IExecutionContext::enqueueV3: not all shapes are specified")
                return False
            if missing:
                kit.say("ERROR", f"IExecutionContext::enqueueV3: Address is not set for tensor {missing[0]}")
            if missing or kit.fails("execute_async_v3"):
                return False
            Cuda.enqueue(stream_handle, self._run)
            return True

        def _run(self) -> None:
            tensors = self._owner._tensors
            kinds = {name: self._owner.get_tensor_dtype(name).name for name in tensors}
            views = {n: view_of(self._shapes[n], kinds[n], self._addresses[n]) for n in tensors}
            feed = {name: view for name, view in views.items() if tensors[name][1] == "INPUT"}
            names = [name for name in tensors if name not in feed]
            for name, value in zip(names, self._session.run(names, feed), strict=True):
                views[name][...] = value
            listener = getattr(self, "_profiler", None)
            if listener is not None:
                for place, layer in enumerate(json.loads(information(self._owner, kit.numbers))["Layers"], 1):
                    listener.report_layer_time(
                        layer if isinstance(layer, str) else layer["Name"], 0.01 * place
                    )

    class EngineInspector:
        def _init(self, engine: Any) -> None:
            self._owner = engine

        def get_engine_information(self, format: Any) -> str:
            assert format.name == "JSON"
            return information(self._owner, kit.numbers)

    return {name: value for name, value in locals().items() if isinstance(value, type)}
