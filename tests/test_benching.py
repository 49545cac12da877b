"""The verb bench: any files, several at once; what is refused, judged, shown and written."""

import json
import os
import runpy
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from typer.testing import CliRunner

from edgetune import cli
from edgetune.errors import ArtifactError, ConfigError, EdgetuneError, MissingTool
from edgetune.latency import load, summary
from edgetune.latency.protocol import PRESETS, Preset


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "quick", Preset(0.02, 20, 6, 0.05, 1.0))
    # By its rules, but for the time.
    monkeypatch.setitem(PRESETS, "mlperf", Preset(0.05, 64, 6, 0.05, 5.0, offline_samples=64))


def network(path: Path, channels: int = 4, batch: int | str = 1, side: int | str = 8) -> Path:
    """A convolution and a mean, three classes."""
    weights = np.random.default_rng(0).normal(size=(channels, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
            helper.make_node("GlobalAveragePool", ["c"], ["y"], "mean"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, side, side])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, channels, 1, 1])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def bench(tmp_path: Path) -> Any:
    """Runs the verb; returns the exit code and what it printed."""

    def run(*words: str | Path) -> tuple[int, str]:
        out = ["-o", str(tmp_path / "bench"), "-q"]
        done = CliRunner().invoke(cli.app, ["bench", *map(str, words), *out])
        if isinstance(done.exception, EdgetuneError):
            raise done.exception
        return done.exit_code, done.stdout

    return run


def test_two_files_are_ranked_and_drawn(bench: Any, tmp_path: Path) -> None:
    small, large = network(tmp_path / "small.onnx"), network(tmp_path / "large.onnx", 256, side=8)
    code, said = bench(small, large, "--layers")
    assert code == 0
    assert "seeded random" in said
    assert "is the fastest" in said or "no winner" in said
    assert "costliest of" in said
    page = (tmp_path / "bench" / "bench.html").read_text()
    assert page.count("<svg") >= 3
    assert "://" not in page.replace("http://www.w3.org", "")
    for picture in ("latency.svg", "layers.svg", "layers1.svg"):
        drawn = (tmp_path / "bench" / picture).read_text()
        assert drawn.startswith("<svg xmlns=")
        assert "var(--" not in drawn
    content = json.loads((tmp_path / "bench" / "bench.json").read_text())
    layers = content["latency"]["layers"]["large.onnx"]
    conv = next(layer for layer in layers["layers"] if layer["kind"] == "Conv")
    assert conv["operations"] >= 2 * 256 * 64 * 27
    assert conv["distance"] > 0
    assert "measured here" in layers["roof"]["source"]


def test_json_has_all(bench: Any, tmp_path: Path) -> None:
    code, said = bench(network(tmp_path / "m.onnx"), "--json")
    found = json.loads(said)
    assert code == found["exit_code"] == 0
    latency = found["latency"]
    assert latency["ranking"] is None
    assert latency["models"]["m.onnx"]["inputs"] == {"x": [1, 3, 8, 8]}
    assert latency["load_average"] is None or latency["load_average"] >= 0
    assert latency["compute"] is None, "nothing is copied on a CPU"


def test_images_are_timed_from_the_file_on(bench: Any, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.jpg")
    model = network(tmp_path / "m.onnx", side="S")
    ways = ("--data", tmp_path / "photos", "--preprocess", "zero-one", "--resize", "16", "--crop", "12")
    _, said = bench(model, *ways, "--json")
    latency = json.loads(said)["latency"]
    assert latency["models"]["m.onnx"]["inputs"] == {"x": [1, 3, 12, 12]}
    whole = latency["end_to_end"]["models"]["m.onnx"]
    # Decoding comes on top.
    assert whole["min_ms"] > latency["models"]["m.onnx"]["min_ms"]
    with pytest.raises(ConfigError, match="nothing says how images become inputs"):
        bench(model, "--data", tmp_path / "photos")


def test_open_sizes_are_asked_for(bench: Any, tmp_path: Path) -> None:
    model = network(tmp_path / "m.onnx", batch="N", side="S")
    with pytest.raises(ConfigError, match="free dimensions: S") as caught:
        bench(model)
    assert "--shape x=1x3x224x224" in caught.value.hint
    _, said = bench(model, "--shape", "x=2x3x16x16", "--json")
    assert json.loads(said)["latency"]["batch"] == 2
    _, said = bench(network(tmp_path / "n.onnx", batch="N"), "--batch", "4", "--json")
    assert json.loads(said)["latency"]["batch"] == 4


def test_an_input_without_a_shape_is_no_single_number(bench: Any, tmp_path: Path) -> None:
    model = onnx.load(network(tmp_path / "m.onnx"))
    model.graph.input[0].type.tensor_type.ClearField("shape")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ConfigError, match="input 'x' has no shape in the file") as caught:
        bench(tmp_path / "m.onnx")
    assert "--shape x=1x3x224x224" in caught.value.hint
    _, said = bench(tmp_path / "m.onnx", "--shape", "x=1x3x8x8", "--json")
    assert json.loads(said)["latency"]["models"]["m.onnx"]["inputs"] == {"x": [1, 3, 8, 8]}


def test_a_network_of_no_nodes_is_refused(bench: Any, tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])
    empty = helper.make_graph([], "empty", [value], [value])
    onnx.save(helper.make_model(empty, ir_version=8), tmp_path / "empty.onnx")
    with pytest.raises(ArtifactError, match="no nodes: there is nothing to time"):
        bench(tmp_path / "empty.onnx")


