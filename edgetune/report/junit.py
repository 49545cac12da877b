"""Gates as JUnit XML, which CI systems read: one test case per gate.

A gate that failed is a failure, one that was not judged is skipped (with --strict a failure), with its reason. It
knows reports as they are published. It may import errors and artifact only.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from edgetune.artifact import write_atomic
from edgetune.errors import ConfigError

# What XML 1.0 cannot hold, escaped or not: messages of a device may.
_UNSAYABLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_junit(report: Mapping[str, Any], path: Path) -> None:
    """Write the gates of a report.

    Args:
        report: of a run or of a bundle, with `name`, `profile` and `gates`; `strict`: whether what could not be
            judged counted as failed.
        path: the file; its folder is made where it is not there.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, junit(report))
    except OSError as error:
        raise ConfigError(
            f"--junit {path}: {error.strerror}", hint="name a file that can be written"
        ) from error


def junit(report: Mapping[str, Any]) -> str:
    """Return the gates of a report as JUnit XML."""
    name, profile = str(report.get("name") or "run"), (report.get("profile") or {}).get("label") or ""
    suite = ElementTree.Element("testsuite", name=_sayable(f"edgetune {name}"))
    properties = ElementTree.SubElement(suite, "properties")
    verdict = (report.get("verdict") or {}).get("sentence") or ""
    for key, value in (("profile", profile), ("verdict", verdict)):
        ElementTree.SubElement(properties, "property", name=key, value=_sayable(value))
    strict = bool(report.get("strict"))
    counts = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    for gate in report["gates"]:
        case = ElementTree.SubElement(
            suite, "testcase", classname=_sayable(f"edgetune.{name}"), name=gate["name"], time="0"
        )
        counts["tests"] += 1
        said = _sayable(f"{gate['title']}: {_outcome(gate)}")
        if gate["status"] == "fail" or (strict and gate["status"] == "not judged"):
            counts["failures"] += 1
            ElementTree.SubElement(case, "failure", message=said, type=gate["status"])
        elif gate["status"] == "not judged":
            counts["skipped"] += 1
            ElementTree.SubElement(case, "skipped", message=said)
        else:
            ElementTree.SubElement(case, "system-out").text = said
    numbers = {key: str(count) for key, count in counts.items()}
    suite.attrib.update(numbers)
    whole = ElementTree.Element("testsuites", {"name": "edgetune", **numbers})
    whole.append(suite)
    ElementTree.indent(whole)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(whole, encoding="unicode")}\n'


def _outcome(gate: Mapping[str, Any]) -> str:
    """Say value, limit and interval, or why there is no value."""
    if gate["status"] == "not judged":
        return f"not judged: {gate['why']}"
    unit = f" {gate['unit']}" if gate["unit"] else ""
    bound = "at most" if gate["direction"] == "max" else "at least"
    said = f"{gate['value']:.4g}{unit}, {bound} {gate['limit']:.4g}{unit} wanted"
    if gate["low"] is not None and gate["high"] is not None:
        said += f" ({90 if gate.get('estimated') else 95}%: {gate['low']:.4g} to {gate['high']:.4g})"
    said += "; uncertain: the interval spans the limit" if gate["uncertain"] else ""
    return f"{said}; estimated, not measured" if gate.get("estimated") else said


def _sayable(text: str) -> str:
    return _UNSAYABLE.sub("?", text)
