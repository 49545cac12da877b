"""What spoils a measurement is said with what to do about it, and nothing is said where nothing is wrong."""

from pathlib import Path
from typing import Any

import pytest
from standin_device import BOARDS, programs

from edgetune.device.program.probe import probe
from edgetune.device.program.spoilers import warnings
from edgetune.profile import load_profile, load_target
from edgetune.stages.bundle import wanted

FINE: dict[str, Any] = {
    "l4t": "36.4.3",
    "jetpack": "6.2",
    "module": {"model": "NVIDIA Jetson Orin Nano Developer Kit", "compute_capability": "8.7"},
    "tensorrt": {"version": "10.3.0.30", "source": ""},
    "power_mode": {"id": 2, "name": "MAXN_SUPER"},
    "power_modes": {"0": "15W", "1": "25W", "2": "MAXN_SUPER"},
    "clocks": {"gpu": {"min_mhz": 1020.0, "max_mhz": 1020.0}, "locked": True},
    "temperatures_c": {"gpu-thermal": 45.0, "cv0-thermal": None},
    "throttling": {"alerts": [], "overcurrent": {"oc1": 0}},
    "memory": {"total_mb": 7620, "available_mb": 6100},
    "swap": {"total_mb": 12000, "used_mb": 0, "zram_mb": 3810},
    "desktop": False,
    "disk": {"total_mb": 100000, "free_mb": 50000},
}
WANTED = {
    "module": "Jetson Orin Nano 8 GB",
    "memory_gb": 8,
    "compute_capability": "8.7",
    "power_mode": "MAXN_SUPER",
    "jetpack": "6.2",
    "tensorrt": "10.3.0",
    "l4t": "36.4",
}


def codes(found: dict[str, Any], wanted: dict[str, Any] | None = None) -> list[str]:
    rows = warnings(found, WANTED if wanted is None else wanted)
    assert all(row["message"] and row["remedy"] for row in rows)
    return [row["code"] for row in rows]


def test_nothing_is_said_where_nothing_is_wrong() -> None:
    assert codes(FINE) == codes(FINE, {}) == []


def test_nothing_is_said_of_what_is_not_known() -> None:
    assert codes({}) == []
    assert codes(dict.fromkeys(set(FINE) - {"tensorrt"})) == []


@pytest.mark.parametrize(
    ("code", "change", "said"),
    [
        (
            "module",
            {"module": {"model": "Jetson AGX Orin Developer Kit", "compute_capability": "8.7"}},
            "AGX Orin",
        ),
        ("module", {"module": {"model": "NVIDIA Jetson Orin Nano", "compute_capability": "7.2"}}, "8 GB"),
        ("module", {"memory": {"total_mb": 3600, "available_mb": 3000}}, "3.5 GB"),
        (
            "tensorrt",
            {"tensorrt": {"version": "8.6.2.3"}},
            "TensorRT is 8.6.2.3 here; the bundle was made for 10.3.0",
        ),
        ("no_tensorrt", {"tensorrt": {"version": None}}, "TensorRT"),
        ("l4t", {"l4t": "36.3.0"}, "36.4"),
        ("jetpack", {"jetpack": "6.0"}, "JetPack is 6.0 here; the bundle was made for 6.2"),
        ("power_mode", {"power_mode": {"id": 0, "name": "15W"}}, "15W; the bundle was made for MAXN_SUPER"),
        (
            "clocks",
            {"clocks": {"gpu": {"min_mhz": 306.0, "max_mhz": 1020.0}, "locked": False}},
            "306 to 1020 MHz",
        ),
        (
            "clocks",
            {
                "clocks": {
                    "gpu": {"min_mhz": 918.0, "max_mhz": 918.0},
                    "cpu": [{"min_mhz": 729.6, "max_mhz": 1344.0}],
                    "locked": False,
                }
            },
            "the processor may run from 729.6 to 1344 MHz",
        ),
        ("hot", {"temperatures_c": {"a": 40.0, "tj-thermal": 75.0, "b": None}}, "tj-thermal is at 75 °C"),
        ("throttled", {"throttling": {"alerts": ["gpu-throttle-alert"]}}, "gpu-throttle-alert"),
        ("overcurrent", {"throttling": {"overcurrent": {"oc1": 0, "oc3": 37}}}, "oc3 37 times"),
        ("low_memory", {"memory": {"total_mb": 7620, "available_mb": 2047}}, "2047 MiB"),
        ("no_swap", {"swap": {"total_mb": 3810, "used_mb": 0, "zram_mb": 3810}}, "no swap on a disk"),
        ("desktop", {"desktop": True}, "desktop"),
        ("low_disk", {"disk": {"total_mb": 9, "free_mb": 1023}}, "1023 MiB are free"),
    ],
)
def test_each_spoiler(code: str, change: dict[str, Any], said: str) -> None:
    rows = warnings({**FINE, **change}, WANTED)
    assert code in [row["code"] for row in rows]
    assert said in next(row["message"] for row in rows if row["code"] == code)


