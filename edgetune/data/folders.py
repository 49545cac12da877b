"""Class folders become a data set: every image checked and hashed, cut into train, val and test.

Fitting and calibration use train, every choice uses val (cut from train), the gates are judged on test,
which is the user's own val or test folder where there is one. It knows no network and no framework. It may
import errors, artifact, recipe, progress and this package's cut and files.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from edgetune.artifact import library_versions, sha256_of, write_atomic
from edgetune.data.cut import cut
from edgetune.data.files import ENDINGS, LAYOUT, Listing, Verdict, examine, list_images
from edgetune.data.texts import find_text, list_texts
from edgetune.errors import ArtifactError, ConfigError
from edgetune.progress import Progress, Silent
from edgetune.recipe import DataSection, Section

SPLITS = ("train", "val", "test")
# The manifest beside what was made of the data.
DATA_FILE = "data.json"
NAMED = 5
LOPSIDED = 10
# In a small folder one broken file is already a large share.
BROKEN_ALWAYS = 2


@dataclass(frozen=True)
class Sample:
    """One readable image: path below the root, class, content hash, and what tells that it is unchanged."""

    path: str
    label: int
    sha256: str
    size_bytes: int
    mtime_ns: int
    gray: bool = False


# Samples of equal content, each with its split.
Twins = list[tuple[str, Sample]]


@dataclass(frozen=True)
class Dataset:
    """A folder of images, read and cut.

    Attributes:
        root: where the paths of the samples begin.
        classes: names, in the order of the labels.
        splits: samples of `train`, `val` and `test`, always all three.
        broken: path and reason of each file that could not be read.
        duplicates: groups of paths with the same content in different splits.
        warnings: what a person should know.
        gray: every image has one channel only.
        noun: what a sample is: `image` or `text`.
        columns: of tables, those that were named: of texts, and of labels.
        stamps: size in bytes and time of change in ns of each broken file, so that it is not read again.
    """

    root: Path
    classes: tuple[str, ...]
    splits: dict[str, tuple[Sample, ...]]
    broken: tuple[tuple[str, str], ...] = ()
    duplicates: tuple[tuple[str, ...], ...] = ()
    warnings: tuple[str, ...] = ()
    gray: bool = False
    stamps: tuple[tuple[int, int], ...] = ()
    noun: Literal["image", "text"] = "image"
    columns: tuple[str, str] = ("", "")

    @property
    def digest(self) -> str:
        """Hash of what is in it, wherever it lies: classes, and each sample's split, path, label, content."""
        splits = [sorted([s.path, s.label, s.sha256] for s in self.splits[name]) for name in SPLITS]
        content = [list(self.classes), self.gray, splits]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


class Manifest(Section):
    """A data set as a file. `pillow` is the version that found files broken; another may read them."""

    schema_version: Literal[1]
    pillow: str
    root: str
    classes: tuple[str, ...]
    gray: bool
    splits: dict[Literal["train", "val", "test"], tuple[Sample, ...]]
    broken: tuple[tuple[str, str], ...]
    stamps: tuple[tuple[int, int], ...]
    duplicates: tuple[tuple[str, ...], ...]
    warnings: tuple[str, ...]
    noun: Literal["image", "text"] = "image"
    columns: tuple[str, str] = ("", "")


def scan(
    section: DataSection, root: Path, known: Path | None = None, progress: Progress | None = None
) -> Dataset:
    """Read a folder of images: check and hash each one, cut the rest off for val and test.

    Args:
        section: shares, seed and limits.
        root: class folders; or train/ with val/ or test/ or both, each with class folders.
        known: the manifest of an earlier scan; files of the same size and time are not read again.
        progress: counts images.

    Raises:
        ConfigError: no such folder, no image, one class only, too few images, or more unreadable
            ones than two and than `broken_share` of all.
    """
    if section.noun == "text":
        base, listing, found = list_texts(root, section, progress or Silent())
    else:
        base, listing = root, list_images(root)
        _refuse_layout(root, listing)
        found = examine(listing, remember(known), progress or Silent())
    classes = tuple(sorted({name for looked in found.values() for name, _ in looked}))
    bad = [verdict for looked in found.values() for _, verdict in looked if verdict.reason]
    total = sum(map(len, found.values()))
    if len(bad) > max(BROKEN_ALWAYS, section.broken_share * total):
        named = list_some([f"{verdict.path}: {verdict.reason}" for verdict in bad])
        raise ConfigError(
            f"{root}: {len(bad)} of {total} {section.noun}s ({len(bad) / total:.1%}) cannot be read: {named}",
            hint=f"mend or remove them, or allow more with data.broken_share (now {section.broken_share:g})",
        )
    if len(classes) < 2:
        wrong = f"one class only ({classes[0]!r})" if total else f"no {section.noun}"
        raise ConfigError(f"{root}: {wrong}", hint=f"{section.noun}s of two classes are needed")
    labels = {name: label for label, name in enumerate(classes)}
    samples = {
        split: [
            Sample(v.path, labels[name], v.sha256, v.size_bytes, v.mtime_ns, v.gray)
            for name, v in looked
            if not v.reason
        ]
        for split, looked in found.items()
    }
    splits = _split(samples, section)
    _refuse_too_few(root, classes, splits, section)
    broken = tuple((verdict.path, verdict.reason) for verdict in bad)
    twins = _twins(splits)
    return Dataset(
        root=base,
        classes=classes,
        splits=splits,
        broken=broken,
        duplicates=_across(twins),
        warnings=tuple(_warnings(classes, splits, broken, twins, listing, section.noun)),
        gray=all(sample.gray for part in splits.values() for sample in part),
        stamps=tuple((verdict.size_bytes, verdict.mtime_ns) for verdict in bad),
        noun=section.noun,
        columns=(section.text, section.label),
    )


