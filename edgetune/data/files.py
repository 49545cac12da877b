"""Finds the image files in class folders and looks into each, in threads; unchanged ones are not read again.

It knows no cut and no network. It may import errors, machine, progress and data.decode.
"""

import hashlib
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgetune.data.decode import inspect
from edgetune.errors import ConfigError
from edgetune.machine import cores
from edgetune.progress import Progress

ENDINGS = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"))
Endings = frozenset[str]
SPLIT_NAMES = {
    "train": "train", "training": "train", "test": "test", "testing": "test",
    "val": "val", "valid": "val", "validation": "val",
}  # fmt: skip
LAYOUT = "one folder of images per class, or train/ and val/ or test/ with such folders"
MOST_WORKERS = 16


@dataclass(frozen=True)
class ImageFile:
    """An image file: its class, its path below the root, and its place on disk."""

    name: str
    path: str
    entry: os.DirEntry[str]


@dataclass(frozen=True)
class Verdict:
    """What was found in a file; `reason` says why it cannot be read."""

    path: str
    size_bytes: int = 0
    mtime_ns: int = 0
    sha256: str = ""
    gray: bool = False
    reason: str = ""


@dataclass
class Listing:
    """What lies in a folder.

    Attributes:
        files: by split; all under `` where the folder holds classes, not splits.
        others: number of files in class folders that are not images.
        unused: folders that are not read, and class folders without an image.
    """

    files: dict[str, list[ImageFile]] = field(default_factory=dict)
    others: int = 0
    unused: list[str] = field(default_factory=list)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the folders that hold an image."""
        return tuple(sorted({image.name for images in self.files.values() for image in images}))


def list_images(root: Path, endings: Endings = ENDINGS, layout: str = LAYOUT) -> Listing:
    """Find the images of a folder, or files with other endings; hidden files and folders do not count.

    Raises:
        ConfigError: no such folder, one that cannot be read, or splits that do not make sense.
    """
    return _look_into(root, lambda folder: _list(folder, endings, layout), layout)


def list_any(root: Path, endings: Endings = ENDINGS) -> Listing:
    """Find the images of any folder, classes or not, or files with other endings; hidden ones do not count.

    Where an image lies in the folder itself, or right in train/ and val/, there is one class without a name.

    Raises:
        ConfigError: no such folder, one that cannot be read, or splits that do not make sense.
    """
    return _look_into(root, lambda folder: _list_any(folder, endings), "images")


def _look_into(root: Path, listed: Callable[[Path], Listing], content: str) -> Listing:
    try:
        if not root.is_dir():
            wrong = "is a file, not a folder" if root.exists() else "no such folder"
            raise ConfigError(f"{root}: {wrong}", hint=f"name a folder that holds {content}")
        return listed(root)
    except OSError as error:
        where = error.filename or root
        raise ConfigError(
            f"{where}: {error.strerror or error}", hint="check the folder's permissions"
        ) from error


def _list(root: Path, endings: Endings = ENDINGS, layout: str = LAYOUT) -> Listing:
    listing = Listing()
    folders = _folders(root)
    named = [folder for folder in folders if folder.name.lower() in SPLIT_NAMES]
    splits = [folder for folder in named if _holds_folders_only(folder, endings)]
    if not any(SPLIT_NAMES[folder.name.lower()] == "train" for folder in splits):
        if len(named) > 1 and named == folders:
            names = ", ".join(f"{folder.name}/" for folder in named)
            raise ConfigError(f"{root}: {names}: no train/ with class folders", hint=f"needed: {layout}")
        listing.files[""] = _list_classes(root, folders, listing, endings)
        return listing
    listing.unused += [f"{folder.name}/" for folder in folders if folder not in splits]
    for folder in splits:
        split = SPLIT_NAMES[folder.name.lower()]
        listing.files.setdefault(split, []).extend(_list_classes(root, _folders(folder), listing, endings))
    held_out = {split: images for split, images in listing.files.items() if split != "train" and images}
    if not held_out:
        listing.files = {"": listing.files["train"]}
    else:
        listing.files = {"train": listing.files["train"], **held_out}
    return listing


def _list_any(root: Path, endings: Endings) -> Listing:
    loose = [entry for entry in _entries(root) if not _is_folder(entry)]
    if any(_is_image(entry, endings) for entry in loose):
        found = [(path.removeprefix("./"), entry) for path, entry in _walk(root, ".", set())]
        images = [ImageFile("", path, entry) for path, entry in found if _is_image(entry, endings)]
        images.sort(key=lambda image: image.path)
        return Listing({"": images}, others=len(found) - len(images))
    folders = _folders(root)
    if any(SPLIT_NAMES.get(f.name.lower()) == "train" and _holds_folders_only(f, endings) for f in folders):
        return _list(root, endings)
    listing = Listing(others=len(loose))
    images = _list_classes(root, folders, listing, endings)
    splits = {image.name: SPLIT_NAMES.get(image.name.lower(), "") for image in images}
    if not all(splits.values()):
        listing.files[""] = images
        return listing
    # Folders called train and val that hold images and no classes are what their names say.
    for image in images:
        split = splits[image.name] if "train" in splits.values() else ""
        listing.files.setdefault(split, []).append(replace(image, name=""))
    return listing


def _list_classes(
    root: Path, folders: list[Path], listing: Listing, endings: Endings = ENDINGS
) -> list[ImageFile]:
    images = []
    for folder in folders:
        if not _is_utf8(folder.name):
            raise ConfigError(
                f"{folder.parent}: the class name {_shown(folder.name)} is not UTF-8", hint="rename it"
            )
        own = []
        for path, entry in _walk(folder, folder.relative_to(root).as_posix(), set()):
            if _is_image(entry, endings):
                own.append(ImageFile(folder.name, path, entry))
            else:
                listing.others += 1
        images += own
        if not own:
            listing.unused.append(f"{folder.relative_to(root).as_posix()}/")
    return sorted(images, key=lambda image: image.path)


def _walk(folder: Path, below: str, seen: set[tuple[int, int]]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield path and place of each file below a folder, each folder once, and never by a link back up.

    Paths are put together as text: a Path for each of a million files takes longer than all the rest.
    """
    status = folder.stat()
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    for entry in _entries(folder):
        path = f"{below}/{entry.name}"
        if not _is_folder(entry):
            yield path, entry
        elif not (entry.is_symlink() and folder.resolve().is_relative_to(Path(entry.path).resolve())):
            yield from _walk(Path(entry.path), path, seen)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted((e for e in entries if not e.name.startswith(".")), key=lambda entry: entry.name)


