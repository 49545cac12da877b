"""Artifacts: folders that stages make.

An artifact is a folder of files plus `artifact.json`, which names every file with its digest, what goes
in and comes out, how inputs are preprocessed, and what it was made from. Move the folder, move the work.
This module knows nothing of networks, images or hardware. It may import errors only.
"""

import errno
import hashlib
import json
import os
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgetune.errors import ArtifactError, EdgetuneError, MissingTool, StageError

ARTIFACT_FILE = "artifact.json"
KEY_FILE = "key"
TOKENIZER_FILE = "tokenizer.json"
TEXT_EXTRA = 'pip install "edgetune[text]"'
# Where an artifact's data lay and when its files changed: kept and verified, but no part of its content.
PROVENANCE_FILES = ("data.json",)
# A distribution whose files another one brings as well.
_INSTEAD = {"onnxruntime": "onnxruntime-gpu"}


class Preprocess(BaseModel):
    """How one image becomes one input tensor. It travels inside the artifact; nobody declares it twice.

    The shorter side is resized to `resize_px`, the centre `size_px` square is cut out, values are scaled
    to 0..1, then `(x - mean) / std` per channel.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    kind: Literal["image"] = "image"
    resize_px: int = Field(gt=0, le=8192)
    size_px: int = Field(gt=0, le=8192)
    channels: Literal[1, 3]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(f"mean and std need {self.channels} values each")
        if min(self.std) <= 0:
            raise ValueError("std must be above 0")
        if self.resize_px < self.size_px:
            raise ValueError("resize_px must not be below size_px")
        return self


class Tokens(BaseModel):
    """How one text becomes one input: numbers of tokens, and a mask that says which of them are text.

    The tokenizer lies beside, in `TOKENIZER_FILE`, and travels with the artifact. Longer texts are cut.

    Attributes:
        length: tokens of the longest input, marks of beginning and end included.
        lengths: to the least of these that holds it an input is filled up; `length` is the last.
        pad: number of the token that fills.
        tokenizer: sha256 of the tokenizer's file.
        folder: where that lies now.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    kind: Literal["text"]
    length: int = Field(gt=2, le=8192)
    lengths: Annotated[tuple[Annotated[int, Field(gt=2)], ...], Field(min_length=1)]
    pad: int = Field(ge=0)
    tokenizer: str
    folder: Path = Field(default=Path(), exclude=True)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if sorted(set(self.lengths)) != list(self.lengths) or self.lengths[-1] != self.length:
            raise ValueError("lengths must grow, and end with length")
        return self

    @property
    def file(self) -> Path:
        """Where the tokenizer lies."""
        return self.folder / TOKENIZER_FILE


