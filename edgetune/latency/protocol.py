"""The measuring protocol: what is timed, how often and in what order.

1. Warm-up: each model runs in windows of `WINDOW_SECONDS` (at least three queries), for the preset's least time
   and until the medians of three consecutive windows lie within `STABLE` of each other, or its most is over.
2. Rounds: every round times a block of consecutive queries of every model, the models in a new random order
   (seeded), so that what changes over time hits all of them alike. Blocks are sized in advance, from the
   warm-up; where models turn out faster, rounds are added until every model has the preset's seconds and
   queries. With several models unrecorded queries at the head of each block bring caches back and let the
   other model's threads fall asleep.
3. What the samples say, and whether to trust them, is `summary`'s work; so is a clock that jumps, whose
   samples come through as they are.
4. With the preset `mlperf` the rounds are MLPerf's SingleStream: the next query is issued when one completes, at
   least 600 s and 64 queries, judged by the early-stopping estimate of p90. Then comes Offline: every model by
   itself, at least 600 s and 24,576 samples (mlcommons/inference_policies, inference_rules.adoc, scenarios).
   By rule nothing else runs between a model's queries, so name one model where the figure goes into a list.

It knows nothing of engines or files: it times plain functions. numpy only, and summary and progress.
"""

import gc
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from edgetune.errors import StageError
from edgetune.latency.summary import FEWEST_ROUNDS, Measurement, summarise
from edgetune.progress import Progress, Silent

# A query that returns a float has timed itself, in ms; whatever else it returns, the clock has.
Query = Callable[[], object]
Clock = Callable[[], int]
# Of queries, in nanoseconds.
Times = NDArray[np.int64]

WINDOW_SECONDS = 0.03
WINDOW_QUERIES = 3
STABLE = 0.05
SETTLE_SECONDS = 0.005
# Rounds that are added at most, as a multiple of those planned.
MORE_ROUNDS = 2
# Queries without a tick: the clock stands still, and no loop would ever end.
STUCK_QUERIES = 1_000_000


@dataclass(frozen=True)
class Preset:
    """How long to measure.

    Attributes:
        seconds: of recorded queries per model, at least.
        queries: recorded per model, at least, unless `limit_seconds` is in the way.
        rounds: blocks per model.
        warmup_seconds: per model, at most.
        limit_seconds: of recorded queries per model, at most; slow models get fewer queries.
        warmup_least: seconds per model, at least.
        offline_samples: of MLPerf's Offline scenario, at least; 0: it is left out.
    """

    seconds: float
    queries: int
    rounds: int
    warmup_seconds: float
    limit_seconds: float
    warmup_least: float = 0.0
    offline_samples: int = 0


# `standard` gives a p99 that rests on ten queries beyond it, unless a query takes 0.12 s or longer.
PRESETS = {
    "quick": Preset(seconds=2.0, queries=64, rounds=60, warmup_seconds=0.5, limit_seconds=15.0),
    "standard": Preset(30.0, 1000, 60, warmup_seconds=10.0, limit_seconds=120.0, warmup_least=2.0),
    "mlperf": Preset(600.0, 64, 120, 30.0, math.inf, warmup_least=2.0, offline_samples=24_576),
}


class Offline(TypedDict):
    """MLPerf's Offline scenario: how many samples a second, nothing waiting for anything."""

    samples: int
    seconds: float
    samples_per_second: float


class Taken(NamedTuple):
    """What was timed.

    Attributes:
        rounds: per model and round the times of its queries, in ms; below 0 where the clock went back.
        warmup: unrecorded queries per model.
        unsettled: models whose times still changed when the warm-up was over.
        busy: per model the share of the recorded time in which this thread had a processor.
    """

    rounds: dict[str, list[np.ndarray[tuple[int], np.dtype[np.float64]]]]
    warmup: dict[str, int]
    unsettled: tuple[str, ...]
    busy: dict[str, float]


def measure(
    queries: Mapping[str, Query],
    preset: Preset,
    *,
    seed: int = 0,
    clock: Clock = time.perf_counter_ns,
    progress: Progress | None = None,
) -> Measurement:
    """Time functions against each other and say what comes of it; arguments as for `take`, seed also the bootstrap's.

    With two or more models `speedup` is how many times faster the last one is than the first.

    Raises:
        StageError: the clock stands still or jumped so often that nothing is left.
    """
    taken = take(queries, preset, seed=seed, clock=clock, progress=progress)
    return summarise(taken.rounds, taken.warmup, seed, unsettled(taken))


def unsettled(taken: Taken) -> list[str]:
    """Say which models had not settled."""
    return [f"{name}: its times were still changing after the warm-up" for name in taken.unsettled]


