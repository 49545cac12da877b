"""A device by SSH: a real OpenSSH server on loopback, whole runs, and what goes wrong on the way."""

import ast
import fcntl
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import loopback
import pytest
import small_bundle
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from edgetune.artifact import sha256_of
from edgetune.cli import app
from edgetune.device import agent, remote, ssh, transfer
from edgetune.errors import ArtifactError, ConfigError, EdgetuneError, MissingTool, StageError
from edgetune.progress import Silent

# A minute together, with the starting of servers.
pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
# Stands where the program would: says so, waits until it may, writes results of this bundle.
WAITS = """
import hashlib, json, os, sys, time
from pathlib import Path
here = Path(sys.argv[0]).parent
print("at it", *sys.argv[1:], flush=True)
with (here / "times").open("a") as times:
    times.write("once ")
while not (here / "go").exists():
    time.sleep(0.02)
results = here / "results"
results.mkdir(exist_ok=True)
digest = hashlib.sha256((here / "work.json").read_bytes()).hexdigest()
(results / "fp16.plan").write_bytes(b"plan")
(results / "result.json").write_text(json.dumps({"bundle": digest, "finished": True, "errors": {}}))
print("done: Grüße", flush=True)
"""
GOES = WAITS.replace('while not (here / "go").exists():', "while False:")


class Told:
    """Progress that keeps what it is told, and calls somebody at a word."""

    def __init__(self, word: str = "", then: Callable[[], Any] | None = None) -> None:
        self.lines: list[str] = []
        self.bars: list[tuple[str, int, str]] = []
        self.steps: list[int] = []
        self.ended = 0
        self._word, self._then = word, then

    def begin(self, what: str, total: int, unit: str = "image") -> None:
        self.bars.append((what, total, unit))

    def advance(self, count: int = 1, **shown: float) -> None:
        self.steps.append(count)

    def end(self) -> None:
        self.ended += 1

    def line(self, text: str) -> None:
        self.lines.append(text)
        if self._then and self._word in text:
            self._then()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[loopback.Loopback]:
    made = loopback.Loopback(tmp_path_factory.mktemp("device"))
    runpy.run_path(str(HERE / "standin_trtexec.py"))["install"](made.bin, "10.3.0")
    made.start()
    yield made
    made.stop()


@pytest.fixture
def device(server: loopback.Loopback, monkeypatch: pytest.MonkeyPatch) -> Iterator[loopback.Loopback]:
    monkeypatch.setenv("PATH", f"{server.client}:{os.environ['PATH']}")
    yield server
    server.trust()
    shutil.rmtree(server.home)
    server.home.mkdir()
    until(lambda: not server.connected())


def until(true: Callable[[], Any], seconds: float = 20) -> None:
    given_up = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < given_up
        time.sleep(0.01)


def no_rsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_rsync_fits", lambda *_: False)


def contents(folder: Path) -> dict[str, str]:
    return {file.name: sha256_of(file) for file in folder.iterdir() if file.is_file()}


# --- the whole of it -------------------------------------------------------------------------------


def test_a_bundle_is_worked_off_there_and_its_results_come_back(
    device: loopback.Loopback, tmp_path: Path
) -> None:
    bundle = small_bundle.make(tmp_path / "small")
    told = Told()
    came = remote.run(bundle, device.url, ["--trtexec"], told)
    there = device.home / "edgetune" / "small"
    assert came["finished"], came
    assert not came["errors"]
    result = json.loads((bundle / "results" / "result.json").read_text())
    assert result["bundle"] == sha256_of(bundle / "work.json")
    assert set(result["engines"]) == {"fp16", "int8"}
    assert {"fp16.output0.bin", "int8.plan", "result.json"} <= set(came["files"])
    for name in came["files"]:
        assert (bundle / "results" / name).read_bytes() == (there / "results" / name).read_bytes()
    assert not list((bundle / "results").glob(".*"))
    assert any("build-int8" in line for line in told.lines)
    assert json.loads((there / "run.exit").read_text()) == 0
    # Once more: nothing is sent, nothing is built again.
    again = Told()
    assert remote.run(bundle, device.url, ["--trtexec"], again)["finished"]
    assert "build-int8: done before" in again.lines
    assert not any("sending" in line for line in again.lines)


