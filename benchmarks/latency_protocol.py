"""Does the protocol find what is there, and nothing else? Two CPU-bound functions, equal or 10% apart.

Each repeat is a measurement of one second each, interleaved. Of measurements of equal functions few may name a
winner, of measurements of unequal ones most must. A last part times the harness itself: a function of 0.2 ms by
the protocol and by a bare loop, in turns.

    python benchmarks/latency_protocol.py --repeats 200
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
from machine import heading

from edgetune.latency.protocol import PRESETS, Preset, take
from edgetune.latency.ranking import rank
from edgetune.latency.summary import cleaned_of

ALLOWED, WANTED, OF = 17, 180, 200
SECOND = Preset(
    seconds=1.0, queries=20, rounds=PRESETS["quick"].rounds, warmup_seconds=0.2, limit_seconds=3.0
)
LATENCY_MS, SLOWER = 1.5, 1.10
SHORT_MS, LOOPS, BLOCKS, CHUNK = 0.2, 30, 40, 10


# One place in memory for all: how arrays lie in it makes functions a few hundredths faster or slower.
VALUES = np.linspace(0.1, 1.0, 512, dtype=np.float32)
INTO = np.empty_like(VALUES)


def spinner(steps: int) -> Callable[[], None]:
    """Return a function that keeps the processor busy for so many steps."""

    def spin() -> None:
        for _ in range(steps):
            np.multiply(VALUES, VALUES, out=INTO)

    return spin


def steps_for(milliseconds: float) -> int:
    """Return how many steps take so long here."""
    spin, times = spinner(1000), []
    for _ in range(30):
        begun = time.perf_counter()
        spin()
        times.append(time.perf_counter() - begun)
    return max(1, round(1000 * milliseconds / 1e3 / float(np.quantile(times, 0.25))))


def claims(repeats: int, factor: float) -> tuple[int, int]:
    """Return how often B, so many times as slow as A, lost and how often it won."""
    steps = steps_for(LATENCY_MS)
    lost = won = 0
    for seed in range(repeats):
        queries = {"A": spinner(steps), "B": spinner(round(steps * factor))}
        taken = take(queries, SECOND, seed=seed)
        found = rank(cleaned_of(taken.rounds).samples, seed=seed)
        assert found is not None
        lost += found["winner"] == "A"
        won += found["winner"] == "B"
    return lost, won


def overhead() -> tuple[float, float]:
    """Return what a short function takes by a bare loop and by the protocol, in ms.

    Both in chunks of two milliseconds, in turns, and of both the mean that one chunk in twenty falls below: a chunk
    in which another program ran says nothing.
    """
    spin = spinner(steps_for(SHORT_MS))
    chunks = {"bare": list[float](), "protocol": list[float]()}
    preset = Preset(
        seconds=BLOCKS * CHUNK * SHORT_MS / 1e3,
        queries=1,
        rounds=BLOCKS,
        warmup_seconds=0.01,
        limit_seconds=1.0,
    )
    for _ in range(LOOPS):
        for _ in range(BLOCKS):
            begun = time.perf_counter()
            for _ in range(CHUNK):
                spin()
            chunks["bare"].append(1e3 * (time.perf_counter() - begun) / CHUNK)
        chunks["protocol"] += [float(block.mean()) for block in take({"m": spin}, preset).rounds["m"]]
    bare, protocol = (float(np.quantile(times, 0.05)) for times in chunks.values())
    return bare, protocol


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=OF)
    options = parser.parse_args()
    count = options.repeats
    print(heading("numpy", "scipy"))
    for what, factor, limit in (
        ("equal", 1.0, f"at most {ALLOWED}"),
        ("B 10% slower", SLOWER, f"at least {WANTED}"),
    ):
        begun = time.monotonic()
        lost, won = claims(count, factor)
        found = lost + won if factor == 1.0 else lost
        print(
            f"{what:<13} a winner in {lost + won:>3} of {count} (A {lost}, B {won}); {found * OF / count:.0f} of {OF}, "
            f"target {limit} of {OF}; {time.monotonic() - begun:.0f} s",
            flush=True,
        )
    bare, harness = overhead()
    more = 100 * (harness / bare - 1)
    print(f"overhead      bare loop {bare:.4f} ms, protocol {harness:.4f} ms: {more:+.2f}%, target 2%")


if __name__ == "__main__":
    main()
