"""The protocol on a clock that only the models move: order, counts, bounds, and what is not trusted."""

import gc
import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.latency.protocol import (
    FEWEST_ROUNDS,
    KEPT_SAMPLES,
    LIMITS,
    PRESETS,
    WINDOW_QUERIES,
    Preset,
    measure,
    summarise,
)

SMALL = Preset(seconds=0.2, queries=30, rounds=12, warmup_seconds=0.3, limit_seconds=2.0)


class Simulated:
    """Models whose queries take simulated time, on a clock of their own."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.order: list[str] = []

    def clock(self) -> int:
        self.now_ns += 50
        return self.now_ns

    def model(self, name: str, milliseconds: Callable[[int], float]) -> Callable[[], None]:
        calls = itertools.count()

        def query() -> None:
            self.order.append(name)
            self.now_ns += int(milliseconds(next(calls)) * 1e6)

        return query


def noisy(milliseconds: float, seed: int, deviation: float = 0.01) -> Callable[[int], float]:
    noise = np.random.default_rng(seed)
    return lambda _: milliseconds * (1 + deviation * float(noise.standard_normal()))


def test_medians_ratio_and_counts() -> None:
    world = Simulated()
    queries = {"fp32": world.model("fp32", noisy(4.0, 1)), "int8": world.model("int8", noisy(2.0, 2))}
    found = measure(queries, SMALL, clock=world.clock)
    for name, expected in (("fp32", 4.0), ("int8", 2.0)):
        model = found["models"][name]
        assert model["p50_ms"] == pytest.approx(expected, rel=0.01)
        assert (
            model["min_ms"]
            <= model["p50_low_ms"]
            <= model["p50_ms"]
            <= model["p50_high_ms"]
            <= model["p90_ms"]
        )
        assert model["p90_ms"] <= model["p99_ms"] <= model["max_ms"]
        assert model["p99_low_ms"] <= model["p99_ms"] <= model["p99_high_ms"]
        assert model["cv"] == pytest.approx(0.01, rel=0.5)
        assert model["count"] >= SMALL.queries
        assert model["count"] * expected / 1e3 >= SMALL.seconds * 0.95
        assert len(model["samples_ms"]) == min(model["count"], KEPT_SAMPLES)
    assert found["trusted"], found["why"]
    ratio = found["speedup"]
    assert ratio is not None
    assert ratio["low"] <= ratio["value"] <= ratio["high"]
    assert ratio["value"] == pytest.approx(2.0, rel=0.01)
    assert ratio["high"] - ratio["low"] < 0.1


def test_blocks_of_all_models_alternate_in_shuffled_order() -> None:
    world = Simulated()
    queries = {name: world.model(name, lambda _: 3.0) for name in "abc"}
    found = measure(queries, SMALL, clock=world.clock, seed=3)
    timed = world.order[sum(model["warmup"] for model in found["models"].values()) :]
    size = len(timed) // SMALL.rounds
    rounds = [timed[start : start + size] for start in range(0, len(timed), size)]
    assert len(rounds) == SMALL.rounds
    orders = set()
    for one in rounds:
        # Every model has one uninterrupted block in every round.
        order = [name for name, _ in itertools.groupby(one)]
        assert sorted(order) == ["a", "b", "c"]
        assert {one.count(name) for name in "abc"} == {size // 3}
        orders.add(tuple(order))
    assert len(orders) > 2


def test_repeats_exactly_with_the_same_seed() -> None:
    def once(seed: int) -> object:
        world = Simulated()
        queries = {name: world.model(name, noisy(2.0, index)) for index, name in enumerate("ab")}
        return measure(queries, SMALL, clock=world.clock, seed=seed)

    assert once(0) == once(0)
    assert once(0) != once(1)


def test_warm_up_ends_when_stable_and_is_not_recorded() -> None:
    world = Simulated()
    # The first 40 queries are slower and slower to settle; none of that may be in the figures.
    found = measure({"m": world.model("m", lambda call: 2.0 + max(0, 40 - call))}, SMALL, clock=world.clock)
    model = found["models"]["m"]
    assert model["warmup"] >= 3 * WINDOW_QUERIES
    assert world.now_ns < 5e9
    assert found["speedup"] is None
    assert model["p50_ms"] < 30


def test_warm_up_is_bounded_where_it_never_settles() -> None:
    world = Simulated()
    unstable = world.model("m", lambda call: 1.0 if call // 20 % 2 else 3.0)
    found = measure({"m": unstable}, SMALL, clock=world.clock)
    assert found["models"]["m"]["warmup"] <= SMALL.warmup_seconds * 1e3 / 1.0 + 40


@settings(max_examples=25, deadline=None)
@given(st.floats(0.02, 5000), st.sampled_from(sorted(PRESETS)))
def test_recorded_time_is_bounded_whatever_the_model(milliseconds: float, name: str) -> None:
    preset, world = PRESETS[name], Simulated()
    # Long series of a fast model would only make the test slow.
    preset = Preset(min(preset.seconds, 0.5), preset.queries, preset.rounds, 0.1, preset.limit_seconds)
    found = measure({"m": world.model("m", lambda _: milliseconds)}, preset, clock=world.clock)
    model = found["models"]["m"]
    recorded_seconds = model["count"] * milliseconds / 1e3
    assert recorded_seconds <= max(preset.limit_seconds, FEWEST_ROUNDS * milliseconds / 1e3) * 1.05
    affordable = preset.limit_seconds / (milliseconds / 1e3)
    assert model["count"] >= min(preset.queries, affordable * 0.4)
    assert model["count"] >= FEWEST_ROUNDS


def test_garbage_collection_stays_out_and_comes_back() -> None:
    seen: set[bool] = set()
    world = Simulated()

    def query() -> None:
        seen.add(gc.isenabled())
        world.now_ns += 2_000_000

    measure({"m": query}, SMALL, clock=world.clock)
    assert seen == {False}
    assert gc.isenabled()


def test_the_collector_comes_back_after_an_error() -> None:
    def broken() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        measure({"m": broken}, SMALL)
    assert gc.isenabled()


def samples(rounds: int = 30, per_round: int = 20, seed: int = 0) -> np.ndarray:
    return 1 + 0.01 * np.random.default_rng(seed).standard_normal((rounds, per_round))


def test_quiet_samples_are_trusted() -> None:
    assert summarise({"m": samples()}, {"m": 9})["why"] == ""


def test_drift_is_not_trusted() -> None:
    drifting = samples() * np.linspace(1, 1 + 2 * LIMITS["drift"], 30)[:, None]
    found = summarise({"fp32": samples(), "int8": drifting}, {"fp32": 1, "int8": 1})
    assert not found["trusted"]
    assert found["why"].startswith("int8: the median drifted by +")
    assert "fp32" not in found["why"]


def test_a_busy_tail_is_not_trusted_but_a_single_interruption_is() -> None:
    rare, often = samples(), samples()
    rare[7, 3] = 100.0
    often[:, ::8] = 3.0
    assert summarise({"m": rare}, {"m": 1})["trusted"]
    assert "one query in ten" in summarise({"m": often}, {"m": 1})["why"]


def test_a_median_between_two_modes_is_not_trusted() -> None:
    modes = samples()
    modes[np.random.default_rng(1).random(30) < 0.5] *= 1.4
    assert "the median is uncertain" in summarise({"m": modes}, {"m": 1})["why"]


def test_thinned_samples_span_the_whole_time() -> None:
    long = np.arange(1, 9001, dtype=np.float64).reshape(30, 300)
    kept = summarise({"m": long}, {"m": 1})["models"]["m"]["samples_ms"]
    assert len(kept) == KEPT_SAMPLES
    assert (kept[0], kept[-1]) == (1.0, 9000.0)
    assert kept == sorted(kept)
