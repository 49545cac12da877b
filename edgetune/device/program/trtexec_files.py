"""Reads what `trtexec` writes, as it writes it: JSON whose names are not escaped and whose values may be nan or inf.

It knows files only: nothing of commands, versions or engines. Formats: samples/common/sampleReporting.cpp of TensorRT's
open source, 8.2 to 11.1. Every file is read whole or refused by name. It imports the error, besides the standard
library.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from .problem import Problem

# A C++ stream writes six digits, and nan and inf bare.
_NUMBER = r"-?(?:[0-9]+(?:\.[0-9]+)?(?:e[-+]?[0-9]+)?|nan|inf)"
_END = r"\s*\}\s*(,|\])"
_OUTPUT = re.compile(
    r'\s*\{\s*"name" : "(.*?)"\s*,\s*"dimensions" : "([0-9x]*)"\s*,\s*"values" : \[([^\]]*)\]' + _END,
    re.DOTALL,
)
_LAYER = re.compile(
    rf'\s*\{{\s*"name" : "(.*?)", "timeMs" : ({_NUMBER}), "averageMs" : ({_NUMBER})'
    rf'(?:, "medianMs" : ({_NUMBER}))?, "percentage" : ({_NUMBER})' + _END,
    re.DOTALL,
)
_COUNT = re.compile(r'\s*\[\s*\{ "count" : ([0-9]+) \}\s*(,|\])')
_TIMES = ("computeMs", "latencyMs")


def read_times(path: str) -> dict[str, list[float]]:
    """Read `--exportTimes`: the time of every query, in ms, in order.

    Only durations are taken: six digits leave the stamps of starts and ends too coarse after a second.

    Returns:
        `compute_ms`, the computation alone; `latency_ms`, with the copies if they were made.

    Raises:
        Problem: the file is missing, cut or damaged, or holds no query.
    """
    text = _text(path)
    try:
        records = json.loads(text)
        compute, latency = ([float(record[key]) for record in records] for key in _TIMES)
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged(path, str(error)) from error
    if not compute or not all(math.isfinite(ms) and ms >= 0 for ms in compute + latency):
        raise _damaged(path, "no query was timed, or a time is no time")
    return {"compute_ms": compute, "latency_ms": latency}


def read_outputs(path: str) -> dict[str, list[float]]:
    """Read `--exportOutput`: the values of every output, row by row, with six digits.

    Raises:
        Problem: the file is missing, cut or damaged.
    """
    text, place, more = _text(path), 0, True
    outputs: dict[str, list[float]] = {}
    place = _past(re.compile(r"\s*\["), text, place, path).end()
    while more:
        found = _past(_OUTPUT, text, place, path)
        name, dimensions, written, end = found.groups()
        values = _numbers(written)
        shape = [int(size) for size in dimensions.split("x") if size]
        if values is None or len(values) != math.prod(shape) or name in outputs or '"values" :' in name:
            raise _damaged(path, f"output {name[:60]!r} is not what its dimensions {dimensions!r} say")
        outputs[name] = values
        place, more = found.end(), end == ","
    _over(text, place, path)
    return outputs


def read_profile(path: str) -> dict[str, Any]:
    """Read `--exportProfile`: the time of every layer, in ms, in the engine's order.

    Returns:
        `count` of the inferences, and `layers`: `name`, `average_ms`, `median_ms` (None before 8.4), `percent`.

    Raises:
        Problem: the file is missing, cut or damaged.
    """
    text = _text(path)
    head = _past(_COUNT, text, 0, path)
    place, more = head.end(), head[2] == ","
    layers: list[dict[str, Any]] = []
    while more:
        found = _past(_LAYER, text, place, path)
        name, _, average, median, percent, end = found.groups()
        if '"timeMs" :' in name:
            raise _damaged(path, "a layer's times are no numbers")
        times = {"average_ms": float(average), "median_ms": float(median) if median else None}
        layers.append({"name": name, "percent": float(percent), **times})
        place, more = found.end(), end == ","
    _over(text, place, path)
    return {"count": int(head[1]), "layers": layers}


def read_layers(path: str) -> str | None:
    """Read `--exportLayerInfo`; None where there is none, or it is no JSON even with control characters in names."""
    try:
        text = _text(path)
        json.loads(text, strict=False)
    except (Problem, ValueError):
        return None
    return text


def _text(path: str) -> str:
    try:
        # Names may hold any bytes; they come back as they are.
        return Path(path).read_bytes().decode("utf-8", "surrogateescape")
    except OSError as error:
        raise Problem(
            f"{path}: trtexec did not write it ({error.strerror})", "free some space; run again"
        ) from error


def _numbers(written: str) -> list[float] | None:
    words = [word.strip() for word in written.split(",")] if written.strip() else []
    if not all(re.fullmatch(_NUMBER, word) for word in words):
        return None
    return [float(word) for word in words]


def _past(pattern: re.Pattern[str], text: str, place: int, path: str) -> re.Match[str]:
    found = pattern.match(text, place)
    if found is None:
        raise _damaged(path, f"at character {place}: {text[place : place + 40]!r}")
    return found


def _over(text: str, place: int, path: str) -> None:
    if text[place:].strip():
        raise _damaged(path, f"more after its end: {text[place : place + 40]!r}")


def _damaged(path: str, why: str) -> Problem:
    return Problem(f"{path}: cut or damaged: {why}", "see that the disk is not full; run again")
