"""Ranges: streaming equals one pass, sizes stay, estimators keep inside what was seen."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgetune.errors import StageError
from edgetune.quant.ranges import BINS, RANGES, Statistics, entropy, minmax, percentile

values = arrays.arrays(
    np.float32,
    st.integers(1, 300),
    elements=st.floats(-(2.0**100), 2.0**100, width=32) | st.floats(-8, 8, width=32),
)


def seen(*batches: np.ndarray) -> Statistics:
    statistics = Statistics("t")
    for batch in batches:
        statistics.add(batch)
    return statistics


@settings(deadline=None)
@given(values, st.integers(0, 300), st.integers(0, 300))
def test_streaming_equals_one_shot(data: np.ndarray, first: int, second: int) -> None:
    once = seen(data)
    parts = seen(*np.split(data, sorted({min(first, data.size), min(second, data.size)})))
    assert (once.low, once.high, once.limit) == (parts.low, parts.high, parts.limit)
    np.testing.assert_array_equal(once.counts, parts.counts)
    assert once.counts[BINS:].sum() == (data >= 0).sum()
    assert once.magnitudes.sum() == data.size


@settings(deadline=None)
@given(values, st.booleans(), st.sampled_from(sorted(RANGES)))
def test_every_range_lies_within_what_was_seen(data: np.ndarray, symmetric: bool, name: str) -> None:
    low, high = RANGES[name](seen(data), symmetric)
    assert float(data.min()) <= low <= high <= float(data.max())


@settings(deadline=None)
@given(values, st.floats(0.5, 1), st.floats(0.5, 1))
def test_a_larger_share_never_narrows(data: np.ndarray, one: float, other: float) -> None:
    statistics = seen(data)
    inner = percentile(statistics, True, min(one, other))
    outer = percentile(statistics, True, max(one, other))
    assert outer[0] <= inner[0]
    assert inner[1] <= outer[1]


def test_minmax_is_exact() -> None:
    data = np.array([-3.25, 0, 7.5], np.float32)
    assert minmax(seen(data), True) == (-3.25, 7.5)


def test_percentile_agrees_with_sorting() -> None:
    data = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    low, high = percentile(seen(data), True, 0.99)
    width = 8 / BINS
    assert abs(low - np.quantile(data, 0.005)) <= 2 * width
    assert abs(high - np.quantile(data, 0.995)) <= 2 * width


def test_an_outlier_does_not_set_the_percentile_nor_the_entropy_range() -> None:
    data = np.maximum(np.random.default_rng(0).standard_normal(500_000), 0).astype(np.float32)
    data[0] = 60
    statistics = seen(data)
    for estimate in (percentile, entropy):
        low, high = estimate(statistics, True)
        assert low == 0
        assert 3 < high < 8, estimate.__name__


def test_entropy_is_not_minmax_in_disguise_and_keeps_what_is_dense() -> None:
    """A full, even distribution must not be clipped; this is where a careless estimator loses points."""
    data = np.random.default_rng(0).uniform(0, 6, 300_000).astype(np.float32)
    assert entropy(seen(data), True)[1] > 5.9


def test_entropy_keeps_the_far_end_of_a_comb() -> None:
    """Values on a coarse lattice, as integer weights make them, and 1% at a hard limit (ReLU6)."""
    noise = np.random.default_rng(0)
    lattice = np.round(noise.exponential(0.4, 300_000) / 0.031) * 0.031
    data = np.minimum(np.where(noise.random(300_000) < 0.01, 6, lattice), 6).astype(np.float32)
    assert entropy(seen(data), True)[1] > 5.5


def test_entropy_does_not_clip_a_tensor_that_lies_far_from_zero() -> None:
    """A sigmoid of positive values: nothing below 0.5. Clipped there, P and Q would be the same spike."""
    data = 1 / (1 + np.exp(-np.random.default_rng(0).exponential(4, 50_000))).astype(np.float32)
    low, high = entropy(seen(data), False)
    assert (low, round(high, 2)) == (float(data.min()), 1.0)


def test_statistics_do_not_grow() -> None:
    statistics = seen(np.ones(10, np.float32))
    before = statistics.bytes
    for power in range(20):
        statistics.add(np.full(10_000, 2.0**power, np.float32))
    assert statistics.bytes == before == 2 * BINS * 8


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_broken_activations_name_their_tensor(broken: float) -> None:
    with pytest.raises(StageError, match="'t' holds NaN or infinite"):
        seen(np.array([0, broken, 1], np.float32))


@pytest.mark.parametrize("value", [0.0, -0.0, 5.0, -5.0, 1e-40, 3e38])
def test_constant_tensors_have_a_range(value: float) -> None:
    statistics = seen(np.full(1000, value, np.float32))
    for estimate in RANGES.values():
        low, high = estimate(statistics, True)
        assert low == high == np.float32(value)


def test_extremes_alone_need_no_counts() -> None:
    statistics = Statistics("t", keep_counts=False)
    statistics.add(np.array([-1, 4], np.float32))
    assert minmax(statistics, False) == (-1, 4)
    assert statistics.magnitudes.sum() == 0
