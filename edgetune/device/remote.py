"""What a workstation does with a device: look at it, send a bundle, have it worked off, bring the results back.

Each call finds what an earlier one left, cut short or not, and goes on from there. Everything that comes from a
device is checked before it replaces anything here. It may import artifact, errors, progress and this folder.
"""

import base64
import json
import shlex
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from edgetune.artifact import disk_error, hash_json, sha256_of
from edgetune.device import agent, transfer
from edgetune.device.program import plan
from edgetune.device.program.problem import Problem
from edgetune.device.ssh import KINDS, Address, Connection, address_of
from edgetune.errors import ArtifactError, EdgetuneError, StageError
from edgetune.progress import Progress

INCOMING = ".incoming"
# What a bundle is called that lies in its run.
OF_RUN = "bundle"
# How the program begins to say why it ended.
ERROR = "error: "
Files = dict[str, list[Any]]


def probe(url: str, program: bytes) -> dict[str, Any]:
    """Find out what a device is, and what would spoil a build or a measurement there.

    Args:
        url: see `address_of`.
        program: the device program's file; nothing of it stays there.

    Returns:
        `found` and `warnings`, as the program tells them.

    Raises:
        EdgetuneError: see `Connection`.
    """
    address = address_of(url)
    with Connection(address) as device:
        sent = base64.b64encode(program).decode()
        found: dict[str, Any] = device.ask("probe", "probe", folder=address.folder, name="", program=sent)[
            "probe"
        ]
        return found


def push(bundle: Path, url: str, progress: Progress) -> dict[str, Any]:
    """Send a bundle: what is there already is not sent again, what was cut goes on.

    Returns:
        `folder` there, `sent` (names), `bytes` of them.

    Raises:
        ArtifactError: the bundle is damaged.
        StageError: the connection is lost, the disk there is full, or a run is at work there.
        EdgetuneError: see `Connection`.
    """
    address = address_of(url)
    files = _files(bundle)
    with Connection(address) as device:
        return _push(device, bundle, files, progress)


def run(bundle: Path, url: str, arguments: list[str], progress: Progress) -> dict[str, Any]:
    """Send a bundle, have it worked off, and bring the results back into it.

    The program there runs on its own: where the connection is lost, or this is stopped, the next call picks it up.

    Args:
        bundle: its folder.
        url: see `address_of`.
        arguments: for the program there.
        progress: is told what the program says.

    Returns:
        As `pull`.

    Raises:
        StageError: as with `push`; or the program failed there.
        EdgetuneError: see `Connection`; or what the program could not use.
    """
    address = address_of(url)
    files = _files(bundle)
    digest = files[plan.WORK_FILE][0]
    with Connection(address) as device:
        state = _prepare(device, bundle, files)
        running = state["running"]
        if running is None:
            _push(device, bundle, files, progress, state)
            device.ask("start", "start", folder=state["folder"], arguments=arguments, digest=digest)
        elif running.get("digest") == digest:
            shown = " ".join(running["arguments"]) or "no options"
            progress.line(f"{address.shown}: this bundle is at work there already ({shown}); following it")
        else:
            raise _busy(address, state["folder"])
        progress.line(
            f"{address.shown}: at work, and stays so if this ends; its log: {state['folder']}/{agent.LOG}"
        )
        failed = failure(address.shown, *_followed(device, state["folder"], progress))
        if failed is not None:
            raise failed
        return _pull(device, bundle, state["folder"], "", progress)


def stop(url: str, bundle: Path | None = None) -> dict[str, Any]:
    """Stop what was started on a device, and wait until it has put back what it changed.

    Args:
        url: see `address_of`.
        bundle: what is at work; None: whatever is, in the folder that the URL names, or in those of bundles.

    Returns:
        `folder` that was looked at there, and `stopped`: exit codes by folder.

    Raises:
        StageError: it does not end, or was not started from a workstation.
        EdgetuneError: see `Connection`.
    """
    address = address_of(url)
    name = _name(bundle) if bundle else ""
    with Connection(address) as device:
        return device.ask("stop", "stop", folder=address.folder, name=name)


def pull(bundle: Path, source: str, progress: Progress) -> dict[str, Any]:
    """Bring a bundle's results back into it, and nothing else.

    Args:
        bundle: its folder here.
        source: a device (see `address_of`), or a folder that was copied from one: the bundle's there.
        progress: is told how far it is.

    Returns:
        `folder`, `files` (names that came), `bytes` of them, `finished`, `errors` (by step).

    Raises:
        ArtifactError: no results there, of another bundle, cut or damaged.
        StageError: the connection is lost, or the disk is full.
        EdgetuneError: see `Connection`.
    """
    _files(bundle)
    if "://" not in source:
        return _pull(None, bundle, str(Path(source).expanduser().absolute()), "", progress)
    address = address_of(source)
    with Connection(address) as device:
        return _pull(device, bundle, address.folder, _name(bundle), progress)


