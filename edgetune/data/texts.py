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

from edgetune.data.files import SPLIT_NAMES, Listing, Verdict, list_any, list_images
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
# Characters of a column's name that a message shows: without a first line of names, it is a whole text.
SHOWN = 32
# Half of a character, which JSON can write and UTF-8 cannot.
_HALF = re.compile("[\ud800-\udfff]")

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
    tables, listing = _tables(root)
    if tables:
        found: Found = {}
        for split, path in tables.items():
            found[split] = _look_into_table(path, section.text, section.label, progress)
        return (root if root.is_dir() else root.parent), listing, found
    if section.text or section.label:
        raise ConfigError(f"{root}: no table here, and data.text and data.label name columns of one")
    listing = list_images(root, ENDINGS, LAYOUT)
    if not listing.classes:
        raise ConfigError(f"{root}: no text in a class folder, and no table", hint=f"needed: {LAYOUT}")
    return root, listing, _look_into_files(listing, progress)


def list_bare_texts(root: Path, column: str, progress: Progress) -> tuple[Path, list[Verdict]]:
    """Find texts whose classes do not count: the rows of one table, or all .txt files of a folder and below.

    Args:
        root: the table, or the folder.
        column: of the table, that holds the texts; empty: found by its name.
        progress: counts texts.

    Returns:
        The folder that the texts' paths begin at, and the verdict on each.

    Raises:
        ConfigError: as `list_texts`.
    """
    if root.is_dir():
        found = _look_into_files(list_any(root, ENDINGS), progress)
        return root, [verdict for looked in found.values() for _, verdict in looked]
    if root.suffix.lower() not in TABLES:
        raise ConfigError(
            f"{root}: no table of texts", hint="name a .csv, .tsv or .jsonl file, or a folder of .txt"
        )
    try:
        return root.parent, [verdict for _, verdict in _look_into_table(root, column, None, progress)]
    except OSError as error:
        raise ConfigError(f"{root}: {error.strerror}") from error


def _tables(root: Path) -> tuple[dict[str, Path], Listing]:
    """Return the tables to read by their splits, and what is left out; none where there are class folders."""
    if root.is_file():
        if root.suffix.lower() not in TABLES:
            raise ConfigError(f"{root}: no table of texts", hint=f"needed: {LAYOUT}")
        return {"": root}, Listing()
    if not root.is_dir():
        raise ConfigError(f"{root}: no such file or folder", hint=f"name {LAYOUT}")
    inside = sorted(path for path in root.iterdir() if path.suffix.lower() in TABLES and path.is_file())
    splits: dict[str, Path] = {}
    for path in inside:
        split = SPLIT_NAMES.get(path.stem.lower(), "")
        if split and split in splits:
            raise ConfigError(
                f"{root}: {splits[split].name} and {path.name} are both {split}", hint="keep one"
            )
        splits |= {split: path} if split else {}
    if "train" in splits:
        if len(splits) == 1:
            splits = {"": splits["train"]}
        return splits, Listing(unused=[path.name for path in inside if path not in splits.values()])
    # A table beside class folders may describe them; it does not hold them.
    if not inside or any(root.glob("*/*.txt")):
        return {}, Listing()
    if len(inside) > 1:
        names = ", ".join(path.name for path in inside)
        raise ConfigError(
            f"{root}: holds {names}, and none is train.csv", hint=f"name one of them; needed: {LAYOUT}"
        )
    return {"": inside[0]}, Listing()


def _look_into_table(
    path: Path, text: str, label: str | None, progress: Progress
) -> list[tuple[str, Verdict]]:
    """Look into each row; `label` None: classes do not count."""
    columns, rows = _table(path)
    text = _column(path, columns, text, TEXT_NAMES, "text")
    label = text if label is None else _column(path, columns, label, LABEL_NAMES, "label", but=text)
    at, of = columns.index(text), columns.index(label)
    found = []
    mtime_ns = path.stat().st_mtime_ns
    progress.begin("read texts", len(rows), "text")
    for line, row in rows.items():
        name, content, reason = "", "", row if isinstance(row, str) else ""
        if not isinstance(row, str):
            name, content = row[of].strip(), row[at].strip()
            reason = "" if name and content else "empty" if not content else "without a label"
        verdict = Verdict(
            f"{path.name}:{line}", len(content.encode()), mtime_ns, digest_of(content), reason=reason
        )
        found.append((name, verdict))
        progress.advance()
    progress.end()
    if of == at:
        return [("", verdict) for _, verdict in found]
    # A class of which nothing can be read is none.
    known = {name for name, verdict in found if not verdict.reason}
    return [(name if name in known else min(known, default=""), verdict) for name, verdict in found]


