"""The two tools that build and run engines, behind one set of four words: TensorRT's bindings, and trtexec.

It knows what each needs and gives, and nothing of the order of the work. It may import the rest of the program
but main.
"""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
import time
from array import array
from contextlib import ExitStack
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator

from . import bindings, layers, sidecar, timing, trtexec
from .children import end_with_parent
from .engine import Engine
from .files import read_json, sha256_of, write_json
from .inputs import first, length_of, split
from .lengths import apart, plan_at
from .plan import Build, Tensor, Work
from .problem import OutOfMemory, Problem
from .trtexec_failures import smaller
from .work import Say, Tool

# Engines are loaded anew in every round, which takes seconds.
TRTEXEC_ROUNDS = 4
# Layers are timed to be told apart, which takes far less than to judge the whole.
PROFILED_RUNS, PROFILED_S = 50, 3.0
KILLED = (-9, 137)
Aside = Callable[[Build], int]


class Bindings(Tool):
    """TensorRT's Python bindings, with CUDA's memory by ctypes."""

    name = "TensorRT's Python bindings"

    def __init__(self, trt: Any, cuda: Callable[[], Any], say: Say, aside: Aside | None = None) -> None:
        """Take the module `tensorrt`, what opens CUDA's runtime, and what builds in a process of its own.

        A build that is killed for memory would take this process with it, and all that it was to do.
        """
        self.version = bindings.version_of(trt)
        self._trt, self._open, self._say = trt, cuda, say
        self._aside = aside

    @cached_property
    def _cuda(self) -> Any:
        # Not before it is needed: its context takes memory that a build could use.
        return self._open()

    def build(self, job: Build, found: dict[str, Any], work: Work) -> dict[str, Any]:
        """Build, aside where possible, with smaller settings where memory does not suffice."""
        built = _with_less(job, partial(self._built, work), self.version, self._say)
        return _kept(*built, found, work, self.version)

    def _built(self, work: Work, job: Build) -> dict[str, Any]:
        if self._aside is None:
            return bindings.build(self._trt, job, say=self._say, scales=_scales(job))
        path = built_file(work, job)
        path.unlink(missing_ok=True)
        code = self._aside(job)
        if code in KILLED:
            raise OutOfMemory(
                f"{job.name}: the build was killed, as the system does when memory runs out", _ADVICE
            )
        told = read_json(str(path)) if path.is_file() else {}
        path.unlink(missing_ok=True)
        if "problem" in told:
            raise (OutOfMemory if told["memory"] else Problem)(*told["problem"])
        if code or "value" not in told:
            raise Problem(
                f"{job.name}: the process that built it ended with {code}", "see what it printed above"
            )
        return dict(told["value"])

    def outputs(self, job: Build, work: Work, inputs: Iterable[bytes]) -> Iterator[dict[str, bytes]]:
        """Run one input after another."""
        plan = _ready(job, self.version, self._cuda.compute_capability)
        with Engine(self._trt, self._cuda, plan, self._say, job.dla_core) as engine:
            for one in inputs:
                engine.choose(length_of(work, one))
                found = engine.run(_named(engine.inputs, job, work, one))
                yield {spec.name: as_float32(found[spec.name], spec.dtype) for spec in engine.outputs}

    def times(self, jobs: list[Build], work: Work, copies: bool, length: int = 0) -> dict[str, Any]:
        """Time in rounds of a few queries each, all engines loaded."""
        settings = work.timing
        one = first(work, length)
        with ExitStack() as stack:
            queries, graphs = {}, {}
            for job in jobs:
                plan = _ready(job, self.version, self._cuda.compute_capability)
                engine = stack.enter_context(Engine(self._trt, self._cuda, plan, self._say, job.dla_core))
                engine.choose(length)
                engine.run(_named(engine.inputs, job, work, one))
                queries[job.name], graphs[job.name] = _query(engine, copies, job.dla_core is None)
            timed = timing.interleave(
                queries, settings["warmup_s"], settings["seconds"], int(settings["queries"]),
                int(settings["rounds"]), settings["limit_s"], told=_rounds_told(self._say),
            )  # fmt: skip
            return {**timed, "cuda_graph": graphs}

    def profile(self, job: Build, work: Work) -> dict[str, Any]:
        """Time every layer, by TensorRT's profiler."""
        plan = _ready(job, self.version, self._cuda.compute_capability)
        with Engine(self._trt, self._cuda, plan, self._say, job.dla_core) as engine:
            engine.run(_named(engine.inputs, job, work, first(work, max(work.lengths, default=0))))
            return {"count": PROFILED_RUNS, "layers": engine.profile(PROFILED_RUNS)}


