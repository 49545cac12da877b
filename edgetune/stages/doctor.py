"""Say what this machine has, what it lacks, what that means, and how to get it.

It imports each heavy library to see whether it works, and survives whatever that raises. It may import
errors, machine, profile, the ONNX Runtime engine, and the device program's way to TensorRT.
"""

import importlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from edgetune import machine, profile
from edgetune.artifact import library_versions
from edgetune.device.program import bindings
from edgetune.errors import EdgetuneError

Status = Literal["ok", "missing", "optional", "warning"]
# What is imported, by the name it is installed under.
REQUIRED = {
    "torch": "torch", "torchvision": "torchvision", "onnx": "onnx", "onnxruntime": "onnxruntime",
    "numpy": "numpy", "pillow": "PIL", "safetensors": "safetensors", "pydantic": "pydantic",
    "ruamel.yaml": "ruamel.yaml", "jinja2": "jinja2", "matplotlib": "matplotlib",
    "scikit-learn": "sklearn", "scipy": "scipy", "psutil": "psutil",
}  # fmt: skip
TINY = """<ir_version: 8, opset_import: ["": 17]>
tiny (float[1, 3, 8, 8] x) => (float[1, 3, 8, 8] y) { y = Relu(x) }"""
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
        *_runtimes(),
        _gpu(),
        *_providers(),
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
    way = "pip install --force-reinstall edgetune"
    try:
        found = importlib.import_module(module)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return Finding(package, "missing", f"does not load: {reason}", way)
    if getattr(found, "__file__", None) is None:
        # What an uninstalled package leaves behind still imports.
        return Finding(
            package,
            "missing",
            "its files are gone",
            machine.RUNTIME_FOR_GPU if package in machine.RUNTIMES else way,
        )
    return Finding(package, "ok", library_versions(package)[package])


def _runtimes() -> Iterator[Finding]:
    """Notice both packages of ONNX Runtime: the last one installed counts, and removing one breaks the other."""
    versions = {}
    for name in machine.RUNTIMES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    if len(versions) > 1:
        both = " and ".join(f"{name} {version}" for name, version in versions.items())
        yield Finding(
            "onnxruntime-gpu", "warning", f"{both} overwrite each other's files; a GPU needs the latter alone",
            machine.RUNTIME_FOR_GPU,
        )  # fmt: skip


def _providers() -> Iterator[Finding]:
    """Try ONNX Runtime's ways to use a GPU on a network of one operator."""
    try:
        import onnx

        from edgetune.engines.onnxruntime import PROVIDERS, Session

        model = onnx.parser.parse_model(TINY).SerializeToString()
    except Exception:
        return  # which library does not load has been said
    for name, provider in PROVIDERS.items():
        if name == "cpu":
            continue
        what = f"{provider.title} provider"
        try:
            engine = Session(model, provider=name).engine
        except Exception as error:
            way = error.hint.rpartition("\n")[2] if isinstance(error, EdgetuneError) else ""
            yield Finding(what, "optional", str(error), way)
        else:
            yield Finding(what, "ok", f"{engine}, for edgetune bench --provider {name}")


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
    said: list[str] = []
    # It asks the CUDA driver first: without one, TensorRT's objects end the process.
    found = bindings.load(said.append)
    if found is not None:
        return Finding("TensorRT", "ok", str(getattr(found, "__version__", "unknown version")))
    if find_spec("tensorrt") is None:
        way = "on a Jetson it comes with JetPack; elsewhere: pip install tensorrt"
        return Finding("TensorRT", "optional", "not here; INT8 is judged with ONNX Runtime", way)
    way = "install it again" if "import" in said[0] else "install NVIDIA's driver"
    return Finding("TensorRT", "optional", f"installed, of no use here: {said[0]}", way)


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
