"""Building for a DLA: which versions, which graphs, what falls back, and the scales that stand beside a graph."""

import struct
from pathlib import Path
from typing import Any

import pytest
import standin_tensorrt as standin
from hypothesis import given
from hypothesis import strategies as st

from edgetune.device.program import bindings, dla
from edgetune.device.program.plan import Build
from edgetune.device.program.problem import Problem

Networks = dict[tuple[str, str], Path]

recorded = pytest.mark.skipif(not standin.RECORDINGS, reason="no recorded API in shared/tensorrt-api")
every = pytest.mark.parametrize("recording", standin.RECORDINGS, ids=lambda path: path.stem)
SCALES = {"x": 0.02, "r0": 0.03125, "c1": 0.5}


def numbers(recording: Path) -> tuple[int, ...]:
    return tuple(int(n) for n in recording.stem.split("."))


def work(
    recording: Path, tmp: Path, networks: Networks, precision: str, graph: str = "", core: int = 1
) -> Build:
    typing = "strong" if numbers(recording) >= (10, 12) else "weak"
    path = networks[graph or precision, typing]
    return Build(precision, str(path), str(tmp / "d.plan"), precision, typing, 64, dla_core=core)


def build(recording: Path, job: Build, cores: int = 2, **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    trt = standin.load(recording, standin.World(dla_cores=cores))
    return bindings.build(trt, job, **more), trt.world.asked


@pytest.mark.slow
@recorded
@every
@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_every_version(recording: Path, precision: str, networks: Networks, tmp_path: Path) -> None:
    version = numbers(recording)
    beside = precision == "int8" and version < (10, 8)
    scales = SCALES if beside else None
    job = work(recording, tmp_path, networks, precision, "fp16" if beside else "")
    if (10, 8) <= version < (11, 4):
        with pytest.raises(Problem, match=r"does not drive a DLA: 10\.7 was the last before 11\.4") as failed:
            build(recording, job)
        assert failed.value.code == 3
        return
    found, asked = build(recording, job, scales=scales)
    assert (asked["device"], asked["dla_core"]) == ("DLA", 1)
    assert "GPU_FALLBACK" in asked["flags"]
    assert {"pool", "flatten"} <= set(found["fallback_names"])
    assert found["fallback_layers"] == len(found["fallback_names"])
    assert found["dla_layers"] >= 4
    assert (asked["calibration"] is not None) == beside
    if beside:
        lines = asked["calibration"].decode().splitlines()
        assert lines[0].startswith(f"TRT-{version[0]}")
        assert lines[2] == "r0: 3d000000"


@recorded
def test_what_does_not_fit(networks: Networks, tmp_path: Path) -> None:
    old = [path for path in standin.RECORDINGS if numbers(path) < (10, 8)]
    assert len(old) >= 3
    for recording in old:
        int8 = work(recording, tmp_path, networks, "int8")
        plain = work(recording, tmp_path, networks, "int8", "fp16")
        for job, scales, match in (
            (plain, None, "needs the scales"),
            (plain, {}, "needs the scales"),
            (int8, SCALES, r"has Q/DQ \(.*which no DLA takes"),
            (work(recording, tmp_path, networks, "fp16"), SCALES, "scales beside the graph are for INT8"),
            (int8._replace(dla_core=None), SCALES, "the GPU's are in Q/DQ"),
            (plain._replace(dla_core=2), SCALES, "DLA core 2; this device has 2 DLA cores"),
            (plain._replace(dla_core=-1), SCALES, "DLA core -1"),
        ):
            with pytest.raises(Problem, match=match) as failed:
                build(recording, job, scales=scales)
            assert failed.value.code == 3
        with pytest.raises(Problem, match="this device has no DLA"):
            build(recording, plain, cores=0, scales=SCALES)


@recorded
def test_a_cache_that_the_library_does_not_take_fails(
    networks: Networks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dla, "calibration_cache", lambda *_: b"TRT-1-EntropyCalibration2\n")
    old = [path for path in standin.RECORDINGS if numbers(path) < (10, 8)]
    assert old
    for recording in old:
        with pytest.raises(Problem, match="Calibration failure occurred"):
            build(recording, work(recording, tmp_path, networks, "int8", "fp16"), scales=SCALES)


@pytest.mark.parametrize(
    ("version", "first"),
    [
        ("8.5.2.2", "TRT-8502-EntropyCalibration2"),
        ("8.6.1", "TRT-8601-EntropyCalibration2"),
        ("10.3.0", "TRT-100300-EntropyCalibration2"),
        ("10.7.0.23", "TRT-100700-EntropyCalibration2"),
    ],
)
def test_the_cache_of_scales(version: str, first: str) -> None:
    text = dla.calibration_cache(version, {"images": 1.0, "a: b": 0.0078740157})
    assert text == f"{first}\nimages: 3f800000\na: b: 3c010204\n".encode()


@given(st.floats(min_value=2.0**-126, max_value=2.0**127, width=32))
def test_scales_come_back_from_the_cache(scale: float) -> None:
    line = dla.calibration_cache("8.6.1", {"x": scale}).decode().splitlines()[1]
    assert struct.unpack(">f", bytes.fromhex(line.split(": ")[1])) == (scale,)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_what_is_no_scale(scale: float) -> None:
    with pytest.raises(Problem, match=r"'x'.*no scale"):
        dla.calibration_cache("8.6.1", {"x": scale})
    with pytest.raises(Problem, match="no scale"):
        dla.calibration_cache("8.6.1", {"x\ny": 1.0})
