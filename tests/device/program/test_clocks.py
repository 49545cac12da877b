"""Clocks are locked only where asked, and what was found is put back whatever happens, by two tools alone."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from standin_device import agx_orin, called, orin_nano, programs

from edgetune.device.program import clocks, look
from edgetune.device.program.clocks import locked
from edgetune.device.program.probe import probe

ROOT = Path(__file__).parents[3]
QUERY = "jetson_clocks --show"


class Device(NamedTuple):
    """A device, its tools, a folder to work in, and what the user was told."""

    root: Path
    environ: dict[str, str]
    folder: Path
    told: list[str]

    def lock(self, asked: bool = True, mode: int | None = None, **given: Any) -> Any:
        return locked(
            asked,
            str(self.folder),
            mode,
            str(self.root),
            environ=self.environ,
            say=self.told.append,
            **{"as_root": False, **given},
        )

    def state(self) -> dict[str, Any]:
        found = probe(str(self.root), environ=self.environ, folder=str(self.root), as_root=False)
        return {"clocks": found["clocks"], "mode": found["power_mode"]["id"]}

    def files(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in self.root.rglob("*") if path.is_file()}

    def left(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


def device(tmp_path: Path, board: Callable[[Path], Path] = orin_nano, **settings: str) -> Device:
    # A blank in the folder's name must not matter, though jetson_clocks splits paths at blanks.
    folder = tmp_path / "a bundle"
    folder.mkdir(parents=True)
    root = board(tmp_path / "root")
    return Device(root, programs(tmp_path / "bin", root, **settings), folder, [])


def test_nothing_is_done_unasked(tmp_path: Path) -> None:
    here = device(tmp_path)
    before = here.files()

    def nobody(*_: object, **__: object) -> None:
        raise AssertionError("a program was run")

    with here.lock(asked=False, mode=2, run=nobody) as held:
        assert held["asked"] is False
        assert held["locked"] is None
    assert held["put_back"] is None
    assert before == here.files()
    assert called(here.environ) == here.left() == here.told == []


def test_locks_and_puts_back(tmp_path: Path) -> None:
    here = device(tmp_path)
    before, state = here.files(), here.state()
    with here.lock() as held:
        assert held["locked"] is True
        assert held["mode"] == {"id": 1, "name": "25W"}
        assert held["shown"][1].startswith("EMC ")
        assert here.state()["clocks"]["locked"] is True
        assert here.state()["clocks"]["gpu"]["max_mhz"] == state["clocks"]["gpu"]["max_mhz"]
    assert held["put_back"] is True
    assert held["problems"] == here.told == here.left() == []
    assert before == here.files()


@pytest.mark.parametrize("board", [orin_nano, agx_orin])
def test_another_power_mode_is_chosen_and_the_former_put_back(
    board: Callable[[Path], Path], tmp_path: Path
) -> None:
    here = device(tmp_path, board)
    # As nvpmodel itself would have left it in the mode that it is in.
    subprocess.run(["nvpmodel", "-m", "1"], env=here.environ, check=True)
    Path(here.environ["LOG"]).unlink()
    before = here.files()
    with here.lock(mode=0) as held:
        assert held["mode"]["id"] == here.state()["mode"] == 0
        assert here.state()["clocks"]["gpu"] == {"min_mhz": 500.0, "max_mhz": 500.0, "cur_mhz": 306.0}
    assert before == here.files()
    assert held["put_back"] is True
    assert called(here.environ)[-1] == "jetson_clocks restored"
    assert "sudo -n nvpmodel -m 0" in called(here.environ)
    assert "sudo -n nvpmodel -m 1" in called(here.environ)


def test_clocks_that_were_locked_stay_locked_even_across_modes(tmp_path: Path) -> None:
    here = device(tmp_path)
    for tool in (["nvpmodel", "-m", "1"], ["jetson_clocks"]):
        subprocess.run(tool, env=here.environ, check=True)
    before = here.files()
    with here.lock(mode=2):
        pass
    assert here.state()["clocks"]["locked"] is True
    assert before == here.files()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_puts_back_after_an_error(error: type[BaseException], tmp_path: Path) -> None:
    here = device(tmp_path)
    before = here.files()
    seen = {}

    def work() -> None:
        with here.lock():
            seen.update(here.state()["clocks"])
            raise error

    with pytest.raises(error):
        work()
    assert seen["locked"] is True
    assert before == here.files()
    assert here.left() == []


def test_sudo_runs_two_tools_and_never_asks(tmp_path: Path) -> None:
    here = device(tmp_path, agx_orin)
    with here.lock(mode=0):
        pass
    with here.lock():
        pass
    lines = [line.split() for line in called(here.environ) if line.startswith("sudo")]
    assert len(lines) > 8
    assert {line[1] for line in lines} == {"-n"}
    assert {line[2] for line in lines} == {"nvpmodel", "jetson_clocks"}
    assert {tuple(line[3:4]) for line in lines if line[2] == "nvpmodel"} == {("-m",)}
    assert {tuple(line[3:]) for line in lines if line[2] == "jetson_clocks"} == {
        (),
        ("--show",),
        ("--store", clocks.STORE),
        ("--restore", clocks.STORE),
    }


def test_root_needs_no_sudo(tmp_path: Path) -> None:
    here = device(tmp_path)
    (tmp_path / "bin" / "sudo").unlink()
    before = here.files()
    with here.lock(as_root=True) as held:
        assert held["locked"] is True
    assert before == here.files()


def test_says_so_where_sudo_refuses_and_the_work_goes_on(tmp_path: Path) -> None:
    here = device(tmp_path, SUDO="refuse")
    before = here.files()
    with here.lock(mode=2) as held:
        assert held["locked"] is False
        assert held["mode"]["id"] == 1
    assert [problem["code"] for problem in held["problems"]] == ["sudo"]
    assert "sudo refuses jetson_clocks: sudo: a password is required (allow it for good:" in here.told[0]
    assert len(here.told) == 1
    assert before == here.files()
    assert here.left() == []
    assert held["put_back"] is None


@pytest.mark.parametrize("missing", ["jetson_clocks", "sudo"])
def test_says_so_where_a_tool_is_missing(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = device(tmp_path)
    (tmp_path / "bin" / missing).unlink()
    monkeypatch.setattr(look, "USUAL", ())
    here.environ["PATH"] = str(tmp_path / "bin")
    with here.lock() as held:
        assert held["locked"] is False
    assert here.told == [f"{missing} is not here: clocks stay as they are (it comes with JetPack)"]


def test_says_so_where_a_mode_needs_a_restart_and_never_restarts(tmp_path: Path) -> None:
    here = device(tmp_path, REBOOT="1")
    before = here.files()
    with here.lock(mode=2) as held:
        assert held["locked"] is True
        assert held["mode"] == {"id": 1, "name": "25W"}
    assert [problem["code"] for problem in held["problems"]] == ["reboot"]
    assert here.told[0].startswith(
        "power mode 2 needs a restart of the device; it stays in 25W (sudo nvpmodel -m 2"
    )
    assert "REBOOTED" not in called(here.environ)
    assert before == here.files()
    assert held["put_back"] is True


def test_says_so_where_there_is_no_such_mode(tmp_path: Path) -> None:
    here = device(tmp_path)
    with here.lock(mode=9) as held:
        assert held["locked"] is True
    assert held["problems"][0]["message"] == (
        "nvpmodel did not choose power mode 9: NVPM ERROR: invalid power mode ID 9"
    )


def test_a_mode_that_could_not_be_put_back_is_not_left(tmp_path: Path) -> None:
    here = device(tmp_path)
    (here.root / "var/lib/nvpmodel/status").unlink()
    (tmp_path / "bin" / "nvpmodel").write_text("#!/bin/sh\necho broken\n")
    with here.lock(mode=2) as held:
        assert held["mode"] is None
        assert held["locked"] is True
    assert [problem["code"] for problem in held["problems"]] == ["power_mode"]
    assert not [line for line in called(here.environ) if "-m" in line]


def test_locks_nothing_that_was_not_stored(tmp_path: Path) -> None:
    here = device(tmp_path, STORES_NOTHING="1")
    before = here.files()
    with here.lock() as held:
        assert held["locked"] is False
        assert before == here.files()
    assert held["problems"][0]["message"].startswith("jetson_clocks stored nothing")


def test_says_how_to_put_back_by_hand_and_the_next_run_does_it(tmp_path: Path) -> None:
    here, before = found_in_mode_1(tmp_path)
    with here.lock(mode=0) as held:
        here.environ["SUDO"] = "refuse"
    assert held["put_back"] is False
    assert here.told[-1] == (
        f"put back by hand: cd '{here.folder}' && sudo jetson_clocks --restore clocks.store && sudo nvpmodel -m 1"
    )
    assert here.left() == [clocks.NOTE, clocks.STORE]
    # Still refused: what had been found is not stored over.
    with here.lock() as held:
        assert held["locked"] is True
    assert here.left() == [clocks.NOTE, clocks.STORE]
    here.environ["SUDO"] = ""
    with here.lock() as held:
        assert held["mode"]["id"] == 1
    assert before == here.files()
    assert here.left() == []


def test_limits_that_do_not_come_back_are_told(tmp_path: Path) -> None:
    here = device(tmp_path)
    with here.lock() as held:
        (here.folder / clocks.STORE).write_text("/sys/class/devfreq/15340000.vic/min_freq:1\n")
    assert held["put_back"] is False
    assert held["problems"][-1]["code"] == "put_back"


CHILD = """
import sys, time
from edgetune.device.program.clocks import locked
from os import environ
with locked(True, {folder!r}, 0, {root!r}, as_root=False) as held:
    print("locked", flush=True)
    time.sleep(60)
