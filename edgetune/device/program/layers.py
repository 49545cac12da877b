"""Reads what TensorRT's engine inspector tells: which layer runs in which precision, and what conversions cost.

It takes the JSON of any version, from the bindings or from `trtexec --exportLayerInfo`: layers are objects
where the engine was built with detailed verbosity, else bare names. The words for types differ by version
("Int8", "Thirty-two wide channel vectorized row major Int8 format.", "Half NHWC8"), so they are looked for
inside whatever text there is. It knows nothing of engines or files. It may import nothing.
"""

from __future__ import annotations

import json
import re
from typing import Any, Collection

# In this order: "uint8" holds "int8".
_WORDS = (
    ("uint8", "uint8"),
    ("int8", "int8"),
    ("fp8", "fp8"),
    ("bf16", "bf16"),
    ("bfloat16", "bf16"),
    ("half", "fp16"),
    ("fp16", "fp16"),
    ("float16", "fp16"),
    ("int32", "int32"),
    ("int64", "int64"),
    ("float", "fp32"),
    ("fp32", "fp32"),
)
_SIZES = {"uint8": 1, "int8": 1, "fp8": 1, "bf16": 2, "fp16": 2, "fp32": 4, "int32": 4, "int64": 8}
_WIDER = frozenset({"bf16", "fp16", "fp32"})
_ORDER = ("int8", "fp8", "fp16", "bf16", "fp32")
_FREE = frozenset({"constant", "noop", "shape_call"})  # they take no time
# Of many nodes the engine tells what goes in and comes out, not what runs between.
_OPAQUE = re.compile(r"myelin|foreign ?node", re.IGNORECASE)
# Layers are named after their nodes: "conv + relu", "PWN(sigmoid, mul)"; in later versions these are in Metadata.
_BETWEEN = re.compile(r" \+ |PWN\(|, |\)")


def precision_in(text: str) -> str:
    """Return the type that a description of a format names; empty: none."""
    lowered = text.lower()
    return next((name for word, name in _WORDS if word in lowered), "")


def summary(raw: Any, int8_nodes: Collection[str] = ()) -> dict[str, Any]:
    """Return which layers run in which precision.

    Args:
        raw: the inspector's JSON, as text or read.
        int8_nodes: names of the ONNX nodes that are quantized, and so should run in INT8; the rest is in float on
            purpose.

    Returns:
        `layers`: for each its `name`, `kind`, `precision` (of its weights, else of what it reads; "" where the
        engine does not tell), `reads`, `writes`, `bytes` (of what it reads and writes, weights included; None
        where the engine does not tell), `onnx` (nodes that it computes), `reformat`, `fallback`;
        `counts`: layers by precision, reformats left out; `reformats`: how many layers only convert;
        `fallbacks`: names of layers that run wider than INT8 though one of their nodes should not;
        `detailed`: whether the engine tells about its layers at all.
    """
    layers = [made for made in map(_layer, _layers(raw)) if made is not None]
    counts: dict[str, int] = {}
    quantized = frozenset(int8_nodes)
    for layer in layers:
        layer["fallback"] = not layer["reformat"] and _fell_back(layer, quantized)
        if not layer["reformat"]:
            known = layer["precision"] or "unknown"
            counts[known] = counts.get(known, 0) + 1
    return {
        "layers": layers,
        "counts": counts,
        "reformats": sum(layer["reformat"] for layer in layers),
        "fallbacks": [layer["name"] for layer in layers if layer["fallback"]],
        "detailed": any(layer["precision"] for layer in layers),
    }


def _fell_back(layer: dict[str, Any], quantized: frozenset[str]) -> bool:
    nodes = layer["onnx"] or _BETWEEN.split(layer["name"])
    opaque = _OPAQUE.search(f"{layer['kind']} {layer['name']}")
    return layer["precision"] in _WIDER and not opaque and not quantized.isdisjoint(nodes)


def _layers(raw: Any) -> list[Any]:
    if isinstance(raw, (str, bytes)):
        try:
            # Names of layers may hold control characters: ONNX nodes are joined by them.
            raw = json.loads(raw, strict=False)
        except ValueError:
            return []
    found = raw.get("Layers") if isinstance(raw, dict) else raw
    return found if isinstance(found, list) else []


def _layer(raw: Any) -> dict[str, Any] | None:
    if isinstance(raw, str):
        raw = {"Name": raw}
    if not isinstance(raw, dict):
        return None
    name = str(raw.get("Name", ""))
    kinds = [str(raw.get(key) or "") for key in ("ParameterType", "LayerType")]
    # The same layers come again for every further optimisation profile.
    if _FREE & {kind.lower() for kind in kinds} or re.search(r"\[profile [1-9]", name):
        return None
    reads, writes = _types(raw.get("Inputs")), _types(raw.get("Outputs"))
    weights = raw.get("Weights")
    of_weights = precision_in(str(weights.get("Type", ""))) if isinstance(weights, dict) else ""
    return {
        "name": name,
        "kind": kinds[0] or kinds[1],
        "precision": of_weights or _narrowest(reads) or _narrowest(writes),
        "reads": reads,
        "writes": writes,
        "bytes": _bytes([raw.get("Inputs"), raw.get("Outputs")], of_weights, weights),
        "onnx": _onnx_nodes(raw.get("Metadata")),
        "reformat": "reformat" in " ".join(kinds).lower() or name.startswith("Reformatting CopyNode"),
    }


def _types(tensors: Any) -> list[str]:
    if not isinstance(tensors, list):
        return []
    found = []
    for tensor in tensors:
        if isinstance(tensor, dict):
            texts = [
                str(value)
                for key, value in tensor.items()
                if re.search("format|datatype", key, re.IGNORECASE)
            ]
            found.append(precision_in(" ".join(texts)))
    return found


def _bytes(sides: list[Any], of_weights: str, weights: Any) -> int | None:
    """Return the bytes of all tensors; padding that a format adds is not counted."""
    total = 0
    for tensors in sides:
        known = (
            [tensor for tensor in tensors if isinstance(tensor, dict)] if isinstance(tensors, list) else []
        )
        for tensor, kind in zip(known, _types(tensors)):
            sizes = tensor.get("Dimensions")
            if kind not in _SIZES or not isinstance(sizes, list):
                return None
            if not all(isinstance(size, int) for size in sizes):
                return None
            count = _SIZES[kind]
            for size in sizes:
                count *= size
            total += count
    many = weights.get("Count") if isinstance(weights, dict) else 0
    return total + _SIZES.get(of_weights, 0) * many if isinstance(many, int) and any(sides) else None


def _narrowest(types: list[str]) -> str:
    return next((name for name in _ORDER if name in types), next((name for name in types if name), ""))


def _onnx_nodes(metadata: Any) -> list[str]:
    if not isinstance(metadata, str):
        return []
    parts = [part.strip() for part in re.split("[\x1e\x1f]", metadata)]
    prefix = "[ONNX Layer: "
    return [part[len(prefix) : -1] for part in parts if part.startswith(prefix) and part.endswith("]")]
