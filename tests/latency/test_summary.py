"""What samples say: drift, steps, tails and clocks that jump are told; quiet samples are trusted."""

import numpy as np
import pytest

from edgetune.errors import StageError
from edgetune.latency.summary import DRAWN_SAMPLES, KEPT_SAMPLES, LIMITS, cleaned_of, summarise


def samples(rounds: int = 30, per_round: int = 20, seed: int = 0) -> np.ndarray:
    return 1 + 0.01 * np.random.default_rng(seed).standard_normal((rounds, per_round))


def test_quiet_samples_are_trusted() -> None:
    assert summarise({"m": samples()}, {"m": 9})["why"] == ""


def test_drift_is_not_trusted() -> None:
    drifting = samples() * np.linspace(1, 1 + 2 * LIMITS["drift"], 30)[:, None]
    found = summarise({"fp32": samples(), "int8": drifting}, {"fp32": 1, "int8": 1})
    assert not found["trusted"]
    assert "int8: the median drifted by +" in found["why"]
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


def test_a_step_in_the_middle_is_told_with_its_place() -> None:
    throttled = samples()
    throttled[18:] *= 1.25
    found = summarise({"m": throttled}, {"m": 1})
    assert "from round 19 of 30 on it was 25% slower, as when clocks are throttled" in found["why"]


def test_rounds_that_come_and_go_are_no_step() -> None:
    restless = samples()
    restless[::2] *= 1.15
    assert "from round" not in summarise({"m": restless}, {"m": 1})["why"]


def test_samples_that_are_no_times_are_left_out_and_told() -> None:
    broken = samples()
    broken[4, 2], broken[9, 9], broken[11, 1] = -5.0, -3e9, 4e6
    found = summarise({"fp32": samples(seed=2), "int8": broken}, {"fp32": 1, "int8": 1})
    assert not found["trusted"]
    assert "int8: the clock went back during 2 queries, which are left out" in found["why"]
    assert (
        "int8: a query took longer than 1 s: the clock was set forward, or the machine slept" in found["why"]
    )
    assert found["models"]["int8"]["min_ms"] > 0.9
    assert found["models"]["int8"]["count"] == 598


def test_a_round_without_times_is_left_out_for_all() -> None:
    broken = samples()
    broken[7] = -1.0
    cleaned = cleaned_of({"fp32": samples(), "int8": broken})
    assert {name: len(rounds) for name, rounds in cleaned.samples.items()} == {"fp32": 29, "int8": 29}


def test_a_clock_that_always_jumps_or_stands_still_measures_nothing() -> None:
    with pytest.raises(StageError, match="jumped in 30 of 30 rounds"):
        summarise({"m": -samples()}, {"m": 1})
    with pytest.raises(StageError, match="stands still"):
        summarise({"m": np.where(samples() > 0.98, 0.0, 1.0)}, {"m": 1})


def test_doubts_from_elsewhere_come_first() -> None:
    found = summarise({"m": samples()}, {"m": 1}, doubts=["the machine was under load"])
    assert (found["trusted"], found["why"]) == (False, "the machine was under load")


def test_long_series_are_thinned_before_they_are_drawn() -> None:
    long = np.random.default_rng(0).normal(1, 0.01, (6, DRAWN_SAMPLES // 2))
    model = summarise({"m": long}, {"m": 1})["models"]["m"]
    assert model["count"] == long.size
    assert model["p50_low_ms"] < 1 < model["p50_high_ms"]


def test_every_quantile_has_its_interval() -> None:
    model = summarise({"m": samples()}, {"m": 1})["models"]["m"]
    for name in ("p50", "p90", "p99"):
        assert model["min_ms"] <= model[f"{name}_low_ms"] <= model[f"{name}_ms"] <= model[f"{name}_high_ms"]
        assert model[f"{name}_high_ms"] <= model["max_ms"]
    assert (model["p90_early_ms"] or 0) > model["p90_ms"]
    # 600 queries are too few for the 99th.
    assert model["p99_early_ms"] is None
