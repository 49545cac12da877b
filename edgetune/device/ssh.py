"""A device by the system's OpenSSH: one connection, requests to the agent there, and errors that say what to do.

The user's own configuration, keys, agents, jump hosts and known hosts hold, because it is the user's own `ssh`
that is called. Host keys are never waved through, and nobody is asked for a password. What is sent to the
remote shell is one constant line; names and paths travel beside it, as JSON.
It knows nothing of bundles. It may import errors and, of this folder, agent.
"""

import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import quote, unquote

from edgetune.device import agent
from edgetune.errors import ArtifactError, ConfigError, EdgetuneError, MissingTool, StageError

# All that a remote shell ever gets to see.
PYTHON, WAIT = "python3 -I -S -", "cat"
CONNECT_S, ANSWER_S = 60.0, 600.0
OPTIONS = {
    # Nobody is there to answer a question.
    "BatchMode": "yes",
    "ConnectTimeout": "20",
    # A line that is dead for a minute counts as lost.
    "ServerAliveInterval": "15",
    "ServerAliveCountMax": "4",
    # What a user's configuration may do to a session of theirs would spoil these.
    "ClearAllForwardings": "yes",
    "RemoteCommand": "none",
    "RequestTTY": "no",
    "LogLevel": "ERROR",
    "ControlPersist": "no",
}
URL = re.compile(r"ssh://(?:([^/@]*)@)?(\[[0-9A-Fa-f:.]+\]|[^/:@\[\]]*)(?::([^/]*))?(/.*)?", re.DOTALL)
# Neither can begin an option, nor mean anything to a shell that the user's configuration may put it through.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
LOST = (
    *("closed by remote host", "Connection reset", "Broken pipe", "Connection closed", "lost connection"),
    *("connection unexpectedly closed", "Timeout, server", "mux_client", "Connection timed out"),
)
KINDS: dict[int, type[EdgetuneError]] = {3: ConfigError, 4: MissingTool, 5: ArtifactError}


