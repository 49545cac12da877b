"""A whole run on small images: made once, remade where it must be, and stoppable at any moment."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

import edgetune
from edgetune import away, steps
from edgetune.artifact import Artifact
from edgetune.errors import ArtifactError, ConfigError, MissingTool
from edgetune.pipeline import Run, run
from edgetune.progress import Silent
from edgetune.recipe import CheckSection, ExportSection, QuantizeSection, Recipe, recipe_from


def recipe(images: Path, **changes: object) -> Recipe:
    values: dict[str, object] = {
        "name": "test",
        "data": {"path": str(images), "test_share": 0.25, "val_share": 0.2, "min_images": 2},
        "model": {"name": "mobilenet_v2_035_cifar10", "weights": "none"},
        "finetune": {"strategy": "full", "epochs": 2, "batch": 8},
        "quantize": {"preset": "quick"},
        "gates": {"top1_drop_points": 100, "int8_cosine_min": -1, "int8_agreement_percent_min": 0},
    }
    return recipe_from(values | changes)


# No latency is measured for a Jetson here, so its runs are quicker.
JETSON = "jetson-orin-nano-8gb"


def go(recipe: Recipe, out: Path, profile: str = JETSON, **options: object) -> Run:
    return run(recipe, edgetune.load_target(profile), out, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recipe]:
    """A finished run that tests copy."""
    root = tmp_path_factory.mktemp("finished")
    noise = np.random.default_rng(0)
    for label, name in enumerate(("blue", "green", "red")):
        (root / "images" / name).mkdir(parents=True)
        for index in range(12):
            pixels = noise.integers(0, 90, (40, 40, 3), dtype=np.uint8)
            pixels[..., 2 - label] += 140
            Image.fromarray(pixels).save(root / "images" / name / f"{index:02d}.png")
    made = recipe(root / "images")
    go(made, root / "run", command="edgetune run recipe.yaml", profile="host-cpu")
    return root, made


@pytest.fixture
def copy(finished: tuple[Path, Recipe], tmp_path: Path) -> tuple[Path, Path]:
    """Images and run folder of one's own."""
    root, _ = finished
    shutil.copytree(root, tmp_path / "copy")
    return tmp_path / "copy" / "images", tmp_path / "copy" / "run"


def test_a_run_leaves_what_it_says(finished: tuple[Path, Recipe]) -> None:
    out = finished[0] / "run"
    names = {p.name for p in out.iterdir() if not p.name.startswith(".")}
    assert names == {
        "data.json", "checkpoint", "onnx", "int8", "check", "bench",
        "report.json", "report.md", "report.html",
    }  # fmt: skip
    report = json.loads((out / "report.json").read_text())
    assert report["schema_version"] == 1
    assert report["verdict"]["status"] in ("pass", "uncertain")
    assert {gate["name"] for gate in report["gates"]} >= {"top1_drop_points", "fp32_difference"}
    digests = {entry["role"]: entry["digest"] for entry in report["artifacts"]}
    assert digests["int8"] == Artifact.load(out / "int8", "qdq").digest


def test_nothing_changed_nothing_made(copy: tuple[Path, Path]) -> None:
    images, out = copy
    go(recipe(images), out, "host-cpu")  # the report names the folder, which is a new one
    before = (out / "report.html").stat().st_mtime_ns
    assert go(recipe(images), out, "host-cpu").made == ()
    assert (out / "report.html").stat().st_mtime_ns == before


def test_a_gate_changes_the_report_and_trains_nothing(copy: tuple[Path, Path]) -> None:
    images, out = copy
    done = go(recipe(images, gates={"size_mb": 0.001}), out, "host-cpu")
    assert done.made == ()
    assert done.exit_code == 7
    failed = [gate["name"] for gate in done.report["gates"] if gate["status"] == "fail"]
    assert "size_mb" in failed
    assert json.loads((out / "report.json").read_text())["exit_code"] == 7


@pytest.mark.slow
def test_an_estimate_stands_in_only_where_the_recipe_says_so(copy: tuple[Path, Path]) -> None:
    images, out = copy
    limits = {"latency_p50_ms": 50, "memory_mb": 500}
    strict = go(recipe(images, gates=limits), out, JETSON)
    plain = {gate["name"]: gate for gate in strict.report["gates"]}
    assert plain["latency_p50_ms"]["status"] == "not judged"
    assert "estimate" not in strict.report
    done = go(recipe(images, gates=limits | {"estimates": True}), out, JETSON)
    assert done.made == (), "an estimate makes no artifact"
    gates = {gate["name"]: gate for gate in done.report["gates"]}
    assert gates["estimated_latency_p50_ms"]["label"] == "pass (estimated)"
    assert gates["estimated_memory_mb"]["estimated"]
    assert done.report["estimate"]["target"] == strict.report["profile"]["label"]
    assert "(estimated)" in (out / "report.md").read_text()
    assert "(estimated)" in (out / "report.html").read_text()
    unknown = go(recipe(images, gates=limits | {"estimates": True}), out, "jetson-agx-thor:90W").report
    whys = {gate["name"]: gate["why"] for gate in unknown["gates"]}
    assert "does not state clock" in whys["estimated_latency_p50_ms"]


