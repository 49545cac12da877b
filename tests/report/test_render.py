"""report.html: whole, offline, harmless whatever the names are, and drawn from whatever parts there are."""

import json
import math
import re
import string
from collections import Counter
from collections.abc import Callable
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgetune.errors import ArtifactError, StageError
from edgetune.report import charts, charts_int8
from edgetune.report.markdown import markdown
from edgetune.report.render import TEMPLATES, html, load_report, write_report
from edgetune.report.schema import read_report
from edgetune.report.table import print_summary

Report = dict[str, Any]
Samples = dict[str, Callable[[], Report]]

VOID = {"meta", "br", "hr", "img", "input", "link", "path", "circle", "line", "use", "rect", "wbr"}

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "\u202egnp.exe",
    "\u2066isolated",
    "x" * 300,
    "$x^2$ \\frac",
    "two\nlines\r",
    "\x1b[31mred\x07",
    "undecodable \udcff",
    "名前 とても長い",
    "a|b `code` *bold* [link](javascript:alert(1))",
    "&lt;b&gt; &amp;",
    "]]> --> </svg></style></title>",
    "",
]


class Page(HTMLParser):
    """Collects what a page consists of, and that every tag is closed in turn."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def _note(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def values(self, name: str) -> list[str]:
        return [value for _, key, value in self.attributes if key == name]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without charts, which take most of the time and have tests of their own."""
    for name in ("transfer_chart", "distillation_chart", "class_chart", "latency_chart"):
        monkeypatch.setattr(charts, name, lambda _: "<svg></svg>")
    for name in ("layer_chart", "settling_chart"):
        monkeypatch.setattr(charts_int8, name, lambda _: "<svg></svg>")
    monkeypatch.setattr(charts, "training_charts", lambda _: [("Loss", "<svg></svg>")])


def draw(report: Report) -> str:
    """Draw a page; the same report only once, because drawing takes longer than looking."""
    return _drawn(json.dumps(report))


@cache
def _drawn(content: str) -> str:
    return html(read_report(json.loads(content)))


