"""Latency from the command line: any ONNX files and engines, what a profile allows, and a page with the plots.

It may import everything but the cli.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgetune.artifact import Artifact
from edgetune.engines.plans import is_plan
from edgetune.errors import ConfigError
from edgetune.latency.subjects import Asked
from edgetune.machine import cores
from edgetune.profile import Target, load_target
from edgetune.progress import Progress
from edgetune.recipe import Gates, section_from
from edgetune.report.gates import exit_code, judge
from edgetune.stages.bench import bench_models
from edgetune.steps import roles_of

# Of a profile's limits, those that a measurement of any network meets or does not.
TITLES = {"latency_p50_ms": "latency, median", "latency_p99_ms": "latency, p99", "memory_mb": "peak memory"}


def bench_alone(
    models: Sequence[Path],
    preset: str,
    threads: int,
    provider: str,
    progress: Progress,
    *,
    profile: str = "host-cpu",
    asked: Asked | None = None,
    out: Path | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Time any networks on this machine, in turns, and hold them against a profile's limits.

    Args:
        models: ONNX files, engines, artifacts' folders; or one run.
        preset: how long.
        threads: 0: as many as there are cores.
        provider: of ONNX Runtime.
        progress: one step per round.
        profile: of this machine; a Jetson's only for engines, on that Jetson.
        asked: what goes in, and what else is measured.
        out: where bench.html, bench.json and the pictures go; None: nowhere.
        command: what the user typed.

    Returns:
        `latency`, the `gates` of each model, and the `exit_code`: 7 where one failed.

    Raises:
        ConfigError: no such file, a file named twice, or a profile of another machine.
    """
    if len(models) == 1 and (models[0] / "report.json").is_file():
        roles = roles_of(models[0])
        models = [roles[role] for role in ("onnx", "int8") if role in roles]
    paths = {_label(path, models): _file(path) for path in models}
    if len(paths) < len(models):
        raise ConfigError("the same network is named twice")
    target = load_target(profile)
    _refuse_elsewhere(target, paths)
    settings = section_from("bench", {"preset": preset})
    asked = replace(asked or Asked(), profile=profile)
    latency = bench_models(
        paths, settings.preset, threads or cores(), provider, asked=asked, progress=progress
    )
    gates = _judged(target, dict(latency))
    found: dict[str, Any] = {
        "profile": target.label,
        "latency": latency,
        "gates": {name: [gate.model_dump(mode="json") for gate in own] for name, own in gates.items()},
        "exit_code": exit_code([gate for own in gates.values() for gate in own]),
        "command": command,
    }
    if out is not None:
        from edgetune.report.bench import publish

        publish(found, out)
    return found


def is_judged(profile: str) -> bool:
    """Whether a profile limits anything that is measured here."""
    gates = load_target(profile).profile.gates
    return any(getattr(gates, name) is not None for name in TITLES)


def as_report(found: dict[str, Any]) -> dict[str, Any]:
    """Return what `bench_alone` found as the report of one network, whose gates bear the models' names."""
    gates = [
        gate | {"name": f"{model}: {gate['name']}"} for model, own in found["gates"].items() for gate in own
    ]
    return {"name": "bench", "profile": {"label": found["profile"]}, "gates": gates}


def _judged(target: Target, latency: dict[str, Any]) -> dict[str, Any]:
    """Hold every model against those of the profile's limits that speak of latency and memory."""
    limits = {name: getattr(target.profile.gates, name) for name in TITLES}
    others = dict.fromkeys(set(Gates.model_fields) - set(TITLES))
    wanted = Gates(**{**others, **limits})
    # Gates read the network that they judge under this name; here it may be any.
    judged = {
        name: judge(wanted, {"latency": {**latency, "models": {"int8": model}, "speedup": None}})
        for name, model in latency["models"].items()
    }
    return {
        name: [gate.model_copy(update={"title": TITLES[gate.name]}) for gate in own]
        for name, own in judged.items()
    }


def _refuse_elsewhere(target: Target, paths: dict[str, Path]) -> None:
    """Refuse to pass this machine's times off as another's."""
    others = [path for path in paths.values() if not is_plan(path)]
    if target.is_host or not others:
        return
    raise ConfigError(
        f"{target.label}: ONNX Runtime on this machine says nothing about latency on {target.profile.title}",
        hint="measured there: edgetune bench RUN --on ssh://USER@HOST\n"
        f"estimated: edgetune estimate {others[0]} --profile {target.profile.name}\n"
        "on this machine: leave --profile out",
    )


def _label(path: Path, among: Sequence[Path]) -> str:
    """The shortest name that tells a model from the others."""
    same = [other for other in among if other.name == path.name]
    return path.name if len(same) == 1 else str(path)


def _file(path: Path) -> Path:
    if path.is_dir():
        return Artifact.load(path, "onnx", "qdq").file("model.onnx")
    if not path.is_file():
        raise ConfigError(
            f"{path}: no such file or folder",
            hint="name an onnx or int8 folder, an .onnx file, or an engine (.plan, .engine)",
        )
    return path
