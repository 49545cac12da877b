"""Builds, runs and times engines by `trtexec`, TensorRT's own program, where its Python bindings cannot be had.

What it does is `bindings`' work: the same jobs, the same answers. It does not know how to judge times or outputs. It
starts `trtexec` and nothing else, without a shell; every run leaves its log. It imports the rest of the device program,
besides the standard library.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Callable, Iterable, Mapping, Sequence, TypeVar

from . import files
from .children import end_with_parent
from .dla import calibration_cache
from .plan import Build
from .problem import Problem
from .trtexec_commands import (
    Shapes,
    build_command,
    check,
    dotted,
    needs_calibration,
    output_command,
    profile_command,
    shown,
    time_command,
)
from .trtexec_failures import Ended, explain, warnings
from .trtexec_files import read_layers, read_outputs, read_profile, read_times

USUAL = ("/usr/src/tensorrt/bin/trtexec", "/usr/local/tensorrt/bin/trtexec", "/opt/tensorrt/bin/trtexec")
_HELP_S = 120  # Its libraries are large; a device that has just started reads them slowly.

Read = TypeVar("Read")


def find(environ: Mapping[str, str], usual: Sequence[str] = USUAL) -> str | None:
    """Find `trtexec` on PATH, else where JetPack puts it; a whole path, for it runs in other folders."""
    found = shutil.which("trtexec", path=environ.get("PATH", "")) or next(
        (path for path in usual if shutil.which(path)), None
    )
    return str(Path(found).absolute()) if found else None


def version_of(path: str) -> tuple[int, int, int]:
    """Read the version of a `trtexec` from the banner above its help.

    Raises:
        Problem: it does not start, or prints no version.
    """
    try:
        help_ = subprocess.run(
            [path, "--help"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_HELP_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Problem(f"{path}: does not start: {error}", "install JetPack's TensorRT packages", 4) from error
    text = help_.stdout.decode("utf-8", "replace")
    plain = re.search(r"TensorRT version: (\d+)\.(\d+)\.(\d+)", text)
    packed = re.search(r"\[TensorRT v(\d{4,6})\]", text)
    if plain:
        return int(plain[1]), int(plain[2]), int(plain[3])
    if not packed:
        said = (text.strip().splitlines() or ["it printed nothing"])[0][:200]
        raise Problem(
            f"{path}: it does not say its version: {said}", "install JetPack's TensorRT packages", 4
        )
    number = int(packed[1])
    # Two digits for each part from 10 on; one for the minor version before.
    return (
        (number // 10000, number // 100 % 100, number % 100)
        if number >= 100000
        else (number // 1000, number // 100 % 10, number % 100)
    )


def build(
    path: str,
    job: Build,
    version: tuple[int, ...],
    scales: Mapping[str, float] | None = None,
    limit_s: float | None = None,
) -> dict[str, Any]:
    """Build an engine; `job.plan` appears whole or not at all.

    Args:
        path: of `trtexec`.
        job: the engine.
        version: of `trtexec`.
        scales: real value of one step by tensor, for INT8 on a DLA up to 10.7, whose graph has no Q/DQ.
        limit_s: longest time it may take, in seconds; None: as long as it takes.

    Returns:
        `seconds`, `plan_bytes`, `messages` (warnings), `layers` (the inspector's JSON, or None), `command`, `log`; for
        a DLA `dla_subgraphs` (how many parts run there), `fallback_layers` (how many run on the GPU) and
        `fallback_names`.

    Raises:
        Problem: it cannot be built; OutOfMemory where the device had too little memory.
    """
    check(job, version)
    scratch = {kind: f"{job.plan}.{kind}" for kind in ("partial", "layers.json", "calibration")}
    _forget(scratch.values())
    calibration = _calibration(job, version, scales, scratch["calibration"])
    cache = f"{job.timing_cache}.partial" if job.timing_cache else ""
    aside = job._replace(plan=scratch["partial"], timing_cache=cache)
    command = build_command(path, aside, version, scratch["layers.json"], calibration)
    try:
        ended, messages = _built(command, job, cache, limit_s)
        if ended.code:
            raise explain(ended, f"{job.name}: build", version, job)
        size = _whole(scratch["partial"], ended, job.name)
        Path(scratch["partial"]).replace(job.plan)
        if cache and Path(cache).is_file():
            Path(cache).replace(job.timing_cache)
        layers = read_layers(scratch["layers.json"])
    finally:
        # Beside its cache trtexec leaves a lock.
        _forget([*scratch.values(), *([cache, f"{cache}.lock"] if cache else [])])
    if job.optimization_level is not None and version < (8, 6):
        messages.append(f"optimization level {job.optimization_level}: levels begin with TensorRT 8.6")
    return {
        "seconds": ended.seconds,
        "plan_bytes": size,
        "messages": messages + warnings(ended.text),
        "layers": layers,
        "command": command,
        "log": ended.log,
        **({} if job.dla_core is None else _dla(ended.text)),
    }


def times(
    path: str,
    plan: str,
    version: tuple[int, ...],
    seconds: float,
    warmup_ms: float,
    copies: bool,
    folder: str,
    queries: int = 10,
    dla_core: int | None = None,
    limit_s: float | None = None,
    shapes: Shapes | None = None,
) -> dict[str, Any]:
    """Time an engine; the arguments are `time_command`'s, with a folder for the log.

    Returns:
        `compute_ms` and `latency_ms` of every query in order, and `messages` (warnings).

    Raises:
        Problem: the engine cannot be used here, or the run failed.
    """
    out = f"{folder}/times.json"
    command = time_command(path, plan, version, seconds, warmup_ms, copies, out, queries, dla_core, shapes)
    read, ended = _told(command, out, read_times, version, plan, "time", limit_s)
    return {**read, "messages": warnings(ended.text)}


def outputs(
    path: str,
    plan: str,
    version: tuple[int, ...],
    inputs: Mapping[str, str],
    folder: str,
    dla_core: int | None = None,
    limit_s: float | None = None,
    shapes: Shapes | None = None,
) -> dict[str, list[float]]:
    """Run an engine once; `inputs` are files in `folder`, raw values, by input. Values come back with six digits.

    It runs in that folder: a comma in a path would end an entry of the list of inputs.

    Raises:
        Problem: the engine cannot be used here, or the run failed.
    """
    plan, out = str(Path(plan).absolute()), str(Path(folder, "outputs.json").absolute())
    command = output_command(path, plan, version, inputs, out, dla_core, shapes)
    return _told(command, out, read_outputs, version, plan, "run", limit_s, folder)[0]


def profile(
    path: str,
    plan: str,
    version: tuple[int, ...],
    seconds: float,
    folder: str,
    dla_core: int | None = None,
    limit_s: float | None = None,
    shapes: Shapes | None = None,
    layers: str = "",
) -> dict[str, Any]:
    """Time every layer of an engine: `count` of inferences, and `layers` as `trtexec_files.read_profile` gives them.

    What the engine tells of its layers goes to the file `layers`, where one is named.

    Raises:
        Problem: the engine cannot be used here, or the run failed.
    """
    out = f"{folder}/profile.json"
    command = profile_command(path, plan, version, seconds, out, dla_core, shapes, layers)
    return _told(command, out, read_profile, version, plan, "profile", limit_s)[0]


def _calibration(job: Build, version: tuple[int, ...], scales: Mapping[str, float] | None, path: str) -> str:
    """Write the scales where they are needed; return the file's path, or nothing."""
    if not needs_calibration(job, version):
        return ""
    if not scales:
        raise Problem(
            f"{job.name}: INT8 on a DLA needs the scales of every tensor", "make the bundle again", 3
        )
    files.write_bytes(path, calibration_cache(dotted(version), dict(scales)))
    return path


def _built(command: list[str], job: Build, cache: str, limit_s: float | None) -> tuple[Ended, list[str]]:
    """Run a build; once more without the timing cache where TensorRT refuses that."""
    log, name = f"{job.plan}.log", f"{job.name}: build"
    known = bool(cache) and _copied(job.timing_cache, cache)
    ended = _run(command, log, name, limit_s)
    if not known or not _blames_cache(ended):
        return ended, []
    if ended.code:
        _forget([cache])
        ended = _run(command, log, name, limit_s)
    return ended, [f"{job.timing_cache}: TensorRT refused it; timed anew"]


def _told(
    command: list[str],
    out: str,
    read: Callable[[str], Read],
    version: tuple[int, ...],
    plan: str,
    doing: str,
    limit_s: float | None,
    folder: str | None = None,
) -> tuple[Read, Ended]:
    """Run on a plan and read the file that the run wrote, which an earlier run's cannot stand in for."""
    name = f"{Path(plan).stem}: {doing}"
    _forget([out])
    ended = _run(command, f"{out}.log", name, limit_s, folder)
    if ended.code:
        raise explain(ended, name, version, plan=plan)
    told = read(out)
    _forget([out])
    return told, ended


def _run(command: list[str], log: str, name: str, limit_s: float | None, folder: str | None = None) -> Ended:
    """Run to the end; whatever ends this program ends the run."""
    begin = time.monotonic()
    files.write_bytes(log, b"")
    with Path(log).open("wb") as handle:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=handle,
                stderr=subprocess.STDOUT,
                cwd=folder,
                preexec_fn=end_with_parent,
            )
        except (OSError, ValueError) as error:
            raise Problem(
                f"{command[0]}: does not start: {error}", "install JetPack's TensorRT packages", 4
            ) from error
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise Problem(
                f"{name}: not done after {limit_s:g} s", f"raise the limit; what it did: {log}"
            ) from None
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()
    text = Path(log).read_bytes().decode("utf-8", "replace")
    return Ended(code or int("&&&& FAILED" in text), text, log, time.monotonic() - begin)


