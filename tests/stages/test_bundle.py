"""A bundle holds what a device needs, and nothing else."""

import json
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

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
from edgetune.progress import Silent
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
    preset, seconds = ("mlperf", 600.0) if "7.2" in profile else ("quick", 30.0)
    folder = made(tmp_path, dataset, artifacts, profile, preset=preset)
    assert {file.name for file in folder.iterdir()} == FILES
    work = load_plan(folder)
    assert work.timing["seconds"] == seconds
    assert work.timing["limit_s"] > len(work.builds) * seconds
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


AGX = "jetson-agx-orin-64gb@6.2"


def with_dla(tmp_path: Path, tensorrt: str, typing: str, **change: Any) -> str:
    """A profile of one's own: AGX Orin with one JetPack, and what is changed."""
    content = load_target(AGX).profile.model_dump(mode="json")
    jetpack = content["jetpacks"]["7.2" if typing == "strong" else "6.2"] | {"tensorrt": tensorrt}
    path = tmp_path / "mine.yaml"
    content |= {"jetpacks": {"9": jetpack}, "default_jetpack": "9", "name": "mine", **change}
    path.write_text(json.dumps(content))
    return str(path)


@pytest.mark.parametrize("version", ["5.1", "6.0", "6.2"])
@pytest.mark.parametrize("core", [0, 1])
def test_a_dla_gets_scales_beside_a_graph_without_qdq(
    tmp_path: Path, dataset: Dataset, artifacts: Make, version: str, core: int
) -> None:
    folder = made(tmp_path, dataset, artifacts, f"jetson-agx-orin-64gb@{version}", dla_core=core)
    assert {file.name for file in folder.iterdir()} == FILES | {"int8.scales.json"}
    content, work = json.loads((folder / "work.json").read_text()), load_plan(folder)
    assert content["wanted"]["dla_core"] == core
    assert [(job.name, job.dla_core, Path(job.scales).name) for job in work.builds] == [
        ("fp16", core, ""),
        ("int8", core, "int8.scales.json"),
    ]
    assert content["files"]["int8.scales.json"] == sha256_of(folder / "int8.scales.json")
    assert content["samples"]["expected_of"]["int8"] == "the INT8 network with Q/DQ"
    scales = json.loads((folder / "int8.scales.json").read_text())
    bare, paired = onnx.load(folder / "int8.onnx"), onnx.load(tmp_path / "int8/model.onnx")
    assert not {node.op_type for node in bare.graph.node} & {"QuantizeLinear", "DequantizeLinear"}
    stored = {item.name: numpy_helper.to_array(item) for item in paired.graph.initializer}
    quantized = {
        node.input[0]: float(stored[node.input[1]])
        for node in paired.graph.node
        if node.op_type == "QuantizeLinear"
    }
    assert quantized
    assert {name: scales[name] for name in quantized} == quantized
    assert scales["c"] == scales["r"]
    # The yardstick stays the graph with Q/DQ.
    outputs = np.fromfile(folder / "int8.expected.bin", "<f4").reshape(-1, 3)
    session = Session(tmp_path / "int8/model.onnx", exact=True)
    table = np.fromfile(folder / "table.bin", "<f4").reshape(3, 256)
    pixels = np.fromfile(folder / "samples.bin", np.uint8).reshape(-1, 3, 32, 32)
    first = np.stack([table[c][pixels[0, c]] for c in range(3)])[None]
    np.testing.assert_array_equal(session.run(first)[0][0], outputs[0])
    text = (folder / "README.txt").read_text()
    assert f"on DLA {core}." in text
    assert "takes no Q/DQ" in text


def test_what_the_gpu_will_run_is_told_in_a_line(tmp_path: Path, dataset: Dataset, artifacts: Make) -> None:
    told: list[str] = []

    class Lines(Silent):
        def line(self, text: str) -> None:
            told.append(text)

    folder = made(tmp_path, dataset, artifacts, AGX, dla_core=0, progress=Lines())
    said = "warning: 1 operator is not for a DLA (GlobalAveragePool): the GPU runs what the DLA does not. See all:"
    assert told == [f"{said} edgetune lint {folder}/int8.onnx --profile jetson-agx-orin-64gb:30W@6.2 --dla"]


def test_a_later_bundle_for_the_gpu_has_no_scales(tmp_path: Path, dataset: Dataset, artifacts: Make) -> None:
    folder = made(tmp_path, dataset, artifacts, AGX, dla_core=0)
    target = load_target(AGX)
    network, int8 = Artifact.load(tmp_path / "onnx"), Artifact.load(tmp_path / "int8")
    bundle(network, int8, dataset, target, name="colours", samples=0, into=folder)
    assert {file.name for file in folder.iterdir()} == FILES
    assert (folder / "int8.onnx").read_bytes() == (tmp_path / "int8/model.onnx").read_bytes()
    assert {(job.dla_core, job.scales) for job in load_plan(folder).builds} == {(None, "")}
    assert "DLA" not in (folder / "README.txt").read_text()


def test_a_dla_that_takes_qdq_gets_it(tmp_path: Path, dataset: Dataset, artifacts: Make) -> None:
    profile = with_dla(tmp_path, "11.4.1", "strong")
    folder = made(tmp_path, dataset, artifacts, profile, dla_core=1)
    assert {file.name for file in folder.iterdir()} == FILES
    assert (folder / "int8.onnx").read_bytes() == (tmp_path / "int8/model.onnx").read_bytes()
    assert [(job.dla_core, job.scales) for job in load_plan(folder).builds] == [(1, ""), (1, "")]


@pytest.mark.parametrize(
    ("profile", "core", "message", "hint"),
    [
        (WEAK, 0, "Orin Nano 8 GB has no DLA", "leave --dla away"),
        (AGX, 2, "--dla 2: .* has DLA 0 and 1", "--dla 1"),
        (
            "jetson-agx-orin-64gb@7.2",
            0,
            r"TensorRT 10\.16\.2 does not drive a DLA",
            r"\(5\.1, 6\.0, 6\.1, 6\.2, 7\.2\.2\)",
        ),
        (("11.2.0", "strong", {}), 0, r"TensorRT 11\.2\.0 does not drive a DLA", "leave --dla away"),
        (("11.4.1", "strong", {"title": "Jetson Orin NX"}), 0, "DLAs of AGX Orin alone", "leave --dla away"),
    ],
)
def test_a_dla_that_is_not_there_is_refused(
    tmp_path: Path, dataset: Dataset, artifacts: Make, profile: Any, core: int, message: str, hint: str
) -> None:
    if not isinstance(profile, str):
        profile = with_dla(tmp_path, *profile[:2], **profile[2])
    with pytest.raises(ConfigError, match=message) as caught:
        made(tmp_path, dataset, artifacts, profile, dla_core=core)
    assert caught.value.exit_code == 3
    assert re.search(hint, caught.value.hint)
    assert not (tmp_path / "bundle").exists()


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