def _folders(folder: Path) -> list[Path]:
    return [Path(entry.path) for entry in _entries(folder) if _is_folder(entry)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_image(entry: os.DirEntry[str], endings: Endings = ENDINGS) -> bool:
    _, dot, ending = entry.name.rpartition(".")
    return dot + ending.lower() in endings


def _holds_folders_only(folder: Path, endings: Endings = ENDINGS) -> bool:
    """Whether a folder holds folders and no image: a class may be called train, too."""
    entries = _entries(folder)
    images = any(_is_image(entry, endings) for entry in entries if not _is_folder(entry))
    return not images and any(_is_folder(entry) for entry in entries)


def examine(
    listing: Listing, known: Mapping[str, Verdict], progress: Progress
) -> dict[str, list[tuple[str, Verdict]]]:
    """Look into every file of a listing.

    Args:
        listing: the files.
        known: earlier verdicts by path; one of the same size and time is taken over.
        progress: counts the files that are read.

    Returns:
        By split, class and verdict of each file, in the listing's order.
    """
    images = [image for listed in listing.files.values() for image in listed]
    verdicts = {image.path: _unread(image, known.get(image.path)) for image in images}
    unread = [image for image in images if verdicts[image.path] is None]
    if unread:
        progress.begin("read images", len(unread), "image")
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            ThreadPoolExecutor(min(MOST_WORKERS, 2 * cores())) as pool,
        ):
            try:
                for image, verdict in zip(unread, pool.map(_read, unread), strict=True):
                    verdicts[image.path] = verdict
                    progress.advance()
            finally:
                pool.shutdown(cancel_futures=True)
    finally:
        if unread:
            progress.end()
    found: dict[str, list[tuple[str, Verdict]]] = {}
    for split, listed in listing.files.items():
        looked = [(image.name, verdicts[image.path]) for image in listed]
        found[split] = [(name, verdict) for name, verdict in looked if verdict is not None]
    return found


def _unread(image: ImageFile, known: Verdict | None) -> Verdict | None:
    """Return the verdict on a file as far as one is possible without reading it."""
    if not _is_utf8(image.path):
        return Verdict(_shown(image.path), reason="its name is not UTF-8")
    try:
        status = image.entry.stat()
    except OSError as error:
        return Verdict(image.path, reason=error.strerror or "cannot be read")
    if not stat.S_ISREG(status.st_mode):
        return Verdict(image.path, reason="not a file")
    if known and (known.size_bytes, known.mtime_ns) == (status.st_size, status.st_mtime_ns):
        return known
    return None


def _read(image: ImageFile) -> Verdict:
    try:
        file = Path(image.entry.path)
        status = file.stat()
        data = file.read_bytes()
    except OSError as error:
        return Verdict(image.path, reason=error.strerror or "cannot be read")
    gray, reason = inspect(data)
    digest = hashlib.sha256(data).hexdigest()
    return Verdict(image.path, status.st_size, status.st_mtime_ns, digest, gray, reason)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()
