"""From samples to what networks take, of images and texts alike: the one place that asks which of them it is.

What is read are frames `[N, ...]`: pixels as they are (uint8 `[N, C, H, W]`), or tokens (int64 `[N, 2, L]`: numbers
and mask). torch takes one array of each kind, an ONNX file one for each of its inputs. It knows no network. It
may import errors, artifact, progress and this package.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgetune.artifact import How, TensorSpec, Tokens
from edgetune.data.folders import Sample
from edgetune.data.images import as_input, normalise, pixels
from edgetune.data.tokens import IDS, MASK, bucket, filled, read_tokens
from edgetune.errors import ArtifactError
from edgetune.progress import Progress, Silent

Frames = NDArray[Any]
# What one run of a file takes: an array, or one for each input.
Given = NDArray[Any] | Mapping[str, NDArray[Any]]
# Inputs of networks that read texts, as transformers names them.
NAMES = {"input_ids": IDS, "attention_mask": MASK}


def frames(
    root: Path, samples: Sequence[Sample], how: How, batch: int, progress: Progress | None = None
) -> Iterator[Frames]:
    """Yield frames in the samples' order; `progress` counts them, whoever calls begins and ends it.

    The last batch may be smaller; so is one of texts behind which another length begins (see `arranged`).

    Raises:
        ConfigError: a sample that was readable no longer is.
    """
    if not isinstance(how, Tokens):
        yield from pixels(root, samples, how, batch, progress)
        return
    shown = progress or Silent()
    found = read_tokens(root, samples, how).ids
    for length, same in groupby(found, key=lambda ids: bucket(len(ids), how)):
        own = list(same)
        for start in range(0, len(own), batch):
            part = own[start : start + batch]
            yield filled(part, how.pad, length)
            shown.advance(len(part))


def arranged(root: Path, samples: Sequence[Sample], how: How) -> tuple[Sample, ...]:
    """Return samples of equal length next to each other, where there are several lengths."""
    if not isinstance(how, Tokens) or len(how.lengths) == 1:
        return tuple(samples)
    found = read_tokens(root, samples, how).ids
    order = sorted(range(len(samples)), key=lambda index: bucket(len(found[index]), how))
    return tuple(samples[index] for index in order)


class Bucket(NamedTuple):
    """Samples of one length.

    Attributes:
        length: 0: of images, which have none.
        samples: that have it by themselves; where none has, others that are filled up to it or cut.
        own: whether they have it by themselves.
    """

    length: int
    samples: tuple[Sample, ...]
    own: bool


def buckets(root: Path, samples: Sequence[Sample], how: How, lent: int) -> list[Bucket]:
    """Return samples by length, growing; a length that none has gets the first `lent` of the others."""
    if not isinstance(how, Tokens):
        return [Bucket(0, tuple(samples), own=True)]
    found = [bucket(len(ids), how) for ids in read_tokens(root, samples, how).ids]
    made = []
    for length in how.lengths:
        same = tuple(one for one, own in zip(samples, found, strict=True) if own == length)
        made.append(Bucket(length, same or tuple(samples[:lent]), own=bool(same)))
    return made


def at(how: How, length: int) -> How:
    """Return how inputs are made where all are to have one length; 0: as they are."""
    return how.model_copy(update={"length": length, "lengths": (length,)}) if length else how


def batches(
    root: Path, samples: Sequence[Sample], how: How, batch: int, progress: Progress | None = None
) -> Iterator[NDArray[Any]]:
    """Yield what a torch network takes, in the samples' order; otherwise as `frames`."""
    for part in frames(root, samples, how, batch, progress):
        yield for_torch(part, how)


def for_torch(given: Frames, how: How) -> NDArray[Any]:
    """Return what a torch network takes of frames."""
    return given if isinstance(how, Tokens) else normalise(given, how)


def for_file(given: Frames, how: How, takes: Sequence[TensorSpec]) -> Given:
    """Return what an ONNX file takes of frames.

    Raises:
        ArtifactError: of texts, an input that is neither their tokens nor their mask.
    """
    if not isinstance(how, Tokens):
        return as_input(given, how, takes[0])
    unknown = [spec.name for spec in takes if spec.name not in NAMES]
    if unknown:
        raise ArtifactError(
            f"input {unknown[0]!r} is none of {', '.join(NAMES)}", hint="export the network again"
        )
    return {spec.name: given[:, NAMES[spec.name]].astype(spec.dtype) for spec in takes}


def example(how: How, batch: int, seed: int = 0, length: int = 0) -> NDArray[Any]:
    """Return random inputs as a torch network takes them.

    Args:
        how: how inputs are made.
        batch: how many.
        seed: decides the numbers.
        length: of texts; 0: the longest.
    """
    noise = np.random.default_rng(seed)
    if not isinstance(how, Tokens):
        return noise.random((batch, how.channels, how.size_px, how.size_px), dtype=np.float32)
    made = np.ones((batch, 2, length or how.length), np.int64)
    # Numbers that every vocabulary has. None of them fills: that would be another text.
    made[:, IDS] = noise.choice([number for number in range(4) if number != how.pad], made[:, IDS].shape)
    return made
