"""Ranges: inputs come in any order, sizes stay, estimators keep inside what was seen and do what they say."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgetune.errors import StageError
from edgetune.quant.plan import asymmetric, symmetric
from edgetune.quant.ranges import (
    COUNTED,
    RANGES,
    Statistics,
    entropy,
    mean,
    minmax,
    mse,
    percentile,
    squared_errors,
)

values = arrays.arrays(
    np.float32,
    st.integers(1, 300),
    elements=st.floats(-(2.0**100), 2.0**100, width=32) | st.floats(-8, 8, width=32),
)
everyday = arrays.arrays(np.float32, st.integers(2, 300), elements=st.floats(-8, 8, width=16))


def seen(*inputs: np.ndarray) -> Statistics:
    statistics = Statistics("t")
    for own in inputs:
        statistics.add(own)
    return statistics


def true_error(data: np.ndarray, found: tuple[float, float], is_symmetric: bool) -> float:
    """The squared error of quantizing, as ONNX defines it."""
    made = (symmetric if is_symmetric else asymmetric)(*found)
    lowest = (-128 if is_symmetric else 0) - made.zero_point
    scale = float(made.scale)
    levels = np.clip(np.rint(data.astype(np.float64) / scale), lowest, lowest + 255)
    return float(np.mean((data - levels * scale) ** 2))


@settings(deadline=None)
@given(st.lists(values, min_size=1, max_size=5), st.randoms())
def test_the_order_of_inputs_makes_no_difference(data: list[np.ndarray], chance: random.Random) -> None:
    once = seen(*data)
    chance.shuffle(data)
    again = seen(*data)
    assert (once.low, once.high, once.inputs) == (again.low, again.high, again.inputs)
    assert (once.lows, once.highs) == pytest.approx((again.lows, again.highs))
    np.testing.assert_array_equal(once.positive, again.positive)
    np.testing.assert_array_equal(once.negative, again.negative)


@settings(deadline=None)
@given(values)
def test_every_value_is_counted_where_it_lies(data: np.ndarray) -> None:
    statistics = seen(data)
    edges, counts = statistics.density()
    assert counts.sum() == data.size
    assert (np.diff(edges) >= 0).all()
    below = np.concatenate([[0], np.cumsum(counts)])
    # At every edge, so many values are smaller; values that sit on it may be on either side.
    fewest = np.searchsorted(np.sort(data), edges.astype(np.float32), side="left")
    most = np.searchsorted(np.sort(data), edges.astype(np.float32), side="right")
    assert (fewest <= below).all()
    assert (below <= most).all()


@settings(deadline=None)
@given(values, st.booleans(), st.sampled_from(sorted(RANGES)))
def test_every_range_lies_within_what_was_seen(data: np.ndarray, symmetric: bool, name: str) -> None:
    low, high = RANGES[name](seen(data, data[:1]), symmetric)
    assert float(data.min()) <= low <= high <= float(data.max())


@settings(deadline=None)
@given(everyday, st.booleans(), st.sampled_from(sorted(RANGES)), st.integers(-8, 8))
def test_twice_the_values_have_twice_the_range(
    data: np.ndarray, symmetric: bool, name: str, octaves: int
) -> None:
    low, high = RANGES[name](seen(data), symmetric)
    factor = 2.0**octaves
    assert RANGES[name](seen(data * np.float32(factor)), symmetric) == pytest.approx(
        (low * factor, high * factor), rel=1e-4, abs=1e-9
    )


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


def test_the_mean_is_that_of_inputs_not_of_values() -> None:
    inputs = [np.array([-1, 4], np.float32), np.array([-3, 0, 0, 0, 2], np.float32)]
    assert mean(seen(*inputs), True) == (-2, 3)


def test_percentile_agrees_with_sorting() -> None:
    data = np.random.default_rng(0).standard_normal(50_000).astype(np.float32)
    low, high = percentile(seen(data), True, 0.99)
    assert low == pytest.approx(np.quantile(data, 0.005), rel=0.005)
    assert high == pytest.approx(np.quantile(data, 0.995), rel=0.005)


SHAPES = {
    "normal": lambda noise: noise.standard_normal(20_000),
    "heavy tails": lambda noise: noise.standard_t(3, 20_000),
    "after ReLU": lambda noise: np.maximum(noise.standard_normal(20_000), 0),
    "after ReLU6, a tenth at its limit": lambda noise: np.clip(noise.normal(2, 3, 20_000), 0, 6),
    "shifted": lambda noise: noise.normal(3, 1, 20_000),
    "after SiLU": lambda noise: (x := 4 * noise.standard_normal(20_000)) / (1 + np.exp(-x)),
    "negative": lambda noise: -noise.exponential(1, 20_000),
    "sparse": lambda noise: noise.standard_normal(20_000) * (noise.random(20_000) < 0.02),
    "with an outlier": lambda noise: np.append(noise.standard_normal(20_000), 1000),
}


@pytest.mark.parametrize("is_symmetric", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_mse_finds_the_range_with_the_least_error(shape: str, is_symmetric: bool) -> None:
    data = SHAPES[shape](np.random.default_rng(0)).astype(np.float32)
    statistics = seen(data)
    reached = true_error(data, mse(statistics, is_symmetric), is_symmetric)
    ends = [float(data.min()), float(data.max())]
    if is_symmetric:
        tried = [(f * min(ends[0], 0), f * ends[1]) for f in np.geomspace(0.004, 1, 300)]
    else:
        steps = [*np.geomspace(0.004, 1, 60)]
        tried = [(f * min(ends[0], 0), g * max(ends[1], 0)) for f in steps for g in steps]
    assert reached <= 1.02 * min(true_error(data, found, is_symmetric) for found in tried)


@settings(deadline=None, max_examples=50)
@given(everyday, st.booleans())
def test_mse_is_no_worse_than_the_extremes(data: np.ndarray, is_symmetric: bool) -> None:
    statistics = seen(data)
    reached = true_error(data, mse(statistics, is_symmetric), is_symmetric)
    widest = true_error(data, minmax(statistics, is_symmetric), is_symmetric)
    # A few values, which a histogram only knows to be in a bin, may do better or worse than spread over it.
    step = float((symmetric if is_symmetric else asymmetric)(*minmax(statistics, is_symmetric)).scale)
    assert reached <= widest + step**2 / 4


@pytest.mark.parametrize("is_symmetric", [True, False])
def test_the_error_that_is_minimised_is_the_true_one(is_symmetric: bool) -> None:
    data = np.random.default_rng(0).normal(1, 2, 60_000).astype(np.float32)
    edges, counts = seen(data).density()
    for found in [(-3.0, 4.0), (-9.0, 12.0), (-1.0, 9.0)]:
        computed = squared_errors(edges, counts, [found], is_symmetric)[0]
        assert computed == pytest.approx(true_error(data, found, is_symmetric), rel=0.02)


def test_an_outlier_does_not_set_the_percentile_nor_the_entropy_range() -> None:
    data = np.maximum(np.random.default_rng(0).standard_normal(50_000), 0).astype(np.float32)
    data[0] = 60
    statistics = seen(data)
    for estimate in (percentile, entropy):
        low, high = estimate(statistics, True)
        assert low == 0
        assert 3 < high < 8, estimate.__name__


@pytest.mark.parametrize("huge", [1e6, 1e30, -1e30, 3e38])
def test_one_huge_value_costs_no_resolution_where_the_others_lie(huge: float) -> None:
    data = np.random.default_rng(0).standard_normal(50_000).astype(np.float32)
    without = percentile(seen(data), True, 0.99)
    data[7] = huge
    assert percentile(seen(data), True, 0.99) == pytest.approx(without, rel=0.01)
    for estimate in RANGES.values():
        for is_symmetric in (True, False):
            low, high = estimate(seen(data), is_symmetric)
            assert np.isfinite([low, high]).all()
            assert low < high


def test_entropy_is_not_minmax_in_disguise_and_keeps_what_is_dense() -> None:
    """A full, even distribution must not be clipped; this is where a careless estimator loses points."""
    data = np.random.default_rng(0).uniform(0, 6, 60_000).astype(np.float32)
    assert entropy(seen(data), True)[1] > 5.9


def test_entropy_keeps_the_far_end_of_a_comb() -> None:
    """Values on a coarse lattice, as integer weights make them, and 1% at a hard limit (ReLU6)."""
    noise = np.random.default_rng(0)
    lattice = np.round(noise.exponential(0.4, 60_000) / 0.031) * 0.031
    data = np.minimum(np.where(noise.random(60_000) < 0.01, 6, lattice), 6).astype(np.float32)
    assert entropy(seen(data), True)[1] > 5.5


def test_entropy_does_not_clip_a_tensor_that_lies_far_from_zero() -> None:
    """A sigmoid of positive values: nothing below 0.5. Clipped there, P and Q would be the same spike."""
    data = 1 / (1 + np.exp(-np.random.default_rng(0).exponential(4, 50_000))).astype(np.float32)
    low, high = entropy(seen(data), False)
    assert (low, round(high, 2)) == (float(data.min()), 1.0)


def test_statistics_do_not_grow_with_inputs_or_pixels() -> None:
    noise = np.random.default_rng(0)
    statistics = seen(np.array([-8, 8], np.float32))
    before = statistics.bytes
    for size in (10, 1000, 4 * COUNTED):
        statistics.add(noise.uniform(-8, 8, size).astype(np.float32))
    assert statistics.bytes == before < 200_000


def test_extremes_are_of_all_values_and_counts_of_an_even_part() -> None:
    data = np.zeros((3, 10 * COUNTED // 30, 10), np.float32)
    data[0, 1, 1], data[1, 2, 2] = -7, 9
    statistics = seen(data)
    assert (statistics.low, statistics.high) == (-7, 9)
    assert COUNTED / 2 < statistics.positive.sum() + statistics.negative.sum() <= COUNTED
    columns = np.tile(np.arange(10, dtype=np.float32), COUNTED)
    counted = seen(columns).positive
    held = counted[counted > 0]
    assert len(held) == 10
    assert held.max() - held.min() <= 1


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_broken_activations_name_their_tensor_and_input(broken: float) -> None:
    with pytest.raises(StageError, match="'t' holds NaN or infinite values for input 2"):
        seen(np.zeros(3, np.float32), np.array([0, broken, 1], np.float32))


@pytest.mark.parametrize("value", [0.0, -0.0, 5.0, -5.0, 1e-40, 3e38])
@pytest.mark.parametrize("name", RANGES)
def test_constant_tensors_have_a_range(name: str, value: float) -> None:
    statistics = seen(np.full(1000, value, np.float32), np.full(7, value, np.float32))
    low, high = RANGES[name](statistics, True)
    assert low == high == np.float32(value)


def test_extremes_alone_need_no_counts() -> None:
    statistics = Statistics("t", keep_counts=False)
    statistics.add(np.array([-1, 4], np.float32))
    assert minmax(statistics, False) == (-1, 4)
    assert statistics.bytes == 0
