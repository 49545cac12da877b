"""`edgetune estimate` on the command line."""

import json
from pathlib import Path

import pytest
from small_networks import network, node, residual, saved
from typer.testing import CliRunner

from edgetune import cli
from edgetune.errors import ConfigError
from edgetune.estimating import _shapes


def test_json_and_a_table(tmp_path: Path) -> None:
    path = saved(residual(), tmp_path)
    arguments = [
        "estimate",
        str(path),
        "--profile",
        "jetson-agx-orin-64gb:MAXN",
        "--precision",
        "int8",
        "--limit-ms",
        "5",
    ]
    shown = CliRunner(env={"COLUMNS": "120"}).invoke(cli.app, arguments)
    assert shown.exit_code == 0, shown.output
    assert "estimated, not measured" in shown.stdout
    found = json.loads(CliRunner().invoke(cli.app, [*arguments, "--json"]).stdout)
    assert found["estimates"][0]["precision"] == "int8"
    assert found["answer"]["surely"]["target"] == "jetson-agx-orin-64gb:MAXN@6.2"


def test_an_open_shape_is_given(tmp_path: Path) -> None:
    path = saved(network([node("Relu", "x", "y")], {"x": ("N", 3)}, ["y"]), tmp_path)
    refused = CliRunner().invoke(cli.app, ["estimate", str(path)])
    assert isinstance(refused.exception, ConfigError)
    done = CliRunner().invoke(
        cli.app, ["estimate", str(path), "--shape", "x=8x3", "--profile", "jetson-tx2", "--json"]
    )
    assert json.loads(done.stdout)["operations"] == 24


def test_shapes_are_read() -> None:
    assert _shapes(["a=1x3X8", "2x2"]) == {"a": (1, 3, 8), "": (2, 2)}
    for wrong in ("a=", "a=1x", "a=1x0", "a=1x-3", "x"):
        with pytest.raises(ConfigError, match="not a shape"):
            _shapes([wrong])


def test_a_fit_from_runs(tmp_path: Path) -> None:
    from test_measured import run_folder

    run, mine = run_folder(tmp_path / "run"), tmp_path / "mine.json"
    done = CliRunner(env={"COLUMNS": "120"}).invoke(cli.app, ["estimate", "--fit", str(run), "-o", str(mine)])
    assert done.exit_code == 0, done.output
    assert f"--parameters {mine}" in done.stdout
    assert mine.is_file()
    for wrong in (["--fit", str(run)], [str(run), "-o", str(mine)]):
        assert isinstance(CliRunner().invoke(cli.app, ["estimate", *wrong]).exception, ConfigError)
    two = CliRunner().invoke(cli.app, ["estimate", str(run), str(run)])
    assert "one at a time" in str(two.exception)
