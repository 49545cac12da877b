"""Both tools do the same work; the bindings are TensorRT's recorded API, executed by ONNX Runtime."""

import json
import re
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import standin_cuda
import standin_tensorrt as standin
from hypothesis import given
from hypothesis import strategies as st

from edgetune.device.program import plan, tools, work
from edgetune.device.program.plan import Build
from edgetune.device.program.problem import Problem
from edgetune.profile import load_target

Bundled = Callable[..., Path]
recorded = pytest.mark.skipif(not standin.RECORDINGS, reason="no recorded API in shared/tensorrt-api")
every = pytest.mark.parametrize("recording", standin.RECORDINGS, ids=lambda path: path.stem)
FOUND: dict[str, Any] = {
    "module": {"model": "Jetson Orin Nano", "compute_capability": "8.7"},
    "gpu": {"sms": 8},
    "l4t": "36.4.3",
    "cuda": "12.6",
    "power_mode": {"id": 0, "name": "15W"},
}


def strong(recording: Path) -> bool:
    return tuple(int(part) for part in recording.stem.split(".")) >= (10, 12)


def profile(recording: Path) -> str:
    return "jetson-orin-nano-8gb" + ("@7.2" if strong(recording) else "@6.2")


def done(folder: Path, tool: work.Tool, said: list[str]) -> dict[str, Any]:
    (folder / plan.RESULTS).mkdir(exist_ok=True)
    return work.do(plan.load(folder), tool, FOUND, [], said.append)


@recorded
@every
def test_the_bindings_do_the_whole_work(
    bundled: Bundled, quick: Callable[[Path], None], recording: Path
) -> None:
    folder = bundled(profile(recording))
    quick(folder)
    said: list[str] = []
    cuda = standin_cuda.Runtime()
    found = done(folder, tools.Bindings(standin.load(recording), lambda: cuda, said.append), said)
    assert found["finished"], found["errors"]
    assert (found["tool"], found["tensorrt"].split(".")[0]) == (
        "TensorRT's Python bindings",
        recording.stem.split(".")[0],
    )
    number = plan.load(folder).samples.number
    for name in ("fp16", "int8"):
        engine = found["engines"][name]
        assert engine["outputs"]["samples"] == number
        outputs = np.fromfile(folder / f"results/{name}.output0.bin", "<f4").reshape(number, 3)
        expected = np.fromfile(folder / f"{name}.expected.bin", "<f4").reshape(number, 3)
        np.testing.assert_allclose(outputs, expected, rtol=2e-2, atol=2e-2)
        assert engine["build"]["layers"]["counts"]
        facts = json.loads((folder / f"results/{name}.plan.json").read_text())
        assert (facts["gpu"], facts["sms"], facts["power_mode"]) == ("Jetson Orin Nano", 8, "15W")
        assert {block["name"] for block in found["timing"]["compute"]["blocks"]} == {"fp16", "int8"}
        listed = {layer["name"] for layer in engine["build"]["layers"]["layers"]}
        assert engine["profile"]["count"] > 0
        # Names are the engine's own, so that both can be laid side by side.
        assert {layer["name"] for layer in engine["profile"]["layers"]} & listed
        assert all(layer["median_ms"] > 0 for layer in engine["profile"]["layers"])
    assert not cuda.live, "everything is given back"
    said.clear()
    again = done(folder, tools.Bindings(standin.load(recording), lambda: cuda, said.append), said)
    assert sum("done before" in line for line in said) == 8
    assert again["timing"] == found["timing"]


@pytest.fixture
def dla_profile(tmp_path: Path) -> str:
    """AGX Orin with a JetPack that brings TensorRT 11.4.1, which none that ships does yet."""
    content = load_target("jetson-agx-orin-64gb@7.2").profile.model_dump(mode="json")
    content["jetpacks"] = {"9": content["jetpacks"]["7.2"] | {"tensorrt": "11.4.1"}}
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps(content | {"default_jetpack": "9", "name": "mine"}))
    return str(path)


