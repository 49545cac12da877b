"""Which images INT8 is calibrated with: presets, a stable choice, and a manifest that pins it.

Only the training split is chosen from. It knows no network. It may import errors, artifact, recipe, yaml and
this package.
"""

import json
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, ValidationError

from edgetune.artifact import sha256_of, write_atomic
from edgetune.data.cut import order
from edgetune.data.decode import decode
from edgetune.data.folders import Dataset, Sample, unchanged
from edgetune.data.texts import text_of
from edgetune.errors import ArtifactError, ConfigError, nearest
from edgetune.machine import cores
from edgetune.recipe import Choose, Method, Ranges, Section
from edgetune.yaml import load_yaml, validate

# So many images are looked at to choose diverse ones, evenly of all classes; others follow them.
LOOKED_AT = 2000
THUMBNAIL_PX = 8
# As many numbers as a thumbnail has.
PAIRS = 3 * THUMBNAIL_PX**2


class Preset(Section):
    """How a calibration set is chosen and what is made of it; one file of calibration/.

    Attributes:
        images: how many are looked at.
        choose: a key of `CHOICES`.
        ranges: how an activation's range is found.
        method: which corrections follow.
    """

    schema_version: Literal[1]
    name: str
    about: str
    images: Annotated[int, Field(ge=1)]
    choose: Choose
    ranges: Ranges
    method: Method


class PinnedSample(Section):
    """One image of a pinned calibration set."""

    path: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(Section):
    """A pinned calibration set, as calibration/README.md describes it."""

    schema_version: Literal[1]
    classes: tuple[str, ...]
    samples: Annotated[tuple[PinnedSample, ...], Field(min_length=1)]


def folder() -> Path:
    """Return where the presets lie: inside an installed package, beside it in a checkout."""
    inside = Path(__file__).parents[1] / "calibration"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "calibration"


def presets() -> list[str]:
    """Return the names of the shipped presets."""
    return sorted(path.stem for path in folder().glob("*.yaml"))


def load_preset(name: str) -> Preset:
    """Read a preset by its name.

    Raises:
        ConfigError: unknown name, with the nearest ones.
    """
    if name not in presets():
        raise ConfigError(f"quantize.preset: unknown preset {name!r}", hint=nearest(name, presets()))
    return validate(Preset, load_yaml(folder() / f"{name}.yaml", what="preset"))


def choose_samples(dataset: Dataset, images: int, choose: str, seed: int) -> tuple[Sample, ...]:
    """Choose calibration images from the training split.

    The choice depends on seed and content alone, and takes no content twice. More images than before are the
    same ones and others behind them.

    Args:
        dataset: whose training split is chosen from.
        images: how many; all where there are fewer.
        choose: a key of `CHOICES`.
        seed: decides which.

    Raises:
        ConfigError: an unknown way to choose, or an image cannot be read any more.
    """
    if choose not in CHOICES:
        raise ConfigError(f"quantize.choose: unknown choice {choose!r}", hint=nearest(choose, CHOICES))
    samples = sorted(dataset.splits["train"], key=lambda sample: sample.path, reverse=True)
    distinct = {sample.sha256: sample for sample in samples}.values()
    ordered = sorted(distinct, key=lambda sample: order(sample.sha256, seed))
    return tuple(CHOICES[choose](dataset, ordered, images)[:images])


def _random(dataset: Dataset, samples: list[Sample], images: int) -> list[Sample]:
    del dataset, images
    return samples


def _balanced(dataset: Dataset, samples: list[Sample], images: int) -> list[Sample]:
    """Take one of each class in turn; where there are more classes than images, of any of them."""
    del dataset, images
    taken: dict[int, int] = defaultdict(int)
    turns = []
    for sample in samples:
        turns.append(taken[sample.label])
        taken[sample.label] += 1
    return [samples[index] for index in np.argsort(turns, kind="stable")]


