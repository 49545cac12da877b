"""What samples say: figures, intervals, how one compares with another, and whether to trust any of it.

A figure from a clock that jumped, a machine that slowed down halfway or a tail that swallows the median is no
latency of the network; then it says so and why, and whoever holds it against a limit judges nothing. It times
nothing itself and knows neither engines nor files. It may import errors and the statistics.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from edgetune.errors import StageError
from edgetune.latency.statistics import (
    Rounds,
    around,
    block_length,
    early_stopping,
    paired_ratio,
    resampled_quantiles,
)

Samples = NDArray[np.float64]

KEPT_SAMPLES = 2000
# More than these say no more about an interval, and drawing them takes longer than the measurement.
DRAWN_SAMPLES = 200_000
FEWEST_ROUNDS = 6
QUANTILES = (0.5, 0.9, 0.99)
NAMES = ("p50", "p90", "p99")

# What a trusted measurement may have at most. The tail counts at p90: a single interruption by the system
# says nothing about a model, one query in ten does.
LIMITS = {
    "p50_interval": 0.10,  # half of the median's interval, over the median
    "drift": 0.10,  # median of the last third of the rounds against the first third
    "step": 0.10,  # median after any one round against the median before it
    "p90_over_p50": 1.5,
}
# A query this many times the median, and this long, is no query: the clock was set, or the machine slept.
LEAP_TIMES, LEAP_MS = 100.0, 1000.0


class ModelLatency(TypedDict):
    """What is reported of one model; `samples_ms` are thinned evenly, in the order of time.

    `p90_early_ms`, `p99_early_ms`: MLPerf's early-stopping estimates, None for too few queries.
    """

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
    p90_low_ms: float
    p90_high_ms: float
    p99_low_ms: float
    p99_high_ms: float
    p90_early_ms: float | None
    p99_early_ms: float | None
    samples_ms: list[float]


class Ratio(TypedDict):
    """How many times faster the last model is than the first, round by round."""

    value: float
    low: float
    high: float


class Measurement(TypedDict):
    """What samples say."""

    rounds: int
    models: dict[str, ModelLatency]
    speedup: Ratio | None
    trusted: bool
    why: str


class Cleaned(NamedTuple):
    """Samples without those that are no times, and what was wrong with them."""

    samples: dict[str, list[Samples]]
    doubts: list[str]


def summarise(
    samples: Mapping[str, Rounds], warmup: Mapping[str, int], seed: int = 0, doubts: Sequence[str] = ()
) -> Measurement:
    """Turn samples into figures, intervals and a verdict on the measurement.

    Args:
        samples: in milliseconds, in the order of time: per model [R, K], R rounds of K queries, or an array for
            each round.
        warmup: unrecorded queries before the first round.
        seed: of the bootstrap.
        doubts: known already.

    Raises:
        StageError: the clock jumped so often that nothing is left.
    """
    cleaned = cleaned_of(samples)
    rounds = cleaned.samples
    models = {name: _figures(rounds[name], warmup[name], seed) for name in rounds}
    found = [
        *cleaned.doubts,
        *(f"{name}: {why}" for name in rounds for why in _doubts(rounds[name], models[name])),
    ]
    first, *_, last = [next(iter(rounds)), *rounds]
    return {
        "rounds": len(rounds[first]),
        "models": models,
        "speedup": ratio(rounds, first, last, seed=seed) if len(models) > 1 else None,
        "trusted": not (doubts or found),
        "why": "; ".join([*doubts, *found]),
    }


def ratio(
    rounds: Mapping[str, Rounds], first: str, last: str, *, confidence: float = 0.95, seed: int = 0
) -> Ratio:
    """Return how many times as long one model takes as another."""
    value, ends = paired_ratio(rounds[first], rounds[last], confidence=confidence, seed=seed)
    return {"value": value, "low": ends.low, "high": ends.high}


def cleaned_of(samples: Mapping[str, Rounds]) -> Cleaned:
    """Leave out what is no time: a query that ended before it began, or took none at all.

    A round in which a model has nothing left is left out for all, so that rounds stay pairs.

    Raises:
        StageError: too few rounds are left.
    """
    lists = {name: [np.asarray(one, dtype=np.float64) for one in rounds] for name, rounds in samples.items()}
    doubts, still = [], False
    for name, rounds in lists.items():
        everything = np.concatenate(rounds)
        back = int(np.count_nonzero(~np.isfinite(everything) | (everything < 0)))
        still = still or bool(np.count_nonzero(everything == 0) * 2 > everything.size)
        limit = max(LEAP_MS, LEAP_TIMES * float(np.median(everything)))
        leaps = int(np.count_nonzero(everything > limit))
        if back:
            doubts.append(f"{name}: the clock went back during {_queries(back)}, which are left out")
        if leaps:
            doubts.append(
                f"{name}: {_queries(leaps)} took longer than {limit / 1e3:.3g} s: the clock was set forward, or the "
                "machine slept"
            )
    kept = {name: [one[np.isfinite(one) & (one > 0)] for one in rounds] for name, rounds in lists.items()}
    whole = [all(one.size for one in parts) for parts in zip(*kept.values(), strict=True)]
    if still or sum(whole) < min(FEWEST_ROUNDS, len(whole)):
        what = (
            "stands still for most queries"
            if still
            else f"jumped in {whole.count(False)} of {len(whole)} rounds"
        )
        raise StageError(
            f"nothing was measured: the clock {what}",
            hint="stop what sets the clock (a virtual machine that is moved, a debugger), and measure again",
        )
    return Cleaned(
        {
            name: [one for one, good in zip(rounds, whole, strict=True) if good]
            for name, rounds in kept.items()
        },
        doubts,
    )


def _queries(count: int) -> str:
    return "a query" if count == 1 else f"{count} queries"


def _figures(rounds: list[Samples], warmup: int, seed: int) -> ModelLatency:
    flat = np.concatenate(rounds)
    medians = np.array([np.median(one) for one in rounds])
    length = block_length(medians)
    step = -(-flat.size // DRAWN_SAMPLES)
    draws = resampled_quantiles([one[::step] for one in rounds], QUANTILES, length=length, seed=seed)
    found: dict[str, float] = {}
    least, most = float(flat.min()), float(flat.max())
    for place, (name, share) in enumerate(zip(NAMES, QUANTILES, strict=True)):
        value = float(np.quantile(flat, share))
        # Times are above 0, and lie about their median as their logarithms do.
        ends = np.exp(around(np.log(value), np.log(draws[:, place]), len(rounds), length))
        low, high = (min(max(float(end), least), most) for end in ends)
        found |= {f"{name}_ms": value, f"{name}_low_ms": low, f"{name}_high_ms": high}
    # Spread evenly over time, first and last included.
    kept = np.unique(np.linspace(0, flat.size - 1, min(flat.size, KEPT_SAMPLES)).round().astype(int))
    return {
        "count": flat.size,
        "warmup": warmup,
        "p50_ms": found["p50_ms"],
        "p90_ms": found["p90_ms"],
        "p99_ms": found["p99_ms"],
        "mean_ms": float(flat.mean()),
        "min_ms": least,
        "max_ms": most,
        "cv": float(flat.std() / flat.mean()),
        "p50_low_ms": found["p50_low_ms"],
        "p50_high_ms": found["p50_high_ms"],
        "p90_low_ms": found["p90_low_ms"],
        "p90_high_ms": found["p90_high_ms"],
        "p99_low_ms": found["p99_low_ms"],
        "p99_high_ms": found["p99_high_ms"],
        "p90_early_ms": early_stopping(flat, 0.9),
        "p99_early_ms": early_stopping(flat, 0.99),
        "samples_ms": [round(float(value), 6) for value in flat[kept]],
    }


def _doubts(rounds: list[Samples], figures: ModelLatency) -> list[str]:
    """Say in which ways a measurement spreads or changes more than `LIMITS` allow."""
    p50 = figures["p50_ms"]
    third = max(1, len(rounds) // 3)
    half = (figures["p50_high_ms"] - figures["p50_low_ms"]) / 2 / p50
    last, first = (float(np.median(np.concatenate(part))) for part in (rounds[-third:], rounds[:third]))
    drift = last / first - 1
    at, step = _step(rounds)
    tail = figures["p90_ms"] / p50
    slower = "slower, as when clocks are throttled" if step > 0 else "faster"
    found = {
        "p50_interval": (half, f"the median is uncertain by ±{half:.0%}"),
        "drift": (abs(drift), f"the median drifted by {drift:+.0%} from the first to the last third"),
        "step": (abs(step), f"from round {at + 1} of {len(rounds)} on it was {abs(step):.0%} {slower}"),
        "p90_over_p50": (tail, f"one query in ten took {tail:.1f} times the median or longer"),
    }
    if abs(step) > LIMITS["step"]:
        # The same change, told once.
        del found["drift"]
    most = {key: f"{limit:.3g}" if key == "p90_over_p50" else f"{limit:.0%}" for key, limit in LIMITS.items()}
    return [f"{text} (at most {most[key]})" for key, (value, text) in found.items() if value > LIMITS[key]]


def _step(rounds: list[Samples]) -> tuple[int, float]:
    """Return after which round the median changed most for good, and by how much; 0 where that may be chance.

    Both sides hold a sixth of the rounds at least, and nine in ten of each side lie beyond the other's median:
    rounds that go up and down are spread, and no step. Most of the change happens within three rounds: what takes
    longer is a drift.
    """
    medians = np.array([np.median(one) for one in rounds])
    least = max(3, medians.size // 6)
    best = 0, 0.0
    for at in range(least, medians.size - least + 1):
        before, after = float(np.median(medians[:at])), float(np.median(medians[at:]))
        change = after / before - 1
        sharp = float(np.median(medians[at : at + 3]) / np.median(medians[at - 3 : at])) - 1
        apart = min(
            np.mean((medians[at:] > before) == (change > 0)), np.mean((medians[:at] < after) == (change > 0))
        )
        if abs(change) > abs(best[1]) and apart >= 0.9 and sharp / change >= 0.7:
            best = at, change
    return best
