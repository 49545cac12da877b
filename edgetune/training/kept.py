"""Tensors that are computed once and mapped from disk: a teacher's answers, a frozen network's features.

One safetensors file for each set, named by a key of all that it depends on, written under another name and moved into
its place when it is whole. A folder keeps the sets that were used last; whoever deletes one loses time, nothing
else. Several processes may ask for the same set: one makes it, the others wait. It knows no network. It may import
errors, progress and this package's ranks and features (for the type).
"""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from edgetune.errors import StageError
from edgetune.progress import Progress
from edgetune.training import ranks
from edgetune.training.features import Batch

# Sets in a folder: students, trials and settings that alternate find theirs again, and a long search fills no disk.
MOST_SETS = 8
NAME_DIGITS = 24
PARTIAL = ".partial"
NAMES = {torch.float16: "F16", torch.float32: "F32"}

Shapes = Mapping[str, tuple[int, ...]]
# Takes a view (from 0), a batch of it, and what was found of the batch's own rows, by name.
Put = Callable[[int, Batch, Mapping[str, Tensor]], None]


class NoRoom(Exception):
    """It would take more than its share of the disk."""


def kept(
    folder: Path,
    key: str,
    shapes: Shapes,
    dtype: torch.dtype,
    share: float,
    fill: Callable[[Put], None],
    progress: Progress,
) -> tuple[dict[str, Tensor], bool]:
    """Return a set of tensors, computed now or by an earlier call with the same key.

    Of several processes that train together each computes its share, and the first one writes.

    Args:
        folder: where the sets lie; made where it is not there.
        key: of all that the tensors depend on.
        shapes: by name; [views, images, ...].
        dtype: of all of them.
        share: of the disk's free space that a set may take.
        fill: computes all rows, and puts them where they belong; the images of a view in order.
        progress: told of what is not whole.

    Returns:
        The tensors, and whether they were there. Of several processes those on a machine that does not see the
        folder get none.

    Raises:
        NoRoom: they would take more of the disk, or the first process met what follows.
        OSError: the disk is full, or the folder cannot be written.
        StageError: it cannot be read.
    """
    path = folder / f"{key[:NAME_DIGITS]}.safetensors"
    with _owned(folder, progress):
        there = ranks.leaders(ranks.rank() == 0 and _read(path, key, shapes, dtype, progress) is not None)
        if not there:
            _make(path, key, shapes, dtype, share, fill)
    found = _read(path, key, shapes, dtype, progress)
    if found is None and ranks.rank() == 0:
        raise StageError(f"{path}: cannot be read right after it was written", hint="look at the disk")
    with suppress(OSError):  # Not ours to write: then it is not ours to throw away either.
        os.utime(path)
    return found or {}, there