@pytest.mark.slow
def test_another_range_only_quantizes_again(copy: tuple[Path, Path]) -> None:
    images, out = copy
    done = go(recipe(images, quantize={"preset": "quick", "ranges": "percentile"}), out, "host-cpu")
    assert done.made == ("int8", "check", "bench")


@pytest.mark.slow
def test_a_changed_image_makes_all_of_it_again(copy: tuple[Path, Path]) -> None:
    images, out = copy
    victim = next((images / "red").iterdir())
    Image.new("RGB", (40, 40), (200, 10, 10)).save(victim)
    assert "checkpoint" in go(recipe(images), out).made


@pytest.mark.slow
def test_a_corrupt_artifact_is_made_again_and_equal(copy: tuple[Path, Path]) -> None:
    images, out = copy
    digest = Artifact.load(out / "onnx").digest
    model = out / "onnx" / "model.onnx"
    model.write_bytes(model.read_bytes()[:1000])
    assert go(recipe(images), out, "host-cpu").made == ("onnx",)
    assert Artifact.load(out / "onnx").digest == digest


def test_a_moved_run_is_whole(copy: tuple[Path, Path], tmp_path: Path) -> None:
    images, out = copy
    shutil.move(out, tmp_path / "elsewhere")
    assert go(recipe(images), tmp_path / "elsewhere", "host-cpu").made == ()


