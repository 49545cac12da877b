"""Faults as a user meets them: each ends with an exit code and a way out, and a rerun finishes."""

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgetune.artifact import Artifact

RECIPE = """\
schema_version: 1
name: test
profile: jetson-orin-nano-8gb
data: {path: images, min_images: 2}
model: {name: mobilenet_v2_035_cifar10, weights: none}
finetune: {strategy: full, epochs: 3, batch: 8}
quantize: {preset: quick}
gates: {top1_drop_points: 100, int8_cosine_min: -1, int8_agreement_percent_min: 0}
"""
COMMAND = (sys.executable, "-m", "edgetune")


@pytest.fixture
def folder(class_folders: Path) -> Path:
    (class_folders.parent / "recipe.yaml").write_text(RECIPE)
    return class_folders.parent


def edgetune(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*COMMAND, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def edit(folder: Path, old: str, new: str) -> None:
    text = (folder / "recipe.yaml").read_text()
    assert old in text
    (folder / "recipe.yaml").write_text(text.replace(old, new))


class Bomb:
    """What a hostile checkpoint holds: unpickling it would create a file."""

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.mkdir, ("hacked",)


@pytest.mark.slow
def test_a_checkpoint_that_is_a_pickle_bomb_is_refused(folder: Path) -> None:
    (folder / "bomb.pth").write_bytes(pickle.dumps(Bomb()))
    edit(folder, "weights: none", "weights: bomb.pth")
    done = edgetune(folder, "run", "recipe.yaml")
    assert done.returncode == 5, done.stderr
    assert "bomb.pth" in done.stderr
    assert not (folder / "hacked").exists()


@pytest.mark.slow
def test_a_gpu_where_none_is_ends_with_4(folder: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    done = edgetune(folder, "run", "recipe.yaml", "--accelerator", "cuda")
    assert done.returncode == 4
    assert "edgetune doctor" in done.stderr


@pytest.mark.slow
def test_killed_again_and_again_it_ends_as_if_never_killed(folder: Path) -> None:
    whole = edgetune(folder, "run", "recipe.yaml", "-o", "whole", "-q")
    assert whole.returncode == 0, whole.stderr
    kills, wait_s = 0, 2.0
    while True:
        process = subprocess.Popen(
            [*COMMAND, "run", "recipe.yaml", "-o", "killed", "-q"],
            cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            process.wait(timeout=wait_s)
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            wait_s *= 1.5
    assert process.returncode == 0
    assert kills >= 2
    for name in ("checkpoint", "onnx", "int8", "check"):
        kept = Artifact.load(folder / "killed" / name)
        if name != "check":  # its figures are compared below; the file also holds nothing but figures
            assert kept.digest == Artifact.load(folder / "whole" / name).digest, name
    assert not list((folder / "killed").glob("*.partial"))


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_says_how_to_go_on(folder: Path) -> None:
    edit(folder, "epochs: 3", "epochs: 500")
    process = subprocess.Popen(
        [*COMMAND, "run", "recipe.yaml"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore the interrupt, and so would everything that they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    state = folder / "runs" / "test" / "checkpoint.partial" / ".resume"
    for _ in range(600):
        if state.is_dir() and any(state.iterdir()):
            break
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "goes on from here" in stderr
    assert "Traceback" not in stderr
    resumed = folder / "runs" / "test" / "checkpoint.partial" / ".resume"
    assert any(resumed.iterdir()), "finished epochs are kept"


@pytest.mark.slow
def test_a_full_disk_then_space_again(folder: Path) -> None:
    small = folder / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", small], check=False).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    try:
        done = edgetune(folder, "run", "recipe.yaml", "-o", "small/run")
        assert done.returncode == 6, done.stderr
        assert "the disk is full" in done.stderr
        subprocess.run(["mount", "-o", "remount,size=64m", small], check=True)
        again = edgetune(folder, "run", "recipe.yaml", "-o", "small/run")
        assert again.returncode == 0, again.stderr
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.slow
def test_two_runs_in_one_folder(folder: Path) -> None:
    edit(folder, "epochs: 3", "epochs: 500")
    first = subprocess.Popen(
        [*COMMAND, "run", "recipe.yaml", "-q"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(600):
            if (folder / "runs" / "test" / ".lock").exists():
                break
            time.sleep(0.1)
        time.sleep(1)
        done = edgetune(folder, "run", "recipe.yaml")
        assert done.returncode == 6
        assert "another edgetune works in this folder" in done.stderr
    finally:
        first.kill()
        first.wait()


def test_a_corrupt_onnx_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"\x08\x01garbage")
    done = edgetune(tmp_path, "bench", "bad.onnx")
    assert done.returncode == 5, done.stderr
    assert "bad.onnx" in done.stderr


def test_the_wrong_kind_of_artifact_is_named(tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    Artifact(kind="onnx").write(tmp_path / "onnx")
    done = edgetune(tmp_path, "export", "onnx")
    assert done.returncode == 5
    assert "'checkpoint' is needed" in done.stderr


@pytest.mark.parametrize("text", ["- a\n- b\n", "42\n", "schema_version: 1\n", "data: [1]\n", "\x00", "{"])
def test_a_recipe_of_the_wrong_shape(tmp_path: Path, text: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    done = edgetune(tmp_path, "run", "recipe.yaml")
    assert done.returncode == 3
    assert "recipe.yaml" in done.stderr