def load_tokenizer(file: Path) -> Any:
    """Load a tokenizer.json.

    Raises:
        MissingTool: the extra `text` is not installed.
        ArtifactError: no tokenizer.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingTool("texts need the library tokenizers", hint=TEXT_EXTRA) from error
    try:
        return Tokenizer.from_file(str(file))
    # The library raises bare Exceptions.
    except Exception as error:
        raise ArtifactError(f"{file}: not a tokenizer ({str(error).splitlines()[0]})") from error


How = Preprocess | Tokens


class TensorSpec(BaseModel):
    """Name, element type (`float32`, `uint8`, …) and shape of a network's input or output.

    A shape holds numbers, or a name where a dimension is dynamic.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class FileEntry(BaseModel):
    """Digest and size of one file of an artifact."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    bytes: int


class Artifact(BaseModel):
    """What a stage made: a folder with files and this description of them.

    `files` (but `data.json`), `kind`, `classes`, `inputs`, `outputs` and `preprocess` make up the digest, so
    a stage writes only repeatable content into files; durations and histories go into `details`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    kind: str
    classes: tuple[str, ...] = ()
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    preprocess: How | None = None
    files: dict[str, FileEntry] = {}
    parents: dict[str, str] = {}
    made_by: str = ""
    versions: dict[str, str] = {}
    details: dict[str, Any] = {}
    path: Path = Field(default=Path(), exclude=True)

    @property
    def digest(self) -> str:
        """Hash of the content: equal digests mean interchangeable artifacts."""
        content = self.model_dump(mode="json", include={"kind", "classes", "inputs", "outputs", "preprocess"})
        content["files"] = {
            name: entry.sha256 for name, entry in sorted(self.files.items()) if name not in PROVENANCE_FILES
        }
        return hash_json(content)

    @property
    def bytes(self) -> int:
        """Size of all files together."""
        return sum(entry.bytes for entry in self.files.values())

    def file(self, name: str) -> Path:
        """Return the path of one of the artifact's files.

        Raises:
            ArtifactError: the artifact has no such file.
        """
        if name not in self.files:
            raise ArtifactError(f"{self.path}: a {self.kind} artifact without {name!r}")
        return self.path / name

    @classmethod
    def load(cls, folder: Path, *kinds: str) -> Self:
        """Read and verify an artifact.

        Args:
            folder: where `artifact.json` lies.
            kinds: the kinds that will do; none given: any.

        Raises:
            ArtifactError: nothing there, not an artifact, wrong kind, or a file that changed since.
        """
        described = folder / ARTIFACT_FILE
        try:
            content = described.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            inside = (
                sorted(p.parent.name for p in folder.glob(f"*/{ARTIFACT_FILE}")) if folder.is_dir() else []
            )
            hint = (
                f"it holds: {', '.join(inside)}; name one of those" if inside else "edgetune run makes them"
            )
            raise ArtifactError(f"{folder}: not an artifact (no {ARTIFACT_FILE})", hint=hint) from None
        except OSError as error:
            raise ArtifactError(f"{described}: {error.strerror}", hint="check its permissions") from error
        try:
            artifact = cls.model_validate_json(content).at(folder)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ArtifactError(
                f"{described}: {where or 'not JSON'}: {first['msg']}", hint="make it again"
            ) from None
        if kinds and artifact.kind not in kinds:
            raise ArtifactError(
                f"{folder}: a {artifact.kind!r} artifact, where {' or '.join(map(repr, kinds))} is needed"
            )
        artifact._verify(described.stat().st_mtime_ns)
        return artifact

    def at(self, folder: Path) -> Self:
        """Return the same artifact, found in another folder."""
        update: dict[str, Any] = {"path": folder}
        if isinstance(self.preprocess, Tokens):
            update["preprocess"] = self.preprocess.model_copy(update={"folder": folder})
        return self.model_copy(update=update)

    def of_images(self) -> Preprocess:
        """Return how images become inputs.

        Raises:
            ArtifactError: it does not say so, or takes texts.
        """
        if isinstance(self.preprocess, Tokens):
            raise ArtifactError(f"{self.path}: takes texts, and images are needed here")
        if self.preprocess is None:
            raise ArtifactError(
                f"{self.path}: does not say how inputs are preprocessed", hint="make it again"
            )
        return self.preprocess

    def _verify(self, written_ns: int) -> None:
        for name, entry in self.files.items():
            pure = PurePosixPath(name)
            if pure.is_absolute() or ".." in pure.parts:
                raise ArtifactError(f"{self.path}: the file name {name!r} leads out of the artifact")
            file = self.path / name
            try:
                found = file.stat()
            except OSError as error:
                raise ArtifactError(f"{file}: {error.strerror}", hint="make the artifact again") from error
            # A file older than its description has not been written since; a newer one is hashed again.
            newer = found.st_mtime_ns > written_ns
            if found.st_size != entry.bytes or (newer and sha256_of(file) != entry.sha256):
                raise ArtifactError(
                    f"{file}: changed since it was made", hint=f"delete {self.path} and make it again"
                )

    def write(self, folder: Path) -> Self:
        """Describe everything that lies in the folder and write `artifact.json`, last.

        Files whose names begin with a dot are work in progress and are not part of the artifact.
        """
        if isinstance(self.preprocess, Tokens) and self.preprocess.folder != folder:
            shutil.copyfile(self.preprocess.file, folder / TOKENIZER_FILE)
        files = {}
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            name = file.relative_to(folder).as_posix()
            if name in (ARTIFACT_FILE, KEY_FILE) or any(part.startswith(".") for part in name.split("/")):
                continue
            files[name] = FileEntry(sha256=sha256_of(file), bytes=file.stat().st_size)
        made = self.model_copy(update={"files": files}).at(folder)
        write_atomic(folder / ARTIFACT_FILE, made.model_dump_json(indent=1) + "\n")
        return made


def sha256_of(path: Path) -> str:
    """Hash a file's content.

    Raises:
        ArtifactError: it cannot be read.
    """
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}") from error


def library_versions(*names: str) -> dict[str, str]:
    """Return the installed versions of distributions, `absent` for one that is not installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = library_versions(_INSTEAD[name])[_INSTEAD[name]] if name in _INSTEAD else "absent"
    return found


def write_atomic(path: Path, text: str) -> None:
    """Write a text file so that a reader, or a crash, never meets half of it."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with scratch.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    scratch.replace(path)


def disk_error(error: OSError, path: Path) -> EdgetuneError:
    """Translate an operating system's refusal to write into an error with a way out."""
    where = error.filename or path
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(next(p for p in [path, *path.absolute().parents] if p.exists())).free
        return StageError(
            f"{where}: the disk is full ({free / 1e6:.0f} MB left)",
            hint="free some space, or choose another folder with -o; the same command goes on from here",
        )
    return StageError(f"{where}: {error.strerror or error}", hint="check the folder's permissions, or use -o")


def hash_json(value: Any) -> str:
    """Hash plain values, whatever the order of their keys."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