def with_classes(samples: Samples, names: list[str]) -> Report:
    """A failed run whose classes, and everything that is called after them, have these names."""
    report = samples["failed"]()
    old = report["data"]["classes"]
    renamed = dict(zip(old, names * (len(old) // len(names) + 1), strict=False))
    report["data"]["classes"] = [renamed[name] for name in old]
    report["data"]["counts"] = {"train": dict.fromkeys(names, 5), "val": {}, "test": {}}
    report["data"] |= {"broken": [[name, name] for name in names], "duplicates": [names], "warnings": names}
    for row in report["accuracy"]["per_class"]:
        row["name"] = renamed[row["name"]]
    for flip in report["parity"]["int8_vs_fp32"]["flips"]:
        flip |= {key: renamed[flip[key]] for key in ("truth", "fp32", "int8")}
        flip["path"] = f"{flip['truth']}/0.png"
    for row, name in zip(report["layers"], names, strict=False):
        row |= {"name": name, "op": name, "why": name}
    report |= {"name": names[0], "left_to_do": names, "reproduce": names, "command": names[0]}
    return report


def test_page_is_whole_and_asks_for_nothing(any_report: Report) -> None:
    text = draw(any_report)
    page = Page(text)
    assert text.startswith("<!doctype html>")
    assert "http" not in text.replace("http-equiv", "")
    assert not re.search(r"url\((?!#)|@import|javascript:", text)
    assert all(value.startswith("#") for value in page.values("href"))
    assert not page.values("src")
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & set(page.tags)
    assert any("default-src 'none'" in value for value in page.values("content"))


def test_ids_are_unique_and_every_reference_has_one(any_report: Report) -> None:
    text = draw(any_report)
    page = Page(text)
    ids = page.values("id")
    assert len(ids) > 20
    assert len(ids) == len(set(ids))
    wanted = {value[1:] for value in page.values("href")} | set(re.findall(r"url\(#([^)]+)\)", text))
    wanted |= set(page.values("aria-labelledby"))
    assert wanted <= set(ids)


def test_page_follows_the_reader_s_colours(any_report: Report) -> None:
    text = draw(any_report)
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    charts = re.findall(r'<svg viewBox="[^"]+" class="chart".*?</svg>', text, re.DOTALL)
    assert len(charts) >= 3
    for chart in charts:
        assert "var(--" in chart
        assert not re.search(r"#[0-9a-f]{6}\b", chart), "a colour that does not follow"


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", [0, 1])
def test_text_stands_out_from_what_lies_behind(theme: int) -> None:
    """Contrast as WCAG 2.2 asks for text (4.5) and for what is drawn (3.0)."""
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    assert len(blocks) == 2
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", blocks[theme]))

    def contrast(one: str, two: str) -> float:
        light, dark = sorted((_luminance(colours[one]), _luminance(colours[two])), reverse=True)
        return (light + 0.05) / (dark + 0.05)

    for front in ("ink", "muted", "second", "wrong"):
        assert contrast(front, "panel") >= 4.5, front
    for front in ("ink", "muted", "second"):
        assert contrast(front, "page") >= 4.5, front
    for status in ("pass", "fail", "uncertain", "unjudged"):
        assert contrast(status, f"{status}-soft") >= 4.5, status
        assert contrast("ink", f"{status}-soft") >= 4.5, status
    assert contrast("first", "panel") >= 3


def test_status_is_a_word_and_a_shape_not_only_a_colour(any_report: Report) -> None:
    text = draw(any_report)
    for gate in any_report["gates"]:
        assert f"</svg>{gate['label']}</span>" in text
    assert text.count('href="#shape-') > len(any_report["gates"])


def test_key_figures_are_shown(samples: Samples) -> None:
    shown = " ".join(" ".join(Page(draw(samples["quickstart"]())).texts).split())
    for words in (
        "99.2%", "357 of 360 inputs right", "1.93× as fast", "3.2× smaller", "≤ 1 point",
        "edgetune quickstart", "Intel(R) Xeon(R) Platinum 8481C", "Transfer bought 3.33 points",
    ):  # fmt: skip
        assert words in shown


@pytest.mark.slow
def test_the_same_report_is_the_same_page(any_report: Report) -> None:
    assert html(read_report(any_report)) == draw(any_report)


@pytest.mark.slow
def test_hostile_names_are_only_text(samples: Samples) -> None:
    text = html(read_report(with_classes(samples, HOSTILE)))
    page = Page(text)
    assert not {"script", "img", "b"} & set(page.tags)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert page.tags["style"] == page.tags["title"] == 1
    shown = "".join(page.texts)
    assert "<script>alert(1)</script>" in shown
    assert "{{ 7 * 7 }}" in shown
    assert "$x^2$ \\frac" in shown
    assert "\\u202egnp.exe" in shown
    for character in ("\u202e", "\u2066", "\x1b", "\x07", "\udcff"):
        assert character not in text


@pytest.mark.slow
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.text(max_size=40), min_size=3, max_size=3))
def test_any_names_are_only_text(samples: Samples, quick: None, names: list[str]) -> None:
    report = with_classes(samples, names)
    expected = Page(html(read_report(with_classes(samples, ["one", "two", "three"]))))
    page = Page(html(read_report(report)))
    known = {name for _, name, _ in expected.attributes} | {"title"}
    assert {name for _, name, _ in page.attributes} <= known
    markdown(read_report(report)).encode()


@pytest.mark.parametrize("gone", [
    "schema_version", "edgetune", "made_at", "name", "command", "verdict", "recipe", "profile", "machine",
    "data", "training", "transfer", "distillation", "artifacts", "parity", "accuracy", "layers", "calibration",
    "quantization", "latency", "size", "gates", "left_to_do", "reproduce",
])  # fmt: skip
def test_every_part_may_be_missing(samples: Samples, quick: None, gone: str) -> None:
    report = samples["jetson"]() | {"quantization": samples["quickstart"]()["quantization"]}
    null = html(read_report(report | {gone: None}))
    del report[gone]
    assert html(read_report(report)) == null
    Page(null)


def test_missing_stages_are_said_to_be_missing(samples: Samples) -> None:
    gone = dict.fromkeys(("training", "accuracy", "parity", "latency", "gates"))
    shown = " ".join("".join(Page(draw(samples["quickstart"]() | gone)).texts).split())
    for words in ("Nothing was trained in this run.", "Accuracy was not checked.",
                  "Latency was not measured.", "No limit was set, so nothing was judged."):  # fmt: skip
        assert words in shown
    assert Page(draw({})).tags["section"] >= 4


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_may_be_missing(
    spoiled: st.SearchStrategy[Report], quick: None, data: st.DataObject
) -> None:
    from rich.console import Console

    report = data.draw(spoiled)
    typed = read_report(report)
    Page(html(typed))
    assert "None" not in markdown(typed)
    print_summary(report, Console(width=60, quiet=True))


@pytest.mark.slow
def test_a_thousand_classes_stay_small_and_readable(samples: Samples) -> None:
    names = [f"n{index:08d} a class of many" for index in range(1000)]
    report = samples["quickstart"]()
    report["data"] |= {
        "classes": names,
        "counts": {split: dict.fromkeys(names, 50) for split in ("train", "test")},
    }
    report["accuracy"] |= {
        "per_class": [
            {"name": name, "images": 50, "fp32": 45, "int8": 40 + i % 6} for i, name in enumerate(names)
        ],
        "confusion": None,
        "confused": [{"truth": name, "predicted": names[0], "int8": 5, "fp32": 4} for name in names[1:51]],
    }
    text = draw(report)
    assert len(text.encode()) < 1_500_000
    page = Page(text)
    assert "matrix" not in page.values("class")
    assert "Most confused" in page.texts
    assert any("matrix of 1,000 classes would be unreadable" in words for words in page.texts)
    assert any("the 20 of 1,000 classes" in words for words in page.texts)


@pytest.mark.slow
def test_the_page_counts_flips_that_it_does_not_list(samples: Samples) -> None:
    report = samples["failed"]()
    near = report["parity"]["int8_vs_fp32"]
    flips = near["images"] - near["agreed"]
    texts = Page(draw(report)).texts
    assert f"{flips} inputs on which INT8 names another class than FP32" in texts
    assert "The first 50" in texts
    quick = samples["quickstart"]()
    near = quick["parity"]["int8_vs_fp32"]
    near |= {"agreed": near["images"], "agreement": 1.0, "flips": []}
    assert "INT8 names the same class as FP32 on every input." in Page(draw(quick)).texts


def test_what_an_older_report_does_not_know_is_not_shown(samples: Samples) -> None:
    older, newer = (Page(draw(samples[name]())).texts for name in ("jetson", "quickstart"))
    for words in ("Which layers hurt", "Flips", "Signal to noise", "How far scales lie from the final ones"):
        assert words in newer
        assert words not in older
    assert "Layers" in older
    text = markdown(read_report(samples["jetson"]()))
    assert "flips" not in text
    assert "calibration error" not in text


def test_layers_for_a_device_are_planned(samples: Samples) -> None:
    texts = Page(draw(samples["jetson"]())).texts
    assert {"Planned", "float (FP16 in the engine)"} <= set(texts)
    assert "Runs in" in Page(draw(samples["quickstart"]())).texts


@pytest.mark.slow
def test_write_report_leaves_three_whole_files(any_report: Report, tmp_path: Path) -> None:
    any_report["parity"]["int8_vs_fp32"]["sqnr_db"] = math.inf
    any_report["extra"] = {"z": (1, 2), "a": math.nan, "path": "undecodable \udcff"}
    page = write_report(any_report, tmp_path)
    assert page == tmp_path / "report.html"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.json", "report.md"]
    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    content = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert list(content) == sorted(content)
    assert content["parity"]["int8_vs_fp32"]["sqnr_db"] is None
    assert content["extra"] == {"a": None, "path": "undecodable \\udcff", "z": [1, 2]}
    row = json.dumps(any_report["accuracy"]["confusion"]["int8"][0])
    assert row in text, "a row of numbers on one line"
    assert load_report(tmp_path / "report.json") == content
    before = page.read_bytes()
    assert write_report(content, tmp_path).read_bytes() == before


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(string.printable),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(string.printable), inner, max_size=4),
    max_leaves=12,
))  # fmt: skip
@settings(deadline=None)
def test_json_keeps_every_value(value: Any) -> None:
    from edgetune.report.render import _json, _storable

    assert json.loads(_json(_storable({"value": value}))) == {"value": value}


@pytest.mark.slow
def test_no_folder_is_a_stage_error(any_report: Report, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="gone"):
        write_report(any_report, tmp_path / "gone")


@pytest.mark.parametrize(("content", "message"), [
    (None, "No such file"),
    ("{", "not JSON"),
    ("[" * 100_000, "not JSON"),
    ("\udcff", "not JSON"),
    ("[]", "not a report"),
    ('{"schema_version": 2}', "schema_version 2"),
    ('{"latency": {"models": {"fp32": {"p50_ms": "fast"}}}}', r"latency\.models\.fp32\.p50_ms"),
    ('{"verdict": {"status": "splendid"}}', r"verdict\.status"),
])  # fmt: skip
def test_load_report_refuses_what_is_none(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "report.json"
    if content is not None:
        path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ArtifactError, match=message) as caught:
        load_report(path)
    assert "report.json" in caught.value.message
    assert caught.value.hint
