"""Say what this machine has, what it lacks, what that means, and how to get it.

It imports each heavy library to see whether it works, and survives whatever that raises. It may import
errors, machine and profile.
"""

import importlib
import os
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from edgetune import machine, profile
from edgetune.artifact import library_versions

Status = Literal["ok", "missing", "optional", "warning"]
# What is imported, by the name it is installed under.
REQUIRED = {
    "torch": "torch", "torchvision": "torchvision", "onnx": "onnx", "onnxruntime": "onnxruntime",
    "numpy": "numpy", "pillow": "PIL", "safetensors": "safetensors", "pydantic": "pydantic",
    "ruamel.yaml": "ruamel.yaml", "jinja2": "jinja2", "matplotlib": "matplotlib",
    "scikit-learn": "sklearn", "scipy": "scipy", "psutil": "psutil",
}  # fmt: skip
TRTEXEC = (Path("/usr/src/tensorrt/bin/trtexec"), Path("/opt/tensorrt/bin/trtexec"))


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for. `way` says how to get it, empty where nothing is to be done."""

    what: str
    status: Status
    found: str
    way: str = ""


def doctor() -> list[dict[str, Any]]:
    """Examine this machine.

    Returns:
        One entry per thing looked for: `what`, `status` (`ok`, `missing`: edgetune does not work without
        it, `optional`: something it can do is out of reach, `warning`), `found` and `way`.
    """
    findings = [
        _python(),
        *(_library(package, module) for package, module in REQUIRED.items()),
        _gpu(),
        _tensorrt(),
        _trtexec(),
        _timm(),
        _optuna(),
        _cpu(),
        _memory(),
    ]
    findings += [_disk(Path.cwd()), _profiles()]
    return [asdict(finding) for finding in findings]


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("Python", "ok", version)


def _library(package: str, module: str) -> Finding:
    try:
        importlib.import_module(module)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return Finding(
            package, "missing", f"does not load: {reason}", "pip install --force-reinstall edgetune"
        )
    return Finding(package, "ok", library_versions(package)[package])


def _gpu() -> Finding:
    try:
        import torch
    except Exception:
        return Finding("GPU", "optional", "torch does not load")
    if torch.cuda.is_available():
        return Finding("GPU", "ok", torch.cuda.get_device_name(0))
    built = torch.version.cuda
    way = "install NVIDIA's driver" if built else "this torch is built without CUDA; install the CUDA build"
    return Finding("GPU", "optional", "none that torch sees; fine-tuning runs on the CPU", way)


def _tensorrt() -> Finding:
    try:
        found = importlib.import_module("tensorrt")
    except Exception:
        way = "on a Jetson it comes with JetPack; elsewhere: pip install tensorrt"
        return Finding("TensorRT", "optional", "not here; INT8 is judged with ONNX Runtime", way)
    return Finding("TensorRT", "ok", str(getattr(found, "__version__", "unknown version")))


def _trtexec() -> Finding:
    path = shutil.which("trtexec") or next((str(p) for p in TRTEXEC if p.is_file()), "")
    if path:
        return Finding("trtexec", "ok", path)
    return Finding(
        "trtexec", "optional", "not here; engines are built on the device", "it comes with JetPack"
    )


def _timm() -> Finding:
    version = library_versions("timm")["timm"]
    if version == "absent":
        return Finding("timm", "optional", "not here; no timm:NAME models", "pip install timm")
    return Finding("timm", "ok", version)


def _optuna() -> Finding:
    version = library_versions("optuna")["optuna"]
    if version == "absent":
        return Finding("Optuna", "optional", "not here; no edgetune tune", 'pip install "edgetune[tune]"')
    return Finding("Optuna", "ok", version)


def _cpu() -> Finding:
    name = f"{machine.cpu_name()}, {machine.cores()} cores"
    if machine.has_vnni():
        return Finding("CPU", "ok", f"{name}, INT8 instructions (VNNI or dot product)")
    return Finding(
        "CPU", "warning", f"{name}, no INT8 instructions", "INT8 files for host-cpu use 7-bit weights here"
    )


def _memory() -> Finding:
    gigabytes = machine.memory_bytes() / 2**30
    if gigabytes < 2:
        return Finding(
            "memory", "warning", f"{gigabytes:.1f} GiB", "fine-tuning small networks takes about 1.5 GiB"
        )
    return Finding("memory", "ok", f"{gigabytes:.1f} GiB")


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free / 1e9
    if not os.access(folder, os.W_OK):
        return Finding("disk", "warning", f"{folder} is not writable", "choose another folder with -o")
    if free < 1:
        return Finding("disk", "warning", f"{free:.1f} GB free in {folder}", "free some space")
    return Finding("disk", "ok", f"{free:.0f} GB free in {folder}")


def _profiles() -> Finding:
    found = profile.names()
    if not found:
        return Finding("profiles", "missing", "none", "install edgetune again")
    return Finding("profiles", "ok", ", ".join(found))
