"""Lines as devices of every generation print them, and a child that is asked, read and ended."""

import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standin_device import BOARDS

from edgetune.device.program import tegrastats
from edgetune.device.program.power import Sampler, whole_module
from edgetune.device.program.tegrastats import Told, parse

# Board: a line, the rails in mW, the temperatures in °C, the rails that feed the whole module.
LINES: dict[str, tuple[str, dict[str, float], dict[str, float], tuple[str, ...]]] = {
    "Nano, L4T 32": (
        "RAM 534/3964MB (lfb 98x4MB) SWAP 5/1982MB (cached 1MB) IRAM 0/252kB(lfb 252kB) "
        "CPU [16%@204,9%@204,0%@204,0%@204] EMC_FREQ 0%@204 GR3D_FREQ 0%@76 APE 25 PLL@34C CPU@36.5C PMIC@100C "
        "GPU@36C AO@39.5C thermal@36.25C POM_5V_IN 1022/1030 POM_5V_GPU 0/0 POM_5V_CPU 204/210",
        {"POM_5V_IN": 1022, "POM_5V_GPU": 0, "POM_5V_CPU": 204},
        {"PLL": 34, "CPU": 36.5, "PMIC": 100, "GPU": 36, "AO": 39.5, "thermal": 36.25},
        ("POM_5V_IN",),
    ),
    "TX2, L4T 32": (
        "RAM 2344/7852MB (lfb 1154x4MB) SWAP 0/3926MB (cached 0MB) CPU [1%@345,off,off,1%@345,0%@345,2%@345] "
        "EMC_FREQ 4%@1600 GR3D_FREQ 0%@624 APE 150 PLL@37.5C Tboard@32C VDD_SYS_GPU 152/152 VDD_SYS_SOC 687/687 "
        "VDD_4V0_WIFI 0/0 VDD_IN 3056/3056 VDD_SYS_CPU 152/152 VDD_SYS_DDR 883/883",
        {
            "VDD_SYS_GPU": 152, "VDD_SYS_SOC": 687, "VDD_4V0_WIFI": 0, "VDD_IN": 3056, "VDD_SYS_CPU": 152,
            "VDD_SYS_DDR": 883,
        },
        {"PLL": 37.5, "Tboard": 32},
        ("VDD_IN",),
    ),
    "AGX Xavier, L4T 32": (
        "RAM 721/31927MB (lfb 7291x4MB) SWAP 0/15963MB (cached 0MB) CPU [2%@1190,0%@1190,off,off] EMC_FREQ 0%@665 "
        "GR3D_FREQ 0%@318 APE 150 MTS fg 0% bg 0% AO@37.5C GPU@37.5C thermal@36.9C GPU 0/0 CPU 311/311 SOC 932/932 "
        "CV 0/0 VDDRQ 621/621 SYS5V 1482/1482",
        {"GPU": 0, "CPU": 311, "SOC": 932, "CV": 0, "VDDRQ": 621, "SYS5V": 1482},
        {"AO": 37.5, "GPU": 37.5, "thermal": 36.9},
        ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
    ),
    "Xavier NX, L4T 32": (
        "RAM 4412/7772MB (lfb 237x4MB) SWAP 139/3886MB (cached 2MB) CPU [9%@1190,8%@1267] EMC_FREQ 10%@1600 "
        "GR3D_FREQ 62%@306 APE 150 MTS fg 0% bg 0% AUX@41.5C thermal@42.55C VDD_IN 4067/4100 VDD_CPU_GPU_CV 738/738 "
        "VDD_SOC 1353/1353",
        {"VDD_IN": 4067, "VDD_CPU_GPU_CV": 738, "VDD_SOC": 1353},
        {"AUX": 41.5, "thermal": 42.55},
        ("VDD_IN",),
    ),
    "Orin NX, L4T 35": (
        "RAM 6334/15388MB (lfb 1770x4MB) SWAP 491/7694MB (cached 0MB) CPU [6%@729,16%@729,off,off] EMC_FREQ 0%@2133 "
        "GR3D_FREQ 0%@611 VIC_FREQ 729 APE 174 CV0@-256C CPU@47.937C SOC2@46.093C tj@48.875C VDD_IN 5299mW/5310mW "
        "VDD_CPU_GPU_CV 773mW/773mW VDD_SOC 1424mW/1424mW",
        {"VDD_IN": 5299, "VDD_CPU_GPU_CV": 773, "VDD_SOC": 1424},
        {"CPU": 47.937, "SOC2": 46.093, "tj": 48.875},
        ("VDD_IN",),
    ),
    "Orin Nano, L4T 36": (
        "12-30-2025 00:20:08 RAM 6677/7620MB (lfb 1x2MB) SWAP 4635/20194MB (cached 180MB) CPU [28%@960,22%@729] "
        "GR3D_FREQ 33% cpu@52.25C tj@52.812C VDD_IN 6167mW/6167mW VDD_CPU_GPU_CV 1215mW/1215mW VDD_SOC 1663mW/1663mW",
        {"VDD_IN": 6167, "VDD_CPU_GPU_CV": 1215, "VDD_SOC": 1663},
        {"cpu": 52.25, "tj": 52.812},
        ("VDD_IN",),
    ),
    "AGX Orin, L4T 36": (
        "RAM 29114/30697MB (lfb 3x4MB)    SWAP 4915/15348MB (cached 1MB) CPU [3%@729,100%@2201] EMC_FREQ 1%@2133 "
        "GR3D_FREQ 0%@[305,305] NVENC      off  NVJPG1    off         PVA0_FREQ off         APE           174        "
        "cpu@53.062C soc0@48.843C  gpu@47.812C    VDD_GPU_SOC 3205mW/3205mW VDD_CPU_CV 4405mW/4405mW "
        "VIN_SYS_5V0 4767mW/4767mW",
        {"VDD_GPU_SOC": 3205, "VDD_CPU_CV": 4405, "VIN_SYS_5V0": 4767},
        {"cpu": 53.062, "soc0": 48.843, "gpu": 47.812},
        ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    ),
    "Thor, L4T 38": (
        "01-20-2026 22:46:22 RAM 17842/125772MB (lfb 79x4MB) CPU [0%@972,1%@972] cpu@30.468C soc012@30.218C "
        "VDD_GPU 0mW/0mW VDD_CPU_SOC_MSS 5535mW/5535mW VIN_SYS_5V0 5040mW/5040mW VIN 16802mW/16802mW",
        {"VDD_GPU": 0, "VDD_CPU_SOC_MSS": 5535, "VIN_SYS_5V0": 5040, "VIN": 16802},
        {"cpu": 30.468, "soc012": 30.218},
        ("VIN",),
    ),
}  # fmt: skip
NX = LINES["Xavier NX, L4T 32"][0]