def _name(bundle: Path) -> str:
    """Return what a bundle's folder is called on a device: that of a run by the run, or two would share one."""
    folder = bundle.resolve()
    return f"{folder.parent.name}-{folder.name}" if folder.name == OF_RUN else folder.name


def _files(bundle: Path) -> Files:
    """Verify a bundle, and return SHA-256 and size of its files by name."""
    try:
        work = plan.load(bundle)
        content = json.loads((bundle / plan.WORK_FILE).read_bytes())
    except Problem as problem:
        raise KINDS.get(problem.code, StageError)(problem.message, hint=problem.hint) from problem
    name = _name(bundle)
    if not name.isprintable():
        raise ArtifactError(f"{str(bundle)!r}: its name holds what cannot be printed", hint="rename it")
    digests = {**content["files"], plan.WORK_FILE: work.digest}
    if agent.PROGRAM not in digests:
        raise ArtifactError(f"{bundle}: holds no {agent.PROGRAM}", hint="bundle again")
    return {item: [digest, (bundle / item).stat().st_size] for item, digest in sorted(digests.items())}


def _prepare(device: Connection, bundle: Path, files: Files) -> dict[str, Any]:
    return device.ask(
        "prepare",
        "prepare",
        folder=device.address.folder,
        name=_name(bundle),
        files=files,
        key=_key(files),
    )


def _key(files: Files) -> str:
    return hash_json(files)[:16]


def _push(
    device: Connection, bundle: Path, files: Files, progress: Progress, state: dict[str, Any] | None = None
) -> dict[str, Any]:
    state = state or _prepare(device, bundle, files)
    first = state["missing"]
    if first and state["running"] is not None:
        raise _busy(device.address, state["folder"])
    sizes = {name: files[name][1] for name in first}
    if first:
        left = sum(sizes.values()) - sum(first.values())
        progress.line(
            f"{device.address.shown}: sending {len(first)} files, {left / 1e6:.1f} MB, to {state['folder']}"
        )
        _sent(device, bundle, files, state, progress)
    return {"folder": state["folder"], "sent": sorted(first), "bytes": sum(sizes.values())}


def _sent(device: Connection, bundle: Path, files: Files, state: dict[str, Any], progress: Progress) -> None:
    """Send what is missing; files that came out wrong, parts of them from earlier say, once again and whole."""
    wanted = {name: files[name] for name in state["missing"]}
    have: dict[str, int] = state["missing"]
    for _ in range(2):
        cut = {name: size for name, size in have.items() if size < files[name][1] or not size}
        if cut:
            transfer.send(device, "send", bundle, state["incoming"], cut, state["rsync"], progress)
        bad = device.ask("verify", "accept", folder=state["folder"], files=wanted, key=_key(files))["bad"]
        if not bad:
            return
        have = dict.fromkeys(bad, 0)
    raise StageError(
        f"{device.address.shown}: verify: {', '.join(bad)}: arrived otherwise than sent (another SHA-256)",
        hint="does the bundle change meanwhile? is the device's disk sound? the same command tries again",
    )


def _busy(address: Address, folder: str) -> StageError:
    return StageError(
        f"{address.shown}: {folder}: another run is at work there",
        hint=f"wait for it; or stop it: edgetune device stop {shlex.quote(address.url(folder))}",
    )


def _followed(device: Connection, folder: str, progress: Progress) -> tuple[int | None, list[str]]:
    """Tell what the program says until it ends; return its exit code, and all that it said."""
    said, rest, code = [], "", None
    for message in device.follow("follow", folder=folder):
        *lines, rest = (rest + message.get("log", "")).split("\n")
        code = message.get("exit", code)
        for line in [*lines, rest] if "exit" in message and rest else lines:
            said.append(line)
            # What ended it is told once, by the error that is raised.
            if not any(before.startswith(ERROR) for before in said):
                progress.line(line)
    return code, said


def failure(where: str, code: int | None, said: list[str]) -> EdgetuneError | None:
    """Return the error that ended a run before its results, in the program's own words.

    Steps that failed (exit 6, without an error of the whole) are among the results.

    Args:
        where: it ran, as people call it.
        code: its exit code; None: it never said.
        said: its lines.
    """
    error = max((index for index, line in enumerate(said) if line.startswith(ERROR)), default=None)
    if error is not None:
        line = said[error].removeprefix(ERROR)
        hint = "\n".join(text.strip() for text in said[error + 1 :] if text.startswith("  "))
    elif code in (0, 6):
        return None
    elif code is None:
        line, hint = "it was killed, or the device went down", "the same command goes on from here"
    else:
        line = next((text for text in reversed(said) if text.strip()), "it said nothing")
        hint = "the same command goes on from here"
    return KINDS.get(code or 6, StageError)(f"{where}: run: {line} (exit {code})", hint=hint)


