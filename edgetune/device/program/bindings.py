"""Builds engines through TensorRT's Python bindings, 8.5 to 11.

The version decides how precision is asked for: below 10.12 by the builder's flags, in a weakly typed network,
from 10.12 on by the types in the graph. Whether anything else exists is asked of the library, and no number of
an enum is written down, since versions renumber them. `trt` is the module `tensorrt`, which only `load` imports.
It knows nothing of bundles or of running engines. It may import cuda, engine, files, messages, plan, problem.
"""

from __future__ import annotations

import importlib
import re
import time
from pathlib import Path
from typing import Any, Callable

from . import cuda, dla, engine, files, messages
from .plan import STRONG, Build, refuse_typing
from .problem import OutOfMemory, Problem

Say = Callable[[str], None]
Progress = Callable[[str, int, int], None]

_MEMORY = re.compile(
    r"out ?of ?memory|insufficient memory|memory is insufficient|sufficient workspace|alloc", re.I
)


def load(say: Say | None = None) -> Any | None:
    """Import TensorRT, if there is a GPU that answers.

    Args:
        say: is told why not.

    Returns:
        The module, or None where it cannot be imported or must not be.
    """
    found, reason = cuda.ask()
    if found is not None:
        try:
            return importlib.import_module("tensorrt")
        except Exception as error:  # a broken installation raises anything
            reason = f"TensorRT's Python bindings do not import: {type(error).__name__}: {error}"
    if say is not None:
        say(reason)
    return None


def version_of(trt: Any) -> tuple[int, ...]:
    """Return TensorRT's version: (10, 3, 0)."""
    return engine.version_of(trt)


