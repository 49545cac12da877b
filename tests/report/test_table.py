"""The summary in the terminal: word for word at 60 columns, and whole wherever it is printed.

After a wanted change: GOLDEN=write pytest tests/report, then read the difference.
"""

import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from edgetune.report.table import print_summary

GOLDEN = Path(__file__).parent / "golden"
PAGE = Path("runs/a folder with a long name/that does not fit/into sixty columns/report.html")

Samples = dict[str, Callable[[], dict[str, Any]]]


def printed(report: dict[str, Any], width: int = 60, *, encoding: str = "utf-8", **options: Any) -> str:
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding=encoding, errors="strict", newline="\n") as stream:
        print_summary(report, Console(file=stream, width=width, **options), PAGE)
        stream.flush()
        return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("name", ["quickstart", "jetson", "failed", "on-device", "on-dla"])
@pytest.mark.parametrize("width", [60, 100])
def test_says_what_it_said(samples: Samples, name: str, width: int) -> None:
    text = re.sub(r" +$", "", printed(samples[name](), width), flags=re.MULTILINE)
    path = GOLDEN / f"{name}-{width}.txt"
    if os.environ.get("GOLDEN") == "write":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_nothing_is_cut_and_little_is_too_wide(any_report: dict[str, Any]) -> None:
    text = printed(any_report)
    assert "…" not in text
    assert "..." not in text
    kept = [str(PAGE), *(step for step in any_report["left_to_do"] if step.startswith("trtexec"))]
    for line in kept:
        assert line in text, "what is to be copied stays in one line"
    wide = [line for line in text.splitlines() if cell_len(line) > 60]
    assert len(wide) == len(kept)
    for gate in any_report["gates"]:
        assert gate["label"] in text


def test_without_a_terminal_there_is_no_colour(any_report: dict[str, Any]) -> None:
    assert "\x1b" not in printed(any_report)
    assert "\x1b[" in printed(any_report, force_terminal=True, color_system="standard")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437"])
def test_an_old_encoding_gets_old_signs(any_report: dict[str, Any], encoding: str) -> None:
    any_report["verdict"]["sentence"] += " 名前"
    text = printed(any_report, encoding=encoding)
    assert "<= 1 point" in text
    assert "-" in text
    assert "??" in text


def test_markup_and_escapes_in_names_are_text(samples: Samples) -> None:
    report = samples["jetson"]()
    report["gates"][0]["title"] = "[red]not markup[/red]"
    report["gates"][0]["why"] = "\x1b[31mred\x07 \u202eback [/]"
    text = printed(report, 120, force_terminal=True, color_system=None)
    assert "[red]not markup[/red]" in text
    assert r"\x1b[31mred\x07 \u202eback [/]" in text


@pytest.mark.slow
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), width=st.integers(40, 200))
def test_any_value_may_be_missing(
    spoiled: st.SearchStrategy[dict[str, Any]], data: st.DataObject, width: int
) -> None:
    text = printed(data.draw(spoiled), width)
    assert "None" not in text
    assert "nan" not in text.split("report:")[0].replace("nano", "")


def test_an_empty_report_is_not_judged() -> None:
    assert printed({}).startswith("Not judged:")