def _refuse_layout(root: Path, listing: Listing) -> None:
    endings = ", ".join(sorted(ENDINGS))
    if not listing.classes:
        loose = sum(path.suffix.lower() in ENDINGS for path in root.iterdir())
        beside = f"; {loose} lie beside them, without a class" if loose else ""
        raise ConfigError(
            f"{root}: no image in a class folder{beside}", hint=f"needed: {LAYOUT}; images are {endings}"
        )
    if len(listing.classes) == 1:
        only = listing.classes[0]
        inside = sorted(path.name for path in (root / only).glob("*/"))[:NAMED]
        deeper = f"; {root / only} holds {', '.join(inside)}: name it instead?" if len(inside) > 1 else ""
        raise ConfigError(f"{root}: one class only ({only!r})", hint=f"needed: {LAYOUT}{deeper}")


def _split(samples: dict[str, list[Sample]], section: DataSection) -> dict[str, tuple[Sample, ...]]:
    """Cut off what the folders do not give: val from train; test too where there is neither val nor test."""
    if "" in samples:
        rest, test = cut(samples[""], section.test_share, section.seed)
        train, val = cut(rest, section.val_share, section.seed + 1)
    elif len(samples) == len(SPLITS):
        train, val, test = (samples[name] for name in SPLITS)
    else:
        test = samples.get("test") or samples.get("val") or []
        train, val = cut(samples["train"], section.val_share, section.seed + 1)
    return {"train": tuple(train), "val": tuple(val), "test": tuple(test)}


def _refuse_too_few(
    root: Path, classes: tuple[str, ...], splits: Mapping[str, tuple[Sample, ...]], section: DataSection
) -> None:
    counts, noun = dict(zip(classes, _counts(splits["train"], classes), strict=True)), section.noun
    unknown = [name for name, count in counts.items() if not count]
    if unknown:
        held_out = (sample for split in ("val", "test") for sample in splits[split])
        first = {classes[sample.label]: sample.path for sample in reversed(list(held_out))}
        seen = [f"{name!r} ({first[name]})" if name in first else repr(name) for name in unknown]
        raise ConfigError(
            f"{root}: no training {noun} of: {list_some(seen, ', ')}",
            hint="add some, or remove the class everywhere",
        )
    few = [f"{name!r} ({count})" for name, count in counts.items() if count < section.min_images]
    if few:
        raise ConfigError(
            f"{root}: {section.min_images} {noun}s of each class are needed for training; fewer are there of: "
            f"{list_some(few, ', ')}",
            hint=f"add {noun}s, remove the class, or lower data.min_images",
        )
    for split in ("val", "test"):
        if not splits[split]:
            raise ConfigError(
                f"{root}: no {noun} left for {split}", hint=f"add {noun}s, or raise data.{split}_share"
            )


def _counts(samples: Iterable[Sample], classes: tuple[str, ...]) -> list[int]:
    counts = [0] * len(classes)
    for sample in samples:
        counts[sample.label] += 1
    return counts


def _twins(splits: Mapping[str, tuple[Sample, ...]]) -> list[Twins]:
    """Return groups of samples of equal content."""
    by_content: dict[str, Twins] = defaultdict(list)
    for split, samples in splits.items():
        for sample in samples:
            by_content[sample.sha256].append((split, sample))
    return [group for group in by_content.values() if len(group) > 1]


def _across(twins: list[Twins]) -> tuple[tuple[str, ...], ...]:
    return _paths(group for group in twins if len({split for split, _ in group}) > 1)


def _paths(groups: Iterable[Twins]) -> tuple[tuple[str, ...], ...]:
    return tuple(sorted(tuple(sorted(sample.path for _, sample in group)) for group in groups))


