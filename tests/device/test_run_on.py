"""`edgetune run --on ssh://…`: from a folder of images to engines built, verified and judged on a device."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import loopback
import pytest
from typer.testing import CliRunner

from edgetune import cli

STANDIN = Path(__file__).with_name("standin_trtexec.py")
RECIPE = """\
schema_version: 1
name: colours
profile: {profile}
data: {{path: "{images}", test_share: 0.4, val_share: 0.1, min_images: 2}}
model: {{name: mobilenet_v2_035_cifar10, weights: none}}
finetune: {{strategy: feature-extractor, epochs: 1, batch: 8}}
quantize: {{preset: quick, method: plain}}
gates: {{top1_drop_points: 100, int8_cosine_min: -1, int8_agreement_percent_min: 0}}
"""


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[loopback.Loopback]:
    server = loopback.Loopback(tmp_path / "device")
    server.put(
        "trtexec", f'export STANDIN_TRTEXEC_VERSION=10.3.0\nexec {sys.executable} -I {STANDIN} "$0" "$@"'
    )
    server.start()
    monkeypatch.setenv("PATH", f"{server.client}:{os.environ['PATH']}")
    yield server
    server.stop()


def typed(*words: object, verb: str = "run") -> Any:
    return CliRunner().invoke(cli.app, [verb, *map(str, words)])


@pytest.mark.slow
def test_a_run_ends_on_the_device(device: loopback.Loopback, class_folders: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(profile="jetson-orin-nano-8gb", images=class_folders))
    words = (recipe, "-o", tmp_path / "run", "--on", device.url, "-q", "--json")
    done = typed(*words)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["device"]["tool"], report["device"]["finished"]) == ("trtexec", True)
    assert set(report["device"]["engines"]) == {"fp16", "int8"}
    assert "On the device" in (tmp_path / "run/report.html").read_text()
    log = device.home / "edgetune/run-bundle/run.log"
    assert log.read_text().count("done before") == 0
    again = typed(*words)
    assert again.exit_code == 0, again.output
    assert log.read_text().count("done before") == 8, "nothing is built again"


@pytest.mark.slow
def test_one_step_at_a_time(device: loopback.Loopback, class_folders: Path, tmp_path: Path) -> None:
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(RECIPE.format(profile="jetson-orin-nano-8gb", images=class_folders))
    assert typed(recipe, "-o", run, "-q").exit_code == 0
    there = ("--on", device.url, "-q", "--json")

    built = json.loads(typed(run, *there, verb="build").stdout)
    assert (built["finished"], set(built["engines"])) == (True, {"fp16", "int8"})
    for engine in built["engines"].values():
        assert (Path(built["folder"]) / engine["plan"]).stat().st_size == engine["plan_bytes"]
    shown = typed(run, *there[:3], verb="build")
    assert "int8.plan" in shown.stdout
    assert "TensorRT 10.3.0" in shown.stdout

    checked = json.loads(typed(run, *there, verb="check").stdout)["device"]
    assert checked["engines"]["int8"]["samples"] > 0
    assert not checked["timing"]
    timed = json.loads(typed(run, *there, verb="bench").stdout)["device"]
    assert set(timed["timing"]) == {"compute", "copies"}
    assert timed["engines"]["int8"]["samples"] == checked["engines"]["int8"]["samples"], "both are kept"
    assert (device.home / "edgetune/run-bundle/run.log").read_text().count("build-int8: done before") == 1

    assert "accuracy" in json.loads(typed(run, "-q", "--json", verb="check").stdout)
    assert set(json.loads(typed(run, "-q", "--json", verb="bench").stdout)["latency"]["models"]) == {
        "onnx",
        "int8",
    }
    two = typed(run, run, "--on", device.url, verb="bench")
    assert "one finished run" in str(two.exception)
    assert "name a run, or three" in str(typed(run, run, verb="check").exception.hint)


@pytest.mark.slow
def test_what_cannot_run_there_is_said_first(
    device: loopback.Loopback, class_folders: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(profile="host-cpu", images=class_folders))
    host = typed(recipe, "-o", tmp_path / "run", "--on", device.url, "-q")
    assert "is this machine itself" in str(host.exception)
    recipe.write_text(RECIPE.format(profile="jetson-orin-nano-8gb", images=class_folders))
    nobody = typed(recipe, "-o", tmp_path / "run", "--on", "ssh://127.0.0.1:1", "-q")
    assert nobody.exception
    assert not (tmp_path / "run").exists(), "not an hour is spent before"
