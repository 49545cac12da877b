"""A module without INT8: its bundle, the script and the lines in it against trtexec 8.2, and what is judged."""

import json
import re
import shlex
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import standin_trtexec
from typer.testing import CliRunner

from edgetune import away, cli
from edgetune.artifact import Artifact
from edgetune.data.folders import Dataset
from edgetune.device import by_hand
from edgetune.device.program.plan import load as load_plan
from edgetune.device.program.trtexec import USUAL
from edgetune.errors import ConfigError
from edgetune.profile import load_target
from edgetune.stages.bundle import bundle

GOLDEN = Path(__file__).parent / "golden" / "by_hand"
MODULES = {"jetson-nano-4gb": "5.3", "jetson-tx2": "6.2"}
FILES = {
    "README.txt", "build.sh", "edgetune.pyz", "fp16.expected.bin", "fp16.onnx", "samples.bin", "table.bin",
    "work.json",
}  # fmt: skip
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def packed(tmp_path: Path, dataset: Dataset, artifacts: Any) -> Callable[..., Path]:
    """Writes a module's bundle and returns its folder; INT8, where there is one, is left aside."""

    def make(name: str = "jetson-nano-4gb", into: str = "bundle", int8: bool = False) -> Path:
        target = load_target(name)
        made = artifacts(target)
        folder = tmp_path / into
        bundle(made[0], made[1] if int8 else None, dataset, target, name="colours", samples=0, into=folder)
        return folder

    return make


def typed(folder: Path, *words: str, trtexec: Path | None = None, **environment: str) -> Any:
    path = f"{trtexec.parent}:/usr/bin:/bin" if trtexec else "/usr/bin:/bin"
    return subprocess.run(
        words, cwd=folder, env={"PATH": path, **environment}, capture_output=True, text=True, check=False
    )


@pytest.fixture
def trtexec(tmp_path: Path) -> Path:
    return Path(standin_trtexec.install(tmp_path / "bin", "8.2.1", STANDIN_TRTEXEC_CC="5.3"))


@pytest.mark.parametrize("int8", [False, True])
def test_it_holds_fp16_alone(packed: Callable[..., Path], tmp_path: Path, int8: bool) -> None:
    folder = packed(int8=int8)
    assert {file.name for file in folder.iterdir()} == FILES
    work = load_plan(folder)
    assert [(job.name, job.precision, job.typing) for job in work.builds] == [("fp16", "fp16", "weak")]
    assert work.wanted["no_int8"] == load_target("jetson-nano-4gb").no_int8
    assert set(work.samples.expected) == {"fp16"}
    assert (folder / "fp16.onnx").read_bytes() == (tmp_path / "onnx/model.onnx").read_bytes()
    with tarfile.open(tmp_path / "bundle.tar.gz") as archive:
        found = {Path(item.name).name: item for item in archive.getmembers()}
    assert set(found) == FILES
    assert found["build.sh"].mode & 0o111


@pytest.mark.parametrize("name", MODULES)
def test_what_it_says_of_itself(packed: Callable[..., Path], name: str) -> None:
    folder = packed(name)
    for file in ("README.txt", "build.sh"):
        assert (folder / file).read_text() == (GOLDEN / f"{name}.{file}").read_text()


def test_no_golden_file_is_left_over() -> None:
    wanted = {f"{name}.{file}" for name in MODULES for file in ("README.txt", "build.sh")}
    assert {path.name for path in GOLDEN.iterdir()} == wanted


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("place", ["plain", "a $(touch hit); `touch hit` \"b' c", "-n"])
def test_the_script_builds_wherever_it_lies(
    packed: Callable[..., Path], tmp_path: Path, trtexec: Path, name: str, place: str
) -> None:
    folder = packed(name).rename(tmp_path / place)
    done = typed(tmp_path, "sh", f"{place if place != '-n' else './-n'}/build.sh", trtexec=trtexec)
    assert done.returncode == 0, done.stderr
    assert "&&&& PASSED" in done.stdout
    assert "--fp16" in done.stdout
    assert (folder / "fp16.plan").read_bytes().endswith((folder / "fp16.onnx").read_bytes())
    assert {file.name for file in folder.iterdir()} == FILES | {"fp16.plan"}
    assert not list(tmp_path.rglob("hit"))


@pytest.mark.parametrize("fault", ["killed", "exit137", "disk", "noplan", "workspace"])
def test_a_script_that_fails_says_so_and_leaves_no_engine(
    packed: Callable[..., Path], trtexec: Path, fault: str
) -> None:
    folder = packed()
    done = typed(folder, "sh", "build.sh", trtexec=trtexec, STANDIN_TRTEXEC_FAULT=fault)
    assert done.returncode != 0
    assert not (folder / "fp16.plan").exists()
    assert typed(folder, "sh", "build.sh", trtexec=trtexec).returncode == 0
    assert (folder / "fp16.plan").exists()


def test_without_trtexec_on_path_it_takes_the_usual_one(packed: Callable[..., Path], tmp_path: Path) -> None:
    folder = packed()
    text = (folder / "build.sh").read_text()
    assert text.count(USUAL[0]) == 1
    elsewhere = standin_trtexec.install(tmp_path / "usual", "8.2.1")
    (folder / "build.sh").write_text(text.replace(USUAL[0], elsewhere))
    assert typed(folder, "sh", "build.sh").returncode == 0
    assert (folder / "fp16.plan").is_file()


