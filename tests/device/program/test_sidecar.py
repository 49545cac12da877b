"""The facts beside an engine, and what they say about here."""

from pathlib import Path
from typing import Any

import pytest

from edgetune.device.program import sidecar
from edgetune.device.program.problem import Problem

THERE = {
    "tensorrt": "10.3.0",
    "cuda": "12.6",
    "l4t": "36.4.3",
    "gpu": "Orin Nano 8GB",
    "compute_capability": "8.7",
    "sms": 8,
    "power_mode": "25W",
    "precision": "int8",
}


@pytest.fixture
def plan(tmp_path: Path) -> str:
    path = tmp_path / "int8.plan"
    path.write_bytes(b"plan")
    return str(path)


def test_facts_are_kept_and_read(plan: str) -> None:
    written = sidecar.write(plan, {**THERE, "more": [1]})
    assert sidecar.read(plan) == written
    assert set(sidecar.FIELDS) <= set(written)
    assert written["parents"] is None
    assert written["more"] == [1]


def test_an_engine_without_facts(plan: str) -> None:
    assert sidecar.read(plan) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "\0"])
def test_damaged_facts(plan: str, content: str) -> None:
    Path(sidecar.path_of(plan)).write_text(content)
    with pytest.raises(Problem, match=r"int8\.plan\.json") as failed:
        sidecar.read(plan)
    assert failed.value.code == 5


def test_facts_of_another_engine(plan: str) -> None:
    sidecar.write(plan, THERE)
    Path(plan).write_bytes(b"pla")
    with pytest.raises(Problem, match="another digest"):
        sidecar.read(plan)
    Path(plan).unlink()
    with pytest.raises(Problem, match="there is no such file"):
        sidecar.read(plan)


@pytest.mark.parametrize(
    ("here", "words"),
    [
        ({"tensorrt": "8.6.2"}, ["TensorRT 10.3.0", "8.6.2"]),
        ({"tensorrt": "10.3.1"}, ["10.3.0", "10.3.1"]),
        ({"compute_capability": "11.0", "gpu": "T5000"}, ["Orin Nano 8GB", "8.7", "T5000", "11.0"]),
        ({"tensorrt": "10.16.2", "compute_capability": "11.0"}, ["10.3.0", "10.16.2", "8.7", "11.0"]),
    ],
)
def test_both_sides_of_a_mismatch_are_named(here: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(Problem) as failed:
        sidecar.preflight(THERE, THERE | here)
    assert failed.value.code == 5
    assert all(word in failed.value.message for word in words)
    assert "build it here" in failed.value.hint


@pytest.mark.parametrize(
    "here",
    [{}, {"tensorrt": "10.3.0.30-1+cuda12.5"}, {"tensorrt": None}, {"compute_capability": None, "sms": None}],
)
def test_what_agrees_or_is_not_known_passes(here: dict[str, Any]) -> None:
    assert sidecar.preflight(THERE, THERE | here) == []


def test_what_costs_speed_is_told() -> None:
    told = sidecar.preflight(THERE, THERE | {"power_mode": "15W", "sms": 4})
    assert len(told) == 2
    assert any("25W there, 15W here" in text for text in told)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.3.0", "10.3.0.30", True),
        ("10.3.0.26", "10.3.0.30", False),
        ("10.3.0", "10.30.0", False),
        ("8.6.1", "8.6.1.6-1+cuda12.0", True),
    ],
)
def test_versions_agree_as_far_as_both_go(one: str, other: str, same: bool) -> None:
    assert sidecar.same_version(one, other) is same