def test_a_jetson_is_not_timed_here(bench: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="says nothing about latency on Jetson Orin Nano") as caught:
        bench(network(tmp_path / "m.onnx"), "--profile", "jetson-orin-nano-8gb")
    assert "--on ssh://" in caught.value.hint


def test_an_engine_without_tensorrt_says_what_it_was_built_for(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "int8.plan").write_bytes(b"engine")
    facts = {"tensorrt": "10.3.0", "gpu": "Jetson Orin Nano"}
    (tmp_path / "int8.plan.json").write_text(json.dumps(facts))
    with pytest.raises(
        MissingTool, match=r"built by TensorRT 10\.3\.0 on Jetson Orin Nano, and there is no Tens"
    ):
        bench(tmp_path / "int8.plan", network(tmp_path / "m.onnx"))


def test_an_engine_is_timed_by_trtexec_where_the_bindings_are_not(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    standin = runpy.run_path(str(Path(__file__).parent / "device/standin_trtexec.py"))
    tool = standin["install"](tmp_path / "bin", "10.3.0")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    model, plan = network(tmp_path / "m.onnx"), tmp_path / "fp16.plan"
    built = [tool, f"--onnx={model}", f"--saveEngine={plan}", "--fp16", "--skipInference"]
    subprocess.run(built, check=True, capture_output=True)
    code, said = bench(plan, "--profile", "jetson-orin-nano-8gb", "--layers", "--json")
    latency = json.loads(said)["latency"]
    assert (code, latency["engine"]) == (0, "TensorRT 10.3.0 (trtexec)")
    timed, alone = latency["models"]["fp16.plan"], latency["compute"]["models"]["fp16.plan"]
    assert timed["count"] >= 20
    # The stand-in's copies take 0.09 ms.
    assert timed["p50_ms"] - alone["p50_ms"] == pytest.approx(0.09375, abs=0.001)
    conv, mean = latency["layers"]["fp16.plan"]["layers"]
    assert (conv["name"], conv["kind"], conv["precision"], mean["ms"]) == ("conv", "Conv", "fp16", 0.02)
    assert conv["bytes"]
    # Nothing here tells of which network: no operations are made up.
    assert (conv["operations"], conv["distance"]) == (None, None)
    assert latency["notes"] == ["fp16.plan: the operations of its layers are not known"]
    page = (tmp_path / "bench" / "bench.html").read_text()
    assert "The costliest layers of" in page
    with pytest.raises(ConfigError, match="an ONNX file beside an engine"):
        bench(plan, model)
    with pytest.raises(ConfigError, match="trtexec times engines as they are") as caught:
        bench(plan, "--batch", "4")
    assert "install TensorRT's Python bindings" in caught.value.hint
    standin["install"](tmp_path / "bin", "8.5.2")
    with pytest.raises(ArtifactError, match=r"fp16.*TensorRT"):
        bench(plan)


def test_a_profile_s_limits_judge_each_network(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = tmp_path / "mine.yaml"
    source = (
        (Path(__file__).parents[1] / "profiles" / "host-cpu.yaml").read_text().replace("host-cpu", "mine", 1)
    )
    model = network(tmp_path / "m.onnx")
    # However busy the machine of this test is.
    monkeypatch.setattr(summary, "LIMITS", dict.fromkeys(summary.LIMITS, 1e9))
    monkeypatch.setattr(summary, "LEAP_MS", 1e9)
    monkeypatch.setattr(load.Load, "told", lambda *_: load.Loaded(0.0, 0.0, [], ""))
    monkeypatch.setattr("edgetune.stages.bench.unsettled", lambda _: [])
    for limit, code, label in ((1e-9, 7, "fail"), (1e6, 0, "pass")):
        profile.write_text(
            source.replace("name: host-cpu", "name: mine") + f"gates:\n  latency_p50_ms: {limit}\n"
        )
        found, said = bench(model, "--profile", profile, "--json")
        assert found == code
        gate = json.loads(said)["gates"]["m.onnx"][0]
        assert (gate["name"], gate["status"]) == ("latency_p50_ms", label)


def test_what_is_not_to_be_trusted_judges_nothing(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "edgetune.stages.bench.unsettled", lambda _: ["m.onnx: its times were still changing"]
    )
    source = (Path(__file__).parents[1] / "profiles" / "host-cpu.yaml").read_text()
    profile = tmp_path / "mine.yaml"
    profile.write_text(f"{source}gates:\n  latency_p50_ms: 1000000\n")
    code, said = bench(network(tmp_path / "m.onnx"), "--profile", profile, "--json")
    gate = json.loads(said)["gates"]["m.onnx"][0]
    assert (code, gate["status"]) == (0, "not judged")
    assert "still changing" in gate["why"]


def test_mlperf_s_scenarios(bench: Any, tmp_path: Path) -> None:
    model = network(tmp_path / "m.onnx")
    _, said = bench(model, "--preset", "mlperf")
    assert "MLPerf: SingleStream" in said
    found = json.loads((tmp_path / "bench" / "bench.json").read_text())["latency"]
    assert found["offline"]["m.onnx"]["samples"] >= 64
    assert found["models"]["m.onnx"]["p90_early_ms"] > 0


def test_the_same_file_twice_is_refused(bench: Any, tmp_path: Path) -> None:
    model = network(tmp_path / "m.onnx")
    with pytest.raises(ConfigError, match="named twice"):
        bench(model, model)
