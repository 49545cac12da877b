"""The measuring protocol: what is timed, how often, in what order, and when a figure is to be trusted.

1. Warm-up: each model runs in windows of `WINDOW_SECONDS` (at least three queries) until the medians of
   three consecutive windows lie within `STABLE` of each other, or the preset's warm-up time is over.
2. Rounds: every round times a block of consecutive queries of every model, the models in a new random order
   (seeded), so that what changes over time hits all of them alike. Blocks are sized in advance, from the
   warm-up, so that every model gets at least the preset's seconds and queries. At the head of each block
   unrecorded queries bring caches back and let the other model's threads fall asleep.
3. Statistics over whole rounds: intervals of the quantiles and of the ratio from a paired block bootstrap.
4. A verdict on the measurement itself: `LIMITS` say how much spread and drift a trusted figure may have.

It knows nothing of engines or files: it times plain functions. numpy and scipy (through statistics) only.
"""

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from edgetune.latency.statistics import Rounds, resampled_quantiles, spread
from edgetune.progress import Progress, Silent

Query = Callable[[], object]
Clock = Callable[[], int]
Samples = NDArray[np.float64]

WINDOW_SECONDS = 0.03
WINDOW_QUERIES = 3
STABLE = 0.05
SETTLE_SECONDS = 0.005
FEWEST_ROUNDS = 6
KEPT_SAMPLES = 2000


@dataclass(frozen=True)
class Preset:
    """How long to measure.

    Attributes:
        seconds: of recorded queries per model, at least.
        queries: recorded per model, at least, unless `limit_seconds` is in the way.
        rounds: blocks per model.
        warmup_seconds: per model, at most.
        limit_seconds: of recorded queries per model, at most; slow models get fewer queries.
    """

    seconds: float
    queries: int
    rounds: int
    warmup_seconds: float
    limit_seconds: float


# `standard` gives a p99 that can be judged (report.gates.P99_QUERIES), unless a query takes 0.17 s or longer.
PRESETS = {
    "quick": Preset(seconds=2.0, queries=60, rounds=30, warmup_seconds=0.5, limit_seconds=15.0),
    "standard": Preset(seconds=10.0, queries=700, rounds=60, warmup_seconds=3.0, limit_seconds=120.0),
}

# What a trusted measurement may have at most. The tail counts at p90: a single interruption by the system
# says nothing about a model, one query in ten does.
LIMITS = {
    "p50_interval": 0.10,  # half of the median's interval, over the median
    "drift": 0.10,  # median of the last third of the rounds against the first third
    "p90_over_p50": 1.5,
}


class ModelLatency(TypedDict):
    """What is reported of one model; `samples_ms` are thinned evenly, in the order of time."""

    count: int
    warmup: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    min_ms: float
    max_ms: float
    cv: float
    p50_low_ms: float
    p50_high_ms: float
    p99_low_ms: float
    p99_high_ms: float
    samples_ms: list[float]


class Ratio(TypedDict):
    """How many times faster the last model is than the first, from medians."""

    value: float
    low: float
    high: float


class Measurement(TypedDict):
    """What `measure` returns."""

    rounds: int
    models: dict[str, ModelLatency]
    speedup: Ratio | None
    trusted: bool
    why: str


def measure(
    queries: Mapping[str, Query],
    preset: Preset,
    *,
    seed: int = 0,
    clock: Clock = time.perf_counter_ns,
    progress: Progress | None = None,
) -> Measurement:
    """Time functions against each other.

    Args:
        queries: what to time, by name; with two or more, `speedup` is the first one's median over the last's.
        preset: how long.
        seed: of the order within rounds and of the bootstrap.
        clock: in nanoseconds.
        progress: one step per round.
    """
    shown = progress or Silent()
    with _collector_off():
        warm = {name: _warm_up(query, preset, clock) for name, query in queries.items()}
        rounds = _rounds(preset, max(estimate for _, estimate in warm.values()))
        blocks = {name: _block(preset, rounds, estimate) for name, (_, estimate) in warm.items()}
        order = np.random.default_rng(seed)
        taken: dict[str, list[list[int]]] = {name: [] for name in queries}
        shown.begin("timing", rounds, "round")
        for _ in range(rounds):
            for index in order.permutation(len(queries)):
                name = list(queries)[index]
                taken[name].append(_time_block(queries[name], blocks[name], clock))
            shown.advance()
        shown.end()
    samples = {name: np.array(times, dtype=np.float64) / 1e6 for name, times in taken.items()}
    return summarise(samples, {name: count for name, (count, _) in warm.items()}, seed)


