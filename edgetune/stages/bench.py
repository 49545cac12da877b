"""Times networks against each other on this machine, and takes the peak memory of each.

It knows the protocol only as a function, and nothing of accuracy or gates. It may import artifact, recipe,
engines and latency.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import psutil

from edgetune.artifact import Artifact, write_atomic
from edgetune.engines.onnxruntime import Session, random_feed
from edgetune.errors import ConfigError, nearest
from edgetune.latency.memory import peak_memory_bytes
from edgetune.latency.protocol import PRESETS, ModelLatency, Ratio, measure
from edgetune.progress import Progress
from edgetune.recipe import BenchSection

BUSY_CORES = 0.2


class BenchedModel(ModelLatency):
    """Latency of a model.

    `peak_memory_mb`: the peak of a process that runs nothing else, in units of 1e6 bytes; not known on a GPU,
    whose memory it would leave out. `operators`: how many each provider took; empty on the CPU.
    """

    peak_memory_mb: float | None
    operators: dict[str, int]


class Latency(TypedDict):
    """What is reported. `others_cores`: processor time that other processes took meanwhile, in cores."""

    engine: str
    provider: str
    threads: int
    batch: int
    preset: str
    rounds: int
    models: dict[str, BenchedModel]
    speedup: Ratio | None
    others_cores: float
    trusted: bool
    why: str


def bench(
    models: dict[str, Artifact],
    settings: BenchSection,
    threads: int,
    *,
    into: Path,
    progress: Progress | None = None,
) -> Artifact:
    """Time artifacts against each other and write `measures.json` with `latency`.

    Args:
        models: by role; the first is what the last is compared with, so `{"fp32": ..., "int8": ...}`.
        settings: which preset.
        threads: 0: as many as the engine chooses.
        into: where the measures go.
        progress: one step per round.

    Raises:
        ArtifactError: a file cannot be loaded.
        ConfigError: an input has no fixed size.
    """
    into.mkdir(parents=True, exist_ok=True)
    paths = {name: artifact.file("model.onnx") for name, artifact in models.items()}
    found = bench_models(paths, settings.preset, threads, progress=progress)
    write_atomic(into / "measures.json", json.dumps({"latency": found}, indent=1) + "\n")
    last = list(models.values())[-1]
    return Artifact(
        kind="measures",
        classes=last.classes,
        parents={name: artifact.digest for name, artifact in models.items()},
        details={"preset": settings.preset, "trusted": found["trusted"]},
    ).write(into)


def bench_models(
    models: dict[str, Path],
    preset: str = "quick",
    threads: int = 0,
    provider: str = "cpu",
    *,
    progress: Progress | None = None,
) -> Latency:
    """Time ONNX files against each other. On a GPU, copies to it and back are timed as well.

    Args:
        models: by name; with two or more, `speedup` is the first one's median over the last one's.
        preset: a key of `PRESETS`.
        threads: 0: as many as the engine chooses.
        provider: a key of `engines.onnxruntime.PROVIDERS`.
        progress: one step per round.

    Raises:
        ArtifactError: a file cannot be loaded.
        ConfigError: no model, an unknown preset or provider, or an input without a fixed size.
        MissingTool: the provider is not here.
        StageError: ONNX Runtime left a network to another provider.
    """
    if not models:
        raise ConfigError("no model to time", hint="name at least one ONNX file")
    if preset not in PRESETS:
        raise ConfigError(f"unknown bench preset {preset!r}", hint=nearest(preset, PRESETS))
    sessions = {name: Session(path, threads, provider=provider) for name, path in models.items()}
    batches = {_batch(models[name], session) for name, session in sessions.items()}
    if len(batches) > 1:
        raise ConfigError(f"batch sizes differ: {', '.join(map(str, sorted(batches)))}")
    queries = {name: partial(session.run_once, random_feed(session)) for name, session in sessions.items()}
    load = _Load()
    measured = measure(queries, PRESETS[preset], progress=progress)
    others = load.others_cores()
    why = measured["why"]
    if why and others >= BUSY_CORES:
        why += f"; other processes kept {others:.1f} cores busy meanwhile"
    first = next(iter(sessions.values()))
    used, engine = first.threads, first.engine
    placed = {name: session.placed for name, session in sessions.items()}
    del sessions, queries, first
    return {
        "engine": engine,
        "provider": provider,
        "threads": used,
        "batch": batches.pop(),
        "preset": preset,
        "rounds": measured["rounds"],
        "models": {
            name: {
                **figures,
                "peak_memory_mb": _peak_mb(models[name], used) if provider == "cpu" else None,
                "operators": placed[name],
            }
            for name, figures in measured["models"].items()
        },
        "speedup": measured["speedup"],
        "others_cores": others,
        "trusted": measured["trusted"],
        "why": why,
    }


def _peak_mb(model: Path, threads: int) -> float | None:
    peak = peak_memory_bytes(model, threads)
    return None if peak is None else round(peak / 1e6, 1)


def _batch(path: Path, session: Session) -> int:
    """Return the batch size, 1 where it is free; every other dimension must be fixed."""
    for spec in session.inputs:
        free = [size for size in spec.shape[1:] if not isinstance(size, int)]
        if free:
            raise ConfigError(
                f"{path}: input {spec.name!r} has free dimensions: {', '.join(map(str, free))}",
                hint="export it with a fixed input size",
            )
    shape = session.inputs[0].shape if session.inputs else ()
    return shape[0] if shape and isinstance(shape[0], int) else 1


class _Load:
    """Processor time that other processes take between its making and the question."""

    def __init__(self) -> None:
        self._begun = self._now()

    def others_cores(self) -> float:
        busy, own, wall = (now - then for now, then in zip(self._now(), self._begun, strict=True))
        return round(max(0.0, busy - own) / max(wall, 1e-9), 2)

    @staticmethod
    def _now() -> tuple[float, float, float]:
        times: Any = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        process = psutil.Process().cpu_times()
        wall = sum(times) / (psutil.cpu_count() or 1)
        return sum(times) - idle, process.user + process.system, wall
