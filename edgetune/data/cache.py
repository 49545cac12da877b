"""Images decoded and resized once, kept uncropped in a memory-mapped file where the disk has room for it.

A folder of such files is a convenience: whoever deletes it loses time, nothing else. Each list of images has a
file of pixels and, written last, an index with the sizes and digests. What does not fit the images at hand,
is not whole or has changed is made anew. Pixels are those of the page cache: they take no memory that the system
could not take back. It knows no network. It may import errors, artifact, progress, and data.images and data.folders.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetune.artifact import Preprocess, hash_json, library_versions, sha256_of, write_atomic
from edgetune.data.folders import Sample
from edgetune.data.images import in_threads, resized
from edgetune.errors import ArtifactError
from edgetune.progress import Progress

# Of the disk's free space. The rest is for what the run makes, and for others.
DISK_SHARE = 0.2
# What is decoded between two looks at whether it will fit.
CHUNK = 64
# To be raised whenever the same file would become other pixels.
SCHEMA_VERSION = 1
PIXELS, INDEX, PARTIAL = ".pixels", ".pixels-index", ".pixels-partial"
TAG_FILE = "CACHEDIR.TAG"
# The first line is what backup programs look for (Cache Directory Tagging Specification); the second says whose.
TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# Decoded images of edgetune; delete them whenever you like.\n"


class _TooLarge(Exception):
    """The pixels would take more than their share of the disk."""


@dataclass(frozen=True)
class Decoded:
    """Images by number, out of a mapped file: no copies, and nothing that can be written to.

    Attributes:
        pixels: of all images, one after the other.
        sizes: height and width of each [N, 2].
        starts: where each begins [N].
        channels: of each.
    """

    pixels: NDArray[np.uint8]
    sizes: NDArray[np.int64]
    starts: NDArray[np.int64]
    channels: int

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """Return an image [C, H, W]."""
        height, width = self.sizes[index]
        start = self.starts[index]
        flat = self.pixels[start : start + height * width * self.channels]
        return flat.reshape(height, width, self.channels).transpose(2, 0, 1)


@dataclass(frozen=True)
class Undecoded:
    """Images by number, each decoded when it is asked for."""

    root: Path
    samples: Sequence[Sample]
    preprocess: Preprocess

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """Return an image [C, H, W].

        Raises:
            ConfigError: it cannot be read.
        """
        return resized(self.root / self.samples[index].path, self.preprocess).transpose(2, 0, 1)


def decoded(
    folder: Path,
    name: str,
    root: Path,
    samples: Sequence[Sample],
    preprocess: Preprocess,
    progress: Progress,
) -> Decoded | Undecoded:
    """Return resized images, out of a file where the disk has room for one; it is made where there is none.

    Several processes may call it at once: one makes the file, the others wait for it.

    Args:
        folder: of the files; made where it is not there.
        name: of this list of images: files of the same name and other images are replaced.
        root: where the samples' paths begin.
        samples: the images.
        preprocess: the size, the interpolation and the number of channels; the rest does not matter.
        progress: counts images, and is told where no file can be kept.

    Raises:
        ConfigError: an image cannot be read.
    """
    anew = Undecoded(root, samples, preprocess)
    if not samples:
        return anew
    how = preprocess.model_dump(mode="json", include={"resize_px", "channels", "interpolation"})
    key = {
        "name": name,
        "content": hash_json([sample.sha256 for sample in samples]),
        **how,
        **library_versions("edgetune", "pillow"),
        "schema_version": SCHEMA_VERSION,
    }
    file = folder / f"{'-'.join([name, *map(str, how.values())])}{PIXELS}"
    try:
        with owned(folder):
            found = _open(file, key)
            if found is None:
                if file.exists():
                    progress.line(f"{file}: of other images, or not whole; they are decoded again")
                _forget(folder, key)
                _write(file, key, anew, progress)
                found = _open(file, key)
    except _TooLarge as error:
        progress.line(f"{error}: they are decoded whenever they are needed")
        return anew
    except OSError as error:
        why = f"{error.filename or folder}: {error.strerror or error}"
        progress.line(
            f"warning: decoded images cannot be kept ({why}); they are decoded whenever they are needed"
        )
        return anew
    return found or anew


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Keep other processes out of the folder, which must be ours: only in such a one is anything replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        tag = folder / TAG_FILE
        # Empty, or a kill was faster than the tag.
        if all(TAG_FILE in entry.name for entry in folder.iterdir()):
            write_atomic(tag, TAG)
        if not tag.is_file() or tag.read_text(encoding="utf-8", errors="replace") != TAG:
            raise FileExistsError(0, "holds something else", str(folder))
        yield
    finally:
        os.close(handle)


def _open(file: Path, key: dict[str, Any]) -> Decoded | None:
    """Map a file, where it is whole and of these images.

    As with artifacts, a file that is older than its index has not been written since; a newer one (copied,
    touched, changed) is hashed again, once. Hashing all of it each time would take as long as some epochs do.
    """
    index = file.with_suffix(INDEX)
    try:
        found = json.loads(index.read_bytes())
        if found.pop("sha256") != hash_json(found) or found["key"] != key:
            return None
        there = file.stat()
        newer = there.st_mtime_ns > index.stat().st_mtime_ns
        if there.st_size != found["bytes"] or (newer and sha256_of(file) != found["pixels_sha256"]):
            return None
        sizes = np.array(found["sizes"], np.int64).reshape(-1, 2)
    except (FileNotFoundError, ArtifactError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if newer:
        with suppress(OSError):
            os.utime(index)
    ends = np.cumsum(sizes.prod(1) * key["channels"])
    # A plain array: slices of a memmap are memmaps, which take longer to make.
    pixels = np.asarray(np.memmap(file, np.uint8, "r"))
    return Decoded(pixels, sizes, ends - np.diff(ends, prepend=0), key["channels"])


def _forget(folder: Path, key: dict[str, Any]) -> None:
    """Remove what will not be looked at again: other images of the same name, and what is not whole."""
    kept = set()
    for index in folder.glob(f"*{INDEX}"):
        with suppress(ValueError, KeyError, TypeError):
            known = json.loads(index.read_bytes())["key"]
            if known["name"] != key["name"] or known["content"] == key["content"]:
                kept.add(index.stem)
    for end in (PIXELS, INDEX, PARTIAL):
        for file in folder.glob(f"*{end}"):
            if file.stem not in kept or end == PARTIAL:
                file.unlink()


def _write(file: Path, key: dict[str, Any], images: Undecoded, progress: Progress) -> None:
    """Decode all images into a file; either all of it is there afterwards, or nothing.

    Raises:
        _TooLarge: it takes, or is going to take, more than its share of the disk.
        OSError: the disk is full, or the folder cannot be written.
        ConfigError: an image cannot be read.
    """
    partial, index = file.with_suffix(PARTIAL), file.with_suffix(INDEX)
    index.unlink(missing_ok=True)
    file.unlink(missing_ok=True)
    total, how = len(images.samples), images.preprocess
    free = shutil.disk_usage(file.parent).free
    # No image is smaller than a square.
    _check_room(total * how.resize_px**2 * how.channels, free, file.parent)
    sizes: list[tuple[int, int]] = []
    digest, written = hashlib.sha256(), 0
    progress.begin(f"decode {key['name']}", total, "image")
    try:
        with partial.open("wb") as out:
            parts = [range(total)[start : start + CHUNK] for start in range(0, total, CHUNK)]
            for part in in_threads(images.__getitem__, parts):
                for pixels in part:
                    data = np.ascontiguousarray(pixels.transpose(1, 2, 0)).data
                    out.write(data)
                    digest.update(data)
                    sizes.append((pixels.shape[1], pixels.shape[2]))
                    written += data.nbytes
                _check_room(written * total // len(sizes), free, file.parent)
                progress.advance(len(part))
            out.flush()
            os.fsync(out.fileno())
        partial.replace(file)
        described = {"key": key, "bytes": written, "pixels_sha256": digest.hexdigest(), "sizes": sizes}
        write_atomic(index, json.dumps({**described, "sha256": hash_json(described)}))
    except BaseException:
        for left in (partial, file):
            with suppress(OSError):
                left.unlink(missing_ok=True)
        raise
    finally:
        progress.end()


def _check_room(wanted: int, free: int, folder: Path) -> None:
    if wanted > DISK_SHARE * free:
        raise _TooLarge(
            f"decoded images would take {wanted / 1e9:.1f} GB, more than {DISK_SHARE:.0%} of the "
            f"{free / 1e9:.1f} GB that are free for {folder}"
        )