def summarise(samples: Mapping[str, Rounds], warmup: Mapping[str, int], seed: int = 0) -> Measurement:
    """Turn samples into figures, intervals and a verdict on the measurement.

    Args:
        samples: in milliseconds, in the order of time: per model [R, K], R rounds of K queries, or an array for
            each round.
        warmup: unrecorded queries before the first round.
        seed: of the bootstrap.
    """
    draws = resampled_quantiles(list(samples.values()), (0.5, 0.99), seed=seed)
    models = {
        name: _figures(samples[name], warmup[name], draws[:, index]) for index, name in enumerate(samples)
    }
    reasons = [f"{name}: {why}" for name in samples for why in _doubts(samples[name], models[name])]
    medians = [model["p50_ms"] for model in models.values()]
    ends = spread(draws[:, 0, 0] / draws[:, -1, 0])
    return {
        "rounds": len(next(iter(samples.values()))),
        "models": models,
        "speedup": {"value": medians[0] / medians[-1], "low": ends.low, "high": ends.high}
        if len(models) > 1
        else None,
        "trusted": not reasons,
        "why": "; ".join(reasons),
    }


def _warm_up(query: Query, preset: Preset, clock: Clock) -> tuple[int, float]:
    """Run until stable; return how many queries that took and the seconds of one."""
    begun, count, medians = clock(), 0, list[float]()
    while True:
        window, times = clock(), list[int]()
        while len(times) < WINDOW_QUERIES or clock() - window < WINDOW_SECONDS * 1e9:
            start = clock()
            query()
            times.append(clock() - start)
        count += len(times)
        medians.append(float(np.median(times)))
        latest = medians[-3:]
        stable = len(latest) == 3 and max(latest) <= min(latest) * (1 + STABLE)
        if stable or clock() - begun >= preset.warmup_seconds * 1e9:
            return count, max(medians[-1], 1.0) / 1e9


def _rounds(preset: Preset, slowest_seconds: float) -> int:
    fitting = int(preset.limit_seconds / slowest_seconds)
    return min(preset.rounds, max(FEWEST_ROUNDS, fitting))


def _block(preset: Preset, rounds: int, estimate_seconds: float) -> int:
    """Return how many queries a model gets per round."""
    wanted = max(preset.queries / rounds, preset.seconds / rounds / estimate_seconds)
    fitting = preset.limit_seconds / rounds / estimate_seconds
    return max(1, min(math.ceil(wanted), int(fitting)))


def _time_block(query: Query, count: int, clock: Clock) -> list[int]:
    begun = clock()
    while True:
        query()
        if clock() - begun >= SETTLE_SECONDS * 1e9:
            break
    times = []
    for _ in range(count):
        start = clock()
        query()
        times.append(clock() - start)
    return times


def _figures(samples: Rounds, warmup: int, draws: Samples) -> ModelLatency:
    flat = np.concatenate(list(samples))
    p50, p90, p99 = (float(value) for value in np.quantile(flat, (0.5, 0.9, 0.99)))
    middle, tail = spread(draws[:, 0]), spread(draws[:, 1])
    # Spread evenly over time, first and last included.
    kept = np.unique(np.linspace(0, flat.size - 1, min(flat.size, KEPT_SAMPLES)).round().astype(int))
    return {
        "count": flat.size,
        "warmup": warmup,
        "p50_ms": p50,
        "p90_ms": p90,
        "p99_ms": p99,
        "mean_ms": float(flat.mean()),
        "min_ms": float(flat.min()),
        "max_ms": float(flat.max()),
        "cv": float(flat.std() / flat.mean()),
        "p50_low_ms": middle.low,
        "p50_high_ms": middle.high,
        "p99_low_ms": tail.low,
        "p99_high_ms": tail.high,
        "samples_ms": [round(float(value), 6) for value in flat[kept]],
    }


def _doubts(samples: Rounds, figures: ModelLatency) -> list[str]:
    """Say in which ways a measurement spreads more than `LIMITS` allow."""
    p50 = figures["p50_ms"]
    third = max(1, len(samples) // 3)
    half = (figures["p50_high_ms"] - figures["p50_low_ms"]) / 2 / p50
    last, first = (np.median(np.concatenate(list(part))) for part in (samples[-third:], samples[:third]))
    drift = float(last / first) - 1
    tail = figures["p90_ms"] / p50
    found = {
        "p50_interval": (half, f"the median is uncertain by ±{half:.0%}"),
        "drift": (abs(drift), f"the median drifted by {drift:+.0%} from the first to the last third"),
        "p90_over_p50": (tail, f"one query in ten took {tail:.1f} times the median or longer"),
    }
    return [
        f"{text} (at most {LIMITS[key]:.3g})" for key, (value, text) in found.items() if value > LIMITS[key]
    ]


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