def _diverse(dataset: Dataset, samples: list[Sample], images: int) -> list[Sample]:
    """Take one of each class in turn, every time the image that is least like those taken already.

    Likeness is the distance of thumbnails, of texts that of their pairs of letters, so that it takes no network
    (greedy k-center: T. Gonzalez, Clustering to minimize the maximum intercluster distance, 1985).
    """
    ordered = _balanced(dataset, samples, images)
    looked_at, beyond = ordered[:LOOKED_AT], ordered[LOOKED_AT:]
    root = dataset.root
    if dataset.noun == "text":
        thumbnails = np.stack([_pairs(text_of(root, sample.path, sample.sha256)) for sample in looked_at])
    else:
        with ThreadPoolExecutor(cores()) as pool:
            thumbnails = np.stack(list(pool.map(lambda sample: _thumbnail(root / sample.path), looked_at)))
    labels = np.array([sample.label for sample in looked_at])
    away = np.full(len(looked_at), np.inf)
    left = np.ones(len(looked_at), bool)
    due = left.copy()
    chosen: list[Sample] = []
    while len(chosen) < min(images, len(looked_at)):
        if not due.any():
            due = left.copy()
        index = int(np.argmax(np.where(due, away, -1)))
        chosen.append(looked_at[index])
        left[index] = False
        due &= left & (labels != labels[index])
        away = np.minimum(away, np.square(thumbnails - thumbnails[index]).sum(axis=1))
    return chosen + beyond


def _thumbnail(path: Path) -> NDArray[np.float32]:
    size = (THUMBNAIL_PX, THUMBNAIL_PX)
    small = decode(path, 3, 2 * THUMBNAIL_PX).resize(size, Image.Resampling.BOX)
    return np.asarray(small, np.float32).reshape(-1)


def _pairs(text: str) -> NDArray[np.float32]:
    """Return how often each pair of neighbouring letters stands in a text, as a direction of PAIRS numbers."""
    counts = np.zeros(PAIRS, np.float32)
    for place in range(len(text)):
        counts[zlib.crc32(text[place : place + 2].encode()) % PAIRS] += 1
    made: NDArray[np.float32] = counts / np.linalg.norm(counts)
    return made


CHOICES: dict[str, Callable[[Dataset, list[Sample], int], list[Sample]]] = {
    "balanced": _balanced,
    "diverse": _diverse,
    "random": _random,
}


def save_manifest(samples: Sequence[Sample], dataset: Dataset, path: Path) -> None:
    """Pin a calibration set: path below the root and content hash of each image, in order."""
    content = {
        "schema_version": 1,
        "classes": dataset.classes,
        "samples": [{"path": sample.path, "sha256": sample.sha256} for sample in samples],
    }
    write_atomic(path, json.dumps(content, indent=1) + "\n")


def load_manifest(path: Path, dataset: Dataset) -> tuple[Sample, ...]:
    """Find a pinned calibration set again, by path or, where images have moved, by content.

    Args:
        path: written by `save_manifest`, or by hand.
        dataset: where the images are.

    Raises:
        ArtifactError: not a manifest, or images are missing, changed, or not of the training split.
    """
    try:
        pinned = Manifest.model_validate_json(path.read_bytes(), strict=False)
    except (OSError, ValidationError) as error:
        reason = error.errors()[0] if isinstance(error, ValidationError) else None
        text = f"{'.'.join(map(str, reason['loc'])) or 'not JSON'}: {reason['msg']}" if reason else str(error)
        raise ArtifactError(
            f"{path}: not a calibration manifest: {text}", hint="calibration/README.md shows one"
        ) from None
    train: dict[str, list[Sample]] = defaultdict(list)
    for sample in dataset.splits["train"]:
        train[sample.sha256].append(sample)
    elsewhere = {s.sha256: name for name in ("val", "test") for s in dataset.splits[name]}
    found, faults = [], []
    for entry in pinned.samples:
        candidates = sorted(train[entry.sha256], key=lambda sample: sample.path != entry.path)
        there = next((sample for sample in candidates if unchanged(dataset, sample)), None)
        if there:
            found.append(there)
        elif not candidates and entry.sha256 in elsewhere:
            faults.append(f"{entry.path} (in the {elsewhere[entry.sha256]} split, which decides)")
        else:
            faults.append(f"{entry.path} ({_why_missing(dataset, entry)})")
    if faults:
        raise ArtifactError(
            f"{path}: {len(faults)} of {len(pinned.samples)} calibration {dataset.noun}s are not there as pinned: "
            f"{', '.join(faults)}",
            hint="restore them, or choose anew without quantize.manifest",
        )
    return tuple(found)


def _why_missing(dataset: Dataset, entry: PinnedSample) -> str:
    if ".." in Path(entry.path).parts or Path(entry.path).is_absolute():
        return "leads out of the folder"
    if dataset.noun == "text":
        return "missing, changed, or not of the training split"
    file = dataset.root / entry.path
    if not file.is_file():
        return "missing"
    return "changed" if sha256_of(file) != entry.sha256 else "not readable as an image of the training split"
