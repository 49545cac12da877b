"""From file to file: what is read, what is written, and what is refused."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgetune.engines.onnxruntime import Session
from edgetune.errors import ArtifactError, ConfigError, StageError
from edgetune.profile import Runtime
from edgetune.quant import files, large
from edgetune.quant.files import quantize_file, read, write

CPU = Runtime(opset=17, ir=8, rendering="cpu")
WEAK = Runtime(opset=17, ir=8, rendering="weak", opset_max=18)
INPUTS = [np.random.default_rng(1).standard_normal((4, 16, 8, 8)).astype(np.float32)]


@pytest.fixture
def source(tmp_path: Path, net) -> Path:  # type: ignore[no-untyped-def]
    onnx.save(convolution(net).model("conv1_out"), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def convolution(net, **more: object):  # type: ignore[no-untyped-def]
    made = net(**more)
    made.conv(made.conv("x", name="conv0"), name="conv1")
    return made


@pytest.mark.parametrize("runtime", [CPU, WEAK])
def test_the_written_file_is_what_was_compared(source: Path, tmp_path: Path, runtime: Runtime) -> None:
    into = tmp_path / "int8.onnx"
    details = quantize_file(source, into, runtime, INPUTS, INPUTS, ranges="minmax")
    assert details["rendering"] == runtime.rendering
    found = details["comparison"]
    reference = Session(source).run(INPUTS[0])[0].astype(np.float64)
    other = Session(into, exact=runtime is WEAK).run(INPUTS[0])[0]
    expected = 10 * np.log10((reference**2).sum() / ((reference - other) ** 2).sum())
    assert found["outputs"]["conv1_out"]["sqnr_db"] == pytest.approx(expected, abs=1e-4)
    assert (found["images"], found["exact"]) == (4, runtime is WEAK)


def test_excluded_nodes_and_the_path_are_in_the_message(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"net\.onnx: .*cnov0") as caught:
        quantize_file(source, tmp_path / "o", CPU, INPUTS, INPUTS, ranges="minmax", exclude=["cnov0"])
    assert "conv0" in caught.value.hint
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("opset", "runtime", "taken"),
    [
        (17, CPU, True),
        (20, CPU, True),
        (18, WEAK, True),
        (19, WEAK, False),
        (18, WEAK.model_copy(update={"opset_max": 0}), False),
    ],
)
def test_opsets_are_taken_up_to_the_runtimes(
    tmp_path: Path,
    net,
    opset: int,
    runtime: Runtime,
    taken: bool,  # type: ignore[no-untyped-def]
) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(convolution(net, opset=opset).model("conv1_out"), path)
    if taken:
        assert read(path, runtime).opset_import[0].version == opset
    else:
        with pytest.raises(
            ConfigError, match=rf"net\.onnx: opset {opset}, where this profile reads"
        ) as found:
            read(path, runtime)
        assert "opset_version=17" in found.value.hint


def test_weights_may_lie_beside_the_file(tmp_path: Path, net) -> None:  # type: ignore[no-untyped-def]
    model = convolution(net).model("conv1_out")
    path = tmp_path / "net.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="net.data", size_threshold=0)
    inside = tmp_path / "int8.onnx"
    quantize_file(path, inside, CPU, INPUTS, INPUTS, ranges="minmax")
    plain = tmp_path / "plain.onnx"
    onnx.save(model, plain)
    other = tmp_path / "other.onnx"
    quantize_file(plain, other, CPU, INPUTS, INPUTS, ranges="minmax")
    assert inside.read_bytes() == other.read_bytes()
    (tmp_path / "net.data").unlink()
    with pytest.raises(ArtifactError, match=r"net\.onnx"):
        read(path, CPU)


def test_what_does_not_fit_into_a_file_is_written_beside_it(
    tmp_path: Path,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(large, "LARGEST_BYTES", 1000)
    into = tmp_path / "int8.onnx"
    quantize_file(source, into, WEAK, INPUTS, INPUTS, ranges="minmax")
    assert (tmp_path / "int8.onnx.data").stat().st_size > 1000
    monkeypatch.undo()
    whole = tmp_path / "whole.onnx"
    quantize_file(source, whole, WEAK, INPUTS, INPUTS, ranges="minmax")
    for a, b in zip(Session(into).run(INPUTS[0]), Session(whole).run(INPUTS[0]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_is_written_is_valid(tmp_path: Path, net, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    model = convolution(net).model("conv1_out")
    model.graph.node[1].input[0] = "nobody"
    with pytest.raises(StageError, match="not valid ONNX"):
        write(model, tmp_path / "o.onnx")

    def full(*_: object, **__: object) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "fits", full)
    with pytest.raises(StageError, match="disk is full"):
        write(model, tmp_path / "o.onnx")
