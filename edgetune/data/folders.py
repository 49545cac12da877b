"""Class folders become a data set: every image checked and hashed, cut into train, val and test.

Fitting and calibration use train, every choice uses val (cut from train), the gates are judged on test,
which is the user's own val or test folder where there is one. It knows no network and no framework. It may
import errors, artifact, recipe and progress.
"""

import hashlib
import json
import os
import warnings as python_warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

from PIL import Image

from edgetune.artifact import write_atomic
from edgetune.data.cut import cut
from edgetune.errors import ArtifactError, ConfigError
from edgetune.progress import Progress, Silent
from edgetune.recipe import DataSection

SCHEMA_VERSION = 1
ENDINGS = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"))
SPLIT_FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
GRAY_MODES = frozenset(("1", "L", "I", "I;16", "I;16B", "F"))
WORKERS = 4
NAMED = 5
LOPSIDED = 10


@dataclass(frozen=True)
class Sample:
    """One readable image: path below the root, class, content hash, and what tells that it is unchanged."""

    path: str
    label: int
    sha256: str
    size_bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class Dataset:
    """A folder of images, read and cut.

    Attributes:
        root: where the paths of the samples begin.
        classes: names, in the order of the labels.
        splits: samples of `train`, `val` and `test`, always all three.
        broken: path and reason of each file that could not be read.
        duplicates: groups of paths with the same content that lie in different splits or classes.
        warnings: what a person should know.
        gray: every image has one channel only.
    """

    root: Path
    classes: tuple[str, ...]
    splits: dict[str, tuple[Sample, ...]]
    broken: tuple[tuple[str, str], ...] = ()
    duplicates: tuple[tuple[str, ...], ...] = ()
    warnings: tuple[str, ...] = ()
    gray: bool = False

    @property
    def digest(self) -> str:
        """Hash of what is in it, wherever it lies: classes, and each sample's split, path, label, content."""
        splits = [
            sorted([s.path, s.label, s.sha256] for s in self.splits[n]) for n in ("train", "val", "test")
        ]
        content = [list(self.classes), self.gray, splits]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclass(frozen=True)
class _Found:
    """A file and what was found in it; `reason` says why it cannot be read."""

    path: str
    label: int
    size_bytes: int
    mtime_ns: int
    sha256: str = ""
    gray: bool = False
    reason: str = ""


@dataclass
class _Listing:
    """Files by split folder (`` where there is none), and what else lies about."""

    files: dict[str, list[tuple[str, str, Path]]] = field(default_factory=dict)
    others: int = 0


def scan(
    section: DataSection, root: Path, known: Path | None = None, progress: Progress | None = None
) -> Dataset:
    """Read a folder of images: check and hash each one, cut the rest off for val and test.

    Args:
        section: shares, seed and limits.
        root: class folders, or train/ with val/ or test/ or both, each with class folders.
        known: the manifest of an earlier scan; files of the same size and time are not read again.
        progress: counts images.

    Raises:
        ConfigError: no such folder, no image, one class only, too few images, or too many unreadable ones.
    """
    listing = _list(root)
    classes = tuple(sorted({name for files in listing.files.values() for name, _, _ in files}))
    if not classes:
        raise ConfigError(
            f"{root}: no image in it", hint=f"one folder per class, with {_endings()} files inside"
        )
    if len(classes) == 1:
        raise ConfigError(
            f"{root}: one class only ({classes[0]!r})", hint="name the folder that holds one folder per class"
        )
    found = _examine(listing, classes, _remember(known), progress or Silent())
    broken = tuple(
        (entry.path, entry.reason) for entries in found.values() for entry in entries if entry.reason
    )
    total = sum(map(len, found.values()))
    if len(broken) > section.broken_share * total:
        named = "; ".join(f"{path}: {reason}" for path, reason in broken[:NAMED])
        raise ConfigError(
            f"{root}: {len(broken)} of {total} images cannot be read: {named}",
            hint=f"mend or remove them, or allow more with data.broken_share (now {section.broken_share:g})",
        )
    good = {split: [entry for entry in entries if not entry.reason] for split, entries in found.items()}
    splits = _split(good, section)
    _refuse_too_few(root, classes, splits, section)
    duplicates = _duplicates(splits)
    return Dataset(
        root=root,
        classes=classes,
        splits=splits,
        broken=broken,
        duplicates=tuple(group for group, _ in duplicates),
        warnings=tuple(_warnings(classes, splits, broken, duplicates, listing.others)),
        gray=all(entry.gray for entries in good.values() for entry in entries),
    )


def _endings() -> str:
    return ", ".join(sorted(ENDINGS))