def take(
    queries: Mapping[str, Query],
    preset: Preset,
    *,
    seed: int = 0,
    clock: Clock = time.perf_counter_ns,
    worked: Clock = time.thread_time_ns,
    progress: Progress | None = None,
) -> Taken:
    """Time functions against each other.

    Args:
        queries: what to time, by name.
        preset: how long.
        seed: of the order within rounds.
        clock: in nanoseconds.
        worked: how long this thread has had a processor, in nanoseconds.
        progress: one step per round.

    Raises:
        StageError: the clock stands still.
    """
    shown = progress or Silent()
    with _collector_off():
        warm = {name: _warm_up(query, preset, clock) for name, query in queries.items()}
        rounds = _rounds(preset, max(one.seconds for one in warm.values()))
        blocks = {name: _block(preset, rounds, one.seconds) for name, one in warm.items()}
        order = np.random.default_rng(seed)
        times: dict[str, list[Times]] = {name: [] for name in queries}
        busy, spent = dict.fromkeys(queries, 0), dict.fromkeys(queries, 0)
        shown.begin("timing", rounds, "round")
        done = 0
        while done < rounds or (done < rounds * (1 + MORE_ROUNDS) and _short(times, preset, done)):
            for index in order.permutation(len(queries)):
                name = list(queries)[index]
                if len(queries) > 1 or not done:
                    _settle(queries[name], clock)
                begun, had = clock(), worked()
                block = _time_block(queries[name], blocks[name], clock)
                busy[name] += worked() - had
                spent[name] += clock() - begun
                # Hundreds of millions of queries, as objects, would fill the memory.
                times[name].append(np.array(block, dtype=np.int64))
            done += 1
            shown.advance()
        shown.end()
    return Taken(
        {name: [one / 1e6 for one in parts] for name, parts in times.items()},
        {name: one.queries for name, one in warm.items()},
        tuple(name for name, one in warm.items() if not one.stable),
        {name: busy[name] / spent[name] if spent[name] > 0 else 1.0 for name in queries},
    )


def offline(
    query: Query,
    batch: int,
    preset: Preset,
    *,
    clock: Clock = time.perf_counter_ns,
    progress: Progress | None = None,
) -> Offline:
    """Run MLPerf's Offline scenario: batch after batch, until both time and samples suffice.

    Args:
        query: runs one batch.
        batch: samples in it.
        preset: how long, and how many samples.
        clock: in nanoseconds.
        progress: one step per hundredth of the time.

    Raises:
        StageError: the clock went back.
    """
    shown = progress or Silent()
    shown.begin("offline", 100, "%")
    with _collector_off():
        begun, count, told, passed = clock(), 0, 0, 0.0
        while passed < preset.seconds or count * batch < preset.offline_samples:
            query()
            count += 1
            before, passed = passed, (clock() - begun) / 1e9
            if passed < before or count > STUCK_QUERIES * max(1.0, passed):
                raise StageError("offline: the clock went back or stands still", hint=_CLOCK)
            share = int(
                100 * min(passed / preset.seconds, count * batch / max(preset.offline_samples, 1), 1.0)
            )
            while told < share:
                told += 1
                shown.advance()
    shown.end()
    return {"samples": count * batch, "seconds": passed, "samples_per_second": count * batch / passed}


_CLOCK = "stop what sets the clock (a virtual machine that is moved, a debugger), and measure again"


class _Warm(NamedTuple):
    queries: int
    seconds: float
    stable: bool


def _warm_up(query: Query, preset: Preset, clock: Clock) -> _Warm:
    """Run until stable; return how many queries that took and the seconds of one.

    Those are the lower quartile of the last windows: by a window in which others ran, blocks would come out too
    small, and smaller for one model than for another.
    """
    begun, count, medians, recent = clock(), 0, list[float](), list[list[int]]()
    while True:
        window, times = clock(), list[int]()
        while len(times) < WINDOW_QUERIES or not _over(clock, window, WINDOW_SECONDS):
            times.append(_once(query, clock))
            if len(times) >= STUCK_QUERIES:
                raise StageError("nothing was measured: the clock stands still", hint=_CLOCK)
        count += len(times)
        medians.append(float(np.median(times)))
        recent = [*recent[-2:], times]
        latest = medians[-3:]
        stable = len(latest) == 3 and max(latest) <= min(latest) * (1 + STABLE)
        if _over(clock, begun, preset.warmup_seconds) or (
            stable and _over(clock, begun, preset.warmup_least)
        ):
            # Of a slow model there are too few windows to tell. What a clock that was set back gives is no time.
            known = [spent for spent in itertools.chain(*recent) if spent > 0]
            usual = float(np.quantile(known, 0.25)) if known else 1e9 * preset.seconds / preset.rounds
            return _Warm(count, max(usual, 1.0) / 1e9, stable or len(medians) < 3)


def _over(clock: Clock, since: int, seconds: float) -> bool:
    """Whether so much time has passed; a clock that went back will not say so again."""
    return not 0 <= clock() - since < seconds * 1e9


def _rounds(preset: Preset, slowest_seconds: float) -> int:
    fitting = preset.limit_seconds / slowest_seconds
    return int(min(preset.rounds, max(FEWEST_ROUNDS, fitting)))


def _block(preset: Preset, rounds: int, estimate_seconds: float) -> int:
    """Return how many queries a model gets per round."""
    wanted = max(preset.queries / rounds, preset.seconds / rounds / estimate_seconds)
    fitting = preset.limit_seconds / rounds / estimate_seconds
    return max(1, int(min(math.ceil(wanted), fitting)))


def _short(times: Mapping[str, list[Times]], preset: Preset, done: int) -> bool:
    """Whether a model still lacks seconds or queries, and another round keeps all within the limit."""
    passed = [sum(float(block.sum()) for block in blocks) / 1e9 for blocks in times.values()]
    counts = [sum(map(len, blocks)) for blocks in times.values()]
    lacks = min(passed) < preset.seconds or min(counts) < preset.queries
    return lacks and max(passed) * (done + 1) / done <= preset.limit_seconds


def _settle(query: Query, clock: Clock) -> None:
    begun = clock()
    while True:
        query()
        if _over(clock, begun, SETTLE_SECONDS):
            break


def _time_block(query: Query, count: int, clock: Clock) -> list[int]:
    return [_once(query, clock) for _ in range(count)]


def _once(query: Query, clock: Clock) -> int:
    start = clock()
    took = query()
    spent = clock() - start
    return round(took * 1e6) if isinstance(took, float) else spent


@contextmanager
def _collector_off() -> Iterator[None]:
    """Keep Python's garbage collector from running inside a timed query."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
