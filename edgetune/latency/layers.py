"""Layers of a network with their time, and how far each is from what the machine could do.

The roofline (Williams, Waterman & Patterson 2009, Communications of the ACM 52:65-76): a layer takes at least its
operations over the machine's peak, and at least its bytes over the bandwidth. The distance is its time over the
larger of the two. It knows nothing of engines: whoever timed the layers gives them as plain values.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict


class Layer(TypedDict):
    """A layer as it ran.

    Attributes:
        name: of the layer, or of the nodes it computes.
        kind: its operator.
        precision: int8, fp16, fp32, another type, or empty where it is not known.
        ms: of one inference.
        share: of the time of all layers.
        bytes: read and written; None: not known.
        operations: two for each multiplication with its addition; None: not known.
        roofline_ms: that it takes at least; None: not known.
        distance: `ms` over `roofline_ms`; None: not known.
        bound: by `compute` or `memory`; empty: not known.
    """

    name: str
    kind: str
    precision: str
    ms: float
    share: float
    bytes: int | None
    operations: int | None
    roofline_ms: float | None
    distance: float | None
    bound: str


class Layers(TypedDict):
    """All layers in running order. `source`: who timed them; `roof`: the peaks, and where these come from."""

    source: str
    total_ms: float
    roof: Mapping[str, Any]
    layers: list[Layer]


def with_roof(timed: Sequence[Mapping[str, Any]], roof: Mapping[str, Any], source: str) -> Layers:
    """Set layers against the peaks of the machine that ran them.

    Args:
        timed: `name`, `kind`, `precision`, `ms`, `bytes` and `operations` each.
        roof: `int8_ops_s`, `fp16_ops_s`, `fp32_ops_s`, `bytes_s`, None where unknown, and `source`; where what
            is small stays in a cache, `cache_bytes_s` up to `cache_bytes`.
        source: who timed them.
    """
    total = sum(layer["ms"] for layer in timed)
    return {
        "source": source,
        "total_ms": total,
        "roof": dict(roof),
        "layers": [_layer(layer, roof, total) for layer in timed],
    }


def _layer(timed: Mapping[str, Any], roof: Mapping[str, Any], total: float) -> Layer:
    peak = roof.get(f"{timed['precision']}_ops_s") or roof.get("fp32_ops_s" if timed["precision"] else "")
    compute = _least_ms(timed["operations"], peak)
    small = timed["bytes"] is not None and timed["bytes"] <= (roof.get("cache_bytes") or 0)
    memory = _least_ms(timed["bytes"], (roof.get("cache_bytes_s") if small else None) or roof.get("bytes_s"))
    known = [ms for ms in (compute, memory) if ms]
    # With one of the two alone it could lie higher: no distance.
    least = max(known) if known and compute is not None and memory is not None else None
    return {
        "name": timed["name"],
        "kind": timed["kind"],
        "precision": timed["precision"],
        "ms": timed["ms"],
        "share": timed["ms"] / total if total else 0.0,
        "bytes": timed["bytes"],
        "operations": timed["operations"],
        "roofline_ms": least,
        "distance": timed["ms"] / least if least else None,
        "bound": "" if least is None else "compute" if compute == least else "memory",
    }


def _least_ms(amount: int | None, rate: float | None) -> float | None:
    return None if amount is None or not rate else 1e3 * amount / rate