def _list(root: Path) -> _Listing:
    if not root.is_dir():
        reason = "is a file, not a folder" if root.exists() else "no such folder"
        raise ConfigError(f"{root}: {reason}", hint="name a folder that holds one folder of images per class")
    listing = _Listing()
    present = {
        split: [root / n for n in names if (root / n).is_dir()] for split, names in SPLIT_FOLDERS.items()
    }
    if present["train"]:
        for split, folders in present.items():
            for folder in folders:
                listing.files.setdefault(split, []).extend(_list_classes(root, folder, listing))
        if set(listing.files) == {"train"}:
            listing.files = {"": listing.files["train"]}
    else:
        listing.files[""] = _list_classes(root, root, listing)
    return listing


def _list_classes(root: Path, folder: Path, listing: _Listing) -> list[tuple[str, str, Path]]:
    """Return class, path below the root, and file of every image in the class folders of a folder."""
    files = []
    for entry in _entries(folder):
        if not entry.is_dir() or entry.name.startswith("."):
            continue
        seen: set[tuple[int, int]] = set()
        for path in _walk(Path(entry.path), seen):
            if path.suffix.lower() in ENDINGS:
                files.append((entry.name, path.relative_to(root).as_posix(), path))
            else:
                listing.others += 1
    return sorted(files)


def _walk(folder: Path, seen: set[tuple[int, int]]) -> Iterable[Path]:
    """Yield files below a folder; a loop of links is walked once."""
    status = folder.stat()
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    for entry in _entries(folder):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(Path(entry.path), seen)
        elif entry.is_file() or entry.is_symlink():
            yield Path(entry.path)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}", hint="check the folder's permissions") from error


def _examine(
    listing: _Listing, classes: tuple[str, ...], known: Mapping[str, _Found], progress: Progress
) -> dict[str, list[_Found]]:
    labels = {name: label for label, name in enumerate(classes)}
    total = sum(map(len, listing.files.values()))
    progress.begin("read images", total)
    found = {}
    with ThreadPoolExecutor(WORKERS) as pool:
        for split, files in listing.files.items():

            def look(item: tuple[str, str, Path]) -> _Found:
                name, path, file = item
                return _look(file, path, labels[name], known.get(path))

            entries = []
            for entry in pool.map(look, files):
                entries.append(entry)
                progress.advance()
            found[split] = entries
    progress.end()
    return found


def _look(file: Path, path: str, label: int, known: _Found | None) -> _Found:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        shown = path.encode("utf-8", "backslashreplace").decode()
        return _Found(shown, label, 0, 0, reason="its name is not UTF-8")
    try:
        status = file.stat()
        size, time = status.st_size, status.st_mtime_ns
        if known and (known.size_bytes, known.mtime_ns) == (size, time):
            return _Found(path, label, size, time, known.sha256, known.gray, known.reason)
        if size == 0:
            return _Found(path, label, size, time, reason="empty file")
        data = file.read_bytes()
    except OSError as error:
        return _Found(path, label, 0, 0, reason=error.strerror or "cannot be read")
    gray, reason = _verify(file)
    return _Found(path, label, size, time, hashlib.sha256(data).hexdigest(), gray, reason)


