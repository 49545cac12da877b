"""Samples one by one, as the network takes them. Standard library only."""

from __future__ import annotations

import sys
from array import array
from pathlib import Path
from typing import Iterator

from .plan import Tensor, Work
from .problem import Problem

LEVELS = 256
# Bytes of a value as it is stored; what becomes float32 is stored as uint8.
STORED = {"int32": 4, "int64": 8}


def feeds(work: Work, most: int | None = None) -> Iterator[bytes]:
    """Give the bytes of one sample after another, at most `most` of them.

    What is stored is uint8, of texts integers as the network takes them. Where the network takes float32, every
    value is looked up in the bundle's table, which holds what the workstation's own preprocessing makes of it: to
    the bit the same numbers.

    Raises:
        Problem: there are fewer bytes than samples.
    """
    table = _table(work.samples.table, work.input.shape[1]) if work.samples.table else []
    count = work.samples.number if most is None else min(most, work.samples.number)
    with Path(work.samples.inputs).open("rb") as handle:
        for index in range(count):
            size = sum(map(_size, _tensors(work, index)))
            pixels = handle.read(size)
            if len(pixels) != size:
                raise Problem(
                    f"{work.samples.inputs}: ends within sample {index}", "copy the bundle again", 5
                )
            yield _looked_up(pixels, table) if table else pixels


def first(work: Work, length: int = 0) -> bytes:
    """Give the first sample, of one length where there are several.

    Raises:
        Problem: there is none.
    """
    for one in feeds(work):
        if not length or length_of(work, one) == length:
            return one
    raise Problem(f"{work.samples.inputs}: no sample of {length} tokens", "bundle again", 5)


def length_of(work: Work, one: bytes) -> int:
    """Return how many tokens a sample has, which its size tells; 0: the networks take one length alone."""
    return (
        len(one) // sum(_size(tensor._replace(shape=tensor.at(1))) for tensor in work.inputs)
        if work.lengths
        else 0
    )


def split(work: Work, one: bytes) -> dict[str, bytes]:
    """Give each of the network's inputs its part of a sample, by its name."""
    if not work.more_inputs:
        return {work.input.name: one}
    length = length_of(work, one)
    parts, start = {}, 0
    for tensor in work.inputs:
        end = start + _size(tensor._replace(shape=tensor.at(length)) if length else tensor)
        parts[tensor.name] = one[start:end]
        start = end
    return parts


def _tensors(work: Work, index: int) -> list[Tensor]:
    """Return the inputs as a sample has them."""
    if not work.samples.lengths:
        return list(work.inputs)
    length = work.samples.lengths[index]
    return [tensor._replace(shape=tensor.at(length)) for tensor in work.inputs]


def _size(tensor: Tensor) -> int:
    size = STORED.get(tensor.dtype, 1)
    for side in tensor.shape[1:]:
        size *= side
    return size


def _looked_up(pixels: bytes, table: list[list[float]]) -> bytes:
    plane = len(pixels) // len(table)
    values = array("f")
    for channel, row in enumerate(table):
        values.extend(map(row.__getitem__, pixels[channel * plane : (channel + 1) * plane]))
    return values.tobytes()


def _table(path: str, channels: int) -> list[list[float]]:
    values = array("f")
    values.frombytes(Path(path).read_bytes())
    if sys.byteorder == "big":
        values.byteswap()
    if len(values) != channels * LEVELS:
        raise Problem(f"{path}: not {channels} times {LEVELS} numbers", "bundle again", 5)
    return [list(values[start : start + LEVELS]) for start in range(0, len(values), LEVELS)]
