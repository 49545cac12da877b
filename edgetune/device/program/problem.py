"""The one error of the device program: something that a person can do something about."""

from __future__ import annotations


class Problem(Exception):
    """Why the program cannot go on.

    Attributes:
        message: what is wrong, and where.
        hint: what to do next.
        code: exit code: 3 a wrong request, 4 a tool is missing, 5 a file or engine cannot be used, 6 a step
            could not be finished.
    """

    def __init__(self, message: str, hint: str = "", code: int = 6) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code


class OutOfMemory(Problem):
    """The device had too little memory; smaller settings or a freer device may do."""


def of_system(error: OSError) -> Problem:
    """Say what the operating system refused."""
    where = f"{error.filename}: " if error.filename else ""
    return Problem(
        f"{where}{error.strerror or error}", "free some space, or mend the permissions; then run again"
    )