def _pull(
    device: Connection | None, bundle: Path, folder: str, name: str, progress: Progress
) -> dict[str, Any]:
    where = device.address.shown if device else folder
    into = bundle / plan.RESULTS
    try:
        with ExitStack() as stack:
            into.mkdir(exist_ok=True)
            incoming = into / INCOMING
            for _ in range(2):
                listed = _listed(device, folder, name)
                _right(where, listed, bundle)
                wanted = {n: entry for n, entry in listed["files"].items() if not _is(into / n, *entry)}
                incoming.mkdir(exist_ok=True)
                _fetch(device, listed, incoming, wanted, progress)
                bad = [n for n, entry in wanted.items() if not _is(incoming / n, *entry)]
                if not bad:
                    stack.callback(shutil.rmtree, incoming, ignore_errors=True)
                    break
                for n in bad:
                    (incoming / n).unlink(missing_ok=True)
            else:
                raise StageError(
                    f"{where}: pull: {', '.join(bad)}: arrived otherwise than sent (another SHA-256)",
                    hint="is a run at work there? the same command tries again",
                )
            at = incoming if agent.RESULT in wanted else into
            result = _result(where, at / agent.RESULT, sha256_of(bundle / plan.WORK_FILE))
            for n in sorted(wanted, key=lambda n: (n == agent.RESULT, n)):
                (incoming / n).replace(into / n)
    except OSError as error:
        raise disk_error(error, into) from error
    return {
        "folder": str(into),
        "files": sorted(wanted),
        "bytes": sum(entry[1] for entry in wanted.values()),
        "finished": result["finished"],
        "errors": result["errors"],
    }


def _listed(device: Connection | None, folder: str, name: str) -> dict[str, Any]:
    """List the results there, having checked that the listing is one: devices are not taken at their word."""
    if device is None:
        try:
            listed = agent.results(folder)
        except agent.Refused as refused:
            raise ArtifactError(refused.message, hint=refused.hint) from refused
    else:
        listed = device.ask("pull", "results", folder=folder, name=name)
    files = listed["files"]
    if not all(plan.PLAIN.fullmatch(n) and isinstance(size, int) for n, (_, size) in files.items()):
        raise ArtifactError(
            f"{folder}: file names there are not plain ones", hint="run the bundle there again"
        )
    if agent.RESULT not in files:
        raise ArtifactError(f"{listed['folder']}: no {agent.RESULT} there", hint="run the bundle there first")
    return listed


def _right(where: str, listed: dict[str, Any], bundle: Path) -> None:
    if listed["digest"] and listed["digest"] != sha256_of(bundle / plan.WORK_FILE):
        raise ArtifactError(
            f"{where}: {listed['folder']} lies in another bundle than {bundle}",
            hint="name the bundle that was run there, or run this one: edgetune device run",
        )


def _fetch(
    device: Connection | None, listed: dict[str, Any], incoming: Path, wanted: Files, progress: Progress
) -> None:
    have = {}
    for name, (sha256, size) in wanted.items():
        file = incoming / name
        if file.is_symlink() or not file.is_file() or file.stat().st_size > size:
            file.unlink(missing_ok=True)
        if not _is(file, sha256, size):
            have[name] = file.stat().st_size if file.exists() else 0
    if not have:
        return
    if device is None:
        for name in have:
            shutil.copyfile(Path(listed["folder"]) / name, incoming / name, follow_symlinks=False)
    else:
        sizes = {name: wanted[name][1] for name in have}
        transfer.fetch(device, "pull", listed["folder"], incoming, have, listed["rsync"], progress, sizes)


def _is(file: Path, sha256: str, size: int) -> bool:
    whole = file.is_file() and not file.is_symlink() and file.stat().st_size == size
    return whole and sha256_of(file) == sha256


def _result(where: str, file: Path, digest: str) -> dict[str, Any]:
    """Read what a run came to, and see that it is of this bundle."""
    hint = "run the bundle there again: edgetune device run"
    try:
        result = json.loads(file.read_bytes())
        of, _, _ = result["bundle"], result["finished"], result["errors"]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{where}: {agent.RESULT} there is cut or damaged ({error})", hint=hint
        ) from error
    if of != digest:
        raise ArtifactError(f"{where}: the results there are of another bundle", hint=hint)
    return dict(result)
