"""What came back from a device: result.json and raw outputs, every one checked before anything is computed.

A file that is cut, is another bundle's or holds what is no number says nothing about an engine, so it is
refused with what to do. It knows nothing of how results are judged. It may import errors, artifact and the
device program's plan.
"""

import json
from math import prod
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgetune.artifact import sha256_of
from edgetune.device.program.plan import Work
from edgetune.device.program.plan import load as load_plan
from edgetune.device.program.problem import Problem
from edgetune.device.program.work import RESULT_FILE, SCHEMA
from edgetune.errors import ArtifactError, ConfigError

AGAIN = "bring the folder results back once more: edgetune device pull, or copy it"
ANEW = "run the program on the device again: python3 edgetune.pyz; what is done and whole is not done again"

Count = Annotated[int, Field(ge=0)]
Ms = Annotated[float, Field(gt=0)]


class Part(BaseModel):
    """A part of result.json: numbers are finite; what this edgetune does not know is passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class LayerFacts(Part):
    """What the engine tells of a layer; `onnx`: the nodes that it computes."""

    name: str = ""
    kind: str = ""
    precision: str = ""
    bytes: Count | None = None
    onnx: tuple[str, ...] = ()


class Layers(Part):
    """How many layers run in which precision; not `detailed`: the engine did not tell."""

    layers: tuple[LayerFacts, ...] = ()
    counts: dict[str, Count] = {}
    reformats: Count = 0
    fallbacks: tuple[str, ...] = ()
    detailed: bool = False


class Built(Part):
    """How an engine was built.

    Attributes:
        device_memory: bytes that running takes beside weights, inputs and outputs.
        dla_layers: how many layers of the network a DLA runs; None: no DLA, or the tool tells no number.
        dla_subgraphs: how many parts a DLA runs, of many layers each; None: likewise.
        fallback_layers: how many of them the GPU runs beside the DLA; None: no DLA.
        fallback_names: which.
    """

    seconds: Annotated[float, Field(ge=0)]
    plan: str = ""
    plan_bytes: Count
    plan_sha256: str = ""
    device_memory: Count | None = None
    workspace_mb: Count | None = None
    optimization_level: int | None = None
    layers: Layers = Layers()
    dla_layers: Count | None = None
    dla_subgraphs: Count | None = None
    fallback_layers: Count | None = None
    fallback_names: tuple[str, ...] = ()
    messages: tuple[str, ...] = ()


class Outputs(Part):
    """Raw outputs: for the first `samples` of the bundle, a file per output."""

    samples: Count
    files: tuple[str, ...]


class LayerTime(Part):
    """Milliseconds of a layer; the median is None where an old trtexec tells none."""

    name: str
    average_ms: Annotated[float, Field(ge=0)]
    median_ms: Annotated[float, Field(ge=0)] | None = None


class Profiled(Part):
    """Layers in running order; `why` there are none."""

    count: Count = 0
    layers: tuple[LayerTime, ...] = ()
    why: str = ""


class Engine(Part):
    """An engine that was built, and what came out of it where that was looked at."""

    build: Built
    outputs: Outputs | None = None
    profile: Profiled = Profiled()


class Block(Part):
    """Consecutive queries of one engine in one round; times in seconds by the device's clock."""

    name: str
    round: Count
    start_s: float
    end_s: float
    ms: Annotated[tuple[Ms, ...], Field(min_length=1)]


class Warm(Part):
    """An engine's warm-up."""

    queries: Count = 0
    stable: bool = True


class Timed(Part):
    """Raw times.

    `beside`: seconds, mW by rail, °C by zone, by the clock of the blocks. `cuda_graph`: whether one launched an engine.
    """

    rounds: Annotated[int, Field(ge=1)]
    blocks: tuple[Block, ...]
    beside: tuple[tuple[float, dict[str, float], dict[str, float]], ...] = ()
    complete: dict[str, bool] = {}
    cuda_graph: dict[str, bool] = {}
    warmup: dict[str, Warm] = {}
    messages: tuple[str, ...] = ()


class Trouble(Part):
    """Why a step failed on the device."""

    message: str
    hint: str = ""
    code: int = 6


class Warned(Part):
    """What spoils a build or a measurement there."""

    code: str
    message: str
    remedy: str = ""


class Result(Part):
    """All of result.json that is judged."""

    schema_version: int
    bundle: str
    tool: str
    tensorrt: str
    found: dict[str, Any] = {}
    warnings: tuple[Warned, ...] = ()
    engines: dict[str, Engine] = {}
    timing: dict[str, Timed] = {}
    errors: dict[str, Trouble] = {}
    finished: bool = False


def load_work(bundle: Path) -> Work:
    """Read a bundle's plan of work and verify every file that it names.

    Raises:
        ConfigError: there is no bundle.
        ArtifactError: a file is missing, cut or not the one that was bundled.
    """
    try:
        return load_plan(bundle)
    except Problem as problem:
        kind = ConfigError if problem.code == ConfigError.exit_code else ArtifactError
        raise kind(
            problem.message,
            hint="name the folder that edgetune bundle wrote, or bundle again: edgetune bundle RUN",
        ) from problem


