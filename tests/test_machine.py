"""Facts about the machine: of this one, and of made-up ones with containers and other processors."""

import json
from pathlib import Path

import pytest

from edgetune import machine
from edgetune.machine import _cgroup_cpus, _cgroup_memory_bytes, cores, cpu_name, has_vnni, memory_bytes


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_this_machine() -> None:
    found = machine.machine()
    assert found["cpu"]
    assert found["cores"] >= 1
    assert 0.1 < found["memory_gb"] < 100_000
    assert found["libraries"]["torch"]
    assert "absent" not in found["libraries"].values()
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("text", "vnni"),
    [
        ("processor\t: 0\nflags\t\t: fpu sse2 avx512_vnni\n", True),
        ("flags : fpu avx_vnni\n", True),
        ("processor : 0\nFeatures\t: fp asimd asimddp i8mm\n", True),
        ("flags : fpu avx2 avx512f\nvmx flags : avx512_vnni\n", False),
        ("Features : fp asimd\n", False),
        ("", False),
    ],
)
def test_vnni(tmp_path: Path, text: str, vnni: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    assert has_vnni(written(tmp_path / "cpuinfo", text)) is vnni


def test_names(tmp_path: Path) -> None:
    x86 = written(tmp_path / "x86", "vendor_id : X\nmodel name\t: Some  CPU   @ 2 GHz\nmodel name : other\n")
    arm = written(tmp_path / "arm", "processor : 0\n")
    board = written(tmp_path / "model", "NVIDIA Jetson Orin Nano\0")
    absent = tmp_path / "absent"
    assert cpu_name(x86, absent) == "Some CPU @ 2 GHz"
    assert cpu_name(arm, board) == "NVIDIA Jetson Orin Nano"
    assert cpu_name(absent, absent)


def test_cgroup_v2_limits_of_any_level_hold(tmp_path: Path) -> None:
    own = written(tmp_path / "own", "0::/outer/inner\n")
    root = tmp_path / "fs"
    written(root / "outer/inner/cpu.max", "max 100000\n")
    written(root / "outer/cpu.max", "150000 100000\n")
    written(root / "outer/inner/memory.max", "max\n")
    written(root / "memory.max", "2147483648\n")
    assert _cgroup_cpus(root, own) == 1.5
    assert _cgroup_memory_bytes(root, own) == [2**31]


def test_cgroup_v1_limits_hold(tmp_path: Path) -> None:
    own = written(tmp_path / "own", "4:memory:/job\n2:cpu,cpuacct:/job\n0::/\n")
    root = tmp_path / "fs"
    # In a container the own path does not exist under the mount, only the mount's own files do.
    written(root / "cpu/cpu.cfs_quota_us", "200000\n")
    written(root / "cpu/cpu.cfs_period_us", "100000\n")
    written(root / "memory/job/memory.limit_in_bytes", "1073741824\n")
    written(root / "memory/memory.limit_in_bytes", "9223372036854771712\n")
    assert _cgroup_cpus(root, own) == 2.0
    assert _cgroup_memory_bytes(root, own) == [2**30]


@pytest.mark.parametrize("text", ["max 100000", "", "-1 100000", "100000 0", "nonsense"])
def test_no_limit_is_infinite(tmp_path: Path, text: str) -> None:
    own = written(tmp_path / "own", "0::/\n")
    written(tmp_path / "fs/cpu.max", text)
    assert _cgroup_cpus(tmp_path / "fs", own) == float("inf")


@pytest.mark.parametrize(("share", "expected"), [(float("inf"), 8), (1.5, 2), (0.2, 1), (64.0, 8)])
def test_cores_are_those_allowed(monkeypatch: pytest.MonkeyPatch, share: float, expected: int) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(machine, "_cgroup_cpus", lambda: share)
    assert cores() == expected


def test_a_container_s_memory_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_cgroup_memory_bytes", lambda: [2**28])
    assert memory_bytes() == 2**28
