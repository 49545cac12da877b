"""What a teacher says of every view of every image: computed once, kept in half precision, mapped from disk.

One safetensors file for each set of answers, named by a key of all that they depend on. It is written under
another name and moved into its place when it is whole. It knows no loss and no student. It may import errors,
artifact, progress and this package.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from edgetune.artifact import disk_error
from edgetune.errors import StageError
from edgetune.progress import Progress
from edgetune.training.distil import Answers
from edgetune.training.features import Batch, Feed

# Of what is free on the disk: answers of a few million images, or of whole layers, must not fill it.
DISK_SHARE = 0.5
# Half precision holds nothing above.
LARGEST = 65504.0


def kept_answers(
    folder: Path,
    key: str,
    shapes: Mapping[str, Sequence[int]],
    feeds: Sequence[Feed],
    answer: Callable[[Batch], Answers],
    progress: Progress,
) -> tuple[Callable[[Batch], Answers], bool]:
    """Return what looks up a batch's answers, computed now or by an earlier call with the same key.

    Args:
        folder: where files of answers lie; made where it is not there.
        key: of all that the answers depend on.
        shapes: of what is answered, by name; the first dimension does not count.
        feeds: one for each view, the images in order.
        answer: asks the teacher.
        progress: counts images.

    Returns:
        A function from a batch to its answers in float32 beside the batch's inputs, and whether they were there.

    Raises:
        StageError: they would take too much of the disk, it is full, or an answer is no finite number.
    """
    count = feeds[0].images
    wanted = {name: (len(feeds), count, *shape[1:]) for name, shape in shapes.items()}
    path = folder / f"{key[:24]}.safetensors"
    found = _read(path, key, wanted, progress)
    if there := found is not None:
        progress.line(f"teacher: {count} images in {len(feeds)} views, answered earlier")
    else:
        try:
            _compute(path, key, wanted, feeds, answer, progress)
        except OSError as error:
            raise disk_error(error, path) from error
        found = _read(path, key, wanted, progress)
    if found is None:
        raise StageError(f"{path}: cannot be read right after it was written", hint="look at the disk")
    tensors = found

    def look_up(batch: Batch) -> Answers:
        rows = ((name, kept[batch.view - 1][batch.picks]) for name, kept in tensors.items())
        return {name: row.to(batch.inputs.device, non_blocking=True).float() for name, row in rows}

    return look_up, there


def _read(
    path: Path, key: str, wanted: Mapping[str, tuple[int, ...]], progress: Progress
) -> dict[str, Tensor] | None:
    """Map a file of answers into memory; None where there is none, or it is not whole, or another's."""
    if not path.is_file():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            same = (file.metadata() or {}).get("key") == key and set(file.keys()) == set(wanted)
            found = {name: file.get_tensor(name) for name in wanted} if same else {}
    except (SafetensorError, OSError, ValueError) as error:
        progress.line(f"{path}: not whole ({error}); the teacher is asked again")
        return None
    if not same or any(
        tensor.shape != wanted[name] or tensor.dtype != torch.float16 for name, tensor in found.items()
    ):
        progress.line(f"{path}: holds other answers; the teacher is asked again")
        return None
    return found


def _compute(
    path: Path,
    key: str,
    wanted: Mapping[str, tuple[int, ...]],
    feeds: Sequence[Feed],
    answer: Callable[[Batch], Answers],
    progress: Progress,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header, begin, size = _header(key, wanted)
    free = shutil.disk_usage(path.parent).free
    if size > DISK_SHARE * free:
        raise StageError(
            f"{path.parent}: a teacher's answers would take {size / 1e9:.1f} GB, of {free / 1e9:.1f} GB that are "
            "free",
            hint="fewer distill.views, or 0: the teacher answers in every step",
        )
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(header)
            file.truncate(size)
        _fill(partial, begin, wanted, feeds, answer, progress)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _header(key: str, wanted: Mapping[str, tuple[int, ...]]) -> tuple[bytes, dict[str, int], int]:
    """Lay a safetensors file out: its head, where each tensor begins, its size. All in float16."""
    table: dict[str, object] = {"__metadata__": {"key": key}}
    offsets, end = {}, 0
    for name, shape in wanted.items():
        begin, end = end, end + 2 * int(np.prod(shape, dtype=np.int64))
        table[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [begin, end]}
        offsets[name] = begin
    text = json.dumps(table).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    head = len(text).to_bytes(8, "little") + text
    return head, {name: start + begin for name, begin in offsets.items()}, start + end


def _fill(
    partial: Path,
    begin: Mapping[str, int],
    wanted: Mapping[str, tuple[int, ...]],
    feeds: Sequence[Feed],
    answer: Callable[[Batch], Answers],
    progress: Progress,
) -> None:
    """Ask the teacher of every image in every view, and write what it says where it belongs."""
    kept = {name: np.memmap(partial, np.float16, "r+", begin[name], shape) for name, shape in wanted.items()}
    progress.begin("teacher", total=sum(feed.images for feed in feeds))
    try:
        for view, feed in enumerate(feeds):
            for batch in feed.batches(view + 1):
                for name, found in answer(batch).items():
                    if not bool((found.abs() <= LARGEST).all()):
                        raise StageError(
                            f"the teacher's {name} are no finite numbers, or above {LARGEST:.0f}, for some of the "
                            f"images {int(batch.picks.min())} to {int(batch.picks.max())}",
                            hint="look at the teacher: edgetune predict",
                        )
                    kept[name][view, batch.picks.numpy()] = found.half().cpu().numpy()
                progress.advance(len(batch.picks))
        for rows in kept.values():
            rows.flush()
    finally:
        progress.end()
