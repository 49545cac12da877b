"""A user's finished runs as rows, and why some are none."""

import json
from pathlib import Path
from typing import Any

import pytest
from small_networks import residual, saved

from edgetune.errors import ArtifactError, ConfigError
from edgetune.estimates.fitting import Rows
from edgetune.estimates.measured import fit_runs, rows_of
from edgetune.estimates.parameters import load_parameters
from edgetune.profile import load_profile


def run_folder(folder: Path, more: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A finished run whose two engines were timed on a device."""
    for kind in ("onnx", "int8"):
        (folder / kind).mkdir(parents=True)
        saved(residual(), folder / kind, "model.onnx")
    timing = {"models": {"fp16": {"p50_ms": 0.9}, "int8": {"p50_ms": 0.8}}, "trusted": True, "why": ""}
    report = {
        "name": "photos",
        "profile": {"label": "jetson-orin-nano-8gb:15W@6.2"},
        "artifacts": [{"kind": "onnx", "path": "onnx"}, {"kind": "qdq", "path": "int8"}],
        "device": {"found": {"power_mode": "MAXN_SUPER"}, "timing": {"compute": timing | changes}},
    }
    (folder / "report.json").write_text(json.dumps(report | (more or {})))
    return folder


def test_a_run_gives_a_row_per_engine_in_the_mode_it_was_measured_in(tmp_path: Path) -> None:
    rows = rows_of(run_folder(tmp_path / "run"))
    assert [(row.target, row.network, row.measured, row.ms) for row in rows] == [
        ("jetson-orin-nano-8gb:MAXN_SUPER", "photos, fp16", "plain", 0.9),
        ("jetson-orin-nano-8gb:MAXN_SUPER", "photos, int8", "plain", 0.8),
    ]


def test_an_engine_that_a_cuda_graph_launched_is_told_apart(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", cuda_graph={"fp16": True, "int8": False})
    assert [row.measured for row in rows_of(run)] == ["graph", "plain"]
    graph, plain = (Rows([rows_of(run)[0]._replace(measured=how)]) for how in ("graph", "plain"))
    values = load_parameters().values
    assert graph.predict(values, {})[0] < plain.predict(values, {})[0]


def test_the_fit_comes_nearer_to_the_run(tmp_path: Path) -> None:
    known, run = load_parameters(), run_folder(tmp_path / "run")
    made = fit_runs([run], known)
    assert made.rows == known.rows + 2
    assert made.devices["jetson-orin-nano-8gb:MAXN_SUPER"] != known.devices["jetson-orin-nano-8gb:MAXN_SUPER"]
    assert made.devices["jetson-tx2:MAXN"] == known.devices["jetson-tx2:MAXN"]
    assert "photos, int8" in made.networks


def test_a_measurement_that_is_not_trusted_fits_nothing(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not to be trusted: it drifts"):
        rows_of(run_folder(tmp_path / "run", trusted=False, why="it drifts"))


def test_a_run_that_was_not_on_a_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no latency that was measured on a device") as caught:
        rows_of(run_folder(tmp_path / "run", models={}))
    assert "--on ssh://" in caught.value.hint


def test_a_host_and_a_dla_are_no_gpu(tmp_path: Path) -> None:
    host = {"profile": {"label": "host-cpu:default", "kind": "host"}}
    with pytest.raises(
        ConfigError, match="was timed on host-cpu:default, and estimates are of GPUs"
    ) as caught:
        rows_of(run_folder(tmp_path / "host", host))
    assert "--profile NAME --on ssh://" in caught.value.hint
    timing = {"compute": {"models": {"int8": {"p50_ms": 1.0}}}}
    dla = {"device": {"engines": {"int8": {"gpu_layers": 2}}, "timing": timing}}
    with pytest.raises(ConfigError, match="built for a DLA"):
        rows_of(run_folder(tmp_path / "dla", dla))


def test_a_profile_of_one_s_own_is_kept_in_the_report(tmp_path: Path) -> None:
    own = load_profile("jetson-orin-nano-8gb").model_dump(mode="json", exclude_unset=True) | {"name": "mine"}
    profile = {"profile": {"label": "mine:15W@6.2", "kind": "jetson", "own": own}}
    assert {row.target for row in rows_of(run_folder(tmp_path / "run", profile))} == {"mine:MAXN_SUPER"}


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a finished run"):
        rows_of(tmp_path)
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(ArtifactError, match="not a report"):
        rows_of(tmp_path)
    with pytest.raises(ConfigError, match="no run is named"):
        fit_runs([], load_parameters())
