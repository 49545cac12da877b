"""The store: each stage runs once per distinct inputs, and what it makes is never half there.

It knows nothing of what the stages do. It may import errors and artifact.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel

from edgetune.artifact import (
    ARTIFACT_FILE,
    KEY_FILE,
    Artifact,
    disk_error,
    hash_json,
    library_versions,
    write_atomic,
)
from edgetune.errors import ArtifactError, ConfigError, StageError


class Store:
    """A run's folder: each stage runs once per distinct inputs, and a crash leaves only a `.partial`.

    Attributes:
        out: the folder; an artifact named `onnx` lies in `out/onnx`.
        made: names of the artifacts made, not reused, since the store was opened.
    """

    def __init__(self, out: Path, say: Callable[[str], None] = lambda _: None) -> None:
        self.out = out
        self.made: list[str] = []
        self._say = say

    def __call__(
        self,
        name: str,
        stage: Callable[..., Artifact],
        *args: Any,
        uses: tuple[str, ...] = (),
        also: Mapping[str, Any] | None = None,
        reusable: Callable[[Artifact], bool] | None = None,
        **options: Any,
    ) -> Artifact:
        """Return the artifact that `stage(*args, into=folder, **options)` makes, made or found.

        Args:
            name: the artifact's folder.
            stage: writes files into the folder `into`, calls `Artifact.write` on it, returns the artifact.
            args: what the result depends on: artifacts, data, recipe sections, plain values.
            uses: libraries whose versions the result depends on.
            also: more that the result depends on and that the stage is not told.
            reusable: says no to an artifact that is better made again, though nothing changed.
            options: what the result does not depend on (progress, the accelerator).

        Raises:
            ConfigError: the folder is there and holds something else.
            StageError: the disk is full, or the folder cannot be written.
        """
        final, partial = self.out / name, self.out / f"{name}.partial"
        _refuse_inputs(final, args)
        versions = library_versions("edgetune", *uses)
        key = hash_json([stage.__name__, [_describe(a) for a in args], versions, dict(also or {})])
        found = self._find(final, key)
        if found and (reusable is None or reusable(found)):
            self._say(f"{name}: unchanged")
            return found
        _refuse_foreign(final)
        _refuse_foreign(partial)
        try:
            made = self._finished(partial, key)
            if made is None:
                if _read(partial / KEY_FILE) != key:
                    shutil.rmtree(partial, ignore_errors=True)
                    partial.mkdir(parents=True)
                    write_atomic(partial / KEY_FILE, key)
                made = stage(*args, into=partial, **options)
                described = {"versions": versions, "made_by": stage.__name__}
                made = made.model_copy(update=described).write(partial)
            _clean(partial)
            _replace(final, partial)
        except OSError as error:
            raise disk_error(error, partial) from error
        self.made.append(name)
        return made.at(final)

    @staticmethod
    def _finished(partial: Path, key: str) -> Artifact | None:
        """Return an artifact that was complete when a kill kept it from its place."""
        if _read(partial / KEY_FILE) != key or not (partial / ARTIFACT_FILE).is_file():
            return None
        try:
            made = Artifact.load(partial)
        except ArtifactError:
            return None
        # The store's own description, the last thing written, says which stage made it.
        return made if made.made_by else None

    def _find(self, final: Path, key: str) -> Artifact | None:
        if _read(final / KEY_FILE) != key:
            return None
        try:
            return Artifact.load(final)
        except ArtifactError as error:
            self._say(f"{final.name}: {error.message}; made again")
            return None

    @contextmanager
    def locked(self) -> Iterator[Self]:
        """Keep other processes out of the folder while the block runs.

        Raises:
            StageError: another process works in it, or it cannot be written.
        """
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.out, os.O_RDONLY)
        except OSError as error:
            raise disk_error(error, self.out) from error
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StageError(
                    f"{self.out}: another edgetune works in this folder",
                    hint="wait for it, or give this run a folder of its own with -o",
                ) from error
            yield self
        finally:
            os.close(handle)


def _describe(value: Any) -> Any:
    """Turn an argument of a stage into JSON that changes exactly when the argument's content does."""
    if isinstance(value, BaseModel) and not isinstance(value, Artifact):
        return value.model_dump(mode="json")
    if hasattr(value, "digest"):
        return {"digest": value.digest}
    if isinstance(value, list | tuple):
        return [_describe(item) for item in value]
    if isinstance(value, dict):
        return {key: _describe(item) for key, item in value.items()}
    return value


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _clean(partial: Path) -> None:
    """Remove a stage's work in progress: everything whose name begins with a dot."""
    for entry in partial.iterdir():
        if entry.name.startswith("."):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _refuse_foreign(folder: Path) -> None:
    """Keep what no stage has made: only an artifact, or the start of one, is ever replaced."""
    try:
        inside = {entry.name for entry in folder.iterdir()}
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}", hint="name another folder with -o") from error
    if inside and KEY_FILE not in inside:
        raise ConfigError(
            f"{folder}: is there already and holds something else ({min(inside)}, …)",
            hint="name a folder with -o that is not there yet, or holds an earlier result",
        )


def _replace(final: Path, partial: Path) -> None:
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    partial.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def _refuse_inputs(final: Path, args: tuple[Any, ...]) -> None:
    """Keep a stage from replacing what it reads."""
    inputs = [value for arg in args for value in (arg.values() if isinstance(arg, dict) else [arg])]
    for value in inputs:
        if isinstance(value, Artifact) and value.path.resolve().is_relative_to(final.resolve()):
            raise ConfigError(f"{final}: is what this is made from", hint="name another folder with -o")
