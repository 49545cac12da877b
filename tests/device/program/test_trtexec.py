"""Engines by trtexec, from the first command to the last number, against a stand-in for every version."""

import json
import runpy
import stat
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetune.device.program import trtexec
from edgetune.device.program.plan import Build
from edgetune.device.program.problem import Problem
from edgetune.device.program.trtexec_commands import dotted
from edgetune.device.program.trtexec_failures import OutOfMemory

# A process for each run of trtexec.
pytestmark = pytest.mark.slow

STANDIN = runpy.run_path(str(Path(__file__).resolve().parents[1] / "standin_trtexec.py"))
VERSIONS = [(8, 5, 2), (10, 3, 0), (10, 16, 2), (11, 1, 0)]
ODD = 'conv "1"\\'


def network(quantized: bool = False, output: str = "logits") -> bytes:
    """A small classifier; a layer's name is such as breaks JSON."""
    noise = np.random.default_rng(1)
    weights = {
        "w": noise.normal(size=(4, 3, 3, 3)).astype(np.float32),
        "v": noise.normal(size=(4, 5)).astype(np.float32),
        "s": np.float32(0.02),
        "z": np.int8(0),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], ODD, pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["g"], "pool"),
        helper.make_node("Flatten", ["g"], ["f"], "flatten"),
        helper.make_node("MatMul", ["f", "v"], [output], "fc"),
    ]
    if quantized:
        nodes[0].input[0] = "xd"
        nodes.insert(0, helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"], "dq"))
        nodes.insert(0, helper.make_node("QuantizeLinear", ["input", "s", "z"], ["xq"], "q"))
    else:
        nodes[0].input[0] = "input"
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, 5])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


