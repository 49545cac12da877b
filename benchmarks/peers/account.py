"""What each of these scripts says at its end: how much memory its process has taken.

It is imported inside the peers' own environments: standard library only.
"""

import json
import resource
from pathlib import Path


def peak_gb() -> float:
    """Return the largest resident size of this process so far, in units of 10**9 bytes.

    Linux counts for each program anew in VmHWM; what `getrusage` says begins at the parent's size.
    """
    status = Path("/proc/self/status")
    if status.exists():
        found = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(found[0].split()[1]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def tell(**more: float) -> None:
    """Print the account as the last line of the output."""
    print("\n" + json.dumps({"peak_gb": peak_gb(), **more}), flush=True)