@recorded
@every
@pytest.mark.parametrize("apart", [False, True], ids=["here", "aside"])
def test_the_bindings_do_the_whole_work_on_a_dla(
    bundled: Bundled, quick: Callable[[Path], None], recording: Path, dla_profile: str, apart: bool
) -> None:
    version = tuple(int(part) for part in recording.stem.split("."))
    folder = bundled(dla_profile if strong(recording) else "jetson-agx-orin-64gb@6.2", dla_core=1)
    quick(folder)
    said: list[str] = []
    cuda, trt = standin_cuda.Runtime(), standin.load(recording, standin.World(dla_cores=2))
    loaded = plan.load(folder)

    def aside(job: Build) -> int:
        tools.build_one(trt, loaded, job.name, str(job.workspace_mb), "", lambda _: None)
        return 0

    tool = tools.Bindings(trt, lambda: cuda, said.append, aside if apart else None)
    found = done(folder, tool, said)
    if (10, 8) <= version < (11, 4):
        assert set(found["errors"]) == {"build-fp16", "build-int8"}
        assert all("does not drive a DLA" in error["message"] for error in found["errors"].values())
        return
    assert found["finished"], found["errors"]
    number = loaded.samples.number
    for name in ("fp16", "int8"):
        built = found["engines"][name]["build"]
        # Types in the graph put Casts around it.
        assert [name for name in built["fallback_names"] if "Cast" not in name] == ["pool", "flat"]
        assert built["fallback_layers"] == len(built["fallback_names"])
        assert built["dla_layers"] >= 2
        facts = json.loads((folder / f"results/{name}.plan.json").read_text())
        assert facts["dla_core"] == 1
        outputs = np.fromfile(folder / f"results/{name}.output0.bin", "<f4").reshape(number, 3)
        expected = np.fromfile(folder / f"{name}.expected.bin", "<f4").reshape(number, 3)
        np.testing.assert_allclose(outputs, expected, atol=1e-2 * np.abs(expected).max())
    assert trt.world.asked["runtime_core"] == 1
    assert (trt.world.asked["calibration"] is not None) == (version < (10, 8))
    missing = [text for text in found["engines"]["int8"]["build"]["messages"] if "Missing scale" in text]
    assert not [text for text in missing if re.search("tensor (input|c|r),", text)]
    assert found["timing"]["compute"]["cuda_graph"] == {"fp16": False, "int8": False}
    assert not cuda.live


@recorded
def test_a_build_aside_that_is_killed_is_tried_with_less(bundled: Bundled) -> None:
    folder = bundled()
    loaded = plan.load(folder)
    loaded.results.mkdir()
    trt = standin.load(next(path for path in standin.RECORDINGS if path.stem.startswith("10.3")))
    tried: list[int] = []

    def aside(job: Build) -> int:
        tried.append(job.workspace_mb)
        if len(tried) < 3:
            return -9
        level = "" if job.optimization_level is None else str(job.optimization_level)
        tools.build_one(trt, loaded, job.name, str(job.workspace_mb), level, lambda _: None)
        return 0

    said: list[str] = []
    tool = tools.Bindings(trt, standin_cuda.Runtime, said.append, aside)
    value = tool.build(loaded.builds[1], FOUND, loaded)
    assert tried == sorted(tried, reverse=True)
    assert len(set(tried)) == 3
    assert value["workspace_mb"] == tried[-1]
    assert sum("trying again with" in line for line in said) == 2
    assert not list(loaded.results.glob(".built-*"))


@recorded
@pytest.mark.parametrize(("code", "message"), [(-9, "killed"), (1, "ended with 1")])
def test_a_build_aside_that_fails_says_why(bundled: Bundled, code: int, message: str) -> None:
    loaded = plan.load(bundled())
    loaded.results.mkdir()
    trt = standin.load(standin.RECORDINGS[0])
    tool = tools.Bindings(trt, standin_cuda.Runtime, lambda _: None, lambda _: code)
    with pytest.raises(Problem, match=message) as caught:
        tool.build(loaded.builds[0], FOUND, loaded)
    assert caught.value.hint


@recorded
def test_an_engine_of_another_tensorrt_is_not_loaded(bundled: Bundled, quick: Callable[[Path], None]) -> None:
    folder = bundled()
    quick(folder)
    one, other = (path for path in standin.RECORDINGS if path.stem in ("10.3.0", "10.7.0"))
    said: list[str] = []
    assert done(folder, tools.Bindings(standin.load(one), standin_cuda.Runtime, said.append), said)[
        "finished"
    ]
    loaded = plan.load(folder)
    tool = tools.Bindings(standin.load(other), standin_cuda.Runtime, said.append)
    with pytest.raises(Problem, match=r"built by TensorRT 10\.3\.0, here is 10\.7\.0"):
        tool.times(list(loaded.builds), loaded, copies=False)
    elsewhere = tools.Bindings(standin.load(one), lambda: standin_cuda.Runtime(compute="7.2"), said.append)
    with pytest.raises(
        Problem, match=r"built on Jetson Orin Nano of compute capability 8\.7, here is one of 7\.2"
    ):
        next(elsewhere.outputs(loaded.builds[0], loaded, []))


@given(st.lists(st.floats(width=16, allow_nan=False), max_size=20))
def test_half_precision_is_widened_without_change(values: list[float]) -> None:
    found = array("f")
    found.frombytes(tools.as_float32(np.array(values, np.float16).tobytes(), "float16"))
    assert list(found) == values
    assert tools.as_float32(found.tobytes(), "float32") == found.tobytes()


def test_integers_are_no_logits() -> None:
    with pytest.raises(Problem, match="int32, where logits are floats"):
        tools.as_float32(b"0000", "int32")
