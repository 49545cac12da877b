"""Times networks against each other on this machine: ONNX files, and engines where TensorRT is.

As a program waits for them, and where that differs the computation alone; with images also end to end, from the
file to the answer. Takes the peak memory of each, and on request the time of every layer. It knows the protocol
only as a function, and nothing of accuracy or gates. It may import errors, artifact, recipe, device.results, data,
engines, latency and estimates.network.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from edgetune.artifact import Artifact, sha256_of, write_atomic
from edgetune.device.results import Layers as EngineLayers
from edgetune.device.results import LayerTime
from edgetune.engines.feeds import Shape
from edgetune.engines.plans import Plans, is_plan
from edgetune.errors import ConfigError, EdgetuneError, nearest
from edgetune.estimates.network import node_operations
from edgetune.latency.device_layers import device_layers
from edgetune.latency.layers import Layers, with_roof
from edgetune.latency.load import Load
from edgetune.latency.memory import peak_memory_bytes
from edgetune.latency.protocol import PRESETS, Offline, Preset, Taken, offline, take, unsettled
from edgetune.latency.ranking import Ranking, rank
from edgetune.latency.subjects import Asked, Subject, subjects_of, text_shapes
from edgetune.latency.summary import Measurement, ModelLatency, Ratio, cleaned_of, summarise
from edgetune.progress import Progress, Silent
from edgetune.recipe import BenchSection

RANDOM = "seeded random, of the declared shapes and types"
Rows = Mapping[str, Sequence[NDArray[np.float64]]]


class BenchedModel(ModelLatency):
    """Latency of a model.

    `peak_memory_mb`: the peak of a process that runs nothing else, in units of 1e6 bytes; of an engine its plan and
    what it asks for beside; not known of ONNX Runtime on a GPU, whose memory it would leave out. `operators`: how many
    each provider took; empty on the CPU. `inputs`: their shapes by name.
    """

    peak_memory_mb: float | None
    operators: dict[str, int]
    inputs: dict[str, list[int]]


class Latency(TypedDict):
    """What is reported.

    Attributes:
        inputs: what went in.
        ranking: who is faster, None for one model.
        compute: the computation alone; None where nothing is copied, so that it would be the same.
        end_to_end: from the image file to the answer; None without images.
        offline: MLPerf's Offline scenario by model; None unless the preset asks for it.
        layers: by model; empty unless asked for.
        others_cores: processor time that other processes took meanwhile, in cores.
        load_average: of the minute before; None where the system does not count.
        notes: what else to know.
    """

    engine: str
    provider: str
    threads: int
    batch: int
    preset: str
    rounds: int
    inputs: str
    models: dict[str, BenchedModel]
    speedup: Ratio | None
    ranking: Ranking | None
    compute: Measurement | None
    end_to_end: Measurement | None
    offline: dict[str, Offline] | None
    layers: dict[str, Layers]
    others_cores: float
    load_average: float | None
    notes: list[str]
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
    last = list(models.values())[-1]
    shapes = text_shapes(last) or [{}]
    each = [
        bench_models(paths, settings.preset, threads, asked=Asked(shapes=one), progress=progress)
        for one in shapes
    ]
    found: dict[str, Any] = dict(each[-1])
    if len(each) > 1:
        # The longest texts are what the gates are judged by.
        found["lengths"] = [
            {"length": next(iter(shape.values()))[1], "speedup": one["speedup"], "trusted": one["trusted"],
             "p50_ms": {name: model["p50_ms"] for name, model in one["models"].items()}}
            for shape, one in zip(shapes, each, strict=True)
        ]  # fmt: skip
    write_atomic(into / "measures.json", json.dumps({"latency": found}, indent=1) + "\n")
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
    asked: Asked | None = None,
    progress: Progress | None = None,
) -> Latency:
    """Time ONNX files and engines against each other. On a GPU, copies to it and back are timed as well.

    Args:
        models: by name; with two or more, `speedup` is how many times faster the last one is than the first.
        preset: a key of `PRESETS`.
        threads: 0: as many as the engine chooses.
        provider: a key of `engines.onnxruntime.PROVIDERS`.
        asked: what goes in, and what else is measured.
        progress: one step per round.

    Raises:
        ArtifactError: a file cannot be loaded, has no nodes, or was built for another device.
        ConfigError: no model, an unknown preset or provider, an input whose size is open, or images that do not fit.
        MissingTool: the provider, or TensorRT for an engine, is not here.
        StageError: ONNX Runtime left a network to another provider, or the clock measures nothing.
    """
    if not models:
        raise ConfigError("no model to time", hint="name at least one ONNX file")
    if preset not in PRESETS:
        raise ConfigError(f"unknown bench preset {preset!r}", hint=nearest(preset, PRESETS))
    asked, shown, chosen = asked or Asked(), progress or Silent(), PRESETS[preset]
    plans = {name: path for name, path in models.items() if is_plan(path)}
    with ExitStack() as stack:
        loaded = Plans(plans, stack) if plans else None
        if loaded is not None and not loaded.engines:
            return _by_trtexec(loaded, models, preset, asked)
        subjects, used = subjects_of(models, loaded, threads, provider, asked, shown)
        batches = {subject.batch for subject in subjects.values()}
        if len(batches) > 1:
            raise ConfigError(f"batch sizes differ: {', '.join(map(str, sorted(batches)))}")
        load_ = Load()
        taken = take({name: one.query for name, one in subjects.items()}, chosen, progress=shown)
        waits = provider != "cpu"
        busy = {name: share for name, share in taken.busy.items() if not waits and name not in plans}
        loaded_by = load_.told(used, busy)
        measured = summarise(taken.rounds, taken.warmup, 0, [*unsettled(taken), *loaded_by.doubts])
        also = {kind: _also(subjects, kind, chosen, shown) for kind in ("alone", "whole")}
        batch = batches.pop()
        off = (
            {name: offline(one.query, batch, chosen, progress=shown) for name, one in subjects.items()}
            if chosen.offline_samples
            else None
        )
        engines = list(dict.fromkeys(one.engine for one in subjects.values()))
        facts = {name: (one.shapes, one.operators, one.feed) for name, one in subjects.items()}
        sizes = {name: loaded.memory_mb(name) for name in plans} if loaded else {}
        layers, untimed = _engine_layers(loaded, models, asked) if loaded and asked.layers else ({}, [])
    del subjects
    on_host = [name for name in models if name not in plans and provider == "cpu"]
    return {
        "engine": " and ".join(engines),
        "provider": provider,
        "threads": used,
        "batch": batch,
        "preset": preset,
        "rounds": measured["rounds"],
        "inputs": f"images of {asked.data}" if asked.data else RANDOM,
        "models": {
            name: {
                **figures,
                "peak_memory_mb": _peak_mb(models[name], used, facts[name][0])
                if name in on_host
                else sizes.get(name),
                "operators": facts[name][1],
                "inputs": {key: list(shape) for key, shape in facts[name][0].items()},
            }
            for name, figures in measured["models"].items()
        },
        "speedup": measured["speedup"],
        "ranking": _ranked(taken),
        "compute": also["alone"],
        "end_to_end": also["whole"],
        "offline": off,
        "layers": layers
        | (_layers({name: (models[name], facts[name][2]) for name in on_host}, used) if asked.layers else {}),
        "others_cores": loaded_by.others_cores,
        "load_average": loaded_by.load_average,
        "notes": [
            *(loaded.notes if loaded else []),
            *filter(None, [loaded_by.note]),
            *_notes(chosen, batch),
            *untimed,
            *([f"layers are not timed with --provider {provider}"] if asked.layers and waits else []),
        ],
        "trusted": measured["trusted"],
        "why": measured["why"],
    }


def _notes(preset: Preset, batch: int) -> list[str]:
    if preset.offline_samples and batch != 1:
        return [
            f"MLPerf's SingleStream takes one sample per query, not {batch}: these latencies are of batches"
        ]
    return []


def _ranked(taken: Taken) -> Ranking | None:
    cleaned = cleaned_of(taken.rounds)
    return rank(cleaned.samples, trusted=not cleaned.doubts)


def _also(
    subjects: Mapping[str, Subject], kind: str, preset: Preset, progress: Progress
) -> Measurement | None:
    """Time something else of the same networks, where all of them can."""
    queries = {name: getattr(one, kind) for name, one in subjects.items()}
    if None in queries.values():
        return None
    taken = take(queries, preset, progress=progress)
    return summarise(taken.rounds, taken.warmup, 0, unsettled(taken))


def _by_trtexec(plans: Plans, models: Mapping[str, Path], preset: str, asked: Asked) -> Latency:
    """Time engines by `trtexec`, which times by itself."""
    others = [str(path) for path in models.values() if not is_plan(path)]
    if others:
        raise ConfigError(
            f"{others[0]}: an ONNX file beside an engine, and here engines are timed by trtexec alone",
            hint="name engines only, or install TensorRT's Python bindings",
        )
    if asked.data or asked.batch or asked.shapes:
        raise ConfigError(
            "trtexec times engines as they are, on values of its own",
            hint="leave --data, --batch and --shape out, or install TensorRT's Python bindings",
        )
    chosen = PRESETS[preset]
    arguments = chosen.seconds, chosen.queries, max(chosen.warmup_least, chosen.warmup_seconds / 2)
    warm = dict.fromkeys(models, 0)
    rows: Rows = plans.rounds(*arguments, copies=True)
    measured = summarise(rows, warm)
    compute = summarise(plans.rounds(*arguments, copies=False), warm)
    cleaned = cleaned_of(rows)
    layers, untimed = _engine_layers(plans, models, asked) if asked.layers else ({}, [])
    no_offline = ["MLPerf's Offline scenario is not run by trtexec"] if chosen.offline_samples else []
    return {
        "engine": plans.engine, "provider": "tensorrt", "threads": 1, "batch": 0, "preset": preset,
        "rounds": measured["rounds"], "inputs": "trtexec's own random values",
        "models": {
            name: {**figures, "peak_memory_mb": None, "operators": {}, "inputs": {}}
            for name, figures in measured["models"].items()
        },
        "speedup": measured["speedup"], "ranking": rank(cleaned.samples, trusted=not cleaned.doubts),
        "compute": compute, "end_to_end": None, "offline": None, "layers": layers, "others_cores": 0.0,
        "load_average": None, "notes": [*plans.notes, *no_offline, *untimed],
        "trusted": measured["trusted"], "why": measured["why"],
    }  # fmt: skip


def _engine_layers(
    plans: Plans, models: Mapping[str, Path], asked: Asked
) -> tuple[dict[str, Layers], list[str]]:
    """Time every layer of engines; return them, and what of them is not known."""
    networks = {sha256_of(path): path for path in models.values() if not is_plan(path)}
    found, notes = dict[str, Layers](), list[str]()
    for name, facts in plans.facts.items():
        try:
            told, times = plans.layers(name)
        except EdgetuneError as error:
            notes.append(f"{name}: its layers were not timed: {error.message}")
            continue
        network = networks.get(str(facts.get("onnx_sha256")))
        made = device_layers(
            EngineLayers.model_validate(told), [LayerTime.model_validate(one) for one in times],
            node_operations(network) if network else {}, asked.profile, f"{plans.engine}, in a run of its own",
        )  # fmt: skip
        found |= {name: made} if made else {}
        if network is None:
            way = "; name the ONNX file that it was built from beside it" if plans.engines else ""
            notes.append(f"{name}: the operations of its layers are not known{way}")
    return found, notes


def _layers(models: Mapping[str, tuple[Path, dict[str, NDArray[Any]]]], threads: int) -> dict[str, Layers]:
    """Time every layer on the CPU, in sessions of their own."""
    from edgetune.engines.profiling import nodes, roof

    if not models:
        return {}
    peaks = roof(threads)
    return {
        name: with_roof(nodes(path, feed, threads), peaks, "ONNX Runtime's profiler, in a run of its own")
        for name, (path, feed) in models.items()
    }


def _peak_mb(model: Path, threads: int, shapes: Mapping[str, Shape]) -> float | None:
    peak = peak_memory_bytes(model, threads, shapes)
    return None if peak is None else round(peak / 1e6, 1)