def _verify(file: Path) -> tuple[bool, str]:
    """Decode an image (a JPEG at an eighth of its size) and return whether it is gray, and what is wrong."""
    try:
        with python_warnings.catch_warnings():
            python_warnings.simplefilter("ignore")
            with Image.open(file) as image:
                gray = image.mode in GRAY_MODES
                image.draft(None, (1, 1))
                image.load()
        return gray, ""
    except (Exception, MemoryError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        return False, text.split(" '")[0].split(" <")[0]


def _split(good: dict[str, list[_Found]], section: DataSection) -> dict[str, tuple[Sample, ...]]:
    """Cut off what the folders do not give: val from train; test too where there is neither val nor test."""
    samples = {
        split: [Sample(e.path, e.label, e.sha256, e.size_bytes, e.mtime_ns) for e in entries]
        for split, entries in good.items()
    }
    if "" in samples:
        rest, test = cut(samples[""], section.test_share, section.seed)
        train, val = cut(rest, section.val_share, section.seed + 1)
    elif {"val", "test"} <= set(samples):
        train, val, test = samples["train"], samples["val"], samples["test"]
    else:
        test = samples.get("test") or samples.get("val") or []
        train, val = cut(samples["train"], section.val_share, section.seed + 1)
    return {"train": tuple(train), "val": tuple(val), "test": tuple(test)}


def _refuse_too_few(
    root: Path, classes: tuple[str, ...], splits: Mapping[str, tuple[Sample, ...]], section: DataSection
) -> None:
    for split in ("train", "val", "test"):
        least = section.min_images if split == "train" else 1
        counts = [sum(sample.label == label for sample in splits[split]) for label in range(len(classes))]
        for name, count in zip(classes, counts, strict=True):
            if split == "train" and count == 0:
                raise ConfigError(
                    f"{root}: class {name!r} has no training image", hint="every class needs some"
                )
            if split == "train" and count < least:
                raise ConfigError(
                    f"{root}: class {name!r} has {count} images for training, {least} are needed",
                    hint="add images, or lower data.min_images",
                )
        if not splits[split]:
            raise ConfigError(
                f"{root}: no image left for {split}", hint=f"add images, or raise data.{split}_share"
            )


def _duplicates(splits: Mapping[str, tuple[Sample, ...]]) -> list[tuple[tuple[str, ...], str]]:
    """Return groups of equal content that lie in different splits or classes, and which of the two it is."""
    by_content: dict[str, list[tuple[str, Sample]]] = defaultdict(list)
    for split, samples in splits.items():
        for sample in samples:
            by_content[sample.sha256].append((split, sample))
    groups = []
    for members in by_content.values():
        paths = tuple(sorted(sample.path for _, sample in members))
        if len({sample.label for _, sample in members}) > 1:
            groups.append((paths, "classes"))
        elif len({split for split, _ in members}) > 1:
            groups.append((paths, "splits"))
    return sorted(groups)


def _warnings(
    classes: tuple[str, ...],
    splits: Mapping[str, tuple[Sample, ...]],
    broken: tuple[tuple[str, str], ...],
    duplicates: list[tuple[tuple[str, ...], str]],
    others: int,
) -> Iterable[str]:
    if broken:
        named = "; ".join(f"{path} ({reason})" for path, reason in broken[:NAMED])
        yield f"{len(broken)} unreadable images are left out: {named}{', …' if len(broken) > NAMED else ''}"
    if others:
        yield f"{others} files are not images ({_endings()}) and are left out"
    for kind, what in (("splits", "in more than one split"), ("classes", "under more than one class")):
        groups = [group for group, found in duplicates if found == kind]
        if groups:
            named = "; ".join(" = ".join(group) for group in groups[:NAMED])
            yield f"{len(groups)} images are {what}: {named}{'; …' if len(groups) > NAMED else ''}"
    counts = [sum(sample.label == label for sample in splits["train"]) for label in range(len(classes))]
    if max(counts) > LOPSIDED * min(counts):
        most, least = classes[counts.index(max(counts))], classes[counts.index(min(counts))]
        yield (
            f"classes differ much in size: {most!r} has {max(counts)} training images, {least!r} has "
            f"{min(counts)}; finetune.class_weights: balanced evens that out"
        )
    for split in ("val", "test"):
        present = {sample.label for sample in splits[split]}
        missing = [name for label, name in enumerate(classes) if label not in present]
        if missing:
            yield f"no {split} image of: {', '.join(missing[:NAMED])}"


def save_dataset(dataset: Dataset, path: Path) -> None:
    """Write the manifest: every sample with its hash, split and class, and the files that are broken."""
    content = {
        "schema_version": SCHEMA_VERSION,
        "root": str(dataset.root.absolute()),
        "classes": dataset.classes,
        "gray": dataset.gray,
        "splits": {name: [asdict(sample) for sample in samples] for name, samples in dataset.splits.items()},
        "broken": dataset.broken,
        "duplicates": dataset.duplicates,
        "warnings": dataset.warnings,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(content, indent=1) + "\n")


def load_dataset(path: Path, root: Path | None = None) -> Dataset:
    """Read a manifest.

    Args:
        path: written by `save_dataset`.
        root: where the images lie now; default: where they lay.

    Raises:
        ArtifactError: not a manifest, or a path in it leads out of the root.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema_version"] != SCHEMA_VERSION:
            raise ArtifactError(f"{path}: schema_version {content['schema_version']} is not known here")
        splits = {
            name: tuple(Sample(**s) for s in content["splits"][name]) for name in ("train", "val", "test")
        }
        for sample in (sample for samples in splits.values() for sample in samples):
            pure = PurePosixPath(sample.path)
            if pure.is_absolute() or ".." in pure.parts or not 0 <= sample.label < len(content["classes"]):
                raise ArtifactError(f"{path}: {sample.path!r}: leads out of the folder, or has no class")
        return Dataset(
            root=root or Path(content["root"]),
            classes=tuple(content["classes"]),
            splits=splits,
            broken=tuple((name, reason) for name, reason in content["broken"]),
            duplicates=tuple(tuple(group) for group in content["duplicates"]),
            warnings=tuple(content["warnings"]),
            gray=bool(content["gray"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{path}: not a manifest of images: {error}", hint="run again without it"
        ) from error


def _remember(known: Path | None) -> dict[str, _Found]:
    """Read what an earlier scan found out about each file; nothing where that cannot be read."""
    if known is None:
        return {}
    try:
        earlier = load_dataset(known)
    except ArtifactError:
        return {}
    samples = (sample for split in earlier.splits.values() for sample in split)
    return {
        s.path: _Found(s.path, s.label, s.size_bytes, s.mtime_ns, s.sha256, earlier.gray) for s in samples
    }