def build(
    trt: Any,
    job: Build,
    progress: Progress | None = None,
    say: Say | None = None,
    scales: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Build an engine and write it, whole or not at all.

    Args:
        trt: the module `tensorrt`.
        job: what to build.
        progress: is told the phase, the step done and how many there are, where the library tells.
        say: is told TensorRT's warnings and errors, and what could not be had.
        scales: of tensors, for INT8 on a DLA up to TensorRT 10.7, whose graph is without Q/DQ.

    Returns:
        `seconds`, `plan_bytes`, `tensorrt`, `strongly_typed`, `messages` (warnings), `layers` (the inspector's
        JSON, or None), `device_memory` (bytes that running takes beside weights, or None), `timing_cache`
        (`none`, `new`, `used` or `refused`), and for a DLA `dla_layers` and `fallback_layers` (how many) and
        `fallback_names`.

    Raises:
        Problem: the job does not fit this version or device, or the build failed; TensorRT's reasons are in it.
    """
    refuse(trt, job, scales)
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        if say is not None:
            say(text)

    began = time.monotonic()
    log = messages.logger(trt, say)
    builder = engine.created(log, "Builder", lambda: trt.Builder(log))
    _refuse_gpu(builder, job)
    strong = version_of(trt) >= STRONG
    network = engine.given(log, "a network", builder.create_network(_network_flags(trt, strong)))
    _parse(trt, log, network, job)
    config = engine.given(log, "a builder configuration", builder.create_builder_config())
    _configure(trt, config, job, strong, note)
    _add_profiles(log, builder, config, job)
    found: dict[str, Any] = {"timing_cache": "none"}
    # Both are held until the build is over: the configuration does not keep Python's objects alive.
    calibrator = dla.configure(trt, builder, network, config, job, scales, found)
    monitor = _monitor(trt, config, progress)
    if job.timing_cache:
        found["timing_cache"] = _use_cache(config, job, note)
    log.errors.clear()  # what was told up to here did no harm
    plan = _built(builder, network, config, log, monitor, job)
    files.write_bytes(job.plan, plan)
    if job.timing_cache:
        _keep_cache(config, job, note)
    del calibrator, monitor, network, config, builder  # memory that inspecting needs
    layers, device_memory = engine.inspect(trt, log, plan, note, job.dla_core)
    return {
        **found,
        "seconds": time.monotonic() - began,
        "plan_bytes": len(plan),
        "tensorrt": str(trt.__version__),
        "strongly_typed": strong,
        "layers": layers,
        "device_memory": device_memory,
        "messages": notes + log.warnings,
    }


def refuse(trt: Any, job: Build, scales: dict[str, float] | None = None) -> None:
    """Refuse a job that does not fit this version of TensorRT, before anything is created.

    Raises:
        Problem: it does not fit; the message says what does.
    """
    version, shown = version_of(trt), trt.__version__
    engine.refuse_version(trt)
    if job.precision not in ("int8", "fp16") or job.typing not in ("weak", "strong"):
        raise Problem(f"{job.name}: unknown precision {job.precision!r} or typing {job.typing!r}", code=3)
    if job.optimization_level is not None and not 0 <= job.optimization_level <= 5:
        raise Problem(f"{job.name}: optimization level {job.optimization_level} is not 0 to 5", code=3)
    dla.refuse(version, shown, job, scales)
    refuse_typing(job, version)


def _refuse_gpu(builder: Any, job: Build) -> None:
    """Where the library still tells: versions from 11 on run on no GPU without INT8."""
    if (
        job.precision == "int8"
        and job.dla_core is None
        and not getattr(builder, "platform_has_fast_int8", True)
    ):
        raise Problem(
            f"{job.name}: this GPU has no INT8 path, so an INT8 engine would be slower and no smaller",
            "build FP16 for it",
            3,
        )


def _network_flags(trt: Any, strong: bool) -> int:
    names = trt.NetworkDefinitionCreationFlag
    version = version_of(trt)
    if version < (10,):
        return 1 << int(names.EXPLICIT_BATCH)
    # From 11 on there is no other typing, and the flag is deprecated.
    return 1 << int(names.STRONGLY_TYPED) if strong and version < (11,) else 0


def _parse(trt: Any, log: Any, network: Any, job: Build) -> None:
    try:
        content = Path(job.onnx).read_bytes()
    except OSError as error:
        raise Problem(f"{job.onnx}: {error.strerror}", "push the bundle again", 5) from error
    parser = engine.created(log, "OnnxParser", lambda: trt.OnnxParser(network, log))
    # The path is where weights kept outside of the file are looked for.
    if not parser.parse(content, job.onnx):
        errors = [_described(parser.get_error(index)) for index in range(parser.num_errors)]
        raise Problem(
            f"{job.onnx}: TensorRT {trt.__version__} cannot parse it: {'; '.join(errors) or messages.reasons(log)}",
            "`edgetune quantize` warns of what a version does not take; export for this version",
            5,
        )
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    free = [tensor.name for tensor in inputs if any(size < 0 for size in tuple(tensor.shape))]
    if free and not job.lengths:
        raise Problem(
            f"{job.onnx}: input {free[0]!r} has no fixed shape", "export with a fixed batch size", 5
        )


def _add_profiles(log: Any, builder: Any, config: Any, job: Build) -> None:
    """Add an optimization profile for each length of texts, of that length alone: TensorRT tunes kernels for each.

    One engine then serves all lengths and holds the weights once.
    """
    for length in job.lengths:
        profile = engine.given(log, "an optimization profile", builder.create_optimization_profile())
        for name, shape in job.shapes(length).items():
            profile.set_shape(name, shape, shape, shape)
        if config.add_optimization_profile(profile) < 0:
            raise Problem(
                f"{job.name}: TensorRT takes no profile of {length} tokens: {messages.reasons(log)}", code=5
            )


def _described(error: Any) -> str:
    where = f"node {error.node()}"
    if hasattr(error, "node_name"):
        where += f" ({error.node_operator()} {error.node_name()!r})"
    return f"{where}: {error.desc()}" if error.node() >= 0 else str(error.desc())


def _configure(trt: Any, config: Any, job: Build, strong: bool, note: Say) -> None:
    size = job.workspace_mb << 20
    if hasattr(config, "set_memory_pool_limit"):
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, size)
    else:
        config.max_workspace_size = size
    # Else the inspector tells names alone.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if job.optimization_level is not None:
        if hasattr(config, "builder_optimization_level"):
            config.builder_optimization_level = job.optimization_level
        else:
            note(
                f"TensorRT {trt.__version__} has no optimization level: {job.optimization_level} is not applied"
            )
    if not strong:
        # INT8 alone would leave the layers between in FP32, which is slower than FP16 altogether.
        config.set_flag(trt.BuilderFlag.FP16)
        if job.precision == "int8":
            config.set_flag(trt.BuilderFlag.INT8)


def _monitor(trt: Any, config: Any, progress: Progress | None) -> Any:
    if progress is None or not hasattr(config, "progress_monitor"):
        return None
    tell = progress

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.interrupt: BaseException | None = None

        # Called from C++, on several threads: no exception may leave these, so a Ctrl-C cancels and is kept.
        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:  # noqa: ARG002
            self.steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                tell(phase_name, step + 1, self.steps.get(phase_name, 0))
            except BaseException as error:
                self.interrupt = self.interrupt or error
            return self.interrupt is None

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

    config.progress_monitor = monitor = Monitor()
    return monitor


def _built(builder: Any, network: Any, config: Any, log: Any, monitor: Any, job: Build) -> bytes:
    plan = builder.build_serialized_network(network, config)
    for listener in (log, monitor):
        messages.again(listener)
    if plan is None:
        reason = messages.reasons(log)
        kind = OutOfMemory if _MEMORY.search(reason) else Problem
        raise kind(f"{job.name}: TensorRT could not build {job.onnx}: {reason}", _advice(reason, job))
    return bytes(memoryview(plan))


def _advice(reason: str, job: Build) -> str:
    if _MEMORY.search(reason):
        return (
            f"memory: close the desktop and other programs, add swap, or lower the workspace ({job.workspace_mb} MiB) "
            "and the optimization level"
        )
    if "could not find any implementation" in reason.lower():
        return "this version has no kernel for that layer: keep the layer in float (exclude it) and quantize again"
    return ""


def _use_cache(config: Any, job: Build, note: Say) -> str:
    """Give the builder this device's timings; what the library refuses is as good as none."""
    old = Path(job.timing_cache).read_bytes() if Path(job.timing_cache).is_file() else b""
    cache = config.create_timing_cache(old)
    # False: of another GPU, another clock of it, or another version.
    if cache is not None and config.set_timing_cache(cache, False):
        return "used" if old else "new"
    note(f"{job.timing_cache}: this TensorRT or GPU does not take it; it is begun anew")
    cache = config.create_timing_cache(b"")
    if cache is not None:
        config.set_timing_cache(cache, False)
    return "refused"


def _keep_cache(config: Any, job: Build, note: Say) -> None:
    cache = config.get_timing_cache()
    content = cache.serialize() if cache is not None else None
    if content is None:
        return
    try:
        files.write_bytes(job.timing_cache, bytes(memoryview(content)))
    except Problem as problem:  # the engine is there: the next one takes longer, no more
        note(f"the timing cache was not kept: {problem.message}")
