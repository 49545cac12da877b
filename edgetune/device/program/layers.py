"""Reads what TensorRT's engine inspector tells: which layer runs in which precision, and what conversions cost.

It takes the JSON of any version, from the bindings or from `trtexec --exportLayerInfo`: layers are objects
where the engine was built with detailed verbosity, else bare names. The words for types differ by version
("Int8", "Thirty-two wide channel vectorized row major Int8 format.", "Half NHWC8"), so they are looked for
inside whatever text there is. It knows nothing of engines or files. It may import nothing.
"""

from __future__ import annotations

import json
import re
from typing import Any

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
_WIDTH = {"int8": 8, "fp8": 8, "bf16": 16, "fp16": 16, "fp32": 32}
_ORDER = ("int8", "fp8", "fp16", "bf16", "fp32")
_FREE = frozenset({"constant", "noop", "shape_call"})  # they take no time
_WEIGHTED = re.compile(r"conv|gemm|matmul|matrix_?multiply|fully_?connected", re.IGNORECASE)


def precision_in(text: str) -> str:
    """Return the type that a description of a format names; empty: none."""
    lowered = text.lower()
    return next((name for word, name in _WORDS if word in lowered), "")


def summary(raw: Any, wanted: str) -> dict[str, Any]:
    """Return which layers run in which precision.

    Args:
        raw: the inspector's JSON, as text or read.
        wanted: `int8` or `fp16`: what the engine was built for.

    Returns:
        `layers`: for each its `name`, `kind`, `precision` (of its weights, else of what it reads; "" where the
        engine does not tell), `reads`, `writes`, `onnx` (nodes that it computes), `reformat`, `fallback`;
        `counts`: layers by precision, reformats left out; `reformats`: how many layers only convert;
        `fallbacks`: names of layers with weights (or, for fp16, of any kind) that run wider than was wanted;
        `detailed`: whether the engine tells about its layers at all.
    """
    layers = [made for made in map(_layer, _layers(raw)) if made is not None]
    counts: dict[str, int] = {}
    for layer in layers:
        layer["fallback"] = not layer["reformat"] and _runs_wider(layer, layer.pop("weighted"), wanted)
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


def _runs_wider(layer: dict[str, Any], weighted: bool, wanted: str) -> bool:
    if _WIDTH.get(layer["precision"], 0) <= _WIDTH[wanted]:
        return False
    # Between quantized layers much is left in float on purpose, and a layer that writes less converts.
    return weighted or (wanted == "fp16" and _narrowest(layer["writes"]) == layer["precision"])


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
        "onnx": _onnx_nodes(raw.get("Metadata")),
        "reformat": "reformat" in " ".join(kinds).lower() or name.startswith("Reformatting CopyNode"),
        "weighted": bool(of_weights) or bool(_WEIGHTED.search(" ".join(kinds))),
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


def _narrowest(types: list[str]) -> str:
    return next((name for name in _ORDER if name in types), next((name for name in types if name), ""))


def _onnx_nodes(metadata: Any) -> list[str]:
    if not isinstance(metadata, str):
        return []
    parts = [part.strip() for part in re.split("[\x1e\x1f]", metadata)]
    prefix = "[ONNX Layer: "
    return [part[len(prefix) : -1] for part in parts if part.startswith(prefix) and part.endswith("]")]