def test_the_remedy_names_the_number_of_the_mode() -> None:
    rows = warnings({**FINE, "power_mode": {"id": 0, "name": "15W"}}, WANTED)
    assert "sudo nvpmodel -m 2 " in rows[0]["remedy"]


def test_a_mode_has_one_name_in_tables_and_another_on_the_module() -> None:
    found = {"power_mode": {"id": 2, "name": "MODE_30W"}}
    assert codes(found, {"power_mode": "30W"}) == []
    assert codes(found, {"power_mode": "50W"}) == ["power_mode"]


def test_what_is_wanted_takes_all_that_lie_within_it() -> None:
    assert (
        codes(
            {"jetpack": "6.2.1", "tensorrt": {"version": "10.3.0.30"}}, {"jetpack": "6.2", "tensorrt": "10.3"}
        )
        == []
    )
    assert codes({"tensorrt": {"version": "10.13.0"}}, {"tensorrt": "10.1"}) == ["tensorrt"]


def test_a_bundle_without_int8_is_not_told_that_there_is_none() -> None:
    found = {"module": {"model": "NVIDIA Jetson Nano Developer Kit", "compute_capability": "5.3"}}
    assert codes(found, {"module": "Jetson Nano 4 GB"}) == ["no_int8"]
    assert codes(found, {"module": "Jetson Nano 4 GB", "no_int8": "it has none"}) == []


def test_jetpack_4_calls_a_tx2_by_its_code_name() -> None:
    for model, wrong in (("quill", []), ("NVIDIA Jetson TX2 NX", []), ("NVIDIA Jetson TX1", [])):
        assert codes({"module": {"model": model}}, {"module": "Jetson TX2"}) == wrong
    assert codes({"module": {"model": "jetson-nano"}}, {"module": "Jetson TX2"}) == ["module"]
    assert codes({"module": {"model": "quill"}}, {"module": "Jetson Nano 4 GB"}) == ["module"]


def test_the_work_says_what_it_needs() -> None:
    assert codes(FINE, {"memory_mb": 6101, "disk_mb": 50001}) == ["low_memory", "low_disk"]


@pytest.mark.parametrize(
    ("board", "expected"),
    [
        ("orin-nano", ["clocks", "no_swap"]),
        ("agx-orin", ["clocks", "desktop"]),
        ("xavier-nx", ["clocks", "low_memory", "desktop"]),
        ("tx2", ["no_int8", "clocks", "no_swap"]),
        # What is no Jetson has clocks and swap of its own kind.
        ("pc", ["no_tensorrt", "desktop"]),
    ],
)
def test_whole_devices(board: str, expected: list[str], tmp_path: Path) -> None:
    root = BOARDS[board](tmp_path / "root")
    environ = programs(tmp_path / "bin", root) if board != "pc" else {"PATH": ""}
    found = probe(str(root), environ=environ, folder=str(root), as_root=False)
    assert codes(found, {"disk_mb": 1}) == expected


@pytest.mark.parametrize(
    ("board", "spec", "expected"),
    [
        # JetPack 4.6 itself, whose TensorRT is older than that of 4.6.1.
        ("tx2", "jetson-tx2", ["tensorrt", "clocks", "no_swap"]),
        ("orin-nano", "jetson-orin-nano-8gb:25W@6.2", ["clocks", "no_swap"]),
    ],
)
def test_a_device_is_what_its_bundle_was_made_for(
    board: str, spec: str, expected: list[str], tmp_path: Path
) -> None:
    root = BOARDS[board](tmp_path / "root")
    environ = programs(tmp_path / "bin", root)
    found = probe(str(root), environ=environ, folder=str(root), as_root=False)
    assert codes(found, wanted(load_target(spec)) | {"disk_mb": 1}) == expected


@pytest.mark.parametrize(
    ("board", "name", "mode", "jetpack"),
    [
        ("orin-nano", "jetson-orin-nano-8gb", "25W", "6.2"),
        ("agx-orin", "jetson-agx-orin-64gb", "30W", "5.1"),
    ],
)
def test_each_module_is_the_one_of_its_profile_and_not_the_one_of_the_other(
    board: str, name: str, mode: str, jetpack: str, tmp_path: Path
) -> None:
    profile = load_profile(name)
    meant = {
        "module": profile.title,
        "memory_gb": profile.memory_gb,
        "compute_capability": profile.compute_capability,
        "power_mode": mode,
        "jetpack": jetpack,
        "tensorrt": profile.jetpacks[jetpack].tensorrt,
        "disk_mb": 1,
    }
    unfit = {"module", "tensorrt", "jetpack", "power_mode"}
    for other in ("orin-nano", "agx-orin"):
        root = BOARDS[other](tmp_path / other)
        found = probe(
            str(root), environ=programs(tmp_path / f"{other}-bin", root), folder=str(root), as_root=False
        )
        assert unfit & set(codes(found, meant)) == (set() if other == board else unfit)
