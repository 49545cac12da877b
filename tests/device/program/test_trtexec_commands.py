"""Command lines, one file per version and job; every flag is one that the version takes.

After a wanted change: GOLDEN=write pytest tests/device, then read the difference.
"""

import os
import runpy
import shlex
from pathlib import Path

import pytest

from edgetune.device.program.plan import Build, Tensor
from edgetune.device.program.problem import Problem
from edgetune.device.program.trtexec_commands import (
    build_command,
    check,
    needs_calibration,
    output_command,
    profile_command,
    shown,
    time_command,
)

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "trtexec"
STANDIN = runpy.run_path(str(Path(__file__).resolve().parents[1] / "standin_trtexec.py"))

PROGRAM = "/usr/src/tensorrt/bin/trtexec"
VERSIONS = ["8.2.1", "8.5.2", "8.6.2", "10.3.0", "10.7.0", "10.13.3", "10.16.2", "11.1.0", "11.4.1"]
JOBS = {
    "int8-weak": Build("int8", "int8.onnx", "int8.plan", "int8", "weak", 512, 4, None, "timing.cache"),
    "int8-strong": Build("int8", "int8.onnx", "int8.plan", "int8", "strong", 512, 4, None, "timing.cache"),
    "fp16-weak": Build("fp16", "fp16.onnx", "fp16.plan", "fp16", "weak", 1024),
    "fp16-strong": Build("fp16", "fp16.onnx", "fp16.plan", "fp16", "strong", 1024),
    "fp32-weak": Build("fp32", "fp32.onnx", "fp32.plan", "fp32", "weak", 256),
    "texts-weak": Build(
        "fp16",
        "fp16.onnx",
        "fp16.plan",
        "fp16",
        "weak",
        512,
        lengths=(64,),
        inputs=(Tensor("input_ids", "int32", (1, 64)), Tensor("attention_mask", "int32", (1, 64))),
    ),
    "dla-weak": Build("dla", "plain.onnx", "dla.plan", "int8", "weak", 512, None, 1),
    "dla-strong": Build("dla", "int8.onnx", "dla.plan", "int8", "strong", 512, None, 1),
}


def parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def commands(job: Build, version: tuple[int, ...]) -> dict[str, list[str]]:
    scales = "scales.calibration" if needs_calibration(job, version) else ""
    core = job.dla_core
    time = (PROGRAM, job.plan, version, 30, 2000)
    shapes = job.shapes(64) if job.lengths else None
    return {
        "build": build_command(PROGRAM, job, version, "layers.json", scales),
        "time, computation alone": time_command(*time, False, "times.json", 1000, core, shapes),
        "time, with copies": time_command(*time, True, "times.json", 1000, core, shapes),
        "outputs": output_command(
            PROGRAM, job.plan, version, {"input": "input.bin"}, "outputs.json", core, shapes
        ),
        "profile": profile_command(PROGRAM, job.plan, version, 3, "profile.json", core, shapes),
    }


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("job", JOBS)
def test_command_lines_are_as_they_were(version: str, job: str) -> None:
    lines = []
    try:
        for what, command in commands(JOBS[job], parts(version)).items():
            lines.append(f"# {what}\n{shown(command)}")
    except Problem as refused:
        lines = [f"refused ({refused.code}): {refused.message}\n{refused.hint}"]
    text = "\n\n".join(lines) + "\n"
    path = GOLDEN / f"{version}-{job}.txt"
    if os.environ.get("GOLDEN") == "write":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_no_golden_file_is_left_over() -> None:
    assert {path.name for path in GOLDEN.glob("*")} == {f"{v}-{job}.txt" for v in VERSIONS for job in JOBS}


@pytest.mark.parametrize("version", VERSIONS)
def test_passes_only_flags_that_the_version_takes(version: str) -> None:
    known, seen = STANDIN["known_flags"](parts(version)), 0
    for job in JOBS.values():
        try:
            made = commands(job, parts(version))
        except Problem:
            continue
        for command in made.values():
            assert {word.split("=")[0] for word in command[1:]} <= known
            seen += 1
    assert seen >= 10


def test_timing_means_the_same_on_every_version() -> None:
    """What 11 does unasked is asked for before it, and the other way round."""
    for version in map(parts, VERSIONS):
        alone, copied = (
            set(time_command(PROGRAM, "p", version, 1, 1, copies, "out")[1:]) for copies in (False, True)
        )
        asked = {"--useCudaGraph", "--useSpinWait"}
        if version >= (11,):
            assert copied - alone == {"--includeDataTransfers"}
            assert not alone & {*asked, "--noDataTransfers"}
        else:
            assert alone - copied == {"--noDataTransfers"}
            assert asked <= alone & copied


@pytest.mark.parametrize(
    ("version", "change", "words"),
    [
        ("7.1.3", {}, "JetPack"),
        ("8.2.1", {}, "FP16"),
        ("10.3.0", {"typing": "strong"}, "weakly typed"),
        ("10.11.0", {"typing": "strong"}, "weakly typed"),
        ("10.12.0", {}, "deprecates"),
        ("11.1.0", {}, "strongly typed"),
        ("10.13.3", {"dla_core": 0}, "10.7"),
        ("11.1.0", {"typing": "strong", "dla_core": 0}, "11.4"),
        ("10.3.0", {"precision": "int4"}, "int8"),
        ("10.3.0", {"typing": "loose"}, "weak"),
        ("10.3.0", {"workspace_mb": 0}, "1 MiB"),
        ("10.3.0", {"optimization_level": 6}, "0 to 5"),
    ],
)
def test_refuses_before_it_starts(version: str, change: dict[str, object], words: str) -> None:
    with pytest.raises(Problem) as caught:
        check(JOBS["int8-weak"]._replace(**change), parts(version))
    assert caught.value.code == 3
    assert words in caught.value.message + caught.value.hint


def test_a_shown_command_can_be_pasted() -> None:
    job = Build("x", "it's; rm -rf $HOME.onnx", "a b\n.plan", "fp16", "weak", 64)
    command = build_command(PROGRAM, job, (8, 2, 1))
    assert shlex.split(shown(command)) == command
    assert shown(command[:1]) == PROGRAM


@pytest.mark.parametrize("name", ["a,b", "it's"])
def test_refuses_names_that_its_list_of_inputs_cannot_carry(name: str) -> None:
    with pytest.raises(Problem) as caught:
        output_command(PROGRAM, "p", (10, 3, 0), {name: "f"}, "out")
    assert repr(name) in caught.value.message
    with pytest.raises(Problem):
        output_command(PROGRAM, "p", (10, 3, 0), {"x": name}, "out")


def test_inputs_with_colons() -> None:
    assert "--loadInputs='a:0':b:c" in output_command(PROGRAM, "p", (8, 5, 2), {"a:0": "b:c"}, "out")
    assert "--loadInputs=a:0:b" in output_command(PROGRAM, "p", (8, 2, 1), {"a:0": "b"}, "out")
    with pytest.raises(Problem):
        output_command(PROGRAM, "p", (8, 2, 1), {"a": "b:c"}, "out")