"""


def as_in_a_terminal() -> None:
    """Where these tests are run detached or in the background, these are ignored, and that is inherited."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def child(here: Device, **settings: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD.format(folder=str(here.folder), root=str(here.root))],
        env={**here.environ, "PYTHONPATH": str(ROOT), **settings},
        stdout=subprocess.PIPE,
        text=True,
        # A group of its own, to be signalled as a terminal or an ending session does.
        start_new_session=True,
        preexec_fn=as_in_a_terminal,
    )
    assert process.stdout
    assert process.stdout.readline() == "locked\n"
    assert here.state()["clocks"]["locked"] is True
    assert here.state()["mode"] == 0
    return process


def found_in_mode_1(tmp_path: Path, **settings: str) -> tuple[Device, dict[str, bytes]]:
    here = device(tmp_path, **settings)
    subprocess.run(["nvpmodel", "-m", "1"], env=here.environ, check=True)
    return here, here.files()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_puts_back_after_a_signal(number: signal.Signals, tmp_path: Path) -> None:
    here, before = found_in_mode_1(tmp_path)
    process = child(here)
    process.send_signal(number)
    process.communicate(timeout=20)
    # Whatever asked it to stop comes as one exception; Python ends itself by SIGINT where nobody catches that.
    assert process.returncode == -signal.SIGINT
    assert before == here.files()
    assert here.left() == []


