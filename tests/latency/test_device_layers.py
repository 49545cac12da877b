"""Layers timed on a device: names lead to operations, kinds to bytes, the profile to peaks."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetune.device.results import Built, Engine, LayerFacts, Layers, LayerTime, Profiled
from edgetune.latency.device_layers import device_layers, node_operations


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """A convolution that reads through Q/DQ, and a ReLU."""
    weights = {"w": np.ones((8, 4, 3, 3), np.float32), "s": np.float32(0.1), "z": np.int8(0)}
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "q"),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "d"),
            helper.make_node("Conv", ["d", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["y"], "relu"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 16, 16])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        tmp_path / "n.onnx",
    )
    return tmp_path / "n.onnx"


def engine(*layers: LayerTime) -> Engine:
    facts = (LayerFacts(name="conv + relu", kind="Convolution", precision="int8", bytes=4096),)
    built = Built(seconds=1.0, plan_bytes=10, layers=Layers(layers=facts, detailed=True))
    return Engine(build=built, profile=Profiled(count=10, layers=layers))


CONV = 2 * 8 * 16 * 16 * 36


def test_operations_of_every_node(network: Path) -> None:
    found = node_operations(network)
    assert (found["conv"], found["relu"]) == (CONV, 8 * 16 * 16)
    assert node_operations(network.with_name("absent.onnx")) == {}


def test_layers_against_the_peaks_of_the_profile(network: Path) -> None:
    timed = engine(
        LayerTime(name="conv + relu", average_ms=0.3, median_ms=0.2), LayerTime(name="copy", average_ms=0.1)
    )
    found = device_layers(timed, network, "jetson-agx-orin-64gb", "trtexec")
    assert found is not None
    conv, copy = found["layers"]
    assert (conv["kind"], conv["precision"], conv["ms"], conv["bytes"]) == ("Convolution", "int8", 0.2, 4096)
    assert conv["operations"] == CONV + 8 * 16 * 16
    assert conv["distance"] is not None
    assert conv["distance"] > 1
    # Of a copy the engine tells nothing, and there is no node of its name: no figure is made up.
    assert (copy["ms"], copy["operations"], copy["distance"]) == (0.1, None, None)
    assert "of the profile jetson-agx-orin-64gb" in found["roof"]["source"]
    assert found["source"].startswith("trtexec on the device")


def test_without_a_profile_there_is_no_distance(network: Path) -> None:
    found = device_layers(
        engine(LayerTime(name="conv + relu", average_ms=1.0)), network, "mine:15W", "trtexec"
    )
    assert found is not None
    assert found["layers"][0]["distance"] is None
    assert "no profile 'mine:15W'" in found["roof"]["source"]


def test_nothing_timed_is_nothing(network: Path) -> None:
    assert device_layers(engine(), network, "host-cpu", "trtexec") is None
