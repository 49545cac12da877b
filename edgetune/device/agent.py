"""What the workstation has done on a device: this file's source goes to `python3` there, with one request.

It looks after one folder: makes it, takes in files that were sent, starts the bundle's program detached, tells
what that says, stops it, and lists what came of it. It changes nothing outside that folder. Names and paths arrive as
JSON, so no shell ever sees them. It knows nothing of connections, nor of what a bundle means.
Standard library only, of Python 3.8; it parses on 3.6, so that it can say that this is too old.
"""

import base64
import codecs
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any, Callable, Dict, List, Optional

OLDEST = (3, 8)
# What starts a line that is meant for the workstation: a shell's own start-up files may print others.
TOLD = "edgetune-device:"
MARK, WORK, PROGRAM = ".edgetune", "work.json", "edgetune.pyz"
RESULTS, RESULT = "results", "result.json"
LOCK, LOG, PID, EXIT, RUN = "run.lock", "run.log", "run.pid", "run.exit", "run.json"
INCOMING = ".incoming."
PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
POLL_S, HEARTBEAT_S, PATIENCE_S, PROBE_S, STOP_S = 0.1, 5.0, 2.0, 60, 240
# Left free on the device's disk beside what is sent.
MARGIN_BYTES = 1 << 20


class Refused(Exception):
    """What cannot be done, with what to do about it and the exit code that it means."""

    def __init__(self, message: str, hint: str = "", code: int = 6) -> None:
        super().__init__(message)
        self.message, self.hint, self.code = message, hint, code


def answer(request: str) -> None:
    """Do what a request asks, and tell what came of it."""
    wanted = json.loads(request)
    try:
        if sys.version_info < OLDEST:
            found = f"{sys.version_info[0]}.{sys.version_info[1]}"
            by_hand = "JetPack 5 or later brings it; on JetPack 4 copy the bundle there and do as its README.txt says"
            raise Refused(f"python3 there is {found}, and 3.8 is needed", by_hand, 4)
        reply = OPERATIONS[wanted.pop("do")](**wanted)
    except Refused as refused:
        reply = {"error": refused.message, "hint": refused.hint, "code": refused.code}
    except BrokenPipeError:
        # The workstation has gone; nobody is left to be told.
        os._exit(1)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "free some space there" if full else "mend it there, or name another folder: ssh://HOST/FOLDER"
        reply = {"error": str(error), "hint": f"{hint}; the same command goes on from here", "code": 6}
    tell(reply)


def tell(message: Dict[str, Any]) -> None:
    """Send the workstation a message."""
    sys.stdout.write(TOLD + json.dumps(message) + "\n")
    sys.stdout.flush()


def probe(folder: str, name: str, program: str) -> Dict[str, Any]:
    """Run the program's look at the device; it lies in a folder of its own only as long as that takes.

    Args:
        folder: see `_place`; the disk that it lies on is looked at.
        name: see `_place`.
        program: the program's file in base64.
    """
    where = _place(folder, name)
    scratch = Path(tempfile.mkdtemp(prefix="edgetune-"))
    try:
        (scratch / PROGRAM).write_bytes(base64.b64decode(program))
        looked_at = str(where if where.is_dir() else Path.home())
        done = subprocess.run(
            [sys.executable, "-I", "-S", str(scratch / PROGRAM), "probe", "--json", "--folder", looked_at],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PROBE_S,
        )
        return {"probe": json.loads(done.stdout.decode("utf-8", "replace"))}
    except subprocess.TimeoutExpired as error:
        raise Refused("no answer within a minute", "is a disk or a driver stuck there?") from error
    except ValueError as error:
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise Refused(f"the program failed there: {''.join(last)}") from error
    finally:
        shutil.rmtree(str(scratch), ignore_errors=True)


