"""The README's words are tried: its commands run as pasted, its tree is the tree."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from textual import tiny_bert, write_reviews

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
# What the two install lines do is what continuous integration begins with.
INSTALLS = ("pip install",)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


def photos(folder: Path) -> None:
    """Sixteen pictures of each of two classes."""
    noise = np.random.default_rng(0)
    for label, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for index in range(16):
            pixels = noise.integers(0, 90, (64, 80, 3), dtype=np.uint8)
            pixels[..., label] += 140
            Image.fromarray(pixels).save(folder / name / f"{index}.jpg", quality=95)


@pytest.mark.slow
def test_the_commands_run_as_pasted(tmp_path: Path) -> None:
    photos(tmp_path / "photos")
    tiny_bert(tmp_path / "minilm")
    for name in ("news", "more"):
        write_reviews(tmp_path / f"{name}.csv")
    commands = [line for block in blocks("sh") for line in block.splitlines() if line.strip()]
    commands = [line for line in commands if not line.startswith(INSTALLS)]
    assert len(commands) >= 8
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for command in commands:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        # Few noisy pictures may fail a gate; anything else is a mistake in the README.
        assert done.returncode in (0, 7), f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
def test_the_python_runs_as_pasted(tmp_path: Path) -> None:
    photos(tmp_path / "photos")
    found = blocks("python")
    assert found
    for code in found:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()


def test_the_tree_names_every_file() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [Path(name) for name in listed.splitlines()]
    modules = [p for p in files if p.parts[0] in ("edgetune", "benchmarks") and p.suffix == ".py"]
    assert len(modules) > 40
    tree = README.read_text().partition("## The tree")[2].partition("\n## ")[0]
    missing = [str(p) for p in modules if p.name not in tree and p.name != "__init__.py"]
    assert not missing, f"give each a line in README.md: {missing}"


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README.read_text())
    assert targets
    for target in targets:
        assert (ROOT / target).exists(), target


def test_exit_codes_are_those_of_the_errors() -> None:
    from edgetune import errors

    rows = dict(re.findall(r"^\| (\d+) \| (.+) \|$", README.read_text(), re.MULTILINE))
    known = {str(cls.exit_code) for cls in errors.EdgetuneError.__subclasses__()}
    assert known | {"0", "2", "7", "130"} == set(rows)
