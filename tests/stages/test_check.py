"""check on a network of one matrix product; its INT8 twin is bent by hand, so every figure is known."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import nn

from edgetune.artifact import Artifact, Preprocess
from edgetune.data.folders import Dataset, Sample
from edgetune.errors import ArtifactError, ConfigError, StageError
from edgetune.quant.compare import SQNR_CEILING_DB, agreement
from edgetune.recipe import CheckSection
from edgetune.stages import check as module_of_check
from edgetune.stages.check import (
    ECE_BINS,
    PAIRS,
    accuracy,
    calibration_error,
    check,
    confidence,
    confused,
    confusion,
)
from edgetune.training.checkpoint import save_network

CLASSES = ("blue", "green", "red")
SIZE = 4
PREPROCESS = Preprocess(resize_px=SIZE, size_px=SIZE, channels=3, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class Tiny(nn.Module):
    """Logits from the mean of each colour."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[0.0, 0.0, 4.0], [0.0, 4.0, 0.0], [4.0, 0.0, 0.0]]))
            self.head.bias.copy_(torch.tensor([0.1, 0.2, 0.3]))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.head(batch.mean(dim=(2, 3)))


def save_onnx(
    path: Path, bias: list[float], name: str = "input", batch: int | str = 1, outputs: int = 3
) -> None:
    weight = Tiny().head.weight.detach().numpy().T
    weight = np.concatenate([weight, np.zeros((3, outputs - 3), np.float32)], axis=1)
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", [name], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("Gemm", ["flat", "w", "b"], ["scores"]),
        ],
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, outputs])],
        [
            numpy_helper.from_array(weight, "w"),
            numpy_helper.from_array(np.array(bias + [0.0] * (outputs - 3), np.float32), "b"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def plain(root: Path, per_class: int = 10) -> Dataset:
    """Images of one colour; the strength of a second colour grows with the index."""
    samples = []
    for label, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for index in range(per_class):
            pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
            pixels[..., 2 - label] = 200
            pixels[..., (3 - label) % 3] = 19 * index
            Image.fromarray(pixels).save(root / name / f"{index}.png")
            samples.append(Sample(f"{name}/{index}.png", label, "", 0, 0))
    splits = {"train": (), "val": (), "test": tuple(samples)}
    return Dataset(
        root=root, classes=CLASSES, splits=splits, broken=(), duplicates=(), warnings=(), gray=False
    )  # fmt: skip


Trio = tuple[Artifact, Artifact, Artifact]
Make = Callable[..., Trio]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def made(
        int8_bias: list[float], classes: tuple[str, ...] = CLASSES, rendering: str = "cpu", **graph: Any
    ) -> Trio:
        for name in ("checkpoint", "onnx", "qdq"):
            (tmp_path / name).mkdir()
        save_network(Tiny(), tmp_path / "checkpoint/model.safetensors")
        save_onnx(tmp_path / "onnx/model.onnx", [0.1, 0.2, 0.3], **graph)
        save_onnx(tmp_path / "qdq/model.onnx", int8_bias, **graph)
        details = {"model": {"name": "custom"}, "channels": 3, "rendering": rendering}
        return tuple(
            Artifact(kind=name, classes=classes, preprocess=PREPROCESS, details=details).write(
                tmp_path / name
            )
            for name in ("checkpoint", "onnx", "qdq")
        )  # type: ignore[return-value]

    return made


def run(trio: Trio, data: Dataset, tmp_path: Path, images: int = 0, **more: Any) -> dict[str, Any]:
    (tmp_path / "check").mkdir(exist_ok=True)
    made = check(*trio, data, CheckSection(images=images), into=tmp_path / "check", module=Tiny(), **more)
    measures: dict[str, Any] = json.loads(made.file("measures.json").read_text())
    assert made.kind == "measures"
    assert made.parents == dict(zip(("checkpoint", "onnx", "qdq"), (a.digest for a in trio), strict=True))
    return measures


def test_equal_networks_differ_in_nothing(make: Make, tmp_path: Path) -> None:
    found = run(make([0.1, 0.2, 0.3]), plain(tmp_path / "images"), tmp_path)
    torch_side, int8_side = found["parity"]["fp32_vs_torch"], found["parity"]["int8_vs_fp32"]
    assert torch_side["images"] == int8_side["images"] == found["accuracy"]["images"] == 30
    assert torch_side["difference_over_std"] < 1e-5
    assert int8_side["difference"] == 0
    assert (int8_side["cosine_mean"], int8_side["cosine_min"]) == (pytest.approx(1), pytest.approx(1))
    assert int8_side["sqnr_db"] == SQNR_CEILING_DB
    assert int8_side["agreement"] == 1
    assert int8_side["agreement_low"] < 1 == int8_side["agreement_high"]
    assert int8_side["flips"] == []
    accuracy = found["accuracy"]
    assert accuracy["models"]["int8"] == accuracy["models"]["fp32"]
    assert accuracy["models"]["torch"] == pytest.approx(accuracy["models"]["fp32"])
    assert [row["flips"] for row in accuracy["per_class"]] == [0, 0, 0]
    assert accuracy["models"]["fp32"]["top1"] == 1
    assert accuracy["drop"] | {"low": 0, "high": 0} == {
        "points": 0, "low": 0, "high": 0, "p_value": 1, "worse": 0, "better": 0,
    }  # fmt: skip
    assert accuracy["drop"]["low"] == pytest.approx(-accuracy["drop"]["high"])


@pytest.mark.parametrize(("name", "batch"), [("input", 1), ("pixels", "N"), ("x", 4)])
def test_a_bent_network_is_measured_right(make: Make, tmp_path: Path, name: str, batch: int | str) -> None:
    # A bias of 1 on "red" turns the images whose second colour or own colour is red enough.
    data = plain(tmp_path / "images")
    found = run(make([0.1, 0.2, 1.3], name=name, batch=batch), data, tmp_path)
    pixels = np.stack(
        [
            np.asarray(Image.open(data.root / s.path), np.float32).mean((0, 1)) / 255
            for s in data.splits["test"]
        ]
    )
    truth = np.array([sample.label for sample in data.splits["test"]])
    fp32 = pixels[:, ::-1] * 4 + np.array([0.1, 0.2, 0.3])
    int8 = pixels[:, ::-1] * 4 + np.array([0.1, 0.2, 1.3])
    parity, accuracy = found["parity"]["int8_vs_fp32"], found["accuracy"]
    cosine = (fp32 * int8).sum(1) / np.linalg.norm(fp32, axis=1) / np.linalg.norm(int8, axis=1)
    assert parity["difference"] == pytest.approx(1, abs=1e-5)
    assert parity["difference_over_std"] == pytest.approx(1 / fp32.std(), rel=1e-5)
    assert parity["cosine_mean"] == pytest.approx(cosine.mean(), abs=1e-6)
    assert parity["cosine_min"] == pytest.approx(cosine.min(), abs=1e-6)
    assert parity["cosine_low"] < parity["cosine_mean"] < parity["cosine_high"]
    assert parity["sqnr_db"] == pytest.approx(10 * np.log10((fp32**2).sum() / 30), abs=1e-4)
    flipped = fp32.argmax(1) != int8.argmax(1)
    assert 0 < flipped.sum() < 30
    assert parity["agreement"] == pytest.approx(1 - flipped.mean())
    assert [flip["path"] for flip in parity["flips"]] == [
        sample.path for sample, turned in zip(data.splits["test"], flipped, strict=True) if turned
    ]
    assert {flip["int8"] for flip in parity["flips"]} == {"red"}
    right = int((int8.argmax(1) == truth).sum())
    assert accuracy["models"]["int8"]["right"] == right
    assert accuracy["drop"]["points"] == pytest.approx(100 * (30 - right) / 30)
    assert accuracy["drop"]["worse"] == 30 - right
    assert np.array(accuracy["confusion"]["int8"]).sum(axis=1).tolist() == [10, 10, 10]
    assert [row["flips"] for row in accuracy["per_class"]] == [flipped[truth == k].sum() for k in range(3)]
    for network, logits in (("fp32", fp32), ("int8", int8)):
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        measured = accuracy["models"][network]
        assert measured["confidence"] == pytest.approx(shares.max(axis=1).mean(), abs=1e-6)
        assert measured["ece"] == pytest.approx(
            error_by_hand(shares.max(axis=1), logits.argmax(1) == truth), abs=1e-6
        )
    assert [row["int8"] for row in accuracy["per_class"]] == np.diag(accuracy["confusion"]["int8"]).tolist()


def test_without_int8_fp32_is_what_is_judged(make: Make, tmp_path: Path) -> None:
    checkpoint, network, qdq = make([0.1, 0.2, 0.3])
    data = plain(tmp_path / "images")
    both = run((checkpoint, network, qdq), data, tmp_path)
    (tmp_path / "alone").mkdir()
    made = check(checkpoint, network, None, data, CheckSection(), into=tmp_path / "alone", module=Tiny())
    alone = json.loads(made.file("measures.json").read_text())
    assert set(made.parents) == {"checkpoint", "onnx"}
    assert alone["parity"] == {"fp32_vs_torch": both["parity"]["fp32_vs_torch"]}
    assert set(alone["accuracy"]) == set(both["accuracy"]) - {"drop", "confused"}
    for name in ("torch", "fp32"):
        assert alone["accuracy"]["models"][name] == both["accuracy"]["models"][name]
    assert alone["accuracy"]["confusion"] == {"fp32": both["accuracy"]["confusion"]["fp32"]}
    rows = [{k: row[k] for k in ("name", "images", "fp32")} for row in both["accuracy"]["per_class"]]
    assert alone["accuracy"]["per_class"] == rows


def error_by_hand(sure: np.ndarray, right: np.ndarray) -> float:
    """Bin by bin, as equation 3 of arXiv:1706.04599 has it."""
    total = 0.0
    for place in range(ECE_BINS):
        low, high = place / ECE_BINS, (place + 1) / ECE_BINS
        inside = (sure > low) & (sure <= high)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
    return float(total)


@given(st.lists(st.tuples(st.floats(0.01, 1), st.booleans()), min_size=1, max_size=80))
def test_calibration_error_is_the_gap_of_each_bin(found: list[tuple[float, bool]]) -> None:
    sure, right = (np.array(column) for column in zip(*found, strict=True))
    inside = np.abs(sure * ECE_BINS - np.round(sure * ECE_BINS)) > 1e-9
    sure, right = np.append(sure[inside], 0.5), np.append(right[inside], True)
    assert calibration_error(sure, right) == pytest.approx(error_by_hand(sure, right))


def test_calibration_error_of_plain_cases() -> None:
    assert calibration_error(np.ones(4), np.ones(4, bool)) == 0
    assert calibration_error(np.ones(4), np.zeros(4, bool)) == 1
    assert calibration_error(np.full(4, 0.75), np.array([True, True, True, False])) == 0
    # One bin too sure by 0.2 and one too little by 0.1 do not cancel.
    sure, right = (
        np.array([0.9] * 10 + [0.5] * 10),
        np.array([True] * 7 + [False] * 3 + [True] * 6 + [False] * 4),
    )
    assert calibration_error(sure, right) == pytest.approx(0.15)


def test_confidence_is_the_softmax_of_the_largest_however_large() -> None:
    logits = np.array([[1.0, 1.0], [1e4, -1e4], [0.0, np.log(3)]], np.float32)
    assert confidence(logits) == pytest.approx([0.5, 1.0, 0.75])


@pytest.mark.parametrize(("rendering", "exact"), [("cpu", False), ("weak", True), ("strong", True)])
def test_what_stands_for_tensorrt_runs_without_optimisations(
    make: Make, tmp_path: Path, rendering: str, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    real = module_of_check.Session

    def spy(model: Path, threads: int = 0, exact: bool = False) -> Any:
        asked.append((model.parent.name, exact))
        return real(model, threads, exact)

    monkeypatch.setattr(module_of_check, "Session", spy)
    found = run(make([0.1, 0.2, 0.3], rendering=rendering), plain(tmp_path / "images", 2), tmp_path)
    assert sorted(asked) == [("onnx", False), ("qdq", exact)]
    assert found["parity"]["int8_vs_fp32"]["exact"] is exact


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_number_stops_the_stage_and_names_network_and_image(
    make: Make, tmp_path: Path, value: float
) -> None:
    with pytest.raises(StageError, match=r"INT8 network's output for blue/0\.png") as caught:
        run(make([value, 0.2, 0.3]), plain(tmp_path / "images", 2), tmp_path)
    assert caught.value.hint
    assert not (tmp_path / "check/measures.json").exists()


def test_outputs_that_are_not_one_per_class(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="FP32 ONNX network has 5 outputs, where there are 3 classes"):
        run(make([0.1, 0.2, 0.3], outputs=5), plain(tmp_path / "images", 2), tmp_path)


def test_data_of_other_classes(make: Make, tmp_path: Path) -> None:
    trio = make([0.1, 0.2, 0.3], classes=("azure", "green", "red"))
    with pytest.raises(ConfigError, match="'blue' is none of the network's"):
        run(trio, plain(tmp_path / "images", 2), tmp_path)


def test_classes_in_another_order_are_matched_by_name(make: Make, tmp_path: Path) -> None:
    # The network calls its outputs blue, green, red; the data lists red first.
    data = plain(tmp_path / "images")
    turned = tuple(
        Sample(s.path, {0: 2, 1: 1, 2: 0}[s.label], s.sha256, s.size_bytes, s.mtime_ns)
        for s in data.splits["test"]
    )
    other = Dataset(
        root=data.root, classes=("red", "green", "blue"), splits=data.splits | {"test": turned},
        broken=(), duplicates=(), warnings=(), gray=False,
    )  # fmt: skip
    assert run(make([0.1, 0.2, 0.3]), other, tmp_path)["accuracy"]["models"]["fp32"]["top1"] == 1


def test_an_empty_test_split(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="test split has no inputs"):
        run(make([0.1, 0.2, 0.3]), plain(tmp_path / "images", 0), tmp_path)


def test_a_subset_says_so(make: Make, tmp_path: Path) -> None:
    said: list[str] = []

    class Heard:
        def begin(self, what: str, total: int, unit: str = "image") -> None: ...
        def advance(self, count: int = 1, **shown: float) -> None: ...
        def end(self) -> None: ...
        def line(self, text: str) -> None:
            said.append(text)

    found = run(make([0.1, 0.2, 0.3]), plain(tmp_path / "images"), tmp_path, images=6, progress=Heard())
    assert (found["accuracy"]["images"], found["accuracy"]["of"]) == (6, 30)
    assert [row["images"] for row in found["accuracy"]["per_class"]] == [2, 2, 2]
    assert said == ["check: judged on 6 of the 30 test inputs"]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60))
def test_confusion_counts_every_image_once(pairs: list[tuple[int, int]]) -> None:
    truth, predicted = (np.array(side) for side in zip(*pairs, strict=True))
    table = confusion(truth, predicted, 4)
    for row in range(4):
        for column in range(4):
            assert table[row][column] == pairs.count((row, column))
    assert agreement(truth, predicted)["agreed"] == sum(table[label][label] for label in range(4))


@given(st.lists(st.tuples(*[st.integers(0, 8)] * 3), min_size=1, max_size=200))
def test_confused_pairs_are_the_matrix_s_largest(rows: list[tuple[int, int, int]]) -> None:
    truth, fp32, int8 = (np.array(column) for column in zip(*rows, strict=True))
    found = confused(truth, {"fp32": fp32, "int8": int8}, "abcdefghi")
    tables = {"fp32": confusion(truth, fp32, 9), "int8": confusion(truth, int8, 9)}
    for pair in found:
        row, column = ("abcdefghi".index(pair[side]) for side in ("truth", "predicted"))
        assert row != column
        assert {name: tables[name][row][column] for name in tables} == {n: pair[n] for n in tables}
    off = [n for i, row in enumerate(tables["int8"]) for j, n in enumerate(row) if n and i != j]
    assert [pair["int8"] for pair in found] == sorted(off, reverse=True)[:PAIRS]
    json.dumps(found)


def test_many_classes_have_no_confusion_matrix() -> None:
    samples = [Sample("a.png", 7, "", 0, 0)]
    top1 = dict.fromkeys(("torch", "fp32", "int8"), np.array([7]))
    names = [str(label) for label in range(1000)]
    found = accuracy(samples, top1, names)
    assert found["confusion"] is None
    assert found["confused"] == []
    assert found["per_class"][7] == {"name": "7", "images": 1, "fp32": 1, "int8": 1, "flips": 0}
