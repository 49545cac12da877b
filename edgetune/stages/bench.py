"""Times networks against each other on this machine: ONNX files, and engines where TensorRT is.

As a program waits for them, and where that differs the computation alone; with images also end to end, from the
file to the answer. Takes the peak memory of each, and on request the time of every layer. It knows the protocol
only as a function, and nothing of accuracy or gates. It may import errors, artifact, recipe, data, engines and
latency.
"""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from edgetune.artifact import ARTIFACT_FILE, Artifact, TensorSpec, write_atomic
from edgetune.data.images import as_input, load
from edgetune.data.preprocess import Given, image_input, preprocess_as
from edgetune.data.unlabelled import gather
from edgetune.engines.feeds import Shape, closed_shapes, random_feed
from edgetune.engines.onnxruntime import Session
from edgetune.engines.plans import Plans, is_plan
from edgetune.errors import ArtifactError, ConfigError, nearest
from edgetune.latency.layers import Layers, with_roof
from edgetune.latency.load import Load
from edgetune.latency.memory import peak_memory_bytes
from edgetune.latency.protocol import PRESETS, Offline, Preset, Taken, offline, take, unsettled
from edgetune.latency.ranking import Ranking, rank
from edgetune.latency.summary import Measurement, ModelLatency, Ratio, cleaned_of, summarise
from edgetune.progress import Progress, Silent
from edgetune.recipe import BenchSection

RANDOM = "seeded random, of the declared shapes and types"
# More images than this are not decoded again and again; their pixels would be in the system's cache anyway.
IMAGES = 64
Rows = Mapping[str, Sequence[NDArray[np.float64]]]


