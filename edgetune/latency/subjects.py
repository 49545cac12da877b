"""Networks ready to be timed: loaded, fed, with what else of them can be timed.

An ONNX file goes to ONNX Runtime, an engine to TensorRT. It knows nothing of how long anything is timed. It may
import errors, artifact, progress, data and engines.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgetune.artifact import ARTIFACT_FILE, Artifact, TensorSpec, Tokens
from edgetune.data.images import as_input, load
from edgetune.data.preprocess import Given, image_input, preprocess_as
from edgetune.data.unlabelled import gather
from edgetune.engines.feeds import Shape, closed_shapes, random_feed
from edgetune.engines.onnxruntime import Session
from edgetune.engines.plans import Plans
from edgetune.errors import ArtifactError, ConfigError
from edgetune.progress import Progress

# More images than this are not decoded again and again; their pixels would be in the system's cache anyway.
IMAGES = 64


@dataclass(frozen=True)
class Asked:
    """What else than the preset decides how networks are timed.

    Attributes:
        batch: size of a first dimension that is open; 0: 1.
        shapes: by input, where dimensions are open.
        data: a folder of images that go in; None: random values.
        preprocess: how they become inputs; None: as the artifact says.
        layers: whether to time every layer, too.
        profile: of the GPU that runs engines, against whose peaks their layers are held; "": not known.
    """

    batch: int = 0
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    data: Path | None = None
    preprocess: Given | None = None
    layers: bool = False
    profile: str = ""


class Subject(NamedTuple):
    """A network that is ready to be timed; `alone` and `whole` where they can be."""

    query: Callable[[], object]
    alone: Callable[[], object] | None
    whole: Callable[[], object] | None
    batch: int
    engine: str
    shapes: dict[str, Shape]
    operators: dict[str, int]
    feed: dict[str, NDArray[Any]]


def subjects_of(
    models: Mapping[str, Path],
    plans: Plans | None,
    threads: int,
    provider: str,
    asked: Asked,
    progress: Progress,
) -> tuple[dict[str, Subject], int]:
    """Load everything.

    Args:
        models: files by name.
        plans: the engines among them.
        threads: of ONNX Runtime.
        provider: of ONNX Runtime.
        asked: what goes in.
        progress: counts images.

    Returns:
        Every network by name, and how many threads work.

    Raises:
        ArtifactError: a file cannot be loaded, or has no nodes.
        ConfigError: a size is open, or images do not fit.
    """
    files: list[Path] = []
    if asked.data is not None:
        found = gather(asked.data, progress)
        files = [found.root / one.path for split in found.splits.values() for one in split][:IMAGES]
    subjects: dict[str, Subject] = {}
    used = threads
    for name, path in models.items():
        if plans is not None and name in plans.engines:
            subjects[name] = _engine(plans, name, path, asked, files)
        else:
            unstated = _unstated(path)
            session = Session(path, threads, provider=provider)
            used = session.threads
            subjects[name] = _network(session, path, provider, asked, files, unstated)
    return subjects, used


def _network(
    session: Session, path: Path, provider: str, asked: Asked, files: list[Path], unstated: list[str]
) -> Subject:
    # ONNX Runtime says of an input without a shape what it says of a single number.
    for missing in (name for name in unstated if name not in asked.shapes):
        raise ConfigError(
            f"{path}: input {missing!r} has no shape in the file",
            hint=f"say it: --shape {missing}=1x3x224x224",
        )
    takes = [
        spec.model_copy(update={"shape": asked.shapes[spec.name]}) if spec.name in unstated else spec
        for spec in session.inputs
    ]
    if files:
        make = _decoder(path, takes, asked, files)
        feed = make()
    else:
        open_length = any(isinstance(size, str) for spec in takes for size in spec.shape[1:])
        origin = _artifact_of(path) if open_length and not asked.shapes else None
        lengths = text_shapes(origin, asked.batch) if origin else []
        # The longest texts are what a network is judged by.
        shapes = lengths[-1] if lengths else asked.shapes
        feed = random_feed(takes, shapes=closed_shapes(takes, str(path), asked.batch, shapes))
    return Subject(
        partial(session.run_once, feed),
        session.alone(feed) if provider != "cpu" else None,
        (lambda: session.run_once(make())) if files else None,
        _batch(feed),
        session.engine,
        {key: tuple(value.shape) for key, value in feed.items()},
        session.placed,
        feed,
    )


def text_shapes(network: Artifact, batch: int = 0) -> list[dict[str, Shape]]:
    """Return the inputs' shapes at each length of texts, the longest last; none where there is no choice.

    `batch` counts where the network leaves it open.
    """
    how = network.preprocess
    if not isinstance(how, Tokens) or len(how.lengths) == 1:
        return []
    rows = {spec.name: spec.shape[0] for spec in network.inputs}
    return [
        {name: (size if isinstance(size, int) else batch or 1, length) for name, size in rows.items()}
        for length in how.lengths
    ]


def _artifact_of(path: Path) -> Artifact | None:
    """Return the artifact that a file belongs to, if it does."""
    origin = Artifact.load(path.parent) if (path.parent / ARTIFACT_FILE).is_file() else None
    return origin if origin and path.name in origin.files else None


def _engine(plans: Plans, name: str, path: Path, asked: Asked, files: list[Path]) -> Subject:
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
    return Subject(
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
    origin = _artifact_of(path) if asked.preprocess is None else None
    own = origin.of_images() if origin else None
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


def _unstated(path: Path) -> list[str]:
    """Return which inputs have no shape in the file.

    Raises:
        ArtifactError: the network has no nodes: whatever time that takes is not a network's.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except (DecodeError, OSError):
        return []  # ONNX Runtime says what is wrong with it
    if not graph.node:
        raise ArtifactError(
            f"{path}: a network of no nodes: there is nothing to time",
            hint="export it again; its graph is empty",
        )
    constant = {item.name for item in graph.initializer}
    return [
        value.name
        for value in graph.input
        if value.name not in constant and not value.type.tensor_type.HasField("shape")
    ]
