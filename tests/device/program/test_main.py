"""The whole program, run as on a device: isolated, without site-packages, beside a trtexec."""

import ast
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetune.device import program
from edgetune.device.program.plan import load

Bundled = Callable[..., Path]
Run = Callable[..., "subprocess.CompletedProcess[str]"]
Quick = Callable[[Path], None]
# trtexec's version, and the profile whose rendering it takes.
VERSIONS = {
    "8.5.2": "jetson-orin-nano-8gb@5.1",
    "10.3.0": "jetson-orin-nano-8gb@6.2",
    "10.16.2": "jetson-orin-nano-8gb@7.2",
    "11.1.0": "jetson-orin-nano-8gb@7.2",
}


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results/result.json").read_text())
    return found


def modules() -> list[Path]:
    found = sorted(Path(str(program.__file__)).parent.glob("*.py"))
    assert len(found) > 15
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.name)
def test_it_is_python_3_8_and_imports_the_standard_library_alone(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {
        str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level
    }
    assert {name.split(".")[0] for name in names} <= set(sys.stdlib_module_names)


def test_vermin_finds_nothing_newer() -> None:
    vermin = str(Path(sys.executable).with_name("vermin"))
    command = [vermin, "-t=3.8-", "--no-tips", str(Path(str(program.__file__)).parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "version",
    [pytest.param(name, marks=[] if name == "10.3.0" else pytest.mark.slow) for name in VERSIONS],
)
def test_it_builds_compares_and_times(bundled: Bundled, on_device: Run, quick: Quick, version: str) -> None:
    folder = bundled(VERSIONS[version])
    quick(folder)
    done = on_device(folder, trtexec=version)
    assert done.returncode == 0, done.stderr
    found = result(folder)
    assert found["finished"]
    assert not found["errors"]
    assert (found["tool"], found["tensorrt"]) == ("trtexec", version)
    assert found["bundle"] == load(folder).digest
    for name in ("fp16", "int8"):
        engine = found["engines"][name]
        assert (folder / "results" / engine["build"]["plan"]).stat().st_size == engine["build"]["plan_bytes"]
        facts = json.loads((folder / f"results/{name}.plan.json").read_text())
        assert (facts["precision"], facts["parents"]) == (name, {"bundle": found["bundle"]})
        assert engine["outputs"]["samples"] == 3
        outputs = np.fromfile(folder / f"results/{name}.output0.bin", "<f4").reshape(3, 3)
        expected = np.fromfile(folder / f"{name}.expected.bin", "<f4").reshape(-1, 3)[:3]
        np.testing.assert_allclose(outputs, expected, rtol=2e-2, atol=2e-2)
        for timed in ("compute", "copies"):
            blocks = [block for block in found["timing"][timed]["blocks"] if block["name"] == name]
            assert [block["round"] for block in blocks] == [0, 1]
            assert all(block["ms"] and block["start_s"] < block["end_s"] for block in blocks)
    assert str(folder / "results/result.json") in done.stdout
    assert not [file.name for file in (folder / "results").iterdir() if "partial" in file.name]


@pytest.mark.slow
@pytest.mark.parametrize("version", [pytest.param("8.5.2", marks=pytest.mark.slow), "10.3.0"])
def test_a_dla_gets_its_engines(bundled: Bundled, on_device: Run, quick: Quick, version: str) -> None:
    folder = bundled("jetson-agx-orin-64gb@" + {"8.5.2": "5.1", "10.3.0": "6.2"}[version], dla_core=0)
    quick(folder)
    done = on_device(folder, trtexec=version)
    assert done.returncode == 0, done.stderr
    assert f"trtexec, TensorRT {version}, on DLA 0" in done.stdout
    assert "int8: 2 layers fell back to the GPU: pool, flat" in done.stdout
    built = result(folder)["engines"]["int8"]["build"]
    assert [word for word in built["command"] if "DLA" in word] == ["--useDLACore=0"]
    assert {"--allowGPUFallback", f"--calib={folder}/results/int8.plan.calibration"} <= set(built["command"])
    assert (built["dla_subgraphs"], built["fallback_layers"]) == (1, 2)
    outputs = np.fromfile(folder / "results/int8.output0.bin", "<f4").reshape(3, 3)
    expected = np.fromfile(folder / "int8.expected.bin", "<f4").reshape(-1, 3)[:3]
    np.testing.assert_allclose(outputs, expected, atol=1e-2 * np.abs(expected).max())
    assert not (folder / "results/int8.plan.calibration").exists()


def test_a_dla_bundle_without_its_scales_is_refused(bundled: Bundled, on_device: Run) -> None:
    folder = bundled("jetson-agx-orin-64gb", dla_core=0)
    scales = folder / "int8.scales.json"
    scales.write_text(scales.read_text().replace("0.0", "0.1", 1))
    done = on_device(folder)
    assert done.returncode == 5
    assert "int8.scales.json: not the file that was bundled" in done.stderr


@pytest.mark.slow
def test_what_is_done_is_not_done_again(bundled: Bundled, on_device: Run, quick: Quick) -> None:
    folder = bundled()
    quick(folder)
    assert on_device(folder).returncode == 0
    before = {file.name: file.stat().st_mtime_ns for file in (folder / "results").iterdir()}
    again = on_device(folder)
    assert again.returncode == 0
    assert again.stderr.count("done before") == 8
    after = {file.name: file.stat().st_mtime_ns for file in (folder / "results").iterdir()}
    assert {name for name in before if before[name] != after[name]} <= {"result.json", ".lock"}
    # One engine is gone: it is built again, and with it what hangs on it.
    (folder / "results/int8.plan").unlink()
    third = on_device(folder)
    assert third.returncode == 0
    assert "build-fp16: done before" in third.stderr
    assert "build-int8 …" in third.stderr


@pytest.mark.slow
def test_one_step_alone_keeps_what_others_gave(bundled: Bundled, on_device: Run, quick: Quick) -> None:
    folder = bundled()
    quick(folder)
    assert on_device(folder, "--only", "build").returncode == 0
    built = result(folder)
    assert built["finished"]
    assert set(built["engines"]) == {"fp16", "int8"}
    assert not any("outputs" in engine for engine in built["engines"].values())
    assert not built["timing"]
    timed = on_device(folder, "--only", "time")
    assert timed.returncode == 0
    assert timed.stderr.count("done before") == 2
    assert set(result(folder)["timing"]) == {"compute", "copies"}
    compared = on_device(folder, "--only", "compare")
    assert "time-" not in compared.stderr
    found = result(folder)
    assert all(engine["outputs"]["samples"] == 3 for engine in found["engines"].values())
    assert set(found["timing"]) == {"compute", "copies"}


@pytest.mark.slow
def test_another_bundle_or_tensorrt_is_worked_off_anew(
    bundled: Bundled, on_device: Run, quick: Quick
) -> None:
    folder = bundled()
    quick(folder)
    assert on_device(folder).returncode == 0
    other = on_device(folder, trtexec="8.5.2")
    assert other.returncode == 0
    assert "done before" not in other.stderr
    assert "TensorRT is 8.5.2 here; the bundle was made for 10.3.0" in other.stderr
    assert result(folder)["tensorrt"] == "8.5.2"


@pytest.mark.slow
def test_a_build_killed_for_memory_is_tried_with_less(bundled: Bundled, on_device: Run, quick: Quick) -> None:
    folder = bundled()
    quick(folder)
    killed = on_device(folder, trtexec="10.3.0", STANDIN_TRTEXEC_FAULT="exit137")
    assert killed.returncode == 6
    assert "trying again with" in killed.stderr
    found = result(folder)
    assert not found["finished"]
    assert set(found["errors"]) == {"build-fp16", "build-int8"}
    assert "swap" in found["errors"]["build-int8"]["hint"]
    assert on_device(folder).returncode == 0
    assert result(folder)["finished"]


def test_without_any_tool_it_says_how_to_get_one(bundled: Bundled, on_device: Run) -> None:
    done = on_device(bundled(), trtexec="")
    assert done.returncode == 4
    assert "neither TensorRT's Python bindings nor trtexec" in done.stderr
    assert "nvidia-jetpack" in done.stderr


@pytest.mark.slow
def test_a_bundle_for_another_tensorrt_is_refused_step_by_step(
    bundled: Bundled, on_device: Run, quick: Quick
) -> None:
    folder = bundled("jetson-orin-nano-8gb@7.2")
    quick(folder)
    done = on_device(folder, trtexec="10.3.0")
    assert done.returncode == 6
    assert {problem["code"] for problem in result(folder)["errors"].values()} == {3}


def test_a_damaged_bundle_stops_before_anything_is_built(bundled: Bundled, on_device: Run) -> None:
    folder = bundled()
    (folder / "samples.bin").write_bytes(b"short")
    done = on_device(folder)
    assert done.returncode == 5
    assert "samples.bin: not the file that was bundled" in done.stderr
    assert not (folder / "results").exists()


@pytest.mark.slow
def test_a_cut_step_is_done_again(bundled: Bundled, on_device: Run, quick: Quick) -> None:
    folder = bundled()
    quick(folder)
    assert on_device(folder).returncode == 0
    for name in ("build-int8.json", "result.json"):
        path = folder / "results" / name
        path.write_bytes(path.read_bytes()[:40])
    again = on_device(folder)
    assert again.returncode == 0
    assert "build-int8 …" in again.stderr
    assert result(folder)["finished"]


@pytest.mark.slow
def test_a_folder_whose_name_trtexec_parts(bundled: Bundled, on_device: Run, quick: Quick) -> None:
    folder = bundled()
    quick(folder)
    odd = folder.rename(folder.parent / "it's one, two: 3")
    shutil.copy(odd / "edgetune.pyz", folder.parent / "edgetune.pyz")
    done = on_device(folder.parent, "--folder", odd.name)
    assert done.returncode == 0, done.stderr
    assert result(odd)["engines"]["int8"]["outputs"]["samples"] == 3


@pytest.mark.slow
def test_a_full_disk_then_space_again(bundled: Bundled, on_device: Run, quick: Quick, tmp_path: Path) -> None:
    folder, disk = bundled(), tmp_path / "disk"
    quick(folder)
    disk.mkdir()
    pages = sum(file.stat().st_size // 4096 + 1 for file in folder.iterdir())
    size = 4096 * (pages + 10)
    if os.geteuid() or os.system(f"mount -t tmpfs -o size={size} none {disk} 2>/dev/null"):
        pytest.skip("a small disk cannot be mounted here")
    try:
        shutil.copytree(folder, disk / "b")
        full = on_device(disk / "b")
        assert full.returncode == 6
        assert "No space left on device" in full.stderr
        assert "free some space" in full.stderr
        assert "Traceback" not in full.stderr
        assert not os.system(f"mount -o remount,size=16m {disk}")
        again = on_device(disk / "b")
        assert again.returncode == 0, again.stderr
        assert result(disk / "b")["finished"]
    finally:
        os.system(f"umount {disk}")


def test_two_runs_at_once_are_not_allowed(bundled: Bundled, on_device: Run) -> None:
    folder = bundled()
    (folder / "results").mkdir()
    with (folder / "results/.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = on_device(folder)
    assert done.returncode == 6
    assert "another run is at work here" in done.stderr


@pytest.mark.slow
def test_stopped_it_goes_on_where_it_was(
    bundled: Bundled, on_device: Run, quick: Quick, tmp_path: Path
) -> None:
    folder = bundled()
    quick(folder)
    assert on_device(folder, "probe").returncode == 0
    env = {"PATH": f"{tmp_path}/bin-10.3.0:/usr/bin:/bin", "HOME": str(tmp_path)}
    slow = subprocess.Popen(
        [sys.executable, "-I", "-S", str(folder / "edgetune.pyz")],
        env=env | {"STANDIN_TRTEXEC_FAULT": "slow"}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert slow.stderr
    for line in slow.stderr:
        if line.startswith("build-fp16"):
            break
    time.sleep(0.3)
    slow.send_signal(signal.SIGTERM)
    rest = slow.stderr.read()
    assert slow.wait(60) == 130
    assert "the same command goes on from here" in rest
    assert not [file.name for file in (folder / "results").iterdir() if "partial" in file.name]
    assert on_device(folder).returncode == 0


def test_probe_needs_no_bundle(tmp_path: Path, bundled: Bundled, on_device: Run) -> None:
    folder = bundled()
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "edgetune.pyz").write_bytes((folder / "edgetune.pyz").read_bytes())
    done = on_device(bare, "probe", "--json")
    assert done.returncode == 0
    assert {"found", "warnings"} == set(json.loads(done.stdout))
    shown = on_device(folder, "probe")
    assert "power mode" in shown.stdout
    assert "warning: " in shown.stdout
    lost = on_device(bare)
    assert lost.returncode == 3
    assert "no bundle" in lost.stderr


def test_wrong_options_are_usage_errors(bundled: Bundled, on_device: Run) -> None:
    folder = bundled()
    assert on_device(folder, "--seconds", "-1").returncode == 2
    assert on_device(folder, "run", "more").returncode == 2
    helped = on_device(folder, "--help")
    assert helped.returncode == 0
    assert "build-one" not in helped.stdout


@pytest.mark.slow
def test_json_is_the_result(bundled: Bundled, on_device: Run, quick: Quick) -> None:
    folder = bundled()
    quick(folder)
    done = on_device(folder, "--json", "--seconds", "0.02")
    assert json.loads(done.stdout) == result(folder)


def test_it_starts_without_loading_what_it_does_not_need(bundled: Bundled) -> None:
    folder = bundled()
    with zipfile.ZipFile(folder / "edgetune.pyz") as archive:
        assert sum(info.file_size for info in archive.infolist()) < 400_000
    env = os.environ | {"PYTHONPROFILEIMPORTTIME": "1"}
    command = [sys.executable, "-I", "-S", "-X", "importtime", str(folder / "edgetune.pyz"), "--help"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    loaded = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "program.main" in loaded
    assert not {"numpy", "tensorrt", "asyncio", "multiprocessing"} & loaded
