"""Whether torch.compile pays: measured on the training's own steps, and used only where it is faster.

Compiling takes as long as thousands of steps of a small network, and cannot be stopped. So it is tried only
where that time is a small share of what is left to train; then steps with and without it are timed in turns.
It knows no data and no optimizer. It may import this package's accelerator.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edgetune.training.accelerator import Accelerator

# Seconds for each module without children, forward and backward, with an empty cache: a MobileNetV2 of 141
# took 200 s on one shared core (torch 2.15). On a GPU, where Triton's kernels are compiled side by side, it is
# a guess.
SECONDS_PER_MODULE = {"cpu": 1.4, "cuda": 0.5}
# What compiling may cost where it turns out to bring nothing, of the time that the steps left take.
MOST_SHARE = 0.05
WARM, TIMED = 2, 5
# Less than this is within the noise of a clock.
LEAST_GAIN = 0.02

Forward = Callable[[Tensor], Tensor]


class Verdict(NamedTuple):
    """Whether steps are compiled, and why."""

    used: bool
    why: str


class Compiling:
    """Watches the steps of a phase and decides which way they go.

    Attributes:
        verdict: None as long as it is open.
    """

    def __init__(
        self,
        net: nn.Module,
        accelerator: Accelerator,
        steps: int,
        known: Verdict | None = None,
        make: Callable[[nn.Module], Forward] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Begin with eager steps.

        Args:
            net: what takes a step's inputs.
            accelerator: where it is.
            steps: that are left.
            known: what an interrupted training had decided.
            make: compiles a network; None: torch.compile.
            clock: in seconds.
        """
        self.verdict = known if known and not known.used else None
        self._known = known
        self._net = net
        self._accelerator = accelerator
        self._left = steps
        self._make = make or _torch_compile
        self._clock = clock
        self._compiled: Forward | None = None
        self._rows = self._whole = 0
        self._seconds = 0.0
        self._eager: list[float] = []
        self._fast: list[float] = []
        self._began = 0.0

    def forward(self, rows: int) -> Forward:
        """Return what the next part of a step runs through; compiled are parts of one size alone."""
        if self._compiled is None or rows != self._rows:
            return self._net
        if self.verdict is None and len(self._fast) > len(self._eager) - WARM - TIMED:
            return self._net
        return self._compiled

    def give_up(self, why: str) -> None:
        """Go on without, whatever was measured."""
        self.verdict, self._compiled = Verdict(False, why), None

    def begin(self) -> None:
        """Start the clock of a step, as long as there is something to find out."""
        if self.verdict is None:
            self._accelerator.wait()
            self._began = self._clock()

    def end(self, whole: int, compiled: bool) -> None:
        """Stop the clock of a step of `whole` inputs, and decide once enough is known."""
        self._left -= 1
        if self.verdict is not None:
            return
        self._accelerator.wait()
        took = self._clock() - self._began
        self._whole = self._whole or whole
        if whole != self._whole:
            return
        (self._fast if compiled else self._eager).append(took)
        if self._compiled is not None and min(len(self._fast), len(self._eager) - WARM - TIMED) >= TIMED:
            self._decide()

    def due(self) -> bool:
        """Whether it is time to compile; says no for good where it could not pay."""
        if self.verdict is not None or self._compiled is not None:
            return False
        if self._known:
            return True
        if len(self._eager) < WARM + TIMED:
            return False
        eager = statistics.median(self._eager[WARM:])
        left = eager * self._left
        takes = SECONDS_PER_MODULE[self._accelerator.name] * sum(
            not list(module.children()) for module in self._net.modules()
        )
        if takes > MOST_SHARE * left:
            self.give_up(
                f"not tried: about {takes:.0f} s to compile are more than {MOST_SHARE:.0%} of the "
                f"{left:.0f} s left ({self._left} steps of {1e3 * eager:.0f} ms)"
            )
            return False
        return True

    def compile(self, rehearse: Callable[[Forward], Any], rows: int) -> None:
        """Compile, by a rehearsal: a forward and backward pass that leaves nothing behind.

        Args:
            rehearse: runs both.
            rows: of its inputs.
        """
        began = self._clock()
        try:
            self._compiled = self._make(self._net)
            rehearse(self._compiled)
            self._accelerator.wait()
        # Whatever keeps a compiler from working must not keep the training from going on.
        except Exception as error:
            self.give_up(f"not used: it fails here ({_first_line(error)})")
            return
        self._seconds, self._rows = self._clock() - began, rows
        if self._known:
            self.verdict = self._known

    def _decide(self) -> None:
        eager = statistics.median(self._eager[WARM + TIMED :])
        fast = statistics.median(self._fast)
        figures = (
            f"{1e3 * fast:.1f} ms a step against {1e3 * eager:.1f} ms, after {self._seconds:.0f} s to compile"
        )
        if fast > (1 - LEAST_GAIN) * eager:
            self.give_up(f"not used: no faster, {figures}")
            return
        won = (eager - fast) * self._left - self._seconds
        gain = f"saves {won:.0f} s" if won > 0 else f"which the {self._left} steps left do not pay back"
        self.verdict = Verdict(True, f"used: {figures}; {gain}")


def _torch_compile(net: nn.Module) -> Forward:
    made: Forward = torch.compile(net, dynamic=False)
    return made


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160]}" if text else type(error).__name__
