"""Loading and running: what fits, what does not, and that everything is given back."""

import gc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import standin_cuda
import standin_tensorrt as standin
from onnx import TensorProto, helper

from edgetune.device.program import bindings, engine
from edgetune.device.program.engine import Engine
from edgetune.device.program.plan import Build, Tensor
from edgetune.device.program.problem import Problem

Networks = dict[tuple[str, str], Path]

pytestmark = pytest.mark.skipif(not standin.RECORDINGS, reason="no recorded API in shared/tensorrt-api")
every = pytest.mark.parametrize("recording", standin.RECORDINGS, ids=lambda path: path.stem)


def is_strong(recording: Path) -> bool:
    return tuple(int(n) for n in recording.stem.split(".")) >= (10, 12)


@pytest.fixture
def built(networks: Networks, tmp_path: Path) -> Any:
    """Builds with a version on a device, and returns the module and the plan."""

    def build(recording: Path, onnx_path: Path | None = None, **device: Any) -> tuple[Any, str]:
        trt = standin.load(recording, standin.World(**device))
        typing = "strong" if is_strong(recording) else "weak"
        path = onnx_path or networks["fp16", typing]
        plan = str(tmp_path / f"{recording.stem}.plan")
        bindings.build(trt, Build("fp16", str(path), plan, "fp16", typing, 64))
        return trt, plan

    return build


@every
def test_a_plan_of_another_version_is_refused_with_both_named(recording: Path, built: Any) -> None:
    _, plan = built(recording)
    others = [path for path in standin.RECORDINGS if path != recording]
    assert len(others) >= 5
    for other in others:
        device = standin_cuda.Runtime()
        with pytest.raises(Problem) as failed:
            Engine(standin.load(other), device, plan)
        assert failed.value.code == 5
        assert plan in failed.value.message
        assert "build it here" in failed.value.hint
        assert other.stem in failed.value.message
        assert not device.live
        if not other.stem.startswith("8"):  # 8.x does not tell who built it
            assert f"built by TensorRT {recording.stem}" in failed.value.message


@every
def test_a_plan_of_another_gpu_is_refused_with_both_named(recording: Path, built: Any) -> None:
    _, plan = built(recording, compute="7.2", model="Xavier")
    with pytest.raises(Problem, match=r"compute capability 7\.2, here is 8\.7"):
        Engine(standin.load(recording), standin_cuda.Runtime(compute="8.7"), plan)


@every
def test_another_module_of_the_same_capability_is_a_warning(recording: Path, built: Any) -> None:
    _, plan = built(recording)
    said: list[str] = []
    with Engine(
        standin.load(recording, standin.World(model="Orin Nano")), standin_cuda.Runtime(), plan, said.append
    ):
        assert len(said) == 1
        assert "different models of devices" in said[0]


@every
def test_what_is_no_plan(recording: Path, built: Any, tmp_path: Path) -> None:
    trt, plan = built(recording)
    content = Path(plan).read_bytes()
    for damaged, match in (
        (content[:-9], "does not take it"),
        (content[:20], "does not take it"),
        (b"", "no plain plan"),
        (b"PK\3\4" + content, "no plain plan"),
        ((70).to_bytes(4, "little") + b'{"task": "detect"}' + content, "as Ultralytics writes it"),
    ):
        path = tmp_path / "damaged.plan"
        path.write_bytes(damaged)
        with pytest.raises(Problem, match=match) as failed:
            Engine(trt, standin_cuda.Runtime(), str(path))
        assert failed.value.code == 5
    with pytest.raises(Problem, match="No such file"):
        Engine(trt, standin_cuda.Runtime(), str(tmp_path / "none.plan"))


@every
@pytest.mark.parametrize(
    ("call", "match"),
    [
        ("Runtime", "did not create a Runtime: CUDA initialization failure"),
        ("create_execution_context", "could not prepare it for running: CUDA initialization failure"),
    ],
)
def test_what_fails_while_loading(recording: Path, call: str, match: str, built: Any) -> None:
    _, plan = built(recording)
    trt = standin.load(recording, standin.World(faults={call: "CUDA initialization failure with error: 35"}))
    device = standin_cuda.Runtime()
    with pytest.raises(Problem, match=match):
        Engine(trt, device, plan)
    assert not device.live


def test_an_object_that_tensorrt_made_without_cuda_is_neither_used_nor_destroyed() -> None:
    destroyed = []

    class Deadly:
        def __del__(self) -> None:
            destroyed.append(self)

    # As TensorRT 11.4 says it where the driver is older than its CUDA.
    said = (
        "createInferRuntime: Error Code 6: API Usage Error (CUDA initialization failure with error: 35 In x)"
    )
    with pytest.raises(Problem, match="CUDA initialization failure with error: 35") as failed:
        engine.created(SimpleNamespace(errors=[said]), "Runtime", Deadly)
    assert (failed.value.code, "driver" in failed.value.hint) == (4, True)
    del failed
    gc.collect()
    assert destroyed == []
    made = engine.created(SimpleNamespace(errors=["something else"]), "Runtime", Deadly)
    del made
    assert len(destroyed) == 1


