"""What a device is and how it stands: versions, power mode, clocks, temperatures, memory, disk, who else is there.

It reads and asks; it changes nothing and never uses sudo. Whatever cannot be found out is null, and nothing here
ends the program: a measurement on a device that hides a sensor is still a measurement. What a finding means for a
build is said by spoilers. It may import look, versions and power.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
from typing import Any, Callable, Mapping

from . import look, power, versions

# As devfreq names GPUs: Nano, Orin on JetPack 6 | Orin on 5, Xavier, TX2, Nano by chip | Thor.
GPU = re.compile(r"[0-9a-f]+\.(gpu|ga10b|gv11b|gp10b|gm20b)|gpu-gpc-\d+")
DESKTOPS = frozenset(
    {"Xorg", "Xwayland", "gnome-shell", "weston", "plasmashell", "lxqt-session", "xfce4-session"}
)


def probe(
    root: str = "/",
    run: look.Run = look.run,
    environ: Mapping[str, str] = os.environ,
    folder: str = ".",
    as_root: bool | None = None,
) -> dict[str, Any]:
    """Find out what can be found out about a device.

    Args:
        root: where its files lie; `/`, unless another device's files are read.
        run: asks a program.
        environ: to find programs by.
        folder: of the work; its disk counts.
        as_root: whether this user may read what only root may; None: ask the system.

    Returns:
        What goes into `result.json`; frequencies in MHz, memory and disk in MiB, temperatures in °C. A value is
        null where it is not known.
    """
    installed = _or_none(versions.packages, root) or {}
    release = _or_none(versions.l4t, root, installed)
    privileged = os.geteuid() == 0 if as_root is None else as_root
    facts: dict[str, tuple[Callable[..., Any], Any]] = {
        "jetpack": (versions.jetpack, (release, installed)),
        "module": (versions.module, (root,)),
        "tensorrt": (versions.tensorrt, (root, installed)),
        "cuda": (versions.cuda, (root, installed, run, environ)),
        "power_mode": (power_mode, (root, run, environ)),
        "power_modes": (power_modes, (root,)),
        "clocks": (clocks, (root,)),
        "clocks_shown": (clocks_shown, (run, environ) if privileged else None),
        "temperatures_c": (temperatures, (root,)),
        "throttling": (throttling, (root,)),
        "rails": (lambda: [rail.name for rail in power.rails(root)], ()),
        "memory": (memory, (root,)),
        "swap": (swap, (root,)),
        "disk": (disk, (folder,)),
        "python": (platform.python_version, ()),
        "machine": (platform.machine, ()),
        "kernel": (lambda: look.read(root, "proc/sys/kernel/osrelease") or None, ()),
        "desktop": (desktop, (root,)),
        "container": (container, (root,)),
        "uptime_s": (look.number, (root, "proc/uptime")),
        "boot": (lambda: look.read(root, "proc/sys/kernel/random/boot_id") or None, ()),
    }
    found = {name: None if given is None else _or_none(ask, *given) for name, (ask, given) in facts.items()}
    return {"l4t": release, **found}


def power_mode(root: str, run: look.Run, environ: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the power mode, `{"id", "name"}`: as nvpmodel says, or as its service last set it."""
    program = look.find("nvpmodel", environ)
    answer = run([program, "-q"], environ) if program else None
    # Warnings of a fan come before, errors about what only root may read after: "NV Power Mode: 25W\n1\n".
    said = re.search(r"NV Power Mode: *(\S.*?) *\n(?:NVPM .*\n)*(\d+)", f"{answer.text}\n" if answer else "")
    if said:
        return {"id": int(said.group(2)), "name": said.group(1)}
    kept = re.search(r"pmode:(\d+)", look.read(root, "var/lib/nvpmodel/status"))
    if not kept:
        return None
    number = int(kept.group(1))
    return {"id": number, "name": power_modes(root).get(str(number))}


def power_modes(root: str) -> dict[str, str]:
    """Return the names of the power modes that this module has, by their numbers."""
    return dict(re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)", look.read(root, "etc/nvpmodel.conf")))


