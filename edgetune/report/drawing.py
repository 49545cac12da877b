"""Turns matplotlib's drawings into SVG that lies inside a page.

Drawn in stand-in colours, which become the page's CSS variables, so that a chart follows light, dark and
print. Text stays text. The same numbers give the same bytes. Every id carries the chart's name. It knows
nothing of what is drawn. It may import nothing of edgetune.
"""

import io
import logging
import re
import warnings
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

# Chart units are CSS pixels on a phone of 380 px; a wider column scales the drawing up, text and all.
WIDTH = 380

# Stand-ins: colours nobody would choose, each replaced by a variable of the page.
INK, MUTED, RULE, PANEL = "#010001", "#010002", "#010003", "#010004"
FIRST, SECOND, WRONG = "#010005", "#010006", "#010007"
THIRD, FOURTH, FIFTH = "#010008", "#010009", "#01000a"
VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    PANEL: "var(--panel)",
    FIRST: "var(--first)",
    SECOND: "var(--second)",
    WRONG: "var(--wrong)",
    THIRD: "var(--third)",
    FOURTH: "var(--fourth)",
    FIFTH: "var(--fifth)",
}

# On top of matplotlib's defaults: what someone set up for other drawings has no say here.
STYLE: dict[Any, Any] = {
    **{key: value for key, value in mpl.rcParamsDefault.items() if "backend" not in key},
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 12.5,
    "axes.edgecolor": RULE,
    "axes.facecolor": "none",
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 11.5,
    "ytick.labelsize": 11.5,
    "legend.frameon": False,
    "legend.fontsize": 11.5,
    "legend.labelcolor": INK,
    "lines.linewidth": 2.0,
    "hatch.linewidth": 0.8,
}

# It says on stderr that it builds its font cache, once per machine; the progress bar is enough.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)

PERCENT = FuncFormatter(lambda value, _: f"{value:g}%")


def figure(height: float) -> tuple[Figure, Axes]:
    """Return an empty drawing so many units high, and its axes."""
    drawing = Figure(figsize=(WIDTH / 72, height / 72), facecolor="none", layout="constrained")
    return drawing, drawing.add_subplot()


def legend(axes: Axes) -> None:
    """Put the legend above the axes."""
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, borderaxespad=0.2,
                handlelength=1.6, columnspacing=1.4, handletextpad=0.5)  # fmt: skip


def svg(drawing: Figure, name: str, label: str) -> str:
    """Return the drawing as an `<svg>` element for a page: no size, no fonts, no colours, no foreign ids."""
    drawn = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
        # The page's fonts draw the text; that matplotlib's own lacks a letter does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        drawing.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(drawn.getvalue())
    for parent in root.iter():
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', drawn.getvalue()))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {
            key.rpartition("}")[2]: _attribute(key, value, name)
            for key, value in element.attrib.items()
            if key != "id" or value in used
        }
        element.tail = None
        if element.tag != "text":
            element.text = None
    root.attrib = {"viewBox": root.attrib["viewBox"], "class": "chart", "role": "img", "aria-label": label}
    text = ElementTree.tostring(root, encoding="unicode")
    for stand_in, variable in VARIABLES.items():
        text = text.replace(stand_in, variable)
    return text


def _attribute(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key.endswith("href"):
        return f"#{name}-{value.removeprefix('#')}"
    if key == "clip-path":
        return value.replace("url(#", f"url(#{name}-")
    if key == "d":
        return " ".join(value.split())
    return (
        re.sub(r"font-family:[^;]*;?\s*", "", value.replace("url(#", f"url(#{name}-"))
        if key == "style"
        else value
    )
