"""What a network is quantized with: inputs that calibrate, and others on which the result is judged.

From a folder of images, or arrays as they are. It knows no network. It may import errors, artifact, progress,
recipe and this package.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetune.artifact import How, TensorSpec
from edgetune.data.calibration import choose_samples, load_manifest, load_preset
from edgetune.data.folders import Dataset, Sample
from edgetune.data.reader import arranged, for_file, frames
from edgetune.data.unlabelled import held_out
from edgetune.errors import ConfigError
from edgetune.progress import Progress
from edgetune.recipe import QuantizeSection

# Only decoding works on a whole batch; the network sees as many inputs at once as its batch dimension says.
BATCH = 8
COMPARED = 256

# One run's inputs: `[N, ...]`, or an array for each input by its name.
Batch = NDArray[Any] | Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Inputs:
    """Inputs to go through as often as needed; each time a bar shows how far it is."""

    make: Callable[[], Iterable[Batch]]
    total: int
    what: str
    progress: Progress

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches, from the first one on."""
        self.progress.begin(self.what, self.total)
        for batch in self.make():
            yield batch
            self.progress.advance(_length(batch))
        self.progress.end()


@dataclass(frozen=True)
class Material:
    """What a network is quantized with.

    Attributes:
        calibration: inputs that decide.
        judges: inputs on which INT8 is compared with FP32.
        judged_on: `held-out`, or `calibration` where there are no others.
        details: which they are.
        samples: the images that calibrate, for `save_manifest`; none where inputs were given as arrays.
    """

    calibration: Inputs
    judges: Inputs
    judged_on: str
    details: dict[str, Any]
    samples: tuple[Sample, ...] = ()


def from_samples(
    data: Dataset,
    settings: QuantizeSection,
    manifest: Path | None,
    preprocess: How,
    takes: Sequence[TensorSpec],
    progress: Progress,
) -> Material:
    """Choose images or texts to calibrate with, and others to judge with.

    Args:
        data: calibration images come from its training split.
        settings: how many and which.
        manifest: a pinned calibration set; takes the place of the choice.
        preprocess: how a sample becomes an input.
        takes: the inputs: which type, and of images where in the shape the channels are.
        progress: counts images.

    Raises:
        ConfigError: an unknown preset, or an image that was readable no longer is.
        ArtifactError: the manifest's images are not there.
    """
    preset = load_preset(settings.preset)
    choose = settings.choose or preset.choose
    samples = (
        load_manifest(manifest, data)
        if manifest
        else choose_samples(data, settings.images or preset.images, choose, settings.seed)
    )
    judges = held_out(data, samples, COMPARED, settings.seed)
    if not judges:
        progress.line(
            f"warning: all {len(samples)} {data.noun}s calibrate, so INT8 is compared with FP32 on the very same"
        )

    def inputs(part: Sequence[Sample], what: str) -> Inputs:
        ordered = arranged(data.root, part, preprocess)

        def make() -> Iterator[Batch]:
            for batch in frames(data.root, ordered, preprocess, BATCH):
                yield for_file(batch, preprocess, takes)

        return Inputs(make, len(part), what, progress)

    seen = {name: sum(s.label == label for s in samples) for label, name in enumerate(data.classes)}
    return Material(
        inputs(samples, "calibrate"),
        inputs(judges or samples, "compare"),
        "held-out" if judges else "calibration",
        {"choose": "pinned" if manifest else choose, "calibration_classes": seen},
        samples,
    )


def from_arrays(data: Sequence[Batch], compare_on: Sequence[Batch] | None, progress: Progress) -> Material:
    """Take inputs as they are given.

    Args:
        data: batches that calibrate.
        compare_on: batches that judge; none: the same.
        progress: counts inputs.

    Raises:
        ConfigError: nothing in it, or something that cannot be gone through twice.
    """
    given = [part for part in (data, compare_on) if part is not None]
    if any(isinstance(part, Iterator | np.ndarray) or not len(part) for part in given):
        raise ConfigError(
            "calibration inputs: a list of batches is needed, with at least one in it",
            hint="each an array [N, ...], or for several inputs a dict with an array for each name",
        )
    judges = data if compare_on is None else compare_on
    return Material(
        Inputs(lambda: data, sum(map(_length, data)), "calibrate", progress),
        Inputs(lambda: judges, sum(map(_length, judges)), "compare", progress),
        "calibration" if compare_on is None else "held-out",
        {"choose": "given", "calibration_sha256": _digest(data)},
    )


def _length(batch: Batch) -> int:
    return len(batch) if isinstance(batch, np.ndarray) else len(next(iter(batch.values()), ()))


def _digest(data: Sequence[Batch]) -> str:
    found = hashlib.sha256()
    for batch in data:
        named = {"": batch} if isinstance(batch, np.ndarray) else dict(sorted(batch.items()))
        for name, values in named.items():
            found.update(f"{name} {values.dtype} {values.shape}".encode())
            found.update(np.ascontiguousarray(values).data)
    return found.hexdigest()