def _whole(partial: str, ended: Ended, name: str) -> int:
    """Return the plan's size; since 10 `trtexec` tells it, and a full disk cuts the file without a word."""
    size = Path(partial).stat().st_size if Path(partial).is_file() else 0
    told = re.search(r"Created engine with size: ([0-9.e+-]+) MiB", ended.text)
    if not size:
        raise Problem(f"{name}: trtexec ended well but wrote no engine", f"see {ended.log}; run again")
    if told and size < float(told[1]) * (1 << 20) * (1 - 1e-5) - 1:
        raise Problem(
            f"{name}: the engine was cut: {size} bytes of {told[1]} MiB",
            "free some space on the disk; run again",
        )
    return size


def _blames_cache(ended: Ended) -> bool:
    crashed = ended.code in (-signal.SIGSEGV, -signal.SIGABRT, 128 + signal.SIGSEGV, 128 + signal.SIGABRT)
    return crashed or bool(re.search(r"\[E\].*timing ?cache", ended.text, re.IGNORECASE))


def _dla(text: str) -> dict[str, Any]:
    """Read what runs where; of what a DLA runs, TensorRT tells parts of many layers."""
    # "[GpuLayer] POOLING: pool1": the kind is no part of the name.
    names = re.findall(r"\[GpuLayer\] (?:[A-Z_]+: )?(.+)", text)
    return {
        "dla_subgraphs": text.count("[DlaLayer]"),
        "fallback_layers": len(names),
        "fallback_names": [name.strip() for name in names],
    }


def _copied(source: str, target: str) -> bool:
    """Give `trtexec` a copy to write to: it would leave the file cut if it were killed."""
    _forget([target])
    if not Path(source).is_file():
        return False
    files.write_bytes(target, Path(source).read_bytes())
    return True


def _forget(paths: Iterable[str]) -> None:
    for path in paths:
        if path:
            Path(path).unlink(missing_ok=True)


__all__ = ["build", "find", "outputs", "profile", "shown", "times", "version_of"]
