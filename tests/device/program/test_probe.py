"""What a probe finds of five devices, from their files: golden, and never an error.

After a wanted change: GOLDEN=write pytest tests/device, then read the difference.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from standin_device import BOARDS, OFF, called, orin_nano, programs, write

from edgetune.device.program import look
from edgetune.device.program.probe import power_mode, probe

GOLDEN = Path(__file__).parents[1] / "golden" / "probe"
EMC = "/sys/kernel/nvpmodel_emc_cap/emc_iso_cap"
# Of the machine that the tests run on.
OWN = ("python", "machine", "disk")


@pytest.fixture(autouse=True)
def no_tools_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "USUAL", ())


def probed(root: Path, environ: dict[str, str], **given: Any) -> dict[str, Any]:
    return probe(str(root), environ=environ, folder=str(root), as_root=False, **given)


@pytest.mark.parametrize("name", BOARDS)
def test_golden_probe(name: str, tmp_path: Path) -> None:
    root = BOARDS[name](tmp_path / "root")
    environ = programs(tmp_path / "bin", root) if name != "pc" else {"PATH": ""}
    found = probed(root, environ)
    assert all(found.pop(key) for key in OWN)
    text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    path = GOLDEN / f"{name}.json"
    if os.environ.get("GOLDEN") == "write":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


def test_a_probe_changes_nothing_and_uses_no_sudo(tmp_path: Path) -> None:
    root = orin_nano(tmp_path / "root")
    environ = programs(tmp_path / "bin", root)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    asked = []

    def run(command: list[str], *given: Any, **named: Any) -> look.Answer | None:
        asked.append([Path(command[0]).name, *command[1:]])
        return look.run(command, *given, **named)

    probe(str(root), run, environ, str(root), as_root=False)
    assert asked == [["nvpmodel", "-q"]]
    probe(str(root), run, environ, str(root), as_root=True)
    assert asked[1:] == [["nvpmodel", "-q"], ["jetson_clocks", "--show"]]
    assert not [line for line in called(environ) if line.startswith("sudo")]
    assert before == {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_root_sees_the_clock_of_the_memory(tmp_path: Path) -> None:
    root = orin_nano(tmp_path / "root")
    found = probe(str(root), environ=programs(tmp_path / "bin", root), folder=str(root), as_root=True)
    assert found["clocks_shown"][1].startswith("EMC MinFreq=204000000")


def test_an_empty_device_is_all_unknown(tmp_path: Path) -> None:
    found = probed(tmp_path, {"PATH": ""})
    known = {key for key, value in found.items() if value is not None}
    assert known == {*OWN, "module", "tensorrt", "clocks", "power_modes", "temperatures_c", "throttling", "rails",
                     "memory", "container"}  # fmt: skip
    assert found["clocks"] == {"gpu": None, "cpu": [], "locked": None}
    assert set(found["module"].values()) == set(found["tensorrt"].values()) == {None}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_content_of_any_file_ends_a_probe(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = BOARDS[data.draw(st.sampled_from(sorted(BOARDS)))](tmp_path_factory.mktemp("device"))
    files = sorted(path for path in root.rglob("*") if path.is_file())
    for path in data.draw(st.lists(st.sampled_from(files), min_size=1, max_size=8, unique=True)):
        kept = path.read_bytes()
        cut = data.draw(st.integers(0, len(kept)))
        path.write_bytes(kept[:cut] + data.draw(st.binary(max_size=40)))
    found = probe(str(root), environ={"PATH": ""}, folder=str(root), as_root=False)
    json.dumps(found)


def test_a_probe_survives_what_is_no_text_and_no_file(tmp_path: Path) -> None:
    tree = {
        "etc/nv_tegra_release": OFF,
        "proc/meminfo": b"\xff\xfe\0",
        "proc/swaps": "a\nb\nc d",
        "sys/class": OFF,
    }
    found = probed(write(tmp_path, tree), {"PATH": ""})
    assert found["l4t"] is None
    assert found["memory"] == {"total_mb": None, "available_mb": None}
    assert found["swap"] == {"total_mb": 0, "used_mb": 0, "zram_mb": 0}


def test_a_folder_that_is_gone_has_no_disk(tmp_path: Path) -> None:
    assert probe(str(tmp_path), environ={"PATH": ""}, folder=str(tmp_path / "gone"))["disk"] is None


@pytest.mark.parametrize(
    ("said", "mode"),
    [
        ("NV Power Mode: MAXN_SUPER\n2\n", {"id": 2, "name": "MAXN_SUPER"}),
        ("NVPM WARN: fan mode is not set!\nNV Power Mode: MAXN\n0\n", {"id": 0, "name": "MAXN"}),
        # As one who is not root sees it on a Nano.
        (f"NV Power Mode: 5W\n1\nNVPM ERROR: Error opening {EMC}: 13\n", {"id": 1, "name": "5W"}),
        ("NV Power Mode: 5W\nNVPM ERROR: failed to read PARAM EMC\n1", {"id": 1, "name": "5W"}),
        ("NVPM WARN: power mode is not set!\n", {"id": 1, "name": "25W"}),
        ("", {"id": 1, "name": "25W"}),
    ],
)  # fmt: skip
def test_the_power_mode_as_nvpmodel_says_it_or_as_it_was_last_set(
    said: str, mode: dict[str, object], tmp_path: Path
) -> None:
    root = orin_nano(tmp_path / "root")
    environ = programs(tmp_path / "bin", root)
    assert power_mode(str(root), lambda *_: look.Answer(0, said), environ) == mode
    assert power_mode(str(root), lambda *_: None, environ) == {"id": 1, "name": "25W"}


def test_locked_is_where_every_lower_limit_is_the_upper_one(tmp_path: Path) -> None:
    root = orin_nano(tmp_path)
    assert probed(root, {"PATH": ""})["clocks"]["locked"] is False
    (root / "sys/class/devfreq/17000000.gpu/min_freq").write_text("918000000\n")
    assert probed(root, {"PATH": ""})["clocks"]["locked"] is False
    for policy in (0, 4):
        (root / f"sys/devices/system/cpu/cpufreq/policy{policy}/scaling_min_freq").write_text("1344000\n")
    assert probed(root, {"PATH": ""})["clocks"]["locked"] is True


def test_alerts_and_events_of_over_current(tmp_path: Path) -> None:
    root = orin_nano(tmp_path)
    (root / "sys/class/thermal/cooling_device2/cur_state").write_text("1\n")
    (root / "sys/class/hwmon/hwmon2/oc3_event_cnt").write_text("37\n")
    assert probed(root, {"PATH": ""})["throttling"] == {
        "alerts": ["gpu-throttle-alert"],  # The fan turns, which is no alert.
        "overcurrent": {"oc1": 0, "oc2": 0, "oc3": 37},
    }
