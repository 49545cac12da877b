"""Any ONNX image network and any folder of images, from Python and from the command line."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from typer.testing import CliRunner

import edgetune
from edgetune import cli
from edgetune.artifact import Artifact, Preprocess, sha256_of
from edgetune.data.preprocess import Given
from edgetune.engines.onnxruntime import Session
from edgetune.errors import ArtifactError, ConfigError, EdgetuneError, StageError
from edgetune.recipe import QuantizeSection
from edgetune.stages import quantize as stage

FLOAT = TensorProto.FLOAT
JETSON = "jetson-orin-nano-8gb"
HOW = Preprocess(resize_px=20, size_px=16, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
FEW = QuantizeSection(images=6, ranges="minmax")
SHAPE = [1, 3, 16, 16]
NOISE = np.random.default_rng(0)
WEIGHTS = {
    "w": NOISE.standard_normal((16, 3, 3, 3)).astype(np.float32),
    "v": NOISE.standard_normal((5, 16, 1, 1)).astype(np.float32),
    "h": NOISE.standard_normal((16, 4)).astype(np.float32),
}
CONV = ("Conv", ["x", "w"], "c", {"pads": [1] * 4})
HEAD = [
    ("Relu", ["c"], "r", {}),
    ("GlobalAveragePool", ["r"], "p", {}),
    ("Flatten", ["p"], "f", {}),
    ("MatMul", ["f", "h"], "logits", {}),
]
MAP = ("Conv", ["c", "v"], "map", {})


def save(
    path: Path,
    *nodes: tuple[str, list[str], str, dict[str, Any]],
    inputs: dict[str, tuple[int, list[int | str]]] | None = None,
    outputs: tuple[str, ...] = ("logits",),
    opset: int = 17,
) -> Path:
    graph = helper.make_graph(
        [helper.make_node(kind, read, [out], name=out, **more) for kind, read, out, more in nodes],
        "net",
        [helper.make_tensor_value_info(n, *spec) for n, spec in (inputs or {"x": (FLOAT, SHAPE)}).items()],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in WEIGHTS.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, path)
    return path


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    return save(tmp_path / "net.onnx", CONV, *HEAD)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Ten images without classes, of different shapes."""
    noise = np.random.default_rng(3)
    root = tmp_path / "pictures"
    root.mkdir()
    for index in range(10):
        pixels = noise.integers(0, 255, (20 + index, 30 - index, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{index}.png")
    return root


@pytest.mark.parametrize("profile", ["host-cpu", JETSON])
def test_a_file_and_a_folder_become_a_file_and_its_description(
    classifier: Path, pictures: Path, profile: str
) -> None:
    out = classifier.parent / "deep" / "small.onnx"
    made = edgetune.quantize_onnx(classifier, pictures, out, profile=profile, preprocess=HOW, settings=FEW)
    assert sorted(p.name for p in out.parent.iterdir()) == [
        "small.calibration.json",
        "small.json",
        "small.onnx",
    ]
    Session(out)
    written = Artifact.model_validate_json((out.parent / "small.json").read_bytes())
    assert written == made.model_copy(update={"path": Path()})
    assert made.file("small.onnx") == out
    assert made.files["small.onnx"].sha256 == sha256_of(out)
    assert made.parents == {"onnx": sha256_of(classifier)}
    assert (made.preprocess, made.classes) == (HOW, ())
    details = made.details
    assert details["profile"].startswith(profile)
    assert details["rendering"] == ("cpu" if profile == "host-cpu" else "weak")
    assert {layer["name"] for layer in details["layers"]} >= {"c", "logits"}
    assert details["activations"]
    assert made.versions.keys() >= {"edgetune", "onnx", "onnxruntime"}
    found = details["comparison"]
    assert (found["on"], found["images"], found["exact"]) == ("held-out", 4, profile == JETSON)
    assert found["agreement_low"] <= found["agreement"]
    assert found["outputs"]["logits"]["cosine_min"] > 0.9
    pinned = json.loads((out.parent / "small.calibration.json").read_text())
    assert len(pinned["samples"]) == 6


def test_the_same_again_gives_the_same_bytes(classifier: Path, pictures: Path) -> None:
    digests = set()
    for _ in range(2):
        made = edgetune.quantize_onnx(classifier, str(pictures), preprocess=HOW, settings=FEW)
        digests.add(made.digest)
        assert made.file("net.int8.onnx").is_file(), "the default lies beside the network"
    assert len(digests) == 1


def test_a_pinned_set_is_used_again(classifier: Path, pictures: Path, tmp_path: Path) -> None:
    first = edgetune.quantize_onnx(classifier, pictures, preprocess=HOW, settings=FEW)
    manifest = str(first.file("net.int8.calibration.json"))
    again = edgetune.quantize_onnx(
        classifier,
        pictures,
        tmp_path / "again.onnx",
        preprocess=HOW,
        settings=QuantizeSection(images=2, ranges="minmax", manifest=manifest),
    )
    assert again.file("again.onnx").read_bytes() == first.file("net.int8.onnx").read_bytes()
    assert again.details["choose"] == "pinned"


def test_weights_beside_the_file_count_for_its_digest(classifier: Path, pictures: Path) -> None:
    big = classifier.with_name("big.onnx")
    made = []
    for scale in (1, 2):
        model = onnx.load(classifier)
        weight = numpy_helper.from_array(WEIGHTS["w"] * np.float32(scale), "w")
        model.graph.initializer[0].CopyFrom(weight)
        (classifier.parent / "big.data").unlink(missing_ok=True)
        onnx.save_model(model, big, save_as_external_data=True, location="big.data", size_threshold=0)
        made.append(edgetune.quantize_onnx(big, pictures, preprocess=HOW, settings=FEW).parents["onnx"])
    assert made[0] != made[1]


def test_with_no_image_left_the_comparison_says_on_what(classifier: Path, pictures: Path) -> None:
    made = edgetune.quantize_onnx(
        classifier, pictures, preprocess=HOW, settings=QuantizeSection(ranges="minmax")
    )
    assert (made.details["comparison"]["on"], made.details["comparison"]["images"]) == ("calibration", 10)


def test_maps_and_several_outputs_get_figures_for_each(tmp_path: Path, pictures: Path) -> None:
    for name, nodes, outputs in (
        ("map", [CONV, MAP], ("map",)),
        ("two", [CONV, *HEAD, MAP], ("logits", "map")),
    ):
        network = save(tmp_path / f"{name}.onnx", *nodes, outputs=outputs)
        made = edgetune.quantize_onnx(network, pictures, preprocess=HOW, settings=FEW)
        found = made.details["comparison"]
        assert "agreement" not in found
        assert tuple(found["outputs"]) == outputs
        assert all(figures["sqnr_db"] > 10 for figures in found["outputs"].values())


@pytest.mark.parametrize("shape", [["n", 3, 16, 16], [4, 3, 16, 16], [1, 3, "h", "w"]])
def test_batches_and_sides_may_be_dynamic_or_fixed(
    tmp_path: Path, pictures: Path, shape: list[int | str]
) -> None:
    network = save(tmp_path / "net.onnx", CONV, *HEAD, inputs={"x": (FLOAT, shape)})
    made = edgetune.quantize_onnx(network, pictures, preprocess=HOW, settings=FEW)
    assert made.details["comparison"]["images"] == 4
    assert made.inputs[0].shape == tuple(shape)


def test_channels_may_come_last(tmp_path: Path, pictures: Path) -> None:
    last = save(
        tmp_path / "last.onnx",
        ("Transpose", ["y"], "x", {"perm": [0, 3, 1, 2]}),
        CONV,
        *HEAD,
        inputs={"y": (FLOAT, [1, 16, 16, 3])},
    )
    first = save(tmp_path / "first.onnx", CONV, *HEAD)
    figures = [
        edgetune.quantize_onnx(network, pictures, preprocess=HOW, settings=FEW).details["comparison"]
        for network in (last, first)
    ]
    names = [next(iter(found["outputs"])) for found in figures]
    pair = [found["outputs"][name]["sqnr_db"] for found, name in zip(figures, names, strict=True)]
    assert pair[0] == pytest.approx(pair[1], abs=1), "the same pixels in another order"


def test_an_artifact_knows_its_preprocessing(tmp_path: Path, pictures: Path) -> None:
    folder = tmp_path / "onnx"
    folder.mkdir()
    file = save(folder / "model.onnx", CONV, *HEAD)
    described = Artifact(kind="onnx", classes=("a", "b", "c", "d"), preprocess=HOW).write(folder)
    for given in (folder, file):
        made = edgetune.quantize_onnx(given, pictures, tmp_path / "out.onnx", settings=FEW)
        assert (made.preprocess, made.classes) == (HOW, described.classes)
        assert made.parents == {"onnx": described.digest}
    assert edgetune.quantize_onnx(folder, pictures, settings=FEW).path == tmp_path
    assert (tmp_path / "onnx.int8.onnx").is_file(), "never inside the artifact"
    with pytest.raises(ConfigError, match="says how inputs are preprocessed") as caught:
        edgetune.quantize_onnx(folder, pictures, preprocess="imagenet", settings=FEW)
    assert str(file) in caught.value.hint
    other = HOW.model_copy(update={"resize_px": 16})
    made = edgetune.quantize_onnx(file, pictures, tmp_path / "out.onnx", preprocess=other, settings=FEW)
    assert made.preprocess == other


def test_arrays_serve_networks_that_images_alone_do_not(tmp_path: Path) -> None:
    network = save(
        tmp_path / "two.onnx",
        CONV,
        ("Add", ["c", "z"], "s", {}),
        ("Relu", ["s"], "logits", {}),
        inputs={"x": (FLOAT, SHAPE), "z": (FLOAT, [1, 16, 1, 1])},
    )
    noise = np.random.default_rng(0)
    feeds = [
        {
            "x": noise.standard_normal(SHAPE).astype(np.float32),
            "z": noise.standard_normal((1, 16, 1, 1)).astype(np.float32),
        }
        for _ in range(4)
    ]
    made = edgetune.quantize_onnx(network, feeds, settings=FEW)
    assert made.details["comparison"] | {"on": "calibration", "images": 4} == made.details["comparison"]
    assert made.preprocess is None
    assert len(made.details["calibration_sha256"]) == 64
    assert set(made.files) == {"two.int8.onnx"}
    single = save(tmp_path / "one.onnx", CONV, *HEAD)
    arrays = [feed["x"] for feed in feeds]
    made = edgetune.quantize_onnx(single, arrays[:3], settings=FEW, compare_on=arrays[3:])
    assert (made.details["comparison"]["on"], made.details["comparison"]["images"]) == ("held-out", 1)
    for wrong in ([], iter(arrays), arrays[0]):
        with pytest.raises(ConfigError, match="a list of batches is needed"):
            edgetune.quantize_onnx(single, wrong, settings=FEW)  # type: ignore[arg-type]


def refuse(
    network: Path, data: Path, message: str, kind: type[EdgetuneError] = ConfigError, **more: Any
) -> str:
    """Quantize what cannot be; nothing may be left behind."""
    before = sorted(network.parent.rglob("*"))
    with pytest.raises(kind, match=message) as caught:
        edgetune.quantize_onnx(network, data, **{"preprocess": HOW, "settings": FEW} | more)
    assert sorted(network.parent.rglob("*")) == before
    return caught.value.hint


def test_networks_that_take_no_images_are_refused(tmp_path: Path, pictures: Path) -> None:
    cast = ("Cast", ["y"], "x", {"to": FLOAT})
    uint8 = save(tmp_path / "u.onnx", cast, CONV, *HEAD, inputs={"y": (TensorProto.UINT8, SHAPE)})
    refuse(uint8, pictures, r"u\.onnx: input 'y' takes uint8, not float32: it scales pixels")
    pixels = [NOISE.integers(0, 255, SHAPE, dtype=np.uint8) for _ in range(4)]
    made = edgetune.quantize_onnx(uint8, pixels, settings=FEW)
    assert made.details["comparison"]["outputs"]["logits"]["sqnr_db"] > 10
    for left in tmp_path.glob("u.int8.*"):
        left.unlink()
    two = save(
        tmp_path / "t.onnx", CONV, ("Add", ["c", "z"], "logits", {}),
        inputs={"x": (FLOAT, SHAPE), "z": (FLOAT, [1, 16, 1, 1])},
    )  # fmt: skip
    assert "{name: array, ...}" in refuse(two, pictures, r"takes 2 inputs \(x \[1, 3, 16, 16\], z ")
    flat = save(tmp_path / "f.onnx", ("MatMul", ["x", "h"], "logits", {}), inputs={"x": (FLOAT, [1, 16])})
    refuse(flat, pictures, r"\[1, 16\]: no images")


def test_an_artifact_that_takes_pixels_says_how_they_are_made(
    tmp_path: Path, artifacts: Any, class_folders: Path
) -> None:
    network, _ = artifacts(edgetune.load_target("host-cpu"), pixels=True)
    out = tmp_path / "made" / "out.onnx"
    made = edgetune.quantize_onnx(network.path, class_folders, out, settings=FEW)
    assert made.details["comparison"]["outputs"]["logits"]["sqnr_db"] > 10
    assert (made.inputs[0].dtype, made.preprocess) == ("uint8", network.preprocess)


def test_what_is_not_said_is_not_guessed(classifier: Path, pictures: Path) -> None:
    hint = refuse(classifier, pictures, r"net\.onnx: nothing says how .* does not guess", preprocess=None)
    assert "--preprocess imagenet" in hint
    assert "--resize 256 --crop 224 --mean" in hint
    refuse(classifier, pictures, r"\[1, 3, 16, 16\].*gives \[N, 3, 224, 224\]", preprocess="imagenet")


def test_wrong_files_and_folders_are_named(classifier: Path, pictures: Path, tmp_path: Path) -> None:
    refuse(tmp_path / "none.onnx", pictures, r"none\.onnx: no such file")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "real images" in refuse(classifier, empty, "empty: no image in this folder")
    refuse(classifier, tmp_path / "nowhere", "nowhere: no such folder")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(classifier.read_bytes()[:300])
    refuse(broken, pictures, r"broken\.onnx", ArtifactError)
    refuse(classifier, pictures, "unknown profile", profile="jetson")
    refuse(classifier, pictures, "unknown preset", settings=QuantizeSection(preset="standart"))


def test_an_opset_that_the_profile_does_not_read(tmp_path: Path, pictures: Path) -> None:
    newer = save(tmp_path / "new.onnx", CONV, *HEAD, opset=20)
    hint = refuse(newer, pictures, r"new\.onnx: opset 20, .* reads 17 at most", profile=f"{JETSON}@5.1")
    assert "opset_version=17" in hint
    older = save(tmp_path / "old.onnx", CONV, *HEAD)
    made = edgetune.quantize_onnx(older, pictures, profile=f"{JETSON}@7.2", preprocess=HOW, settings=FEW)
    assert onnx.load(made.file("old.int8.onnx")).opset_import[0].version == 19
    assert made.details["comparison"]["outputs"]["logits"]["sqnr_db"] > 10
    for profile in ("host-cpu", f"{JETSON}@6.2"):
        made = edgetune.quantize_onnx(newer, pictures, profile=profile, preprocess=HOW, settings=FEW)
        model = onnx.load(made.file("new.int8.onnx"))
        assert (model.opset_import[0].version, model.ir_version) == (20, 9)


def test_the_destination_is_looked_at_first(classifier: Path, pictures: Path, tmp_path: Path) -> None:
    refuse(classifier, pictures, "is the network itself", out=classifier)
    refuse(classifier, pictures, "is a folder", out=pictures)
    assert "-o " in refuse(classifier, pictures, "does not end in .onnx", out=tmp_path / "small")
    mine = tmp_path / "mine.json"
    mine.write_text('{"precious": true}')
    refuse(classifier, pictures, r"mine\.json: would be replaced", out=tmp_path / "mine.onnx")
    assert json.loads(mine.read_text()) == {"precious": True}


def test_a_failure_leaves_what_was_there(
    classifier: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = edgetune.quantize_onnx(classifier, pictures, preprocess=HOW, settings=FEW)
    files = {path: path.read_bytes() for path in classifier.parent.glob("net*")}
    assert len(files) == 4

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stage, "save_manifest", full)
    refuse(classifier, pictures, "the disk is full", StageError)
    assert {path: path.read_bytes() for path in classifier.parent.glob("net*")} == files
    monkeypatch.undo()
    other = edgetune.quantize_onnx(
        classifier, pictures, preprocess=HOW, settings=QuantizeSection(images=3, ranges="minmax")
    )
    assert other.digest != made.digest
    assert made.file("net.int8.onnx").read_bytes() != files[made.file("net.int8.onnx")]


def quantize(*arguments: object, width: int = 120) -> Any:
    env = {"NO_COLOR": "1", "COLUMNS": str(width), "TERM": "dumb"}
    return CliRunner(env=env).invoke(cli.app, ["quantize", *map(str, arguments)])


PARTS = ("--resize", 20, "--crop", 16, "--mean", "0.5", "--std", "0.25", "--ranges", "minmax", "--images", 6)


@pytest.mark.parametrize("width", [60, 120])
def test_the_command_line_shows_the_comparison(classifier: Path, pictures: Path, width: int) -> None:
    out = classifier.parent / "o.onnx"
    done = quantize(classifier, "--data", pictures, *PARTS, "-o", out, "-q", width=width)
    assert done.exit_code == 0, done.output
    text = " ".join(done.stdout.split())
    assert done.stdout.startswith(f"{out}: qdq, 0.00 MB"), "the path is whole, however narrow the terminal"
    assert "INT8: 5 operations, float: 0" in text
    assert "INT8 beside FP32, 4 held-out inputs: same class: " in text
    assert re.search(r"logits: SQNR \d+\.\d dB, cosine [01]\.\d{4} \(least [01]\.\d{4}\)", text)
    assert "beside it: o.json, o.calibration.json" in text


def test_the_command_line_gives_json(classifier: Path, pictures: Path) -> None:
    done = quantize(classifier, "--data", pictures, *PARTS, "--json", "-q")
    shown = json.loads(done.stdout)
    assert shown["path"] == str(classifier.with_suffix(".int8.onnx"))
    assert shown["details"]["comparison"]["images"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing says which images calibrate it"),
        (("--data", "."), "does not guess"),
        (("--data", ".", "--mean", "x"), "--mean x: write numbers"),
        (("--data", ".", "--preprocess", "imagnet"), "unknown preset 'imagnet'"),
    ],
)
def test_the_command_line_refuses(classifier: Path, arguments: tuple[str, ...], message: str) -> None:
    done = quantize(classifier, *arguments)
    assert isinstance(done.exception, ConfigError)
    assert message in done.exception.message


def test_an_artifact_becomes_a_file_where_a_file_is_asked_for(tmp_path: Path, pictures: Path) -> None:
    folder = tmp_path / "onnx"
    folder.mkdir()
    save(folder / "model.onnx", CONV, *HEAD)
    Artifact(kind="onnx", classes=("a", "b", "c", "d"), preprocess=HOW).write(folder)
    done = quantize(folder, "--data", pictures, "--images", 6, "-o", tmp_path / "out.onnx", "-q")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out.json").is_file()
    told = quantize(folder, "--data", pictures, "--preprocess", "imagenet")
    assert "says itself" in told.exception.message


def test_presets_can_be_given_in_parts_from_python(classifier: Path, pictures: Path) -> None:
    given = Given(preset="minus-one-one", resize_px=20, size_px=16)
    made = edgetune.quantize_onnx(classifier, pictures, preprocess=given, settings=FEW)
    assert made.preprocess is not None
    assert made.preprocess.std == (0.5, 0.5, 0.5)
