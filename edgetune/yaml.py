"""YAML 1.2 with line numbers, and validation whose complaints name file, line and key.

Nothing in a document is ever run or constructed: only mappings, lists and plain values come back.
It may import errors only.
"""

import difflib
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.scalarbool import ScalarBoolean

from edgetune.errors import ConfigError

LARGEST_BYTES = 1_000_000
LARGEST_VALUES = 20_000

Model = TypeVar("Model", bound=BaseModel)
Location = tuple[str | int, ...]
Rules = Callable[[dict[str, Any]], Iterable[tuple[Location, str]]]


class Complaint(NamedTuple):
    """One mistake in a file: where, and what to do about it."""

    path: str
    line: int
    key: str
    message: str


@dataclass(frozen=True)
class Document:
    """A YAML file as plain values, and the line (from 1) of each key path."""

    path: Path
    values: dict[str, Any]
    lines: dict[Location, int]

    def line(self, location: Location) -> int:
        """Return the line of a key path, or of the closest one above it."""
        while location and location not in self.lines:
            location = location[:-1]
        return self.lines.get(location, 1)


def load_yaml(path: Path, *, what: str, hint: str = "") -> Document:
    """Read a YAML 1.2 mapping.

    Args:
        path: the file.
        what: what it should be, for messages: "recipe", "profile".
        hint: what to do where there is no such file.

    Raises:
        ConfigError: no file, not UTF-8, not YAML, not a mapping, too large, or a tag that asks for code.
    """
    try:
        data = path.read_bytes()
        if len(data) > LARGEST_BYTES:
            raise ConfigError(f"{path}: {len(data)} bytes is too large for a {what}")
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 (byte 0x{data[error.start]:02x})") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", hint=hint) from error
    parser = YAML(typ="rt")
    try:
        node = parser.load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise ConfigError(f"{path}:{line}: not YAML: {error.problem or error.context}") from error
    except (YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    if not isinstance(node, CommentedMap):
        raise ConfigError(f"{path}:1: a {what} is a mapping of keys to values", hint=hint)
    lines: dict[Location, int] = {}
    values = _plain(node, (), lines, path)
    return Document(path, values, lines)


def _plain(node: Any, location: Location, lines: dict[Location, int], path: Path) -> Any:
    """Copy a parsed node into plain values and note the line of each key."""
    if len(lines) > LARGEST_VALUES or len(location) > 30:
        raise ConfigError(f"{path}: too deep or too many values (do anchors point at each other?)")
    tag = getattr(getattr(node, "tag", None), "value", None)
    if tag or not (node is None or isinstance(node, CommentedMap | CommentedSeq | str | int | float)):
        shown = f"the tag {tag}" if tag else f"a {type(node).__name__}"
        key = ".".join(map(str, location))
        raise ConfigError(
            f"{path}:{lines.get(location, 1)}: {key}: {shown} is not allowed; write plain values"
        )
    if isinstance(node, CommentedMap):
        out = {}
        for key in node:
            here = (*location, key if isinstance(key, int) else str(key))
            lines[here] = node.lc.key(key)[0] + 1 if key in (node.lc.data or {}) else lines.get(location, 1)
            out[str(key)] = _plain(node[key], here, lines, path)
        return out
    if isinstance(node, CommentedSeq):
        items = []
        for index, item in enumerate(node):
            here = (*location, index)
            lines[here] = node.lc.item(index)[0] + 1
            items.append(_plain(item, here, lines, path))
        return items
    return _scalar(node)


def _scalar(node: Any) -> Any:
    """Strip what the parser keeps to write a value back as it was."""
    if isinstance(node, ScalarBoolean):
        return bool(node)
    for plain in (int, float, str):
        if isinstance(node, plain) and type(node) is not bool:
            return plain(node)
    return node


def validate(model: type[Model], document: Document) -> Model:
    """Turn a document into a model.

    Raises:
        ConfigError: names file, line and key of the first mistake; the hint lists any others.
    """
    made, complaints = examine(model, document)
    if made is None:
        raise refused(complaints)
    return made


def examine(
    model: type[Model], document: Document, rules: Rules | None = None
) -> tuple[Model | None, list[Complaint]]:
    """Turn a document into a model, or say everything that is wrong with it, by line.

    Args:
        model: what it should be.
        document: as it was read.
        rules: what else to hold its plain values against; they must bear any value, and are asked in any case.
    """
    made, found = None, []
    try:
        made = model.model_validate(_tuples(document.values))
    except ValidationError as error:
        found = [_complaint(model, document, detail) for detail in error.errors()]
    for location, message in rules(document.values) if rules else ():
        key = ".".join(map(str, location))
        found.append(Complaint(str(document.path), document.line(location), key, message))
    found.sort(key=lambda one: one.line)
    return (None if found else made), found


def refused(complaints: Sequence[Complaint]) -> ConfigError:
    """Return the error that names the first complaint; its hint lists the others."""
    (path, line, key, message), *rest = complaints
    others = [f"also line {one.line}: {one.key}: {one.message}" for one in rest]
    return ConfigError(f"{path}:{line}: {key}: {message}", hint="\n".join(others))


def _tuples(value: Any) -> Any:
    """Strict models take tuples, YAML has lists."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    return value


def _complaint(model: type[BaseModel], document: Document, detail: ErrorDetails) -> Complaint:
    location: Location = detail["loc"]
    key = ".".join(str(part) for part in location)
    complain = Complaint(str(document.path), document.line(location), key or document.path.name, "")
    if detail["type"] == "extra_forbidden":
        known = _keys_at(model, location[:-1])
        close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'?" if close else f"known here: {', '.join(known)}"
        return complain._replace(message=f"unknown key; {hint}")
    if detail["type"] == "missing":
        return complain._replace(message=f"missing; every {model.__name__.lower()} needs it")
    got = detail.get("input")
    shown = f" (got {got!r})" if isinstance(got, str | int | float | bool | None) else ""
    quote = isinstance(got, int | float) and detail["type"] == "string_type"
    message = detail["msg"].removeprefix("Value error, ").replace("valid tuple", "list")
    message = f"{message[0].lower()}{message[1:]}{shown}{': write it in quotes' if quote else ''}"
    return complain._replace(message=message)


def _keys_at(model: type[BaseModel], location: Location) -> list[str]:
    """Return the keys that a model knows at a place inside it."""
    here: Any = model
    for part in location:
        if isinstance(here, type) and issubclass(here, BaseModel):
            here = here.model_fields[str(part)].annotation if str(part) in here.model_fields else None
        elif typing.get_origin(here) in (dict, list, tuple):
            here = typing.get_args(here)[-1]
        if typing.get_origin(here) in (typing.Union, types.UnionType):
            models = [a for a in typing.get_args(here) if isinstance(a, type) and issubclass(a, BaseModel)]
            here = models[0] if models else None
    if isinstance(here, type) and issubclass(here, BaseModel):
        return [name for name, field in here.model_fields.items() if not field.exclude]
    return []
