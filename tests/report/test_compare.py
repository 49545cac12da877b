"""The page and the table of a comparison: curves, gains, and what makes them doubtful.

After a wanted change: GOLDEN=write pytest tests/report, then read the difference.
"""

import json
import os
import random
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from found import a_comparison

from edgetune.report import charts_compare
from edgetune.report.compare import publish, sentences
from edgetune.report.schema_compare import read_comparison
from edgetune.show import show_comparison

GOLDEN = Path(__file__).parent / "golden"


def test_the_page_is_whole_and_asks_for_nothing(tmp_path: Path) -> None:
    found = a_comparison()
    publish(found, tmp_path)
    text = (tmp_path / "compare.html").read_text()
    assert "<script" not in text
    assert not re.findall(r'(?:src|href)="(?!#)', text)
    assert not re.search(r"#0100\d", text)
    for said in (
        "Against epochs",
        "Against seconds",
        "Against inputs",
        "no interval over seeds",
        "runs/<wbr>full-0",
    ):
        assert said in text
    assert json.loads((tmp_path / "compare.json").read_text())["groups"] == found["groups"]


@pytest.mark.slow
def test_only_several_seeds_are_shaded() -> None:
    found = a_comparison()
    shaded = charts_compare.charts(read_comparison(found))["curves"][0][1].count("opacity: 0.16")
    for group in found["groups"]:
        for point in group["curve"]:
            point["low"] = point["high"] = None
    assert shaded >= 3
    assert "opacity: 0.16" not in charts_compare.charts(read_comparison(found))["curves"][0][1]


def test_charts_are_svg_with_a_label_and_colours_of_their_own() -> None:
    drawn = charts_compare.charts(read_comparison(a_comparison()))
    assert [title for title, _ in drawn["ends"]] == ["Test accuracy", "Test accuracy against training inputs"]
    assert len(drawn["curves"]) == 3
    for _, chart in drawn["curves"]:
        assert ElementTree.fromstring(chart).get("aria-label")
        colours = set(re.findall(r"var\(--\w+\)", chart))
        assert {"var(--first)", "var(--second)", "var(--wrong)", "var(--fifth)"} <= colours


@pytest.mark.slow
def test_without_test_images_and_with_one_size_there_are_curves_alone() -> None:
    found = a_comparison()
    for group in found["groups"]:
        group["test"] = None
    assert charts_compare.charts(read_comparison(found))["ends"] == []
    found = a_comparison()
    found["groups"] = [group for group in found["groups"] if group["train_images"] == 200]
    assert len(charts_compare.charts(read_comparison(found))["ends"]) == 1


def test_what_is_said_of_each_group() -> None:
    said = sentences(read_comparison(a_comparison()))
    assert len(said) == 4
    assert said[0].startswith(
        "“feature-extractor” ends 18.3 points above “from scratch” on 153 test inputs (14.2 to 22.4 over seeds). It "
        "comes to the best validation accuracy of “from scratch” (71.0%) in 1 epoch and 1.5 s"
    )
    assert "4.6 points below “from scratch” on 153 test inputs (−9.9 to 0.4 over inputs, p 0.12)" in said[2]
    assert said[2].endswith("It never comes to the best validation accuracy of “from scratch” (71.0%).")
    assert said[3].startswith("“distilled” comes to")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_any_value_may_be_missing(tmp_path: Path, seed: int) -> None:
    dice, found = random.Random(seed), a_comparison()
    for part in [*found["groups"], found]:
        for key in dice.sample(sorted(set(part) - {"groups"}), dice.randint(0, 3)):
            part[key] = None
    publish(found, tmp_path)
    assert "</html>" in (tmp_path / "compare.html").read_text()


@pytest.mark.parametrize("width", [180, 60])
def test_the_table(width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    show_comparison(a_comparison(), Path("runs/compare"))
    shown = "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines()) + "\n"
    path = GOLDEN / f"comparison-{width}.txt"
    if os.environ.get("GOLDEN") == "write":
        path.write_text(shown)
    assert shown == path.read_text()
