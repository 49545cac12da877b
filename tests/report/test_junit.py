"""What a CI system is told: one test case per gate, and never a green one for what was not judged."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.errors import ConfigError
from edgetune.recipe import Gates
from edgetune.report.gate_rows import GATES
from edgetune.report.gates import judge
from edgetune.report.junit import junit, write_junit

LIMITS = Gates(top1_drop_points=1.0, size_mb=3.0, latency_p50_ms=5.0, memory_mb=10.0, energy_mj=2.0)
MEASURES = {
    "accuracy": {"drop": {"points": 0.9, "low": 0.2, "high": 1.4}, "models": {}, "images": 200},
    "parity": {
        "fp32_vs_torch": {"difference_over_std": 2e-6},
        "int8_vs_fp32": {
            "cosine_mean": 0.95,
            "agreement": 0.99,
            "agreement_low": 0.97,
            "agreement_high": 1.0,
        },
    },
    "size": {"int8_bytes": 2_000_000},
}


def report(**more: Any) -> dict[str, Any]:
    gates = [gate.model_dump(mode="json") for gate in judge(LIMITS, MEASURES)]
    return {"name": "photos", "profile": {"label": "host-cpu:default"}, "gates": gates, **more}


def cases(text: str) -> dict[str, ElementTree.Element]:
    found = {case.attrib["name"]: case for case in ElementTree.fromstring(text).iter("testcase")}
    assert found
    return found


def test_each_gate_is_one_case() -> None:
    told = report()
    found = cases(junit(told))
    assert list(found) == [gate["name"] for gate in told["gates"]]
    assert {case.attrib["classname"] for case in found.values()} == {"edgetune.photos"}
    failure = found["int8_cosine_min"].find("failure")
    assert failure is not None
    assert failure.attrib["message"] == "INT8 against FP32, mean cosine: 0.95, at least 0.99 wanted"
    skipped = found["latency_p50_ms"].find("skipped")
    assert skipped is not None
    assert skipped.attrib["message"] == "INT8 latency, median: not judged: latency was not measured"
    drop = found["top1_drop_points"].find("system-out")
    assert drop is not None
    assert drop.text == (
        "top-1 drop, FP32 to INT8: 0.9 points, at most 1 points wanted (95%: 0.2 to 1.4); "
        "uncertain: the interval spans the limit"
    )
    assert [child.tag for child in found["size_mb"]] == ["system-out"]


@pytest.mark.parametrize("strict", [False, True])
def test_the_counts_are_those_of_the_cases(strict: bool) -> None:
    whole = ElementTree.fromstring(junit(report(strict=strict)))
    suite = whole.find("testsuite")
    assert suite is not None
    for key, tag in (
        ("failures", "failure"),
        ("skipped", "skipped"),
        ("tests", "testcase"),
        ("errors", "error"),
    ):
        assert int(whole.attrib[key]) == int(suite.attrib[key]) == len(list(suite.iter(tag)))
    unjudged = [gate for gate in report()["gates"] if gate["status"] == "not judged"]
    assert len(unjudged) == 3
    assert int(suite.attrib["skipped"]) == (0 if strict else 3)
    assert int(suite.attrib["failures"]) == (4 if strict else 1)


def test_a_report_without_gates_has_no_case() -> None:
    assert ElementTree.fromstring(junit({"gates": []})).attrib["tests"] == "0"


@given(st.text(), st.text())
def test_whatever_a_device_says_is_xml(name: str, why: str) -> None:
    told = report(name=name, verdict={"sentence": why})
    told["gates"][-1] |= {"why": why, "status": "not judged"}
    found = list(ElementTree.fromstring(junit(told).encode()).iter("testcase"))
    assert len(found) == len(told["gates"])


def test_the_file_is_whole_and_its_folder_is_made(tmp_path: Path) -> None:
    write_junit(report(), tmp_path / "ci" / "gates.xml")
    text = (tmp_path / "ci" / "gates.xml").read_text(encoding="utf-8")
    assert text.startswith('<?xml version="1.0" encoding="UTF-8"?>')
    assert set(cases(text)) <= set(GATES)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--junit"):
        write_junit(report(), tmp_path / "file" / "gates.xml")
