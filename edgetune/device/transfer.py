"""Files to and from a device: rsync where both sides have it, else sftp; either goes on with what was cut.

Only plain file names within one folder on either side, so neither program finds anything to expand or to quote;
where the folder's own path is not plain, sftp takes it, whose quoting is known.
How far they are is read from what either says meanwhile: rsync every second, sftp with each file that it begins.
It decides nothing about what is sent, and verifies nothing. It may import errors, progress and, of this folder, ssh.
"""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from edgetune.device.ssh import LOST, Connection, last_line
from edgetune.errors import EdgetuneError, MissingTool, StageError
from edgetune.progress import Progress

# rsync's server expands wildcards on its own, and older ones pass paths through a shell.
PLAIN_PATH = re.compile(r"[A-Za-z0-9._/+@=-]+")
RSYNC = (
    *("rsync", "--files-from=-", "--from0", "--protect-args", "--partial", "--inplace", "--no-whole-file"),
    *("--ignore-times", "--timeout=90", "--info=progress2", "--no-human-readable", "--outbuf=N"),
)
SFTP = ("sftp", "-b", "-")
AT_BYTE, AT_FILE = re.compile(r" +(\d+) +\d+%"), re.compile(r"sftp> (?:re)?(?:put|get) (\S+)")
Told = Callable[[str], None]
FULL = ("No space left", "Disk quota exceeded")


def send(
    device: Connection,
    step: str,
    local: Path,
    remote: str,
    have: dict[str, int],
    rsync: bool,
    progress: Progress,
) -> None:
    """Send files of one folder into another on the device.

    Args:
        device: connected.
        step: what this is for, for messages.
        local: the folder here.
        remote: the folder there, a whole path.
        have: bytes that are there already, by name.
        rsync: whether the device has it.
        progress: is told how far it is.

    Raises:
        EdgetuneError: the connection is lost, the disk there is full, …
    """
    sizes = {name: (local / name).stat().st_size for name in have}
    left = sum(sizes.values()) - sum(have.values())
    said = _by_rsync if rsync and _rsync_fits(device, remote) else _by_sftp
    failed = said(device, local, remote, have, ("put", "reput"), _shown(step, sizes, progress))
    progress.end()
    if failed is None:
        return
    if "Failure" in failed[1] and not _cut(device, *failed):
        # All that sftp says of a full disk.
        free = device.ask(step, "space", folder=remote)["free"]
        failed = (failed[0], "No space left there") if free < left else failed
    raise _error(device, step, *failed, full_at=f"the disk of {device.address.shown} is full")


def fetch(
    device: Connection,
    step: str,
    remote: str,
    local: Path,
    have: dict[str, int],
    rsync: bool,
    progress: Progress,
    sizes: dict[str, int],
) -> None:
    """Fetch files of a folder on the device into one here; `sizes` there, else as with `send`."""
    said = _by_rsync if rsync and _rsync_fits(device, remote) else _by_sftp
    failed = said(device, local, remote, have, ("get", "reget"), _shown(step, sizes, progress))
    progress.end()
    if failed is not None:
        raise _error(device, step, *failed, full_at=f"{local}: the disk of this machine is full")


def _rsync_fits(device: Connection, remote: str) -> bool:
    # rsync parts the words of its remote shell at blanks.
    return bool(shutil.which("rsync") and PLAIN_PATH.fullmatch(remote) and PLAIN_PATH.fullmatch(device.ssh))


def _shown(step: str, sizes: dict[str, int], progress: Progress) -> Told:
    """Return what reads how far rsync or sftp is, in the order of `sizes`, and moves a bar."""
    names, shown = list(sizes), 0
    progress.begin(step, sum(sizes.values()) // 1000, "kB")

    def told(line: str) -> None:
        nonlocal shown
        byte, file = AT_BYTE.match(line), AT_FILE.match(line)
        if byte:
            now = int(byte[1]) // 1000
        elif file and file[1] in sizes:
            now = sum(sizes[name] for name in names[: names.index(file[1])]) // 1000
        else:
            return
        progress.advance(max(0, now - shown))
        shown = max(now, shown)

    return told


def _by_rsync(
    device: Connection, local: Path, remote: str, have: dict[str, int], verbs: tuple[str, str], told: Told
) -> tuple[int, str] | None:
    port = ["-p", str(device.address.port)] if device.address.port else []
    shell = " ".join([device.ssh, *device.options, *port])
    there = f"{device.target}:{remote}/"
    ends = ["./", there] if verbs[0] == "put" else [there, "./"]
    return _run([*RSYNC, "-e", shell, "--", *ends], "\0".join(have), local, told)


def _by_sftp(
    device: Connection, local: Path, remote: str, have: dict[str, int], verbs: tuple[str, str], told: Told
) -> tuple[int, str] | None:
    if not shutil.which("sftp"):
        raise MissingTool("there is no sftp on this machine", hint="sudo apt install openssh-client")
    port = ["-P", str(device.address.port)] if device.address.port else []
    batch = [f"cd {_quoted(remote)}"]
    batch += [f"{verbs[1] if size else verbs[0]} {name} {name}" for name, size in have.items()]
    command = [*SFTP, "-S", device.ssh, *device.options, *port, device.target]
    return _run(command, "\n".join(batch) + "\n", local, told)


def _quoted(path: str) -> str:
    """Quote a path for sftp, which undoes a backslash before itself and before a quote."""
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _run(command: list[str], said: str, folder: Path, told: Told) -> tuple[int, str] | None:
    """Run a program, pass on the lines that it says; return its exit code and complaints where it fails."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as complaints:
        given.write(said.encode())
        given.seek(0)
        with subprocess.Popen(
            command, stdin=given, stdout=subprocess.PIPE, stderr=complaints, cwd=folder
        ) as process:
            try:
                _read(process, told)
            except BaseException:
                process.kill()
                raise
        complaints.seek(0)
        complained = complaints.read().decode(errors="replace")
    return (process.returncode, complained) if process.returncode else None


def _read(process: subprocess.Popen[bytes], told: Told) -> None:
    """Pass on what a program says; figures that go over each other end in a carriage return alone."""
    assert process.stdout is not None
    rest = b""
    while piece := process.stdout.read1():  # type: ignore[attr-defined]
        *lines, rest = re.split(rb"[\r\n]", rest + piece)
        for line in lines:
            told(line.decode(errors="replace"))


def _cut(device: Connection, code: int, said: str) -> bool:
    return code == 255 or any(sign in said for sign in LOST) or device.ended()


def _error(device: Connection, step: str, code: int, said: str, full_at: str) -> EdgetuneError:
    where = f"{device.address.shown}: {step}"
    if any(sign in said for sign in FULL):
        return StageError(f"{where}: {full_at}", hint="free some space; the same command goes on from here")
    if "is your shell clean" in said or "Received message too long" in said:
        return StageError(
            f"{where}: the shell there prints something of its own",
            hint="its start-up files (.bashrc) must print nothing where nobody is at a terminal",
        )
    if "subsystem request failed" in said:
        return MissingTool(
            f"{where}: no sftp there",
            hint="install rsync on both sides, or turn sftp on in the device's sshd_config",
        )
    if _cut(device, code, said):
        return device.lost(step, said)
    return StageError(f"{where}: {last_line(said)}", hint="the same command goes on from here")
