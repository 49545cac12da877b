"""Building: the calls against every recorded version of the bindings, what each is asked for, every failure."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import standin_cuda
import standin_tensorrt as standin
from onnx import helper

from edgetune.device.program import bindings, cuda, files, layers
from edgetune.device.program.engine import Engine
from edgetune.device.program.plan import Build
from edgetune.device.program.problem import Problem
from edgetune.engines.onnxruntime import Session

Networks = dict[tuple[str, str], Path]

recorded = pytest.mark.skipif(not standin.RECORDINGS, reason="no recorded API in shared/tensorrt-api")
every = pytest.mark.parametrize("recording", standin.RECORDINGS, ids=lambda path: path.stem)


def at(version: str) -> Path:
    """The recording of a version."""
    found = [path for path in standin.RECORDINGS if path.stem.startswith(version)]
    if not found:
        pytest.skip(f"TensorRT {version} is not recorded in shared/tensorrt-api")
    return found[0]


def is_strong(recording: Path) -> bool:
    return tuple(int(n) for n in recording.stem.split(".")) >= (10, 12)


def job(tmp: Path, networks: Networks, precision: str = "int8", typing: str = "weak", **more: Any) -> Build:
    given = {"onnx": str(networks[precision, typing]), "plan": str(tmp / "e.plan"), "workspace_mb": 64} | more
    return Build(name=precision, precision=precision, typing=typing, **given)


def fitting(recording: Path, tmp: Path, networks: Networks, precision: str = "int8", **more: Any) -> Build:
    return job(tmp, networks, precision, "strong" if is_strong(recording) else "weak", **more)


@recorded
def test_versions_of_both_typings_are_recorded() -> None:
    versions = [path.stem for path in standin.RECORDINGS]
    assert len(versions) >= 6
    assert {"8", "10", "11"} <= {version.split(".")[0] for version in versions}
    assert {is_strong(path) for path in standin.RECORDINGS} == {True, False}


@recorded
@every
@pytest.mark.parametrize("precision", ["int8", "fp16"])
@pytest.mark.parametrize("typing", ["weak", "strong"])
def test_contract(
    recording: Path, precision: str, typing: str, networks: Networks, image: np.ndarray, tmp_path: Path
) -> None:
    trt, device = standin.load(recording), standin_cuda.Runtime()
    told: list[tuple[str, int, int]] = []
    work = job(
        tmp_path,
        networks,
        precision,
        typing,
        optimization_level=2,
        timing_cache=str(tmp_path / "timing"),
    )
    if (typing == "strong") != is_strong(recording):
        with pytest.raises(Problem, match=f"its types are .*, which TensorRT {trt.__version__} ") as refused:
            bindings.build(trt, work)
        assert refused.value.code == 3
        assert ("strong" if typing == "weak" else "weak") in refused.value.hint
        assert not Path(work.plan).exists()
        return

    found = bindings.build(trt, work, progress=lambda *step: told.append(step))

    asked = trt.world.asked
    assert asked["strong"] is (typing == "strong") is found["strongly_typed"]
    assert asked["flags"] == (
        set() if typing == "strong" else {"FP16", "INT8"} if precision == "int8" else {"FP16"}
    )
    assert (asked["pools"], asked["level"], asked["verbosity"]) == ({"WORKSPACE": 64 << 20}, 2, "DETAILED")
    assert asked["device"] == "GPU"
    assert "dla_layers" not in found
    assert bool(told) == hasattr(trt, "IProgressMonitor")
    assert all(1 <= step <= steps for _, step, steps in told)
    assert found["plan_bytes"] == Path(work.plan).stat().st_size
    assert found["tensorrt"] == trt.__version__
    assert found["timing_cache"] == "new"
    assert Path(work.timing_cache).exists()
    assert found["seconds"] >= 0
    assert found["device_memory"] == 1 << 20

    expected = Session(networks[precision, typing], threads=1, exact=True).run(image)[0]
    with Engine(trt, device, work.plan) as engine:
        assert [(t.name, t.dtype, t.shape) for t in engine.inputs] == [("x", "float32", (1, 3, 16, 16))]
        assert [(t.name, t.dtype, t.shape) for t in engine.outputs] == [("logits", "float32", (1, 5))]
        made = engine.run({"x": image.tobytes()})
        np.testing.assert_array_equal(np.frombuffer(made["logits"], np.float32), expected.ravel())
        for copies in (False, True):
            for graph in (False, True):
                query = engine.query(copies, graph)
                device.copies.update({"in": 0, "out": 0})
                assert query() > 0
                assert query() > 0
                assert device.copies == ({"in": 2, "out": 2} if copies else {"in": 0, "out": 0})
        assert engine.layers() == found["layers"]
        summary = layers.summary(engine.layers(), ["conv0", "conv1"] if precision == "int8" else ())
    assert not device.live
    if precision == "int8":
        assert summary["counts"]["int8"] >= 2
        assert summary["reformats"] >= 1
    else:
        assert summary["counts"]["fp16"] >= 6
        assert summary["reformats"] == 0
    assert summary["detailed"]
    assert summary["fallbacks"] == []


@recorded
def test_explicit_batch_is_asked_for_where_it_is_needed_and_strong_typing_where_it_is(
    networks: Networks, tmp_path: Path
) -> None:
    seen = {}
    for recording in standin.RECORDINGS:
        trt = standin.load(recording)
        bindings.build(trt, fitting(recording, tmp_path, networks))
        seen[recording.stem.split(".")[0], is_strong(recording)] = trt.world.asked["network_flags"]
    wanted = {("8", False): {"EXPLICIT_BATCH"}, ("10", False): set(), ("10", True): {"STRONGLY_TYPED"}}
    assert seen == {**wanted, ("11", True): set()}


@recorded
@every
def test_a_timing_cache_is_used_again_and_one_of_another_device_is_begun_anew(
    recording: Path, networks: Networks, tmp_path: Path
) -> None:
    cache = tmp_path / "timing"
    work = fitting(recording, tmp_path, networks, timing_cache=str(cache))

    def build(**device: Any) -> dict[str, Any]:
        return bindings.build(standin.load(recording, standin.World(**device)), work)

    assert build()["timing_cache"] == "new"
    first = cache.read_bytes()
    assert build()["timing_cache"] == "used"
    assert cache.read_bytes() != first
    refused = build(compute="11.0", model="Thor")
    assert refused["timing_cache"] == "refused"
    assert any(str(cache) in text for text in refused["messages"])
    assert b"Thor" in cache.read_bytes()
    cache.write_bytes(b"garbage")
    assert build()["timing_cache"] == "refused"
    assert build()["timing_cache"] == "used"


@recorded
def test_a_timing_cache_that_cannot_be_kept_costs_no_engine(networks: Networks, tmp_path: Path) -> None:
    work = job(tmp_path, networks, timing_cache=str(tmp_path / "missing" / "timing"))
    found = bindings.build(standin.load(at("10.3")), work)
    assert Path(work.plan).exists()
    assert any("timing cache was not kept" in text for text in found["messages"])


@recorded
def test_what_a_library_lacks_is_done_without(networks: Networks, tmp_path: Path) -> None:
    """8.5 and 8.4 are not recorded; these are 8.6 without what came later or was called otherwise."""
    lacking = ("IBuilderConfig.builder_optimization_level", "IBuilderConfig.set_memory_pool_limit")
    trt = standin.load(at("8.6"), without=lacking)
    found = bindings.build(trt, job(tmp_path, networks, optimization_level=3))
    assert any("optimization level" in text for text in found["messages"])
    assert trt.world.asked["pools"] == {}
    assert trt.world.asked["workspace"] == 64 << 20


@recorded
def test_weak_q_dq_without_int8_is_what_the_library_refuses(networks: Networks, tmp_path: Path) -> None:
    trt = standin.load(at("8.6"))
    wrong = job(tmp_path, networks, "fp16", onnx=str(networks["int8", "weak"]))
    with pytest.raises(Problem, match="int8 is not configured in the builder") as failed:
        bindings.build(trt, wrong)
    assert failed.value.code == 6
    assert not Path(wrong.plan).exists()


@recorded
@every
@pytest.mark.parametrize(
    ("call", "message", "hint"),
    [
        ("Builder", "CUDA initialization failure with error: 35", ""),
        ("create_network", "network refused", ""),
        ("build_serialized_network", "Error Code 2: OutOfMemory (Requested size was 9)", "64 MiB"),
        ("build_serialized_network", "Could not find any implementation for node conv1", "in float"),
        ("build_serialized_network", "something\nelse", ""),
    ],
)
def test_what_fails_is_a_problem_with_the_librarys_reason(
    recording: Path, call: str, message: str, hint: str, networks: Networks, tmp_path: Path
) -> None:
    work = fitting(recording, tmp_path, networks)
    Path(work.plan).write_bytes(b"the one before")
    with pytest.raises(Problem) as failed:
        bindings.build(standin.load(recording, standin.World(faults={call: message})), work)
    assert message.replace("\n", " ") in failed.value.message
    assert hint in failed.value.hint
    assert Path(work.plan).read_bytes() == b"the one before"


@recorded
def test_a_failure_is_not_blamed_on_a_refused_timing_cache(networks: Networks, tmp_path: Path) -> None:
    (tmp_path / "timing").write_bytes(b"garbage")
    trt = standin.load(at("10.3"), standin.World(faults={"build_serialized_network": "no tactic"}))
    with pytest.raises(Problem, match="no tactic") as failed:
        bindings.build(trt, job(tmp_path, networks, timing_cache=str(tmp_path / "timing")))
    assert "timing" not in failed.value.message


@recorded
def test_an_engine_that_cannot_be_inspected_is_an_engine(networks: Networks, tmp_path: Path) -> None:
    for call in ("Runtime", "deserialize_cuda_engine"):
        trt = standin.load(at("10.3"), standin.World(faults={call: "no memory left"}))
        found = bindings.build(trt, job(tmp_path, networks))
        assert found["layers"] is None
        assert any("no memory left" in text for text in found["messages"])


@recorded
@every
def test_files_that_do_not_parse(recording: Path, networks: Networks, tmp_path: Path) -> None:
    trt, path = standin.load(recording), tmp_path / "n.onnx"
    work = fitting(recording, tmp_path, networks, onnx=str(path))
    with pytest.raises(Problem, match="No such file") as failed:
        bindings.build(trt, work)
    assert failed.value.code == 5
    path.write_bytes(networks["int8", "weak"].read_bytes()[:999])
    with pytest.raises(Problem, match=f"TensorRT {trt.__version__} cannot parse it: .*damaged"):
        bindings.build(trt, work)
    model = onnx.load(networks["int8", "weak"])
    model.graph.node.append(helper.make_node("Odd", ["logits"], ["odd"], name="odd", domain="com.example"))
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    onnx.save(model, path)
    with pytest.raises(Problem, match=r"node \d+.*Plugin not found") as failed:
        bindings.build(trt, work)
    assert ("'odd'" in failed.value.message) == (
        trt.__version__ > "1" and not trt.__version__.startswith("8")
    )


@recorded
def test_a_free_batch_is_refused(networks: Networks, tmp_path: Path) -> None:
    model = onnx.load(networks["fp16", "weak"])
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    onnx.save(model, tmp_path / "free.onnx")
    with pytest.raises(Problem, match="input 'x' has no fixed shape"):
        bindings.build(standin.load(at("10.7")), job(tmp_path, networks, onnx=str(tmp_path / "free.onnx")))


@recorded
@every
def test_int8_without_an_int8_path(recording: Path, networks: Networks, tmp_path: Path) -> None:
    trt = standin.load(recording, standin.World(compute="6.2", model="TX2", fast_int8=False))
    if hasattr(trt.Builder, "platform_has_fast_int8"):
        with pytest.raises(Problem, match="no INT8 path") as failed:
            bindings.build(trt, fitting(recording, tmp_path, networks))
        assert "FP16" in failed.value.hint
    assert bindings.build(trt, fitting(recording, tmp_path, networks, "fp16"))["plan_bytes"]


@recorded
@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"precision": "int4"}, "int4"),
        ({"typing": "none"}, "none"),
        ({"optimization_level": 6}, "not 0 to 5"),
        ({"optimization_level": -1}, "not 0 to 5"),
    ],
)
def test_wrong_jobs(more: dict[str, Any], match: str, networks: Networks, tmp_path: Path) -> None:
    with pytest.raises(Problem, match=match) as failed:
        bindings.build(standin.load(at("10.3")), job(tmp_path, networks)._replace(**more))
    assert failed.value.code == 3


@recorded
def test_a_tensorrt_before_8_5_is_refused(networks: Networks, tmp_path: Path) -> None:
    with pytest.raises(Problem, match=r"8\.4\.1 is older than 8\.5") as failed:
        bindings.build(SimpleNamespace(__version__="8.4.1"), job(tmp_path, networks))
    assert failed.value.code == 4


@recorded
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupt_from_the_progress_cancels_and_comes_through(
    error: type[BaseException], networks: Networks, tmp_path: Path
) -> None:
    def progress(phase: str, step: int, steps: int) -> None:
        told.append(step)
        raise error("stop")

    told: list[int] = []
    work = job(tmp_path, networks)
    with pytest.raises(error, match="stop"):
        bindings.build(standin.load(at("10.3")), work, progress)
    assert told == [1]
    assert not Path(work.plan).exists()


@recorded
def test_messages_are_told_once_and_an_interrupt_from_a_listener_comes_through(
    networks: Networks, tmp_path: Path
) -> None:
    heard: list[str] = []
    world = standin.World(faults={"build_serialized_network": "bad"})
    trt = standin.load(at("10.3"), world)
    with pytest.raises(Problem, match="bad"):
        bindings.build(trt, job(tmp_path, networks), say=heard.append)
    assert heard == ["bad"]
    with pytest.raises(Problem) as failed:  # what was said before is not said again
        bindings.build(trt, job(tmp_path, networks), say=heard.append)
    assert failed.value.message.count("bad") == 1
    assert len(heard) == 2

    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bindings.build(trt, job(tmp_path, networks), say=interrupt)
    world.faults.clear()
    assert bindings.build(trt, job(tmp_path, networks), say=heard.append)["plan_bytes"]


@recorded
def test_a_full_disk_leaves_no_half_plan(
    networks: Networks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    work = job(tmp_path, networks)
    with pytest.raises(Problem, match="No space left on device"):
        bindings.build(standin.load(at("10.3")), work)
    assert not Path(work.plan).exists()


class Importing:
    """Finds a module `tensorrt` that notes that it was imported."""

    def __init__(self, error: Exception | None) -> None:
        self.imported, self.error = 0, error

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name == "tensorrt":
            self.imported += 1
            if self.error:
                raise self.error
            return importlib_spec(name)
        return None


def importlib_spec(name: str) -> Any:
    from importlib.machinery import ModuleSpec

    class Loader:
        def create_module(self, spec: Any) -> None: ...
        def exec_module(self, module: Any) -> None:
            module.__version__ = "10.3.0"

    return ModuleSpec(name, Loader())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "error", [None, ImportError("libnvinfer.so.10"), AttributeError("np.bool"), OSError("x")]
)
@pytest.mark.parametrize("driver", [True, False])
def test_tensorrt_is_imported_only_after_the_driver_has_answered(
    driver: bool, error: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    finder, said = Importing(error), []
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.setattr(cuda, "ask", lambda: ({"name": "Orin"}, "") if driver else (None, "no CUDA driver"))
    trt = bindings.load(said.append)
    sys.modules.pop("tensorrt", None)
    assert finder.imported == int(driver)
    assert (trt is not None) == (driver and error is None)
    if trt is None:
        assert said == ["no CUDA driver"] if not driver else str(error) in said[0]
    else:
        assert bindings.version_of(trt) == (10, 3, 0)
        assert not said


@pytest.mark.parametrize(
    ("text", "version"),
    [("8.5.2.2", (8, 5, 2, 2)), ("10.16.1.11", (10, 16, 1, 11)), ("11.4.0.106+cuda13", (11, 4, 0, 106))],
)
def test_versions_are_read(text: str, version: tuple[int, ...]) -> None:
    assert bindings.version_of(SimpleNamespace(__version__=text)) == version
