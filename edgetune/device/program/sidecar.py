"""What an engine was built for, in a file beside it, and whether that is here.

An engine runs only under the version of TensorRT that built it, on a GPU of the same compute capability, and
TensorRT says so in words that name neither side plainly, after it has read all of it. So the facts are kept
in `PLAN.json` and compared before anything is loaded.
It knows nothing of TensorRT's objects. It may import files and problem.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from . import files
from .problem import Problem

FIELDS = (
    *("tensorrt", "cuda", "l4t", "gpu", "compute_capability", "sms", "power_mode"),
    *("onnx_sha256", "precision", "typing", "parents"),
)
# What makes no engine unusable, but other than it was when its kernels were chosen.
_SLOWER = {
    "gpu": "module",
    "sms": "number of SMs",
    "power_mode": "power mode",
    "l4t": "L4T",
    "cuda": "CUDA",
}


def path_of(plan: str) -> str:
    """Return where the facts of an engine are kept."""
    return f"{plan}.json"


def write(plan: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Write the facts of an engine beside it, its own digest among them.

    Args:
        plan: path of the engine.
        facts: `FIELDS`, null where unknown; more are kept as they are.

    Returns:
        What was written.
    """
    kept = {**dict.fromkeys(FIELDS), **facts, "plan_sha256": files.sha256_of(plan)}
    files.write_json(path_of(plan), kept)
    return kept


def read(plan: str) -> dict[str, Any] | None:
    """Read the facts of an engine; None where it has none.

    Raises:
        Problem: the facts are damaged, or the engine is not the one that they tell of.
    """
    if not Path(path_of(plan)).exists():
        return None
    facts = files.read_json(path_of(plan))
    if not isinstance(facts, dict):
        raise Problem(f"{path_of(plan)}: not the facts of an engine", "delete it and build again", 5)
    if not Path(plan).is_file():
        raise Problem(f"{plan}: there is no such file", "build the engine", 5)
    wanted = facts.get("plan_sha256")
    if wanted and wanted != files.sha256_of(plan):
        raise Problem(
            f"{plan}: is not the engine that {path_of(plan)} tells of (another digest)",
            "it was cut, or replaced: build it again",
            5,
        )
    return facts


def preflight(sidecar: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Compare what an engine was built for with what is here, before it is loaded.

    Args:
        sidecar: from `read`.
        here: the same facts of this device; what is null or missing on one side is not compared.

    Returns:
        What differs and may cost speed, one sentence each.

    Raises:
        Problem: TensorRT here cannot load the engine; both sides are named.
    """
    reasons = []
    there, now = sidecar.get("tensorrt"), here.get("tensorrt")
    if there and now and not same_version(str(there), str(now)):
        reasons.append(f"it was built by TensorRT {there}, here is {now}")
    there, now = sidecar.get("compute_capability"), here.get("compute_capability")
    if there and now and str(there) != str(now):
        reasons.append(
            f"it was built on {sidecar.get('gpu') or 'a GPU'} of compute capability {there}, "
            f"here is {here.get('gpu') or 'one'} of {now}"
        )
    if reasons:
        raise Problem(
            f"the engine cannot be loaded: {'; '.join(reasons)}",
            "engines are built on the device that runs them: build it here",
            5,
        )
    return [
        f"the engine was built with another {title}: {sidecar[name]} there, {here[name]} here"
        for name, title in _SLOWER.items()
        if sidecar.get(name) is not None and here.get(name) is not None and sidecar[name] != here[name]
    ]


def same_version(one: str, other: str) -> bool:
    """Whether two versions agree as far as both go: the bindings say 10.3.0, the library 10.3.0.30."""
    pairs = zip(one.split("-")[0].split("+")[0].split("."), other.split("-")[0].split("+")[0].split("."))
    return all(a == b for a, b in pairs)


def refusal(plan: str, content: bytes, said: str, own: str, here: str) -> Problem:
    """Put into words why TensorRT did not take a plan.

    Args:
        plan: its path.
        content: its bytes.
        said: what TensorRT said.
        own: version of the TensorRT that is here.
        here: compute capability of the GPU.
    """
    versions = re.search(r"expecting library version (\S+) got (\S+?),", said)
    compute = re.search(r"expecting compute (\S+) got compute (\S+?),", said)
    hint = "engines are built on the device that runs them: build it here"
    if versions:
        built = next((v for v in versions.groups() if not same_version(v, own)), versions.group(2))
        why = f"it was built by TensorRT {built}, here is {own}"
    elif "Version tag does not match" in said:
        why = f"it was built by another TensorRT than {own}, which is here"
    elif compute:
        built = next((c for c in compute.groups() if c != here), compute.group(2))
        why = f"it was built on a GPU of compute capability {built}, here is {here}"
    elif "MAGIC_TAG" in said.upper():
        why = "it is no plain plan"
        if content[4:5] == b"{":
            why += ": a description stands before the engine, as Ultralytics writes it"
            hint = "export the ONNX and build it here"
    else:
        why = "TensorRT does not take it"
    return Problem(f"{plan}: the engine cannot be loaded: {why} ({said})", hint, 5)
