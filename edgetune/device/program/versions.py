"""What is installed on a device: L4T, JetPack, TensorRT, CUDA, and which module it is, by its own files.

It knows NVIDIA's numbers and nothing of whether they fit a job. It may import look.
"""

from __future__ import annotations

import json
import re
from typing import Mapping

from . import look

# Where a release of L4T belongs to: NVIDIA's JetPack archive, and the packages of L4T r35.6 to r39.2.
JETPACKS = {
    "32.6.1": "4.6",
    "32.7.1": "4.6.1",
    "32.7.2": "4.6.2",
    "32.7.3": "4.6.3",
    "32.7.4": "4.6.4",
    "32.7.5": "4.6.5",
    "32.7.6": "4.6.6",
    "35.1.0": "5.0.2",
    "35.2.1": "5.1",
    "35.3.1": "5.1.1",
    "35.4.1": "5.1.2",
    "35.5.0": "5.1.3",
    "35.6.0": "5.1.4",
    "35.6.1": "5.1.5",
    "35.6.2": "5.1.5",
    "35.6.3": "5.1.5",
    "35.6.4": "5.1.6",
    "36.3.0": "6.0",
    "36.4.0": "6.1",
    "36.4.2": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "36.4.7": "6.2.1",
    "36.5.0": "6.2.2",
    "38.2.0": "7.0",
    "38.2.1": "7.0",
    "38.2.2": "7.0",
    "38.4.0": "7.1",
    "39.2.0": "7.2",
    "39.2.1": "7.2.1",
}
# Of the GPU in each chip, as CUDA numbers them (Thor was 10.1 before CUDA 13).
CAPABILITIES = {
    "tegra210": "5.3",
    "tegra186": "6.2",
    "tegra194": "7.2",
    "tegra234": "8.7",
    "tegra264": "11.0",
}
PACKAGES = re.compile(r"nvidia-l4t-core|nvidia-jetpack|libnvinfer\d*|cuda-cudart-\d+-\d+")
LIBRARIES = ("usr/lib/aarch64-linux-gnu", "usr/lib/x86_64-linux-gnu", "usr/lib64", "usr/local/lib")


def packages(root: str) -> dict[str, str]:
    """Return the version of each package of interest that is installed, as dpkg keeps them."""
    found = {}
    for block in re.split(r"\n\s*\n", look.read(root, "var/lib/dpkg/status")):
        fields = dict(re.findall(r"^(Package|Status|Version): (.+)$", block, re.MULTILINE))
        if PACKAGES.fullmatch(fields.get("Package", "")) and fields.get("Status", "").endswith(" installed"):
            found[fields["Package"]] = fields.get("Version", "")
    return found


def l4t(root: str, installed: Mapping[str, str]) -> str | None:
    """Return the release of L4T, such as `36.4.3`."""
    said = re.search(
        r"R(\d+)\s*\(release\)\s*,\s*REVISION:\s*([\d.]+)", look.read(root, "etc/nv_tegra_release")
    )
    text = f"{said.group(1)}.{said.group(2)}" if said else installed.get("nvidia-l4t-core", "")
    match = re.match(r"\d+(\.\d+)+", text)
    return match.group() if match else None


def jetpack(release: str | None, installed: Mapping[str, str]) -> str | None:
    """Return the JetPack that a release of L4T belongs to, or that its own package names."""
    named = re.match(r"\d+(\.\d+)+", installed.get("nvidia-jetpack", ""))
    return JETPACKS.get(release or "") or (named.group() if named else None)


def module(root: str) -> dict[str, str | None]:
    """Return the board's name, the module's part number, its chip, and the compute capability of its GPU."""
    tree = "proc/device-tree"
    words = re.split(r"[\0,]", look.read(root, f"{tree}/compatible"))
    chip = next((word for word in words if word.startswith("tegra")), None)
    texts = [*reversed(words), look.read(root, f"{tree}/nvidia,dtsfilename")]
    # A board's name joins carrier and module: p3768-0000+p3767-0005-super; the module alone comes after it.
    parts = [
        match
        for text in texts
        for match in re.findall(r"p(?:3834|3767|3701|3668|2888|3636|3489|3310|3448)-\d{4}", text)
    ]
    return {
        "model": look.read(root, f"{tree}/model") or None,
        "part": parts[0] if parts else None,
        "chip": chip,
        "compute_capability": CAPABILITIES.get(chip or ""),
    }


def tensorrt(root: str, installed: Mapping[str, str]) -> dict[str, str | None]:
    """Return TensorRT's version and where it is known from: its package, or its library's file name."""
    for name, version in sorted(installed.items()):
        match = re.match(r"\d+(\.\d+)+", version)
        if name.startswith("libnvinfer") and match:
            return {"version": match.group(), "source": f"{name} {version}"}
    for folder in LIBRARIES:
        for path in reversed(look.entries(root, f"{folder}/libnvinfer.so.*.*")):
            return {"version": path.partition(".so.")[2], "source": path}
    return {"version": None, "source": None}


def cuda(root: str, installed: Mapping[str, str], run: look.Run, environ: Mapping[str, str]) -> str | None:
    """Return CUDA's version: as its folder says, its package, or its compiler."""
    try:
        return str(json.loads(look.read(root, "usr/local/cuda/version.json"))["cuda"]["version"])
    except (ValueError, KeyError, TypeError):
        pass
    said = look.read(root, "usr/local/cuda/version.txt")
    said += " ".join(version for name, version in sorted(installed.items()) if name.startswith("cuda-cudart"))
    compiler = look.find("nvcc", environ) if not said else None
    answer = run([compiler, "--version"], environ) if compiler else None
    match = re.search(r"\bV?(\d+\.\d+(\.\d+)?)", said) or re.search(r"\bV(\d+\.\d+(\.\d+)?)", _text(answer))
    return match.group(1) if match else None


def _text(answer: look.Answer | None) -> str:
    return answer.text if answer else ""