def load_result(work: Work) -> Result:
    """Read what came back for a bundle.

    Raises:
        ConfigError: nothing came back yet.
        ArtifactError: it is cut or damaged, of another schema version, or of another bundle.
    """
    path = work.results / RESULT_FILE
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no results yet",
            hint=f"run the bundle on the device, then bring its folder {work.results.name} back into "
            f"{work.folder}: edgetune device run, or python3 edgetune.pyz there",
        ) from None
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}", hint=AGAIN) from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: not JSON, or cut: {error}", hint=AGAIN) from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA:
        raise ArtifactError(
            f"{path}: schema_version {version!r}, where this edgetune reads {SCHEMA}",
            hint="bundle again and run that bundle: its program writes what this edgetune reads",
        )
    try:
        result = Result.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ArtifactError(
            f"{path}: {where}: {first['msg']} (got {first['input']!r:.80})", hint=ANEW
        ) from None
    if result.bundle != work.digest:
        raise ArtifactError(
            f"{path}: of another bundle ({result.bundle:.12}…, where this one is {work.digest:.12}…)",
            hint="bring back the results of this bundle, or verify the folder that was run",
        )
    _check(path, work, result)
    return result


def _check(path: Path, work: Work, result: Result) -> None:
    """Refuse engines that the bundle does not know, engines that were exchanged, and rounds with holes."""
    known = {job.name for job in work.builds}
    if strangers := sorted(set(result.engines) - known):
        raise ArtifactError(f"{path}: the bundle has no engine {', '.join(strangers)}", hint=ANEW)
    for name, engine in result.engines.items():
        plan = work.results / f"{name}.plan"
        if plan.is_file() and engine.build.plan_sha256 and sha256_of(plan) != engine.build.plan_sha256:
            raise ArtifactError(f"{plan}: not the engine that was measured (another SHA-256)", hint=AGAIN)
    for what, timed in result.timing.items():
        found = sorted((block.name, block.round) for block in timed.blocks)
        names = {block.name for block in timed.blocks}
        whole = sorted((name, index) for name in names for index in range(timed.rounds))
        if found != whole or not names or not names <= set(result.engines):
            raise ArtifactError(f"{path}: timing.{what}: not one block per engine and round", hint=ANEW)
        if any(not block.start_s < block.end_s for block in timed.blocks):
            raise ArtifactError(f"{path}: timing.{what}: a block ends before it begins", hint=ANEW)


def outputs_of(work: Work, name: str, engine: Engine) -> NDArray[np.float32]:
    """Return the first output of an engine, [N, K]: what came of the first N samples.

    Raises:
        ArtifactError: the file is missing, cut, changed since the device wrote it, or holds what is no number.
    """
    assert engine.outputs is not None
    count, digests = engine.outputs.samples, _digests(work, name, engine.outputs)
    if not 0 < count <= work.samples.number:
        raise ArtifactError(
            f"{work.results / RESULT_FILE}: {name}: {count} samples, where the bundle has {work.samples.number}",
            hint=ANEW,
        )
    path = work.results / f"{name}.output0.bin"
    if not path.is_file():
        raise ArtifactError(f"{path}: missing", hint=AGAIN)
    values = _values(path, count, _width(work), AGAIN)
    if sha256_of(path) != digests.get(path.name):
        raise ArtifactError(f"{path}: not what the device wrote (another SHA-256)", hint=AGAIN)
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if bad.size:
        way = (
            "FP16 ends at 65504: look for large values in the FP32 network"
            if name == "fp16"
            else "quantize again"
        )
        raise ArtifactError(
            f"{path}: the {name} engine gives NaN or infinity for {bad.size} of {count} samples, first {bad[0]}",
            hint=f"{way}; keep the layers where they begin in float: quantize.exclude",
        )
    return values


def expected_of(work: Work, name: str) -> NDArray[np.float32]:
    """Return what ONNX Runtime gave for every sample, [N, K]."""
    path = Path(work.samples.expected[name])
    return _values(path, work.samples.number, _width(work), "bundle again: edgetune bundle RUN")


def _width(work: Work) -> int:
    return prod(work.outputs[0].shape[1:])


def _values(path: Path, rows: int, width: int, hint: str) -> NDArray[np.float32]:
    size = path.stat().st_size
    if size != 4 * rows * width:
        raise ArtifactError(
            f"{path}: {size} bytes, where {rows} samples of {width} values take {4 * rows * width}", hint=hint
        )
    return np.fromfile(path, "<f4").reshape(rows, width).astype(np.float32, copy=False)


def _digests(work: Work, name: str, outputs: Outputs) -> dict[str, str]:
    """Return the digests that the device wrote down with the outputs.

    Raises:
        ArtifactError: they are missing, or belong to other outputs.
    """
    path = work.results / f"compare-{name}.json"
    try:
        step = json.loads(path.read_bytes())
        files = {str(file): str(digest) for file, digest in step["files"].items()}
        if step["value"]["samples"] == outputs.samples and set(outputs.files) <= set(files):
            return files
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path}: missing or damaged", hint=AGAIN) from error
    raise ArtifactError(f"{path}: belongs to other outputs than {RESULT_FILE} tells of", hint=AGAIN)