@pytest.mark.parametrize("board", LINES)
def test_lines_of_every_generation(board: str) -> None:
    line, rails, zones, whole = LINES[board]
    for end in ("", "\n", " \r\n"):
        assert parse(line + end) == Told(rails, zones)
    assert whole_module(list(rails)) == whole


@pytest.mark.parametrize(
    "line",
    [
        "",
        "tegrastats: command not found",
        "sudo: a password is required",
        "VDD_IN 4067/4067",
        f"error: {NX}",
        "RAM 534/3964MB (lfb 98x4MB) CPU [16%@204]",
        # One unit on either side, no numbers, no names.
        "RAM 1/2MB VDD_IN 5299mW/5299 A 1/2mW B x/2 C -1/2 D 1.5/2 5V 1/2 E 1/ F /2 G@xC H@1F I@C VDD_IN1/2",
    ],
)
def test_what_is_no_line(line: str) -> None:
    assert parse(line) is None


@given(st.text(max_size=80), st.text(max_size=80))
def test_whatever_there_is_is_read(before: str, after: str) -> None:
    told = parse(f"{before}RAM 1/2MB {after}")
    assert told is None or all(value >= 0 for value in told.rails_mw.values())


def put(folder: Path, script: str) -> dict[str, str]:
    folder.mkdir(parents=True)
    (folder / "tegrastats").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "tegrastats").chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin"}


