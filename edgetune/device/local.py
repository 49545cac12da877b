"""Works a bundle off on this machine itself, in a process of its own: what TensorRT does to it stops there.

It may import artifact's errors, progress and, of this folder, remote and the program's plan.
"""

import subprocess
import sys
from pathlib import Path

from edgetune.device.agent import PROGRAM
from edgetune.device.remote import ERROR, failure
from edgetune.errors import MissingTool
from edgetune.progress import Progress


def run(bundle: Path, arguments: list[str], progress: Progress) -> None:
    """Have this machine's TensorRT, or its trtexec, work a bundle off; what was done before is not done again.

    Args:
        bundle: its folder; results go to `results` inside.
        arguments: for the program.
        progress: is told what the program says.

    Raises:
        MissingTool: neither TensorRT nor trtexec is here.
        EdgetuneError: what the program could not use. Steps that failed are in `result.json`.
    """
    # Isolated from the user's PYTHON* variables; packages of this environment are found.
    command = [sys.executable, "-I", str((bundle / PROGRAM).absolute()), "run", *arguments]
    said = []
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, encoding="utf-8", errors="replace",
    ) as child:  # fmt: skip
        assert child.stderr is not None
        for line in child.stderr:
            said.append(line.rstrip("\n"))
            if not any(before.startswith(ERROR) for before in said):
                progress.line(said[-1])
    failed = failure("this machine", child.returncode, said)
    if failed is None:
        return
    if isinstance(failed, MissingTool):
        failed.hint += "\nor build on the device: --on ssh://user@device"
    raise failed
