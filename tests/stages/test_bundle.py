"""A bundle holds what a device needs, and nothing else."""

import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetune.artifact import Artifact, sha256_of
from edgetune.data.folders import Dataset
from edgetune.data.images import load, normalise
from edgetune.data.subset import interleaved
from edgetune.device.program import files, problem
from edgetune.device.program.inputs import feeds
from edgetune.device.program.plan import load as load_plan
from edgetune.engines.onnxruntime import Session
from edgetune.errors import ConfigError
from edgetune.profile import load_target
from edgetune.report.gates import FEWEST_SAMPLES
from edgetune.stages.bundle import bundle

Make = Callable[..., tuple[Artifact, Artifact]]
WEAK, STRONG = "jetson-orin-nano-8gb", "jetson-orin-nano-8gb@7.2"
FILES = {
    "README.txt", "classify.cpp", "classify.py", "edgetune.pyz", "fp16.expected.bin", "fp16.onnx",
    "int8.expected.bin", "int8.onnx", "samples.bin", "table.bin", "work.json",
}  # fmt: skip


def made(tmp_path: Path, dataset: Dataset, artifacts: Make, profile: str, **options: Any) -> Path:
    target = load_target(profile)
    network, int8 = artifacts(target)
    into = tmp_path / "bundle"
    bundle(network, int8, dataset, target, into=into, **{"name": "colours", "samples": 0} | options)
    return into


@pytest.mark.parametrize("profile", [WEAK, STRONG])
def test_it_holds_networks_samples_and_the_program(
    tmp_path: Path, dataset: Dataset, artifacts: Make, profile: str
) -> None:
    folder = made(tmp_path, dataset, artifacts, profile)
    assert {file.name for file in folder.iterdir()} == FILES
    work = load_plan(folder)
    assert [job.name for job in work.builds] == ["fp16", "int8"]
    assert {job.typing for job in work.builds} == {"strong" if "7.2" in profile else "weak"}
    assert {job.workspace_mb for job in work.builds} == {2048}
    assert work.wanted["tensorrt"] == load_target(profile).runtime.tensorrt
    assert work.int8_nodes, "the device cannot tell what should run in INT8"
    assert "conv" in work.int8_nodes
    assert work.trtexec_samples >= FEWEST_SAMPLES, "else no engine of trtexec is ever judged"
    assert work.samples.number == len(dataset.splits["test"])
    assert sorted(map(str, work.samples.labels)) == sorted(
        str(sample.label) for sample in dataset.splits["test"]
    )
    assert {*work.samples.labels[:3]} == {0, 1, 2}, "the first few hold every class"
    baseline = "int8/fp16.onnx" if "7.2" in profile else "onnx/model.onnx"
    assert (folder / "fp16.onnx").read_bytes() == (tmp_path / baseline).read_bytes()
    assert (folder / "int8.onnx").read_bytes() == (tmp_path / "int8/model.onnx").read_bytes()


def test_expected_outputs_are_what_onnx_runtime_gives(
    tmp_path: Path, dataset: Dataset, artifacts: Make
) -> None:
    folder = made(tmp_path, dataset, artifacts, WEAK)
    network = Artifact.load(tmp_path / "onnx")
    assert network.preprocess
    samples = interleaved(dataset.splits["test"])
    pixels = np.stack([load(dataset.root / sample.path, network.preprocess) for sample in samples])
    assert (folder / "samples.bin").read_bytes() == pixels.tobytes()
    for name, file, exact in (("fp16", "fp16.onnx", False), ("int8", "int8.onnx", True)):
        session = Session(folder / file, exact=exact)
        right = np.concatenate([session.run(normalise(one[None], network.preprocess))[0] for one in pixels])
        found = np.fromfile(folder / f"{name}.expected.bin", "<f4").reshape(right.shape)
        np.testing.assert_array_equal(found, right)


def test_pixels_need_no_table(tmp_path: Path, dataset: Dataset, artifacts: Make) -> None:
    target = load_target(WEAK)
    network, int8 = artifacts(target, pixels=True)
    folder = tmp_path / "bundle"
    bundle(network, int8, dataset, target, into=folder, name="colours", samples=0)
    assert {file.name for file in folder.iterdir()} == FILES - {"table.bin"}
    work = load_plan(folder)
    assert work.input == ("input", "uint8", (1, 32, 32, 3))
    assert work.samples.table == ""
    assert network.preprocess
    images = [
        load(dataset.root / sample.path, network.preprocess) for sample in interleaved(dataset.splits["test"])
    ]
    assert (folder / "samples.bin").read_bytes() == np.stack(images).transpose(0, 2, 3, 1).tobytes()
    found = {name: np.fromfile(path, "<f4").reshape(-1, 3) for name, path in work.samples.expected.items()}
    for name, session in (
        ("fp16", Session(folder / "fp16.onnx")),
        ("int8", Session(folder / "int8.onnx", exact=True)),
    ):
        right = [session.run(np.frombuffer(one, np.uint8).reshape(1, 32, 32, 3))[0][0] for one in feeds(work)]
        np.testing.assert_array_equal(found[name], right)


