"""Texts that come in several lengths: a row for each, here and on the device."""

import pytest
from rich.console import Console

from edgetune.report import view_lengths
from edgetune.report.markdown import markdown
from edgetune.report.render import html
from edgetune.report.schema import Report
from edgetune.report.table import print_summary

RATIO = {"value": 2.0, "low": 1.9, "high": 2.1}
TIMED = {"models": {"fp16": {"p50_ms": 4.0}, "int8": {"p50_ms": 2.0}}, "speedup": RATIO}
REPORT = {
    "parity": {"lengths": [
        {"length": 32, "images": 0, "compared": 32, "difference_over_std": 1e-6, "agreement": 0.97},
        {"length": 64, "images": 90, "compared": 32, "difference_over_std": 2e-6, "agreement": 0.99,
         "fp32": 0.9, "int8": 0.89, "sqnr_db": 25.0},
    ]},
    "latency": {"speedup": RATIO, "lengths": [
        {"length": 32, "speedup": RATIO, "trusted": False, "p50_ms": {"fp32": 8.0, "int8": 4.0}},
        {"length": 64, "speedup": RATIO, "trusted": True, "p50_ms": {"fp32": 16.0, "int8": 8.0}},
    ]},
    "device": {"lengths": [
        {"length": 32, "samples": 16, "engines": {"fp16": {"agreement": 1.0}, "int8": {"agreement": 0.95}},
         "timing": {"copies": TIMED}},
        {"length": 64, "samples": 90, "engines": {"int8": {"agreement": 0.99, "accuracy": {"top1": 0.89}}}},
    ]},
}  # fmt: skip


def test_a_row_for_each_length() -> None:
    report = Report.model_validate(REPORT)
    short, long = view_lengths.rows(report)
    assert short[:4] == ("32", "others", "–", "97.0%")
    assert short[6].endswith("not to be trusted")
    assert long[:4] == ("64", "90", "90.0% → 89.0%", "99.0%")
    assert long[5:] == ("16.0 → 8.00 ms", "2.00×")
    assert "filled up to 32 tokens: others were" in view_lengths.note(report)
    assert report.device
    there = view_lengths.device_rows(report.device)
    assert (there[0][3], there[0][5], there[0][6]) == ("100.0% → 95.0%", "4.00 → 2.00 ms", "2.00×")
    assert (there[1][2], there[1][3]) == ("– → 89.0%", "– → 99.0%")


@pytest.mark.parametrize("width", [60, 120])
def test_pages_and_the_terminal_show_them(width: int) -> None:
    report = Report.model_validate(REPORT)
    for text in (markdown(report), html(report)):
        assert text.count("By length of text") >= 2
        assert "90.0% → 89.0%" in text
    console = Console(width=width, record=True, force_terminal=False)
    print_summary(REPORT, console)
    shown = console.export_text()
    assert "32 tokens (no text of its own)" in shown
    assert max(map(len, shown.splitlines())) <= width


def test_columns_of_which_nothing_is_known_are_left_out() -> None:
    assert view_lengths.known(("a", "b"), [("1", "–"), ("2", "–")]) == [["a"], ["1"], ["2"]]


def test_without_lengths_nothing_is_said() -> None:
    assert view_lengths.rows(Report()) == []
    assert "By length" not in markdown(Report())
