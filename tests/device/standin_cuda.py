"""A stand-in for `cuda.Runtime`: host memory, host clock, and graphs that are lists of what was queued.

Work runs when it is queued, but inside a capture, where it is kept for the graph instead. What was allocated and
not given back is in `live`, addresses that are not live are refused. `enqueue` is how the stand-in for TensorRT
puts its inference into a stream.
"""

import ctypes
import itertools
import time
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from edgetune.device.program.problem import Problem

Work = Callable[[], None]


class Runtime:
    """Has what `cuda.Runtime` has; `fail_at` is the number of the allocation that finds no memory."""

    _of_stream: ClassVar[dict[int, "Runtime"]] = {}
    _numbers = itertools.count(0x1000)

    def __init__(self, paths: Iterable[str] | None = None, compute: str = "8.7", fail_at: int = 0) -> None:
        self.path, self.version, self.compute_capability = "host", "12.6", compute
        self.live: dict[int, Any] = {}
        self.fail_at, self.allocations = fail_at, 0
        self.recording: list[Work] | None = None
        self.copies = {"in": 0, "out": 0}

    def malloc(self, size: int) -> int:
        self.allocations += 1
        if self.allocations == self.fail_at:
            raise Problem("CUDA refused cudaMalloc: out of memory (error 2)")
        block = (ctypes.c_char * max(size, 1))()
        return self._keep(block, ctypes.addressof(block))

    def free(self, address: int) -> None:
        del self.live[address]

    malloc_host, free_host = malloc, free

    def to_device(self, device: int, host: int, size: int, stream: int) -> None:
        self._copy("in", device, host, size, stream)

    def to_host(self, host: int, device: int, size: int, stream: int) -> None:
        self._copy("out", host, device, size, stream)

    def memory(self) -> tuple[int, int]:
        return 4 << 30, 8 << 30

    def stream(self) -> int:
        made = self._keep([], next(self._numbers))
        self._of_stream[made] = self
        return made

    def end_stream(self, stream: int) -> None:
        del self.live[stream], self._of_stream[stream]

    def wait(self, stream: int) -> None:
        assert stream in self.live
        assert self.recording is None

    def event(self) -> int:
        return self._keep([0.0], next(self._numbers))

    def end_event(self, event: int) -> None:
        del self.live[event]

    def record(self, event: int, stream: int) -> None:
        self.live[event][0] = time.perf_counter()

    def elapsed_ms(self, start: int, end: int) -> float:
        return (self.live[end][0] - self.live[start][0]) * 1000

    def capture(self, stream: int, work: Work) -> int:
        self.recording = []
        try:
            work()
            return self._keep(self.recording, next(self._numbers))
        finally:
            self.recording = None

    def launch(self, graph: int, stream: int) -> None:
        for work in self.live[graph]:
            work()

    def end_graph(self, graph: int) -> None:
        del self.live[graph]

    @classmethod
    def enqueue(cls, stream: int, work: Work) -> None:
        """Queue something that is no copy."""
        cls._of_stream[stream]._queue(work)

    def _queue(self, work: Work) -> None:
        if self.recording is None:
            work()
        else:
            self.recording.append(work)

    def _copy(self, way: str, to: int, source: int, size: int, stream: int) -> None:
        for address in (to, source):
            assert len(self.live[address]) >= size, "a copy outside of what was allocated"

        def work() -> None:
            self.copies[way] += 1
            ctypes.memmove(to, source, size)

        assert stream in self.live
        self._queue(work)

    def _keep(self, thing: Any, number: int) -> int:
        self.live[number] = thing
        return number
