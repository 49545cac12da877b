"""The page and the table of a search: who won, how far that is to be believed, and nothing made up.

After a wanted change: GOLDEN=write pytest tests/report, then read the difference.
"""

import json
import os
import random
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from found import a_search

from edgetune.report import charts_tune
from edgetune.report.schema_tune import read_search
from edgetune.report.tune import publish, sentences, tiles, told
from edgetune.show import show_search

GOLDEN = Path(__file__).parent / "golden"


def page(found: dict[str, Any], folder: Path) -> str:
    publish(found, folder)
    return (folder / "tune.html").read_text()


def test_the_page_is_whole_and_asks_for_nothing(tmp_path: Path) -> None:
    found = a_search()
    text = page(found, tmp_path)
    assert "<script" not in text
    assert not re.findall(r'(?:src|href)="(?!#)', text)
    assert not re.search(r"#0100\d", text), "every stand-in became a variable"
    for said in (
        "INT8 accuracy against latency",
        "limit 4.50 ms",
        "What decides",
        "best.yaml",
        "stopped early",
    ):
        assert said in text
    assert json.loads((tmp_path / "tune.json").read_text()) == found
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^")]+)', text)) <= set(ids)


@pytest.mark.slow
def test_charts_are_svg_with_a_label() -> None:
    typed = read_search(a_search())
    drawn = charts_tune.search_charts(typed) + charts_tune.setting_charts(typed, 3)
    assert len(drawn) == 7
    for title, chart in drawn:
        root = ElementTree.fromstring(chart)
        assert root.get("aria-label"), title
        assert root.findall(".//text"), title
    plain = charts_tune.search_charts(read_search(a_search(int8=False)))
    assert [title for title, _ in plain] == [
        "Validation accuracy, trial after trial",
        "Validation accuracy by epoch",
    ]


def test_what_is_said_of_the_winner() -> None:
    found = a_search(int8=False)
    said = " ".join(sentences(read_search(found)))
    assert re.search(
        r"Trial \d+ does best: [\d.]+ points of validation accuracy above the recipe as it is", said
    )
    assert "On 153 test inputs: 88.2% (82.1 to 92.4%). They were looked at once, for this trial." in said
    assert "a little too good" in said
    found["winner"]["looks"] = [3, 5]
    assert "for trial 3, trial 5 as well" in " ".join(sentences(read_search(found)))
    found["winner"]["number"] = 0
    assert "it is the recipe as it is. No other settings did better" in sentences(read_search(found))[0]
    found["winner"]["test"] = None
    found["running"] = 2
    assert "have not been looked at yet" in sentences(read_search(found))[-1]
    assert len(tiles(read_search(found))) == 2
    found["winner"] = None
    assert tiles(read_search(found)) == []
    assert "No trial can be chosen" in sentences(read_search(found))[0]
    assert "1 failed" in told(read_search(found))


def test_a_search_where_all_failed_has_a_page(tmp_path: Path) -> None:
    found = a_search()
    found |= {"winner": None, "importance": {}, "front": [], "trials": [found["trials"][4]]}
    assert "the loss is no finite number" in page(found, tmp_path)


@pytest.mark.slow
def test_names_are_only_text(tmp_path: Path) -> None:
    found = a_search()
    found["name"] = "<b>bold</b>\u202e"
    for trial in found["trials"]:
        trial["values"]["model.name"] = "<script>alert(1)</script>"
    found["space"]["model.name"] = ["<script>alert(1)</script>"]
    found["importance"]["model.name"] = 0.9
    text = page(found, tmp_path)
    assert "<script" not in text
    assert "<b>" not in text
    assert "\u202e" not in text


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_any_value_may_be_missing(tmp_path: Path, seed: int) -> None:
    dice, found = random.Random(seed), a_search(trials=6)
    for part in [*found["trials"], found["winner"], found]:
        for key in dice.sample(sorted(set(part) - {"trials"}), dice.randint(0, 3)):
            part[key] = None
    assert "</html>" in page(found, tmp_path)


@pytest.mark.parametrize("width", [100, 50])
def test_the_table(width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    show_search(a_search(), Path("runs/insects/tune"))
    shown = "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines()) + "\n"
    path = GOLDEN / f"search-{width}.txt"
    if os.environ.get("GOLDEN") == "write":
        path.write_text(shown)
    assert shown == path.read_text()
    assert "next: edgetune run runs/insects/tune/best.yaml\n" in shown
