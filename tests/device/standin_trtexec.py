"""Stands in for `trtexec` of TensorRT 8.2, 8.5, 10.3, 10.16 and 11.1: the same flags, words, files and exit codes.

`install(folder, version)` writes a `trtexec` that runs this file as that version. It executes networks by ONNX Runtime;
times are made up and the same in every run. Written from facts 3a to 3f of the project's notes and the samples of
TensorRT's open source. Options by environment:

    STANDIN_TRTEXEC_VERSION   8.5.2, ...
    STANDIN_TRTEXEC_CC        compute capability of the GPU; 8.7
    STANDIN_TRTEXEC_FAULT     words of FAULTS, separated by commas
"""

import os
import shlex
import signal
import struct
import sys
import time
from pathlib import Path

# Isolated, Python does not look beside the file that it runs.
sys.path.insert(0, str(Path(__file__).parent))
import standin_trtexec_report as report
from standin_trtexec_report import known_flags

VERSIONS = ("8.2.1", "8.5.2", "10.3.0", "10.16.2", "11.1.0")
FAULTS = ("killed", "exit137", "slow", "workspace", "memory", "disk", "cut", "noplan", "crash")
FAULTS += ("nofile", "cutfile", "nan", "dies")

_NO_OP_11 = (
    "--useCudaGraph",
    "--noDataTransfers",
    "--useSpinWait",
    "--separateProfileRun",
    "--stronglyTyped",
)
_STEPS = ("Building engine failed", "Failed to create engine from model or file.", "Engine set up failed")
_TAG = b"ftrt"
_HEADER = struct.Struct("<4sIIIQ4B")
_CACHE = b"TIMINGCACHE "


