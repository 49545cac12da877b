"""What is to be done on a device: the plan of work that a bundle carries, `work.json`. Standard library only."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from .files import read_json, sha256_of
from .problem import Problem

WORK_FILE = "work.json"
RESULTS = "results"
SCHEMA = 1
PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# TensorRT from here on carries types in the graph out in full, and deprecates those by the builder's flags, which
# 11 no longer has.
STRONG = (10, 12)


class Tensor(NamedTuple):
    """An input or output of a network; `dtype` is `float32`, `float16`, `uint8`, `int32`, …"""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def at(self, length: int) -> tuple[int, ...]:
        """Return its shape for texts of another length, which is the last size."""
        return (*self.shape[:-1], length)


class Build(NamedTuple):
    """An engine to build.

    Attributes:
        name: of the engine, such as `int8`.
        onnx: path of the network.
        plan: path of the engine to write.
        precision: `int8` or `fp16`.
        typing: how the ONNX file is rendered: `weak` (types by the builder's flags) or `strong` (in the graph).
        workspace_mb: memory that a layer may use beside its tensors, at most, in MiB.
        optimization_level: 0 to 5; None: the builder's own default.
        dla_core: None: the GPU.
        scales: path of the scales of a graph without Q/DQ, for INT8 on a DLA up to TensorRT 10.7; empty: none.
        timing_cache: path of this device's cache of timings; empty: none.
        lengths: of texts, where the network leaves them open, the longest last; empty: its inputs are of fixed size.
        inputs: of the network, at the longest; empty without `lengths`.
    """

    name: str
    onnx: str
    plan: str
    precision: str
    typing: str
    workspace_mb: int
    optimization_level: int | None = None
    dla_core: int | None = None
    timing_cache: str = ""
    scales: str = ""
    lengths: tuple[int, ...] = ()
    inputs: tuple[Tensor, ...] = ()

    def shapes(self, length: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the inputs for texts of one length, by name."""
        return {tensor.name: tensor.at(length) for tensor in self.inputs}


def refuse_typing(job: Build, version: tuple[int, ...]) -> None:
    """Refuse a network in another rendering than this version of TensorRT is given: weak below 10.12, else strong.

    Raises:
        Problem: with what to do instead.
    """
    here = f"TensorRT {'.'.join(map(str, version))}"
    wanted, why = "", ""
    if job.typing == "strong" and version < STRONG:
        wanted, why = "weakly", f"fixed in the graph, which {here} does not carry out in full"
    elif job.typing == "weak" and version >= STRONG:
        fate = "deprecates" if version < (11,) else "no longer has"
        wanted, why = "strongly", f"left to builder flags, which {here} {fate}"
    if why:
        raise Problem(
            f"{job.onnx}: its types are {why}",
            f"build from the {wanted} typed rendering: make the bundle for this device's JetPack",
            3,
        )


class Samples(NamedTuple):
    """Inputs with what the networks should make of them.

    Attributes:
        number: how many there are.
        inputs: path of their bytes, `uint8` `[number, C, H, W]`; without a table as the network takes them.
        table: path of what the values become as float32, `[C, 256]`; empty: the network takes uint8.
        expected: paths of the outputs that ONNX Runtime gave, float32 `[number, K]`, by engine.
        labels: of the class, or None where it is not known.
        lengths: of each sample, where the plan has several; empty: all have the inputs' own.
    """

    number: int
    inputs: str
    table: str
    expected: dict[str, str]
    labels: list[int | None]
    lengths: tuple[int, ...] = ()


class Work(NamedTuple):
    """A plan of work.

    Attributes:
        folder: that the bundle lies in.
        digest: of work.json, and so of all files that it names.
        name: of the run.
        wanted: what it was made for: `profile`, `module`, `jetpack`, `tensorrt`, `no_int8` (why none is built),
            `power_mode`, `compute_capability`, `memory_gb`.
        input: of the networks, of texts at the longest.
        outputs: of the networks.
        classes: names, for the user's own code.
        builds: engines, the baseline first.
        samples: inputs to verify on.
        timing: `warmup_s`, `seconds`, `queries`, `rounds`, `limit_s`.
        trtexec_samples: how many samples are compared where each takes a process of its own.
        int8_nodes: names of the nodes that the INT8 network has quantized.
        more_inputs: of networks that take several, those behind `input`; a sample holds one behind the other.
        lengths: of texts that come in several, growing; empty: one.
    """

    folder: Path
    digest: str
    name: str
    wanted: dict[str, Any]
    input: Tensor
    outputs: tuple[Tensor, ...]
    classes: tuple[str, ...]
    builds: tuple[Build, ...]
    samples: Samples
    timing: dict[str, float]
    trtexec_samples: int
    int8_nodes: tuple[str, ...] = ()
    more_inputs: tuple[Tensor, ...] = ()
    lengths: tuple[int, ...] = ()

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """All inputs, in the order in which a sample holds them."""
        return (self.input, *self.more_inputs)

    def timed(self, kind: str, length: int = 0) -> str:
        """Return what a timing is called: the longest texts have the plain name, as what has one length."""
        return kind if length in (0, *self.lengths[-1:]) else f"{kind}-{length}"

    @property
    def results(self) -> Path:
        """The folder that results go to."""
        return self.folder / RESULTS

    @property
    def scratch(self) -> Path:
        """A folder for what is needed while a step runs, and the logs of those that failed."""
        return self.results / "scratch"


def load(folder: Path) -> Work:
    """Read a plan of work and verify every file that it names.

    Raises:
        Problem: nothing there, another program's plan, a file that is missing, cut or not the one that was
            bundled, or a name that would lead out of the folder.
    """
    path = folder / WORK_FILE
    if not path.is_file():
        raise Problem(
            f"{folder}: no bundle (no {WORK_FILE})",
            "run the program in the folder that edgetune bundle wrote",
            3,
        )
    content = read_json(str(path))
    if not isinstance(content, dict) or content.get("schema_version") != SCHEMA:
        raise Problem(
            f"{path}: not a plan of work that this program knows", "bundle again with one edgetune", 5
        )
    try:
        _verify(folder, content["files"])
        return _work(folder, sha256_of(str(path)), content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Problem(
            f"{path}: damaged: {type(error).__name__} {error}", "copy the bundle again", 5
        ) from error


def _verify(folder: Path, files: dict[str, str]) -> None:
    for name, digest in sorted(files.items()):
        path = folder / _plain(name)
        if not path.is_file():
            raise Problem(f"{path}: missing from the bundle", "copy the bundle again", 5)
        if sha256_of(str(path)) != digest:
            raise Problem(
                f"{path}: not the file that was bundled (another SHA-256)", "copy the bundle again", 5
            )


def _plain(name: str) -> str:
    if not PLAIN.fullmatch(name):
        raise Problem(f"{WORK_FILE}: the file name {name!r} is not a plain one", "bundle again", 5)
    return name


def _tensor(entry: dict[str, Any]) -> Tensor:
    return Tensor(str(entry["name"]), str(entry["dtype"]), tuple(int(size) for size in entry["shape"]))


def _work(folder: Path, digest: str, content: dict[str, Any]) -> Work:
    results = folder / RESULTS
    samples = content["samples"]
    first, more = _tensor(content["input"]), tuple(_tensor(entry) for entry in content.get("more_inputs", []))
    lengths = tuple(int(length) for length in content.get("lengths", []))
    builds = [
        Build(
            name=_plain(entry["name"]),
            onnx=str(folder / _plain(entry["onnx"])),
            plan=str(results / f"{entry['name']}.plan"),
            precision=entry["precision"],
            typing=entry["typing"],
            workspace_mb=int(entry["workspace_mb"]),
            optimization_level=entry.get("optimization_level"),
            dla_core=entry.get("dla_core"),
            timing_cache=str(results / "timing.cache"),
            scales=str(folder / _plain(entry["scales"])) if entry.get("scales") else "",
            lengths=lengths,
            inputs=(first, *more) if lengths else (),
        )
        for entry in content["engines"]
    ]
    return Work(
        folder=folder,
        digest=digest,
        name=str(content["name"]),
        wanted=dict(content["wanted"]),
        input=first,
        outputs=tuple(_tensor(entry) for entry in content["outputs"]),
        classes=tuple(content["classes"]),
        builds=tuple(builds),
        samples=Samples(
            number=int(samples["number"]),
            inputs=str(folder / _plain(samples["inputs"])),
            table=str(folder / _plain(samples["table"])) if samples["table"] else "",
            expected={name: str(folder / _plain(file)) for name, file in samples["expected"].items()},
            labels=list(samples["labels"]),
            lengths=tuple(int(length) for length in samples.get("lengths", [])),
        ),
        timing=dict(content["timing"]),
        trtexec_samples=int(content["trtexec_samples"]),
        int8_nodes=tuple(str(name) for name in content.get("int8_nodes", [])),
        more_inputs=more,
        lengths=lengths,
    )
