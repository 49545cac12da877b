"""The page in a real browser: nothing sticks out on a phone or a desktop, and dark mode is dark."""

import html as markup
import json
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from found import a_comparison, a_search

from edgetune.report import compare, tune
from edgetune.report.render import html
from edgetune.report.schema import read_report

# A browser is started for each.
pytestmark = pytest.mark.slow

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTHS = (360, 390, 1280)
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
)  # fmt: skip

# The report has no script; this one runs in the page that holds it, on frames of the wanted widths.
LOOK = """
const stuck = (frame) => [...frame.contentDocument.querySelectorAll("body *")].filter((element) => {
  const box = element.getBoundingClientRect();
  if (element.closest(".wrap") && !element.matches(".wrap")) return false;
  return box.width && (box.right > frame.clientWidth + 1 || box.left < -1);
}).map((element) => `${element.tagName}.${element.className.baseVal ?? element.className}`);
const small = (frame) => [...frame.contentDocument.querySelectorAll(".chart text")].map((text) =>
  text.getBoundingClientRect().height);
const look = (frame) => {
  const page = frame.contentDocument;
  const before = stuck(frame);
  page.querySelectorAll("details").forEach((details) => { details.open = true; });
  return {name: frame.name, scroll: page.documentElement.scrollWidth, stuck: [...before, ...stuck(frame)],
    colour: frame.contentWindow.getComputedStyle(page.body).backgroundColor, text: small(frame),
    fetched: frame.contentWindow.performance.getEntriesByType("resource").map((entry) => entry.name)};
};
addEventListener("load", () => {
  const seen = [...document.querySelectorAll("iframe")].map(look);
  document.body.textContent = "seen:" + JSON.stringify(seen) + ":end";
});
"""


@cache
def browser() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        lack = f"no browser: none of {', '.join(BROWSERS)} is installed"
        if os.environ.get("EDGETUNE_REQUIRE_ALL"):
            pytest.fail(lack)
        pytest.skip(lack)
    return found


def hostile(report: dict[str, Any]) -> dict[str, Any]:
    """Long and odd names wherever names are shown."""
    text = json.dumps(report)
    for old, new in (
        ("ants", "W" * 250), ("bees", "<b>" + "very long " * 30), ("/features/", "/" + "f" * 200 + "/"),
        ("host-cpu", "profile" * 30), ("--onnx", "--" + "o" * 300), ("insects", "i" * 120),
        ("onnxruntime", "o" * 150), ("truncated", "t" * 150), ("Engineering", "E" * 200), ("no swap", "s" * 200),
        ("gpu-thermal", "g" * 150),
    ):  # fmt: skip
        text = text.replace(old, new.replace('"', ""))
    changed: dict[str, Any] = json.loads(text)
    return changed


@pytest.fixture(scope="module")
def pages(samples: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The pages to look at."""
    browser()
    reports = {"quickstart": samples["quickstart"](), "failed": samples["failed"](),
               "hostile": hostile(samples["jetson"]()), "on-device": samples["on-device"](),
               "hostile-device": hostile(samples["on-device"]())}  # fmt: skip
    made = {name: html(read_report(report)) for name, report in reports.items()}
    folder = tmp_path_factory.mktemp("pages")
    for name, change in (("plain", dict), ("hostile", odd)):
        tune.publish(change(a_search()), folder)
        compare.publish(change(a_comparison()), folder)
        made |= {f"{name}-{file.stem}": file.read_text() for file in folder.glob("*.html")}
    return made


def odd(found: dict[str, Any]) -> dict[str, Any]:
    """Long names in a search or a comparison."""
    text = json.dumps(found)
    for old, new in (
        ("insects", "i" * 120),
        ("learning_rate", "r" * 90),
        ("full, ", "f" * 120),
        ("runs/", "x" * 99),
    ):
        text = text.replace(old, new)
    changed: dict[str, Any] = json.loads(text)
    return changed


@pytest.fixture(scope="module", params=["light", "dark"])
def seen(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pages: dict[str, str]
) -> tuple[str, list[Any]]:
    """What the browser measured on every page at every width."""
    folder = tmp_path_factory.mktemp(request.param)
    frames = [
        f'<iframe name="{name} {width}" style="border:0;width:{width}px;height:800px" '
        f'srcdoc="{markup.escape(page)}"></iframe>'
        for name, page in pages.items()
        for width in WIDTHS
    ]
    file = folder / "frames.html"
    file.write_text(f"<!doctype html><meta charset=utf-8><body><script>{LOOK}</script>{''.join(frames)}")
    scheme = "0" if request.param == "dark" else "1"
    command = [browser(), *QUIET, f"--user-data-dir={folder / 'user'}", "--window-size=1400,900",
               f"--blink-settings=preferredColorScheme={scheme}", "--dump-dom", file.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    match = re.search(r"seen:(.*):end", done.stdout, re.DOTALL)
    assert match, done.stderr[-2000:]
    found = json.loads(markup.unescape(match[1]))
    assert len(found) == len(frames) == len(pages) * len(WIDTHS)
    return request.param, found


def test_nothing_sticks_out(seen: tuple[str, list[Any]]) -> None:
    for frame in seen[1]:
        width = int(frame["name"].split()[1])
        assert frame["stuck"] == [], frame["name"]
        assert frame["scroll"] <= width, frame["name"]


def test_colours_follow_the_reader(seen: tuple[str, list[Any]]) -> None:
    scheme, found = seen
    for frame in found:
        red, green, blue = map(int, re.findall(r"\d+", frame["colour"])[:3])
        assert (red + green + blue < 200) == (scheme == "dark")


def test_text_in_charts_can_be_read_on_a_phone(seen: tuple[str, list[Any]]) -> None:
    heights = [height for frame in seen[1] for height in frame["text"] if height]
    assert len(heights) > 100
    assert min(heights) >= 9


def test_nothing_is_fetched(seen: tuple[str, list[Any]]) -> None:
    assert all(frame["fetched"] == [] for frame in seen[1])


def test_a_screenshot_can_be_taken(tmp_path: Path, pages: dict[str, str]) -> None:
    page = tmp_path / "report.html"
    page.write_text(pages["quickstart"], encoding="utf-8")
    picture = tmp_path / "page.png"
    command = [browser(), *QUIET, f"--user-data-dir={tmp_path / 'user'}", "--window-size=800,600",
               f"--screenshot={picture}", page.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert picture.is_file(), done.stderr[-2000:]
    from PIL import Image

    with Image.open(picture) as image:
        assert image.size == (800, 600)
        assert len(image.convert("RGB").getcolors(1 << 20)) > 100, "more than an empty page"
