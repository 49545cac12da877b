"""Intervals and tests: how much a share, a drop or a latency from few samples is worth.

Every interval is at 95%. It knows nothing of networks, engines or files; numpy and scipy only.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import binom, binomtest, norm, t

# [R, K], or R arrays of any sizes.
Rounds = NDArray[np.float64] | Sequence[NDArray[np.float64]]

CONFIDENCE = 0.95
Z = float(norm.ppf(0.5 + CONFIDENCE / 2))
# The share of a normal distribution within one standard deviation of its mean.
_ONE_SIGMA = float(norm.cdf(1) - norm.cdf(-1))


class Interval(NamedTuple):
    """The two ends of an interval, at 95%."""

    low: float
    high: float


class PairedDrop(NamedTuple):
    """What a second classifier loses against a first one on the same inputs.

    Attributes:
        points: the first one's accuracy minus the second one's, in points.
        low: lower end of the interval, in points.
        high: upper end of the interval, in points.
        p_value: of the exact McNemar test that both are equally often right.
        worse: inputs that only the first one gets right.
        better: inputs that only the second one gets right.
    """

    points: float
    low: float
    high: float
    p_value: float
    worse: int
    better: int


def wilson(right: int, count: int) -> Interval:
    """Return the interval of a share (Wilson 1927, J. Am. Stat. Assoc. 22:209-212).

    Args:
        right: successes.
        count: tries, at least 1.
    """
    found = binomtest(right, count).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(float(found.low), float(found.high))


def mean_interval(values: NDArray[np.float64]) -> Interval | None:
    """Return Student's interval of a mean, or None for fewer than two values."""
    if values.size < 2:
        return None
    half = (
        float(t.ppf(0.5 + CONFIDENCE / 2, values.size - 1))
        * float(values.std(ddof=1))
        / math.sqrt(values.size)
    )
    return Interval(float(values.mean()) - half, float(values.mean()) + half)


def mean_difference(first: NDArray[np.float64], second: NDArray[np.float64]) -> Interval | None:
    """Return Welch's interval of mean(first) - mean(second), samples independent (Welch 1947, Biometrika 34:28-35).

    None where one of them has fewer than two values.
    """
    if min(first.size, second.size) < 2:
        return None
    parts = [float(values.var(ddof=1)) / values.size for values in (first, second)]
    middle, spread = float(first.mean() - second.mean()), sum(parts)
    if not spread:
        return Interval(middle, middle)
    freedom = spread**2 / sum(
        part**2 / (values.size - 1) for part, values in zip(parts, (first, second), strict=True)
    )
    reach = float(t.ppf(0.5 + CONFIDENCE / 2, freedom)) * math.sqrt(spread)
    return Interval(middle - reach, middle + reach)


def mean_at_least(values: NDArray[np.float64], confidence: float = 0.9) -> float:
    """Return the lower end of Student's one-sided interval of a mean; of a single value, the value."""
    if values.size < 2:
        return float(values.mean())
    reach = float(t.ppf(confidence, values.size - 1)) * float(values.std(ddof=1)) / math.sqrt(values.size)
    return float(values.mean()) - reach


def mcnemar(worse: int, better: int) -> float:
    """Return the two-sided p value of the exact McNemar test (a binomial test of the discordant pairs)."""
    return float(binomtest(worse, worse + better).pvalue) if worse + better else 1.0


def paired_interval(worse: int, better: int, count: int) -> Interval:
    """Return the interval of the difference of two shares measured on the same inputs.

    The score interval of Tango 1998 (Statistics in Medicine 17:891-908, section 3): all differences that
    the score test does not reject. It holds its level with few discordant pairs, also with none.

    Args:
        worse: inputs that only the first one gets right.
        better: inputs that only the second one gets right.
        count: inputs, at least 1.

    Returns:
        The interval of first minus second, within -1..1.
    """

    def score(difference: float) -> float:
        # The largest likelihood of `better` under this difference solves a quadratic equation.
        linear = -worse - better + (2 * count - worse + better) * difference
        constant = -better * difference * (1 - difference)
        root = math.sqrt(max(0.0, linear * linear - 8 * count * constant))
        share = (root - linear) / (4 * count)
        variance = count * (2 * share + difference * (1 - difference))
        return (worse - better - count * difference) / math.sqrt(max(variance, 1e-300))

    observed, edge = (worse - better) / count, 1 - 1e-12
    low = -1.0 if better == count else _solve(lambda d: score(d) - Z, -edge, observed)
    high = 1.0 if worse == count else _solve(lambda d: score(d) + Z, observed, edge)
    return Interval(low, high)


