"""Writes a report as JSON, Markdown and one HTML file that needs nothing else.

The page holds no script and asks for nothing from outside. It knows no stage: everything it shows is in
report.json. It may import errors, artifact and the other files of the report except the gates.
"""

import json
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from edgetune.artifact import disk_error, write_atomic
from edgetune.errors import ArtifactError
from edgetune.report import sentences, view, view_device, view_distill, view_int8, view_lengths, wording
from edgetune.report.markdown import device_markdown, markdown
from edgetune.report.schema import Report, read_report

TEMPLATES = Path(__file__).parent / "templates"


def write_report(report: dict[str, Any], folder: Path) -> Path:
    """Write report.html, report.md and, last, report.json, each whole or not at all.

    Args:
        report: the content of report.json; a part that is missing or null is left out or said to be missing.
        folder: exists.

    Returns:
        The path of report.html.

    Raises:
        ArtifactError: a value of the wrong kind; names the key.
        StageError: the disk is full, or the folder cannot be written.
    """
    content = _storable(report)
    typed = read_report(content)
    page = folder / "report.html"
    try:
        write_atomic(page, html(typed))
        write_atomic(folder / "report.md", markdown(typed))
        # Whoever finds the JSON may take it that the pages say the same.
        write_atomic(folder / "report.json", _json(content))
    except OSError as error:
        raise disk_error(error, folder) from error
    return page


def write_device_report(report: dict[str, Any], path: Path) -> None:
    """Write what came of a bundle as Markdown.

    Raises:
        ArtifactError: a value of the wrong kind; names the key.
        StageError: the disk is full, or the folder cannot be written.
    """
    text = device_markdown(read_report(_storable(report)))
    try:
        write_atomic(path, text)
    except OSError as error:
        raise disk_error(error, path) from error


def load_report(path: Path) -> dict[str, Any]:
    """Read a report.json.

    Raises:
        ArtifactError: it is not there, not JSON, or not a report of this schema version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}", hint="edgetune run RECIPE writes one") from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: not JSON: {error}", hint="run the recipe again") from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{path}: not a report", hint="name a run's folder")
    read_report(content, str(path))
    return content


def html(report: Report) -> str:
    """Return the report as one HTML page."""
    from edgetune.report import charts, charts_bench, charts_int8

    timed = view_device.timed_layers(report.device) if report.device else None
    accuracy = report.accuracy
    there = view_device.latency(report.device) if report.device else None
    worst = view.worst_classes(accuracy.per_class) if accuracy else []
    drawn = {
        "transfer": charts.transfer_chart(report.transfer) if report.transfer else "",
        "distillation": charts.distillation_chart(report.distillation) if report.distillation else "",
        "training": charts.training_charts(report.training) if report.training else [],
        "classes": charts.class_chart(worst),
        "latency": charts.latency_chart(report.latency) if report.latency else "",
        "device": charts.latency_chart(there) if there else "",
        "device_layers": charts_bench.layer_chart(*view_device.drawn_layers(timed), "device-layers")
        if timed
        else "",
        "layers": charts_int8.layer_chart(report.layers),
        "settling": charts_int8.settling_chart(report.calibration),
    }
    recipe = json.dumps(report.recipe, indent=2, ensure_ascii=False) if report.recipe else ""
    template = _environment().get_template("report.html.j2")
    return template.render(report=report, charts=drawn, worst=worst, recipe=recipe)


def write_page(template: str, content: dict[str, Any], file: Path, **given: Any) -> None:
    """Write a page of its own, `file`.html, and the JSON that it shows, `file`.json.

    Args:
        template: of `templates/`.
        content: plain values.
        file: without an ending.
        given: what the template shows.

    Raises:
        StageError: the disk is full, or the folder cannot be written.
    """
    page = _environment().get_template(template).render(**given)
    try:
        write_atomic(file.with_suffix(".html"), page)
        write_atomic(file.with_suffix(".json"), _json(_storable(content)))
    except OSError as error:
        raise disk_error(error, file.with_suffix(".html")) from error


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shared = {"view": view, "int8": view_int8, "on": view_device, "sentences": sentences, "wording": wording}
    environment.globals |= shared | {"taught": view_distill, "lengths": view_lengths, "markup": Markup}
    return environment


def _storable(value: Any) -> Any:
    """Copy a value so that it is JSON: no NaN, no infinity, no half characters of unreadable file names."""
    if isinstance(value, dict):
        return {_storable(str(key)): _storable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_storable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _json(content: dict[str, Any]) -> str:
    """Sorted keys, a line per entry, but a row of numbers on one line."""
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    # Only JSON's own line breaks match: those inside texts are escaped.
    return re.sub(r"\[\n([-+\d.eE,\s]+)\]", lambda row: f"[{' '.join(row[1].split())}]", text) + "\n"
