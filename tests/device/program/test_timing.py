"""The protocol of timing, by a clock that only queries move."""

import gc
from collections.abc import Callable, Iterator
from itertools import chain, pairwise, repeat
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.device.program import timing
from edgetune.device.program.problem import Problem
from edgetune.device.program.timing import interleave, schedule


class Bench:
    """Engines whose queries take the milliseconds they are given, one after the other, on a clock of their own."""

    def __init__(self, **engines: float | Iterator[float]) -> None:
        self.now = 100.0
        self.asked: list[str] = []
        self.queries = {name: self._query(name, took) for name, took in engines.items()}

    def _query(self, name: str, took: float | Iterator[float]) -> Callable[[], float]:
        times = repeat(took) if isinstance(took, (int, float)) else took

        def query() -> float:
            milliseconds = next(times)
            self.asked.append(name)
            self.now += milliseconds / 1e3
            return milliseconds

        return query

    def time(self, **given: Any) -> dict[str, Any]:
        return interleave(self.queries, clock=lambda: self.now, **given)


def of(result: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [block for block in result["blocks"] if block["name"] == name]


def count(result: dict[str, Any], name: str) -> int:
    return sum(len(block["ms"]) for block in of(result, name))


def test_every_round_has_a_block_of_each_engine_in_shuffled_order() -> None:
    result = Bench(int8=1.0, fp16=2.0, fp32=4.0).time(seconds=3.0, queries_least=300, rounds=12, seed=5)
    order = [[block["name"] for block in result["blocks"] if block["round"] == index] for index in range(12)]
    assert result["rounds"] == 12
    assert all(sorted(names) == ["fp16", "fp32", "int8"] for names in order)
    assert len({tuple(names) for names in order}) > 3
    assert order == schedule(["int8", "fp16", "fp32"], 12, 5)
    assert (
        schedule(["a", "b", "c"], 12, 5)
        == schedule(["a", "b", "c"], 12, 5)
        != schedule(["a", "b", "c"], 12, 6)
    )


def test_least_seconds_and_least_queries_both_hold() -> None:
    result = Bench(fast=1.0, slow=50.0).time(seconds=10.0, queries_least=600, rounds=10)
    assert result["complete"] == {"fast": True, "slow": True}
    assert 10_000 <= count(result, "fast") <= 10_010
    assert count(result, "slow") == 600
    assert all(set(block["ms"]) == {1.0} for block in of(result, "fast"))


def test_the_limit_holds_and_is_told() -> None:
    bench = Bench(fast=1.0, slow=50.0)
    result = bench.time(seconds=1.0, queries_least=1000, rounds=10, limit_s=20.0)
    assert result["complete"] == {"fast": True, "slow": False}
    passed = sum(block["end_s"] - block["start_s"] for block in result["blocks"])
    assert passed <= 20.0 + 10 * 0.05
    assert {len(block["ms"]) for block in of(result, "slow")} <= {20, 21}


def test_a_very_slow_engine_gets_fewer_rounds_of_one_query() -> None:
    result = Bench(slow=30_000.0).time(seconds=30.0, queries_least=1000, rounds=30, limit_s=300.0)
    assert result["rounds"] == 10
    assert [len(block["ms"]) for block in result["blocks"]] == [1] * 10
    slower = Bench(slow=400_000.0).time(seconds=30.0, queries_least=1000, rounds=30, limit_s=300.0)
    assert slower["rounds"] == timing.FEWEST_ROUNDS


def test_warm_up_lasts_its_seconds_and_until_stable() -> None:
    # Four seconds of an engine that gets faster, then level.
    falling = [100.0 * 0.9**step for step in range(20) for _ in range(5)]
    warmup = Bench(a=chain(falling, repeat(10.0))).time(warmup_s=2.0, seconds=1.0, queries_least=1)["warmup"][
        "a"
    ]
    assert warmup["stable"] is True
    assert sum(falling) / 1e3 < warmup["seconds"] < sum(falling) / 1e3 + 4 * timing.WINDOW_S
    level = Bench(a=10.0).time(warmup_s=2.0, seconds=1.0, queries_least=1)["warmup"]["a"]
    assert level["stable"] is True
    assert 2.0 <= level["seconds"] <= 2.0 + timing.WINDOW_S
    assert level["queries"] == round(level["seconds"] * 100)
    assert level["query_s"] == pytest.approx(0.01)


def test_warm_up_gives_up_on_an_engine_that_does_not_become_stable() -> None:
    def jumping() -> Iterator[float]:
        while True:
            yield from [10.0] * 20
            yield from [20.0] * 20

    warmup = Bench(a=jumping()).time(warmup_s=1.0, seconds=1.0, queries_least=1)["warmup"]["a"]
    assert warmup["stable"] is False
    assert timing.PATIENCE * 1.0 <= warmup["seconds"] < timing.PATIENCE * 1.0 + 1.0


def test_each_block_settles_before_it_is_recorded() -> None:
    bench = Bench(a=1.0, b=1.0)
    result = bench.time(warmup_s=0.0, seconds=0.1, queries_least=10, rounds=5)
    warm = sum(state["queries"] for state in result["warmup"].values())
    recorded = count(result, "a") + count(result, "b")
    assert len(bench.asked) - warm - recorded == pytest.approx(10 * timing.SETTLE_S * 1e3, abs=10)


def test_stamps_are_the_clocks_and_blocks_do_not_overlap() -> None:
    bench = Bench(a=3.0, b=7.0)
    blocks = bench.time(seconds=2.0, queries_least=10, rounds=4)["blocks"]
    assert blocks[0]["start_s"] > 100.0
    assert blocks[-1]["end_s"] == bench.now
    for block, after in pairwise(blocks):
        assert block["start_s"] < block["end_s"] < after["start_s"]
        assert block["end_s"] - block["start_s"] == pytest.approx(sum(block["ms"]) / 1e3)


@pytest.mark.parametrize(
    ("error", "said", "code"),
    [
        (RuntimeError("an illegal memory access"), "int8: timing it failed: an illegal memory access", 6),
        (ValueError(), "int8: timing it failed: ValueError", 6),
        (Problem("the engine is gone", "build it again", 5), "int8: the engine is gone", 5),
    ],
)
@pytest.mark.parametrize("good", [0, 1000])
def test_a_query_that_raises_is_a_problem_that_names_the_engine(
    error: Exception, said: str, code: int, good: int
) -> None:
    def failing() -> Iterator[float]:
        yield from [10.0] * good
        raise error

    with pytest.raises(Problem) as caught:
        Bench(fp16=1.0, int8=failing()).time(warmup_s=1.0, seconds=10.0, queries_least=2000)
    assert caught.value.message == said
    assert caught.value.code == code
    assert caught.value.hint


@pytest.mark.parametrize("took", [float("nan"), float("inf"), -1.0, None])
def test_a_query_must_say_how_long_it_took(took: Any) -> None:
    with pytest.raises(Problem, match="int8: timing it failed: a query took"):
        interleave({"int8": lambda: took})


def test_an_interrupt_is_no_problem_of_an_engine() -> None:
    def stopped() -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interleave({"int8": stopped})
    assert gc.isenabled()


def test_the_collector_is_off_while_timing_and_on_after() -> None:
    seen = set()
    bench = Bench(a=5.0)
    query = bench.queries["a"]
    bench.queries["a"] = lambda: (seen.add(gc.isenabled()), query())[1]
    bench.time(seconds=0.1, queries_least=1, rounds=2)
    assert seen == {False}
    assert gc.isenabled()


def test_it_tells_how_far_it_is() -> None:
    told: list[tuple[str, int, int]] = []
    Bench(a=5.0, b=5.0).time(seconds=0.1, queries_least=1, rounds=3, told=lambda *what: told.append(what))
    assert told == [
        ("warming up a", 0, 3),
        ("warming up b", 0, 3),
        ("timing", 0, 3),
        ("timing", 1, 3),
        ("timing", 2, 3),
        ("timing", 3, 3),
    ]


@settings(max_examples=60, deadline=None)
@given(
    took=st.lists(st.floats(0.5, 200), min_size=1, max_size=4),
    seconds=st.floats(0.1, 5),
    least=st.integers(1, 300),
    rounds=st.integers(1, 12),
    limit=st.floats(1, 60),
)
def test_complete_or_at_the_limit(
    took: list[float], seconds: float, least: int, rounds: int, limit: float
) -> None:
    engines = {f"e{index}": value for index, value in enumerate(took)}
    result = Bench(**engines).time(
        warmup_s=0.5, seconds=seconds, queries_least=least, rounds=rounds, limit_s=limit
    )
    spent = sum(block["end_s"] - block["start_s"] for block in result["blocks"])
    one_each = result["rounds"] * sum(took) / 1e3
    assert spent <= limit + one_each + 1e-6
    share = limit / result["rounds"] / len(took)
    for name, value in engines.items():
        own = of(result, name)
        assert len(own) == result["rounds"] <= max(rounds, timing.FEWEST_ROUNDS)
        enough = (
            count(result, name) >= least and sum(b["end_s"] - b["start_s"] for b in own) >= seconds - 1e-6
        )
        assert result["complete"][name] == enough
        assert enough or min(b["end_s"] - b["start_s"] for b in own) >= share - value / 1e3 - 1e-6