def clocks(root: str) -> dict[str, Any]:
    """Return the limits and the present value of the clocks of GPU and processor, and whether they are locked.

    They are locked where the lower limit has been raised to the upper, which is what jetson_clocks does.
    """
    gpus = [
        path for path in look.entries(root, "sys/class/devfreq/*") if GPU.fullmatch(path.rpartition("/")[2])
    ]
    policies = look.entries(root, "sys/devices/system/cpu/cpufreq/policy*")
    gpu = _clock(root, gpus[0], "{}_freq", 1e6) if gpus else None
    cpus = [_clock(root, path, "scaling_{}_freq", 1e3) for path in policies]
    limits = [(clock["min_mhz"], clock["max_mhz"]) for clock in [gpu, *cpus] if clock]
    known = gpu is not None and all(None not in pair for pair in limits)
    return {"gpu": gpu, "cpu": cpus, "locked": all(low == high for low, high in limits) if known else None}


def clocks_shown(run: look.Run, environ: Mapping[str, str]) -> list[str] | None:
    """Return what jetson_clocks shows, line by line; it tells root alone, and knows the memory's clock."""
    program = look.find("jetson_clocks", environ)
    answer = run([program, "--show"], environ) if program else None
    return answer.text.splitlines() if answer and answer.code == 0 else None


def temperatures(root: str) -> dict[str, float | None]:
    """Return the temperature of each zone; null for those that are off."""
    return {name: power.celsius(root, path) for name, path in power.zones(root)}


def throttling(root: str) -> dict[str, Any]:
    """Return what holds the module back now (`alerts`), and how often it drew too much since it started.

    `overcurrent` counts events: 1 under-voltage, 2 average, 3 instantaneous over-current (NVIDIA's developer
    guide for Orin).
    """
    devices = look.entries(root, "sys/class/thermal/cooling_device*")
    kinds = {path: look.read(root, f"{path}/type") for path in devices}
    alerts = [
        kind
        for path, kind in kinds.items()
        if kind.endswith("alert") and look.number(root, f"{path}/cur_state")
    ]
    counts = {
        path.rpartition("/")[2].partition("_")[0]: look.number(root, path)
        for path in look.entries(root, "sys/class/hwmon/hwmon*/oc*_event_cnt")
    }
    return {"alerts": sorted(alerts), "overcurrent": counts}


def memory(root: str) -> dict[str, int | None]:
    """Return all memory and what a program could still get; GPU and processor share it on a Jetson."""
    fields = dict(re.findall(r"^(\w+): +(\d+) kB", look.read(root, "proc/meminfo"), re.MULTILINE))
    total, available = fields.get("MemTotal"), fields.get("MemAvailable")
    return {
        "total_mb": int(total) // 1024 if total else None,
        "available_mb": int(available) // 1024 if available else None,
    }


def swap(root: str) -> dict[str, int] | None:
    """Return the swap space: all, used, and how much of it is compressed memory (zram)."""
    text = look.read(root, "proc/swaps")
    rows = [line.split() for line in text.splitlines()[1:]]
    sizes = [(row[0], int(row[2]), int(row[3])) for row in rows if len(row) >= 4]
    if not text:
        return None
    return {
        "total_mb": sum(size for _, size, _ in sizes) // 1024,
        "used_mb": sum(used for _, _, used in sizes) // 1024,
        "zram_mb": sum(size for name, size, _ in sizes if "zram" in name) // 1024,
    }


def disk(folder: str) -> dict[str, int]:
    """Return the size of the disk that a folder lies on, and what is free of it."""
    usage = shutil.disk_usage(folder)
    return {"total_mb": usage.total >> 20, "free_mb": usage.free >> 20}


def desktop(root: str) -> bool | None:
    """Whether a desktop runs: it takes memory from builds and time of the GPU from measurements."""
    names = [look.read(root, path) for path in look.entries(root, "proc/[0-9]*/comm")]
    return bool(DESKTOPS.intersection(names)) if names else None


def container(root: str) -> bool:
    """Whether this runs in a container."""
    marks = [look.entries(root, "*.dockerenv"), look.entries(root, "run/.containerenv")]
    return any(marks) or bool(re.search(r"docker|kubepods|libpod", look.read(root, "proc/1/cgroup")))


def _clock(root: str, folder: str, pattern: str, unit: float) -> dict[str, float | None]:
    values = {name: look.number(root, f"{folder}/{pattern.format(name)}") for name in ("min", "max", "cur")}
    return {f"{name}_mhz": None if value is None else value / unit for name, value in values.items()}


def _or_none(ask: Callable[..., Any], *given: Any) -> Any:
    """Ask, and take a surprise for an unknown: no file of a device may end a probe of it."""
    try:
        return ask(*given)
    except Exception:
        return None