class BenchedModel(ModelLatency):
    """Latency of a model.

    `peak_memory_mb`: the peak of a process that runs nothing else, in units of 1e6 bytes; not known on a GPU,
    whose memory it would leave out. `operators`: how many each provider took; empty on the CPU. `inputs`: their
    shapes by name.
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


@dataclass(frozen=True)
class Asked:
    """What else than the preset decides how networks are timed.

    Attributes:
        batch: size of a first dimension that is open; 0: 1.
        shapes: by input, where dimensions are open.
        data: a folder of images that go in; None: random values.
        preprocess: how they become inputs; None: as the artifact says.
        layers: whether to time every layer, too.
        roof: peaks of the machine by its profile; None: measured.
    """

    batch: int = 0
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    data: Path | None = None
    preprocess: Given | None = None
    layers: bool = False


class _Subject(NamedTuple):
    """A network that is ready to be timed; `alone` and `whole` where they can be."""

    query: Callable[[], object]
    alone: Callable[[], object] | None
    whole: Callable[[], object] | None
    batch: int
    engine: str
    shapes: dict[str, Shape]
    operators: dict[str, int]
    feed: dict[str, NDArray[Any]]


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
        subjects, used = _subjects(models, loaded, threads, provider, asked, shown)
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
    del subjects
    on_host = {name for name in models if name not in plans and provider == "cpu"}
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
                "peak_memory_mb": _peak_mb(models[name], used, facts[name][0]) if name in on_host else None,
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
        "layers": _layers({name: (models[name], facts[name][2]) for name in on_host}, used)
        if asked.layers
        else {},
        "others_cores": loaded_by.others_cores,
        "load_average": loaded_by.load_average,
        "notes": [*(loaded.notes if loaded else []), *filter(None, [loaded_by.note]), *_notes(chosen, batch)],
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
    subjects: Mapping[str, _Subject], kind: str, preset: Preset, progress: Progress
) -> Measurement | None:
    """Time something else of the same networks, where all of them can."""
    queries = {name: getattr(one, kind) for name, one in subjects.items()}
    if None in queries.values():
        return None
    taken = take(queries, preset, progress=progress)
    return summarise(taken.rounds, taken.warmup, 0, unsettled(taken))


def _subjects(
    models: Mapping[str, Path],
    plans: Plans | None,
    threads: int,
    provider: str,
    asked: Asked,
    progress: Progress,
) -> tuple[dict[str, _Subject], int]:
    """Load everything; return also how many threads work."""
    files: list[Path] = []
    if asked.data is not None:
        found = gather(asked.data, progress)
        files = [found.root / one.path for split in found.splits.values() for one in split][:IMAGES]
    subjects: dict[str, _Subject] = {}
    used = threads
    for name, path in models.items():
        if plans is not None and name in plans.engines:
            subjects[name] = _engine(plans, name, path, asked, files)
        else:
            _refuse_empty(path)
            session = Session(path, threads, provider=provider)
            used = session.threads
            subjects[name] = _network(session, path, provider, asked, files)
    return subjects, used


def _network(session: Session, path: Path, provider: str, asked: Asked, files: list[Path]) -> _Subject:
    if files:
        make = _decoder(path, session.inputs, asked, files)
        feed = make()
    else:
        feed = random_feed(
            session.inputs, shapes=closed_shapes(session.inputs, str(path), asked.batch, asked.shapes)
        )
    return _Subject(
        partial(session.run_once, feed),
        session.alone(feed) if provider != "cpu" else None,
        (lambda: session.run_once(make())) if files else None,
        _batch(feed),
        session.engine,
        {key: tuple(value.shape) for key, value in feed.items()},
        session.placed,
        feed,
    )


def _engine(plans: Plans, name: str, path: Path, asked: Asked, files: list[Path]) -> _Subject:
    engine = plans.engines[name]
    takes = [TensorSpec(name=one.name, dtype=one.dtype, shape=one.shape) for one in engine.inputs]
    if files:
        make = _decoder(path, takes, asked, files)
        feed = make()
    else:
        feed = random_feed(takes, shapes=closed_shapes(takes, str(path), asked.batch, asked.shapes))

    def run(given: Mapping[str, NDArray[Any]]) -> None:
        engine.run({key: value.tobytes() for key, value in given.items()})

    run(feed)
    return _Subject(
        plans.query(name, copies=True),
        plans.query(name, copies=False),
        (lambda: run(make())) if files else None,
        _batch(feed),
        plans.engine,
        {key: tuple(value.shape) for key, value in feed.items()},
        {},
        feed,
    )


def _batch(feed: Mapping[str, NDArray[Any]]) -> int:
    first = next(iter(feed.values()), None)
    return int(first.shape[0]) if first is not None and first.ndim else 1


def _decoder(
    path: Path, inputs: Sequence[TensorSpec], asked: Asked, files: list[Path]
) -> Callable[[], dict[str, NDArray[Any]]]:
    """Return a function that makes the next input of image files, decoding and all."""
    beside = (path.parent / ARTIFACT_FILE).is_file() and asked.preprocess is None
    origin = Artifact.load(path.parent) if beside else None
    own = origin.preprocess if origin and path.name in origin.files else None
    try:
        preprocess = preprocess_as(own or asked.preprocess, image_input(inputs, known=own is not None))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", hint=error.hint) from error
    spec = inputs[0]
    fixed = spec.shape[0]
    batch = fixed if isinstance(fixed, int) else asked.batch or 1
    if asked.batch and batch != asked.batch:
        raise ConfigError(f"{path}: its batch size is fixed to {batch}, not {asked.batch}")
    endless = itertools.cycle(files)

    def make() -> dict[str, NDArray[Any]]:
        pixels = np.stack([load(next(endless), preprocess) for _ in range(batch)])
        return {spec.name: as_input(pixels, preprocess, spec)}

    return make


def _by_trtexec(plans: Plans, models: Mapping[str, Path], preset: str, asked: Asked) -> Latency:
    """Time engines by `trtexec`, which times by itself."""
    others = [str(path) for path in models.values() if not is_plan(path)]
    if others:
        raise ConfigError(
            f"{others[0]}: an ONNX file beside an engine, and here engines are timed by trtexec alone",
            hint="name engines only, or install TensorRT's Python bindings",
        )
    if asked.data or asked.batch or asked.shapes or asked.layers:
        raise ConfigError(
            "trtexec times engines as they are, on values of its own",
            hint="leave --data, --batch, --shape and --layers out, or install TensorRT's Python bindings",
        )
    chosen = PRESETS[preset]
    arguments = chosen.seconds, chosen.queries, max(chosen.warmup_least, chosen.warmup_seconds / 2)
    warm = dict.fromkeys(models, 0)
    rows: Rows = plans.rounds(*arguments, copies=True)
    measured = summarise(rows, warm)
    compute = summarise(plans.rounds(*arguments, copies=False), warm)
    cleaned = cleaned_of(rows)
    return {
        "engine": plans.engine, "provider": "tensorrt", "threads": 1, "batch": 0, "preset": preset,
        "rounds": measured["rounds"], "inputs": "trtexec's own random values",
        "models": {
            name: {**figures, "peak_memory_mb": None, "operators": {}, "inputs": {}}
            for name, figures in measured["models"].items()
        },
        "speedup": measured["speedup"], "ranking": rank(cleaned.samples, trusted=not cleaned.doubts),
        "compute": compute, "end_to_end": None, "offline": None, "layers": {}, "others_cores": 0.0,
        "load_average": None, "notes": plans.notes, "trusted": measured["trusted"], "why": measured["why"],
    }  # fmt: skip


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


def _refuse_empty(path: Path) -> None:
    """Refuse a network without nodes: whatever time that takes is not a network's."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        nodes = len(onnx.load(str(path), load_external_data=False).graph.node)
    except (DecodeError, OSError):
        return  # ONNX Runtime says what is wrong with it
    if not nodes:
        raise ArtifactError(
            f"{path}: a network of no nodes: there is nothing to time",
            hint="export it again; its graph is empty",
        )
