"""Texts with their classes: rows of a table (.csv, .tsv, .jsonl), or class folders of .txt files; UTF-8 alone.

A row's sample is called `FILE:LINE`. The text of a sample is the field in that line with the sample's digest, so
nobody needs to know afterwards which column it was. It knows no tokens and no network. It may import errors,
progress, recipe and this package's files.
"""

import codecs
import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from edgetune.data.files import SPLIT_NAMES, Listing, Verdict, list_images
from edgetune.errors import ConfigError, nearest
from edgetune.progress import Progress
from edgetune.recipe import DataSection

TABLES = frozenset((".csv", ".tsv", ".jsonl"))
ENDINGS = frozenset((".txt",))
LAYOUT = (
    "a table (.csv, .tsv, .jsonl) with a text and a label column, a folder with train.csv and test.csv or val.csv, "
    "or one folder of .txt files per class"
)
# What the columns are usually called, the most telling first.
TEXT_NAMES = (
    "text",
    "sentence",
    "content",
    "review",
    "comment",
    "document",
    "body",
    "utterance",
    "query",
    "title",
)
LABEL_NAMES = ("label", "class", "category", "target", "sentiment", "intent", "labels", "y")
ROW = re.compile(r"(?s)(.+\.(?:csv|tsv|jsonl)):(\d+)")
# Encodings that a file which is no UTF-8 most often has, for the hint alone.
OTHERS = ("gb18030", "shift_jis", "cp1252")
_MOST_FIELD = 1 << 24

Found = dict[str, list[tuple[str, Verdict]]]


def list_texts(root: Path, section: DataSection, progress: Progress) -> tuple[Path, Listing, Found]:
    """Find the texts of a table or folder and look into each.

    Args:
        root: the table, or the folder.
        section: names the columns, where they are not found by themselves.
        progress: counts texts.

    Returns:
        The folder that the samples' paths begin at, what lies in it, and by split class and verdict of each text.

    Raises:
        ConfigError: nothing there, no such column, an encoding other than UTF-8, or a table that is not one.
    """
    tables = _tables(root)
    if tables:
        found: Found = {}
        for split, path in tables:
            found.setdefault(split, []).extend(_look_into_table(path, section, progress))
        return (root if root.is_dir() else root.parent), Listing(), found
    if section.text or section.label:
        raise ConfigError(f"{root}: no table here, and data.text and data.label name columns of one")
    listing = list_images(root, ENDINGS, LAYOUT)
    if not listing.classes:
        raise ConfigError(f"{root}: no text in a class folder, and no table", hint=f"needed: {LAYOUT}")
    return root, listing, _look_into_files(listing, progress)


def _tables(root: Path) -> list[tuple[str, Path]]:
    """Return the tables to read, each with its split; none where there are class folders."""
    if root.is_file():
        if root.suffix.lower() not in TABLES:
            raise ConfigError(f"{root}: no table of texts", hint=f"needed: {LAYOUT}")
        return [("", root)]
    if not root.is_dir():
        raise ConfigError(f"{root}: no such file or folder", hint=f"name {LAYOUT}")
    inside = sorted(path for path in root.iterdir() if path.suffix.lower() in TABLES and path.is_file())
    splits = {path: SPLIT_NAMES[path.stem.lower()] for path in inside if path.stem.lower() in SPLIT_NAMES}
    if "train" in splits.values():
        held_out = len(set(splits.values())) > 1
        return [(split if held_out else "", path) for path, split in splits.items()]
    if len(inside) > 1:
        names = ", ".join(path.name for path in inside)
        raise ConfigError(
            f"{root}: holds {names}, and none is train.csv", hint=f"name one of them; needed: {LAYOUT}"
        )
    return [("", path) for path in inside]


def _look_into_table(path: Path, section: DataSection, progress: Progress) -> list[tuple[str, Verdict]]:
    columns, rows = _table(path)
    text = _column(path, columns, section.text, TEXT_NAMES, "text")
    label = _column(path, columns, section.label, LABEL_NAMES, "label", but=text)
    if text == label:
        raise ConfigError(f"{path}: data.text and data.label are the same column {text!r}")
    at, of = columns.index(text), columns.index(label)
    found = []
    mtime_ns = path.stat().st_mtime_ns
    progress.begin("read texts", len(rows), "text")
    for line, fields in rows.items():
        name, place = fields[of].strip() if len(fields) > of else "", f"{path.name}:{line}"
        content = fields[at].strip() if len(fields) > at else ""
        reason = _why_unreadable(columns, fields, name, content)
        size = len(content.encode())
        found.append((name, Verdict(place, size, mtime_ns, digest_of(content), reason=reason)))
        progress.advance()
    progress.end()
    # A class of which nothing can be read is none.
    known = {name for name, verdict in found if not verdict.reason}
    return [(name if name in known else min(known, default=""), verdict) for name, verdict in found]


def _why_unreadable(columns: Sequence[str], fields: Sequence[str], name: str, content: str) -> str:
    if len(fields) == 1 and len(columns) > 1 and fields[0].startswith("\0"):
        return fields[0][1:]
    if len(fields) != len(columns):
        return f"{len(fields)} fields, where there are {len(columns)} columns"
    return "" if name and content else "empty" if not content else "without a label"


