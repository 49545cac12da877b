"""What all tests share: where real data may lie, and small images and networks made on the spot."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from edgetune.artifact import Artifact, Preprocess
from edgetune.data.folders import Dataset, scan
from edgetune.engines.onnxruntime import Session
from edgetune.profile import Target
from edgetune.quant.pixels import take_pixels
from edgetune.recipe import DataSection, QuantizeSection
from edgetune.stages.quantize import quantize

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture
def class_folders(tmp_path: Path) -> Path:
    """Three classes of 12 images, 40x40 RGB, that a tiny network can tell apart by their colour."""
    root = tmp_path / "images"
    noise = np.random.default_rng(0)
    for label, name in enumerate(("blue", "green", "red")):
        (root / name).mkdir(parents=True)
        for index in range(12):
            pixels = noise.integers(0, 90, (40, 40, 3), dtype=np.uint8)
            pixels[..., 2 - label] += 140
            Image.fromarray(pixels).save(root / name / f"{index:02d}.png")
    return root


def small_model(opset: int) -> onnx.ModelProto:
    noise = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["c"], name="conv", strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "h"], ["logits"], name="head", transB=1),
    ]
    weights = {
        "w": noise.standard_normal((16, 3, 3, 3)).astype(np.float32),
        "h": noise.standard_normal((3, 16)).astype(np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.fixture
def dataset(class_folders: Path) -> Dataset:
    return scan(DataSection(path=str(class_folders)), class_folders)


@pytest.fixture
def artifacts(tmp_path: Path, dataset: Dataset) -> Callable[..., tuple[Artifact, Artifact]]:
    """Makes an exported network and its INT8 version for a target; with `pixels` both take uint8 [N, H, W, C]."""

    def make(target: Target, pixels: bool = False) -> tuple[Artifact, Artifact]:
        onnx_folder, int8_folder = tmp_path / "onnx", tmp_path / "int8"
        onnx_folder.mkdir()
        int8_folder.mkdir()
        model = small_model(target.runtime.opset)
        how = Preprocess(resize_px=32, size_px=32, channels=3, mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.3))
        if pixels:
            take_pixels(model, how)
        onnx.save(model, onnx_folder / "model.onnx")
        session = Session(onnx_folder / "model.onnx", threads=1)
        network = Artifact(
            kind="onnx",
            classes=("blue", "green", "red"),
            inputs=session.inputs,
            outputs=session.outputs,
            preprocess=how,
        ).write(onnx_folder)
        settings = QuantizeSection(images=9, ranges="minmax", method="plain")
        return network, quantize(network, dataset, settings, target.runtime, into=int8_folder)

    return make
