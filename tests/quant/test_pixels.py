"""A network that takes pixels computes what it computed from normalised images, to the bit, and quantizes alike."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgetune.artifact import Artifact, Preprocess
from edgetune.data.images import as_input, normalise
from edgetune.engines.onnxruntime import Session
from edgetune.profile import Target, load_target
from edgetune.quant.pixels import take_pixels
from edgetune.stages.lint import lint

ONE = st.floats(0.01, 1)


@pytest.mark.slow
@given(channels=st.sampled_from([1, 3]), mean=ONE, std=ONE, seed=st.integers(0, 99))
def test_the_graph_normalises_as_the_images_are(channels: int, mean: float, std: float, seed: int) -> None:
    stds = tuple(std / (1 + index) for index in range(channels))
    how = Preprocess(resize_px=5, size_px=5, channels=channels, mean=(mean,) * channels, std=stds)
    shape = ["N", channels, 5, 5]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "same",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    take_pixels(model, how)
    onnx.checker.check_model(model, full_check=True)
    session = Session(model.SerializeToString(), threads=1)
    assert session.inputs[0].model_dump() == {"name": "x", "dtype": "uint8", "shape": ("N", 5, 5, channels)}
    pixels = np.random.default_rng(seed).integers(0, 256, (2, channels, 5, 5), dtype=np.uint8)
    found = session.run(as_input(pixels, how, session.inputs[0]))[0]
    np.testing.assert_array_equal(found, normalise(pixels, how))


def test_a_branch_that_reads_the_input_is_led_to_the_normalised_one() -> None:
    def branch(name: str, kind: str) -> onnx.GraphProto:
        return helper.make_graph(
            [helper.make_node(kind, ["x"], [name])], name, [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 2, 2])],
        )  # fmt: skip

    graph = helper.make_graph(
        [
            helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
            helper.make_node("Cast", ["most"], ["any"], to=TensorProto.BOOL),
            helper.make_node(
                "If", ["any"], ["y"], then_branch=branch("a", "Neg"), else_branch=branch("b", "Abs")
            ),
        ],
        "two",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 2, 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    take_pixels(model, Preprocess(resize_px=2, size_px=2, channels=1, mean=(0.5,), std=(0.5,)))
    pixels = np.array([0, 255, 0, 255], np.uint8).reshape(1, 2, 2, 1)
    found = Session(model.SerializeToString(), threads=1).run(pixels)[0]
    np.testing.assert_array_equal(found.ravel(), [1, -1, 1, -1])


PROFILES = ("host-cpu", *(f"jetson-orin-nano-8gb@{jetpack}" for jetpack in ("5.1", "6.0", "6.2", "7.2")))


@pytest.mark.parametrize("profile", PROFILES)
def test_quantized_alike_and_nothing_for_the_linter(
    tmp_path: Path, artifacts: Callable[..., tuple[Artifact, Artifact]], profile: str
) -> None:
    target = load_target(profile)
    _, raw = artifacts(target, pixels=True)
    (tmp_path / "onnx").rename(tmp_path / "onnx-raw")
    (tmp_path / "int8").rename(tmp_path / "int8-raw")
    _, plain = artifacts(target)
    assert raw.inputs[0].dtype == "uint8"
    layers, others = ({item["name"]: item for item in one.details["layers"]} for one in (raw, plain))
    assert {name: layers[name]["precision"] for name in others} == {
        name: item["precision"] for name, item in others.items()
    }
    first = [layers[name] for name in layers if name not in others]
    assert len(first) == 5
    assert {item["precision"] for item in first} == {"FP32"}
    scales = [{item["tensor"]: item["scale"] for item in one.details["activations"]} for one in (raw, plain)]
    assert scales[0] == {
        name.replace("input", "input/normalised"): scale for name, scale in scales[1].items()
    }
    if not target.is_host:
        assert {item["why"] for item in first} == {"prepares the input, in front of the first Q/DQ"}
        assert not _found(tmp_path / "int8-raw/model.onnx", target) - _found(
            tmp_path / "int8/model.onnx", target
        )


def _found(path: Path, target: Target) -> set[Any]:
    return {finding.rule for finding in lint(path, target).findings}
