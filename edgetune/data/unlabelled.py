"""Any folder of images becomes calibration data, and any table or folder of texts a lesson: no classes needed.

It knows no network. It may import errors, artifact, progress and this package's cut, files, folders and texts.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from edgetune.data.cut import order
from edgetune.data.files import ENDINGS, ImageFile, examine, list_any
from edgetune.data.folders import SPLITS, Dataset, Sample, list_some, remember
from edgetune.data.texts import list_bare_texts
from edgetune.errors import ConfigError
from edgetune.progress import Progress, Silent

# Each image that could be chosen is read once; of more than this, a part of each class stands for all.
MOST_IMAGES = 10_000


def gather(
    root: Path, progress: Progress | None = None, most: int = MOST_IMAGES, known: Path | None = None
) -> Dataset:
    """Read a folder of images: loose ones, nested ones, class folders, or splits of class folders.

    Where images lie beside folders there are no classes. Without splits everything is `train`.

    Args:
        root: the folder.
        progress: counts images, and is told what is left out.
        most: how many images are looked at, chosen by their paths, each class in turn; 0: all.
        known: a manifest of an earlier call; files of the same size and time are not read again.

    Raises:
        ConfigError: no such folder, or no image in it that can be read.
    """
    shown = progress or Silent()
    listing = list_any(root)
    total = sum(map(len, listing.files.values()))
    if not total:
        beside = f"; it holds {listing.others} other files" if listing.others else ""
        raise ConfigError(
            f"{root}: no image in this folder or below{beside}",
            hint=f"real images are needed ({', '.join(sorted(ENDINGS))}): such as the network will see",
        )
    if most and total > most:
        shown.line(f"{root}: {total} images; {most} of them are looked at")
        listing = replace(listing, files={split: _thin(f, most) for split, f in listing.files.items()})
    found = examine(listing, remember(known), shown)
    classes = listing.classes
    splits: dict[str, tuple[Sample, ...]] = {
        split or "train": tuple(
            Sample(v.path, classes.index(name), v.sha256, v.size_bytes, v.mtime_ns, v.gray)
            for name, v in looked
            if not v.reason
        )
        for split, looked in found.items()
    }
    broken = tuple((v.path, v.reason) for looked in found.values() for _, v in looked if v.reason)
    named = list_some([f"{path} ({reason})" for path, reason in broken])
    if not splits.get("train"):
        raise ConfigError(f"{root}: none of its images can be read: {named}", hint="mend or replace them")
    return Dataset(
        root=root,
        classes=classes if len(classes) > 1 else (),
        splits={split: splits.get(split, ()) for split in SPLITS},
        broken=broken,
        stamps=tuple((v.size_bytes, v.mtime_ns) for looked in found.values() for _, v in looked if v.reason),
        warnings=(f"{len(broken)} unreadable images are left out: {named}",) if broken else (),
    )


def gather_texts(root: Path, column: str, progress: Progress) -> Dataset:
    """Read texts without classes: a table, or the .txt files of a folder and below; all of them are `train`.

    Args:
        root: the table, or the folder.
        column: of the table, that holds the texts; empty: found by its name.
        progress: counts texts.

    Raises:
        ConfigError: nothing there, or no text that can be read.
    """
    place, found = list_bare_texts(root, column, progress)
    samples = tuple(Sample(v.path, 0, v.sha256, v.size_bytes, v.mtime_ns) for v in found if not v.reason)
    named = list_some([f"{v.path} ({v.reason})" for v in found if v.reason])
    if not samples:
        raise ConfigError(f"{root}: no text that can be read{f': {named}' if named else ''}")
    return Dataset(
        root=place,
        classes=(),
        splits={"train": samples, "val": (), "test": ()},
        broken=tuple((v.path, v.reason) for v in found if v.reason),
        stamps=tuple((v.size_bytes, v.mtime_ns) for v in found if v.reason),
        warnings=(f"unreadable texts are left out: {named}",) if named else (),
        noun="text",
        columns=(column, ""),
    )


def held_out(data: Dataset, used: Iterable[Sample], most: int, seed: int) -> tuple[Sample, ...]:
    """Choose images that were not calibrated with, by content: of val, else of test, else the rest of train.

    Args:
        data: what `used` was chosen from.
        used: the calibration images; what equals one of them is left out, too.
        most: how many at most.
        seed: decides which.

    Returns:
        None where there is nothing left.
    """
    taken = {sample.sha256 for sample in used}
    pool = data.splits["val"] or data.splits["test"] or data.splits["train"]
    rest = {sample.sha256: sample for sample in pool if sample.sha256 not in taken}
    return tuple(rest[key] for key in sorted(rest, key=lambda key: order(key, seed))[:most])


def _thin(files: list[ImageFile], most: int) -> list[ImageFile]:
    """Take one file of each class in turn, in an order that their paths alone decide."""
    classes: dict[str, list[ImageFile]] = defaultdict(list)
    for file in sorted(files, key=lambda file: order(file.path, 0)):
        classes[file.name].append(file)
    turns = [(turn, name, file) for name, own in classes.items() for turn, file in enumerate(own)]
    return [file for _, _, file in sorted(turns, key=lambda entry: entry[:2])[:most]]