def prepare(folder: str, name: str, files: Dict[str, List[Any]], key: str) -> Dict[str, Any]:
    """Make a bundle's folder, and tell which of its files are not there yet.

    Args:
        folder: see `_place`.
        name: see `_place`.
        files: SHA-256 and size by name.
        key: digest of all of them: files that were sent in part are gone on with for the same only.

    Returns:
        `folder`; `running`, what is at work there (see `start`), or None; `missing`, with the bytes that are
        there already, by name; `incoming`, the folder to send into; `rsync`, whether that is there.
    """
    path = _own(_place(folder, name))
    incoming = path / (INCOMING + key)
    missing = {item: 0 for item in sorted(files) if not _is(path / _plain(item), *files[item])}
    running = _running(path)
    if missing and running is None:
        path.mkdir(parents=True, exist_ok=True)
        (path / MARK).touch()
        for entry in path.glob(f"{INCOMING}*"):
            if entry != incoming or entry.is_symlink():
                _delete(entry)
        incoming.mkdir(exist_ok=True)
        for item in missing:
            missing[item] = _there_already(incoming / item, files[item][1])
        needed = sum(files[item][1] - missing[item] for item in missing)
        free = shutil.disk_usage(str(path)).free
        if needed + MARGIN_BYTES > free:
            raise Refused(
                f"{path}: the disk is full: {free / 1e6:.1f} MB are left, {needed / 1e6:.1f} MB are to come",
                "free some space there; the same command goes on from here",
            )
    return {
        "folder": str(path),
        "running": running,
        "missing": missing,
        "incoming": str(incoming),
        "rsync": bool(shutil.which("rsync")),
    }


def accept(folder: str, files: Dict[str, List[Any]], key: str) -> Dict[str, Any]:
    """Take files that were sent into their folder, the plan of work last; `bad` are not what was meant."""
    path = Path(folder)
    incoming = path / (INCOMING + key)
    bad = [item for item in sorted(files) if not _is(incoming / _plain(item), *files[item])]
    for item in bad:
        _delete(incoming / item)
    if not bad:
        with _held(path):
            for item in sorted(files, key=lambda item: (item == WORK, item)):
                (incoming / item).replace(path / item)
            _delete(incoming)
            (path / PROGRAM).chmod(0o755)
    return {"bad": bad}


def start(folder: str, arguments: List[str], digest: str) -> Dict[str, Any]:
    """Start a bundle's program, which goes on when the connection ends.

    Its number is in `run.pid`, what it says in `run.log`, at the end its exit code in `run.exit`.

    Args:
        folder: of the bundle.
        arguments: for the program.
        digest: of the plan of work that is meant.
    """
    path = Path(folder)
    if _sha256(path / WORK) != digest:
        raise Refused(f"{path}: another bundle came there meanwhile", "run again")
    with _held(path):
        for name in (EXIT, PID):
            _delete(path / name)
        (path / LOG).write_bytes(b"")
        _write(path / RUN, {"arguments": arguments, "digest": digest, "started": time.time()})
        if os.fork() == 0:
            _supervise(path, arguments)
    return {}


def _supervise(path: Path, arguments: List[str]) -> None:
    """Wait for the program, in a session of its own, and note how it ended.

    The folder's lock came along with the fork, and is held until then.
    """
    code = 127
    try:
        os.setsid()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        log = os.open(str(path / LOG), os.O_WRONLY | os.O_APPEND)
        for number, opened in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log), (2, log)):
            os.dup2(opened, number)
        command = [sys.executable, "-I", "-S", str(path / PROGRAM), "run"]
        program = subprocess.Popen(command + arguments, cwd=str(path))
        _write(path / PID, program.pid)
        code = program.wait()
    finally:
        _write(path / EXIT, code)
        os._exit(0)


def follow(folder: str) -> Dict[str, Any]:
    """Tell what the program says, from its start, until it has ended; `exit` is None where it did not say."""
    path = Path(folder)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    last = time.monotonic()
    with (path / LOG).open("rb") as log:
        while True:
            # First, so that what it said at last is still read.
            ended = not _locked(path / LOCK)
            said = log.read()
            if said:
                tell({"log": decoder.decode(said)})
            elif ended:
                return {"exit": _read(path / EXIT)}
            else:
                time.sleep(POLL_S)
            if time.monotonic() - last > HEARTBEAT_S:
                # Without a word now and then, this would never know that the workstation has gone.
                last = time.monotonic()
                tell({})


def stop(folder: str, name: str) -> Dict[str, Any]:
    """Stop what is at work in a bundle's folder, or in those within one that is none's; wait until it has ended.

    It puts clocks back first, which may take minutes. Returns the `folder`, and as `stopped` exit codes by folder.
    """
    path, stopped = _place(folder, name), {}
    places = [path] if (path / PROGRAM).is_file() else [p.parent for p in sorted(path.glob(f"*/{PROGRAM}"))]
    for place in (place for place in places if _running(place) is not None):
        number = _number(place)
        if number is None:
            raise Refused(f"{place}: what is at work there was started by hand", "stop it there: Ctrl-C")
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGTERM)
        given_up = time.monotonic() + STOP_S
        while _locked(place / LOCK):
            if time.monotonic() > given_up:
                raise Refused(f"{place}: {number} has not ended after {STOP_S} s", f"see {place / LOG}")
            time.sleep(POLL_S)
        stopped[str(place)] = _read(place / EXIT)
    return {"folder": str(path), "stopped": stopped}


