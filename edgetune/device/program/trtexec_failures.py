"""Says why a run of `trtexec` failed, from its exit code and its words, and what to do next.

It starts nothing and reads one thing besides a run's log: how much of the disk is free. Words: samples/common/ of
TensorRT's open source and messages that the library is known to print, 8.2 to 11.1. It imports the plan of work, the
error and how versions are written, besides the standard library.
"""

from __future__ import annotations

import re
import shutil
import signal
from pathlib import Path
from typing import NamedTuple

from .plan import Build
from .problem import OutOfMemory, Problem
from .trtexec_commands import dotted

FULL = 1 << 20  # Bytes: a disk with less free than this is full.
_LEAST_WORKSPACE = 64  # MiB.
_DEFAULT_LEVEL = 3  # The builder's own, on every version that has levels.


class Ended(NamedTuple):
    """A run that is over.

    Attributes:
        code: exit code; negative: the signal that ended it.
        text: what it printed on both streams.
        log: the file that holds it.
        seconds: how long it took.
    """

    code: int
    text: str
    log: str
    seconds: float


def smaller(job: Build, version: tuple[int, ...]) -> Build | None:
    """Give the same engine with settings that take less memory to build; None where there are none."""
    level = job.optimization_level
    if version >= (8, 6):
        level = max((_DEFAULT_LEVEL if level is None else level) - 1, 0)
    least = min(_LEAST_WORKSPACE, job.workspace_mb)
    less = job._replace(workspace_mb=max(job.workspace_mb // 2, least), optimization_level=level)
    return None if less == job else less


def warnings(text: str) -> list[str]:
    """List what a run warned of, each once."""
    return list(dict.fromkeys(line.strip() for line in re.findall(r"\[W\] (?:\[TRT\] )?(.+)", text)))


def explain(
    ended: Ended, name: str, version: tuple[int, ...], job: Build | None = None, plan: str = ""
) -> Problem:
    """Say why a run failed.

    Args:
        ended: the run.
        name: of what was being done, such as `int8: build`.
        version: of `trtexec`.
        job: what was to be built; None: an engine was loaded.
        plan: the engine that was loaded.
    """
    errors = re.findall(r"\[[EF]\] (?:\[TRT\] )?(.+)", ended.text)
    where = f"the whole log: {ended.log}"
    if ended.code in (-signal.SIGKILL, 128 + signal.SIGKILL):
        return OutOfMemory(
            f"{name}: trtexec was killed ({128 + signal.SIGKILL}): the device ran out of memory",
            _more_memory(job, version),
        )
    if _full(ended.log) or "No space left on device" in ended.text:
        return Problem(f"{name}: no space left on the disk", f"free some space beside {ended.log}; run again")
    if "Saving engine to file failed" in ended.text:
        return Problem(
            f"{name}: the engine could not be written", f"free some space beside {ended.log}; run again"
        )
    unknown = re.search(r"\[E\] Unknown option: (\S+)", ended.text)
    if unknown:
        return Problem(
            f"{name}: this trtexec, which calls itself {dotted(version)}, does not know {unknown[1]}",
            f"put the trtexec of JetPack's TensorRT first on PATH; {where}",
            4,
        )
    if plan:
        mismatch = _mismatch(ended.text, name, version, plan)
        if mismatch:
            return mismatch
    # Tactics that do not fit are passed over; it is a failure only where none is left.
    if re.search(r"OutOfMemory|out of memory|Unable to create execution context", ended.text):
        return OutOfMemory(f"{name}: too little free memory: {_said(errors)}", _more_memory(job, version))
    if job and "Could not find any implementation for node" in ended.text:
        return _no_tactic(ended, name, version, job, errors)
    if job and "Parsing model failed" in ended.text:
        return Problem(
            f"{name}: TensorRT {dotted(version)} cannot read {job.onnx}: {_said(errors)}", where, 5
        )
    if ended.code < 0 or ended.code > 128:
        number = -ended.code if ended.code < 0 else ended.code - 128
        return Problem(f"{name}: trtexec crashed (signal {number}): {_said(errors)}", f"run again; {where}")
    return Problem(f"{name}: trtexec failed ({ended.code}): {_said(errors)}", where)


def _mismatch(text: str, name: str, version: tuple[int, ...], plan: str) -> Problem | None:
    """Name both sides where a plan is not of this device, or not a plan."""
    again = "build the engine again on this device: an engine serves only where it was built"
    wanted = re.search(r"expecting library version (\S+) got (\S+?),", text)
    if wanted:
        return Problem(f"{name}: {plan} is of TensorRT {wanted[2]}; this is {wanted[1]}", again, 5)
    tags = re.search(r"Current Version: (\d+), Serialized Engine Version: (\d+)", text)
    if tags:
        ours = f"{dotted(version)} (plan format {tags[1]})"
        return Problem(
            f"{name}: {plan} is of another TensorRT (plan format {tags[2]}); this is {ours}", again, 5
        )
    compute = re.search(r"expecting compute (\S+) got compute (\S+?),", text)
    if compute:
        of, here = compute[2], compute[1]
        return Problem(
            f"{name}: {plan} is of a GPU with compute capability {of}; this one has {here}", again, 5
        )
    if "magicTag" in text:
        return Problem(
            f"{name}: {plan} does not begin as an engine of TensorRT {dotted(version)} does",
            "some tools put a header of their own before it; build it again with edgetune",
            5,
        )
    if "Error opening engine file" in text:
        return Problem(f"{name}: {plan}: there is no such engine, or it cannot be read", "build it first", 5)
    if re.search(r"Engine deserialization failed|Got invalid engine", text):
        return Problem(
            f"{name}: {plan} is cut or damaged, or not for TensorRT {dotted(version)}: "
            f"{_said(re.findall(r'.E. .TRT. (.+)', text))}",
            again,
            5,
        )
    if "Invalid tensor names found in --loadInputs" in text or "Cannot find input tensor with name" in text:
        return Problem(
            f"{name}: {plan} has no input of that name: {_said(re.findall(r'Cannot find.+', text))}", again, 5
        )
    return None


def _no_tactic(ended: Ended, name: str, version: tuple[int, ...], job: Build, errors: list[str]) -> Problem:
    needs = re.search(r"Tactic Device request: (\d+)MB Available: (\d+)MB", ended.text)
    if needs:
        return OutOfMemory(
            f"{name}: a layer needs {needs[1]} MB, {needs[2]} MB are free", _more_memory(job, version)
        )
    if "sufficient workspace memory" in ended.text:
        return Problem(
            f"{name}: a workspace of {job.workspace_mb} MiB is too small: {_said(errors)}",
            f"set the workspace to {2 * job.workspace_mb} MiB; the whole log: {ended.log}",
        )
    return Problem(
        f"{name}: TensorRT {dotted(version)} has no kernel for a layer: {_said(errors)}",
        f"the whole log: {ended.log}",
    )


def _more_memory(job: Build | None, version: tuple[int, ...]) -> str:
    free = "close other programs and the desktop (sudo systemctl isolate multi-user.target), or add swap"
    less = smaller(job, version) if job else None
    if less is None:
        return free
    level = (
        f" and optimization level {less.optimization_level}" if less.optimization_level is not None else ""
    )
    return f"build with a workspace of {less.workspace_mb} MiB{level}; {free}"


def _said(errors: list[str]) -> str:
    """Pick the words that say most: the first and the last of the library's, without trtexec's own on every step."""
    general = re.compile(
        r"Engine set up failed|Inference set up failed|Got invalid engine|Failed to create engine|"
        r"Building engine failed|Engine could not be created|Parsing model failed|Engine deserialization failed"
    )
    told = [error.strip() for error in errors]
    told = [error for error in told if not general.search(error)] or told or ["it gave no reason"]
    return "; ".join(dict.fromkeys([told[0], told[-1]]))


def _full(log: str) -> bool:
    try:
        return shutil.disk_usage(str(Path(log).parent)).free < FULL
    except OSError:
        return False
