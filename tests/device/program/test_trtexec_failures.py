"""Words of trtexec and of the library that it runs, and what is made of them."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.device.program.plan import Build
from edgetune.device.program.trtexec_failures import Ended, OutOfMemory, explain, smaller, warnings

JOB = Build("int8", "a.onnx", "a.plan", "int8", "weak", 512)
VERSION = (10, 3, 0)


def said(text: str, code: int = 1, *, job: Build | None = JOB, plan: str = "") -> tuple[type, int, str]:
    problem = explain(Ended(code, text, "/a.log", 1.0), "int8: build", VERSION, job, plan)
    return type(problem), problem.code, f"{problem.message}\n{problem.hint}"


def test_smaller_settings_end_somewhere() -> None:
    seen = []
    job: Build | None = JOB
    while job:
        seen.append((job.workspace_mb, job.optimization_level))
        job = smaller(job, VERSION)
    assert seen == [(512, None), (256, 2), (128, 1), (64, 0)]
    assert smaller(JOB, (8, 5, 2)) == JOB._replace(workspace_mb=256), "no levels before 8.6"
    assert smaller(JOB._replace(workspace_mb=64), (8, 5, 2)) is None


@given(st.integers(1, 10**6), st.one_of(st.none(), st.integers(0, 5)), st.sampled_from([(8, 5, 2), VERSION]))
def test_smaller_settings_never_grow(megabytes: int, level: int | None, version: tuple[int, ...]) -> None:
    job = JOB._replace(workspace_mb=megabytes, optimization_level=level)
    less = smaller(job, version)
    if less is not None:
        assert less != job
        assert less.workspace_mb <= megabytes
        assert level is None or (less.optimization_level is not None and less.optimization_level <= level)


@pytest.mark.parametrize("code", [137, -9])
def test_killed_at_the_smallest_settings_advises_what_is_left(code: int) -> None:
    kind, number, text = said("", code, job=JOB._replace(workspace_mb=64, optimization_level=0))
    assert (kind, number) == (OutOfMemory, 6)
    assert "swap" in text
    assert "workspace" not in text


def test_killed_while_running_an_engine() -> None:
    kind, _, text = said("", 137, job=None, plan="a.plan")
    assert kind is OutOfMemory
    assert "workspace" not in text


@pytest.mark.parametrize(
    "words",
    [
        "[E] [TRT] 2: [defaultAllocator.cpp::allocate::19] Error Code 1: Cuda Runtime (out of memory)",
        "[E] [TRT] 2: Error Code 2: OutOfMemory (no further information)",
        "[E] Unable to create execution context for stream 0.",
    ],
)
def test_too_little_memory_on_the_gpu_is_too_little_memory(words: str) -> None:
    kind, number, text = said(words, job=None, plan="a.plan")
    assert (kind, number) == (OutOfMemory, 6)
    assert words.split(": ")[-1].split("] ")[-1] in text


def test_a_full_disk_is_seen_where_trtexec_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1000

    assert "no space left" not in said("")[2]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage)
    assert "no space left" in said("")[2]
    assert said("", 137)[0] is OutOfMemory


@pytest.mark.parametrize(
    ("text", "words", "code"),
    [
        ("[E] [TRT] write: No space left on device", "no space left", 6),
        ("  --help  Some[E] Unknown option: --x 1", "does not know --x", 4),
        ("[E] Error opening engine file: a.plan", "no such engine", 5),
        ("got 10.3.0.30, please\n[E] Got invalid engine!", "cut or damaged", 5),
        (
            "[E] [TRT] expecting library version 10.7.0.23 got 10.3.0.30, please rebuild.",
            "of TensorRT 10.3.0.30; this",
            5,
        ),
        (
            "[E] [TRT] incompatible device, expecting compute 7.2 got compute 5.3, please",
            "5.3; this one has 7.2",
            5,
        ),
    ],
)
def test_words_and_codes(text: str, words: str, code: int) -> None:
    plan = "a.plan" if code == 5 else ""
    _, number, told = said(text, job=None if plan else JOB, plan=plan)
    assert words in told
    assert number == code


def test_no_reason_at_all() -> None:
    _, code, text = said("[I] fine", 3)
    assert code == 6
    assert "trtexec failed (3): it gave no reason" in text
    assert "/a.log" in text


def test_the_library_is_quoted_rather_than_every_step_above_it() -> None:
    text = "[E] [TRT] first\n[E] [TRT] middle\n[E] [TRT] last\n[E] Building engine failed\n[E] Engine set up failed\n"
    assert "trtexec failed (1): first; last\n" in said(text)[2]
    assert "Engine set up failed" in said("[E] Engine set up failed")[2]


def test_warnings_are_listed_once() -> None:
    text = "[05/01/2024-10:00:00] [W] [TRT] a\n[I] b\n[W] c\n[05/01/2024-10:00:01] [W] [TRT] a\n"
    assert warnings(text) == ["a", "c"]


def test_a_disk_that_cannot_be_asked(tmp_path: Path) -> None:
    ended = Ended(1, "", str(tmp_path / "none" / "a.log"), 1.0)
    assert "it gave no reason" in explain(ended, "x", VERSION).message
