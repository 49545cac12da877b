"""Whether this machine was busy with something else while something was timed.

Other programs slow down what is timed in three ways: they take its turn on a processor, they keep the
neighbouring hardware thread or the memory busy, and they heat the chip. The first shows as time in which the
timing thread wanted to run and did not; the others only in what the system counts for all processes. psutil only.
"""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import psutil

# Others keep less than this busy on an idle desktop.
BUSY_CORES = 0.2
# From here on they decide what is measured, where no core is left for them.
CROWDED_CORES = 0.5
# Of the time in which it was timed, a thread that never waits has a processor for this share at least.
LEAST_SHARE = 0.9


class Loaded(NamedTuple):
    """How busy the machine was.

    Attributes:
        others_cores: processor time that other processes took meanwhile, in cores.
        load_average: processes that wanted to run in the minute before, as the system counts; None: it does not.
        doubts: why a measurement on it is not to be trusted.
        note: what to know of it otherwise; may be empty.
    """

    others_cores: float
    load_average: float | None
    doubts: list[str]
    note: str


class Load:
    """Processor time that other processes take between its making and the question."""

    def __init__(self) -> None:
        """Begin."""
        self._begun = self._now()
        self._average = load_average()

    def told(self, threads: int, busy: Mapping[str, float]) -> Loaded:
        """Say how busy the machine was.

        Args:
            threads: that worked on what was timed.
            busy: per model the share of its time in which the timing thread had a processor; empty where it
                waits for another device.
        """
        used, own, wall = (now - then for now, then in zip(self._now(), self._begun, strict=True))
        others = round(max(0.0, used - own) / max(wall, 1e-9), 2)
        real = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
        doubts = [
            f"{name}: the machine was under load: it had a processor for {share:.0%} of its time"
            for name, share in busy.items()
            if share < LEAST_SHARE
        ]
        said = f"other processes kept {others:.1f} cores busy meanwhile"
        if self._average is not None:
            said += f" (load average before: {self._average:.1f})"
        if others >= CROWDED_CORES and others + threads > real:
            doubts.append(f"the machine was under load: {said}, of {real}, beside {threads} of its own")
        elif others >= BUSY_CORES or doubts:
            return Loaded(others, self._average, doubts, said)
        return Loaded(others, self._average, doubts, "")

    @staticmethod
    def _now() -> tuple[float, float, float]:
        times: Any = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        process = psutil.Process().cpu_times()
        wall = sum(times) / (psutil.cpu_count() or 1)
        return sum(times) - idle, process.user + process.system, wall


def load_average() -> float | None:
    """Return how many processes wanted to run in the last minute, on average; None where it is not counted."""
    try:
        return round(os.getloadavg()[0], 2)
    except (OSError, AttributeError):
        return None
