"""Gather what the stages left into one report, judge it, and write it where something changed.

The report is plain JSON; Markdown and HTML are drawn from it (edgetune.report.render). It may import
errors, artifact, recipe, profile, data, machine and the gates.
"""

import datetime
import json
from pathlib import Path
from typing import Any

import edgetune
from edgetune.artifact import Artifact
from edgetune.data.folders import Dataset
from edgetune.machine import machine
from edgetune.profile import Target, merged_gates
from edgetune.recipe import Recipe
from edgetune.report.device import left_to_do
from edgetune.report.gates import exit_code, judge, verdict

SCHEMA_VERSION = 1

# What a report takes over of what the INT8 network's maker told.
CALIBRATION = ("images", "ranges", "preset", "warnings", "convergence", "enough_images")
QUANTIZATION = ("method", "held_images", "seconds", "ladder")


def assemble(
    recipe: Recipe,
    target: Target,
    data: Dataset,
    checkpoint: Artifact,
    network: Artifact,
    int8: Artifact,
    measures: Artifact,
    latency: Artifact | None,
    transfer: Artifact | None,
    *,
    strict: bool,
    command: str,
) -> dict[str, Any]:
    """Build the content of report.json, verdict and gates included."""
    found: dict[str, Any] = {"latency": None, "transfer": None}
    for part in (measures, latency, transfer):
        found |= read_measures(part) if part else {}
    found["size"] = {"fp32_bytes": network.file("model.onnx").stat().st_size,
                     "int8_bytes": int8.file("model.onnx").stat().st_size}  # fmt: skip
    why_not = {} if target.is_host else {"latency": "no engine was built here: run it on the device"}
    gates = judge(merged_gates(target.profile.gates, recipe.gates), found, why_not=why_not)
    roles = {"checkpoint": checkpoint, "onnx": network, "int8": int8}
    return {
        "schema_version": SCHEMA_VERSION,
        "edgetune": edgetune.__version__,
        "made_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "name": recipe.name,
        "command": command,
        "verdict": verdict(gates, strict=strict, measures=found),
        "exit_code": exit_code(gates, strict=strict),
        "recipe": recipe.model_dump(mode="json"),
        "profile": {
            "label": target.label, "title": target.profile.title, "kind": target.profile.kind,
            "rendering": target.runtime.rendering,
        },
        "machine": machine(),
        "data": _data(data),
        "training": checkpoint.details["training"],
        "artifacts": [
            {
                "role": role, "kind": made.kind, "path": made.path.name,
                "digest": made.digest, "bytes": made.bytes,
            }
            for role, made in roles.items()
        ],
        "layers": int8.details.get("layers"),
        "calibration": {key: int8.details.get(key) for key in CALIBRATION},
        "quantization": {key: int8.details.get(key) for key in QUANTIZATION},
        "gates": [gate.model_dump(mode="json") for gate in gates],
        "left_to_do": left_to_do(target, network.inputs),
        "reproduce": _reproduce(command),
        **found,
    }  # fmt: skip


def publish(report: dict[str, Any], out: Path) -> None:
    """Write report.json, report.md and report.html, unless they already say the same."""
    page = out / "report.html"
    if page.is_file() and (out / "report.md").is_file() and _same(report, out / "report.json"):
        return
    from edgetune.report.render import write_report

    write_report(report, out)


def read_measures(artifact: Artifact) -> dict[str, Any]:
    """Return what a judge (check, bench, transfer) measured."""
    content: dict[str, Any] = json.loads(artifact.file("measures.json").read_text(encoding="utf-8"))
    return content


def _data(data: Dataset) -> dict[str, Any]:
    counts = {
        split: {
            name: sum(sample.label == label for sample in samples) for label, name in enumerate(data.classes)
        }
        for split, samples in data.splits.items()
    }
    return {
        "root": str(data.root), "classes": list(data.classes), "counts": counts,
        "broken": [list(entry) for entry in data.broken],
        "duplicates": [list(group) for group in data.duplicates], "warnings": list(data.warnings),
    }  # fmt: skip


def _reproduce(command: str) -> list[str]:
    return [f"# edgetune {edgetune.__version__}", *([command] if command else [])]


def _same(report: dict[str, Any], path: Path) -> bool:
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(_lasting(json.loads(json.dumps(report))) == _lasting(earlier))


def _lasting(report: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in report.items()
        if key not in ("made_at", "machine", "command", "reproduce")
    }