def _warnings(
    classes: tuple[str, ...],
    splits: Mapping[str, tuple[Sample, ...]],
    broken: tuple[tuple[str, str], ...],
    twins: list[Twins],
    listing: Listing,
    noun: str,
) -> Iterable[str]:
    if broken:
        named = list_some([f"{path} ({reason})" for path, reason in broken])
        yield f"{len(broken)} unreadable {noun}s are left out: {named}"
    if listing.others:
        taken = ", ".join(sorted(ENDINGS)) if noun == "image" else ".txt"
        yield f"{listing.others} files are not {noun}s ({taken}) and are left out"
    if listing.unused:
        what = "folders" if listing.unused[0].endswith("/") else "tables"
        yield f"{what} that are not used: {list_some(listing.unused, ', ')}"
    across = _across(twins)
    contradictory = _paths(group for group in twins if len({sample.label for _, sample in group}) > 1)
    for groups, where in ((across, "split"), (contradictory, "class")):
        if groups:
            named = list_some([" = ".join(group) for group in groups])
            yield f"{len(groups)} {noun}s are in more than one {where}: {named}"
    counts = _counts(splits["train"], classes)
    if max(counts) > LOPSIDED * min(counts):
        most, least = classes[counts.index(max(counts))], classes[counts.index(min(counts))]
        yield (
            f"classes differ much in size: {most!r} has {max(counts)} training {noun}s, {least!r} has "
            f"{min(counts)}; finetune.class_weights: balanced evens that out"
        )
    for split in ("val", "test"):
        found = _counts(splits[split], classes)
        missing = [name for name, count in zip(classes, found, strict=True) if not count]
        if missing:
            yield f"no {split} {noun} of: {list_some(missing, ', ')}"


def list_some(items: list[str], between: str = "; ") -> str:
    """Name the first few, and how many more there are."""
    return between.join(items[:NAMED]) + (
        f"{between}and {len(items) - NAMED} more" if len(items) > NAMED else ""
    )


def save_dataset(dataset: Dataset, path: Path) -> None:
    """Write the manifest: every sample with its hash, split and class, and the files that are broken."""
    content = {
        "schema_version": 1,
        "pillow": library_versions("pillow")["pillow"],
        "root": str(dataset.root.absolute()),
        "classes": dataset.classes,
        "gray": dataset.gray,
        "splits": {name: [vars(sample) for sample in dataset.splits[name]] for name in SPLITS},
        "broken": dataset.broken,
        "stamps": dataset.stamps,
        "duplicates": dataset.duplicates,
        "warnings": dataset.warnings,
        **({"noun": "text", "columns": dataset.columns} if dataset.noun == "text" else {}),
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
    found = _read_manifest(path)
    return Dataset(
        root=root or Path(found.root),
        classes=found.classes,
        splits={name: found.splits[name] for name in ("train", "val", "test")},
        broken=found.broken,
        duplicates=found.duplicates,
        warnings=found.warnings,
        gray=found.gray,
        stamps=found.stamps,
        noun=found.noun,
        columns=found.columns,
    )


def unchanged(data: Dataset, sample: Sample) -> bool:
    """Whether a sample still holds what was hashed; an image is hashed again only where its file changed.

    Raises:
        ConfigError: a table of texts cannot be read as one any more.
    """
    try:
        if data.noun == "text":
            return find_text(data.root, sample.path, sample.sha256) is not None
        status = (data.root / sample.path).stat()
        same = (status.st_size, status.st_mtime_ns) == (sample.size_bytes, sample.mtime_ns)
        return same or sha256_of(data.root / sample.path) == sample.sha256
    except (OSError, ArtifactError):
        return False


def _read_manifest(path: Path) -> Manifest:
    hint = "run again without it: it is made anew"
    try:
        found = Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}", hint=hint) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "not JSON"
        raise ArtifactError(f"{path}: not a manifest of data: {where}: {first['msg']}", hint=hint) from None
    if set(found.splits) != set(SPLITS) or len(found.stamps) != len(found.broken):
        raise ArtifactError(f"{path}: not a manifest of data: not all of it is there", hint=hint)
    for sample in (sample for samples in found.splits.values() for sample in samples):
        if sample.path.startswith("/") or ".." in sample.path.split("/") or "\0" in sample.path:
            raise ArtifactError(f"{path}: the path {sample.path!r} leads out of the folder", hint=hint)
        if not 0 <= sample.label < len(found.classes):
            raise ArtifactError(f"{path}: {sample.path!r}: there is no class {sample.label}", hint=hint)
    return found


def remember(known: Path | None) -> dict[str, Verdict]:
    """Read what an earlier scan found out about each file, by path; nothing where that cannot be read."""
    if known is None:
        return {}
    try:
        earlier = _read_manifest(known)
    except ArtifactError:
        return {}
    verdicts = {
        s.path: Verdict(s.path, s.size_bytes, s.mtime_ns, s.sha256, s.gray)
        for samples in earlier.splits.values()
        for s in samples
    }
    if earlier.pillow == library_versions("pillow")["pillow"]:
        for (path, reason), (size, time) in zip(earlier.broken, earlier.stamps, strict=True):
            verdicts[path] = Verdict(path, size, time, reason=reason)
    return verdicts
