"""Estimates on the terminal, word for word. After a wanted change: GOLDEN=write pytest tests/test_show_estimate.py."""

import os
from pathlib import Path
from typing import Any

import pytest

from edgetune.show_estimate import answer, show_estimate

GOLDEN = Path(__file__).parent / "golden"


def row(
    target: str, precision: str, ms: float, half: float, basis: str, *notes: str, fits: bool = True
) -> dict[str, Any]:
    """One estimate."""
    return {
        "target": target, "precision": precision, "ms": ms, "low_ms": ms / half, "high_ms": ms * half, "basis": basis,
        "engine_mb": 25.6, "activations_mb": 2.4, "fits": fits, "notes": list(notes),
        "why": "28 MB of weights and activations fit into 7000 MB: 8 GB less 1000 MB taken to be for the system",
    }  # fmt: skip


QDQ = "the file has no Q/DQ: taken as if every convolution and product with weights ran in INT8"
SLOWER = "no mode below a module's maximum was measured: the interval is a guess"


def several() -> dict[str, Any]:
    """All profiles, shortened."""
    found = row("jetson-orin-nano-8gb:MAXN_SUPER@6.2", "int8", 4.59, 1.27, "measured", QDQ)
    sure = row(
        "jetson-agx-orin-32gb:MAXN@6.2",
        "int8",
        3.11,
        1.4,
        "related",
        QDQ,
        "jetson-agx-orin-32gb was not measured: judged by",
    )
    return {
        "model": "yolo11s.onnx", "operations": 21_700_000_000, "kernel_count": 203, "weights": 9_440_000,
        "parameters": {"rows": 70, "errors": {"network": {"median": 0.073, "p90": 0.255}}},
        "quantized": False, "assumed": "compute alone, clocks at the maximum of the mode",
        "estimates": [sure, found, row("jetson-orin-nano-8gb:7W@6.2", "fp16", 23.1, 1.5, "guess", SLOWER, fits=False)],
        "not_estimated": [
            {"target": "jetson-tx2:MAXN@4.6", "precision": "int8", "why": "Jetson TX2 has no INT8 path"},
            {"target": "jetson-agx-thor:70W@7.2", "precision": "int8", "why": "no clock is stated"},
            {"target": "jetson-agx-thor:70W@7.2", "precision": "fp16", "why": "no clock is stated"},
        ],
        "answer": {"limit_ms": 5.0, "surely": sure, "probably": found, "order": "by memory, then by watts"},
    }  # fmt: skip


def single() -> dict[str, Any]:
    """One target, with its kernels."""
    found = several()
    one = row("jetson-orin-nano-8gb:7W@6.2", "fp16", 23.1, 1.5, "guess", SLOWER)
    one["kernels"] = [
        {
            "name": f"/model.{place}/conv/Conv", "kind": "conv", "precision": "fp16", "operations": 10**9 // place,
            "bytes_read": 10**6, "bytes_written": 10**6, "weight_bytes": 10**5, "ms": 1.0 / place, "share": 0.1 / place,
        }
        for place in range(1, 13)
    ]  # fmt: skip
    return {**found, "estimates": [one], "not_estimated": [], "answer": None}


@pytest.mark.parametrize("name", ["several", "single"])
@pytest.mark.parametrize("width", [60, 110])
def test_says_what_it_said(
    name: str, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    show_estimate({"several": several, "single": single}[name]())
    text = "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines()) + "\n"
    path = GOLDEN / f"estimate-{name}-{width}.txt"
    if os.environ.get("GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()
    assert max(map(len, text.splitlines())) <= width


def test_a_pipe_gets_one_line_per_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    show_estimate(several())
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:5]] == [
        "jetson-agx-orin-32gb:MAXN@6.2~", "jetson-orin-nano-8gb:MAXN_SUPER@6.2", "jetson-orin-nano-8gb:7W@6.2?",
    ]  # fmt: skip
    assert "jetson-agx-thor:70W@7.2 in fp16 and int8: no clock is stated" in "\n".join(lines)


def test_the_answer_is_said_as_far_as_it_is_known() -> None:
    found = several()["answer"]
    assert answer(found | {"surely": found["probably"]})[0].startswith(
        "the cheapest that meets 5 ms with all"
    )
    assert len(answer(found | {"surely": found["probably"]})) == 2
    assert answer(found | {"surely": None})[0] == "no module meets 5 ms with all of its interval"
    assert answer(found | {"surely": None, "probably": None}) == [
        "no module that was estimated meets 5 ms, even at the middle of its interval"
    ]
