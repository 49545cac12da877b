"""Reads a device's system files and asks its programs; an empty answer where there is none, never an error.

It knows what a file or program is, not what it says. Every path lies under a root, so that the files of another
device can be read. Standard library only.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, NamedTuple, Optional

# A shell opened over ssh often leaves these out, and nvpmodel lies in one of them.
USUAL = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Answer(NamedTuple):
    """What a program said, both streams in one text, and its exit code."""

    code: int
    text: str


# Ask a program: the words of its command line -> its answer, None where it could not be started.
Run = Callable[..., Optional[Answer]]


def read(root: str, path: str) -> str:
    """Return a file's text without the blanks and NULs around it; empty where it cannot be read."""
    try:
        content = Path(root, path.lstrip("/")).read_bytes()
    except (OSError, ValueError):
        return ""
    return content.decode("utf-8", "replace").strip(" \t\r\n\0")


def number(root: str, path: str) -> int | None:
    """Return the whole number that a file begins with."""
    match = re.match(r"-?\d+", read(root, path))
    return int(match.group()) if match else None


def entries(root: str, pattern: str) -> list[str]:
    """Return the paths under a root that fit a pattern, as paths on the device: `fan2` before `fan10`."""
    try:
        found = [f"/{path.relative_to(root)}" for path in Path(root).glob(pattern.lstrip("/"))]
    except OSError:
        return []
    return sorted(found, key=_natural)


def find(name: str, environ: Mapping[str, str]) -> str | None:
    """Return where a program lies: on PATH, or where systems keep those for administrators."""
    folders = [folder for folder in environ.get("PATH", "").split(os.pathsep) if folder]
    return shutil.which(name, path=os.pathsep.join([*folders, *USUAL]))


def run(
    command: list[str],
    environ: Mapping[str, str],
    feed: str = "",
    seconds: float = 20.0,
    folder: str | None = None,
    deaf: bool = False,
) -> Answer | None:
    """Run a program and return what it said; None where it cannot be started or does not end in time.

    Args:
        command: the program and its words; no shell sees them.
        environ: of the program; messages are asked for in English.
        feed: what it reads; never this program's own input.
        seconds: to wait for it, at most.
        folder: it runs in; None: this program's.
        deaf: it does not hear signals that are sent to the whole group, such as Ctrl-C in a terminal.
    """
    try:
        with _unheard() if deaf else _as_is():
            child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**environ, "LC_ALL": "C"},
            )
    except (OSError, ValueError):
        return None
    try:
        said, _ = child.communicate(feed.encode(), timeout=seconds)
    except subprocess.TimeoutExpired:
        # What runs as root cannot be killed by its caller; waiting for it would take for ever.
        with suppress(OSError):
            child.kill()
        return None
    return Answer(child.returncode, said.decode("utf-8", "replace"))


def _natural(path: str) -> list[Any]:
    # Text and numbers take turns in the parts, so that like is compared with like.
    return [int(part) if index % 2 else part for index, part in enumerate(re.split(r"(\d+)", path))]


@contextmanager
def _as_is() -> Iterator[None]:
    yield


@contextmanager
def _unheard() -> Iterator[None]:
    """Ignore signals to stop while a program is started: it then ignores them for as long as it runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former: dict[Any, Any] = {number: signal.signal(number, signal.SIG_IGN) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
