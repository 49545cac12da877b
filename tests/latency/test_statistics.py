"""Intervals: against closed formulas and other people's figures, by symmetry, and by simulated coverage."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, ttest_ind

from edgetune.latency.statistics import (
    Z,
    _drawn_quantiles,
    around,
    block_length,
    drawn_rounds,
    early_stopping,
    mcnemar,
    mean_difference,
    mean_interval,
    paired_drop,
    paired_interval,
    paired_ratio,
    resampled_quantiles,
    wilson,
)

COUNTS = st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
PAIRS = st.integers(1, 3000).flatmap(
    lambda n: st.integers(0, n).flatmap(lambda b: st.tuples(st.just(b), st.integers(0, n - b), st.just(n)))
)


@given(COUNTS)
def test_wilson_is_its_closed_formula(counts: tuple[int, int]) -> None:
    right, count = counts
    share = right / count
    centre = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    assert wilson(right, count) == pytest.approx((centre - half, centre + half), abs=1e-9)


@given(COUNTS)
def test_wilson_contains_the_share_and_mirrors(counts: tuple[int, int]) -> None:
    right, count = counts
    low, high = wilson(right, count)
    assert 0 <= low <= right / count + 1e-12
    assert right / count - 1e-12 <= high <= 1
    assert wilson(count - right, count) == pytest.approx((1 - high, 1 - low), abs=1e-9)


@given(PAIRS)
def test_paired_interval_contains_the_difference(pairs: tuple[int, int, int]) -> None:
    worse, better, count = pairs
    low, high = paired_interval(worse, better, count)
    assert -1 <= low <= (worse - better) / count + 1e-9
    assert (worse - better) / count - 1e-9 <= high <= 1
    assert low < high


@given(PAIRS)
def test_paired_interval_changes_its_sign_when_the_two_are_swapped(pairs: tuple[int, int, int]) -> None:
    worse, better, count = pairs
    low, high = paired_interval(worse, better, count)
    assert paired_interval(better, worse, count) == pytest.approx((-high, -low), abs=1e-8)


@pytest.mark.parametrize("count", [1, 20, 153, 10_000])
def test_no_discordant_pair_gives_the_score_test_s_limit(count: int) -> None:
    # With none, the score is -sqrt(n d / (1 - d)), so the interval ends where that is z.
    end = Z**2 / (count + Z**2)
    assert paired_interval(0, 0, count) == pytest.approx((-end, end), rel=1e-6)


@pytest.mark.parametrize(("worse", "better", "count"), [(3, 1, 153), (7, 1, 21), (0, 2, 50), (12, 9, 400)])
def test_paired_interval_ends_where_a_brute_force_score_test_rejects(
    worse: int, better: int, count: int
) -> None:
    def score(difference: float) -> float:
        # Tango's restricted likelihood, maximised on a grid instead of by its quadratic equation.
        gain = np.linspace(max(0.0, -difference), (1 - difference) / 2, 400_001)[1:-1]
        loss, rest = gain + difference, 1 - 2 * gain - difference
        terms = ((worse, loss), (better, gain), (count - worse - better, rest))
        with np.errstate(divide="ignore", invalid="ignore"):
            likelihood = sum(times * np.log(share) for times, share in terms if times)
        best = gain[np.nanargmax(likelihood)]
        variance = count * (2 * best + difference - difference**2)
        return (worse - better - count * difference) / math.sqrt(variance)

    low, high = paired_interval(worse, better, count)
    assert score(low) == pytest.approx(Z, rel=2e-3)
    assert score(high) == pytest.approx(-Z, rel=2e-3)


def test_a_published_example() -> None:
    # Airway reactivity before and after transplantation, 1 and 7 discordant of 21 pairs (Fagerland, Lydersen
    # & Laake 2014, Statistics in Medicine 33:2850-2875): Tango's interval is -0.517 to -0.026.
    assert paired_interval(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)


def test_tango_covers() -> None:
    noise = np.random.default_rng(1)
    table = noise.multinomial(200, [0.02, 0.01, 0.97], size=600)
    ends = [paired_interval(int(b), int(c), 200) for b, c, _ in table]
    assert 0.92 <= np.mean([low <= 0.01 <= high for low, high in ends]) <= 0.985


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_binomial_tail(worse: int, better: int) -> None:
    n, k = worse + better, min(worse, better)
    tail = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
    expected = 1.0 if worse == better else min(1.0, 2 * tail)
    assert mcnemar(worse, better) == pytest.approx(expected, rel=1e-9)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200))
def test_paired_drop_counts(pairs: list[tuple[bool, bool]]) -> None:
    first, second = (np.array(side) for side in zip(*pairs, strict=True))
    drop = paired_drop(first, second)
    assert drop.points == pytest.approx(100 * (first.mean() - second.mean()))
    assert (drop.worse, drop.better) == (pairs.count((True, False)), pairs.count((False, True)))
    assert drop.low <= drop.points + 1e-6
    assert drop.points - 1e-6 <= drop.high


def test_one_worse_of_a_hundred_is_exactly_one_point() -> None:
    first, second = np.ones(100, bool), np.arange(100) > 0
    assert paired_drop(first, second).points == 1.0


def test_mean_interval() -> None:
    assert mean_interval(np.array([0.5])) is None
    # Student's t at 97.5% with 2 degrees of freedom is 4.30265.
    found = mean_interval(np.array([1.0, 2.0, 3.0]))
    assert found == pytest.approx((2 - 4.30265 / math.sqrt(3), 2 + 4.30265 / math.sqrt(3)), abs=1e-4)


def test_difference_of_means() -> None:
    first, second = np.array([0.9, 0.92, 0.95, 0.91]), np.array([0.8, 0.7, 0.9])
    known = ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    assert mean_difference(first, second) == pytest.approx((known.low, known.high))
    assert mean_difference(first, second[:1]) is None
    assert mean_difference(np.array([0.9, 0.9]), np.array([0.7, 0.7])) == pytest.approx((0.2, 0.2))


@pytest.mark.slow
def test_bootstrap_sees_that_neighbouring_rounds_resemble_each_other() -> None:
    noise, covers, single = np.random.default_rng(5), [], []
    for trial in range(200):
        level = 0.02 * alike(noise, 40, 0.5)
        samples = 10 + level[:, None] + noise.normal(0, 0.05, (40, 8))
        for rounds, found in ((samples, covers), (noise.permutation(samples.reshape(-1, 1)), single)):
            length = block_length(np.median(rounds, axis=1))
            draws = resampled_quantiles(rounds, [0.5], length=length, resamples=200, seed=trial)[:, 0]
            low, high = around(float(np.median(rounds)), draws, len(rounds), length)
            found.append(low <= 10 <= high)
    # Treating the samples as independent covers about 80%.
    assert np.mean(covers) >= 0.9
    assert np.mean(covers) > np.mean(single) + 0.05


def test_what_disturbs_both_cancels_in_the_ratio() -> None:
    noise = np.random.default_rng(2)
    load = 1 + 0.3 * (np.arange(30)[:, None] // 5 % 2)
    slow, fast = (base * load * (1 + noise.normal(0, 0.01, (30, 6))) for base in (2.0, 1.0))
    draws = resampled_quantiles(slow, [0.5], length=4, seed=3)[:, 0]
    alone = around(2.3, draws, 30, 4)
    value, ratio = paired_ratio(slow, fast, seed=3)
    assert ratio.low <= 2.0 <= ratio.high
    assert value == pytest.approx(2.0, rel=0.01)
    assert (ratio.high - ratio.low) / 2 < (alone.high - alone.low) / 2 / 10


def test_the_ratio_mirrors() -> None:
    noise = np.random.default_rng(1)
    slow, fast = (noise.uniform(1, 2, (20, 5)) for _ in range(2))
    there, back = paired_ratio(slow, fast, seed=1), paired_ratio(fast, slow, seed=1)
    assert there[0] == pytest.approx(1 / back[0])
    assert there[1].low == pytest.approx(1 / back[1].high)


def alike(noise: np.random.Generator, count: int, likeness: float) -> np.ndarray:
    """Values each of which resembles the one before."""
    values = noise.standard_normal(count)
    for place in range(1, count):
        values[place] = likeness * values[place - 1] + math.sqrt(1 - likeness**2) * values[place]
    return values


@pytest.mark.slow
@pytest.mark.parametrize(("likeness", "most"), [(0.0, 0.08), (0.5, 0.12)])
def test_equal_series_are_seldom_told_apart(likeness: float, most: float) -> None:
    """Each series drifts on its own from round to round: the pairing cancels nothing."""
    noise = np.random.default_rng(4)
    wrong = 0
    for trial in range(300):
        both = [
            np.exp(0.05 * alike(noise, 40, likeness)[:, None] + 0.03 * noise.standard_normal((40, 5)))
            for _ in range(2)
        ]
        _, ends = paired_ratio(*both, resamples=200, seed=trial)
        wrong += not ends.low <= 1 <= ends.high
    # 5% is what is promised; the few blocks of forty alike rounds allow no better than twice that.
    assert 0 < wrong / 300 <= most


def test_a_tenth_is_found_though_rounds_are_interrupted() -> None:
    noise, found = np.random.default_rng(5), 0
    for trial in range(100):
        both = [base * np.exp(0.05 * noise.standard_normal((40, 5))) for base in (1.1, 1.0)]
        for series in both:
            # One round in ten at several times its length.
            series[noise.random(40) < 0.1] *= noise.uniform(2, 5)
        found += paired_ratio(*both, resamples=200, seed=trial)[1].low > 1
    assert found >= 95


def test_runs_are_longer_where_neighbours_are_alike() -> None:
    noise = np.random.default_rng(6)
    lengths = [
        np.mean([block_length(alike(noise, 64, likeness)) for _ in range(50)]) for likeness in (0.0, 0.5, 0.9)
    ]
    assert lengths[0] < lengths[1] < lengths[2] <= 16
    assert block_length(np.ones(64)) == 4
    assert block_length(np.ones(2)) == 1


def test_runs_are_neighbours_round_the_end() -> None:
    drawn = drawn_rounds(10, 5, resamples=100, seed=0)
    assert drawn.shape == (100, 10)
    assert ((drawn[:, 1:5] - drawn[:, :4]) % 10 == 1).all()
    assert set(drawn.ravel()) == set(range(10))


def test_an_interval_widens_with_fewer_runs() -> None:
    draws = np.random.default_rng(0).standard_normal(500)
    halves = [around(0.0, draws, rounds, 4).high for rounds in (8, 16, 32, 400)]
    assert halves == sorted(halves, reverse=True)
    assert halves[-1] == pytest.approx(1.96, rel=0.1)
    assert around(0.0, draws, 32, 4, 0.99).high > halves[2]


@pytest.mark.parametrize(("percentile", "fewest"), [(0.9, 64), (0.99, 662)])
def test_early_stopping_begins_where_mlperf_s_does(percentile: float, fewest: int) -> None:
    assert early_stopping(np.arange(fewest - 1.0), percentile) is None
    # One may lie beyond: nothing is discarded, and the slowest is reported.
    assert early_stopping(np.arange(float(fewest)), percentile) == fewest - 1


@settings(max_examples=60)
@given(st.integers(64, 30_000))
def test_early_stopping_is_the_binomial_tail(count: int) -> None:
    found = early_stopping(np.arange(float(count))[::-1], 0.9)
    assert found is not None
    discarded = int(count - 1 - found)
    assert binom.cdf(discarded + 1, count, 0.1) < 0.01 <= binom.cdf(discarded + 2, count, 0.1)


def test_the_estimate_is_seldom_below_the_percentile() -> None:
    noise = np.random.default_rng(7)
    # The true 90th percentile of these is 0.9.
    below = sum((early_stopping(noise.random(300), 0.9) or 0) < 0.9 for _ in range(2000))
    assert below / 2000 <= 0.01


@settings(max_examples=50)
@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 2**31))
def test_quantiles_by_counting_are_numpy_s(count: int, per_round: int, seed: int) -> None:
    noise = np.random.default_rng(seed)
    samples = noise.integers(0, 9, (count, per_round)).astype(float)
    drawn = noise.integers(0, count, (4, count))
    counts = np.array([np.bincount(rows, minlength=count) for rows in drawn])
    expected = [np.quantile(samples[rows], (0.0, 0.5, 0.99, 1.0)) for rows in drawn]
    assert _drawn_quantiles(samples, counts, (0.0, 0.5, 0.99, 1.0)) == pytest.approx(np.array(expected))


@settings(max_examples=20)
@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 2**31))
def test_bootstrap_repeats_and_stays_inside(count: int, per_round: int, seed: int) -> None:
    samples = np.random.default_rng(seed).uniform(1, 2, (count, per_round))
    first = resampled_quantiles(samples, [0.5, 0.99], length=1, resamples=20, seed=seed)
    assert first.shape == (20, 2)
    assert np.array_equal(first, resampled_quantiles(samples, [0.5, 0.99], length=1, resamples=20, seed=seed))
    assert samples.min() <= first.min() <= first.max() <= samples.max()