def forever(line: str, folder: Path, then: str = "") -> str:
    return f'echo $$ "$@" >> {folder}/asked; while :; do echo "{line}"; {then or "sleep 0.01"}; done'


def ended(folder: Path) -> bool:
    number = int((folder / "asked").read_text().split()[0])
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    return False


def sampled(root: Path, environ: dict[str, str], least: int = 4) -> Sampler:
    with Sampler(str(root), period_s=0.01, environ=environ) as sampler:
        given_up = time.monotonic() + 20
        while len(sampler.samples) < least:
            assert time.monotonic() < given_up
            time.sleep(0.005)
    return sampler


def test_it_stands_in_for_sensors_that_cannot_be_read(tmp_path: Path) -> None:
    line, rails, zones, _ = LINES["Nano, L4T 32"]
    environ = put(tmp_path / "bin", forever(line, tmp_path))
    threads = threading.active_count()
    found = sampled(tmp_path / "root", environ)
    assert threading.active_count() == threads
    assert (tmp_path / "asked").read_text().split()[1:] == ["--interval", "10"]
    assert ended(tmp_path)
    del zones["PMIC"]  # A constant.
    inner = found.samples[1:-1]
    assert {tuple(sample.rails_mw.items()) for sample in inner} == {tuple(rails.items())}
    assert {tuple(sample.zones_c.items()) for sample in inner} == {tuple(zones.items())}
    start, end = inner[0].at_s, inner[-1].at_s
    assert found.energy_j(start, end)["POM_5V_IN"] == pytest.approx(1.022 * (end - start))


def test_only_what_cannot_be_read_is_taken_from_it(tmp_path: Path) -> None:
    environ = put(tmp_path / "bin", forever(NX, tmp_path))
    root = BOARDS["orin-nano"](tmp_path / "all")
    assert sampled(root, environ).samples[1].rails_mw["VDD_IN"] == pytest.approx(5307.072)
    assert not (tmp_path / "asked").exists(), "what can be read is read"
    for file in (root / "sys/bus/i2c/drivers").rglob("*_input"):
        file.unlink()
    found = sampled(root, environ).samples[2]
    assert found.rails_mw == LINES["Xavier NX, L4T 32"][1]
    assert "tj-thermal" in found.zones_c
    assert "AUX" not in found.zones_c
    bare = BOARDS["orin-nano"](tmp_path / "bare")
    for file in bare.glob("sys/class/thermal/*/type"):
        file.unlink()
    found = sampled(bare, environ).samples[2]
    assert found.rails_mw["VDD_IN"] == pytest.approx(5307.072)
    assert found.zones_c == {"AUX": 41.5, "thermal": 42.55}


@pytest.mark.parametrize(
    "script",
    [
        "exit 1",
        "echo sudo: a password is required; exit 1",
        "head -c 100000 /dev/zero",
        f'printf %s "{NX[:200]}"',
    ],
)
def test_where_it_fails_sampling_goes_on_without_power(tmp_path: Path, script: str) -> None:
    found = sampled(tmp_path / "root", put(tmp_path / "bin", script))
    assert all(sample.rails_mw == {} for sample in found.samples)


def test_it_is_ended_though_it_says_nothing_or_started_others(tmp_path: Path) -> None:
    environ = put(tmp_path / "bin", forever("nothing", tmp_path, "sleep 600"))
    with Sampler(str(tmp_path / "root"), environ=environ):
        given_up = time.monotonic() + 20
        while not (tmp_path / "asked").exists():
            assert time.monotonic() < given_up
            time.sleep(0.005)
    assert ended(tmp_path)


def test_none_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tegrastats.look, "USUAL", ())
    assert tegrastats.start({"PATH": str(tmp_path)}, 0.2) is None
    (tmp_path / "tegrastats").write_bytes(b"\x7fELF")
    (tmp_path / "tegrastats").chmod(0o755)
    assert tegrastats.start({"PATH": str(tmp_path)}, 0.2) is None
    with Sampler(str(tmp_path), period_s=0.01, environ={"PATH": str(tmp_path)}) as sampler:
        pass
    assert [sample.rails_mw for sample in sampler.samples] == [{}, {}]
