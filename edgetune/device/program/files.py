"""Reads and writes files so that a crash or a full disk never leaves half of one. Standard library only."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from .problem import Problem


def sha256_of(path: str) -> str:
    """Hash a file's content."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as handle:
        for block in iter(lambda: handle.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def write_bytes(path: str, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        Problem: the disk is full, or the folder cannot be written.
    """
    scratch = f"{path}.partial"
    try:
        with Path(scratch).open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        Path(scratch).replace(path)
    except OSError as error:
        with suppress(OSError):
            Path(scratch).unlink()
        raise Problem(
            f"{path}: {error.strerror}",
            "free some space or mend the folder's permissions; run again",
        ) from error


def write_json(path: str, value: Any) -> None:
    """Write a value as JSON, whole or not at all."""
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def read_json(path: str) -> Any:
    """Read JSON.

    Raises:
        Problem: there is no such file, or it is cut or damaged.
    """
    try:
        with Path(path).open(encoding="utf-8") as handle:
            return json.load(handle)
    except OSError as error:
        raise Problem(f"{path}: {error.strerror}", code=5) from error
    except ValueError as error:
        raise Problem(f"{path}: not JSON, or cut: {error}", "delete it and run again", 5) from error