@pytest.mark.parametrize("name", MODULES)
def test_the_lines_in_the_text_are_what_trtexec_takes(
    packed: Callable[..., Path], trtexec: Path, name: str
) -> None:
    folder = packed(name)
    lines = re.findall(rf"^ +({re.escape(USUAL[0])} .*)$", (folder / "README.txt").read_text(), re.MULTILINE)
    assert lines == [by_hand.build_line(load_target(name)), by_hand.time_line(load_target(name))]
    for line in lines:
        words = [str(trtexec), *shlex.split(line)[1:]]
        done = typed(folder, *words)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "fp16.plan").is_file()
    times = json.loads((folder / "fp16.times.json").read_text())
    assert len(times) >= by_hand.QUERIES
    assert all(query["h2dMs"] > 0 for query in times), "copies are timed as well"


@pytest.mark.slow
def test_the_program_works_there_with_a_newer_python(
    packed: Callable[..., Path], on_device: Run, quick: Callable[[Path], None]
) -> None:
    folder = packed()
    quick(folder)
    done = on_device(folder, trtexec="8.2.1")
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "results/result.json").read_text())
    assert (result["tensorrt"], list(result["engines"]), result["errors"]) == ("8.2.1", ["fp16"], {})
    assert result["engines"]["fp16"]["outputs"]["agreed"] == 3
    judged, page = away.verify_bundle(folder, None, strict=False)
    assert judged["exit_code"] == 0
    assert judged["gates"]
    assert {gate["status"] for gate in judged["gates"]} == {"not judged"}
    assert {gate["why"] for gate in judged["gates"]} == {load_target("jetson-nano-4gb").no_int8}
    assert judged["device"]["engines"]["fp16"]["agreement"] == 1.0
    text = page.read_text()
    assert "No: Jetson Nano 4 GB has no INT8 path (compute capability 5.3). FP16 is what runs there." in text


@pytest.mark.parametrize("version", [(2, 7, 18), (3, 6, 9), (3, 7, 16)])
def test_an_older_python_is_told_so(packed: Callable[..., Path], version: tuple[int, ...]) -> None:
    folder = packed()
    code = (
        f"import runpy, sys; sys.version_info = {version}; sys.argv = ['x']; runpy.run_path('edgetune.pyz')"
    )
    done = typed(folder, sys.executable, "-c", code)
    assert done.returncode == 4
    assert f"needs Python 3.8 or later, and here is {version[0]}.{version[1]}\n" in done.stderr
    assert "sudo apt install python3.8, then python3.8 edgetune.pyz; or see README.txt" in done.stderr


def test_another_device_s_files_do_not_stay(
    packed: Callable[..., Path], tmp_path: Path, dataset: Dataset, artifacts: Any
) -> None:
    folder = packed()
    (folder / "fp16.plan").write_text("an engine, which took an hour")
    for name in ("onnx", "int8"):
        (tmp_path / name).rename(tmp_path / f"{name}-earlier")
    orin = load_target("jetson-orin-nano-8gb")
    bundle(*artifacts(orin), dataset, orin, name="colours", samples=0, into=folder)
    there = {file.name for file in folder.iterdir()}
    assert {"int8.onnx", "int8.expected.bin", "classify.py", "fp16.plan"} <= there
    assert "build.sh" not in there
    network, nano = Artifact.load(tmp_path / "onnx-earlier"), load_target("jetson-nano-4gb")
    bundle(network, None, dataset, nano, name="colours", samples=0, into=folder)
    assert {file.name for file in folder.iterdir()} == FILES | {"classify.py", "classify.cpp", "fp16.plan"}


def test_int8_that_is_wanted_and_missing_is_refused(tmp_path: Path, dataset: Dataset, artifacts: Any) -> None:
    orin = load_target("jetson-orin-nano-8gb")
    network, _ = artifacts(orin)
    with pytest.raises(ConfigError, match="nothing is quantized, and jetson-orin-nano-8gb"):
        bundle(network, None, dataset, orin, name="x", samples=0, into=tmp_path / "bundle")


def test_pixels_are_refused_before_the_device_does(tmp_path: Path, dataset: Dataset, artifacts: Any) -> None:
    network, _ = artifacts(load_target("jetson-orin-nano-8gb"), pixels=True)
    nano = load_target("jetson-nano-4gb")
    with pytest.raises(ConfigError, match="takes no uint8"):
        bundle(network, None, dataset, nano, name="x", samples=0, into=tmp_path / "bundle")


def test_nothing_is_quantized_for_it(packed: Callable[..., Path], tmp_path: Path) -> None:
    packed()
    words = ["quantize", str(tmp_path / "onnx/model.onnx"), "--data", str(tmp_path / "images")]
    for more in ([], ["--preprocess", "zero-one"]):
        found = CliRunner().invoke(cli.app, [*words, *more, "--profile", "jetson-tx2"])
        assert isinstance(found.exception, ConfigError)
        assert "Jetson TX2 has no INT8 path (compute capability 6.2)" in found.exception.message
