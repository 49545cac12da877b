"""Loading, running and refusing networks."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgetune.engines.onnxruntime import Session, physical_cores
from edgetune.errors import ArtifactError, ConfigError


def relu_model(batch: int | str = "n", opset: int = 17) -> onnx.ModelProto:
    """y = relu(x) of [batch, 3]."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 3])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"], name="relu")], "g", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def test_describes_inputs_and_outputs() -> None:
    session = Session(relu_model().SerializeToString(), threads=1)
    assert session.threads == 1
    assert session.inputs[0].model_dump() == {"name": "x", "dtype": "float32", "shape": ("n", 3)}
    assert session.outputs[0].name == "y"


@pytest.mark.parametrize("batch", [1, 4, "n"])
@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_any_number_of_inputs_runs_through_any_batch_size(batch: int | str, count: int) -> None:
    data = np.random.default_rng(0).standard_normal((count, 3)).astype(np.float32)
    (y,) = Session(relu_model(batch).SerializeToString(), threads=1).run(data)
    np.testing.assert_array_equal(y, np.maximum(data, 0))


@pytest.mark.parametrize(
    "wrong", [np.zeros((1, 4), np.float32), np.zeros((1, 3), np.float64), np.zeros((0, 3), np.float32)]
)
def test_a_batch_that_does_not_fit_is_refused(wrong: np.ndarray) -> None:
    with pytest.raises(ConfigError, match=r"'x' takes float32 \['n', 3\]"):
        Session(relu_model().SerializeToString(), threads=1).run(wrong)


def test_several_inputs_are_named() -> None:
    model = relu_model()
    extra = helper.make_tensor_value_info("z", TensorProto.FLOAT, [1])
    model.graph.input.append(extra)
    with pytest.raises(ConfigError, match="x, z"):
        Session(model.SerializeToString(), threads=1).run(np.zeros((1, 3), np.float32))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_several_inputs_of_as_many_rows_are_cut_into_what_it_takes(count: int) -> None:
    nodes = [helper.make_node("Add", ["a", "b"], ["y"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in "aby"]
    model = helper.make_model(
        helper.make_graph(nodes, "add", values[:2], values[2:]),
        opset_imports=[helper.make_opsetid("", 17)], ir_version=8,
    )  # fmt: skip
    session = Session(model.SerializeToString())
    one = np.arange(count * 3, dtype=np.float32).reshape(count, 3)
    np.testing.assert_array_equal(session.run({"a": one, "b": 2 * one})[0], 3 * one)
    with pytest.raises(ConfigError, match="takes a, b, not a"):
        session.run({"a": one})


def test_corrupt_files_are_named(tmp_path: Path) -> None:
    whole = relu_model().SerializeToString()
    for name, content in {"cut": whole[:20], "text": b"not onnx at all", "empty": b""}.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match=f"{name}.onnx: ONNX Runtime"):
            Session(path, threads=1)
    with pytest.raises(ArtifactError, match=r"absent\.onnx"):
        Session(tmp_path / "absent.onnx")


def test_an_opset_of_the_future_is_refused() -> None:
    with pytest.raises(ArtifactError, match="opset"):
        Session(relu_model(opset=99).SerializeToString(), threads=1)


@pytest.mark.parametrize(("physical", "allowed", "expected"), [(8, 2, 2), (4, 8, 4), (None, 3, 3)])
def test_threads_keep_to_the_share_of_a_container(
    monkeypatch: pytest.MonkeyPatch, physical: int | None, allowed: int, expected: int
) -> None:
    monkeypatch.setattr("psutil.cpu_count", lambda logical: physical)
    monkeypatch.setattr("edgetune.engines.onnxruntime.cores", lambda: allowed)
    assert physical_cores() == expected
    assert Session(relu_model().SerializeToString()).threads == expected


def test_alone_runs_on_what_is_there_already() -> None:
    session = Session(relu_model(2).SerializeToString(), threads=1)
    session.alone({"x": np.ones((2, 3), np.float32)})()
