"""The line of work on a device: build, compare, time; each step once, and every result kept as it comes.

Raw outputs and raw times are written down; what they mean is computed on the workstation. It knows a tool
only by the four things it does. Standard library only.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from array import array
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Callable, ContextManager, Iterable, Iterator, Protocol

from .files import read_json, sha256_of, write_bytes, write_json
from .inputs import feeds
from .plan import Build, Work
from .problem import Problem, of_system

RESULT_FILE = "result.json"
SCHEMA = 1
# What can be done alone; engines are built for each.
STEPS = ("build", "compare", "time")
Say = Callable[[str], None]


class Tool(Protocol):
    """What can build and run engines: TensorRT's Python bindings, or trtexec.

    Attributes:
        name: for the result.
        version: of TensorRT.
        most_samples: that are worth comparing with it; None: all.
    """

    name: str = ""
    version: tuple[int, ...] = ()
    most_samples: int | None = None

    def build(self, job: Build, found: dict[str, Any], work: Work) -> dict[str, Any]:
        """Write the engine's plan and tell what it took and which layers it has."""

    def outputs(self, job: Build, work: Work, inputs: Iterable[bytes]) -> Iterator[dict[str, bytes]]:
        """Give float32 outputs by name for one input after another."""

    def times(self, jobs: list[Build], work: Work, copies: bool, length: int = 0) -> dict[str, Any]:
        """Time engines against each other, on texts of one length where there are several.

        Gives raw milliseconds by engine and round.
        """

    def profile(self, job: Build, work: Work) -> dict[str, Any]:
        """Time an engine's layers: `count` of inferences and `layers`, each with name and milliseconds."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second run out of a folder.

    Raises:
        Problem: another run is at work there, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / ".lock").open("w")
    except OSError as error:
        raise Problem(
            f"{folder}: {error.strerror}", "copy the bundle to a folder that you may write"
        ) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Problem(f"{folder}: another run is at work here", "wait for it, or stop it") from error
        yield


def do(
    work: Work,
    tool: Tool,
    found: dict[str, Any],
    warnings: list[dict[str, str]],
    say: Say,
    sampler: Callable[[], ContextManager[Any]] = nullcontext,
    only: str = "",
) -> dict[str, Any]:
    """Do what is left to do, and write `result.json` after every step.

    A step that fails is noted, and what does not need it goes on.

    Args:
        work: what to do.
        tool: that does it.
        found: what was found out about the device.
        warnings: what spoils builds and measurements here.
        say: is told what happens.
        sampler: opens what samples power and temperatures beside the timing, as `samples`.
        only: one of STEPS, after the builds that it needs; what else was done before is among the results.
    """
    steps = Steps(work, tool, found, say)
    result: dict[str, Any] = {
        "schema_version": SCHEMA,
        "bundle": work.digest,
        "tool": tool.name,
        "tensorrt": ".".join(map(str, tool.version)),
        "found": found,
        "warnings": warnings,
        "engines": {},
        "timing": {},
        "errors": {},
        "finished": False,
    }

    def keep() -> None:
        write_json(str(work.results / RESULT_FILE), result)

    def attempt(name: str, into: dict[str, Any], key: str, make: Callable[[], Any], needs: str = "") -> None:
        if not name.startswith((STEPS[0], only)):
            known = steps.known(name, needs)
            into.update({} if known is None else {key: known})
            return
        try:
            into[key] = steps(name, make, needs)
        except (Problem, OSError) as error:
            problem = of_system(error) if isinstance(error, OSError) else error
            say(f"{name}: {problem.message}")
            if problem.hint:
                say(f"  {problem.hint}")
            result["errors"][name] = {"message": problem.message, "hint": problem.hint, "code": problem.code}
        if steps.made:
            # Until something is done anew, what an earlier run wrote down stays as it is.
            keep()

    ready: dict[Build, str] = {}
    for job in work.builds:
        engine: dict[str, Any] = {}
        attempt(f"build-{job.name}", engine, "build", partial(tool.build, job, found, work))
        if "build" not in engine:
            continue
        ready[job] = sha256_of(job.plan)
        result["engines"][job.name] = engine
        make = partial(_compare, job, work, tool, say)
        attempt(f"compare-{job.name}", engine, "outputs", make, ready[job])
    state = list(ready.values()), work.timing, _locked(found)
    # The longest texts first: where time or patience ends, they are what there is.
    for length in reversed(work.lengths or (0,)):
        for kind, copies in (("compute", False), ("copies", True)):
            name = work.timed(kind, length)
            make = partial(_timed, list(ready), work, tool, copies, length, sampler)
            if ready:
                attempt(f"time-{name}", result["timing"], name, make, json.dumps(state))
    for job in ready:
        # Beside the timing, which it would disturb: after it.
        make = partial(_profiled, job, work, tool)
        attempt(f"time-layers-{job.name}", result["engines"][job.name], "profile", make, ready[job])
    result["finished"] = not result["errors"]
    keep()
    return result


class Steps:
    """Runs a step once: its result is found again while nothing that it hangs on has changed."""

    def __init__(self, work: Work, tool: Tool, found: dict[str, Any], say: Say) -> None:
        """Steps hang on the bundle, on TensorRT, and on the device with its power mode."""
        self.made = False
        self._folder = work.results
        self._say = say
        module = (found.get("module") or {}).get("model")
        here = [module, *(found.get(name) for name in ("gpu", "tensorrt", "l4t", "power_mode"))]
        self._on = [work.digest, tool.name, tool.version, *here]

    def __call__(self, name: str, make: Callable[[], Any], needs: str = "") -> Any:
        """Return what a step gives, made or found; `needs` is all else that it hangs on."""
        found = self.known(name, needs)
        if found is not None:
            self._say(f"{name}: done before")
            return found
        self._say(f"{name} …")
        self.made = True
        value = make()
        files = {item: sha256_of(str(self._folder / item)) for item in value.get("files", [])}
        write_json(str(self._path(name)), {"key": self._key(name, needs), "value": value, "files": files})
        return value

    def known(self, name: str, needs: str = "") -> Any:
        """Return what a step gave before, or None."""
        path = self._path(name)
        try:
            step = read_json(str(path)) if path.is_file() else {}
        except Problem:
            step = {}
        own = isinstance(step, dict) and step.get("key") == self._key(name, needs)
        return step["value"] if own and _unchanged(self._folder, step) else None

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    def _key(self, name: str, needs: str) -> str:
        return hashlib.sha256(json.dumps([self._on, name, needs]).encode()).hexdigest()


def _locked(found: dict[str, Any]) -> bool:
    """Whether clocks are locked: by this run, or by whoever did it before."""
    return any((found.get(name) or {}).get("locked") for name in ("locked", "clocks"))


def _timed(
    jobs: list[Build],
    work: Work,
    tool: Tool,
    copies: bool,
    length: int,
    sampler: Callable[[], ContextManager[Any]],
) -> dict[str, Any]:
    with sampler() as beside:
        found = tool.times(jobs, work, copies, length)
    samples = [list(sample) for sample in getattr(beside, "samples", [])]
    # By the clock of the blocks: seconds, mW by rail, °C by zone.
    return {**found, "beside": [sample for sample in samples if sample[1] or sample[2]]}


def _profiled(job: Build, work: Work, tool: Tool) -> dict[str, Any]:
    try:
        return tool.profile(job, work)
    except Problem as problem:
        # Nothing hangs on it: no reason to call the work unfinished.
        return {"count": 0, "layers": [], "why": problem.message}


def _unchanged(folder: Path, step: dict[str, Any]) -> bool:
    files = step.get("files")
    if not isinstance(files, dict) or not isinstance(step.get("value"), dict):
        return False
    return all((folder / name).is_file() and sha256_of(str(folder / name)) == files[name] for name in files)


def _compare(job: Build, work: Work, tool: Tool, say: Say) -> dict[str, Any]:
    """Run the samples through an engine; write down what comes out, and count what is as expected and right."""
    gathered: dict[str, list[bytes]] = {spec.name: [] for spec in work.outputs}
    first = work.outputs[0].name
    total = work.samples.number if tool.most_samples is None else min(tool.most_samples, work.samples.number)
    expected = _rows(work, job.name, total)
    number = agreed = right = labelled = 0
    for outputs in tool.outputs(job, work, feeds(work, total)):
        for name, rows in gathered.items():
            if name not in outputs:
                raise Problem(
                    f"{job.name}: the engine gives no output {name!r}", "build it again from this bundle"
                )
            rows.append(outputs[name])
        found, label = _top1(outputs[first]), work.samples.labels[number]
        agreed += found == _top1(next(expected))
        labelled += label is not None
        right += label is not None and found == label
        number += 1
        if number == total or number % 100 == 0:
            say(f"compare-{job.name}: {number} of {total} samples")
    files = [f"{job.name}.output{place}.bin" for place in range(len(gathered))]
    for file, rows in zip(files, gathered.values()):
        write_bytes(str(work.results / file), b"".join(rows))
    counts = {"agreed": agreed, "labelled": labelled, "right": right}
    return {"samples": number, **counts, "files": files}


def _rows(work: Work, name: str, number: int) -> Iterator[bytes]:
    """Give what ONNX Runtime's outputs were, one sample after another."""
    path = Path(work.samples.expected[name])
    size, rest = divmod(path.stat().st_size, work.samples.number)
    if rest:
        raise Problem(f"{path}: does not hold {work.samples.number} outputs", "bundle again", 5)
    with path.open("rb") as handle:
        for _ in range(number):
            yield handle.read(size)


def _top1(row: bytes) -> int:
    values = array("f", row)
    return max(range(len(values)), key=values.__getitem__)
