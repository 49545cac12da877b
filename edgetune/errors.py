"""Every error that edgetune raises on purpose, with the exit code that the command line ends with.

    EdgetuneError          1   never raised itself
    ├── ConfigError        3   a recipe, profile, folder or option is wrong; the message names the place
    ├── MissingTool        4   something is not installed or not present; the hint says how to get it
    ├── ArtifactError      5   a file or artifact is corrupt, unsafe, or of the wrong kind
    └── StageError         6   a stage began and could not finish

2 is a usage error of the command line, 7 a failed gate (a result, not an error), 130 an interrupt.
Any other exception is a bug and keeps its traceback. This module imports nothing of edgetune.
"""

import difflib
from collections.abc import Iterable
from typing import ClassVar


class EdgetuneError(Exception):
    """An error with a message that says what is wrong and a hint that says what to do next."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(EdgetuneError):
    """A recipe, profile, folder or option is wrong."""

    exit_code = 3


class MissingTool(EdgetuneError):
    """A library, program or device is not present."""

    exit_code = 4


class ArtifactError(EdgetuneError):
    """A file or artifact is corrupt, unsafe, or of the wrong kind."""

    exit_code = 5


class StageError(EdgetuneError):
    """A stage began and could not finish."""

    exit_code = 6


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint that names the closest known names, or all of them where none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(repr(c) for c in close)}?"
    return f"known: {', '.join(names)}"