def paired_drop(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> PairedDrop:
    """Compare two classifiers on the same inputs.

    Args:
        first: which inputs the first one gets right, [N], N at least 1.
        second: the same of the second one, [N].
    """
    worse = int(np.count_nonzero(first & ~second))
    better = int(np.count_nonzero(second & ~first))
    ends = paired_interval(worse, better, first.size)
    return PairedDrop(
        # From whole numbers, so that one of a hundred is 1.0 and not a rounding error more.
        points=100 * (worse - better) / first.size,
        low=100 * ends.low,
        high=100 * ends.high,
        p_value=mcnemar(worse, better),
        worse=worse,
        better=better,
    )


def early_stopping(values: NDArray[np.float64], percentile: float, confidence: float = 0.99) -> float | None:
    """Return MLPerf's early-stopping estimate of a percentile: one that it exceeds with that confidence at most.

    Of n queries the t - 1 slowest are discarded and the slowest of the rest is reported, t as large as
    P(t or fewer of n lie beyond the percentile) < 1 - confidence allows, which is a binomial tail
    (mlcommons/inference_policies, inference_rules.adoc, appendix on early stopping, tolerance d = 0;
    mlcommons/inference, loadgen/early_stopping.cc). It takes 64 queries for the 90th percentile and 662 for the 99th.

    Args:
        values: of all queries, in any order.
        percentile: 0..1.
        confidence: of the estimate.

    Returns:
        The estimate, or None for too few queries.
    """
    # Fewer go beyond it than its share: the largest t lies below the mean.
    beyond = np.arange(1, int(values.size * (1 - percentile)) + 1)
    discarded = int(np.count_nonzero(binom.cdf(beyond, values.size, 1 - percentile) < 1 - confidence))
    return float(np.sort(values)[values.size - discarded]) if discarded else None


def block_length(values: NDArray[np.float64]) -> int:
    """Return how many neighbouring rounds a bootstrap draws together, from how alike neighbours are.

    The best length for a series in which each value resembles the one before (Patton, Politis & White 2009,
    Econometric Reviews 28:372-375, for a first-order autoregression), at least R ** (1/3), rounded up (Hall,
    Horowitz & Jing 1995, Biometrika 82:561-574, give that order), at most a quarter of the rounds.

    Args:
        values: one per round, in the order of time, [R].
    """
    count = values.size
    away = values - np.median(values)
    # A round that was interrupted would hide how alike the others are.
    reach = 3 * float(np.median(np.abs(away)))
    away = np.clip(away, -reach, reach)
    power = float(away @ away)
    alike = min(max(float(away[1:] @ away[:-1]) / power, 0.0), 0.9) if power > 0 else 0.0
    best = (6 * alike**2 / (1 - alike**2) ** 2 * count) ** (1 / 3)
    return max(1, min(count // 4, math.ceil(round(float(max(best, count ** (1 / 3))), 9))))


def drawn_rounds(count: int, length: int, *, resamples: int = 1000, seed: int = 0) -> NDArray[np.int64]:
    """Draw rounds by a circular block bootstrap (Politis & Romano 1992): [resamples, count] indices."""
    starts = np.random.default_rng(seed).integers(0, count, (resamples, math.ceil(count / length)))
    return ((starts[:, :, None] + np.arange(length)) % count).reshape(resamples, -1)[:, :count]


def resampled_quantiles(
    rounds: Rounds, quantiles: Sequence[float], *, length: int, resamples: int = 1000, seed: int = 0
) -> NDArray[np.float64]:
    """Draw quantiles of a series from a circular block bootstrap over its rounds.

    Neighbouring samples resemble each other (caches, clocks, other processes), so whole runs of neighbouring
    rounds are drawn.

    Args:
        rounds: R rounds of samples, [R, K], or an array for each round where their sizes differ.
        quantiles: which ones, 0..1.
        length: of a run of rounds, by `block_length`.
        resamples: draws.
        seed: of the draws.

    Returns:
        [resamples, quantiles]
    """
    drawn = drawn_rounds(len(rounds), length, resamples=resamples, seed=seed)
    counts = np.array([np.bincount(rows, minlength=len(rounds)) for rows in drawn])
    return _drawn_quantiles(rounds, counts, quantiles)


def paired_ratio(
    first: Rounds, second: Rounds, *, confidence: float = CONFIDENCE, resamples: int = 1000, seed: int = 0
) -> tuple[float, Interval]:
    """Return how many times as long the first series takes as the second, with its interval.

    Both ran in every round, so each round gives a ratio in which cancels what slowed both: heat, clocks, other
    programs. It is that of the lower quartiles: interruptions only ever add time, and up to three queries in four may
    be interrupted before this moves, where a median stands half of them. The figure is the mean of the logarithms
    without the highest and lowest quarter (rounds in which one of the two was held up altogether); its interval is
    `around` a block bootstrap over the rounds.

    Args:
        first: samples by round, above 0.
        second: the same.
        confidence: of the interval.
        resamples: draws.
        seed: of the draws.
    """
    logs = np.log([np.quantile(a, 0.25) / np.quantile(b, 0.25) for a, b in zip(first, second, strict=True)])
    length = block_length(logs)
    draws = _trimmed_mean(logs[drawn_rounds(logs.size, length, resamples=resamples, seed=seed)])
    middle = float(_trimmed_mean(logs))
    ends = around(middle, draws, logs.size, length, confidence)
    return math.exp(middle), Interval(math.exp(ends.low), math.exp(ends.high))


def _trimmed_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    cut = values.shape[-1] // 4
    kept: NDArray[np.float64] = np.sort(values, axis=-1)[..., cut : values.shape[-1] - cut].mean(axis=-1)
    return kept


def _drawn_quantiles(
    series: Rounds, counts: NDArray[np.int64], quantiles: Sequence[float]
) -> NDArray[np.float64]:
    """Return numpy's quantiles [B, Q] of R rounds of samples, each taken as often as counts [B, R] says.

    Sorted once and counted through, which is twenty times as fast as to sort every draw.
    """
    sizes = np.array([len(samples) for samples in series])
    flat = np.concatenate(list(series))
    order = np.argsort(flat)
    values, of_round = flat[order], np.repeat(np.arange(len(sizes)), sizes)[order]
    found = np.empty((len(counts), len(quantiles)))
    for index, times in enumerate(counts):
        places = np.array(quantiles) * (int(times @ sizes) - 1)
        below = np.floor(places).astype(np.int64)
        reached = np.cumsum(times[of_round])
        low = values[np.searchsorted(reached, below, side="right")]
        high = values[np.searchsorted(reached, np.ceil(places), side="right")]
        found[index] = low + (high - low) * (places - below)
    return found


def around(
    value: float, draws: NDArray[np.float64], rounds: int, length: int, confidence: float = CONFIDENCE
) -> Interval:
    """Return the interval of a value from its bootstrap draws: Student's, with half of what two in three draws span.

    For normal draws that is their standard deviation; a few draws that picked interrupted rounds do not widen it.

    A percentile interval from R / length blocks is too narrow: it knows neither that so few blocks leave the
    spread itself uncertain (Student's quantile for as many blocks, less one) nor that runs drawn in one piece
    spread less than the rounds do (a factor sqrt(R / (R - length)); Lahiri 2003, Resampling Methods for
    Dependent Data, 3.1). Of two equal series it told a difference in up to a fifth of all cases; this one in
    at most a tenth (tests/latency/test_statistics.py).
    """
    reach = float(t.ppf(0.5 + confidence / 2, max(rounds / length - 1, 1)))
    low, high = np.quantile(draws, (0.5 - _ONE_SIGMA / 2, 0.5 + _ONE_SIGMA / 2))
    half = reach * float(high - low) / 2 * math.sqrt(rounds / max(rounds - length, 1))
    return Interval(value - half, value + half)


def _solve(function: Callable[[float], float], low: float, high: float) -> float:
    # At the observed difference the score is 0, so the two ends differ in sign unless one is the solution.
    if function(low) * function(high) > 0:
        return low if abs(function(low)) < abs(function(high)) else high
    return float(brentq(function, low, high, xtol=1e-10))