class Trtexec(Tool):
    """TensorRT's own program, where the bindings cannot be had."""

    name = "trtexec"

    def __init__(self, path: str, say: Say, most_samples: int) -> None:
        """Take the program's path, and how many samples are worth a process each."""
        self.version = trtexec.version_of(path)
        self.most_samples = most_samples
        self._path, self._say = path, say

    def build(self, job: Build, found: dict[str, Any], work: Work) -> dict[str, Any]:
        """Build, with smaller settings where memory does not suffice; of several lengths, an engine each."""
        made = []
        for one in apart(job):
            built = _with_less(
                one,
                lambda job: trtexec.build(self._path, job, self.version, _scales(job)),
                self.version,
                self._say,
            )
            made.append(_kept(*built, found, work, self.version))
        together = {name: sum(each[name] for each in made) for name in ("seconds", "plan_bytes")}
        return {**made[-1], **together, "files": [file for each in made for file in each["files"]]}

    def outputs(self, job: Build, work: Work, inputs: Iterable[bytes]) -> Iterator[dict[str, bytes]]:
        """Run one input after another, each in a process of its own."""
        folder = _scratch(work)
        for one in inputs:
            length, given = length_of(work, one), {}
            plan = _ready(job, self.version, length=length)
            for index, (name, content) in enumerate(split(work, one).items()):
                raw = Path(folder) / f"input{index or ''}.bin"
                raw.write_bytes(content)
                given[name] = raw.name
            found = trtexec.outputs(
                self._path, plan, self.version, given, folder, job.dla_core, shapes=job.shapes(length)
            )
            yield {name: array("f", values).tobytes() for name, values in found.items()}

    def times(self, jobs: list[Build], work: Work, copies: bool, length: int = 0) -> dict[str, Any]:
        """Time in a few rounds of runs, each loading the engine anew."""
        settings, key = work.timing, "latency_ms" if copies else "compute_ms"
        rounds = max(1, min(TRTEXEC_ROUNDS, int(settings["rounds"])))
        order = random.Random(0)
        blocks, messages = [], []
        folder = _scratch(work)
        for index in range(rounds):
            self._say(f"timing: round {index + 1} of {rounds}")
            for job in order.sample(jobs, len(jobs)):
                begun = time.monotonic()
                taken = trtexec.times(
                    self._path, _ready(job, self.version, length=length), self.version,
                    settings["seconds"] / rounds, 1000 * settings["warmup_s"], copies, folder,
                    -(-int(settings["queries"]) // rounds), job.dla_core, shapes=job.shapes(length),
                )  # fmt: skip
                # Loading and warming up are in it as well.
                block = {"name": job.name, "round": index, "start_s": begun, "end_s": time.monotonic()}
                blocks.append({**block, "ms": taken[key]})
                messages += taken["messages"]
        graphs = {job.name: job.dla_core is None for job in jobs}
        return {"rounds": rounds, "blocks": blocks, "messages": sorted(set(messages)), "cuda_graph": graphs}

    def profile(self, job: Build, work: Work) -> dict[str, Any]:
        """Time every layer, in a run of its own."""
        shapes = job.shapes(max(work.lengths, default=0))
        return trtexec.profile(
            self._path, _ready(job, self.version), self.version, PROFILED_S, _scratch(work), job.dla_core,
            shapes=shapes,
        )  # fmt: skip


_ADVICE = "close the desktop and other programs, or add swap; then run again"


def _scratch(work: Work) -> str:
    work.scratch.mkdir(exist_ok=True)
    return str(work.scratch)


def _scales(job: Build) -> dict[str, float] | None:
    """Return the scales that the bundle has beside a graph."""
    return dict(read_json(job.scales)) if job.scales else None


def _query(engine: Engine, copies: bool, graph: bool) -> tuple[Callable[[], float], bool]:
    """Return what times one inference, and whether it is launched as a CUDA graph, as trtexec does.

    Work of a DLA cannot be recorded.
    """
    if not graph:
        return engine.query(copies), False
    try:
        return engine.query(copies, graph=True), True
    except Problem:
        return engine.query(copies), False


def built_file(work: Work, job: Build) -> Path:
    """Return where a build in a process of its own leaves what it has to tell."""
    return work.results / f".built-{job.name}.json"


def build_aside(program: str, work: Work) -> Aside:
    """Return what builds an engine in another process of this program, and gives its exit code."""

    def run(job: Build) -> int:
        level = "" if job.optimization_level is None else str(job.optimization_level)
        words = ["build-one", str(work.folder), job.name, str(job.workspace_mb), level]
        return subprocess.call([sys.executable, program, *words], preexec_fn=end_with_parent)

    return run


def build_one(trt: Any, work: Work, name: str, workspace: str, level: str, say: Say) -> None:
    """Build one engine and leave what there is to tell in a file."""
    job = next(job for job in work.builds if job.name == name)
    job = job._replace(workspace_mb=int(workspace), optimization_level=int(level) if level else None)
    try:
        told: dict[str, Any] = {"value": bindings.build(trt, job, _builder_told(say), say, _scales(job))}
    except Problem as problem:
        memory = isinstance(problem, OutOfMemory)
        told = {"problem": [problem.message, problem.hint, problem.code], "memory": memory}
    write_json(str(built_file(work, job)), told)


def as_float32(content: bytes, dtype: str) -> bytes:
    """Return float values as float32; half precision is widened, which changes no value.

    Raises:
        Problem: they are no floats.
    """
    if dtype == "float32":
        return content
    if dtype == "float16":
        return array("f", struct.unpack(f"={len(content) // 2}e", content)).tobytes()
    raise Problem(
        f"an output has the type {dtype}, where logits are floats", "export the network without it", 5
    )


def _full_version(found: dict[str, Any], version: tuple[int, ...]) -> str:
    """Return TensorRT's version with the package's build number, where that is the TensorRT in use."""
    used, installed = ".".join(map(str, version)), str((found.get("tensorrt") or {}).get("version") or "")
    return installed if installed and sidecar.same_version(used, installed) else used


def _kept(
    job: Build, value: dict[str, Any], found: dict[str, Any], work: Work, version: tuple[int, ...]
) -> dict[str, Any]:
    """Write the engine's facts beside it, and its layers; return what the result is to tell."""
    module, gpu = found.get("module") or {}, found.get("gpu") or {}
    facts = {
        "tensorrt": _full_version(found, version),
        "cuda": found.get("cuda"),
        "l4t": found.get("l4t"),
        "gpu": module.get("model"),
        "compute_capability": gpu.get("compute_capability") or module.get("compute_capability"),
        "sms": gpu.get("sms"),
        "power_mode": (found.get("power_mode") or {}).get("name"),
        "onnx_sha256": sha256_of(job.onnx),
        "precision": job.precision,
        "typing": job.typing,
        "dla_core": job.dla_core,
        "parents": {"bundle": work.digest},
        # Of one length of texts alone, as trtexec is to be told again.
        **({"shapes": job.shapes(job.lengths[0])} if len(job.lengths) == 1 else {}),
    }
    sidecar.write(job.plan, facts)
    raw = value.pop("layers", None)
    if isinstance(raw, str):
        # Names of layers may hold control characters.
        raw = json.loads(raw, strict=False)
    listed = f"{Path(job.plan).name}.layers.json"
    write_json(str(work.results / listed), raw)
    return {
        **value,
        "plan": Path(job.plan).name,
        "plan_sha256": sha256_of(job.plan),
        "workspace_mb": job.workspace_mb,
        "optimization_level": job.optimization_level,
        "layers": layers.summary(raw, work.int8_nodes if job.precision == "int8" else ()),
        "files": [Path(job.plan).name, Path(sidecar.path_of(job.plan)).name, listed],
    }


def _ready(job: Build, version: tuple[int, ...], capability: str | None = None, length: int = 0) -> str:
    """Return the path of an engine that this TensorRT can load on this GPU, where that is known.

    With a length, of the engine that is built for it alone.

    Raises:
        Problem: it was built by or on another; both are named.
    """
    plan = plan_at(job, length)
    facts = sidecar.read(plan)
    if facts:
        sidecar.preflight(facts, {"tensorrt": ".".join(map(str, version)), "compute_capability": capability})
    return plan


def _named(inputs: list[Tensor], job: Build, work: Work, one: bytes) -> dict[str, bytes]:
    """Give the engine's inputs their parts of a sample."""
    own = 1 + len(work.more_inputs)
    if len(inputs) != own:
        count = "one" if own == 1 else own
        raise Problem(f"{job.name}: the engine takes {len(inputs)} inputs, and samples have {count}", code=5)
    return {inputs[0].name: one} if own == 1 else split(work, one)


def _with_less(
    job: Build, build: Callable[[Build], dict[str, Any]], version: tuple[int, ...], say: Say
) -> tuple[Build, dict[str, Any]]:
    """Build, with less of everything each time that memory does not suffice, until nothing can be spared."""
    try:
        return job, build(job)
    except OutOfMemory as problem:
        less = smaller(job, version)
        if less is None:
            raise
        level = "" if less.optimization_level is None else f", optimization level {less.optimization_level}"
        say(f"{problem.message}; trying again with {less.workspace_mb} MiB of workspace{level}")
    return _with_less(less, build, version, say)


def _rounds_told(say: Say) -> timing.Told:
    def told(what: str, done: int, total: int) -> None:
        if what != "timing" or done % 10 == 0:
            say(what if what != "timing" else f"timing: {done} of {total} rounds")

    return told


def _builder_told(say: Say) -> bindings.Progress:
    shown: dict[str, int] = {}

    def told(phase: str, step: int, total: int) -> None:
        tenth = 10 * step // max(total, 1)
        if total >= 10 and shown.get(phase) != tenth:
            shown[phase] = tenth
            say(f"{phase}: {step} of {total}")

    return told
