"""Command lines of `trtexec`, TensorRT's own program, from 8.2 to 11: flags come, go and turn about between versions.

It starts nothing, reads no file and does not know what a device has; a version is what `trtexec.version_of` read.
Flags: samples/common/sampleOptions.cpp of TensorRT's open source, 8.2 to 11.1 (11.4's are not public yet and are
taken to be 11.1's). It imports the plan of work and the error, besides the standard library.
"""

from __future__ import annotations

import math
import shlex
from typing import Mapping, Tuple

from .plan import Build, refuse_typing
from .problem import Problem

# Of inputs that the engine leaves open, by name.
Shapes = Mapping[str, Tuple[int, ...]]


def dotted(version: tuple[int, ...]) -> str:
    """Write a version as people do: `10.3.0`."""
    return ".".join(str(part) for part in version)


def shown(command: list[str]) -> str:
    """Write a command so that it can be pasted into a shell, whatever its paths hold."""
    return " ".join(shlex.quote(word) for word in command)


def check(job: Build, version: tuple[int, ...]) -> None:
    """Refuse an engine that this version cannot build from this file.

    Raises:
        Problem: with what to do instead; nothing was started.
    """
    here = f"TensorRT {dotted(version)}"
    if version < (8, 2):
        raise Problem(f"{here} is older than 8.2", "update the device's JetPack to 4.6.1 or later", 3)
    if job.precision not in ("int8", "fp16", "fp32") or job.typing not in ("weak", "strong"):
        raise Problem(
            f"{job.name}: precision {job.precision!r}, typing {job.typing!r}",
            "precisions: int8, fp16, fp32; typings: weak, strong",
            3,
        )
    if job.workspace_mb < 1 or (
        job.optimization_level is not None and job.optimization_level not in range(6)
    ):
        raise Problem(
            f"{job.name}: workspace {job.workspace_mb} MiB, optimization level {job.optimization_level}",
            "the workspace is 1 MiB or more, the level 0 to 5",
            3,
        )
    if job.precision == "int8" and version < (8, 5):
        raise Problem(
            f"{job.name}: INT8 by {here} is out of reach",
            "build FP16 here; INT8 needs a module that JetPack 5 supports",
            3,
        )
    if job.dla_core is not None and (10, 8) <= version < (11, 4):
        raise Problem(
            f"{job.name}: {here} does not support the DLA",
            "build for the GPU; the DLA is supported up to 10.7, and again from 11.4 on an AGX Orin",
            3,
        )
    refuse_typing(job, version)


def needs_calibration(job: Build, version: tuple[int, ...]) -> bool:
    """Say whether scales must come from a calibration cache: INT8 on a DLA, which knows no Q/DQ up to 10.7."""
    return job.precision == "int8" and job.dla_core is not None and version < (10, 8)


def build_command(
    path: str, job: Build, version: tuple[int, ...], layers: str = "", calibration: str = ""
) -> list[str]:
    """Give the command that builds an engine and times nothing.

    Args:
        path: of `trtexec`.
        job: the engine.
        version: of `trtexec`.
        layers: file for the engine's layers; empty: none. Ignored before 8.4, which cannot tell their precision.
        calibration: calibration cache with the scales of a graph without Q/DQ; empty: none.

    Raises:
        Problem: this version cannot build it.
    """
    check(job, version)
    command = [path, f"--onnx={job.onnx}", f"--saveEngine={job.plan}", *_types(job, version)]
    if calibration:
        command.append(f"--calib={calibration}")
    if version < (8, 4):
        command += ["--explicitBatch", f"--workspace={job.workspace_mb}"]
    else:
        # Without a suffix every version reads MiB; 8.x reads no suffix.
        command += [f"--memPoolSize=workspace:{job.workspace_mb}", "--profilingVerbosity=detailed"]
    if job.optimization_level is not None and version >= (8, 6):
        command.append(f"--builderOptimizationLevel={job.optimization_level}")
    if job.lengths:
        # One profile, of one shape.
        given = _shapes(job.shapes(job.lengths[-1]))
        command += [f"--{end}Shapes={given}" for end in ("min", "opt", "max")]
    if job.timing_cache:
        command.append(f"--timingCacheFile={job.timing_cache}")
    if job.dla_core is not None:
        command += [f"--useDLACore={job.dla_core}", "--allowGPUFallback"]
    command.append("--skipInference" if version >= (8, 6) else "--buildOnly")
    if layers and version >= (8, 4):
        command.append(f"--exportLayerInfo={layers}")
    return command