class Bench:
    """A folder with a network and a trtexec."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def trtexec(self, version: tuple[int, ...], fault: str = "", **environment: str) -> str:
        environment = {"STANDIN_TRTEXEC_FAULT": fault, **environment}
        return STANDIN["install"](self.folder / "bin", dotted(version), **environment)

    def job(self, version: tuple[int, ...], quantized: bool = True, **change: Any) -> Build:
        path = self.folder / "it's a network.onnx"
        path.write_bytes(network(quantized))
        typing = "strong" if version >= (10, 12) else "weak"
        job = Build("int8", str(path), str(self.folder / "int8.plan"), "int8", typing, 512)
        return job._replace(**change)

    def built(self, version: tuple[int, ...], **environment: str) -> str:
        job = self.job(version)
        trtexec.build(self.trtexec(version, **environment), job, version)
        return job.plan

    def left(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()} - {"bin", "it's a network.onnx"}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    # What the list of inputs cannot carry.
    folder = tmp_path / "a, b: 'c'"
    folder.mkdir()
    return Bench(folder)


@pytest.mark.parametrize("version", VERSIONS, ids=dotted)
def test_builds_runs_and_times(bench: Bench, version: tuple[int, ...]) -> None:
    path = bench.trtexec(version)
    assert trtexec.version_of(path) == version
    job = bench.job(version, timing_cache=str(bench.folder / "cache"), optimization_level=2)
    told = trtexec.build(path, job, version)
    assert told["plan_bytes"] == Path(job.plan).stat().st_size > 0
    assert told["seconds"] > 0
    assert ODD in {layer["Name"] for layer in json.loads(told["layers"], strict=False)["Layers"]}
    late = ["optimization level 2: levels begin with TensorRT 8.6"] if version < (8, 6) else []
    assert told["messages"][:-1] == late
    assert told["messages"][-1].startswith(f"Could not read timing cache from: {job.timing_cache}.partial")
    assert bench.left() == {"int8.plan", "int8.plan.log", "cache"}
    assert trtexec.build(path, job, version)["messages"] == late, "the cache is taken"

    given = np.random.default_rng(2).uniform(-1, 1, (1, 3, 8, 8)).astype(np.float32)
    (bench.folder / "x.bin").write_bytes(given.tobytes())
    out = trtexec.outputs(path, job.plan, version, {"input": "x.bin"}, str(bench.folder))
    session = ort.InferenceSession(Path(job.onnx).read_bytes(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"input": given})
    assert [*out] == ["logits"]
    np.testing.assert_allclose(out["logits"], expected[0], rtol=1e-5)

    alone, copied = (
        trtexec.times(path, job.plan, version, 1, 100, copies, str(bench.folder), queries=40)
        for copies in (False, True)
    )
    assert len(alone["compute_ms"]) == len(copied["latency_ms"]) == 40
    assert alone["compute_ms"] == alone["latency_ms"] == copied["compute_ms"]
    assert min(np.subtract(copied["latency_ms"], copied["compute_ms"])) > 0.05

    layers = trtexec.profile(path, job.plan, version, 1, str(bench.folder))["layers"]
    assert ODD in {layer["name"] for layer in layers}
    assert sum(layer["percent"] for layer in layers) == pytest.approx(100, rel=1e-4)


@pytest.mark.parametrize("version", [(10, 16, 2), (11, 1, 0)], ids=dotted)
def test_no_flag_is_passed_that_would_be_warned_of(bench: Bench, version: tuple[int, ...]) -> None:
    job = bench.job(version, quantized=False, precision="fp16")
    assert trtexec.build(bench.trtexec(version), job, version)["messages"] == []
    with pytest.raises(Problem, match="its types are left to builder flags"):
        trtexec.build(bench.trtexec(version), job._replace(typing="weak"), version)


def test_a_spread_that_the_version_warns_of(bench: Bench) -> None:
    plan = bench.built((10, 3, 0))
    told = trtexec.times(bench.trtexec((10, 3, 0)), plan, (10, 3, 0), 1, 100, True, str(bench.folder))
    assert "unstable" in told["messages"][0]


def test_fp32_and_fp16_by_82(bench: Bench) -> None:
    version = (8, 2, 1)
    for precision in ("fp16", "fp32"):
        job = bench.job(version, quantized=False, precision=precision)
        told = trtexec.build(bench.trtexec(version), job, version)
        assert told["layers"] is None
        out = trtexec.times(bench.trtexec(version), job.plan, version, 1, 1, True, str(bench.folder))
        assert len(out["latency_ms"]) == 10


def test_a_dla_gets_scales_and_its_fallbacks_are_counted(bench: Bench) -> None:
    version, path = (8, 5, 2), bench.trtexec((8, 5, 2))
    job = bench.job(version, quantized=False, dla_core=1)
    with pytest.raises(Problem) as caught:
        trtexec.build(path, job, version)
    assert caught.value.code == 3
    told = trtexec.build(path, job, version, {"input": 0.02})
    assert (told["dla_subgraphs"], told["fallback_layers"]) == (1, 3)
    assert told["fallback_names"] == ["pool", "flatten", "fc"]
    missing = [text for text in told["messages"] if text.startswith("Missing scale")]
    assert not [text for text in missing if "tensor input," in text]
    assert len(missing) == 5
    assert f"--calib={job.plan}.calibration" in told["command"]
    assert bench.left() == {"int8.plan", "int8.plan.log"}
    out = trtexec.times(path, job.plan, version, 1, 1, False, str(bench.folder), dla_core=1)
    assert len(out["compute_ms"]) == 10


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("killed", OutOfMemory, ["killed (137)", "256 MiB and optimization level 2", "swap"]),
        ("exit137", OutOfMemory, ["killed (137)", "256 MiB", "multi-user.target"]),
        ("memory", OutOfMemory, ["2168 MB", "1536 MB", "256 MiB"]),
        ("workspace", Problem, ["512 MiB is too small", "1024 MiB"]),
        ("disk", Problem, ["could not be written", "free some space"]),
        ("cut", Problem, ["cut", "free some space"]),
        ("noplan", Problem, ["wrote no engine", "int8.plan.log"]),
        ("crash", Problem, ["crashed (signal 11)", "int8.plan.log"]),
    ],
)
def test_a_failed_build_says_why_and_leaves_no_engine(
    bench: Bench, fault: str, kind: type[Problem], words: list[str]
) -> None:
    version = (10, 3, 0)
    job = bench.job(version, timing_cache=str(bench.folder / "cache"))
    (bench.folder / "int8.plan.partial").write_bytes(b"left by a run before")
    with pytest.raises(Problem) as caught:
        trtexec.build(bench.trtexec(version, fault), job, version)
    assert type(caught.value) is kind
    assert caught.value.code == 6
    assert caught.value.message.startswith("int8")
    for word in words:
        assert word in f"{caught.value.message}\n{caught.value.hint}"
    assert bench.left() == {"int8.plan.log"}
    trtexec.build(bench.trtexec(version), job, version)
    assert Path(job.plan).is_file(), "the same again succeeds"


def test_an_engine_that_was_there_outlives_a_failed_build(bench: Bench) -> None:
    version = (10, 3, 0)
    before = Path(bench.built(version)).read_bytes()
    with pytest.raises(Problem):
        trtexec.build(bench.trtexec(version, "killed"), bench.job(version), version)
    assert (bench.folder / "int8.plan").read_bytes() == before


def test_what_takes_too_long_is_ended(bench: Bench) -> None:
    version = (10, 3, 0)
    with pytest.raises(Problem, match=r"not done after 0\.3 s"):
        trtexec.build(bench.trtexec(version, "slow"), bench.job(version), version, limit_s=0.3)
    assert bench.left() == {"int8.plan.log"}


def test_a_file_that_is_no_network(bench: Bench) -> None:
    version, path = (8, 5, 2), bench.trtexec((8, 5, 2))
    job = bench.job(version)
    Path(job.onnx).write_bytes(b"no network")
    with pytest.raises(Problem, match="cannot read") as caught:
        trtexec.build(path, job, version)
    assert caught.value.code == 5
    assert "Failed to parse ONNX model from file" in caught.value.message


def test_int8_without_its_flag_says_what_the_library_says(bench: Bench) -> None:
    """What fp16 of a quantized network would come to."""
    version = (8, 5, 2)
    job = bench.job(version, precision="fp16")
    with pytest.raises(Problem, match="int8 is not configured in the builder"):
        trtexec.build(bench.trtexec(version), job, version)


def test_a_flag_that_is_not_known(bench: Bench) -> None:
    """A banner may mislead: the commands are for another version than the program's."""
    plan = bench.built((10, 3, 0))
    with pytest.raises(
        Problem, match=r"calls itself 11\.1\.0, does not know --includeDataTransfers"
    ) as caught:
        trtexec.times(bench.trtexec((10, 3, 0)), plan, (11, 1, 0), 1, 1, True, str(bench.folder))
    assert caught.value.code == 4
    with pytest.raises(
        Problem, match=r"calls itself 8\.5\.2, does not know --(int8|fp16|buildOnly)"
    ) as caught:
        trtexec.build(bench.trtexec((11, 1, 0)), bench.job((8, 5, 2)), (8, 5, 2))
    assert caught.value.code == 4