class Address(NamedTuple):
    """Where a device is.

    Attributes:
        user: empty: as the user's configuration says.
        host: a name, an alias of the user's configuration, or an address.
        port: 0: as the user's configuration says.
        folder: of the bundle: a whole path, or one within the home folder there; empty: `edgetune/NAME`.
    """

    user: str
    host: str
    port: int
    folder: str

    @property
    def shown(self) -> str:
        """Return it as people write it."""
        return f"{self.user}@{self.host}" if self.user else self.host

    def url(self, folder: str) -> str:
        """Return it with a folder as `address_of` reads it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        user, port = f"{self.user}@" if self.user else "", f":{self.port}" if self.port else ""
        return f"ssh://{user}{host}{port}{quote(folder)}"

    @property
    def command(self) -> str:
        """Return the line that connects to it by hand."""
        return " ".join(["ssh", *(["-p", str(self.port)] if self.port else []), self.shown])


def address_of(url: str) -> Address:
    """Read `ssh://[USER@]HOST[:PORT][/FOLDER]`; `/~/FOLDER` is one within the home folder.

    Raises:
        ConfigError: it is not of that form, or holds what no such name holds.
    """
    hint = "write ssh://USER@HOST, or ssh://USER@HOST:PORT/FOLDER"
    found = URL.fullmatch(url)
    if not found:
        raise ConfigError(f"{url!r}: not the address of a device", hint=hint)
    user, host, port, folder = (part or "" for part in found.groups())
    if ":" in user:
        raise ConfigError(
            f"the address of {host}: passwords do not go into addresses",
            hint=f"use a key: ssh-copy-id {host}",
        )
    if not (host.startswith("[") or NAME.fullmatch(host)):
        raise ConfigError(f"{url!r}: {host!r} is no name of a host", hint=hint)
    if user and not NAME.fullmatch(user):
        raise ConfigError(f"{url!r}: {user!r} is no name of a user", hint=hint)
    if port and not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise ConfigError(f"{url!r}: {port!r} is no port", hint="ports go from 1 to 65535")
    folder = unquote(folder)
    if not folder.isprintable():
        raise ConfigError(
            f"{url!r}: the folder's name holds what cannot be printed", hint="name another folder"
        )
    if folder == "/~" or folder.startswith("/~/"):
        folder = folder[3:]
    return Address(user, host.strip("[]"), int(port or 0), "" if folder == "/" else folder)


class Connection:
    """A device, connected: `with Connection(address) as device: device.ask(...)`.

    One connection carries all that follows, through a socket in a private folder. It ends with this process,
    whatever becomes of that.
    """

    def __init__(self, address: Address) -> None:
        """Find the client.

        Raises:
            MissingTool: there is no OpenSSH client here.
        """
        self.address = address
        self.ssh = shutil.which("ssh") or ""
        if not self.ssh:
            raise MissingTool("there is no ssh on this machine", hint="sudo apt install openssh-client")
        self._folder = ""
        self._master: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Connect.

        Raises:
            MissingTool: the device cannot be reached, is not the one that it was, or does not let this user in.
        """
        # Paths of sockets must be short, and sftp and rsync take this one with options that blanks part.
        self._folder = tempfile.mkdtemp(prefix="edgetune-", dir="/tmp")
        try:
            self._connect()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect."""
        if self._master is not None:
            self._master.terminate()
            self._master.communicate()
            self._master = None
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def options(self) -> list[str]:
        """Return the client's options, for ssh, sftp and rsync alike."""
        shared = OPTIONS | {"ControlMaster": "no", "ControlPath": f"{self._folder}/socket"}
        return [word for name, value in shared.items() for word in ("-o", f"{name}={value}")]

    @property
    def target(self) -> str:
        """Return the device as sftp and rsync write it."""
        host = f"[{self.address.host}]" if ":" in self.address.host else self.address.host
        return f"{self.address.user}@{host}" if self.address.user else host

    def _command(self, *options: str) -> list[str]:
        port = ["-p", str(self.address.port)] if self.address.port else []
        user = ["-l", self.address.user] if self.address.user else []
        return [self.ssh, *options, *self.options, *port, *user, "--", self.address.host]

    def _connect(self) -> None:
        # It waits for the end of its input, which comes with the end of this process. Output that shells print
        # on their own goes nowhere; complaints go into a file, for nobody reads a pipe meanwhile.
        said = Path(self._folder) / "said"
        with said.open("wb") as complaints:
            self._master = subprocess.Popen(
                [*self._command("-o", "ControlMaster=yes"), WAIT],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=complaints,
                start_new_session=True,
            )
        given_up = time.monotonic() + CONNECT_S
        while not (Path(self._folder) / "socket").exists():
            if self._master.poll() is not None:
                raise unreachable(self.address, said.read_text(errors="replace"))
            if time.monotonic() > given_up:
                raise unreachable(self.address, f"no answer within {CONNECT_S:.0f} s")
            time.sleep(0.01)

    def ask(self, step: str, do: str, **request: Any) -> dict[str, Any]:
        """Have the agent on the device do something, and return what it answers.

        Args:
            step: what this is for, for messages.
            do: the agent's function.
            request: its arguments.

        Raises:
            EdgetuneError: the connection is lost, there is no Python, or the agent refuses.
        """
        try:
            done = subprocess.run(
                [*self._command(), PYTHON], input=_source(do, request), capture_output=True, timeout=ANSWER_S
            )
        except subprocess.TimeoutExpired as error:
            raise self.lost(step, f"no answer within {ANSWER_S:.0f} s") from error
        answers = [message for line in done.stdout.splitlines() if (message := _message(line)) is not None]
        return self._checked(step, answers[-1] if answers else None, done.returncode, done.stderr)

    def follow(self, step: str, **request: Any) -> Iterator[dict[str, Any]]:
        """Give what the agent tells of a program at work, as it comes; the last message holds `exit`.

        Raises:
            EdgetuneError: as with `ask`.
        """
        with tempfile.TemporaryFile() as complaints:
            process = subprocess.Popen(
                [*self._command(), PYTHON],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                start_new_session=True,
            )
            last = None
            try:
                assert process.stdin is not None
                assert process.stdout is not None
                try:
                    process.stdin.write(_source("follow", request))
                    process.stdin.close()
                except BrokenPipeError:
                    pass
                for line in process.stdout:
                    last = _message(line)
                    if last and "error" not in last:
                        yield last
                process.wait()
            finally:
                process.kill()
                process.wait()
            complaints.seek(0)
            final = last if last and ("exit" in last or "error" in last) else None
            self._checked(step, final, process.returncode, complaints.read())

    def _checked(self, step: str, answer: dict[str, Any] | None, code: int, stderr: bytes) -> dict[str, Any]:
        said = stderr.decode(errors="replace")
        if answer is not None and "error" in answer:
            kind = KINDS.get(answer["code"], StageError)
            raise kind(f"{self.address.shown}: {step}: {answer['error']}", hint=answer["hint"])
        if answer is not None:
            return answer
        if code == 255 or any(sign in said for sign in LOST):
            raise self.lost(step, said)
        if code == 127:
            raise MissingTool(
                f"{self.address.shown}: {step}: there is no python3",
                hint="install it there: apt install python3",
            )
        raise StageError(
            f"{self.address.shown}: {step}: no answer (exit {code}): {last_line(said)}",
            hint=f"does this work by hand? {self.address.command} {PYTHON[:-2]} -V",
        )

    def ended(self) -> bool:
        """Tell whether the connection has ended; what it carried may end an instant before it."""
        try:
            return self._master is None or self._master.wait(timeout=1) is not None
        except subprocess.TimeoutExpired:
            return False

    def lost(self, step: str, said: str) -> StageError:
        """Return the error for a connection that ended too early."""
        why = f" ({last_line(said)})" if said.strip() else ""
        return StageError(
            f"{self.address.shown}: {step}: connection lost{why}", hint="the same command goes on from here"
        )