def _types(job: Build, version: tuple[int, ...]) -> list[str]:
    if job.typing == "strong":
        return ["--stronglyTyped"] if version < (11,) else []
    # INT8 alone would leave the layers without Q/DQ in FP32.
    return {"int8": ["--int8", "--fp16"], "fp16": ["--fp16"], "fp32": []}[job.precision]


def time_command(
    path: str,
    plan: str,
    version: tuple[int, ...],
    seconds: float,
    warmup_ms: float,
    copies: bool,
    out: str,
    queries: int = 10,
    dla_core: int | None = None,
    shapes: Shapes | None = None,
) -> list[str]:
    """Give the command that times an engine: CUDA graph and spinning wait on every version, copies if wanted.

    Args:
        path: of `trtexec`.
        plan: the engine.
        version: of `trtexec`.
        seconds: to measure for at least.
        warmup_ms: to run before that, in ms.
        copies: whether inputs are copied to the GPU and outputs back; else the computation alone.
        out: JSON file for the times of every query.
        queries: to measure at least.
        dla_core: of an engine that was built for a DLA, which runs without a CUDA graph.
        shapes: of the inputs, where the network leaves them open.
    """
    command = [path, f"--loadEngine={plan}", f"--warmUp={math.ceil(warmup_ms)}"]
    command += [f"--duration={math.ceil(seconds)}", f"--iterations={queries}"]
    command += [*_dla(dla_core), *_given(shapes)]
    if version >= (11,):
        # What had to be asked for is now the rule, and asking for it is warned of.
        command += ["--includeDataTransfers"] if copies else []
    else:
        command += ["--useCudaGraph"] if dla_core is None else []
        command += ["--useSpinWait"]
        command += [] if copies else ["--noDataTransfers"]
    return [*command, f"--exportTimes={out}"]


def output_command(
    path: str,
    plan: str,
    version: tuple[int, ...],
    inputs: Mapping[str, str],
    out: str,
    dla_core: int | None = None,
    shapes: Shapes | None = None,
) -> list[str]:
    """Give the command that runs an engine once on given inputs and writes its outputs.

    Args:
        path: of `trtexec`.
        plan: the engine.
        version: of `trtexec`.
        inputs: a file with the raw values of each input, by the input's name.
        out: JSON file for the outputs.
        dla_core: of an engine that was built for a DLA.
        shapes: of the inputs, where the network leaves them open.

    Raises:
        Problem: a name or path holds a character that `trtexec` splits its list at.
    """
    pairs = []
    for name, file in inputs.items():
        # 8.2 and 8.3 know no quotes and split at the last colon.
        quote, bad = ("'", ",'") if version >= (8, 4) else ("", ",'")
        if any(character in name + file for character in bad) or (not quote and ":" in file):
            raise Problem(
                f"input {name!r} in {file!r}: trtexec's list of inputs cannot carry a comma, a quote or a colon there",
                "rename the input in the network, or work in a folder with a plain name",
                3,
            )
        pairs.append(f"{quote}{name}{quote}:{file}")
    command = [path, f"--loadEngine={plan}", f"--loadInputs={','.join(pairs)}"]
    command += ["--warmUp=0", "--duration=0", "--iterations=1", *_dla(dla_core), *_given(shapes)]
    if version >= (11,):
        command.append("--includeDataTransfers")
    return [*command, f"--exportOutput={out}"]


def profile_command(
    path: str,
    plan: str,
    version: tuple[int, ...],
    seconds: float,
    out: str,
    dla_core: int | None = None,
    shapes: Shapes | None = None,
    layers: str = "",
) -> list[str]:
    """Give the command that times every layer of an engine, in a run of its own.

    Args:
        path: of `trtexec`.
        plan: the engine.
        version: of `trtexec`.
        seconds: to measure for at least.
        out: JSON file for the times by layer.
        dla_core: of an engine that was built for a DLA.
        shapes: of the inputs, where the network leaves them open.
        layers: file for what the engine tells of its layers; empty: none. Ignored before 8.4.
    """
    command = [
        path,
        f"--loadEngine={plan}",
        f"--duration={math.ceil(seconds)}",
        *_dla(dla_core),
        *_given(shapes),
    ]
    if version < (11,):
        command += ["--useSpinWait", "--noDataTransfers", "--separateProfileRun"]
    if layers and version >= (8, 4):
        command.append(f"--exportLayerInfo={layers}")
    return [*command, f"--exportProfile={out}"]


def _dla(core: int | None) -> list[str]:
    return [] if core is None else [f"--useDLACore={core}"]


def _given(shapes: Shapes | None) -> list[str]:
    return [f"--shapes={_shapes(shapes)}"] if shapes else []


def _shapes(shapes: Shapes) -> str:
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())