def test_the_verbs(device: loopback.Loopback, tmp_path: Path) -> None:
    bundle = small_bundle.make(tmp_path / "b", GOES)

    def typed(*words: str) -> Any:
        done = CliRunner().invoke(app, ["device", *words, "--json"], catch_exceptions=False)
        assert done.exit_code == 0
        return json.loads(done.stdout)

    assert typed("push", str(bundle), device.url, "-q")["folder"] == str(device.home / "edgetune" / "b")
    assert typed("push", str(bundle), device.url, "-q")["sent"] == []
    assert typed("run", str(bundle), device.url, "-q", "--lock-clocks", "--seconds", "3")["finished"]
    ran = (device.home / "edgetune" / "b" / "run.log").read_text()
    assert ran.startswith("at it run --lock-clocks --seconds 3.0\n")
    assert typed("pull", str(bundle), device.url)["files"] == []
    assert set(typed("probe", device.url)) == {"found", "warnings"}
    shown = CliRunner().invoke(app, ["device", "probe", device.url], catch_exceptions=False)
    assert "TensorRT    not known" in shown.stdout


def test_nothing_stays_after_a_look(device: loopback.Loopback) -> None:
    from edgetune.device.packing import write_program

    write_program(device.folder / "program")
    found = remote.probe(device.url, (device.folder / "program").read_bytes())
    assert found["found"]["python"]
    assert not list(device.home.iterdir())
    assert not list(device.scratch.glob("edgetune*"))


def test_results_come_on_a_stick(tmp_path: Path) -> None:
    bundle = small_bundle.make(tmp_path / "b", GOES)
    stick = Path(shutil.copytree(bundle, tmp_path / "stick"))
    write_results(stick)
    assert remote.pull(bundle, str(stick), Silent())["files"] == ["fp16.plan", "result.json"]
    shutil.rmtree(bundle / "results")
    assert remote.pull(bundle, str(stick / "results"), Silent())["files"] == ["fp16.plan", "result.json"]
    with pytest.raises(ArtifactError, match="no results there"):
        remote.pull(bundle, str(tmp_path), Silent())


def write_results(folder: Path) -> Path:
    results = folder / "results"
    results.mkdir(parents=True, exist_ok=True)
    (results / "fp16.plan").write_bytes(b"plan")
    result = {"bundle": sha256_of(folder / "work.json"), "finished": True, "errors": {}}
    (results / "result.json").write_text(json.dumps(result))
    return results


