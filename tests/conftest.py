"""What all tests share: where real data may lie, and small images and networks made on the spot."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import settings
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from textual import tiny_bert, write_reviews

from edgetune.artifact import Artifact, Preprocess
from edgetune.data.folders import Dataset, scan
from edgetune.engines.onnxruntime import Session
from edgetune.profile import Target
from edgetune.quant.pixels import take_pixels
from edgetune.recipe import DataSection, QuantizeSection
from edgetune.stages.quantize import quantize

# Threads of torch that wait for each other beside other work take a hundred times as long as one alone.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# How long an example takes says how busy a machine is, and nothing about the code.
settings.register_profile("edgetune", deadline=None)
settings.load_profile("edgetune")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let tests that fork come first: what torch.compile starts in a process, a fork of it cannot use."""
    items.sort(key=lambda item: item.get_closest_marker("forks") is None)


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


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return tiny_bert(tmp_path / "bert")


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    return write_reviews(tmp_path / "reviews.csv")


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


def _changed(logits: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The same logits, in some rows with another class in front."""
    found = logits.copy()
    found[rows] = np.roll(found[rows], 1, axis=1)
    return found


def _blocks(
    rounds: int, ms: dict[str, float], block_s: float, dice: np.random.Generator
) -> list[dict[str, Any]]:
    """Rounds of both engines, whose blocks are as long as each other and hold as many queries as fit."""
    blocks, now = [], 1000.0
    for index in range(rounds):
        for name in dice.permutation(list(ms)):
            count = round(1e3 * block_s / ms[name]) + int(dice.integers(0, 3))
            times = ms[name] * (1 + dice.uniform(-0.01, 0.01, count))
            end = now + times.sum() / 1e3
            blocks.append(
                {"name": str(name), "round": index, "start_s": now, "end_s": end, "ms": times.tolist()}
            )
            now = end + 0.02
    return blocks


def bring_back(
    folder: Path,
    *,
    samples: int = 400,
    labelled: int | None = None,
    host_loss: int = 0,
    engine_flips: int = 0,
    ms: dict[str, float] | None = None,
    watts: float = 5.0,
    rounds: int = 8,
    **result: Any,
) -> Path:
    """A bundle whose networks are nothing, with results as a device would leave them.

    Args:
        folder: to write; is not there yet.
        samples: that were bundled and compared.
        labelled: how many of the samples; None: all.
        host_loss: samples on which INT8 in ONNX Runtime is wrong, where FP32 is right.
        engine_flips: samples on which the INT8 engine names another class than ONNX Runtime.
        ms: of a query, by engine.
        watts: of the whole module, all the time.
        rounds: of timing.
        result: parts of result.json to put in place of the usual ones.
    """
    dice = np.random.default_rng(0)
    results, classes = folder / "results", 5
    results.mkdir(parents=True)
    truth = dice.integers(0, classes, samples)
    fp32 = (8 * np.eye(classes)[truth] + dice.normal(0, 0.5, (samples, classes))).astype("<f4")
    order = dice.permutation(samples)
    int8 = _changed(fp32 + dice.normal(0, 0.02, fp32.shape).astype("<f4"), order[:host_loss])
    outputs = {"fp16": fp32 + np.float32(1e-3), "int8": _changed(int8, order[::-1][:engine_flips])}
    ms = ms or {"fp16": 2.0, "int8": 1.0}
    content = {"fp16.onnx": b"fp16", "int8.onnx": b"int8", "samples.bin": bytes(samples), "table.bin": b"",
               "fp16.expected.bin": fp32.tobytes(), "int8.expected.bin": int8.tobytes()}  # fmt: skip
    for name, data in content.items():
        (folder / name).write_bytes(data)
    known = samples if labelled is None else labelled
    work = {
        "schema_version": 1, "name": "insects", "classes": [f"class {i}" for i in range(classes)],
        "wanted": {"profile": "jetson-orin-nano-8gb:15W@6.2", "module": "Jetson Orin Nano 8 GB"},
        "input": {"name": "input", "dtype": "float32", "shape": [1, 1, 1, 1]},
        "outputs": [{"name": "logits", "dtype": "float32", "shape": [1, classes]}],
        "engines": [
            {"name": name, "onnx": f"{name}.onnx", "precision": name, "typing": "weak", "workspace_mb": 512}
            for name in ("fp16", "int8")
        ],
        "samples": {
            "number": samples, "inputs": "samples.bin", "table": "table.bin",
            "expected": {name: f"{name}.expected.bin" for name in ("fp16", "int8")},
            "labels": [int(label) if index < known else None for index, label in enumerate(truth)],
        },
        "timing": {"warmup_s": 2.0, "seconds": 30.0, "queries": 1000, "rounds": 30, "limit_s": 300.0},
        "trtexec_samples": 32, "parents": {"onnx": "0" * 64, "int8": "1" * 64},
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in content.items()},
    }  # fmt: skip
    (folder / "work.json").write_text(json.dumps(work))
    engines = {}
    for place, (name, values) in enumerate(outputs.items()):
        data, file = values.astype("<f4").tobytes(), f"{name}.output0.bin"
        (results / file).write_bytes(data)
        value = {"samples": samples, "files": [file]}
        step = {"key": "", "value": value, "files": {file: hashlib.sha256(data).hexdigest()}}
        (results / f"compare-{name}.json").write_text(json.dumps(step))
        plan = name.encode() * 1000
        (results / f"{name}.plan").write_bytes(plan)
        counts = {"fp16": 40} if name == "fp16" else {"int8": 30, "fp16": 8, "fp32": 2}
        engines[name] = {
            "build": {
                "seconds": 61.0 + place, "plan_bytes": 4_000_000 // (1 + place), "plan": f"{name}.plan",
                "plan_sha256": hashlib.sha256(plan).hexdigest(), "device_memory": 6_000_000,
                "workspace_mb": 512, "optimization_level": None, "messages": [],
                "layers": {"layers": [], "counts": counts, "reformats": 3 * place, "fallbacks": [],
                           "detailed": True},
            },
            "outputs": value,
        }  # fmt: skip
    timing = {}
    for what, factor in (("compute", 1.0), ("copies", 1.1)):
        blocks = _blocks(rounds, {name: one * factor for name, one in ms.items()}, 0.8, dice)
        moments = np.arange(blocks[0]["start_s"] - 0.2, blocks[-1]["end_s"] + 0.4, 0.2)
        beside = [[float(at), {"VDD_IN": 1e3 * watts, "VDD_SOC": 900.0}, {"gpu-thermal": 45 + index / 50}]
                  for index, at in enumerate(moments)]  # fmt: skip
        warm = {name: {"queries": 900, "seconds": 2.0, "query_s": 0.001, "stable": True} for name in ms}
        timing[what] = {"rounds": rounds, "blocks": blocks, "beside": beside, "warmup": warm,
                        "complete": dict.fromkeys(ms, True)}  # fmt: skip
    content_of = {
        "schema_version": 1, "bundle": hashlib.sha256((folder / "work.json").read_bytes()).hexdigest(),
        "tool": "TensorRT's Python bindings", "tensorrt": "10.3.0", "warnings": [], "errors": {},
        "found": {"module": {"model": "NVIDIA Jetson Orin Nano Developer Kit", "compute_capability": "8.7"},
                  "jetpack": "6.2", "l4t": "36.4.3", "cuda": "12.6", "power_mode": {"name": "15W", "id": 0},
                  "clocks": {"locked": True}, "locked": {"asked": True, "locked": True}},
        "engines": engines, "timing": timing, "finished": True,
    }  # fmt: skip
    (results / "result.json").write_text(json.dumps(content_of | result))
    return folder


@pytest.fixture(scope="session")
def brought_back() -> Callable[..., Path]:
    """Writes a bundle with results; see `bring_back`."""
    return bring_back