def install(folder: Path, version: str, **environment: str) -> str:
    """Write a program that runs this file as one version; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "trtexec"
    settings = {"STANDIN_TRTEXEC_VERSION": version, "OMP_NUM_THREADS": "1", **environment}
    lines = ["#!/bin/sh", *(f"export {name}={shlex.quote(value)}" for name, value in settings.items())]
    lines.append(
        f'exec {shlex.quote(sys.executable)} -I {shlex.quote(str(Path(__file__).resolve()))} "$0" "$@"'
    )
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o755)
    return str(path)


class Failed(Exception):
    """What it ends with 1 for, its errors in order."""


def _say(level: str, text: str) -> None:
    stream = sys.stdout if level in "IV" else sys.stderr
    for line in text.split("\n"):
        print(f"[11/21/2026-10:00:00] [{level}] {line}", file=stream, flush=True)


class Trtexec:
    """One run."""

    def __init__(self, name: str, arguments: list[str]) -> None:
        self.version = tuple(int(part) for part in os.environ["STANDIN_TRTEXEC_VERSION"].split("."))
        self.compute = os.environ.get("STANDIN_TRTEXEC_CC", "8.7")
        self.faults = set(filter(None, os.environ.get("STANDIN_TRTEXEC_FAULT", "").split(",")))
        assert self.faults <= {*FAULTS}, self.faults
        self.given = {argument.partition("=")[0]: argument.partition("=")[2] for argument in arguments}
        major, minor, patch = self.version
        packed = major * 10000 + minor * 100 + patch if major >= 10 else major * 1000 + minor * 100 + patch
        build = " [b36]" if self.version >= (10, 16) else ""
        self.test = f"TensorRT.trtexec [TensorRT v{packed}]{build} # {' '.join([name, *arguments])}"

    def main(self) -> int:
        print(f"&&&& RUNNING {self.test}", flush=True)
        if "dies" in self.faults:
            os.kill(os.getpid(), signal.SIGSEGV)
        if "--help" in self.given or not self.given:
            self._help()
            return 0
        if not self._options():
            if self.version < (11,):
                print(f"&&&& FAILED {self.test}", flush=True)
            return 1
        try:
            self._work()
        except Failed as failure:
            for error in failure.args:
                _say("E", error)
            print(f"&&&& FAILED {self.test}", flush=True)
            return 1
        print(f"&&&& PASSED {self.test}", flush=True)
        return 0

    def _help(self) -> None:
        print("\n".join(f"  {flag:28}Some words" for flag in sorted(known_flags(self.version))), flush=True)

    def _options(self) -> bool:
        unknown = [flag for flag in self.given if flag not in known_flags(self.version)]
        missing = "--onnx" not in self.given and "--loadEngine" not in self.given
        if unknown or missing:
            self._help()
            for flag in unknown:
                _say("E", f"Unknown option: {flag} {self.given[flag]}")
            if missing and not unknown:
                _say("E", "Model missing or format not recognized")
            return False
        if self.version < (10,) and not self.given.get("--memPoolSize", "0").split(":")[-1].isdigit():
            _say("E", "stod")
            return False
        if self.version >= (11,):
            for flag in _NO_OP_11:
                if flag in self.given:
                    _say("W", f"{flag} flag has been deprecated and has no effect.")
        elif self.version >= (10, 16) and {"--int8", "--fp16", "--best"} & {*self.given}:
            _say("W", "Weakly-typed networks have been deprecated in TensorRT.")
        if "--stronglyTyped" in self.given and self.version < (11,):
            for flag in {"--int8", "--fp16"} & {*self.given}:
                _say(
                    "W", f"Invalid usage, setting {flag[2:]} mode is not allowed if graph is strongly typed."
                )
        return True

    def _work(self) -> None:
        _say("I", "=== Model Options ===\nFormat: ONNX\nModel: " + self.given.get("--onnx", ""))
        _say("I", "=== Device Information ===\nSelected Device: Orin\nCompute Capability: " + self.compute)
        _say("I", "SMs: 8\nApplication Compute Clock Rate: 0.918 GHz\n")
        _say("I", "TensorRT version: " + ".".join(map(str, self.version)))
        if "slow" in self.faults:
            time.sleep(600)
        if "--onnx" in self.given:
            network = self._built()
            if {"--skipInference", "--buildOnly"} & {*self.given}:
                flag = "--skipInference" if "--skipInference" in self.given else "--buildOnly"
                _say("I", f"Skipped inference phase since {flag} is added.")
                return
        else:
            network = self._loaded()
        self._inferred(network)

    # Building.

    def _built(self) -> bytes:
        path = Path(self.given["--onnx"])
        steps = ("Failed to create engine from model or file.", "Engine set up failed")
        try:
            network = path.read_bytes()
            self.nodes = report.nodes_of(network)
            assert self.nodes
        except Exception:
            raise Failed(
                f"[TRT] ModelImporter.cpp:771: Failed to parse ONNX model from file: {path}!",
                "Failed to parse onnx file",
                "Parsing model failed",
                *steps,
            ) from None
        self._timing_cache()
        self._typed(steps)
        self._starved(steps)
        self._dla()
        network = self._calibrated(network)
        self._save(network)
        size = Path(self.given["--saveEngine"]).stat().st_size if "noplan" not in self.faults else 0
        if self.version >= (10,):
            _say("I", f"Created engine with size: {(self.size or size) / 2**20:g} MiB")
        _say("I", "Engine built in 0.25 sec.")
        if "--exportLayerInfo" in self.given:
            self._write("--exportLayerInfo", report.layers(self.nodes, self.version, {*self.given.items()}))
        return network

    def _typed(self, steps: tuple[str, ...]) -> None:
        quantized = any(node.op_type == "QuantizeLinear" for node in self.nodes)
        weak = self.version < (11,) and "--stronglyTyped" not in self.given
        if weak and quantized and "--int8" not in self.given and "--best" not in self.given:
            raise Failed(
                "[TRT] 4: [network.cpp::validate::2965] Error Code 4: Internal Error (Int8 precision has been set for "
                "a layer or layer output, but int8 is not configured in the builder)",
                "Engine could not be created from network",
                "Building engine failed",
                *steps,
            )
        if weak and "--int8" in self.given and "--fp16" not in self.given:
            _say(
                "I",
                "FP32 and INT8 precisions have been specified - more performance might be enabled by additionally "
                "specifying --fp16 or --best",
            )

    def _starved(self, steps: tuple[str, ...]) -> None:
        none = (
            "[TRT] 10: [optimizer.cpp::computeCosts::3728] Error Code 10: Internal Error (Could not find any "
            f"implementation for node {self.nodes[0].name}.)",
            "Engine could not be created from network",
            "Building engine failed",
            *steps,
        )
        said = {
            "workspace": "Some tactics do not have sufficient workspace memory to run. Increasing workspace size will "
            "enable more tactics, please check verbose output for requested sizes.",
            "memory": "Tactic Device request: 2168MB Available: 1536MB. Device memory is insufficient to use tactic.",
        }
        for fault in said.keys() & self.faults:
            _say("W", f"[TRT] {said[fault]}")
            raise Failed(*none)

    def _timing_cache(self) -> None:
        path = Path(self.given.get("--timingCacheFile", "/dev/null"))
        if "--timingCacheFile" not in self.given:
            return
        own = _CACHE + ".".join(map(str, self.version)).encode()
        Path(f"{path}.lock").touch()
        if not path.exists():
            _say(
                "W",
                f"Could not read timing cache from: {path}. A new timing cache will be generated and written.",
            )
        elif path.read_bytes().startswith(own):
            _say("I", f"Loaded {path.stat().st_size} bytes of timing cache from {path}")
            return
        else:
            raise Failed("[TRT] 4: Timing cache header mismatch", "Engine set up failed")
        path.write_bytes(own + b" tactics")
        _say("I", f"Saved {path.stat().st_size} bytes of timing cache to {path}")

    def _calibrated(self, network: bytes) -> bytes:
        """INT8 without Q/DQ: scales come from --calib; without the file trtexec makes ranges up, and says nothing."""
        path = Path(self.given.get("--calib", ""))
        quantized = any(node.op_type == "QuantizeLinear" for node in self.nodes)
        if "--int8" not in self.given or quantized or not path.is_file():
            return network
        # Here alone: the onnx package takes long to import.
        import standin_int8

        try:
            network, missing = standin_int8.built(network, path.read_bytes(), self.version)
        except ValueError as error:
            raise Failed(f"[TRT] {error}", "Engine could not be created from network", *_STEPS) from None
        for text in missing:
            _say("W", f"[TRT] {text}")
        self.nodes = report.nodes_of(network)
        return network

    def _dla(self) -> None:
        if "--useDLACore" not in self.given:
            return
        assert "--allowGPUFallback" in self.given
        for line in report.placed(self.nodes):
            _say("I", f"[TRT] {line}")

    def _save(self, network: bytes) -> None:
        self.size = 0
        if "noplan" in self.faults:
            return
        major, minor = map(int, self.compute.split("."))
        shapes = self._profile().encode()
        plan = (
            _HEADER.pack(_TAG, len(shapes), major, minor, len(network), *self.version, 9) + network + shapes
        )
        half = plan[: len(plan) // 2]
        path = Path(self.given["--saveEngine"])
        if self.faults & {"killed", "exit137", "crash", "disk", "cut"}:
            path.write_bytes(half)
        if "killed" in self.faults:
            os.kill(os.getpid(), signal.SIGKILL)
        if "exit137" in self.faults:
            # As a shell says that what it ran was killed.
            sys.exit(137)
        if "crash" in self.faults:
            os.kill(os.getpid(), signal.SIGSEGV)
        if "disk" in self.faults:
            raise Failed("Saving engine to file failed.", "Engine set up failed")
        if "cut" in self.faults:
            self.size = len(plan)
        else:
            path.write_bytes(plan)

    # Running.

    def _loaded(self) -> bytes:
        path = Path(self.given["--loadEngine"])
        try:
            plan = path.read_bytes()
        except OSError:
            raise Failed(f"Error opening engine file: {path}", "Engine set up failed") from None
        wrong = ("Engine deserialization failed", "Got invalid engine!", "Inference set up failed")
        if plan[:4] != _TAG:
            where = "IRuntime::deserializeCudaEngine: " if self.version >= (10,) else ""
            raise Failed(
                f"[TRT] {where}Error Code 1: Serialization (Serialization assertion plan->header.magicTag == "
                "rt::kPLAN_MAGIC_TAG failed.)",
                *wrong,
            )
        if len(plan) < _HEADER.size:
            raise Failed(*wrong)
        _, more, major, minor, length, *of = _HEADER.unpack_from(plan)
        if tuple(of[:3]) != self.version:
            raise Failed(report.other_version(self.version, of), *wrong)
        if f"{major}.{minor}" != self.compute:
            raise Failed(
                "[TRT] The engine plan file is generated on an incompatible device, expecting compute "
                f"{self.compute} got compute {major}.{minor}, please rebuild.",
                *wrong,
            )
        if len(plan) != _HEADER.size + length + more:
            raise Failed(*wrong)
        _say("I", "Engine deserialized in 0.01 sec.")
        self._shaped(plan[_HEADER.size + length :].decode())
        return plan[_HEADER.size : _HEADER.size + length]

    def _profile(self) -> str:
        """The one profile of a build: of one shape, as is all that is asked for here."""
        ends = {self.given.get(f"--{end}Shapes", "") for end in ("min", "opt", "max")}
        if len(ends) > 1:
            raise Failed("[TRT] 4: the profile's least and largest shapes differ", "Engine set up failed")
        return ends.pop()

    def _shaped(self, built_for: str) -> None:
        given = self.given.get("--shapes", "")
        if given and not built_for:
            raise Failed(
                "Static model does not take explicit shapes since the shape of inference tensors will be determined "
                "by the model itself",
                "Inference set up failed",
            )
        if sorted(given.split(",")) != sorted(built_for.split(",")):
            # Without any, open sizes become 1.
            raise Failed(
                f"[TRT] 3: {given or 'size 1'} does not satisfy the profile", "Inference set up failed"
            )

    def _inferred(self, network: bytes) -> None:
        self.nodes = report.nodes_of(network)
        _say("I", "Starting inference")
        values = self._executed(network) if "--exportOutput" in self.given else {}
        if "--exportTimes" in self.given or "--exportProfile" not in self.given:
            self._timed()
        if "--exportOutput" in self.given:
            self._write("--exportOutput", report.outputs(values))
        if "--exportProfile" in self.given:
            self._write(
                "--exportProfile", report.profile([node.name for node in self.nodes], self.version >= (8, 4))
            )
        if "--exportLayerInfo" in self.given:
            # As if it had been built like this.
            built = {("--profilingVerbosity", "detailed"), ("--fp16", "")}
            self._write("--exportLayerInfo", report.layers(self.nodes, self.version, built))

    def _executed(self, network: bytes) -> dict:
        # Here alone, since every other run starts in a tenth of the time without.
        import numpy as np
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(network, options, providers=["CPUExecutionProvider"])
        kinds = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(float16)": np.float16}
        kinds |= {"tensor(int32)": np.int32, "tensor(int64)": np.int64}
        asked = (pair.split(":") for pair in self.given.get("--shapes", "").split(",") if pair)
        shapes = {name: [int(size) for size in shape.split("x")] for name, shape in asked}
        paths = dict(self._pairs(self.given.get("--loadInputs", "")))
        feed = {}
        for entry in session.get_inputs():
            shape = shapes.get(entry.name, entry.shape)
            size = int(np.prod(shape)) * np.dtype(kinds[entry.type]).itemsize
            if entry.name not in paths:
                feed[entry.name] = np.random.default_rng(0).uniform(-1, 1, shape).astype(kinds[entry.type])
                continue
            raw = Path(paths.pop(entry.name)).read_bytes()
            if len(raw) != size:
                raise Failed(
                    f"Uncaught exception detected: Unexpected file size for input file: {entry.name}. Note: Input "
                    f"binding size is: {size} bytes but the file size is {len(raw)} bytes. Double check the size and "
                    "datatype of the provided data."
                )
            feed[entry.name] = np.frombuffer(raw, kinds[entry.type]).reshape(shape)
        if paths:
            raise Failed(
                *(
                    f'Cannot find input tensor with name "{name}" in the engine inputs! Please make sure the input '
                    "tensor names are correct."
                    for name in paths
                ),
                "Invalid tensor names found in --loadInputs flag.",
                "Inference set up failed",
            )
        names = [entry.name for entry in session.get_outputs()]
        values = dict(zip(names, session.run(names, feed), strict=True))
        if "nan" in self.faults:
            first = next(iter(values.values())).reshape(-1)
            first[0], first[1], first[2] = np.nan, np.inf, -np.inf
        return values

    def _pairs(self, text: str):
        for pair in filter(None, text.split(",")):
            if "'" in pair:
                before, name, path = pair.split("'")
                yield before + name, path[1:]
            else:
                yield tuple(pair.rsplit(":", 1))

    def _copies(self) -> bool:
        if self.version >= (11,):
            return "--includeDataTransfers" in self.given
        return "--noDataTransfers" not in self.given

    def _timed(self) -> None:
        warmup = self.given.get("--warmUp", "200")
        records = report.queries(
            max(int(self.given.get("--iterations", 10)), 1), float(warmup), self._copies()
        )
        for level, line in report.summary(records, self.version, warmup):
            _say(level, line)
        if "--exportTimes" in self.given:
            self._write("--exportTimes", report.times(records))

    def _write(self, flag: str, text: str) -> None:
        if "nofile" in self.faults:
            return
        raw = text.encode("utf-8", "surrogateescape")
        Path(self.given[flag]).write_bytes(raw[: len(raw) // 2] if "cutfile" in self.faults else raw)


if __name__ == "__main__":
    sys.exit(Trtexec(sys.argv[1], sys.argv[2:]).main())
