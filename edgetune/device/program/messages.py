"""What TensorRT says while it works: kept for error messages, told to whoever listens.

TensorRT reports failures by returning None or False and by saying why to a logger. It keeps the first logger
that it is given for as long as the process lives and sends what any later object says there, so there is one
logger for a library, and each step takes what was said since it began.
It knows nothing of CUDA or files. It may import nothing.
"""

from __future__ import annotations

import re
from typing import Any, Callable

_loggers: list[tuple[Any, Any]] = []  # of each library; a process has one, a test several
_MOST = 200


def logger(trt: Any, say: Callable[[str], None] | None = None) -> Any:
    """Return the logger of a library, with `errors` and `warnings` emptied.

    Args:
        trt: the module `tensorrt`.
        say: is told every warning and error as it comes.
    """
    made = next((known for module, known in _loggers if module is trt), None)
    if made is None:
        made = _logger_class(trt)()
        _loggers.append((trt, made))
    made.begin(say)
    return made


def _logger_class(trt: Any) -> Any:
    levels = trt.ILogger.Severity
    fatal = (levels.INTERNAL_ERROR, levels.ERROR)

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.begin(None)

        def begin(self, say: Callable[[str], None] | None) -> None:
            self.errors: list[str] = []
            self.warnings: list[str] = []
            self.interrupt: BaseException | None = None
            self._say = say

        def log(self, severity: Any, msg: str) -> None:
            # Called from C++, also on its own threads: an exception must not leave this method.
            kept = self.errors if severity in fatal else self.warnings
            told = severity in fatal or severity == levels.WARNING
            if not told or msg in kept or len(kept) >= _MOST:
                return
            kept.append(msg)
            try:
                if self._say is not None:
                    self._say(msg)
            except BaseException as error:
                self.interrupt = self.interrupt or error

    return Logger


def reasons(log: Any, nothing: str = "TensorRT gave no reason") -> str:
    """Return the errors that a logger was given since it was last begun, as one line."""
    return "; ".join(re.sub(r"\s+", " ", message).strip() for message in log.errors) or nothing


def again(listener: Any) -> None:
    """Raise what came up while TensorRT had the word, such as a KeyboardInterrupt."""
    error = getattr(listener, "interrupt", None)
    if error is not None:
        listener.interrupt = None
        raise error
