"""edgetune under torchrun: one command, several processes, one result; killed, it goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from edgetune.artifact import Artifact
from edgetune.training.checkpoint import read_tensors

RECIPE = """\
schema_version: 1
name: test
profile: jetson-orin-nano-8gb
data: {path: images, min_images: 2}
model: {name: mobilenet_v2_035_cifar10}
finetune: {strategy: full, epochs: 3, batch: 8, optimizer: sgd, learning_rate: 0.002}
quantize: {preset: quick}
gates: {top1_drop_points: 100, int8_cosine_min: -1, int8_agreement_percent_min: 0}
"""
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
COMMAND = ("-m", "edgetune")
pytestmark = pytest.mark.slow


@pytest.fixture
def folder(class_folders: Path) -> Path:
    (class_folders.parent / "recipe.yaml").write_text(RECIPE)
    return class_folders.parent


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env=environment, timeout=300
    )


def edit(folder: Path, old: str, new: str) -> None:
    text = (folder / "recipe.yaml").read_text()
    assert old in text
    (folder / "recipe.yaml").write_text(text.replace(old, new))


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    return read_tensors(Artifact.load(checkpoint).file("model.safetensors"))


def test_two_processes_make_the_run_of_one(folder: Path) -> None:
    alone = run(folder, sys.executable, *COMMAND, "run", "recipe.yaml", "-o", "alone")
    shared = run(folder, *TORCHRUN, *COMMAND, "run", "recipe.yaml", "-o", "shared")
    assert (alone.returncode, shared.returncode) == (0, 0), shared.stderr
    assert shared.stdout.count("report: ") == 1, "one of them speaks"
    assert sum(line.startswith("epoch 1/3") for line in shared.stderr.splitlines()) == 1
    one, other = tensors(folder / "alone/checkpoint"), tensors(folder / "shared/checkpoint")
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, atol=1e-4, rtol=1e-3)
    assert sorted(path.name for path in (folder / "shared").iterdir()) == sorted(
        path.name for path in (folder / "alone").iterdir()
    )
    again = run(folder, *TORCHRUN, *COMMAND, "run", "recipe.yaml", "-o", "shared")
    assert again.returncode == 0, again.stderr
    assert "nothing had changed" in again.stdout


def test_too_many_processes_are_refused_once(folder: Path) -> None:
    edit(folder, "batch: 8", "batch: 1")
    done = run(folder, *TORCHRUN, *COMMAND, "run", "recipe.yaml")
    assert done.returncode == 1, "torchrun's own"
    assert done.stderr.count("error: finetune.batch: 1, which 2 processes share") == 1, done.stderr
    assert "exitcode  : 3" in done.stderr, "edgetune's"


def start_and_kill(folder: Path, out: str, victim: int, *options: str) -> subprocess.CompletedProcess[str]:
    """Kill one of the two processes once an epoch is behind them."""
    process = subprocess.Popen(
        [*TORCHRUN, *options, *COMMAND, "finetune", "recipe.yaml", "-o", out],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    state = folder / f"{out}.partial" / ".resume" / "state.json"
    for _ in range(1200):
        if state.is_file():
            break
        time.sleep(0.05)
    assert state.is_file(), "an epoch is complete"
    ranks = {int(one.environ()["RANK"]): one for one in psutil.Process(process.pid).children()}
    ranks[victim].send_signal(signal.SIGKILL)
    out_text, err_text = process.communicate(timeout=300)
    return subprocess.CompletedProcess([], process.returncode, out_text, err_text)


def test_the_leader_is_killed_and_one_process_goes_on_where_two_were(folder: Path) -> None:
    edit(folder, "epochs: 3", "epochs: 4")
    whole = run(folder, sys.executable, *COMMAND, "finetune", "recipe.yaml", "-o", "whole")
    assert whole.returncode == 0, whole.stderr
    cut = start_and_kill(folder, "cut", 0)
    assert cut.returncode != 0
    assert not (folder / "cut").exists(), "killed in the middle"
    resumed = run(folder, sys.executable, *COMMAND, "finetune", "recipe.yaml", "-o", "cut")
    assert resumed.returncode == 0, resumed.stderr
    assert "going on after epoch" in resumed.stderr
    one, other = tensors(folder / "whole"), tensors(folder / "cut")
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, atol=1e-3, rtol=1e-2)


def test_torchrun_starts_a_killed_job_again_by_itself(folder: Path) -> None:
    edit(folder, "epochs: 3", "epochs: 4")
    done = start_and_kill(folder, "cut", 1, "--max-restarts", "2")
    assert done.returncode == 0, done.stderr
    assert "going on after epoch" in done.stderr
    assert Artifact.load(folder / "cut").details["training"]["processes"] == 2
