"""What is read of a file, and what is refused."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from small_networks import conv, network, node, residual, saved

from edgetune.errors import ArtifactError, ConfigError
from edgetune.estimates.network import node_operations, read_network


def test_shapes_are_known_and_weights_are_not_read(tmp_path: Path) -> None:
    model = residual()
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    (tmp_path / "m.data").unlink()  # nothing of it is needed
    found = read_network(tmp_path / "m.onnx")
    assert found.shape("e") == (1, 16, 8, 8)
    assert {"w1", "w2", "w3"} <= found.fixed
    assert len(found.nodes) == 8


def test_what_is_computed_from_weights_alone_does_not_run() -> None:
    nodes = [node("Transpose", "w", "t", perm=[1, 0]), node("MatMul", "x t", "y")]
    found = read_network(network(nodes, {"x": (1, 4)}, ["y"], {"w": (500, 4)}))
    assert [item.op_type for item in found.nodes] == ["MatMul"]


def test_shapes_that_are_computed_from_shapes_are_folded() -> None:
    nodes = [
        node("Shape", "x", "s"), node("Gather", "s zero", "n"), node("Unsqueeze", "n zeros", "u"),
        node("Concat", "u rest", "shape", axis=0), node("Reshape", "x shape", "y"),
    ]  # fmt: skip
    values = {"zero": np.array(0), "zeros": np.array([0]), "rest": np.array([-1])}
    found = read_network(network(nodes, {"x": (2, 3, 4)}, ["y"], values=values))
    assert found.shape("y") == (2, 12)
    assert [item.op_type for item in found.nodes] == ["Reshape"]


def test_an_open_size_is_refused_or_given() -> None:
    model = network([node("Relu", "x", "y")], {"x": ("N", 3, "H", 8)}, ["y"])
    with pytest.raises(ConfigError, match=r"'x' has no fixed size: Nx3xHx8") as caught:
        read_network(model)
    assert caught.value.hint == "say it: --shape x=1x3x224x8"
    assert read_network(model, {"x": (2, 3, 4, 8)}).shape("y") == (2, 3, 4, 8)
    assert read_network(model, {"": (1, 3, 4, 8)}).shape("y") == (1, 3, 4, 8)


@pytest.mark.parametrize("shape", [(1, 4, 4, 8), (1, 3, 4), (0, 3, 4, 8)])
def test_a_shape_that_does_not_fit_is_refused(shape: tuple[int, ...]) -> None:
    model = network([node("Relu", "x", "y")], {"x": ("N", 3, "H", 8)}, ["y"])
    with pytest.raises(ConfigError, match="does not fit"):
        read_network(model, {"x": shape})


def test_inputs_are_named() -> None:
    two = network([node("Add", "a b", "y")], {"a": ("N",), "b": ("N",)}, ["y"])
    with pytest.raises(ConfigError, match="2 inputs: a, b"):
        read_network(two, {"": (1,)})
    with pytest.raises(ConfigError, match="no input 'c'") as caught:
        read_network(two, {"c": (1,)})
    assert caught.value.hint == "its inputs: a, b"


def test_no_nodes_are_no_network(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="it has no nodes"):
        read_network(saved(network([], {"x": (1,)}, ["x"]), tmp_path))
    idle = network([node("Identity", "w", "y")], {}, ["y"], {"w": (2,)})
    with pytest.raises(ArtifactError, match="nothing in it depends on an input"):
        read_network(idle)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_network(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ArtifactError, match="not an ONNX file"):
        read_network(tmp_path / "text.onnx")
    with pytest.raises(ConfigError, match="directory"):
        read_network(tmp_path)


def test_an_operator_of_an_unknown_domain_is_no_valid_graph() -> None:
    wrong = network([node("Bent", "x", "y", domain="org.nowhere")], {"x": (2, 3)}, ["y"])
    with pytest.raises(ArtifactError, match=r"not a valid graph: .*org\.nowhere"):
        read_network(wrong)


def test_operations_of_every_node_of_a_file(tmp_path: Path) -> None:
    nodes = [
        node("QuantizeLinear", "x s zero", "q"), node("DequantizeLinear", "q s zero", "d"), conv("d", "w", "c"),
        node("Bent", "c", "b", domain="com.acme"), node("Relu", "c", "y"),
    ]  # fmt: skip
    values = {"s": np.array(0.1, np.float32), "zero": np.array(0, np.int8)}
    whole = network(nodes, {"x": (1, 4, 16, 16)}, ["y", "b"], {"w": (8, 4, 3, 3)}, values)
    found = node_operations(saved(whole, tmp_path))
    assert (found["conv_c"], found["relu_y"]) == (2 * 8 * 16 * 16 * 36, 8 * 16 * 16)
    # Q and DQ become types; of a foreign operator nothing is known.
    assert (found["quantizelinear_q"], found["bent_b"]) == (0, None)
    assert node_operations(tmp_path / "absent.onnx") == {}
    left_open = network([node("Relu", "x", "y")], {"x": ("N", 3)}, ["y"])
    assert node_operations(saved(left_open, tmp_path, "open.onnx")) == {}