def _column(
    path: Path, columns: Sequence[str], named: str, usual: Sequence[str], what: str, but: str = ""
) -> str:
    """Return the column that is named, or the first with a usual name; in a table of two, the other one."""
    if named and named not in columns:
        raise ConfigError(f"{path}: data.{what}: no column {named!r}", hint=nearest(named, columns))
    lower = {column.strip().lower(): column for column in columns if column != but}
    found = named or next((lower[name] for name in usual if name in lower), "")
    if not found and but and len(columns) == 2:
        found = next(iter(lower.values()))
    if not found:
        raise ConfigError(
            f"{path}: none of the columns {', '.join(map(repr, columns))} is called {' or '.join(usual[:4])}",
            hint=f"name it: data.{what}: COLUMN; the first line must hold the columns' names",
        )
    return found


def _look_into_files(listing: Listing, progress: Progress) -> Found:
    progress.begin("read texts", sum(map(len, listing.files.values())), "text")
    found: Found = {}
    for split, files in listing.files.items():
        for file in files:
            path = Path(file.entry.path)
            try:
                status = path.stat()
                content, reason = _decoded(path).strip(), ""
            except OSError as error:
                content, reason = "", error.strerror or "cannot be read"
            reason = reason or ("" if content else "empty")
            verdict = Verdict(
                file.path, status.st_size, status.st_mtime_ns, digest_of(content), reason=reason
            )
            found.setdefault(split, []).append((file.name, verdict))
            progress.advance()
    progress.end()
    return found


def text_of(root: Path, path: str, sha256: str) -> str:
    """Return the text of a sample.

    Raises:
        ConfigError: it is not there any more, or has changed.
    """
    row = ROW.fullmatch(path)
    try:
        if row:
            _, rows = _table(root / row[1])
            fields: Sequence[str] = rows.get(int(row[2]), ())
        else:
            fields = [_decoded(root / path)]
    except OSError as error:
        raise ConfigError(
            f"{root / path}: {error.strerror}", hint="restore it, or run again without it"
        ) from error
    for field in fields:
        if digest_of(field.strip()) == sha256:
            return field.strip()
    raise ConfigError(f"{root / path}: changed since it was looked at", hint="run again: it is read anew")


def read_text(path: Path) -> str:
    """Read the text of a file.

    Raises:
        ConfigError: it is empty, no UTF-8, or cannot be read.
    """
    try:
        found = _decoded(path).strip()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    if not found:
        raise ConfigError(f"{path}: empty")
    return found


def digest_of(text: str) -> str:
    """Hash a text."""
    return hashlib.sha256(text.encode()).hexdigest()


Table = tuple[tuple[str, ...], dict[int, tuple[str, ...]]]


def _table(path: Path) -> Table:
    """Return the columns of a table, and its rows by the number of their first line."""
    status = path.stat()
    return _read_table(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)
def _read_table(path: Path, mtime_ns: int, size: int) -> Table:
    del mtime_ns, size
    content = _decoded(path)
    if path.suffix.lower() == ".jsonl":
        return _of_json_lines(path, content)
    csv.field_size_limit(_MOST_FIELD)
    reader = csv.reader(
        io.StringIO(content, newline=""),
        dialect="excel-tab" if path.suffix.lower() == ".tsv" else "excel",
        strict=True,
    )
    rows = dict(_numbered(path, reader))
    if not rows:
        raise ConfigError(f"{path}: is empty", hint=f"needed: {LAYOUT}")
    first = min(rows)
    columns = rows.pop(first)
    return columns, rows


def _numbered(path: Path, reader: Any) -> Iterator[tuple[int, tuple[str, ...]]]:
    line = 1
    try:
        for fields in reader:
            if fields:
                yield line, tuple(fields)
            line = reader.line_num + 1
    except csv.Error as error:
        raise ConfigError(
            f"{path}:{line}: {error}", hint='is a quotation mark missing there? Texts with one double it: ""'
        ) from error


def _of_json_lines(path: Path, content: str) -> Table:
    columns: dict[str, None] = {}
    objects: dict[int, dict[str, str] | str] = {}
    for line, text in enumerate(content.split("\n"), start=1):
        if not text.strip():
            continue
        try:
            value = json.loads(text)
        except ValueError as error:
            objects[line] = f"not JSON ({error})"
            continue
        if not isinstance(value, dict):
            objects[line] = "not a JSON object"
            continue
        objects[line] = {key: "" if one is None else str(one) for key, one in value.items()}
        columns.update(dict.fromkeys(value))
    if not columns:
        raise ConfigError(
            f"{path}: no line is a JSON object", hint='each is one: {"text": "...", "label": "..."}'
        )
    # A reason in place of the fields: no text begins with NUL.
    return tuple(columns), {
        line: (f"\0{one}",) if isinstance(one, str) else tuple(one.get(name, "") for name in columns)
        for line, one in objects.items()
    }


def _decoded(path: Path) -> str:
    """Read a file as UTF-8, with or without BOM.

    Raises:
        ConfigError: it is in another encoding; names the first byte that tells, and its line.
    """
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ConfigError(
            f"{path}:1: byte 0x{data[0]:02X}: UTF-16, not UTF-8",
            hint=f"iconv -f UTF-16 -t UTF-8 {path} > NEW",
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        hint = next((name for name in OTHERS if _is_in(data, name)), "CP1252")
        raise ConfigError(
            f"{path}:{line}: byte 0x{data[error.start]:02X} at {error.start} is not UTF-8",
            hint=f"if it is {hint.upper()}: iconv -f {hint.upper()} -t UTF-8 {path} > NEW",
        ) from error


def _is_in(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True
