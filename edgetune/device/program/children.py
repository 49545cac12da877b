"""Programs that this one starts end with it, however it ends. Standard library only."""

from __future__ import annotations

import ctypes
import signal

_SET_PARENT_DEATH_SIGNAL = 1  # prctl(2)


def end_with_parent() -> None:
    """Ask the kernel, in a child, for SIGKILL when its parent is gone: a build left alone would fill the memory."""
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
