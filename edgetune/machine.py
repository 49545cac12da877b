"""Facts about the machine this runs on: processor, usable cores and memory, library versions.

They go into reports, because a latency without its machine says nothing. What a container may use counts,
not what the host has. It knows nothing of networks; standard library and psutil only.
"""

import math
import os
import platform
import re
import sys
from pathlib import Path
from typing import TypedDict

import psutil

from edgetune.artifact import library_versions

# Both packages of ONNX Runtime install the same files: with both, the last one installed counts, and removing
# one breaks the other.
RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
RUNTIME_FOR_GPU = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'onnxruntime-gpu[cuda,cudnn]'"
LIBRARIES = ("torch", "torchvision", "onnx", "onnxruntime", "numpy", "pillow", "tensorrt", "timm")

# What multiplies int8 at full speed without an intermediate sum that saturates: VNNI on x86-64
# (Intel 64 and IA-32 Architectures Software Developer's Manual, VPDPBUSD), dot products on AArch64.
DOT_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni", "asimddp"})

# A cgroup v1 without a limit states the largest page-aligned 64-bit number.
UNLIMITED_BYTES = 1 << 60


class Machine(TypedDict):
    """What a report says about the machine."""

    cpu: str
    cores: int
    memory_gb: float
    python: str
    system: str
    libraries: dict[str, str]
    vnni: bool


def machine() -> Machine:
    """Return the facts about this machine.

    Memory counts in units of 2**30 bytes, as it is sold; libraries that are not installed are left out.
    """
    found = library_versions(*LIBRARIES)
    return {
        "cpu": cpu_name(),
        "cores": cores(),
        "memory_gb": round(memory_bytes() / 2**30, 1),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "libraries": {name: version for name, version in found.items() if version != "absent"},
        "vnni": has_vnni(),
    }


def has_vnni(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether int8 runs at full speed and exactly: VNNI on x86-64, dot products on ARM.

    Without it ONNX Runtime's x86 kernels add pairs of products in 16 bits, which saturates unless weights
    use a reduced range. False where the processor's flags cannot be read.
    """
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    return bool(DOT_PRODUCTS & set(_fields(cpuinfo, r"flags|Features").split()))


def free_bytes() -> int:
    """Return how much memory there is to be had now, of what this process may use."""
    return min(int(psutil.virtual_memory().available), memory_bytes())


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo"), tree: Path = Path("/proc/device-tree/model")) -> str:
    """Return the processor's name, or the board's where the processor does not say its own (ARM)."""
    name = _fields(cpuinfo, "model name") or _read(tree).rstrip("\0").strip()
    return re.sub(r"\s+", " ", name) or platform.processor() or platform.machine()


def cores() -> int:
    """Return how many cores this process may keep busy: its affinity, and its container's share of time."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, math.ceil(min(_cgroup_cpus(), allowed))))


def memory_bytes() -> int:
    """Return how much memory this process may use: the machine's, or its container's limit."""
    return min([psutil.virtual_memory().total, *_cgroup_memory_bytes()])


def _cgroup_cpus(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """Return the smallest share of processor time set on the way to this process, infinite where none is."""
    shares = []
    for folder in _cgroups(root, own, "cpu"):
        quota, _, period = _read(folder / "cpu.max").strip().partition(" ")
        if not quota:
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota.strip().isdigit() and period.strip().isdigit() and int(period) > 0:
            shares.append(int(quota) / int(period))
    return min(shares, default=math.inf)


def _cgroup_memory_bytes(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> list[int]:
    limits = []
    for folder in _cgroups(root, own, "memory"):
        limit = (_read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")).strip()
        if limit.isdigit() and int(limit) < UNLIMITED_BYTES:
            limits.append(int(limit))
    return limits


def _cgroups(root: Path, own: Path, controller: str) -> list[Path]:
    """Return the folders whose limits hold for this process, its own first, for cgroup v1 and v2."""
    folders = []
    for line in _read(own).splitlines():
        _, names, path = line.split(":", 2)
        # v2 has one hierarchy without names; in v1 each controller has a folder of its own.
        base = root if not names else root / controller
        if names and controller not in names.split(","):
            continue
        inner = base / path.lstrip("/")
        folders += [inner, *(parent for parent in inner.parents if parent.is_relative_to(base))]
    return folders


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _fields(path: Path, names: str) -> str:
    """Return the value of the first line of a `name : value` file that has one of the names."""
    match = re.search(rf"^(?:{names})[ \t]*:[ \t]*(.+)$", _read(path), re.MULTILINE)
    return match[1].strip() if match else ""
