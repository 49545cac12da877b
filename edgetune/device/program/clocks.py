"""Locks a device's clocks for a measurement, and puts back what it found.

Only where the user asked for it, and by NVIDIA's own tools alone: jetson_clocks raises the lower limits of GPU,
processor and memory to the upper ones of the power mode, nvpmodel chooses the mode. These two, and nothing else,
are run through `sudo -n`, which never asks for a password. What was found is put back at the end, after an error
and after SIGTERM; after SIGKILL the next run does it, from the note that this one left in its folder.
jetson_clocks itself leaves a note of the fan in the home folder of whom it runs as. It may import files, look and
probe.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping

from . import files, look
from .probe import clocks as read_clocks
from .probe import power_mode

# What jetson_clocks keeps of the state it found. It splits paths at blanks, so it gets the bare name and runs in
# the folder; it asks before it overwrites, so that there must be none.
STORE = "clocks.store"
NOTE = "clocks.json"
SUDO = (
    "allow it for good: `USER ALL=(root) NOPASSWD: /usr/bin/jetson_clocks, /usr/sbin/nvpmodel` by sudo visudo"
)
REFUSED = re.compile(
    r"password is required|terminal is required|not allowed to|may not run|not in the sudoers"
)

Say = Callable[[str], None]


@contextmanager
def locked(
    asked: bool,
    folder: str,
    mode: int | None = None,
    root: str = "/",
    run: look.Run = look.run,
    environ: Mapping[str, str] = os.environ,
    say: Say = print,
    as_root: bool | None = None,
) -> Iterator[dict[str, Any]]:
    """Keep clocks locked while the block runs.

    Where that cannot be done, it says so and the block runs all the same, on clocks as they are.

    Args:
        asked: whether the user asked for it; otherwise nothing is run and nothing changes.
        folder: for the note and what jetson_clocks stores; the next run looks there as well.
        mode: power mode to choose, by its number; None: as it is.
        root: where the device's files lie.
        run: asks a program.
        environ: to find programs by.
        say: gets a sentence for the user.
        as_root: whether no sudo is needed; None: ask the system.

    Yields:
        `asked`; `locked`: whether clocks are; `mode`: the power mode that the block runs in; `shown`:
        what jetson_clocks shows then, line by line (the memory's clock stands nowhere else); `problems`:
        `{"code", "message", "remedy"}` each, of putting back too; `put_back` at the end: whether all is as found,
        null where nothing was changed.
    """
    held: dict[str, Any] = {
        "asked": asked,
        "locked": None,
        "mode": None,
        "shown": None,
        "problems": [],
        "put_back": None,
    }
    if not asked:
        yield held
        return
    hands = _Hands(folder, root, run, environ, say, held, as_root)
    with _Signals() as signals:
        try:
            with signals.held_back():
                hands.put_back("a run before was killed: ")
                hands.lock(mode)
            yield held
        finally:
            with signals.held_back():
                hands.put_back()


class _Hands:
    """Changes the state of the device, and knows how to change it back."""

    def __init__(
        self,
        folder: str,
        root: str,
        run: look.Run,
        environ: Mapping[str, str],
        say: Say,
        held: dict[str, Any],
        as_root: bool | None,
    ) -> None:
        self._folder = Path(folder)
        self._root = root
        self._run = run
        self._environ = environ
        self._say = say
        self._held = held
        self._as_root = os.geteuid() == 0 if as_root is None else as_root

    def lock(self, mode: int | None) -> None:
        """Store what is found, choose the mode, lock."""
        found = power_mode(self._root, self._run, self._environ)
        self._held.update(mode=found, locked=read_clocks(self._root)["locked"])
        if (self._folder / NOTE).exists():
            return  # What the run before found could not be put back; storing now would lose it.
        self._remove(STORE)
        if not self._do("jetson_clocks", "--store", STORE) or not self._stored():
            return
        before = {"mode": found, "clocks": _limits(self._root), "boot": self._boot()}
        files.write_json(str(self._folder / NOTE), before)
        if mode is not None and mode != (found or {}).get("id"):
            self._choose(mode, found)
        self._do("jetson_clocks")
        shown = self._ask("jetson_clocks", "--show")
        now = read_clocks(self._root)["locked"]
        self._held.update(mode=power_mode(self._root, self._run, self._environ), locked=now)
        self._held["shown"] = shown.text.splitlines() if shown else None
        if now is False:
            self._problem(
                "clocks",
                "jetson_clocks ran, and the clocks are not locked",
                "see what it says: sudo jetson_clocks",
            )

    def put_back(self, why: str = "") -> None:
        """Put back what the note says was found; without a note nothing was changed."""
        if not (self._folder / NOTE).exists():
            return
        before = files.read_json(str(self._folder / NOTE))
        found = before["mode"]
        if why:
            self._say(f"{why}putting back the clocks and the power mode that it had found")
        # Since the device was started anew, limits are back by themselves; the power mode stays.
        same_boot = before["boot"] == self._boot()
        done = not same_boot or self._do("jetson_clocks", "--restore", STORE)
        if found and found != power_mode(self._root, self._run, self._environ):
            done = self._choose(found["id"], found) and done
            # nvpmodel sets limits of its own.
            done = done and (not same_boot or self._do("jetson_clocks", "--restore", STORE))
        if done and same_boot and _differ(before["clocks"], _limits(self._root)):
            done = False
            self._problem(
                "put_back", "clocks are not as they were found", "restart the device: that resets them"
            )
        self._held["put_back"] = done
        if not done:
            self._say(f"put back by hand: {self._by_hand(found)}")
            return
        self._remove(NOTE, STORE)

    def _choose(self, mode: int, found: dict[str, Any] | None) -> bool:
        """Choose a power mode; whether it is the one, since nvpmodel's exit code does not tell."""
        if found is None:
            self._problem("power_mode", "the power mode is not known, and so left alone", "sudo nvpmodel -q")
            return False
        # It may ask to restart the device. No means that the mode stays.
        answer = self._ask("nvpmodel", "-m", str(mode), feed="no\n")
        now = power_mode(self._root, self._run, self._environ)
        if answer is None or (now or {}).get("id") == mode:
            return answer is not None
        if "reboot" in answer.text.lower():
            message = f"power mode {mode} needs a restart of the device; it stays in {(now or found)['name']}"
            self._problem("reboot", message, f"sudo nvpmodel -m {mode}, answer YES, and run again after it")
        else:
            message = f"nvpmodel did not choose power mode {mode}: {_last_line(answer.text)}"
            self._problem(
                "power_mode", message, "the modes of this module: grep POWER_MODEL /etc/nvpmodel.conf"
            )
        return False

    def _do(self, name: str, *words: str) -> bool:
        answer = self._ask(name, *words)
        if answer and answer.code:
            line = " ".join([name, *words])
            self._problem(name, f"`{line}` failed: {_last_line(answer.text)}", f"try it by hand: sudo {line}")
        return answer is not None and answer.code == 0

    def _ask(self, name: str, *words: str, feed: str = "") -> look.Answer | None:
        """Run one of the two tools as root; None, with the problem told, where it did not run."""
        program, sudo = look.find(name, self._environ), look.find("sudo", self._environ)
        if program is None or (sudo is None and not self._as_root):
            missing = name if program is None else "sudo"
            self._problem("tools", f"{missing} is not here: clocks stay as they are", "it comes with JetPack")
            return None
        command = [program, *words] if self._as_root else [str(sudo), "-n", program, *words]
        answer = self._run(
            command, self._environ, feed=feed, seconds=60.0, folder=str(self._folder), deaf=True
        )
        if answer is None:
            self._problem(
                "tools", f"{name} did not run, or not end within a minute", f"try it by hand: sudo {name}"
            )
        elif answer.code and REFUSED.search(answer.text):
            self._problem("sudo", f"sudo refuses {name}: {_last_line(answer.text)}", SUDO)
            return None
        return answer

    def _stored(self) -> bool:
        path = self._folder / STORE
        if path.exists() and path.stat().st_size:
            return True
        self._problem(
            "jetson_clocks", "jetson_clocks stored nothing: clocks stay as they are", "update JetPack"
        )
        return False

    def _by_hand(self, found: dict[str, Any] | None) -> str:
        line = f"cd {shlex.quote(str(self._folder))} && sudo jetson_clocks --restore {STORE}"
        return f"{line} && sudo nvpmodel -m {found['id']}" if found else line

    def _remove(self, *names: str) -> None:
        for name in names:
            with suppress(FileNotFoundError):
                (self._folder / name).unlink()

    def _boot(self) -> str:
        return look.read(self._root, "proc/sys/kernel/random/boot_id")

    def _problem(self, code: str, message: str, remedy: str) -> None:
        problem = {"code": code, "message": message, "remedy": remedy}
        if problem not in self._held["problems"]:
            self._held["problems"].append(problem)
            self._say(f"{message} ({remedy})")


class _Signals:
    """Turns signals to stop into an exit that runs `finally`, and holds them back while the device is changed."""

    def __init__(self) -> None:
        self._former: dict[signal.Signals, Any] = {}
        self._busy = False
        self._waiting: int | None = None

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            for number in look.STOPPING:
                former = signal.getsignal(number)
                # A program that was detached ignores that its terminal went away; that stays so.
                if former not in (signal.SIG_IGN, None):
                    self._former[number] = former
                    signal.signal(number, self._arrived)
        return self

    def __exit__(self, *_: object) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)

    @contextmanager
    def held_back(self) -> Iterator[None]:
        self._busy = True
        try:
            yield
        finally:
            self._busy = False
            if self._waiting is not None:
                self._leave(self._waiting)

    def _arrived(self, number: int, _frame: object) -> None:
        if self._busy:
            self._waiting = number
        else:
            self._leave(number)

    def _leave(self, number: int) -> None:
        self._waiting = None
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)


def _limits(root: str) -> dict[str, Any]:
    """Return the lower limits, which are what locking changes; heat moves the upper ones too."""
    state = read_clocks(root)
    known = {"gpu": state["gpu"], **{f"cpu{index}": cpu for index, cpu in enumerate(state["cpu"])}}
    return {name: clock["min_mhz"] for name, clock in known.items() if clock}


def _differ(before: dict[str, Any], now: dict[str, Any]) -> bool:
    # A GPU that sleeps may not be listed.
    return any(before[name] != now[name] for name in set(before) & set(now))


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it says nothing"
