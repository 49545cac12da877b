"""A device for tests: a real OpenSSH server on loopback, with keys, port and configuration of its own.

What runs there finds a home folder and a PATH of its own: `python3`, rsync, and a stand-in `trtexec`. Here, an
`ssh` comes first on PATH that reads the test's configuration instead of the user's.
"""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

NEEDED = ("sshd", "ssh", "ssh-keygen", "sftp", "rsync")


def tool(name: str) -> str:
    """The path of a program; without it the test cannot be made, and with EDGETUNE_REQUIRE_ALL fails."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/bin")
    if found is None:
        lack = f"no {name}: apt install openssh-server openssh-client rsync"
        if os.environ.get("EDGETUNE_REQUIRE_ALL"):
            pytest.fail(lack)
        pytest.skip(lack)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def key(path: Path) -> Path:
    subprocess.run(
        [tool("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", str(path)],
        check=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return path


class Loopback:
    """The device, and the client's side of it."""

    def __init__(self, folder: Path) -> None:
        for name in NEEDED:
            tool(name)
        self.folder = folder
        self.home, self.bin, self.client = folder / "home", folder / "bin", folder / "client"
        self.scratch = folder / "scratch"
        for made in (self.home, self.bin, self.client, self.scratch):
            made.mkdir(parents=True)
        self.port = free_port()
        self.url = f"ssh://device:{self.port}"
        self._server: subprocess.Popen[bytes] | None = None
        user_key = key(folder / "user_key")
        key(folder / "host_key")
        (folder / "authorized_keys").write_bytes(user_key.with_suffix(".pub").read_bytes())
        self.put("python3", f'exec {shlex.quote(sys.executable)} "$@"')
        (self.bin / "rsync").symlink_to(tool("rsync"))
        self.known_hosts = folder / "known_hosts"
        self.trust()
        self._configure(user_key)

    def put(self, name: str, line: str) -> None:
        """Put a program on the device's PATH."""
        file = self.bin / name
        file.write_text(f"#!/bin/sh\n{line}\n")
        file.chmod(0o755)

    def trust(self, host_key: str = "host_key") -> None:
        public = (self.folder / f"{host_key}.pub").read_text()
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {public}")

    def _configure(self, user_key: Path) -> None:
        (self.folder / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1\nPort {self.port}\nHostKey {self.folder}/host_key\n"
            f"AuthorizedKeysFile {self.folder}/authorized_keys\nPidFile none\nStrictModes no\nUsePAM no\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n"
            f"Subsystem sftp internal-sftp\nLogLevel ERROR\n"
            f'SetEnv HOME="{self.home}" PATH="{self.bin}:/usr/bin:/bin" TMPDIR="{self.scratch}" OMP_NUM_THREADS=1\n'
        )
        (self.folder / "ssh_config").write_text(
            f"Host device\n  HostName 127.0.0.1\nHost *\n  IdentityFile {user_key}\n  IdentitiesOnly yes\n"
            f"  IdentityAgent none\n  UserKnownHostsFile {self.known_hosts}\n  GlobalKnownHostsFile /dev/null\n"
            "  PreferredAuthentications publickey\n  LocalForward 1 localhost:1\n  RemoteCommand false\n"
        )
        ssh = self.client / "ssh"
        ssh.write_text(f'#!/bin/sh\nexec {tool("ssh")} -F {self.folder}/ssh_config "$@"\n')
        ssh.chmod(0o755)

    def start(self) -> None:
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        with (self.folder / "sshd.log").open("ab") as log:
            self._server = subprocess.Popen(
                [tool("sshd"), "-D", "-e", "-f", str(self.folder / "sshd_config")], stderr=log
            )
        given_up = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                if time.monotonic() > given_up:
                    raise
                time.sleep(0.05)

    def stop(self) -> None:
        assert self._server is not None
        self.cut()
        self._server.terminate()
        self._server.wait()

    def cut(self) -> int:
        """End all connections as a cable does, the server's side at once."""
        assert self._server is not None
        cut = psutil.Process(self._server.pid).children()
        for child in cut:
            child.send_signal(signal.SIGKILL)
        return len(cut)

    def connected(self) -> int:
        assert self._server is not None
        return len(psutil.Process(self._server.pid).children())