def _number(path: Path) -> Optional[int]:
    """Return the number of the program at work in a folder; None where that is another's, since they are reused."""
    given_up = time.monotonic() + PATIENCE_S
    while _locked(path / LOCK) and time.monotonic() < given_up:
        number = _read(path / PID)
        with contextlib.suppress(OSError):
            if os.fsencode(str(path / PROGRAM)) in Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0"):
                return int(number)
        time.sleep(POLL_S / 2)
    return None


def results(folder: str, name: str = "") -> Dict[str, Any]:
    """List what came of a bundle: `files` (SHA-256 and size by name), `digest` of its plan of work, `rsync`.

    The folder is the bundle's, or that of its results alone, where the digest is empty.
    """
    path = _place(folder, name)
    inside = path if (path / RESULT).is_file() else path / RESULTS
    if not (inside / RESULT).is_file():
        raise Refused(f"{path}: no results there", "run the bundle there first: edgetune device run", 5)
    found = {}
    for file in sorted(inside.iterdir()):
        plain = PLAIN.fullmatch(file.name) and not file.name.endswith(".partial")
        if plain and file.is_file() and not file.is_symlink():
            found[file.name] = [_sha256(file), file.stat().st_size]
    return {
        "folder": str(inside),
        "files": found,
        "digest": _sha256(path / WORK) if (path / WORK).is_file() else "",
        "rsync": bool(shutil.which("rsync")),
    }


def space(folder: str) -> Dict[str, Any]:
    """Tell how many bytes are free there."""
    return {"free": shutil.disk_usage(folder).free}


def _place(folder: str, name: str) -> Path:
    """Return a folder's whole path: within the home folder where it is not whole; default `edgetune/NAME`."""
    return (Path.home() / (folder or Path("edgetune", name))).resolve()


def _own(path: Path) -> Path:
    """Refuse a folder that holds something else than a bundle."""
    if not path.exists():
        return path
    inside = {entry.name for entry in path.iterdir()} if path.is_dir() else {"?"}
    ours = not inside or MARK in inside or {WORK, PROGRAM} <= inside
    if not ours or path in (Path("/"), Path.home().resolve()):
        hint = "name another folder, or one that is not there yet: ssh://HOST/FOLDER"
        raise Refused(f"{path}: holds something else than a bundle", hint, 3)
    return path


def _plain(name: str) -> str:
    if not PLAIN.fullmatch(name):
        raise Refused(f"the file name {name!r} is not a plain one", "bundle again", 5)
    return name


def _is(path: Path, sha256: str, size: int) -> bool:
    whole = path.is_file() and not path.is_symlink() and path.stat().st_size == size
    return whole and _sha256(path) == sha256


def _there_already(path: Path, size: int) -> int:
    """Return how much of a file was sent before; what cannot be part of it goes."""
    if path.is_file() and not path.is_symlink() and path.stat().st_size <= size:
        return path.stat().st_size
    _delete(path)
    return 0


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(str(path), ignore_errors=True)
    elif path.exists() or path.is_symlink():
        path.unlink()


def _running(path: Path) -> Optional[Dict[str, Any]]:
    """Return what is at work in a folder: `arguments`, `digest`, `started`; None where nothing is."""
    if _locked(path / LOCK):
        return _read(path / RUN) or {}
    # The program's own lock: somebody started it by hand.
    return {} if _locked(path / RESULTS / ".lock") else None


def _locked(path: Path) -> bool:
    try:
        with path.open() as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _held(path: Path) -> IO[str]:
    """Take a folder's lock, which a forked child keeps as well; one who only looks has it for an instant."""
    busy = Refused(f"{path}: another run is at work there", "wait, or stop it: edgetune device stop")
    if _locked(path / RESULTS / ".lock"):
        raise busy
    handle = (path / LOCK).open("w")
    given_up = time.monotonic() + PATIENCE_S
    while not _taken(handle):
        if time.monotonic() > given_up:
            raise busy
        time.sleep(POLL_S / 2)
    return handle


def _taken(handle: IO[str]) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        for block in iter(lambda: handle.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _write(path: Path, value: Any) -> None:
    scratch = path.with_name(f"{path.name}.partial")
    scratch.write_text(json.dumps(value), encoding="utf-8")
    scratch.replace(path)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


OPERATIONS: Dict[str, Callable[..., Dict[str, Any]]] = {
    do.__name__: do for do in (probe, prepare, accept, start, follow, stop, results, space)
}
