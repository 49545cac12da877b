"""Charts of latencies side by side, and of the layers that cost most.

It knows nothing of the page. It may import the report's drawing, layers and wording.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.ticker import MaxNLocator

from edgetune.report.drawing import FIRST, INK, MUTED, SECOND, STYLE, WRONG, figure, legend, svg
from edgetune.report.layers import shown
from edgetune.report.wording import middle, milliseconds

# A picture by itself has no page whose colours it could follow: those of the light page.
LIGHT = {
    "ink": "#17202b", "muted": "#566373", "rule": "#dfe4ea", "panel": "#ffffff",
    "first": "#64748b", "second": "#2563eb", "wrong": "#c2410c",
}  # fmt: skip

# So many times the slowest median are drawn at most.
TAIL = 3.0


def span_chart(models: Mapping[str, Mapping[str, Any]]) -> str:
    """Draw each model's median with its interval, p90 and p99, the fastest first."""
    order = sorted(models, key=lambda name: float(models[name]["p50_ms"]))
    with mpl.rc_context(STYLE):
        canvas, axes = figure(76 + 30 * len(order))
        for place, name in enumerate(order):
            model = models[name]
            first = place == 0
            axes.plot([model["p50_ms"], model["p99_ms"]], [place, place], color=MUTED, linewidth=1.2,
                      label="to p99" if first else None)  # fmt: skip
            axes.plot([model["p50_low_ms"], model["p50_high_ms"]], [place, place], color=SECOND, linewidth=7,
                      alpha=0.35, solid_capstyle="butt", label="95% of the median" if first else None)  # fmt: skip
            axes.plot(model["p90_ms"], place, "|", color=INK, markersize=10, label="p90" if first else None)
            axes.plot(
                model["p50_ms"], place, "o", color=SECOND, markersize=6, label="median" if first else None
            )
        axes.set_yticks(range(len(order)), [middle(name, 22) for name in order])
        axes.set_ylim(len(order) - 0.4, -0.6)
        # A tail that was interrupted would leave the medians no room.
        longest = max(float(model["p99_ms"]) for model in models.values())
        room = TAIL * max(float(model["p50_high_ms"]) for model in models.values())
        axes.set_xlim(0, 1.04 * min(longest, room))
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("ms of one run; tails go beyond the edge" if longest > room else "ms of one run")
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, borderaxespad=0.2, handlelength=1.4,
                    columnspacing=1.2, handletextpad=0.5)  # fmt: skip
        said = ", ".join(f"{name} {milliseconds(models[name]['p50_ms'])}" for name in order)
        return svg(canvas, "spans", f"Medians with intervals: {said}.")


def layer_chart(name: str, layers: Sequence[Mapping[str, Any]], chart: str = "layers") -> str:
    """Draw the time of layers beside what the roofline allows, in the order given."""
    if not layers:
        return ""
    with mpl.rc_context(STYLE):
        canvas, axes = figure(64 + 24 * len(layers))
        places = list(range(len(layers)))
        axes.barh(
            places, [layer["ms"] for layer in layers], height=0.62, color=FIRST, alpha=0.55, label="time"
        )
        known = [
            (p, layer["roofline_ms"]) for p, layer in enumerate(layers) if layer["roofline_ms"] is not None
        ]
        if known:
            axes.plot([ms for _, ms in known], [p for p, _ in known], "|", color=WRONG, markersize=13, mew=2.2,
                      label="roofline")  # fmt: skip
        axes.set_yticks(places, [middle(shown(layer["name"]), 24) for layer in layers])
        axes.set_ylim(len(layers) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("ms of one inference")
        legend(axes)
        longest = f"{layers[0]['name']} {milliseconds(layers[0]['ms'])}"
        return svg(canvas, chart, f"The costliest layers of {name}; first {longest}. Figures in the table.")


def picture(drawn: str) -> str:
    """Return a chart as a file of its own: with colours, a size and a ground."""
    text = re.sub(r"var\(--(\w+)\)", lambda found: LIGHT[found[1]], drawn)
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    assert box is not None
    width, height = (float(side) for side in box.groups())
    head = f'xmlns="http://www.w3.org/2000/svg" width="{2 * width:g}" height="{2 * height:g}" font-family="sans-serif"'
    ground = f'<rect width="100%" height="100%" fill="{LIGHT["panel"]}"/>'
    return re.sub(r"<svg ([^>]*)>", rf"<svg {head} \1>{ground}", text, count=1) + "\n"
