"""report.md: what it says, word for word, and that nobody's names break it.

After a wanted change: GOLDEN=write pytest tests/report, then read the difference.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from edgetune.report.markdown import code, escaped, fenced, markdown, table
from edgetune.report.schema import read_report

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", ["quickstart", "jetson", "failed", "on-device", "on-dla"])
def test_says_what_it_said(samples: dict[str, Callable[[], dict[str, Any]]], name: str) -> None:
    text = markdown(read_report(samples[name]()))
    path = GOLDEN / f"{name}.md"
    if os.environ.get("GOLDEN") == "write":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_lines_carry_nothing_invisible(any_report: dict[str, Any]) -> None:
    text = markdown(read_report(any_report))
    assert text.endswith("\n")
    assert "\n\n\n" not in text
    assert not re.search(r"[ \t]+$", text, re.MULTILINE)
    fences = text.split("```")
    assert len(fences) % 2 == 1
    for outside in fences[::2]:
        assert "<" not in outside


@given(st.lists(st.tuples(st.text(), st.text(), st.integers()), max_size=6))
def test_tables_keep_their_columns(rows: list[tuple[str, str, int]]) -> None:
    lines = table(["one", "two", "three"], [(_line(a), _line(b), c) for a, b, c in rows], 2).split("\n")
    assert len(lines) == 2 + len(rows)
    for line in lines:
        assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 4


def _line(text: str) -> str:
    return "".join(c for c in text if c.isprintable())


def test_tables_are_aligned_by_what_is_seen() -> None:
    lines = table(["name", "images"], [("名前", 3), ("a|b", 1000), ("x" * 99, 2)]).split("\n")
    assert lines[2].startswith("| 名前  ")
    assert r"a\|b" in lines[3]
    assert len({cell_len(line) for line in lines[:4]}) == 1, "a very long name sticks out alone"
    assert cell_len(lines[4]) > cell_len(lines[0])


def test_a_column_that_nobody_knows_is_left_out() -> None:
    assert table(["a", "b", "c"], [("x", None, None), ("y", None, 2)]).split("\n") == [
        "| a   |   c |", "|-----|----:|", "| x   |     |", "| y   |   2 |",
    ]  # fmt: skip


def test_escaping_leaves_file_names_alone() -> None:
    assert escaped("train/img_001 (2).jpg") == "train/img_001 (2).jpg"
    assert escaped("_private *bold* [a](b) <i> `c` &lt; ~s~") == (
        r"\_private \*bold\* \[a\](b) \<i> \`c\` \&lt; \~s\~"
    )
    assert escaped("# no heading") == r"\# no heading"
    assert escaped("1 & 2") == "1 & 2"


def test_a_fence_is_longer_than_those_inside() -> None:
    assert fenced("echo ```") == "````\necho ```\n````"
    assert code("echo --x") == "`echo --x`"
    assert code("echo `date`") == "`` echo `date` ``"


def test_many_of_a_kind_are_cut_with_a_word(samples: dict[str, Callable[[], dict[str, Any]]]) -> None:
    report = samples["failed"]()
    near = report["parity"]["int8_vs_fp32"]
    flips = near["images"] - near["agreed"]
    assert flips > len(near["flips"]) == 50
    text = markdown(read_report(report))
    assert f"{flips} inputs on which INT8 names another class than FP32, the first 50:" in text
    assert "The 20 of 30 classes that lose most from FP32 to INT8" in text
