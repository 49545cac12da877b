"""Profiles on the terminal: nothing is cut off, whatever its width, and a pipe gets one line per row."""

import pytest

from edgetune.profile import Profile, compare_targets, load_profile, load_target
from edgetune.show_profiles import show_comparison, show_complaints, show_profiles, show_target

SOME = ("host-cpu", "jetson-nano-4gb", "jetson-orin-nx-16gb", "jetson-xavier-nx")


@pytest.fixture(scope="module")
def some() -> list[Profile]:
    return [load_profile(name) for name in SOME]


@pytest.mark.parametrize("width", ["30", "60", "100", "140"])
def test_nothing_is_cut_off(
    width: str, some: list[Profile], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    show_profiles(some)
    listed = capsys.readouterr().out
    for word in (*SOME, "16 GB", "0.472", "15W_6CORE*", "MAXN_SUPER", "unconfirmed"):
        assert word in listed
    show_target(load_target("jetson-agx-orin-64gb"))
    shown = capsys.readouterr().out
    assert "85.2" in shown
    assert "30W*" in shown
    for out in (listed, shown):
        assert "…" not in out
    assert max(map(len, shown.splitlines())) <= int(width)


def test_a_pipe_gets_one_line_per_row(
    some: list[Profile], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    show_profiles(some)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:5]] == list(SOME)
    assert all(line == line.rstrip() for line in lines)
    assert "NAME[:MODE][@JETPACK]" in lines[5], "square brackets are not markup"


def test_a_source_stands_beside_each_figure_that_has_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    show_target(load_target("jetson-agx-orin-32gb:40w"))
    out = capsys.readouterr().out
    assert "40W*" in out
    assert "MAXN: NVIDIA nvpmodel configuration" in out
    assert "    gpu_mhz: general knowledge" in out
    assert "(unconfirmed)" in out


def test_a_desktop_has_releases_of_tensorrt(capsys: pytest.CaptureFixture[str]) -> None:
    show_target(load_target("desktop-rtx-4090@10.3"))
    out = capsys.readouterr().out
    assert "10.3*" in out
    assert "release" in out


def test_side_by_side(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    show_comparison(compare_targets(["jetson-orin-nano-8gb:25W", "jetson-orin-nano-8gb:7W@5.1"]))
    out = capsys.readouterr().out
    rows = {line.split("  ")[0]: line.split()[-2:] for line in out.splitlines()}
    assert rows["GPU MHz"] == ["918", "408"]
    assert rows["TensorRT"] == ["10.3.0", "8.5.2"]
    assert "compute capability: 8.7" in out.partition("the same in all:")[2]
    monkeypatch.setenv("COLUMNS", "50")
    show_comparison(compare_targets(["host-cpu", "host-cpu"]))
    assert "nothing differs" in capsys.readouterr().out


def test_complaints_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    complaint = {"line": 3, "key": "a", "message": "b", "hint": "", "text": "x.yaml:3: a: b"}
    fine = {"file": "y.yaml", "valid": True, "profile": "y", "complaints": []}
    show_complaints([{"file": "x.yaml", "valid": False, "profile": None, "complaints": [complaint]}, fine])
    assert capsys.readouterr().out.splitlines() == [
        "x.yaml: 1 complaint", "x.yaml:3: a: b", "y.yaml: nothing is wrong with it",
    ]  # fmt: skip
