"""What a teacher says of every view of every image: computed once, kept in half precision, mapped from disk.

It knows no loss and no student. It may import errors, artifact, progress and this package.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from edgetune.artifact import disk_error
from edgetune.errors import StageError
from edgetune.progress import Progress
from edgetune.training.distil import Answers
from edgetune.training.features import Batch, Feed
from edgetune.training.kept import NoRoom, Put, kept

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

    def ask(put: Put) -> None:
        progress.begin("teacher", total=count * len(feeds))
        try:
            for view, feed in enumerate(feeds):
                for batch in feed.batches(view + 1):
                    # Of several processes some may have no image of a small batch, which no ONNX file takes.
                    found = answer(batch) if len(batch.picks) else {}
                    _check(found, batch)
                    put(view, batch, found)
                    progress.advance(batch.rows)
        finally:
            progress.end()

    try:
        tensors, there = kept(folder, key, wanted, torch.float16, DISK_SHARE, ask, progress)
    except NoRoom as error:
        raise StageError(
            f"{folder}: a teacher's answers would take {error}",
            hint="fewer distill.views, or 0: the teacher answers in every step",
        ) from error
    except OSError as error:
        raise disk_error(error, folder) from error
    if not tensors:
        raise StageError(
            f"{folder}: this process does not see what the first one has written there",
            hint="several machines share one training's folder: put it on a disk that all of them see",
        )
    if there:
        progress.line(f"teacher: {count} inputs in {len(feeds)} views, answered earlier")

    def look_up(batch: Batch) -> Answers:
        rows = ((name, kept[batch.view - 1][batch.picks]) for name, kept in tensors.items())
        return {name: row.to(batch.inputs.device, non_blocking=True).float() for name, row in rows}

    return look_up, there


def _check(found: Answers, batch: Batch) -> None:
    for name, said in found.items():
        if not bool((said.abs() <= LARGEST).all()):
            raise StageError(
                f"the teacher's {name} are no finite numbers, or above {LARGEST:.0f}, for some of the "
                f"inputs {int(batch.picks.min())} to {int(batch.picks.max())}",
                hint="look at the teacher: edgetune predict",
            )