class Stop(Silent):
    """Stops the run after so many announcements."""

    def __init__(self, after: int) -> None:
        self.left = after

    def begin(self, what: str, total: int, unit: str = "image") -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_stopped_anywhere_it_ends_as_if_never_stopped(finished: tuple[Path, Recipe], tmp_path: Path) -> None:
    root, made = finished
    out, stops = tmp_path / "run", 0
    while True:
        try:
            go(made, out, "host-cpu", progress=Stop(stops))
        except KeyboardInterrupt:
            stops += 1
            continue
        break
    assert stops >= 2, "it was stopped on the way"
    for name in ("checkpoint", "onnx", "int8"):
        assert Artifact.load(out / name).digest == Artifact.load(root / "run" / name).digest, name
    assert not list(out.glob("*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize("target", ["jetson-orin-nano-8gb@6.2", "jetson-agx-orin-64gb:MAXN@7.2"])
def test_a_jetson_is_judged_as_far_as_it_can_be(copy: tuple[Path, Path], target: str) -> None:
    images, out = copy
    limits = {
        "top1_drop_points": 100,
        "int8_cosine_min": -1,
        "int8_agreement_percent_min": 0,
        "latency_p50_ms": 5,
    }
    done = go(recipe(images, gates=limits), out, profile=target)
    states = {gate["name"]: gate["status"] for gate in done.report["gates"]}
    assert states["latency_p50_ms"] == "not judged"
    assert done.exit_code == 0
    assert any("trtexec" in line for line in done.report["left_to_do"])
    assert go(recipe(images, gates=limits), out, profile=target, strict=True).exit_code == 7


def test_a_module_without_int8_gets_fp16_alone(copy: tuple[Path, Path]) -> None:
    images, out = copy
    plain = recipe(images, gates={})
    done = go(plain, out, profile="jetson-nano-4gb")
    assert done.made == ("onnx", "check"), "nothing is quantized"
    why = "Jetson Nano 4 GB has no INT8 path (compute capability 5.3)"
    states = {gate["name"]: (gate["status"], gate["why"]) for gate in done.report["gates"]}
    assert states.pop("fp32_difference") == ("pass", "")
    assert set(states.values()) == {("not judged", why)}
    assert [entry["role"] for entry in done.report["artifacts"]] == ["checkpoint", "onnx"]
    assert done.exit_code == 0
    page = (out / "report.html").read_text()
    assert "INT8 is out of reach there" in page
    assert "INT8 says" not in page
    opsets = onnx.load(out / "onnx/model.onnx")
    assert ([entry.version for entry in opsets.opset_import], opsets.ir_version) == ([13], 7)
    assert steps.three_of([out]) == (out / "checkpoint", out / "onnx", None)
    measured = steps.check_alone(*steps.three_of([out]), None, CheckSection(), None, Silent())
    assert set(measured["accuracy"]["models"]) == {"torch", "fp32"}
    made = away.bundle_run(out, None, None, 3, Silent())
    assert (made["engines"], made["start"], made["no_int8"]) == (["fp16"], "sh bundle/build.sh", why)
    assert go(plain, out, profile="jetson-nano-4gb").made == ()
    assert go(plain, out, profile="jetson-tx2").made == (), "the same files do for both"
    with pytest.raises(ConfigError, match="takes no uint8"):
        go(recipe(images, export={"input": "uint8_nhwc"}), out, profile="jetson-nano-4gb")


def test_single_steps_find_what_a_run_made(copy: tuple[Path, Path]) -> None:
    _, out = copy
    exported = steps.export_alone(out / "checkpoint", "host-cpu", ExportSection(), None, None, Silent())
    assert exported.digest == Artifact.load(out / "onnx").digest
    other = steps.quantize_alone(
        out / "onnx",
        "jetson-orin-nano-8gb",
        QuantizeSection(preset="quick"),
        None,
        out / "int8-jetson",
        Silent(),
    )
    assert other.details["rendering"] == "weak"
    assert other.path == out / "int8-jetson"


def test_images_elsewhere_stay_in_their_splits(copy: tuple[Path, Path], tmp_path: Path) -> None:
    images, out = copy
    go(recipe(images), out)  # its data.json then names this copy
    known = json.loads((out / "data.json").read_text())["splits"]
    shutil.move(images, tmp_path / "moved")
    artifact = Artifact.load(out / "checkpoint")
    with pytest.raises(ConfigError, match="gone or changed") as caught:
        steps.find_data(artifact, None, Silent())
    assert "--data" in caught.value.hint
    found = steps.find_data(artifact, tmp_path / "moved", Silent())
    for split in ("train", "val", "test"):
        assert {s.sha256 for s in found.splits[split]} == {s["sha256"] for s in known[split]}


def test_a_strongly_typed_target_needs_its_opset(class_folders: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"export.opset: 17, where .*@7\.2 takes 19"):
        go(recipe(class_folders, export={"opset": 17}), tmp_path / "run", "jetson-agx-orin-64gb@7.2")


def test_a_report_of_an_earlier_state_is_not_shown(copy: tuple[Path, Path]) -> None:
    _, out = copy
    assert steps.current_report(out)["schema_version"] == 1
    exported = Artifact.load(out / "onnx")
    other = steps.quantize_alone(
        out / "onnx",
        "host-cpu",
        QuantizeSection(preset="quick", ranges="minmax", seed=5),
        None,
        None,
        Silent(),
    )
    assert exported.digest in other.parents.values()
    with pytest.raises(ArtifactError, match="int8 is newer than the report"):
        steps.current_report(out)


def test_single_steps_refuse_the_wrong_kind_or_classes(copy: tuple[Path, Path], tmp_path: Path) -> None:
    images, out = copy
    with pytest.raises(ArtifactError, match="'onnx' artifact, where 'checkpoint'"):
        steps.export_alone(out / "onnx", "host-cpu", ExportSection(), None, None, Silent())
    (images / "red").rename(images / "rot")
    with pytest.raises(ConfigError, match="its classes"):
        steps.export_alone(out / "checkpoint", "host-cpu", ExportSection(), images, tmp_path / "x", Silent())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"name": "mobilenet_v22"}}, "mobilenet_v22"),
        ({"model": {"name": "resnet18", "weights": "none.pth"}}, "model.weights: no file"),
        ({"quantize": {"preset": "standart"}}, "standart"),
        ({"quantize": {"manifest": "none.json"}}, "quantize.manifest: no file"),
        ({"export": {"opset": 20}}, "export.opset: 20, where"),
        ({"export": {"opset": 11}}, "export.opset: 11, where"),
        ({"finetune": {"strategy": "partial", "stages": 99}}, "finetune.stages: 99"),
    ],
)
def test_preflight_refuses_before_anything_is_made(
    class_folders: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        go(recipe(class_folders, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_gpu_where_none_is(class_folders: Path, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    with pytest.raises(MissingTool, match="no CUDA GPU"):
        go(recipe(class_folders), tmp_path / "run", accelerator="cuda")
    with pytest.raises(ConfigError, match="auto, cpu or cuda"):
        go(recipe(class_folders), tmp_path / "run", accelerator="tpu")


@pytest.mark.slow
def test_scratch_says_what_transfer_bought(class_folders: Path, tmp_path: Path) -> None:
    made = recipe(
        class_folders, finetune={"strategy": "full", "epochs": 1, "batch": 8, "scratch_baseline": True}
    )
    report = go(made, tmp_path / "run").report
    assert report["transfer"]["images"] == report["accuracy"]["images"]
    assert 0 <= report["accuracy"]["models"]["int8"]["ece"] <= 1
    assert report["calibration"]["convergence"][-1]["images"] == report["calibration"]["images"]
    assert report["quantization"]["method"]
    assert len(report["transfer"]["epochs_scratch"]) == 1
