"""Says what of a device's state spoils a build or a measurement, and what to do about it.

It judges what probe has found and asks nothing itself. Bounds are rules of thumb, each with its reason. It imports
nothing.
"""

from __future__ import annotations

import re
from typing import Any, List, Mapping, Tuple

# Modules slow down from about 95 °C on; one that starts this warm gets there within a measurement.
HOT_C = 75.0
# A desktop and a build of a small network fit into this; tactics that need more are skipped, not slow.
MEMORY_MB = 2048
# Below this much memory a build may be killed where no swap can take what is idle.
SMALL_MEMORY_MB = 12 * 1024
DISK_MB = 1024
# Chips keep some of what is sold for themselves: 7.4 of 8 GB on Orin Nano.
MEMORY_LEFT = 0.8
NO_INT8 = ("5.3", "6.2")

Found = Mapping[str, Any]
Rows = List[Tuple[str, str, str]]


def warnings(found: Found, wanted: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return what spoils a build or a measurement.

    Args:
        found: by `probe`.
        wanted: what the bundle was made for, each part of it optional: `module` (a title such as `Jetson Orin
            Nano 8 GB`), `memory_gb`, `compute_capability`, `power_mode` (its name), `jetpack`, `l4t`, `tensorrt`
            (as many of their parts as matter: `6.2` takes 6.2.1), `no_int8` (why the bundle has none), `memory_mb`
            and `disk_mb` (that the work needs).

    Returns:
        `{"code", "message", "remedy"}` each, those that make a result worthless first.
    """
    rows = [
        *_module(found, wanted),
        *_software(found, wanted),
        *_int8(found, wanted),
        *_power_mode(found, wanted),
        *_clocks(found),
        *_heat(found),
        *_throttling(found),
        *_memory(found, wanted),
        *_desktop(found),
        *_disk(found, wanted),
    ]
    return [{"code": code, "message": message, "remedy": remedy} for code, message, remedy in rows]


def _module(found: Found, wanted: Found) -> Rows:
    here = found.get("module") or {}
    model, capability = here.get("model") or "", here.get("compute_capability")
    # JetPack 4 calls a TX2 by its board's code name.
    words_here = re.findall(r"[a-z]+", model.lower().replace("quill", "tx"))
    title = str(wanted.get("module") or "")
    words = [word for word in re.findall(r"[a-z]+", title.lower()) if word not in ("jetson", "nvidia", "gb")]
    total, sold = (found.get("memory") or {}).get("total_mb"), wanted.get("memory_gb")
    meant = wanted.get("compute_capability")
    wrong = (
        (model and not set(words) <= set(words_here))
        or (capability and meant and capability != meant)
        or (total and sold and not sold * 1024 * MEMORY_LEFT <= total <= sold * 1024)
    )
    if not wrong:
        return []
    size = f", {total / 1024:.1f} GB of memory" if total else ""
    made_for = title or f"compute capability {meant}"
    message = f"this is {model or 'an unknown board'}{size}; the bundle was made for {made_for}"
    return [
        (
            "module",
            message,
            "make a bundle with the profile of this module, or read its figures as this module's",
        )
    ]


def _software(found: Found, wanted: Found) -> Rows:
    here = {
        "tensorrt": ("TensorRT", (found.get("tensorrt") or {}).get("version")),
        "l4t": ("L4T", found.get("l4t")),
        "jetpack": ("JetPack", found.get("jetpack")),
    }
    rows = []
    for key, (name, version) in here.items():
        meant = wanted.get(key)
        if meant and version and not _within(version, str(meant)):
            message = f"{name} is {version} here; the bundle was made for {meant}"
            remedy = "engines are built here and fit what is here; bundle anew for this version if the build refuses"
            rows.append((key, message, remedy))
    if "tensorrt" in found and not here["tensorrt"][1]:
        rows.append(
            (
                "no_tensorrt",
                "no package or library of TensorRT was found",
                "sudo apt install nvidia-jetpack, or run inside a container that has TensorRT",
            )
        )
    return rows


def _int8(found: Found, wanted: Found) -> Rows:
    capability = (found.get("module") or {}).get("compute_capability")
    if capability not in NO_INT8 or wanted.get("no_int8"):
        return []
    message = f"a GPU of compute capability {capability} has no INT8 path in TensorRT"
    return [("no_int8", message, "build FP16 alone")]


def _power_mode(found: Found, wanted: Found) -> Rows:
    mode, meant = found.get("power_mode"), wanted.get("power_mode")
    if not mode or not meant or _plain(mode.get("name")) == _plain(meant):
        return []
    names = {_plain(name): number for number, name in (found.get("power_modes") or {}).items()}
    number = names.get(_plain(meant), "ID")
    return [
        (
            "power_mode",
            f"the power mode is {mode.get('name') or mode.get('id')}; the bundle was made for {meant}",
            f"sudo nvpmodel -m {number} (it may ask for a reboot), or give --lock-clocks",
        )
    ]


def _clocks(found: Found) -> Rows:
    clocks = found.get("clocks") or {}
    if clocks.get("locked") is not False:
        return []
    named = [("the GPU", clocks.get("gpu")), *(("the processor", cpu) for cpu in clocks.get("cpu") or ())]
    free = [
        f"{name} may run from {c['min_mhz']:g} to {c['max_mhz']:g} MHz" for name, c in named if c and _free(c)
    ]
    message = f"clocks are not locked: {free[0]}" if free else "clocks are not locked"
    return [("clocks", message, "give --lock-clocks, or run sudo jetson_clocks before")]


def _heat(found: Found) -> Rows:
    zones = {name: value for name, value in (found.get("temperatures_c") or {}).items() if value is not None}
    name = max(zones, key=lambda name: zones[name], default="")
    if not name or zones[name] < HOT_C:
        return []
    message = f"{name} is at {zones[name]:.0f} °C before any work"
    return [("hot", message, "let it cool down, or run its fan at full speed: sudo jetson_clocks --fan")]


def _throttling(found: Found) -> Rows:
    state = found.get("throttling") or {}
    rows = []
    if state.get("alerts"):
        message = f"the module is slowed down at this moment: {', '.join(state['alerts'])}"
        rows.append(("throttled", message, "let it cool down; look at its fan and heat sink"))
    counts = {name: count for name, count in (state.get("overcurrent") or {}).items() if count}
    if counts:
        events = ", ".join(f"{name} {count} times" for name, count in counts.items())
        message = f"the module has been slowed down for its supply since it was started: {events}"
        rows.append(("overcurrent", message, "use a stronger power supply, or a lower power mode"))
    return rows


def _memory(found: Found, wanted: Found) -> Rows:
    sizes, swap = found.get("memory") or {}, found.get("swap")
    total, available = sizes.get("total_mb"), sizes.get("available_mb")
    least = wanted.get("memory_mb") or MEMORY_MB
    rows = []
    if available is not None and available < least:
        message = f"{available} MiB of memory are available; a build wants {least}"
        rows.append(
            (
                "low_memory",
                message,
                "close programs, and the desktop: sudo systemctl isolate multi-user.target",
            )
        )
    # Compressed memory does not help: what the GPU holds cannot be compressed.
    real = swap["total_mb"] - swap["zram_mb"] if swap else None
    if real == 0 and total is not None and total < SMALL_MEMORY_MB:
        message = f"no swap on a disk, and {total} MiB of memory: a build that needs more is killed"
        remedy = "sudo fallocate -l 8G /swapfile && sudo chmod 600 /swapfile && sudo mkswap /swapfile"
        rows.append(("no_swap", message, f"{remedy} && sudo swapon /swapfile"))
    return rows


def _desktop(found: Found) -> Rows:
    if not found.get("desktop"):
        return []
    message = "a desktop is running: it takes about half a GB of memory, and time of the GPU"
    remedy = (
        "sudo systemctl isolate multi-user.target (sudo systemctl isolate graphical.target brings it back)"
    )
    return [("desktop", message, remedy)]


def _disk(found: Found, wanted: Found) -> Rows:
    free, least = (found.get("disk") or {}).get("free_mb"), wanted.get("disk_mb") or DISK_MB
    if free is None or free >= least:
        return []
    return [("low_disk", f"{free} MiB are free on the disk; the work wants {least}", "free some space")]


def _free(clock: Mapping[str, Any]) -> bool:
    return bool(clock["min_mhz"] != clock["max_mhz"])


def _within(version: str, meant: str) -> bool:
    """Whether a version is the one meant, or one of those meant: `10.3.0.30` is within `10.3`."""
    parts = re.findall(r"\d+", meant)
    return re.findall(r"\d+", version)[: len(parts)] == parts


def _plain(name: object) -> str:
    # The same mode is 30W in tables and MODE_30W on an AGX Orin.
    return re.sub(r"^MODE_|[^A-Z0-9]", "", str(name).upper())