def test_memory_that_runs_out_while_loading_is_given_back(built: Any) -> None:
    trt, plan = built(standin.RECORDINGS[0])
    for number in range(1, 5):
        device = standin_cuda.Runtime(fail_at=number)
        with pytest.raises(Problem, match="out of memory"):
            Engine(trt, device, plan)
        assert not device.live
        assert device.allocations == number


def test_closing_goes_on_where_cuda_refuses(built: Any) -> None:
    class Broken(standin_cuda.Runtime):
        def free(self, address: int) -> None:
            super().free(address)
            raise Problem("an illegal memory access")

    trt, plan = built(standin.RECORDINGS[0])
    device = Broken()
    with Engine(trt, device, plan):
        assert device.live
    assert not device.live


@every
def test_a_failed_inference(recording: Path, built: Any, image: np.ndarray) -> None:
    trt, plan = built(recording)
    device = standin_cuda.Runtime()
    with Engine(trt, device, plan) as made:
        once = made.query(copies=False)
        trt.world.faults["execute_async_v3"] = "Error Code 1: Cuda Runtime (an illegal memory access)"
        for call in (once, lambda: made.run({"x": image.tobytes()})):
            with pytest.raises(Problem, match=r"could not be run: .*illegal memory access"):
                call()
        with pytest.raises(Problem):
            made.query(copies=True, graph=True)
    made.close()  # twice does no harm
    assert not device.live


def test_feeds_that_do_not_fit(built: Any) -> None:
    trt, plan = built(standin.RECORDINGS[0])
    with Engine(trt, standin_cuda.Runtime(), plan) as made:
        for feed, match in (
            ({}, "takes x, not nothing"),
            ({"y": b""}, "takes x, not y"),
            ({"x": b"123"}, r"takes 3072 bytes \(float32 1x3x16x16\), not 3"),
        ):
            with pytest.raises(Problem, match=match) as failed:
                made.run(feed)
            assert failed.value.code == 3


@every
def test_several_inputs_and_outputs_of_several_types(recording: Path, built: Any, tmp_path: Path) -> None:
    wide, small = (1, 4, 4, 3), (1, 7)
    nodes = [
        helper.make_node("Cast", ["frame"], ["whole"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["whole"], ["mean"], name="mean", keepdims=0),
        helper.make_node("Cast", ["half"], ["wide"], name="widen", to=TensorProto.FLOAT),
        helper.make_node("Add", ["wide", "mean"], ["sum"], name="add"),
        helper.make_node("ArgMax", ["sum"], ["best"], name="best", axis=1),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "net",
        [info("frame", TensorProto.UINT8, wide), info("half", TensorProto.FLOAT16, small)],
        [info("sum", TensorProto.FLOAT, small), info("best", TensorProto.INT64, (1, 1))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "two.onnx")
    trt, plan = built(recording, tmp_path / "two.onnx")
    noise = np.random.default_rng(0)
    frame = noise.integers(0, 256, wide, dtype=np.uint8)
    half = noise.standard_normal(small).astype(np.float16)
    whole = "int64" if hasattr(trt.DataType, "INT64") else "int32"
    with Engine(trt, standin_cuda.Runtime(), plan) as made:
        assert {t.name: t.dtype for t in made.inputs + made.outputs} == {
            **{"frame": "uint8", "half": "float16"},
            **{"sum": "float32", "best": whole},
        }
        found = made.run({"half": half.tobytes(), "frame": frame.tobytes()})
    expected = half.astype(np.float32) + frame.astype(np.float32).mean()
    np.testing.assert_allclose(np.frombuffer(found["sum"], np.float32), expected[0], rtol=1e-5)
    assert np.frombuffer(found["best"], whole).tolist() == [int(expected.argmax())]


def test_device_memory_by_either_name_or_none() -> None:
    class Old:
        device_memory_size = 5

    class Both(Old):
        device_memory_size_v2 = 7

    assert [engine.device_memory(made) for made in (Old(), Both(), object())] == [5, 7, None]


@pytest.mark.parametrize(("dtype", "size"), [("float32", 24), ("float16", 12), ("uint8", 6), ("int64", 48)])
def test_sizes(dtype: str, size: int) -> None:
    assert engine.size_of(Tensor("x", dtype, (1, 2, 3))) == size
