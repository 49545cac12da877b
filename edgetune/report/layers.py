"""The costliest layers as rows, for a measurement here and for an engine on a device.

It may import wording only.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from edgetune.report import wording

COLUMNS = ("Layer", "Kind", "Type", "Time", "Share", "Bytes", "Operations", "Over the roofline")
# What ONNX Runtime appends to the names of nodes that it rewrites.
_MADE = re.compile(r"(_output_\d+)?(_nchwc|_nhwc)?(_token_\d+)?$")
# So many are shown; all are in the JSON.
COSTLIEST = 10


def costliest(layers: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return those that take longest, the longest first."""
    return sorted(layers, key=lambda layer: -float(layer["ms"]))[:COSTLIEST]


def shown(name: str) -> str:
    """Return a layer's name as the file has it."""
    return _MADE.sub("", name) or name


def rows(layers: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the costliest layers as texts, in the order of `COLUMNS`."""
    return [
        [
            shown(one["name"]), one["kind"] or wording.NONE, one["precision"] or wording.NONE,
            wording.milliseconds(one["ms"]), wording.percent(one["share"]), wording.size(one["bytes"]),
            wording.amount(one["operations"]),
            f"{wording.times(one['distance'])} ({one['bound']})" if one["distance"] else wording.NONE,
        ]
        for one in costliest(layers)
    ]  # fmt: skip