def _column(
    path: Path, columns: Sequence[str], named: str, usual: Sequence[str], what: str, but: str = ""
) -> str:
    """Return the column that is named, or the first with a usual name; in a table of two, the other one."""
    if named and named not in columns:
        raise ConfigError(f"{path}: data.{what}: no column {named!r}", hint=nearest(named, columns))
    if named and named == but:
        raise ConfigError(f"{path}: data.text and data.label are the same column {named!r}")
    lower = {column.strip().lower(): column for column in columns if column != but}
    found = named or next((lower[name] for name in usual if name in lower), "")
    if not found and (len(columns) == 2 if but else len(columns) == 1 and columns[0].isidentifier()):
        found = next(iter(lower.values()), "")
    if not found:
        first = ", ".join(repr(column[:SHOWN] + "..." * (len(column) > SHOWN)) for column in columns)
        apart = next((sign for sign in ";|\t" if len(columns) == 1 and sign in columns[0]), "")
        raise ConfigError(
            f"{path}: none of the columns {first} is called {' or '.join(usual[:4])}",
            hint=f"fields must be apart by commas (.csv) or tabs (.tsv), not by {apart!r}"
            if apart
            else f"name it: data.{what}: COLUMN; the first line must hold the columns' names",
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
    try:
        found = find_text(root, path, sha256)
    except OSError as error:
        raise ConfigError(
            f"{root / path}: {error.strerror}", hint="restore it, or run again without it"
        ) from error
    if found is None:
        raise ConfigError(f"{root / path}: changed since it was looked at", hint="run again: it is read anew")
    return found


def find_text(root: Path, path: str, sha256: str) -> str | None:
    """Return the text of a sample, None where another one stands there now.

    Raises:
        OSError: its file cannot be read.
        ConfigError: its file is no UTF-8 or no table any more.
    """
    row = ROW.fullmatch(path)
    fields = _table(root / row[1])[1].get(int(row[2]), "") if row else (_decoded(root / path),)
    texts = () if isinstance(fields, str) else (field.strip() for field in fields)
    return next((text for text in texts if digest_of(text) == sha256), None)


def texts_of(path: Path, column: str = "") -> list[tuple[str, str]]:
    """Return where each text of a file stands, and the text: the rows of a table, else all of it; empty ones, too.

    Raises:
        ConfigError: no UTF-8, no table, no such column, or it cannot be read.
    """
    try:
        if path.suffix.lower() not in TABLES:
            return [(str(path), _decoded(path).strip())]
        columns, rows = _table(path)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    try:
        found = column if column in columns else _column(path, columns, "", TEXT_NAMES, "text")
    except ConfigError as error:
        raise ConfigError(error.message, hint="its first line must call the column of texts text") from None
    at = columns.index(found)
    return [(f"{path}:{line}", "" if isinstance(row, str) else row[at].strip()) for line, row in rows.items()]


def digest_of(text: str) -> str:
    """Hash a text."""
    return hashlib.sha256(text.encode()).hexdigest()


# The columns, and by the number of its first line each row, or why it is none.
Table = tuple[tuple[str, ...], dict[int, tuple[str, ...] | str]]


def _table(path: Path) -> Table:
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
    columns = rows.pop(min(rows))
    wrong = f"fields, where there are {len(columns)} columns"
    return columns, {
        line: fields if len(fields) == len(columns) else f"{len(fields)} {wrong}"
        for line, fields in rows.items()
    }


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
        if text.strip():
            objects[line] = found = _of_json(text)
            columns.update(dict.fromkeys(found if isinstance(found, dict) else ()))
    if not columns:
        raise ConfigError(
            f"{path}: no line is a JSON object", hint='each is one: {"text": "...", "label": "..."}'
        )
    return tuple(columns), {
        line: one if isinstance(one, str) else tuple(one.get(name, "") for name in columns)
        for line, one in objects.items()
    }


def _of_json(text: str) -> dict[str, str] | str:
    """Return a line's object with everything in it as text, or why it is none."""
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"not JSON ({error})"
    if not isinstance(value, dict):
        return "not a JSON object"
    # Of lists and objects in it nobody asks: they hold no text.
    plain = {
        key: "" if one is None or isinstance(one, list | dict) else str(one) for key, one in value.items()
    }
    return "half a character" if any(_HALF.search(part) for pair in plain.items() for part in pair) else plain


def _decoded(path: Path) -> str:
    return decoded(path.read_bytes(), path)


def decoded(data: bytes, path: Path) -> str:
    """Read bytes as UTF-8, with or without BOM.

    Raises:
        ConfigError: they are in another encoding; names the first byte that tells, and its line.
    """
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
