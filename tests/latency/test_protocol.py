"""The protocol on a clock that only the models move: order, counts, bounds, and what is not trusted."""

import gc
import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.errors import StageError
from edgetune.latency import protocol
from edgetune.latency.protocol import PRESETS, WINDOW_QUERIES, Preset, measure, offline, take
from edgetune.latency.summary import FEWEST_ROUNDS, KEPT_SAMPLES

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


def test_a_query_that_times_itself_is_believed() -> None:
    world = Simulated()
    slow = world.model("m", lambda _: 3.0)

    def query() -> float:
        slow()
        return 1.25

    assert measure({"m": query}, SMALL, clock=world.clock)["models"]["m"]["p50_ms"] == 1.25


def test_a_model_that_turns_out_faster_gets_more_rounds() -> None:
    world = Simulated()
    # Four times as fast as in the warm-up: the blocks were made too small.
    rushing = world.model("m", lambda call: 8.0 if call < 14 else 2.0)
    taken = take({"m": rushing}, SMALL, clock=world.clock)
    assert len(taken.rounds["m"]) > SMALL.rounds
    assert sum(float(block.sum()) for block in taken.rounds["m"]) / 1e3 >= SMALL.seconds


def test_nothing_is_run_unrecorded_between_the_queries_of_a_single_model() -> None:
    world = Simulated()
    taken = take({"m": world.model("m", lambda _: 6.0)}, SMALL, clock=world.clock)
    # One settles before the first round.
    assert len(world.order) == taken.warmup["m"] + 1 + sum(map(len, taken.rounds["m"]))


def test_the_share_of_time_with_a_processor_is_told() -> None:
    world = Simulated()
    taken = take(
        {"m": world.model("m", lambda _: 2.0)}, SMALL, clock=world.clock, worked=lambda: world.now_ns // 4
    )
    assert taken.busy["m"] == pytest.approx(0.25, rel=0.01)


def test_a_model_that_never_settles_is_named() -> None:
    world = Simulated()
    noise = np.random.default_rng(0)
    found = measure(
        {"m": world.model("m", lambda _: 5 * float(noise.random()) + 0.2)}, SMALL, clock=world.clock
    )
    assert "still changing after the warm-up" in found["why"]


def test_a_clock_that_is_set_back_ends_no_loop_late_and_is_told() -> None:
    world = Simulated()

    def jumping() -> int:
        # Set back by an hour, in the middle of the measurement.
        return world.clock() - (3_600_000_000_000 if world.now_ns > 250_000_000 else 0)

    found = measure({"m": world.model("m", lambda _: 2.0)}, SMALL, clock=jumping)
    assert not found["trusted"]
    assert "the clock went back" in found["why"]
    assert found["models"]["m"]["min_ms"] == pytest.approx(2.0, rel=0.01)


@pytest.mark.parametrize("at_ns", [1_000, 40_000_000, 100_000_000])
def test_a_clock_that_is_set_back_in_the_warm_up_ends_it(at_ns: int) -> None:
    world = Simulated()
    found = measure(
        {"m": world.model("m", lambda _: 2.0)},
        SMALL,
        clock=lambda: world.clock() - (10**15 if world.now_ns > at_ns else 0),
    )
    assert found["models"]["m"]["p50_ms"] == pytest.approx(2.0, rel=0.01)


def test_a_clock_that_is_set_forward_is_told() -> None:
    world = Simulated()
    found = measure(
        {"m": world.model("m", lambda _: 2.0)},
        SMALL,
        clock=lambda: world.clock() + (3_600_000_000_000 if world.now_ns > 250_000_000 else 0),
    )
    assert "the clock was set forward, or the machine slept" in found["why"]


def test_a_clock_that_stands_still_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "STUCK_QUERIES", 1000)
    with pytest.raises(StageError, match="stands still"):
        measure({"m": lambda: None}, SMALL, clock=lambda: 7)
    with pytest.raises(StageError, match="stands still"):
        offline(lambda: None, 1, PRESETS["mlperf"], clock=lambda: 7)


def test_mlperf_s_single_stream_takes_its_time_and_its_queries() -> None:
    world, preset = Simulated(), PRESETS["mlperf"]
    found = measure({"m": world.model("m", noisy(15_000.0, 1))}, preset, clock=world.clock)
    model = found["models"]["m"]
    assert model["count"] >= 64
    assert model["p90_early_ms"] is not None
    assert model["p90_early_ms"] >= model["p90_ms"]
    world = Simulated()
    found = measure({"m": world.model("m", lambda _: 200.0)}, preset, clock=world.clock)
    assert found["models"]["m"]["count"] * 0.2 >= 600


@pytest.mark.parametrize(("milliseconds", "batch"), [(100.0, 8), (4.0, 1), (3000.0, 256)])
def test_mlperf_s_offline_takes_its_time_and_its_samples(milliseconds: float, batch: int) -> None:
    world = Simulated()
    found = offline(world.model("m", lambda _: milliseconds), batch, PRESETS["mlperf"], clock=world.clock)
    assert found["samples"] >= 24_576
    assert found["seconds"] >= 600
    assert found["samples"] <= max(24_576, 600e3 / milliseconds * batch) + batch
    assert found["samples_per_second"] == pytest.approx(1000 * batch / milliseconds, rel=0.01)
