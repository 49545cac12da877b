"""Power and temperatures as NVIDIA's `tegrastats` tells them, for devices whose sensors cannot be read directly.

It needs no root and comes with L4T. A line is a row of figures without a fixed order: rails as `VDD_IN 4067/4067`, or
`VDD_IN 5299mW/5299mW` from L4T 34 on (now, then the mean since its start, in mW), temperatures as `CPU@43.5C`, memory
as `RAM 4412/7772MB` first of all, behind the time from L4T 35 on. It knows the words, not what they are of.
It may import children and look.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from contextlib import suppress
from typing import Iterator, Mapping, NamedTuple

from . import look
from .children import end_with_parent

_LINE = re.compile(r"(?:\d\d-\d\d-\d{4} \d\d:\d\d:\d\d )?RAM \d+/\d+MB ")
_RAIL = re.compile(r"(?<!\S)([A-Za-z]\w*) (\d+)(mW)?/\d+(mW)?(?!\S)", re.ASCII)
_ZONE = re.compile(r"(?<!\S)([A-Za-z]\w*)@(-?\d+(?:\.\d+)?)C(?!\S)", re.ASCII)
# Longer than any line: what sends more without an end is something else.
_LONGEST = 4096
# Said of a sensor that is off.
_OFF_C = -100.0


class Told(NamedTuple):
    """What a line says: mW per rail, °C per zone."""

    rails_mw: dict[str, float]
    zones_c: dict[str, float]


def parse(line: str) -> Told | None:
    """Read a line; None where it is none, or tells neither power nor temperatures."""
    if not _LINE.match(line):
        return None
    rails = {name: float(now) for name, now, unit, again in _RAIL.findall(line) if unit == again}
    zones = {name: float(heat) for name, heat in _ZONE.findall(line) if float(heat) > _OFF_C}
    return Told(rails, zones) if rails or zones else None


class Child:
    """`tegrastats` at work, until `close`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        """Take the process, whose output is a pipe."""
        self._process = process

    def __iter__(self) -> Iterator[Told]:
        """Give what whole lines tell, as they come, until it ends."""
        stdout = self._process.stdout
        assert stdout is not None
        for line in iter(lambda: stdout.readline(_LONGEST), b""):
            told = parse(line.decode("utf-8", "replace"))
            if told is not None and line.endswith(b"\n"):
                yield told

    def close(self) -> None:
        """End it, with all that it may have started."""
        with suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def start(environ: Mapping[str, str], period_s: float) -> Child | None:
    """Start `tegrastats`; None where there is none, or it does not start."""
    program = look.find("tegrastats", environ)
    if program is None:
        return None
    try:
        process = subprocess.Popen(
            [program, "--interval", str(max(1, round(1000 * period_s)))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**environ, "LC_ALL": "C"},
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
    except (OSError, ValueError):
        return None
    return Child(process)