# --- cut ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["rsync", "sftp"])
def test_a_cut_transfer_goes_on(
    device: loopback.Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    bundle = small_bundle.make(tmp_path / "b", GOES, large_bin=os.urandom(4_000_000))
    if by == "sftp":
        no_rsync(monkeypatch)
    with monkeypatch.context() as slow:
        slow.setattr(transfer, "RSYNC", (*transfer.RSYNC, "--bwlimit=1000"))
        slow.setattr(transfer, "SFTP", (*transfer.SFTP, "-l", "8000"))
        there = device.home / "edgetune" / "b"

        def cut() -> None:
            until(lambda: any(file.stat().st_size > 500_000 for file in there.glob(".incoming.*/large.bin")))
            device.cut()

        cutter = threading.Thread(target=cut)
        cutter.start()
        with pytest.raises(StageError, match="device: send: connection lost") as lost:
            remote.push(bundle, device.url, Silent())
        cutter.join()
        assert "goes on from here" in lost.value.hint
    assert not (there / "work.json").exists()
    kept = {}
    real = transfer.send

    def seen(*arguments: Any) -> None:
        kept.update(arguments[4])
        real(*arguments)

    monkeypatch.setattr(transfer, "send", seen)
    remote.push(bundle, device.url, Silent())
    assert 500_000 < kept["large.bin"] < 4_000_000
    assert {
        n: d for n, d in contents(there).items() if n != ".edgetune" and not n.startswith("run.")
    } == contents(bundle)
    assert not list(there.glob(".incoming.*"))


@pytest.mark.parametrize("by", ["rsync", "sftp"])
def test_how_far_a_transfer_is(
    device: loopback.Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    bundle = small_bundle.make(tmp_path / "b", GOES, large_bin=os.urandom(3_000_000))
    if by == "sftp":
        no_rsync(monkeypatch)
    monkeypatch.setattr(transfer, "RSYNC", (*transfer.RSYNC, "--bwlimit=2000"))
    told = Told()
    remote.push(bundle, device.url, told)
    total = sum(file.stat().st_size for file in bundle.iterdir()) // 1000
    assert told.bars == [("send", total, "kB")]
    assert told.ended == 1
    assert min(told.steps) >= 0
    if by == "rsync":
        assert sum(told.steps) == total
        assert len([step for step in told.steps if step]) >= 2, "not at the end alone"
    else:
        assert total >= sum(told.steps) > 3000, "files up to the last"
    write_results(device.home / "edgetune" / "b")
    back = Told()
    remote.pull(bundle, device.url, back)
    assert [bar[0] for bar in back.bars] == ["pull"]
    assert back.ended == 1


@pytest.mark.parametrize("by", ["rsync", "sftp"])
def test_a_cut_pull_goes_on(
    device: loopback.Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    bundle = small_bundle.make(tmp_path / "b", GOES)
    remote.push(bundle, device.url, Silent())
    results = write_results(device.home / "edgetune" / "b")
    (results / "fp16.plan").write_bytes(os.urandom(4_000_000))
    if by == "sftp":
        no_rsync(monkeypatch)
    with monkeypatch.context() as slow:
        slow.setattr(transfer, "RSYNC", (*transfer.RSYNC, "--bwlimit=1000"))
        slow.setattr(transfer, "SFTP", (*transfer.SFTP, "-l", "8000"))
        incoming = bundle / "results" / ".incoming" / "fp16.plan"

        def cut() -> None:
            until(lambda: incoming.exists() and incoming.stat().st_size > 500_000)
            device.cut()

        cutter = threading.Thread(target=cut)
        cutter.start()
        with pytest.raises(StageError, match="device: pull: connection lost"):
            remote.pull(bundle, device.url, Silent())
        cutter.join()
    assert 500_000 < incoming.stat().st_size < 4_000_000
    assert not (bundle / "results" / "result.json").exists()
    remote.pull(bundle, device.url, Silent())
    assert (bundle / "results" / "fp16.plan").read_bytes() == (results / "fp16.plan").read_bytes()
    assert not incoming.parent.exists()


def test_a_run_outlives_the_connection(device: loopback.Loopback, tmp_path: Path) -> None:
    bundle = small_bundle.make(tmp_path / "b", WAITS)
    there = device.home / "edgetune" / "b"
    with pytest.raises(StageError, match="device: follow: connection lost") as lost:
        remote.run(bundle, device.url, ["--seconds", "9"], Told("at it", device.cut))
    assert "goes on from here" in lost.value.hint
    os.kill(json.loads((there / "run.pid").read_text()), 0)
    told = Told("at it", (there / "go").touch)
    assert remote.run(bundle, device.url, [], told)["finished"]
    assert "device: this bundle is at work there already (--seconds 9); following it" in told.lines
    assert told.lines[-1] == "done: Grüße"
    assert (there / "times").read_text() == "once "


def test_two_runs_at_once(device: loopback.Loopback, tmp_path: Path) -> None:
    first = small_bundle.make(tmp_path / "one" / "b", WAITS)
    second = small_bundle.make(tmp_path / "two" / "b", WAITS, other_bin=b"other")
    there = device.home / "edgetune" / "b"
    asked: list[EdgetuneError] = []

    def at_once() -> None:
        for meanwhile in (remote.run, remote.push):
            with pytest.raises(StageError, match="another run is at work there") as busy:
                meanwhile(second, device.url, *([[]] if meanwhile is remote.run else []), Silent())
            asked.append(busy.value)
        (there / "go").touch()

    assert remote.run(first, device.url, [], Told("at it", at_once))["finished"]
    assert len(asked) == 2
    assert f"edgetune device stop {device.url}{there}" in asked[0].hint
    assert contents(first).items() <= contents(there).items()
    # Started by hand: it holds the program's own lock.
    with (there / "results" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StageError, match="another run is at work there"):
            remote.run(first, device.url, [], Silent())
    assert remote.run(second, device.url, [], Silent())["finished"]


def test_a_start_takes_a_folder_once(tmp_path: Path) -> None:
    with agent._held(tmp_path):
        assert agent._running(tmp_path) == {}
        with pytest.raises(agent.Refused, match="another run"):
            agent._held(tmp_path)
    assert agent._running(tmp_path) is None


# --- who is there ---------------------------------------------------------------------------------


def test_host_keys_are_never_waved_through(device: loopback.Loopback, tmp_path: Path) -> None:
    bundle = small_bundle.make(tmp_path / "b", GOES)
    other = loopback.key(tmp_path / "other")
    device.known_hosts.write_text(f"[127.0.0.1]:{device.port} {other.with_suffix('.pub').read_text()}")
    changed = device.known_hosts.read_bytes()
    with pytest.raises(MissingTool, match="its host key has changed") as error:
        remote.push(bundle, device.url, Silent())
    assert f"ssh-keygen -R '[device]:{device.port}'" in error.value.hint
    assert device.known_hosts.read_bytes() == changed
    device.known_hosts.write_bytes(b"")
    with pytest.raises(MissingTool, match="its host key is not known here") as error:
        remote.push(bundle, device.url, Silent())
    assert f"ssh -p {device.port} device" in error.value.hint
    assert device.known_hosts.read_bytes() == b""
    assert not list(device.home.iterdir())


def test_a_key_that_is_not_let_in(device: loopback.Loopback) -> None:
    keys = device.folder / "authorized_keys"
    kept = keys.read_bytes()
    keys.write_bytes(b"")
    try:
        with pytest.raises(MissingTool, match="does not let this user in") as error:
            remote.probe(device.url, b"")
    finally:
        keys.write_bytes(kept)
    assert "ssh-copy-id" in error.value.hint


def test_nobody_there(device: loopback.Loopback) -> None:
    with pytest.raises(MissingTool, match="device: connect: no ssh answers there"):
        remote.probe(f"ssh://device:{loopback.free_port()}", b"")


def test_no_client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingTool, match="no ssh on this machine"):
        remote.probe("ssh://device", b"")


@pytest.fixture
def python_there(device: loopback.Loopback) -> Iterator[Callable[[str], None]]:
    kept = (device.bin / "python3").read_text()
    yield lambda line: device.put("python3", line)
    (device.bin / "python3").write_text(kept)


def test_no_python_there(device: loopback.Loopback, python_there: Callable[[str], None]) -> None:
    python_there("exit 127")
    with pytest.raises(MissingTool, match="device: probe: there is no python3"):
        remote.probe(device.url, b"")


def test_a_python_that_is_too_old(device: loopback.Loopback, python_there: Callable[[str], None]) -> None:
    python_there(
        f"exec {sys.executable} -I -S -c 'import sys; sys.version_info = (3, 6, 9); exec(sys.stdin.read())'"
    )
    with pytest.raises(
        MissingTool, match=r"device: probe: python3 there is 3\.6, and 3\.8 is needed"
    ) as caught:
        remote.probe(device.url, b"")
    assert "on JetPack 4 copy the bundle there and do as its README.txt says" in caught.value.hint


def test_a_shell_that_talks_and_one_that_fails(
    device: loopback.Loopback, tmp_path: Path, python_there: Callable[[str], None]
) -> None:
    bundle = small_bundle.make(tmp_path / "b", GOES)
    python_there(f'echo "Welcome!"; printf "{agent.TOLD}{{\\n"; exec {sys.executable} "$@"')
    assert remote.push(bundle, device.url, Silent())["sent"]
    python_there("echo boom >&2; exit 1")
    with pytest.raises(StageError, match=r"device: prepare: no answer \(exit 1\): boom"):
        remote.push(bundle, device.url, Silent())


# --- full, damaged, of another --------------------------------------------------------------------


def test_a_full_disk_is_seen_before_anything_is_sent(
    device: loopback.Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = small_bundle.make(tmp_path / "b", GOES)
    monkeypatch.setattr(agent, "MARGIN_BYTES", 1 << 60)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(agent.Refused, match="the disk is full"):
        agent.prepare("", "b", remote._files(bundle), "key")


@pytest.mark.parametrize("by", ["rsync", "sftp"])
def test_a_disk_that_fills_up(
    device: loopback.Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    bundle = small_bundle.make(tmp_path / "b", GOES, large_bin=os.urandom(3_000_000))
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = os.geteuid() == 0 and not os.system(f"mount -t tmpfs -o size=2m none {disk} 2>/dev/null")
    if not mounted:
        pytest.skip("a small disk cannot be mounted here")
    try:
        url = f"{device.url}{disk}/b"
        with pytest.raises(
            StageError, match=r"device: prepare: .* the disk is full: 2\.1 MB are left"
        ) as error:
            remote.push(bundle, url, Silent())
        assert "free some space there" in error.value.hint
        # As if somebody else filled it meanwhile.
        source = ssh._source
        unlucky = lambda do, request: source(do, request).replace(  # noqa: E731
            b"if needed + MARGIN_BYTES > free", b"if False"
        )
        monkeypatch.setattr(ssh, "_source", unlucky)
        if by == "sftp":
            no_rsync(monkeypatch)
        with pytest.raises(StageError, match="device: send: the disk of device is full"):
            remote.push(bundle, url, Silent())
        assert not (disk / "b" / "work.json").exists()
    finally:
        os.system(f"umount {disk}")


def test_what_arrives_otherwise_than_sent_is_sent_again(
    device: loopback.Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = small_bundle.make(tmp_path / "b", GOES)
    there = device.home / "edgetune" / "b"
    real, times = transfer.send, []

    def spoilt(*arguments: Any) -> None:
        real(*arguments)
        times.append(sorted(arguments[4]))
        if len(times) in spoil:
            file = next(there.glob(".incoming.*/int8.onnx"))
            file.write_bytes(b"x" * file.stat().st_size)

    monkeypatch.setattr(transfer, "send", spoilt)
    spoil = {1, 2}
    with pytest.raises(StageError, match=r"device: verify: int8\.onnx: arrived otherwise than sent"):
        remote.push(bundle, device.url, Silent())
    assert not (there / "int8.onnx").exists()
    assert not (there / "work.json").exists()
    times.clear()
    spoil = {1}
    remote.push(bundle, device.url, Silent())
    assert times == [["int8.onnx"], ["int8.onnx"]]
    assert contents(bundle).items() <= contents(there).items()


def test_a_damaged_bundle_is_not_sent(tmp_path: Path) -> None:
    bundle = small_bundle.make(tmp_path / "b", GOES)
    (bundle / "int8.onnx").write_bytes(b"cut")
    with pytest.raises(ArtifactError, match="not the file that was bundled"):
        remote.push(bundle, "ssh://nobody.invalid", Silent())
    with pytest.raises(ConfigError, match="no bundle"):
        remote.push(tmp_path, "ssh://nobody.invalid", Silent())


def test_a_file_that_was_damaged_there_is_sent_again(device: loopback.Loopback, tmp_path: Path) -> None:
    bundle = small_bundle.make(tmp_path / "b", GOES)
    remote.push(bundle, device.url, Silent())
    file = device.home / "edgetune" / "b" / "int8.onnx"
    file.write_bytes(b"x" * file.stat().st_size)
    assert remote.push(bundle, device.url, Silent())["sent"] == ["int8.onnx"]
    assert file.read_bytes() == (bundle / "int8.onnx").read_bytes()


def test_a_result_that_is_cut_or_of_another_bundle(device: loopback.Loopback, tmp_path: Path) -> None:
    bundle = small_bundle.make(tmp_path / "b", GOES)
    remote.run(bundle, device.url, [], Silent())
    before = contents(bundle / "results")
    there = device.home / "edgetune" / "b"
    whole = (there / "results" / "result.json").read_text()
    (there / "results" / "fp16.plan").write_bytes(b"another")
    for cut in (whole[:-9], "[]"):
        (there / "results" / "result.json").write_text(cut)
        with pytest.raises(ArtifactError, match=r"device: result\.json there is cut or damaged"):
            remote.pull(bundle, device.url, Silent())
    (there / "results" / "result.json").write_text(whole.replace(sha256_of(bundle / "work.json"), "0" * 64))
    with pytest.raises(ArtifactError, match="the results there are of another bundle"):
        remote.pull(bundle, device.url, Silent())
    (there / "work.json").write_text("{}")
    with pytest.raises(ArtifactError, match="lies in another bundle"):
        remote.pull(bundle, device.url, Silent())
    (there / "results" / "result.json").unlink()
    with pytest.raises(ArtifactError, match="no results there"):
        remote.pull(bundle, device.url, Silent())
    assert contents(bundle / "results") == before
    # A rerun mends all of it.
    assert remote.run(bundle, device.url, [], Silent())["finished"]


@pytest.mark.parametrize(
    ("program", "kind", "message"),
    [
        (
            "print('error: neither is here\\n  install it'); raise SystemExit(4)",
            MissingTool, r"device: run: neither is here \(exit 4\)",
        ),
        ("import os; os.kill(os.getpid(), 9)", StageError, r"device: run: it said nothing \(exit -9\)"),
        ("print('stopped'); raise SystemExit(130)", StageError, r"device: run: stopped \(exit 130\)"),
        ("import os; os.kill(os.getppid(), 9)", StageError, "it was killed, or the device went down"),
    ],
    ids=["error", "killed", "stopped", "all killed"],
)  # fmt: skip
def test_a_program_that_fails(
    device: loopback.Loopback, tmp_path: Path, program: str, kind: type[EdgetuneError], message: str
) -> None:
    bundle = small_bundle.make(tmp_path / "b", program)
    with pytest.raises(kind, match=message) as error:
        remote.run(bundle, device.url, [], Silent())
    assert error.value.hint
    assert not (bundle / "results").exists()


def test_steps_that_failed_come_with_the_results(device: loopback.Loopback, tmp_path: Path) -> None:
    errors = '{"build-int8": {"message": "too little memory", "hint": "add swap", "code": 6}}'
    program = GOES.replace('True, "errors": {}', f'False, "errors": {errors}') + "\nraise SystemExit(6)"
    bundle = small_bundle.make(tmp_path / "b", program)
    done = CliRunner().invoke(app, ["device", "run", str(bundle), device.url, "-q"])
    assert done.exit_code == 6
    assert "build-int8: too little memory\n    add swap" in done.stdout


# --- names ----------------------------------------------------------------------------------------

HOSTILE = ["-rf 'a\"; touch hit; $(touch hit) `touch hit` &", "*?[x]\\*\\[\\\\ü\\", "~"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_of_folders(device: loopback.Loopback, tmp_path: Path, name: str) -> None:
    from urllib.parse import quote

    bundle = small_bundle.make(tmp_path / name, GOES)
    assert remote.run(bundle, device.url, [], Silent())["finished"]
    assert (bundle / "results" / "fp16.plan").read_bytes() == b"plan"
    folder = device.home / "other" / name
    assert remote.push(bundle, f"{device.url}/~/other/{quote(name)}", Silent())["folder"] == str(folder)
    assert contents(bundle).items() <= contents(folder).items()
    assert sorted(p.name for p in device.home.iterdir()) == ["edgetune", "other"]
    assert not list(device.home.rglob("hit")) + list(Path.home().glob("hit")) + list(bundle.rglob("hit"))


def test_names_never_reach_a_remote_shell(
    device: loopback.Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = tmp_path / "spy"
    spy.mkdir()
    log = tmp_path / "commands"
    inner = device.client / "ssh"
    (spy / "ssh").write_text(
        f'#!/bin/sh\nfor word; do last=$word; done\necho "$last" >> {log}\nexec {inner} "$@"\n'
    )
    (spy / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{spy}:{os.environ['PATH']}")
    bundle = small_bundle.make(tmp_path / "we $(ird)", GOES)
    remote.run(bundle, device.url, [], Silent())
    remote.run(small_bundle.make(tmp_path / "plain", GOES), device.url, [], Silent())
    sent = set(log.read_text().splitlines())
    assert {ssh.PYTHON, ssh.WAIT} < sent
    # sftp asks for its subsystem; rsync tells its server by its own protocol where to write.
    others = {line for line in sent if "edgetune" in line or "ird" in line or "plain" in line}
    assert not others
    assert len(sent) <= 5


def test_other_folders_are_left_alone(device: loopback.Loopback, tmp_path: Path) -> None:
    bundle = small_bundle.make(tmp_path / "b", GOES)
    theirs = device.home / "theirs"
    theirs.mkdir()
    (theirs / "work.json").write_text("mine")
    for folder in (f"{theirs}", "/~/.", "/~/theirs/work.json"):
        with pytest.raises((ConfigError, StageError), match=r"holds something else|Not a directory"):
            remote.push(bundle, f"{device.url}{folder}", Silent())
    assert (theirs / "work.json").read_text() == "mine"
    assert [p.name for p in theirs.iterdir()] == ["work.json"]
    # A link within the folder is replaced, not followed.
    remote.push(bundle, device.url, Silent())
    link = device.home / "edgetune" / "b" / "int8.onnx"
    link.unlink()
    link.symlink_to(theirs / "work.json")
    remote.push(bundle, device.url, Silent())
    assert not link.is_symlink()
    assert (theirs / "work.json").read_text() == "mine"


def test_a_device_cannot_write_elsewhere_here(
    device: loopback.Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = small_bundle.make(tmp_path / "b", GOES)
    remote.run(bundle, device.url, [], Silent())
    results = device.home / "edgetune" / "b" / "results"
    (results / "secret").symlink_to("/etc/passwd")
    (results / "-rf").write_bytes(b"")
    (results / "new.bin").write_bytes(b"new")
    assert remote.pull(bundle, device.url, Silent())["files"] == ["new.bin"]
    listed = agent.results(str(results))
    for name in ("../work.json", "/etc/passwd", "", ".lock", "a\nb"):
        lie = {**listed, "files": {**listed["files"], name: ["0" * 64, 1]}}
        monkeypatch.setattr(ssh.Connection, "ask", lambda *_, lie=lie, **__: lie)
        with pytest.raises(ArtifactError, match="not plain ones"):
            remote.pull(bundle, device.url, Silent())
    assert "secret" not in contents(bundle / "results")


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("ssh://nano", ("", "nano", 0, "")),
        ("ssh://me@nano.local:2222/", ("me", "nano.local", 2222, "")),
        ("ssh://me@[fe80::1]:22/data/my%20bundle", ("me", "fe80::1", 22, "/data/my bundle")),
        ("ssh://nano/~/b", ("", "nano", 0, "b")),
        ("ssh://nano/~", ("", "nano", 0, "")),
    ],
)
def test_addresses(url: str, address: tuple[str, str, int, str]) -> None:
    assert ssh.address_of(url) == address


@pytest.mark.parametrize(
    "url",
    [
        "nano", "ssh://", "ssh:///folder", "ssh://-oProxyCommand=x", "ssh://me@-x", "ssh://-l@nano", "ssh://a b",
        "ssh://nano:0x", "ssh://nano:0", "ssh://nano:99999", "ssh://nano:-1", "ssh://me:pass@nano",
        "ssh://na;no", "ssh://m$e@nano", "ssh://nano/a\nb", "ssh://nano/a%00b", "ssh://nano/%1b", "http://nano",
        "ssh://nano:²", "ssh://[::1", "ssh://[x]",
    ],
)  # fmt: skip
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ConfigError) as error:
        ssh.address_of(url)
    assert error.value.hint
    assert "pass" not in error.value.message.replace("passwords", "")


@given(st.text(max_size=30))
def test_no_address_holds_what_a_shell_or_an_option_would_see(text: str) -> None:
    try:
        address = ssh.address_of(f"ssh://{text}")
    except ConfigError:
        return
    assert ssh.NAME.fullmatch(address.host) or ":" in address.host or "[" in text
    assert not address.user or ssh.NAME.fullmatch(address.user)
    assert address.folder.isprintable()


# --- what it says and is ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("ssh: Could not resolve hostname nano: Name or service not known", "there is no host of that name"),
        ("ssh: connect to host nano port 22: Connection refused", "no ssh answers there"),
        ("ssh: connect to host nano port 22: No route to host", "No route to host"),
        ("me@nano: Permission denied (publickey,password).", "does not let this user in"),
        ("", "it said nothing"),
    ],
)
def test_words_for_no_connection(said: str, message: str) -> None:
    error = ssh.unreachable(ssh.Address("me", "nano", 0, ""), said)
    assert error.message.startswith("me@nano: connect: ")
    assert message in error.message
    assert error.hint


@pytest.mark.parametrize(
    ("code", "said", "message"),
    [
        (12, "rsync: connection unexpectedly closed (0 bytes received so far)", "connection lost"),
        (255, "Connection to nano closed by remote host.", "connection lost"),
        (11, 'rsync: write failed on "x": No space left on device (28)', "the disk is full"),
        (2, "protocol version mismatch -- is your shell clean?", "prints something of its own"),
        (255, "subsystem request failed on channel 0", "no sftp there"),
        (23, "rsync: mkdir failed: Permission denied", "rsync: mkdir failed: Permission denied"),
    ],
)
def test_words_for_a_failed_transfer(
    code: int, said: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh.shutil, "which", lambda name: name)
    monkeypatch.setattr(ssh.Connection, "ended", lambda _: False)
    device = ssh.Connection(ssh.Address("", "nano", 0, ""))
    error = transfer._error(device, "send", code, said, "the disk is full")
    assert error.message.startswith("nano: send: ")
    assert message in error.message
    assert error.hint


def test_the_agent_needs_nothing_but_an_old_python() -> None:
    source = Path(agent.__file__).read_text(encoding="utf-8")
    # 3.6, so that it can say that this is too old.
    tree = ast.parse(source, feature_version=(3, 6))
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "." for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert len(names) > 10
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names


def test_host_keys_are_left_to_the_user() -> None:
    sources = [Path(module.__file__ or "").read_text() for module in (ssh, transfer, remote, agent)]
    assert all(source for source in sources)
    for word in ("StrictHostKeyChecking", "UserKnownHostsFile", "CheckHostIP", "/dev/null"):
        assert not [source for source in sources if word in source]


# Ends when it is asked to, and puts something back first; `args` are what else its command line holds.
ENDS = """
import os, signal, sys, time
from pathlib import Path
here = Path(sys.argv[0]).parent
def stop(*_):
    time.sleep(0.3)
    (here / "put back").touch()
    sys.exit(130)
signal.signal(signal.SIGTERM, stop)
print("at it", flush=True)
time.sleep(600)
"""


def stopping(*words: str) -> str:
    done = CliRunner().invoke(app, ["device", "stop", *words], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


@pytest.mark.parametrize("by", ["bundle", "folder", "all"])
def test_a_run_is_stopped_and_puts_back_first(device: loopback.Loopback, tmp_path: Path, by: str) -> None:
    bundle = small_bundle.make(tmp_path / "b $(touch hit)", ENDS)
    there = device.home / "edgetune" / bundle.name
    url = ssh.address_of(device.url).url(str(there)) if by == "folder" else device.url
    words = [url, *([str(bundle)] if by == "bundle" else [])]
    said: list[str] = []
    with pytest.raises(StageError, match=r"device: run: at it \(exit 130\)"):
        remote.run(bundle, device.url, [], Told("at it", lambda: said.append(stopping(*words))))
    assert said == [f"{there}: stopped; edgetune device run goes on from there\n"]
    assert (there / "put back").exists(), "it was waited for"
    assert stopping(*words).endswith(": nothing is at work there\n")
    assert remote.stop(device.url, tmp_path / "never there")["stopped"] == {}


def test_only_what_was_started_there_is_stopped(device: loopback.Loopback, tmp_path: Path) -> None:
    bundle = small_bundle.make(tmp_path / "b", ENDS)
    remote.push(bundle, device.url, Silent())
    there = device.home / "edgetune" / "b"
    (there / "results").mkdir()
    with subprocess.Popen(["sleep", "600"]) as other:
        try:
            # The number is another's by now; then it was started by hand.
            (there / "run.pid").write_text(str(other.pid))
            for lock in (there / "run.lock", there / "results" / ".lock"):
                with lock.open("w") as held:
                    fcntl.flock(held, fcntl.LOCK_EX)
                    with pytest.raises(
                        StageError, match=r"device: stop: .*/b: what is at work .* started by hand"
                    ):
                        remote.stop(device.url, bundle)
            assert remote.stop(device.url, bundle)["stopped"] == {}, "nothing is at work"
            assert other.poll() is None
        finally:
            other.kill()


def test_what_does_not_end_is_told(
    device: loopback.Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = small_bundle.make(tmp_path / "b", ENDS.replace("sys.exit(130)", "pass"))
    source = ssh._source
    monkeypatch.setattr(ssh, "_source", lambda *a: source(*a).replace(b"2.0, 60, 240", b"2.0, 60, 1"))
    number = device.home / "edgetune" / "b" / "run.pid"

    def stop() -> None:
        with pytest.raises(StageError, match=r"has not ended after 1 s"):
            remote.stop(device.url, bundle)
        os.kill(json.loads(number.read_text()), signal.SIGKILL)

    with pytest.raises(StageError, match=r"exit -9"):
        remote.run(bundle, device.url, [], Told("at it", stop))


def test_the_real_program_is_stopped_and_goes_on(device: loopback.Loopback, tmp_path: Path) -> None:
    bundle = small_bundle.make(tmp_path / "small")
    with pytest.raises(StageError, match=r"stopped; the same command goes on from here \(exit 130\)"):
        remote.run(bundle, device.url, ["--trtexec"], Told("build-int8 …", lambda: remote.stop(device.url)))
    told = Told()
    assert remote.run(bundle, device.url, ["--trtexec"], told)["finished"]
    assert "build-fp16: done before" in told.lines


def test_a_url_is_read_as_it_is_written() -> None:
    for address in (("me", "nano", 2222, "/a b/$(x)"), ("", "fe80::1", 0, "/ü?#%"), ("", "nano", 0, "/b")):
        assert ssh.address_of(ssh.Address(*address).url(address[3])) == address