@contextmanager
def _owned(folder: Path, progress: Progress) -> Iterator[None]:
    """Keep others out of the folder; of several processes that train together the first one does."""
    handles: list[int] = []

    def own() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        handles.append(os.open(folder, os.O_RDONLY))
        try:
            fcntl.flock(handles[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.line(f"{folder}: another edgetune computes what lies there; waiting for it")
            fcntl.flock(handles[0], fcntl.LOCK_EX)

    try:
        _by_leader(own)
        yield
    finally:
        for handle in handles:
            os.close(handle)


def _by_leader(work: Callable[[], None]) -> None:
    """Let the first process do something; a disk that does not do is learned of by all, who may do without."""
    failure: Exception | None = None
    if ranks.rank() == 0:
        try:
            work()
        except (NoRoom, OSError) as error:
            failure = error
    if ranks.leaders(failure is not None):
        raise failure or NoRoom


def _read(
    path: Path, key: str, shapes: Shapes, dtype: torch.dtype, progress: Progress
) -> dict[str, Tensor] | None:
    """Map a file into memory; None where there is none, or it is not whole, or another's."""
    if not path.is_file():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            same = (file.metadata() or {}).get("key") == key and set(file.keys()) == set(shapes)
            found = {name: file.get_tensor(name) for name in shapes} if same else {}
    except (SafetensorError, OSError, ValueError) as error:
        progress.line(f"{path}: not whole ({error}); it is made again")
        return None
    if not same or any(
        tensor.shape != shapes[name] or tensor.dtype != dtype for name, tensor in found.items()
    ):
        progress.line(f"{path}: holds something else; it is made again")
        return None
    return found


def _make(
    path: Path, key: str, shapes: Shapes, dtype: torch.dtype, share: float, fill: Callable[[Put], None]
) -> None:
    partial = path.with_name(f".{path.name}{PARTIAL}")
    slots: dict[str, Any] = {}

    def begin() -> None:
        header, starts, size = _header(key, shapes, dtype)
        _make_room(path.parent, size, share)
        with partial.open("wb") as file:
            file.write(header)
            # Now, not when a page is first written to: then a full disk would end the process.
            os.posix_fallocate(file.fileno(), 0, size)
        kind = np.dtype(str(dtype).removeprefix("torch."))
        for name, shape in shapes.items():
            slots[name] = np.memmap(partial, kind, "r+", starts[name], shape)

    def end() -> None:
        for slot in slots.values():
            slot.flush()
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)

    try:
        _by_leader(begin)
        fill(into(slots, shapes, dtype))
        _by_leader(end)
    finally:
        if ranks.rank() == 0:
            with suppress(OSError):
                partial.unlink(missing_ok=True)


def into(slots: Mapping[str, Any], shapes: Shapes, dtype: torch.dtype) -> Put:
    """Return what puts a batch's rows of all processes into arrays; of several, in order, one batch after the other.

    Args:
        slots: the arrays; none where another process has them.
        shapes: theirs.
        dtype: theirs.
    """
    done: dict[int, int] = {}

    def put(view: int, batch: Batch, found: Mapping[str, Tensor]) -> None:
        first = done.get(view, 0)
        done[view] = first + batch.rows
        for name, shape in shapes.items():
            rows = _of_all(found.get(name), batch, first, shape[2:]).to(dtype)
            if slots:
                # One process's batches may be of any rows: those of texts are sorted by length.
                where = batch.picks.numpy() if ranks.size() == 1 else slice(first, first + batch.rows)
                slots[name][view, where] = rows.numpy()

    return put


def _of_all(found: Tensor | None, batch: Batch, first: int, shape: Sequence[int]) -> Tensor:
    """Return a batch's rows of all processes, on the CPU; `found` are this one's, None where it has none."""
    own = None if found is None else found.detach().float().cpu()
    if ranks.size() == 1 and own is not None:
        return own
    rows = torch.zeros(batch.rows, *shape)
    if own is not None:
        rows[batch.picks - first] = own
    return ranks.total(rows)


def _make_room(folder: Path, size: int, share: float) -> None:
    """Throw away what a kill has left, and the sets that have not been used for longest.

    Raises:
        NoRoom: that would not do.
    """
    for left in folder.glob(f".*{PARTIAL}"):
        left.unlink()
    sets = [
        (there.stat().st_mtime, there.stat().st_size, there)
        for there in folder.glob("*.safetensors")
        if len(there.stem) == NAME_DIGITS
    ]
    free = shutil.disk_usage(folder).free
    if size > share * (free + sum(bytes_ for _, bytes_, _ in sets)):
        raise NoRoom(f"{size / 1e9:.1f} GB, of {free / 1e9:.1f} GB that are free")
    for number, (_, bytes_, there) in enumerate(sorted(sets)):
        if size > share * free or len(sets) - number >= MOST_SETS:
            there.unlink()
            free += bytes_


def _header(key: str, shapes: Shapes, dtype: torch.dtype) -> tuple[bytes, dict[str, int], int]:
    """Lay a safetensors file out: its head, where each tensor begins, its size."""
    table: dict[str, object] = {"__metadata__": {"key": key}}
    offsets, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        table[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        offsets[name] = begin
    text = json.dumps(table).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    head = len(text).to_bytes(8, "little") + text
    return head, {name: start + begin for name, begin in offsets.items()}, start + end
