"""Gather what the stages left into one report, judge it, and write it where something changed.

The report is plain JSON; Markdown and HTML are drawn from it (edgetune.report.render). It may import
errors, artifact, recipe, profile, data, machine and the gates.
"""

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import edgetune
from edgetune.artifact import Artifact, Tokens, sha256_of
from edgetune.data.folders import Dataset
from edgetune.machine import machine
from edgetune.profile import Target, merged_gates, own_content
from edgetune.recipe import Gates, Recipe
from edgetune.report.device import left_to_do
from edgetune.report.gates import exit_code, judge, verdict
from edgetune.report.worth import diagnosis, no_int8, worth

SCHEMA_VERSION = 1
# What a device measured, beside the bundle's plan of work.
MEASURES, WORK_FILE = "measures.json", "work.json"
# Of a report, what gates are held against.
PARTS = ("parity", "accuracy", "latency", "transfer", "size")

# What a report takes over of what the INT8 network's maker told.
CALIBRATION = ("images", "ranges", "preset", "warnings", "convergence", "enough_images")
QUANTIZATION = ("method", "held_images", "seconds", "ladder")


def assemble(
    recipe: Recipe,
    target: Target,
    data: Dataset,
    checkpoint: Artifact,
    network: Artifact,
    int8: Artifact | None,
    measures: Artifact,
    latency: Artifact | None,
    transfer: Artifact | None,
    distillation: Artifact | None = None,
    *,
    estimate: dict[str, Any] | None = None,
    strict: bool,
    command: str,
    beside: Mapping[str, Artifact | None] | None = None,
) -> dict[str, Any]:
    """Build the content of report.json, verdict and gates included.

    `estimate` is what stands in for a measurement of the INT8 engine, or why there is none as `why_not`; `beside` names
    what else was trained.
    """
    found: dict[str, Any] = {"latency": None, "transfer": None, "distillation": None}
    for part in (measures, latency, transfer, distillation):
        found |= read_measures(part) if part else {}
    roles = {"checkpoint": checkpoint, "onnx": network} | ({"int8": int8} if int8 else {})
    told: dict[str, Any] = int8.details if int8 else {}
    found["size"] = {
        f"{name}_bytes": roles[role].file("model.onnx").stat().st_size
        for name, role in (("fp32", "onnx"), ("int8", "int8"))
        if role in roles
    }
    why_not = (
        {"device": f"{target.label} runs no engine: name a device's profile"}
        if target.is_host
        else {"latency": "no engine was built here: run it on the device"}
    )
    if estimate:
        found["estimate"] = estimate
    limits = merged_gates(target.profile.gates, recipe.gates)
    gates = judge(limits, found, why_not=why_not, no_int8=target.no_int8)
    return {
        "schema_version": SCHEMA_VERSION,
        "edgetune": edgetune.__version__,
        "made_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "name": recipe.name,
        "command": command,
        "verdict": verdict(gates, strict=strict, measures=found),
        "exit_code": exit_code(gates, strict=strict),
        "strict": strict,
        "recipe": recipe.model_dump(mode="json"),
        "profile": {
            "label": target.label, "title": target.profile.title, "kind": target.profile.kind,
            "rendering": target.runtime.rendering, "no_int8": target.no_int8, **own_content(target),
        },
        "machine": machine(),
        "data": _data(data),
        "training": checkpoint.details["training"],
        "artifacts": [
            {
                "role": role, "kind": made.kind,
                # A teacher may lie elsewhere.
                "path": made.path.name if made.path.parent == checkpoint.path.parent else str(made.path),
                "digest": made.digest, "bytes": made.bytes,
            }
            for role, made in [*roles.items(), *(beside or {}).items()]
            if made is not None
        ],
        "layers": told.get("layers"),
        "calibration": {key: told.get(key) for key in CALIBRATION},
        "quantization": {key: told.get(key) for key in QUANTIZATION},
        "limits": limits.model_dump(mode="json"),
        "gates": [gate.model_dump(mode="json") for gate in gates],
        "left_to_do": left_to_do(target, network.inputs, _length(network)),
        "reproduce": _reproduce(command),
        **found,
    }  # fmt: skip


def with_device(
    report: dict[str, Any], device: dict[str, Any], limits: Gates, *, strict: bool
) -> dict[str, Any]:
    """Return a report with what a device measured, and judge anew.

    Args:
        report: of a run; or what names a bundle that lies in none.
        device: what `stages.verify` returns.
        limits: in force.
        strict: a gate that could not be judged counts as failed.
    """
    why = diagnosis(device, limits)
    device = device | {"diagnosis": why, "worth": worth(device, limits, why)}
    found = {part: report[part] for part in PARTS if part in report} | {"device": device}
    gates = judge(limits, found, no_int8=no_int8(device))
    left = [f"{step}: {error['message']}. {error['hint']}" for step, error in device["errors"].items()]
    return report | {
        "device": device,
        "gates": [gate.model_dump(mode="json") for gate in gates],
        "verdict": verdict(gates, strict=strict, measures=found),
        "exit_code": exit_code(gates, strict=strict),
        "strict": strict,
        "left_to_do": left,
    }


def _length(network: Artifact) -> int:
    """Return the length of the longest texts, where there are several."""
    how = network.preprocess
    return how.length if isinstance(how, Tokens) and len(how.lengths) > 1 else 0


def limits_of(report: dict[str, Any]) -> Gates:
    """Return the limits that a report was judged by."""
    limits = report.get("limits") or report["recipe"]["gates"]
    return Gates.model_validate({name: limits[name] for name in Gates.model_fields if name in limits})


def measured_on_device(report: dict[str, Any], out: Path) -> dict[str, Any] | None:
    """Return what a device measured of a run's own artifacts, if it was brought back and verified.

    Args:
        report: of the run as it is now.
        out: the run's folder; the bundle lies in it as `bundle`.
    """
    folder = out / "bundle"
    try:
        found: dict[str, Any] = json.loads((folder / MEASURES).read_text(encoding="utf-8"))
        work = json.loads((folder / WORK_FILE).read_text(encoding="utf-8"))
        same = found["bundle"] == sha256_of(folder / WORK_FILE) and made_of(work, report)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if same and found.get("schema_version") == SCHEMA_VERSION else None


def made_of(work: dict[str, Any], report: dict[str, Any]) -> bool:
    """Tell whether a bundle holds the networks that a report is about."""
    digests = {e["role"]: e["digest"] for e in report["artifacts"] if e["role"] in ("onnx", "int8")}
    return bool(work["parents"] == digests)


def publish(report: dict[str, Any], out: Path) -> None:
    """Write report.json, report.md and report.html, unless they already say the same."""
    page = out / "report.html"
    if page.is_file() and (out / "report.md").is_file() and _same(report, out / "report.json"):
        return
    from edgetune.report.render import write_report

    write_report(report, out)


def read_measures(artifact: Artifact) -> dict[str, Any]:
    """Return what a judge (check, bench, transfer, distillation) measured."""
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
