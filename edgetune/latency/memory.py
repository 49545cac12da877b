"""Peak memory of a process that does nothing but load one network and run it.

`python -m edgetune.latency.memory MODEL THREADS SHAPES` prints the peak in bytes; `peak_memory_bytes` runs it in a
fresh process, because a process that has trained or timed something else has a peak of its own. It may
import the ONNX Runtime engine.
"""

import json
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

QUERIES = 5
TIMEOUT_SECONDS = 120


def peak_memory_bytes(
    model: Path, threads: int, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> int | None:
    """Return the peak of resident memory, or None where the process did not come through.

    Args:
        model: an ONNX file.
        threads: of the session.
        shapes: of the inputs, where the file leaves them open.
    """
    command = [sys.executable, "-m", __name__, str(model), str(threads), json.dumps(shapes or {})]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=True)
        return int(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def own_peak_bytes(status: Path = Path("/proc/self/status")) -> int:
    """Return this process's peak of resident memory.

    Linux hands `ru_maxrss` on from the process that started this one (its peak before exec counts), so a
    small child of a large parent would look large; VmHWM belongs to this program alone (proc(5)).
    """
    try:
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _run(model: Path, threads: int, shapes: Mapping[str, tuple[int, ...]]) -> int:
    # Here, so that asking for the peak of another process loads no engine.
    from edgetune.engines.feeds import random_feed
    from edgetune.engines.onnxruntime import Session

    session = Session(model, threads)
    feed = random_feed(session.inputs, shapes=shapes)
    for _ in range(QUERIES):
        session.run_once(feed)
    return own_peak_bytes()


if __name__ == "__main__":
    sys.stdout.write(str(_run(Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]))))