def test_examples_may_be_changed_and_a_table_goes_with_its_bundle(
    tmp_path: Path, dataset: Dataset, artifacts: Make
) -> None:
    folder = made(tmp_path, dataset, artifacts, WEAK)
    (folder / "classify.py").write_text("mine")
    assert load_plan(folder).samples.table
    for name in ("onnx", "int8"):
        (tmp_path / name).rename(tmp_path / f"{name}-earlier")
    target = load_target(WEAK)
    bundle(*artifacts(target, pixels=True), dataset, target, into=folder, name="colours", samples=0)
    assert not (folder / "table.bin").exists()
    assert load_plan(folder).samples.table == ""


def test_fewer_samples_where_asked(tmp_path: Path, dataset: Dataset, artifacts: Make) -> None:
    work = load_plan(made(tmp_path, dataset, artifacts, WEAK, samples=3))
    assert work.samples.number == len(work.samples.labels) == 3
    assert sorted(label for label in work.samples.labels if label is not None) == [0, 1, 2]


def test_the_archive_unpacks_to_the_same_and_is_the_same_again(
    tmp_path: Path, dataset: Dataset, artifacts: Make
) -> None:
    folder = made(tmp_path, dataset, artifacts, WEAK)
    archive = tmp_path / "bundle.tar.gz"
    first = archive.read_bytes()
    with tarfile.open(archive) as packed:
        assert {name.split("/")[0] for name in packed.getnames()} == {"bundle"}
        packed.extractall(tmp_path / "there", filter="data")
    for name in FILES:
        assert sha256_of(tmp_path / "there/bundle" / name) == sha256_of(folder / name)
    assert (tmp_path / "there/bundle/edgetune.pyz").stat().st_mode & 0o100
    (folder / "results").mkdir()
    (folder / "results/result.json").write_text("{}")
    target = load_target(WEAK)
    network, int8 = Artifact.load(tmp_path / "onnx"), Artifact.load(tmp_path / "int8")
    bundle(network, int8, dataset, target, name="colours", samples=0, into=folder)
    assert archive.read_bytes() == first
    assert (folder / "results/result.json").is_file(), "results stay"


def test_the_program_is_plain_modules(tmp_path: Path, dataset: Dataset, artifacts: Make) -> None:
    folder = made(tmp_path, dataset, artifacts, WEAK)
    with zipfile.ZipFile(folder / "edgetune.pyz") as archive:
        names = archive.namelist()
        assert {"__main__.py", "program/main.py", "program/work.py"} <= set(names)
        assert all(name.endswith(".py") for name in names)
        source = Path(str(files.__file__)).read_bytes()
        assert archive.read("program/files.py") == source


def test_a_host_has_no_engines(tmp_path: Path, dataset: Dataset, artifacts: Make) -> None:
    with pytest.raises(ConfigError, match="no profile of one"):
        made(tmp_path, dataset, artifacts, "host-cpu")


def test_another_device_s_rendering_is_refused(tmp_path: Path, dataset: Dataset, artifacts: Make) -> None:
    network, int8 = artifacts(load_target(WEAK))
    with pytest.raises(ConfigError, match=r"'weak', and .* needs 'strong'"):
        bundle(network, int8, dataset, load_target(STRONG), name="x", samples=0, into=tmp_path / "b")


def test_nothing_else_is_overwritten(tmp_path: Path, dataset: Dataset, artifacts: Make) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle/thesis.tex").write_text("years of work")
    (tmp_path / "bundle/work.json").write_text("{}")
    with pytest.raises(ConfigError, match="something else than a bundle"):
        made(tmp_path, dataset, artifacts, WEAK)
    assert (tmp_path / "bundle/thesis.tex").read_text() == "years of work"
    assert {path.name for path in (tmp_path / "bundle").iterdir()} == {"thesis.tex", "work.json"}


def test_an_archive_of_someone_else_is_not_overwritten(
    tmp_path: Path, dataset: Dataset, artifacts: Make
) -> None:
    (tmp_path / "bundle.tar.gz").write_text("precious")
    with pytest.raises(ConfigError, match=r"bundle\.tar\.gz: is in the way"):
        made(tmp_path, dataset, artifacts, WEAK)
    assert (tmp_path / "bundle.tar.gz").read_text() == "precious"


@pytest.mark.parametrize("damage", ["cut", "other", "gone", "escape", "schema", "json"])
def test_a_damaged_bundle_is_named(tmp_path: Path, dataset: Dataset, artifacts: Make, damage: str) -> None:
    folder = made(tmp_path, dataset, artifacts, WEAK)
    network, plan = folder / "int8.onnx", folder / "work.json"
    content = json.loads(plan.read_text())
    if damage == "cut":
        network.write_bytes(network.read_bytes()[:-1])
    elif damage == "other":
        network.write_bytes(network.read_bytes()[::-1])
    elif damage == "gone":
        network.unlink()
    elif damage == "escape":
        plan.write_text(json.dumps(content | {"files": {"../int8.onnx": "0"}}))
    elif damage == "schema":
        plan.write_text(json.dumps(content | {"schema_version": 2}))
    else:
        plan.write_text(plan.read_text()[:-20])
    with pytest.raises(problem.Problem) as caught:
        load_plan(folder)
    assert caught.value.code == 5
    assert (
        "int8.onnx" if damage in ("cut", "other", "gone", "escape") else "work.json"
    ) in caught.value.message
    assert caught.value.hint
