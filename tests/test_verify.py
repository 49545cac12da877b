"""`edgetune verify`: a run, its bundle, the device's program with a stand-in trtexec, and what is judged."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import edgetune
from edgetune import away, cli
from edgetune.errors import ArtifactError, ConfigError
from edgetune.pipeline import run
from edgetune.progress import Silent
from edgetune.recipe import Recipe, recipe_from

# Each needs a run, which is made once: half a minute.
pytestmark = pytest.mark.slow

STANDIN = Path(__file__).parent / "device/standin_trtexec.py"
PROFILE = "jetson-orin-nano-8gb"
Make = Callable[..., Path]


def recipe(images: Path) -> Recipe:
    return recipe_from({
        "name": "test",
        "data": {"path": str(images), "test_share": 0.4, "val_share": 0.1, "min_images": 2},
        "model": {"name": "mobilenet_v2_035_cifar10", "weights": "none"},
        "finetune": {"strategy": "feature-extractor", "epochs": 1, "batch": 8},
        "quantize": {"preset": "quick", "method": "plain"},
        "gates": {"top1_drop_points": 100, "int8_cosine_min": -1, "int8_agreement_percent_min": 0},
    })  # fmt: skip


def go(images: Path, out: Path) -> dict[str, Any]:
    return run(recipe(images), edgetune.load_target(PROFILE), out).report


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose bundle came back from a device: a process with nothing but Python's standard library."""
    root = tmp_path_factory.mktemp("measured")
    noise = np.random.default_rng(0)
    for label, name in enumerate(("blue", "red")):
        (root / "images" / name).mkdir(parents=True)
        for index in range(20):
            pixels = noise.integers(0, 90, (40, 40, 3), dtype=np.uint8)
            pixels[..., 2 - 2 * label] += 140
            Image.fromarray(pixels).save(root / "images" / name / f"{index:02d}.png")
    go(root / "images", root / "run")
    away.bundle_run(root / "run", None, None, 3, Silent())
    tool = root / "bin/trtexec"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\nexec {sys.executable} -I {STANDIN} "$0" "$@"\n')
    tool.chmod(0o755)
    environment = {"PATH": f"{tool.parent}:{os.environ['PATH']}", "STANDIN_TRTEXEC_VERSION": "10.3.0"}
    command = [sys.executable, "-I", "-S", "edgetune.pyz", "--trtexec", "--seconds", "0.1"]
    done = subprocess.run(
        command,
        cwd=root / "run/bundle",
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture
def copy(measured: Path, tmp_path: Path) -> Path:
    """The run's folder, to change."""
    shutil.copytree(measured / "run", tmp_path / "run")
    return tmp_path / "run"


def verify(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, ["verify", *map(str, arguments)])


def test_what_came_back_goes_into_the_run_and_stays(measured: Path, copy: Path) -> None:
    done = verify(copy / "bundle")
    assert done.exit_code == 0, done.output
    assert "On the device" in done.output
    report = json.loads((copy / "report.json").read_text())
    device = report["device"]
    assert (device["tool"], device["tensorrt"], device["finished"]) == ("trtexec", "10.3.0", True)
    for engine in device["engines"].values():
        assert engine["samples"] == 3
        assert engine["agreement"] == 1.0, "both are ONNX Runtime"
        assert engine["sqnr_db"] > 40
    assert report["left_to_do"] == []
    gates = {gate["name"]: gate for gate in report["gates"]}
    assert "3 samples compared" in gates["engine_agreement_percent_min"]["why"]
    assert "On the device" in (copy / "report.html").read_text()
    assert (copy / "bundle/report.md").read_text().startswith("# test on a device")
    again = go(measured / "images", copy)
    assert again["device"] == device
    assert [gate["name"] for gate in again["gates"]] == list(gates)


def test_json_is_the_report(copy: Path) -> None:
    done = verify(copy / "bundle", "--json")
    assert json.loads(done.stdout)["device"]["engines"].keys() == {"fp16", "int8"}
    strict = verify(copy / "bundle", "--strict")
    assert strict.exit_code == 7, "some could not be judged"


def test_a_ci_system_gets_the_gates(copy: Path, tmp_path: Path) -> None:
    done = verify(copy / "bundle", "--junit", tmp_path / "gates.xml")
    assert done.exit_code == 0, done.output
    gates = json.loads((copy / "report.json").read_text())["gates"]
    cases = list(ElementTree.parse(tmp_path / "gates.xml").iter("testcase"))
    assert [case.attrib["name"] for case in cases] == [gate["name"] for gate in gates]
    skipped = [case.attrib["name"] for case in cases if case.find("skipped") is not None]
    assert skipped == [gate["name"] for gate in gates if gate["status"] == "not judged"] != []
    verify(copy / "bundle", "--strict", "--junit", tmp_path / "gates.xml")
    strict = ElementTree.parse(tmp_path / "gates.xml").getroot()
    assert (strict.attrib["skipped"], strict.attrib["failures"]) == ("0", str(len(skipped)))
    # A report repeats the verdict that was given last, and how strictly.
    again = CliRunner().invoke(cli.app, ["report", str(copy), "--junit", str(tmp_path / "report.xml")])
    assert again.exit_code == 7, again.output
    assert ElementTree.parse(tmp_path / "report.xml").getroot().attrib == strict.attrib
    verify(copy / "bundle")
    again = CliRunner().invoke(cli.app, ["report", str(copy), "--junit", str(tmp_path / "report.xml")])
    assert again.exit_code == 0, again.output
    assert len(list(ElementTree.parse(tmp_path / "report.xml").iter("testcase"))) == len(cases)


def test_a_run_that_was_made_anew_does_not_take_old_measures(measured: Path, copy: Path) -> None:
    verify(copy / "bundle")
    report = json.loads((copy / "report.json").read_text())
    work = copy / "bundle/work.json"
    content = json.loads(work.read_text())
    content["parents"]["int8"] = "f" * 64
    work.write_text(json.dumps(content))
    assert "device" not in go(measured / "images", copy)
    assert "device" in report


def test_a_bundle_elsewhere_is_judged_alone_or_with_its_run(copy: Path, tmp_path: Path) -> None:
    there = tmp_path / "elsewhere/bundle"
    shutil.copytree(copy / "bundle", there)
    before = (copy / "report.json").read_bytes()
    judged, page = away.verify_bundle(there, None, strict=False)
    assert page == there / "report.md"
    assert "accuracy" not in judged
    assert {gate["name"] for gate in judged["gates"]} == {
        "engine_top1_drop_points",
        "engine_agreement_percent_min",
    }
    assert (copy / "report.json").read_bytes() == before
    judged, page = away.verify_bundle(there, copy, strict=False)
    assert page == copy / "report.html"
    assert "accuracy" in judged


def test_another_runs_bundle(copy: Path, brought_back: Make, tmp_path: Path) -> None:
    other = brought_back(tmp_path / "other")
    with pytest.raises(ConfigError, match="was made of other networks"):
        away.verify_bundle(other, copy, strict=False)
    shutil.rmtree(copy / "bundle")
    shutil.copytree(other, copy / "bundle")
    judged, page = away.verify_bundle(copy / "bundle", None, strict=False)
    assert page.name == "report.md"
    assert "accuracy" not in judged


def test_a_failed_gate_ends_with_seven(brought_back: Make, tmp_path: Path) -> None:
    good, bad = brought_back(tmp_path / "good"), brought_back(tmp_path / "bad", engine_flips=40)
    assert verify(good).exit_code == 0
    done = verify(bad)
    assert done.exit_code == 7
    assert "The runtime differs" in " ".join(done.output.split())
    assert json.loads((bad / "measures.json").read_text())["engines"]["int8"]["agreement"] == 0.9


def test_damage_is_an_error_and_writes_nothing(brought_back: Make, tmp_path: Path) -> None:
    folder = brought_back(tmp_path / "bundle")
    path = folder / "results/result.json"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ArtifactError, match="cut"):
        away.verify_bundle(folder, None, strict=False)
    assert not (folder / "measures.json").exists()
    assert not (folder / "report.md").exists()
