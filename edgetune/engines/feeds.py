"""Inputs for a network of which nothing is known but what it takes: seeded, random, of the declared shapes.

Latency hardly hangs on values, so nothing better is needed to time a network; accuracy is another matter. It may
import errors and artifact.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetune.artifact import TensorSpec
from edgetune.errors import ConfigError

Shape = tuple[int, ...]
EXAMPLE_SIDE, EXAMPLE_LENGTH = 224, 64
NUMBERS = ("float", "int", "uint", "bool")


def random_feed(
    inputs: Sequence[TensorSpec], seed: int = 0, shapes: Mapping[str, Shape] | None = None
) -> dict[str, NDArray[Any]]:
    """Return normally distributed input for every input of a network.

    For uint8, which is what pixels are, all values are equally frequent; other whole numbers are 0 or 1, since they
    may be places in a table of any size, or a mask.

    Args:
        inputs: of the network.
        seed: of the values.
        shapes: by input, where its own has open dimensions; without, these are taken as 1.

    Raises:
        ConfigError: an input takes no numbers.
    """
    noise = np.random.default_rng(seed)
    feed = {}
    for spec in inputs:
        if not spec.dtype.startswith(NUMBERS):
            raise ConfigError(f"input {spec.name!r} takes {spec.dtype}, and only numbers are made up here")
        shape = (shapes or {}).get(spec.name, tuple(d if isinstance(d, int) else 1 for d in spec.shape))
        whole = not spec.dtype.startswith("float")
        made = noise.integers(0, 256 if spec.dtype == "uint8" else 2, shape) if whole else None
        feed[spec.name] = np.asarray(noise.standard_normal(shape) if made is None else made).astype(
            spec.dtype
        )
    return feed


def closed_shapes(
    inputs: Sequence[TensorSpec], name: str, batch: int = 0, given: Mapping[str, Shape] | None = None
) -> dict[str, Shape]:
    """Return a shape without open dimensions for every input of a network.

    Args:
        inputs: of the network.
        name: of the network, for messages.
        batch: size of a first dimension that is open; 0: 1.
        given: shapes by input.

    Raises:
        ConfigError: a dimension stays open, or what is given does not fit.
    """
    known, given = {spec.name: spec for spec in inputs}, given or {}
    for other in sorted(set(given) - set(known)):
        raise ConfigError(f"{name}: has no input {other!r}", hint=f"its inputs: {', '.join(known) or 'none'}")
    hint = " ".join(
        _example(spec) for spec in inputs if any(isinstance(size, str) for size in spec.shape[1:])
    )
    found = {spec.name: _closed(spec, name, batch, given.get(spec.name), hint) for spec in inputs}
    firsts = sorted({shape[0] for shape in found.values() if shape})
    if batch and batch not in firsts:
        raise ConfigError(
            f"{name}: its batch size is fixed: {', '.join(map(str, firsts)) or 'it has none'}, not {batch}",
            hint="export it with that batch, or with an open one: edgetune export --dynamic",
        )
    return found


def _example(spec: TensorSpec) -> str:
    """Return an option that says an input's sizes: a text's of [N, L], else an image's."""
    side = EXAMPLE_LENGTH if len(spec.shape) == 2 else EXAMPLE_SIDE
    first, *rest = (str(size) if isinstance(size, int) else "" for size in spec.shape)
    return f"--shape {spec.name}={'x'.join([first or '1', *(size or str(side) for size in rest)])}"


def _closed(spec: TensorSpec, name: str, batch: int, given: Shape | None, hint: str) -> Shape:
    if given is None:
        open_batch = bool(spec.shape) and not isinstance(spec.shape[0], int)
        wanted: tuple[int | str, ...] = (batch or 1, *spec.shape[1:]) if open_batch else spec.shape
        if free := [str(size) for size in wanted if not isinstance(size, int)]:
            raise ConfigError(
                f"{name}: input {spec.name!r} has free dimensions: {', '.join(free)}",
                hint=f"say how large they are, as in {hint}; or export it with a fixed size",
            )
        return tuple(int(size) for size in wanted)
    fits = len(given) == len(spec.shape) and all(
        isinstance(want, str) or want == got for want, got in zip(spec.shape, given, strict=True)
    )
    if not fits:
        raise ConfigError(
            f"{name}: input {spec.name!r} takes {list(spec.shape)}, not {list(given)}",
            hint="only dimensions that are open in the file can be chosen",
        )
    return given


def shapes_from(texts: Sequence[str]) -> dict[str, Shape]:
    """Read shapes as the command line has them: `input=1x3x224x224`.

    Raises:
        ConfigError: one is not written like this.
    """
    found: dict[str, Shape] = {}
    for text in texts:
        name, _, sizes = text.rpartition("=")
        parts = sizes.lower().split("x")
        if not name or not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise ConfigError(f"--shape {text}: write NAME=1x3x224x224, every size a number above 0")
        found[name] = tuple(int(part) for part in parts)
    return found