def last_line(said: str) -> str:
    """Return the last thing that a program said."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def _source(do: str, request: dict[str, Any]) -> bytes:
    """Return the agent's source with a request at its end, as one literal that holds nothing but ASCII."""
    asked = json.dumps({"do": do, **request})
    return f"{Path(agent.__file__).read_text(encoding='utf-8')}\n\nanswer({asked!r})\n".encode()


def _message(line: bytes) -> dict[str, Any] | None:
    if not line.startswith(agent.TOLD.encode()):
        return None
    try:
        message = json.loads(line[len(agent.TOLD) :])
    except ValueError:
        return None
    return message if isinstance(message, dict) else None


def unreachable(address: Address, said: str) -> MissingTool:
    """Return the error for a connection that did not come about, with the way out."""
    by_hand = address.command
    port = f"-p {address.port} " if address.port else ""
    host = f"[{address.host}]:{address.port}" if address.port not in (0, 22) else address.host
    ways = {
        "IDENTIFICATION HAS CHANGED": (
            "its host key has changed",
            "somebody may be in between. If the device was set up anew: "
            f"ssh-keygen -R '{host}', then connect once by hand and compare the fingerprint: {by_hand}",
        ),
        "Host key verification failed": (
            "its host key is not known here",
            f"connect once by hand and compare the fingerprint: {by_hand}",
        ),
        "Permission denied": (
            "it does not let this user in with a key",
            f"give it your key: ssh-copy-id {port}{address.shown}, or name the user: ssh://USER@{address.host}",
        ),
        "Could not resolve hostname": ("there is no host of that name", "check the name, or use its address"),
        "Connection refused": ("no ssh answers there", "is the device up, and the port right?"),
    }
    for sign, (what, hint) in ways.items():
        if sign in said:
            return MissingTool(f"{address.shown}: connect: {what} ({last_line(said)})", hint=hint)
    return MissingTool(
        f"{address.shown}: connect: {last_line(said)}", hint=f"is the device up? try by hand: {by_hand}"
    )