WRONG = ["version", "gpu", "foreign", "cut", "empty", "missing"]


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("version", [(8, 5, 2), (10, 3, 0), (11, 1, 0)], ids=dotted)
def test_a_plan_that_is_not_for_here(bench: Bench, version: tuple[int, ...], wrong: str) -> None:
    other = (8, 5, 3) if version == (8, 5, 2) else (10, 7, 0)
    gpu = {"STANDIN_TRTEXEC_CC": "7.2"} if wrong == "gpu" else {}
    plan = Path(bench.built(other if wrong == "version" else version, **gpu))
    if wrong == "foreign":
        plan.write_bytes(b"\x10\0\0\0{metadata}" + plan.read_bytes())
    elif wrong in ("cut", "empty"):
        plan.write_bytes(plan.read_bytes()[: 200 if wrong == "cut" else 5])
    elif wrong == "missing":
        plan.unlink()
    with pytest.raises(Problem) as caught:
        trtexec.times(bench.trtexec(version), str(plan), version, 1, 1, True, str(bench.folder))
    assert caught.value.code == 5
    both = {
        "version": ["213", "232", "8.5.2"] if version < (10,) else ["10.7.0", f"{dotted(version)}.9"],
        "gpu": ["7.2", "8.7"],
        "foreign": ["header"],
        "cut": ["cut or damaged"],
        "empty": ["cut or damaged"],
        "missing": ["no such engine"],
    }
    for word in [str(plan), *both[wrong]]:
        assert word in f"{caught.value.message}\n{caught.value.hint}"


def test_inputs_that_do_not_fit(bench: Bench) -> None:
    version, folder = (10, 3, 0), str(bench.folder)
    plan, path = bench.built(version), bench.trtexec(version)
    short = bench.folder / "short.bin"
    short.write_bytes(bytes(8))
    with pytest.raises(Problem, match="768 bytes but the file size is 8 bytes"):
        trtexec.outputs(path, plan, version, {"input": short.name}, folder)
    with pytest.raises(Problem, match='name "images"') as caught:
        trtexec.outputs(path, plan, version, {"images": short.name}, folder)
    assert caught.value.code == 5


