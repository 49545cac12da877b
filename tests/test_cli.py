"""The command line: exit codes, streams, and messages with a way out."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgetune import __version__, cli

PLAIN = {"NO_COLOR": "1", "COLUMNS": "120", "TERM": "dumb"}


def edgetune(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "edgetune", *arguments], capture_output=True, text=True, cwd=cwd, check=False
    )


def verbs() -> list[str]:
    found = [
        command.name or command.callback.__name__
        for command in cli.app.registered_commands
        if command.callback
    ]
    assert len(found) >= 10
    return [*found, *(group.name for group in cli.app.registered_groups if group.name)]


@pytest.mark.parametrize("verb", verbs())
def test_every_verb_explains_itself(verb: str) -> None:
    result = CliRunner(env=PLAIN).invoke(cli.app, [verb, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_version_and_usage_errors() -> None:
    assert edgetune("--version").stdout.strip() == f"edgetune {__version__}"
    assert edgetune("no-such-verb").returncode == 2
    assert edgetune("run").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "none.yaml"], 3, "none.yaml: No such file.*edgetune init"),
        (["profiles", "show", "jetson-orin-nano"], 3, "unknown profile.*did you mean 'jetson-orin-nano-8gb'"),
        (["models", "show", "mobilenet_v22"], 3, "mobilenet_v22.*mobilenet_v2"),
        (["init", "--data", "nowhere"], 3, "nowhere"),
        (["quantize", "nowhere.onnx", "--data", "."], 3, "nowhere.onnx: no such file"),
        (["quantize", ".", "--data", "."], 5, "not an artifact"),
        (["export", "nowhere"], 5, "nowhere: not an artifact"),
        (["predict", "nowhere", "x.jpg"], 5, "nowhere: not an artifact"),
        (["bench", "nowhere.onnx"], 3, "nowhere.onnx: no such file"),
        (["report", "nowhere"], 5, "nowhere"),
    ],
)
def test_a_mistake_ends_with_its_code_and_a_way_out(
    tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    done = edgetune(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert re.search(message, done.stderr, re.DOTALL), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == "", "results only go to stdout"


def test_profiles_as_json_and_as_a_table() -> None:
    listed = json.loads(CliRunner().invoke(cli.app, ["profiles", "list", "--json"]).stdout)
    assert {p["name"] for p in listed} >= {"host-cpu", "jetson-orin-nano-8gb"}
    table = CliRunner(env=PLAIN).invoke(cli.app, ["profiles", "list"]).stdout
    assert "15W*" in table
    shown = CliRunner(env=PLAIN).invoke(cli.app, ["profiles", "show", "jetson-orin-nano-8gb:7W@7.2"])
    assert "7W*" in shown.stdout
    assert "7.2*" in shown.stdout


def test_profiles_are_compared_and_validated(tmp_path: Path) -> None:
    compared = CliRunner().invoke(
        cli.app, ["profiles", "compare", "jetson-orin-nx-8gb", "jetson-agx-xavier:MAXN", "--json"]
    )
    assert json.loads(compared.stdout)["targets"] == [
        "jetson-orin-nx-8gb:15W@6.2",
        "jetson-agx-xavier:MAXN@5.1",
    ]
    mine = tmp_path / "mine.yaml"
    mine.write_text("schema_version: 1\nname: mine\nextends: jetson-tx2\nmodes: {MAXN: {sms: 20}}\n")
    told = CliRunner().invoke(cli.app, ["profiles", "validate", str(mine), "host-cpu"])
    assert told.exit_code == 3
    assert (
        f"{mine}:4: modes.MAXN.sms: 20, but no Jetson of compute capability 6.2 has more than 2"
        in told.stdout
    )
    assert "host-cpu: nothing is wrong with it" in told.stdout
    told = CliRunner().invoke(cli.app, ["profiles", "validate", str(mine), "--json"])
    assert told.exit_code == 3
    assert [one["line"] for one in json.loads(told.stdout)[0]["complaints"]] == [4, 4]
    assert CliRunner().invoke(cli.app, ["profiles", "validate", "host-cpu"]).exit_code == 0


@pytest.mark.parametrize(
    ("verb", "why"),
    [("check", "no gate is judged here"), ("bench", "host-cpu limits neither latency nor memory")],
)
def test_gates_are_not_written_where_none_is_judged(verb: str, why: str, tmp_path: Path) -> None:
    done = CliRunner(env=PLAIN).invoke(cli.app, [verb, str(tmp_path), "--junit", str(tmp_path / "x.xml")])
    assert done.exit_code == 2
    assert why in " ".join(done.output.replace("│", " ").split())
    assert not (tmp_path / "x.xml").exists()


def test_a_table_survives_a_narrow_terminal() -> None:
    shown = CliRunner(env=PLAIN | {"COLUMNS": "40"}).invoke(
        cli.app, ["profiles", "show", "jetson-agx-orin-64gb"]
    )
    assert shown.exit_code == 0
    assert max(map(len, shown.stdout.splitlines())) <= 40


def test_models_are_listed() -> None:
    listed = json.loads(CliRunner().invoke(cli.app, ["models", "list", "--json"]).stdout)
    assert len(listed) >= 14
    shown = CliRunner(env=PLAIN).invoke(cli.app, ["models", "show", "mobilenet_v2"])
    assert shown.exit_code == 0
    assert "mobilenet_v2" in CliRunner(env=PLAIN).invoke(cli.app, ["models", "list"]).stdout


def test_doctor_finds_what_is_needed() -> None:
    result = CliRunner(env=PLAIN).invoke(cli.app, ["doctor", "--json"])
    assert result.exit_code == 0, result.output
    found = {finding["what"]: finding for finding in json.loads(result.stdout)}
    assert found["torch"]["status"] == "ok"
    assert all(finding["way"] for finding in found.values() if finding["status"] == "missing")
    assert CliRunner(env=PLAIN).invoke(cli.app, ["doctor"]).exit_code == 0


@pytest.mark.parametrize("verb", ["run", "init", "export", "quantize", "lint"])
def test_help_says_how_a_target_is_written(verb: str) -> None:
    shown = CliRunner(env=PLAIN | {"COLUMNS": "200"}).invoke(cli.app, [verb, "--help"])
    assert "NAME[:MODE][@JETPACK]" in shown.stdout
