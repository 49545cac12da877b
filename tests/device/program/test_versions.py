"""Which release, module and library a device has, where its files say it in other ways than the golden devices."""

from pathlib import Path

import pytest
from standin_device import dpkg, write

from edgetune.device.program import look, versions


@pytest.mark.parametrize(
    ("text", "release", "jetpack"),
    [
        ("# R36 (release), REVISION: 4.7, GCID: 42132812", "36.4.7", "6.2.1"),
        ("# R36 (release), REVISION: 3.0, GCID: 36106755", "36.3.0", "6.0"),
        ("# R35 (release), REVISION: 1.0, GCID: 31346300", "35.1.0", "5.0.2"),
        ("# R32 (release), REVISION: 7.6, GCID: 1", "32.7.6", "4.6.6"),
        ("# R38 (release), REVISION: 4.0, GCID: 1", "38.4.0", "7.1"),
        ("# R39 (release), REVISION: 2.0, GCID: 1", "39.2.0", "7.2"),
        ("# R99 (release), REVISION: 1.0, GCID: 1", "99.1.0", None),
        ("", None, None),
    ],
)
def test_releases(text: str, release: str | None, jetpack: str | None, tmp_path: Path) -> None:
    write(tmp_path, {"etc/nv_tegra_release": text})
    assert versions.l4t(str(tmp_path), {}) == release
    assert versions.jetpack(release, {}) == jetpack


def test_a_release_that_is_not_in_the_table_goes_by_the_package_of_jetpack() -> None:
    assert versions.jetpack("99.1.0", {"nvidia-jetpack": "9.1+b12"}) == "9.1"


def test_a_library_tells_its_version_where_no_package_does(tmp_path: Path) -> None:
    folder = "usr/lib/aarch64-linux-gnu"
    write(tmp_path, {f"{folder}/libnvinfer.so.{name}": b"" for name in ("8", "8.6.2", "10", "10.3.0")})
    assert versions.tensorrt(str(tmp_path), {}) == {
        "version": "10.3.0",
        "source": f"/{folder}/libnvinfer.so.10.3.0",
    }


def test_only_installed_packages_count(tmp_path: Path) -> None:
    write(tmp_path, {"var/lib/dpkg/status": dpkg(libnvinfer8="8.5.2-1+cuda11.4", libnvinfer_dev="1.0")})
    assert versions.packages(str(tmp_path)) == {"libnvinfer8": "8.5.2-1+cuda11.4"}


def test_the_compiler_tells_the_version_of_cuda_where_nothing_else_does(tmp_path: Path) -> None:
    (tmp_path / "nvcc").write_text("#!/bin/sh\necho 'Cuda compilation tools, release 11.4, V11.4.315'\n")
    (tmp_path / "nvcc").chmod(0o755)
    assert versions.cuda(str(tmp_path), {}, look.run, {"PATH": str(tmp_path)}) == "11.4.315"
    assert (
        versions.cuda(str(tmp_path), {"cuda-cudart-12-6": "12.6.68-1"}, look.run, {"PATH": ""}) == "12.6.68"
    )
    assert versions.cuda(str(tmp_path), {}, lambda *_: None, {"PATH": str(tmp_path)}) is None


def test_thor(tmp_path: Path) -> None:
    compatible = b"nvidia,p4071-0000+p3834-0008\0nvidia,p3834-0008\0nvidia,tegra264\0"
    write(tmp_path, {"proc/device-tree/compatible": compatible})
    assert versions.module(str(tmp_path)) == {
        "model": None,
        "part": "p3834-0008",
        "chip": "tegra264",
        "compute_capability": "11.0",
    }
