"""The stage: from an exported network and class folders to an INT8 artifact."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetune.artifact import Artifact, Preprocess
from edgetune.data.folders import Dataset, scan
from edgetune.engines.onnxruntime import Session
from edgetune.errors import ArtifactError, ConfigError, StageError
from edgetune.profile import Runtime
from edgetune.recipe import DataSection, QuantizeSection
from edgetune.stages.quantize import quantize

CPU = Runtime(opset=17, ir=8, rendering="cpu")
WEAK = Runtime(opset=17, ir=8, rendering="weak")
STRONG = Runtime(opset=19, ir=9, rendering="strong")
SETTINGS = QuantizeSection(images=9, ranges="minmax")


def small_model(opset: int = 17) -> onnx.ModelProto:
    noise = np.random.default_rng(0)
    weight = noise.standard_normal((16, 3, 3, 3)).astype(np.float32)
    head = noise.standard_normal((3, 16)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["c"], name="conv", strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "h"], ["logits"], name="head", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(head, "h")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    helper.set_model_props(model, {"edgetune.classes": "blue,green,red"})
    return model


@pytest.fixture
def dataset(class_folders: Path) -> Dataset:
    return scan(DataSection(path=str(class_folders)), class_folders)


def network(folder: Path, model: onnx.ModelProto | None = None) -> Artifact:
    folder.mkdir()
    onnx.save(model or small_model(), folder / "model.onnx")
    preprocess = Preprocess(resize_px=32, size_px=32, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    session = Session(folder / "model.onnx", threads=1)
    return Artifact(
        kind="onnx",
        classes=("blue", "green", "red"),
        inputs=session.inputs,
        outputs=session.outputs,
        preprocess=preprocess,
    ).write(folder)


def run(tmp_path: Path, made: Artifact, data: Dataset, name: str = "int8", **options: object) -> Artifact:
    into = tmp_path / name
    into.mkdir()
    settings = options.pop("settings", SETTINGS)
    runtime = options.pop("runtime", CPU)
    return quantize(made, data, settings, runtime, into=into, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("runtime", [CPU, WEAK])
def test_artifact_holds_model_calibration_and_account(
    tmp_path: Path, dataset: Dataset, runtime: Runtime
) -> None:
    source = network(tmp_path / "onnx")
    made = run(tmp_path, source, dataset, runtime=runtime)
    assert Artifact.load(tmp_path / "int8", "qdq").digest == made.digest
    assert set(made.files) == {"model.onnx", "calibration.json"}
    assert (made.inputs, made.outputs, made.preprocess) == (source.inputs, source.outputs, source.preprocess)
    assert made.details["images"] == 9
    assert made.details["calibration_classes"] == {"blue": 3, "green": 3, "red": 3}
    assert [layer["name"] for layer in made.details["layers"]] == ["conv", "relu", "pool", "flat", "head"]
    json.dumps(made.details)
    model = onnx.load(made.file("model.onnx"))
    properties = {item.key: item.value for item in model.metadata_props}
    assert properties == {"edgetune.classes": "blue,green,red", "edgetune.rendering": runtime.rendering}
    assert (model.ir_version, model.opset_import[0].version) == (8, 17)


def test_the_same_again_gives_the_same_digest(tmp_path: Path, dataset: Dataset) -> None:
    source = network(tmp_path / "onnx")
    assert run(tmp_path, source, dataset, "a").digest == run(tmp_path, source, dataset, "b").digest


def test_only_training_images_calibrate(tmp_path: Path, dataset: Dataset) -> None:
    made = run(tmp_path, network(tmp_path / "onnx"), dataset, settings=QuantizeSection(images=1000))
    used = {item["path"] for item in json.loads(made.file("calibration.json").read_text())["samples"]}
    assert used == {sample.path for sample in dataset.splits["train"]}


@pytest.mark.parametrize("runtime", [CPU, WEAK])
def test_int8_is_compared_on_validation_images(tmp_path: Path, dataset: Dataset, runtime: Runtime) -> None:
    made = run(tmp_path, network(tmp_path / "onnx"), dataset, runtime=runtime)
    found = made.details["comparison"]
    assert (found["on"], found["images"]) == ("held-out", len(dataset.splits["val"]))
    assert found["exact"] is (runtime is WEAK)
    assert found["outputs"]["logits"]["sqnr_db"] > 10
    assert 0 <= found["agreement_low"] <= found["agreement"] <= found["agreement_high"] <= 1


def test_a_pinned_set_replaces_the_choice(tmp_path: Path, dataset: Dataset) -> None:
    source = network(tmp_path / "onnx")
    first = run(
        tmp_path, source, dataset, "first", settings=QuantizeSection(images=4, ranges="minmax", seed=5)
    )
    pinned = run(tmp_path, source, dataset, "second", manifest=first.file("calibration.json"))
    assert pinned.digest == first.digest
    assert pinned.details["choose"] == "pinned"


def test_the_preset_says_what_settings_do_not(tmp_path: Path, dataset: Dataset) -> None:
    made = run(tmp_path, network(tmp_path / "onnx"), dataset, settings=QuantizeSection(preset="thorough"))
    assert made.details["ranges"] == "auto"
    assert made.details["preset"] == "thorough"


def test_a_network_for_another_profile_is_refused(tmp_path: Path, dataset: Dataset) -> None:
    newer = network(tmp_path / "new", small_model(opset=19))
    older = network(tmp_path / "old")
    with pytest.raises(ConfigError, match="opset 19, where this profile reads 17 at most"):
        run(tmp_path, newer, dataset, "a", runtime=WEAK)
    for name, source in (("b", older), ("c", newer)):
        made = run(tmp_path, source, dataset, name, runtime=STRONG)
        assert onnx.load(made.file("model.onnx")).opset_import[0].version == 19


def test_kernels_that_the_targets_tensorrt_lacks_are_warned_of(tmp_path: Path, dataset: Dataset) -> None:
    model = small_model()
    weight = np.ones((16, 1, 3, 3), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "d"))
    depthwise = helper.make_node("Conv", ["r", "d"], ["e"], name="depthwise", group=16)
    model.graph.node.insert(2, depthwise)
    model.graph.node[3].input[0] = "e"
    source = network(tmp_path / "onnx", model)
    for version, count in (("8.6.2", 1), ("10.3.0", 0)):
        runtime = Runtime(opset=17, ir=8, rendering="weak", tensorrt=version)
        warnings = run(tmp_path, source, dataset, version, runtime=runtime).details["warnings"]
        assert sum("quantize.exclude: [depthwise]" in warning for warning in warnings) == count


def test_a_quantized_network_is_refused_with_its_path(tmp_path: Path, dataset: Dataset) -> None:
    made = run(tmp_path, network(tmp_path / "onnx"), dataset)
    again = network(tmp_path / "again", onnx.load(made.file("model.onnx")))
    with pytest.raises(ConfigError, match=r"again/model\.onnx: the network is quantized already"):
        run(tmp_path, again, dataset, "twice")


def test_corrupt_and_undescribed_networks_are_refused(tmp_path: Path, dataset: Dataset) -> None:
    source = network(tmp_path / "onnx")
    bare = source.model_copy(update={"preprocess": None})
    with pytest.raises(ArtifactError, match="preprocessed"):
        run(tmp_path, bare, dataset, "bare")
    source.file("model.onnx").write_bytes(b"\x08\x08 cut off")
    with pytest.raises(ArtifactError, match=r"onnx/model\.onnx"):
        run(tmp_path, source, dataset, "corrupt")


def test_a_network_that_overflows_names_the_tensor(tmp_path: Path, dataset: Dataset) -> None:
    model = small_model()
    weight = np.full((16, 3, 3, 3), 3e38, np.float32)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    with pytest.raises(StageError, match="'r' holds NaN or infinite"):
        run(tmp_path, network(tmp_path / "onnx", model), dataset)


def test_excluded_nodes_are_checked(tmp_path: Path, dataset: Dataset) -> None:
    source = network(tmp_path / "onnx")
    made = run(tmp_path, source, dataset, "a", settings=QuantizeSection(images=3, exclude=("head",)))
    assert made.details["layers"][-1]["why"] == "excluded"
    with pytest.raises(ConfigError) as caught:
        run(tmp_path, source, dataset, "b", settings=QuantizeSection(images=3, exclude=("haed",)))
    assert "'head'" in caught.value.hint