def test_puts_back_though_signals_reach_its_tools_and_come_again(tmp_path: Path) -> None:
    here, before = found_in_mode_1(tmp_path)
    process = child(here, SLOW="0.3")
    os.killpg(process.pid, signal.SIGTERM)
    log = Path(here.environ["LOG"])
    while "jetson_clocks --restore" not in log.read_text():
        assert process.poll() is None
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.killpg(process.pid, number)
    process.communicate(timeout=20)
    assert before == here.files()
    assert here.left() == []


def test_the_next_run_puts_back_what_a_killed_one_left(tmp_path: Path) -> None:
    here, before = found_in_mode_1(tmp_path)
    process = child(here)
    process.kill()
    process.communicate(timeout=20)
    assert here.state()["clocks"]["locked"] is True
    with here.lock() as held:
        assert held["mode"]["id"] == 1
    assert here.told == [
        "a run before was killed: putting back the clocks and the power mode that it had found"
    ]
    assert before == here.files()
    assert here.left() == []


def test_after_a_restart_only_the_mode_is_put_back(tmp_path: Path) -> None:
    here, _ = found_in_mode_1(tmp_path)
    process = child(here)
    process.kill()
    process.communicate(timeout=20)
    boot = here.root / "proc/sys/kernel/random/boot_id"
    boot.write_text("another\n")
    log = Path(here.environ["LOG"])
    log.unlink()
    with here.lock():
        pass
    lines = [line for line in called(here.environ) if line.startswith("sudo")]
    assert lines[:2] == ["sudo -n nvpmodel -m 1", "sudo -n jetson_clocks --store clocks.store"]
    assert here.state()["mode"] == 1
    assert here.left() == []


def test_signals_are_as_before_and_ignored_ones_stay_ignored(tmp_path: Path) -> None:
    here = device(tmp_path)
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        before = [signal.getsignal(number) for number in look.STOPPING]
        with here.lock():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not before[look.STOPPING.index(signal.SIGTERM)]
        assert [signal.getsignal(number) for number in look.STOPPING] == before
    finally:
        signal.signal(signal.SIGHUP, former)


def test_the_note_says_what_was_found(tmp_path: Path) -> None:
    here = device(tmp_path)
    with here.lock():
        note = json.loads((here.folder / clocks.NOTE).read_text())
    assert note == {
        "boot": "6f1c4bd0-6fb8-4b0f-9a77-3a62f0f3e0b1",
        "clocks": {"gpu": 306.0, "cpu0": 729.6, "cpu1": 729.6},
        "mode": {"id": 1, "name": "25W"},
    }
