"""A machine that is busy with something else: what is said of it."""

import os

import psutil
import pytest

from edgetune.latency import load
from edgetune.latency.load import Load


def loaded(
    monkeypatch: pytest.MonkeyPatch, others: float, busy: dict[str, float], threads: int = 1, cores: int = 4
) -> load.Loaded:
    """What is said after ten seconds in which others kept so many cores busy, and this process one."""
    moments = iter([(100.0, 20.0, 50.0), (100.0 + 10 * (1 + others), 30.0, 60.0)])
    monkeypatch.setattr(Load, "_now", staticmethod(lambda: next(moments)))
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: cores)
    monkeypatch.setattr(os, "getloadavg", lambda: (3.25, 1.0, 0.5))
    return Load().told(threads, busy)


def test_a_quiet_machine_has_nothing_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    found = loaded(monkeypatch, 0.1, {"m": 0.99})
    assert (found.doubts, found.note) == ([], "")
    assert (found.others_cores, found.load_average) == (0.1, 3.25)


def test_others_on_free_cores_are_only_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = loaded(monkeypatch, 2.0, {"m": 0.99})
    assert found.doubts == []
    assert found.note == "other processes kept 2.0 cores busy meanwhile (load average before: 3.2)"


def test_others_on_the_same_cores_are_a_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    found = loaded(monkeypatch, 2.0, {"m": 0.99}, threads=3)
    assert found.doubts == [
        "the machine was under load: other processes kept 2.0 cores busy meanwhile "
        "(load average before: 3.2), of 4, beside 3 of its own"
    ]


def test_a_thread_that_had_to_wait_is_a_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    found = loaded(monkeypatch, 0.0, {"fp32": 0.97, "int8": 0.6})
    assert found.doubts == ["int8: the machine was under load: it had a processor for 60% of its time"]


def test_without_a_load_average_nothing_is_said_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "getloadavg")
    assert load.load_average() is None
