"""The stand-in for trtexec keeps to what is documented of the real one: flags, streams, order, banners, exit codes."""

import json
import math
import runpy
import subprocess
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

STANDIN = runpy.run_path(str(Path(__file__).with_name("standin_trtexec.py")))
VERSIONS = ["8.5.2", "10.3.0", "10.16.2", "11.1.0"]

# Facts 3a, flag by flag: on which of these versions it is known.
TAKEN = {
    "--onnx --memPoolSize --timingCacheFile --loadInputs --useDLACore --allowGPUFallback --noTF32": "yyyy",
    "--int8 --fp16 --best --calib --layerPrecisions --precisionConstraints --restricted": "yyyn",
    "--stronglyTyped": "nyyy",
    "--workspace --explicitBatch --batch --minTiming --buildOnly": "ynnn",
    "--skipInference --builderOptimizationLevel --versionCompatible --infStreams": "nyyy",
    "--getPlanVersionOnly --stripWeights --allocationStrategy --markDebug": "nyyy",
    "--useCudaGraph --noDataTransfers --useSpinWait --separateProfileRun": "yyyy",
    "--noCudaGraph --includeDataTransfers --noSpinWait --loadRefOutputs --tuneBuildRoutes": "nnny",
    "--reportCapabilityDLA --adjustForDLA --refitFromOnnx --cpuOnly": "nnyy",
}


def ran(path: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([path, *arguments], capture_output=True, text=True)


@pytest.fixture
def network(tmp_path: Path) -> str:
    graph = helper.make_graph(
        [helper.make_node("Log", ["x"], ["y"], 'lo"g')],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "network.onnx"
    path.write_bytes(model.SerializeToString())
    return str(path)


@pytest.mark.parametrize("flags", TAKEN)
def test_flags_come_and_go(flags: str) -> None:
    for version, taken in zip(VERSIONS, TAKEN[flags], strict=True):
        known = STANDIN["known_flags"](tuple(map(int, version.split("."))))
        assert {flag in known for flag in flags.split()} == {taken == "y"}, version


@pytest.mark.parametrize("version", VERSIONS)
def test_refuses_what_it_does_not_know(tmp_path: Path, version: str) -> None:
    told = ran(STANDIN["install"](tmp_path, version), "--onnx=m", "--nonsense=1")
    assert told.returncode == 1
    assert "--onnx" in told.stdout, "its help comes first"
    assert told.stderr.endswith("[E] Unknown option: --nonsense 1\n")
    assert ("&&&& FAILED" in told.stdout) == (version != "11.1.0")


@pytest.mark.parametrize("version", VERSIONS)
def test_streams_and_files(tmp_path: Path, network: str, version: str) -> None:
    path = STANDIN["install"](tmp_path / "bin", version)
    plan = f"--saveEngine={tmp_path / 'plan'}"
    assert ran(path, f"--onnx={network}", plan, f"--exportOutput={tmp_path / 'o'}").returncode == 0
    np.array([1, 0, -1, 2], np.float32).tofile(tmp_path / "x")
    told = ran(
        path,
        f"--loadEngine={tmp_path / 'plan'}",
        f"--loadInputs='x':{tmp_path / 'x'}",
        *(f"--export{what}={tmp_path / what}" for what in ("Output", "Times", "Profile")),
    )
    assert told.returncode == 0
    order = ["RUNNING", "Performance summary", "Throughput", "Latency", "Enqueue Time", "H2D Latency"]
    order += ["GPU Compute Time", "D2H Latency", "Total Host Walltime", "Total GPU Compute Time", "PASSED"]
    places = [told.stdout.index(word) for word in order]
    assert places == sorted(places)
    assert all("[W]" in line for line in told.stderr.splitlines())
    assert "[I]" in told.stdout
    values = (tmp_path / "Output").read_text().split("[ ")[1].split(" ]")[0]
    assert values in ("0, -inf, nan, 0.693147", "0, -inf, -nan, 0.693147")
    assert '"name" : "lo"g"' in (tmp_path / "Profile").read_text()
    record = json.loads((tmp_path / "Times").read_text())[0]
    assert [*record][-4:] == ["h2dMs", "computeMs", "d2hMs", "latencyMs"]
    assert math.isclose(
        record["latencyMs"], record["h2dMs"] + record["computeMs"] + record["d2hMs"], rel_tol=1e-5
    )
    assert (record["h2dMs"] > 0) == (version != "11.1.0"), "11 makes no copies unasked"


def test_weak_and_strong(tmp_path: Path, network: str) -> None:
    build = [f"--onnx={network}", f"--saveEngine={tmp_path / 'plan'}", "--skipInference"]
    told = ran(STANDIN["install"](tmp_path / "bin", "10.3.0"), *build, "--stronglyTyped", "--fp16")
    assert "[W] Invalid usage, setting fp16 mode" in told.stderr
    told = ran(STANDIN["install"](tmp_path / "bin", "11.1.0"), *build, "--stronglyTyped")
    assert "[W] --stronglyTyped" in told.stderr
    assert told.returncode == 0
