"""What going there by SSH adds: one bundle worked off here, and over SSH, in turns.

    python benchmarks/device_ssh.py BUNDLE [--url ssh://…] [--path FOLDER_WITH_TRTEXEC] [--seconds S] [--turns N]

Without a URL the device is an OpenSSH server on loopback, set up as for the tests; it needs a `trtexec`, or a
stand-in, on the given path. What both do alike is the program's own run, from nothing; over SSH the bundle is
sent first, whole, and the results are fetched after. Prints seconds per turn; what SSH adds is taken within each
turn, as all but the time that the program was followed, so that a busy machine does not drown it.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import heading

from edgetune.device import remote
from edgetune.progress import Silent

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "device"))


def here(bundle: Path, scratch: Path, seconds: str, path: str) -> float:
    """Work a bundle off on this machine; return the seconds that it took."""
    copy = Path(shutil.copytree(bundle, scratch / "here", ignore=shutil.ignore_patterns("results")))
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}
    begun = time.perf_counter()
    subprocess.run(
        ["python3", "-I", "-S", str(copy / "edgetune.pyz"), "--seconds", seconds],
        check=True, env=environment, capture_output=True,
    )  # fmt: skip
    took = time.perf_counter() - begun
    shutil.rmtree(copy)
    return took


class Stamped(Silent):
    """Notes when it was told what."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def line(self, text: str) -> None:
        """Note the time."""
        self.at.append(time.perf_counter())
        if "at work, and stays so" in text:
            self.started = self.at[-1]


def there(bundle: Path, scratch: Path, seconds: str, url: str, turn: int) -> tuple[float, float]:
    """Send, work off and fetch over SSH, into a folder that is not there yet; return seconds, and those added."""
    copy = Path(shutil.copytree(bundle, scratch / f"there{turn}", ignore=shutil.ignore_patterns("results")))
    begun = time.perf_counter()
    told = Stamped()
    remote.run(copy, url, ["--seconds", seconds], told)
    took = time.perf_counter() - begun
    shutil.rmtree(copy)
    return took, took - (told.at[-1] - told.started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--url", default="")
    parser.add_argument("--path", default="", help="a folder with a trtexec for the device on loopback")
    parser.add_argument("--seconds", default="1")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    server = None
    with tempfile.TemporaryDirectory() as folder:
        scratch, url, path = Path(folder), options.url, os.environ["PATH"]
        if not url:
            import loopback

            server = loopback.Loopback(scratch / "device")
            for tool in Path(options.path).iterdir() if options.path else []:
                (server.bin / tool.name).symlink_to(tool.resolve())
            server.start()
            url = server.url
            path = f"{server.bin}:/usr/bin:/bin"
            os.environ["PATH"] = f"{server.client}:{os.environ['PATH']}"
        try:
            took: dict[str, list[float]] = {"here": [], "over ssh": [], "added": []}
            for turn in range(options.turns):
                took["here"].append(here(options.bundle, scratch, options.seconds, path))
                whole, added = there(options.bundle, scratch, options.seconds, url, turn)
                took["over ssh"].append(whole)
                took["added"].append(added)
        finally:
            if server is not None:
                server.stop()
    print(heading())
    for name, values in took.items():
        shown = ", ".join(f"{value:.2f}" for value in values)
        print(f"{name:<9} median {statistics.median(values):.2f} s ({shown})")


if __name__ == "__main__":
    main()