def test_outputs_may_be_nan_and_infinite(bench: Bench) -> None:
    version = (10, 3, 0)
    plan = bench.built(version)
    told = trtexec.outputs(bench.trtexec(version, "nan"), plan, version, {}, str(bench.folder))["logits"]
    assert np.isnan(told[0])
    assert told[1:3] == [np.inf, -np.inf]
    assert np.isfinite(told[3:]).all()


@pytest.mark.parametrize("fault", ["nofile", "cutfile"])
def test_what_was_not_written_whole_is_named_and_no_older_file_is_read(bench: Bench, fault: str) -> None:
    version = (10, 3, 0)
    plan, folder = bench.built(version), str(bench.folder)
    (bench.folder / "times.json").write_text('[ { "computeMs" : 1, "latencyMs" : 1 } ]')
    with pytest.raises(Problem, match=r"times\.json"):
        trtexec.times(bench.trtexec(version, fault), plan, version, 1, 1, True, folder)
    with pytest.raises(Problem, match=r"outputs\.json"):
        trtexec.outputs(bench.trtexec(version, fault), plan, version, {}, folder)
    with pytest.raises(Problem, match=r"profile\.json"):
        trtexec.profile(bench.trtexec(version, fault), plan, version, 1, folder)
    told = trtexec.build(bench.trtexec(version, fault), bench.job(version), version)
    assert told["layers"] is None, "an engine is worth more than a list of its layers"


def test_a_timing_cache_that_is_refused_is_made_anew(bench: Bench) -> None:
    version, cache = (10, 3, 0), bench.folder / "cache"
    cache.write_bytes(b"of another device")
    job = bench.job(version, timing_cache=str(cache))
    told = trtexec.build(bench.trtexec(version), job, version)
    assert told["messages"][0] == f"{cache}: TensorRT refused it; timed anew"
    assert cache.read_bytes() != b"of another device"
    before = cache.read_bytes()
    with pytest.raises(Problem):
        trtexec.build(bench.trtexec(version, "killed"), job, version)
    assert cache.read_bytes() == before


def script(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_finds_it_on_path_then_in_the_usual_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = script(tmp_path / "usr" / "trtexec", "#!/bin/sh\n")
    found = script(tmp_path / "bin" / "trtexec", "#!/bin/sh\n")
    assert trtexec.find({"PATH": str(tmp_path / "bin")}, [usual]) == found
    assert trtexec.find({"PATH": str(tmp_path)}, [str(tmp_path / "none"), usual]) == usual
    assert trtexec.find({}, [usual]) == usual
    assert trtexec.find({}, []) is None
    monkeypatch.chdir(tmp_path)
    assert trtexec.find({"PATH": "bin"}, []) == found, "it runs in other folders"
    Path(usual).chmod(0o644)
    assert trtexec.find({}, [usual]) is None


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v8201] # trtexec --help", (8, 2, 1)),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v8602] # trtexec --help", (8, 6, 2)),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # trtexec --help", (10, 3, 0)),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v101303] [b9] # trtexec", (10, 13, 3)),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v110401] [b106] # trtexec", (11, 4, 1)),
        ("[I] TensorRT version: 11.1.0", (11, 1, 0)),
    ],
)
def test_reads_a_version(tmp_path: Path, said: str, version: tuple[int, ...]) -> None:
    assert trtexec.version_of(script(tmp_path / "trtexec", f"#!/bin/sh\necho '{said}'\n")) == version


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "#!/bin/sh\necho 'error while loading shared libraries: libnvinfer.so.8' >&2; exit 127\n",
            "libnvinfer.so.8",
        ),
        ("#!/bin/sh\n", "printed nothing"),
        ("\x7fELF of another machine", "does not start"),
    ],
)
def test_a_program_that_does_not_work(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(Problem, match=words) as caught:
        trtexec.version_of(script(tmp_path / "trtexec", text))
    assert caught.value.code == 4
    with pytest.raises(Problem):
        trtexec.build(
            script(tmp_path / "trtexec", text),
            Build("a", "a", str(tmp_path / "p"), "fp16", "weak", 1),
            (8, 5, 2),
        )


def test_what_it_calls_failed_has_failed(tmp_path: Path) -> None:
    path = script(tmp_path / "trtexec", "#!/bin/sh\necho '[E] no'\necho '&&&& FAILED TensorRT.trtexec'\n")
    with pytest.raises(Problem, match="no"):
        trtexec.times(path, "a.plan", (8, 5, 2), 1, 1, True, str(tmp_path))


def test_there_is_no_such_program(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="does not start") as caught:
        trtexec.version_of(str(tmp_path / "trtexec"))
    assert caught.value.code == 4
