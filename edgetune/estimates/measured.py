"""A user's own measurements, from finished runs whose engines were timed on a device.

It may import errors, profile and the other modules of estimates.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgetune.errors import ArtifactError, ConfigError
from edgetune.estimates.fitting import Fit, Row, refit
from edgetune.estimates.hardware import hardware_of
from edgetune.estimates.model import columns, sizes_of
from edgetune.estimates.parameters import Parameters
from edgetune.estimates.predict import read, why_not
from edgetune.profile import Target, target_of

# Which of a run's networks an engine was built of.
NETWORK_OF = {"fp16": "onnx", "int8": "qdq"}


def rows_of(run: Path) -> list[Row]:
    """Return a run's latencies on a device: the median of the compute time, per engine.

    Raises:
        ConfigError: it is no finished run, or was not timed on a device.
        ArtifactError: its report is damaged, or the measurement is not to be trusted.
    """
    report = _report(run)
    device = report.get("device") or {}
    timing = (device.get("timing") or {}).get("compute")
    if report["profile"].get("kind") == "host":
        raise ConfigError(
            f"{run}: was timed on {report['profile']['label']}, and estimates are of GPUs",
            hint="name a run for a Jetson: edgetune run RECIPE --profile NAME --on ssh://USER@DEVICE",
        )
    if not timing or not timing.get("models"):
        raise ConfigError(
            f"{run}: holds no latency that was measured on a device",
            hint=f"time its engines there first: edgetune bench {run} --on ssh://USER@DEVICE",
        )
    if any(engine.get("gpu_layers") is not None for engine in (device.get("engines") or {}).values()):
        raise ConfigError(
            f"{run}: its engines were built for a DLA, and estimates are of GPUs",
            hint="bundle it without --dla, and time that",
        )
    if not timing.get("trusted", True):
        raise ArtifactError(
            f"{run}: its latency is not to be trusted: {timing.get('why', '')}", hint="measure it again"
        )
    target = _target(report["profile"], str((device.get("found") or {}).get("power_mode") or ""))
    files = {entry["kind"]: run / entry["path"] / "model.onnx" for entry in report["artifacts"]}
    found = []
    for precision, model in timing["models"].items():
        hardware = hardware_of(target.profile, target.mode)
        if (
            precision not in NETWORK_OF
            or not model.get("p50_ms")
            or hardware is None
            or why_not(target, precision)
        ):
            continue
        # Of texts of several lengths the report has the time of the longest.
        kernels = read(files[NETWORK_OF[precision]]).kernels
        key = f"{target.profile.name}:{target.mode}"
        name = f"{report['name']}, {precision}"
        graph = (timing.get("cuda_graph") or {}).get(precision)
        measured, ms = "graph" if graph else "plain", float(model["p50_ms"])
        found.append(Row(columns(sizes_of(kernels, precision), hardware), key, name, measured, ms))
    if not found:
        raise ConfigError(
            f"{run}: none of its engines can be estimated on {target.label}", hint="name another run"
        )
    return found


def _report(run: Path) -> dict[str, Any]:
    try:
        found = json.loads((run / "report.json").read_text())
        return found if found["profile"]["label"] and found["artifacts"] else {}
    except OSError as error:
        raise ConfigError(
            f"{run}: not a finished run: it has no report.json", hint="name a run's folder"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{run}/report.json: not a report: {error}", hint=f"write it again: edgetune report {run}"
        ) from error


def _target(profile: Mapping[str, Any], mode: str) -> Target:
    """Return where it was measured: the mode that the device was in counts, where the profile knows it."""
    target = target_of(str(profile["label"]), profile.get("own"))
    known = next((name for name in target.profile.modes if name.lower() == mode.lower()), target.mode)
    return target.model_copy(update={"mode": known})


def fit_runs(runs: Sequence[Path], known: Parameters) -> Parameters:
    """Fit the parameters to runs, holding to those that are known.

    Raises:
        ConfigError: no runs, or as `rows_of`.
    """
    if not runs:
        raise ConfigError("no run is named", hint="edgetune estimate --fit RUN... -o mine.json")
    rows = [row for run in runs for row in rows_of(run)]
    made = refit(rows, Fit(known.values, known.devices))
    return Parameters(
        values=made.values,
        devices=made.devices,
        rows=known.rows + len(rows),
        networks=tuple(sorted({*known.networks, *(row.network for row in rows)})),
        made=datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        intervals=known.intervals,
        errors=known.errors,
    )
