"""Makes classes that have what a recorded version of TensorRT's Python bindings has, and nothing else.

A recording (`tensorrt-api/VERSION.json`) names classes, methods with the signatures that pybind11 prints,
properties and members of enums. Behaviour is written once, for all versions; `forge` gives each version's class
the part of it that was recorded. As with the real bindings, an attribute that a version lacks is an
AttributeError for reading and writing alike, a call that fits no overload (by argument names, counts, and types
as far as the signature tells) is a TypeError, enums neither are nor become integers by themselves, and a
subclass has to call its base's `__init__`.

Not checked, since it is not recorded: which properties are read-only (those that the tests touch are written
down in the behaviour), types that signatures only describe (`capsule`, `object`, `buffer` beyond bytes-like),
values of enums (they are shuffled, so that nobody relies on them), and what a call does (see standin_tensorrt).
"""

import random
import re
from functools import cache
from types import ModuleType
from typing import Any

_INTEGERS = {"int", "typing.SupportsInt"}
_BUFFERS = {"buffer", "typing_extensions.Buffer"}


class Unrecorded(AttributeError):
    """This version does not have that."""


def enum(name: str, members: list[str], seed: str) -> type:
    """An enum as pybind11 makes them, with numbers that differ by version."""

    def init(self: Any, name: str, value: int) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "value", value)

    made = type(
        name,
        (),
        {
            "__init__": init,
            "__int__": lambda self: self.value,
            "__repr__": lambda self: f"<{name}.{self.name}: {self.value}>",
        },
    )
    values = list(range(len(members)))
    random.Random(seed + name).shuffle(values)
    for member, value in zip(members, values, strict=True):
        setattr(made, member, made(member, value))
    return made


@cache
def arguments_of(signature: str) -> list[tuple[str, str, bool]]:
    """Name, type and whether there is a default, of each argument after self."""
    inside = signature[signature.index("(") + 1 : signature.rindex(")")]
    parts, depth, start = [], 0, 0
    for index, character in enumerate(inside + ","):
        depth += (character in "[(<") - (character in "])>")
        if character == "," and depth == 0:
            parts.append(inside[start:index].strip())
            start = index + 1
    found = []
    for part in parts:
        match = re.fullmatch(r"(\w+)(?:: (.*?))?(?: = (.*))?", part)
        if match and match.group(1) != "self":
            found.append((match.group(1), match.group(2) or "", match.group(3) is not None))
    return found


class _Pybind(type):
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        made = super().__call__(*args, **kwargs)
        if "_constructed" not in made.__dict__:
            raise TypeError(
                f"tensorrt.tensorrt.{cls.__name__}.__init__() must be called when overriding __init__"
            )
        return made


class Version:
    """One recorded version and the module that stands for it."""

    def __init__(self, api: dict[str, Any]) -> None:
        self.api = api
        self.text: str = api["version"]
        self.module = ModuleType("tensorrt")
        self.module.__dict__["__version__"] = self.text
        for name, members in api["enums"].items():
            setattr(self.module, name, enum(name, members, self.text))
        self.module.__dict__["__getattr__"] = self._unwritten

    def _unwritten(self, name: str) -> type:
        """A class that was recorded, and of which nobody wrote what it does; made when it is asked for."""
        if name in self.api["classes"]:
            return self.forge(name, type("Nothing", (), {}))
        raise Unrecorded(f"module 'tensorrt' has no attribute {name!r}")

    def forge(self, name: str, behaviour: type) -> type:
        """Return the class of that name with what was recorded of it, `behaviour` where there is any."""
        record = self.api["classes"][name]
        known = {key: value for key, value in vars(behaviour).items() if key.startswith("_")}
        space = {
            k: v for k, v in known.items() if k not in ("__dict__", "__weakref__", "__doc__", "__module__")
        }
        for method, overloads in record["methods"].items():
            if method != "__init__":
                space[method] = self._method(name, method, overloads, vars(behaviour).get(method))
        for prop in record["properties"]:
            given = vars(behaviour).get(prop)
            space[prop] = given if isinstance(given, property) else _stored(prop)
        for nested, members in record["enums"].items():
            # Logger.Severity is ILogger.Severity.
            above = getattr(self.module.ILogger, nested, None) if name == "Logger" else None
            space[nested] = above or enum(nested, members, self.text + name)
        space["__init__"] = self._constructor(name, record["methods"].get("__init__", []), behaviour)
        made = _Pybind(name, (), space)
        made.__setattr__ = _guarded(made)  # type: ignore[method-assign,assignment]
        made.__getattr__ = _missing  # type: ignore[attr-defined]
        setattr(self.module, name, made)
        return made

    def make(self, name: str, *arguments: Any) -> Any:
        """An object that Python cannot construct, but gets from the library."""
        made = object.__new__(getattr(self.module, name))
        made._init(*arguments)
        return made

    def _constructor(self, owner: str, overloads: list[str], behaviour: type) -> Any:
        def init(self_: Any, *args: Any, **kwargs: Any) -> None:
            if not overloads:
                raise TypeError(f"tensorrt.tensorrt.{owner}: No constructor defined!")
            signatures = map(arguments_of, overloads)
            bound = next((b for s in signatures if (b := self._bind(s, args, kwargs)) is not None), None)
            if bound is None:
                raise TypeError(f"__init__(): incompatible constructor arguments: {args} {kwargs}")
            self_.__dict__["_constructed"] = True
            if hasattr(behaviour, "_init"):
                behaviour._init(self_, **bound)

        return init

    def call(self, owner: str, receiver: Any, method: str, *arguments: Any) -> Any:
        """Call back into a subclass that Python wrote, as the library does: what it has to have is recorded."""
        overloads = self.api["classes"][owner]["methods"][method]
        assert any(len(arguments_of(text)) == len(arguments) for text in overloads), (owner, method)
        implemented = getattr(type(receiver), method)
        if implemented is getattr(getattr(self.module, owner), method):
            raise RuntimeError(f'Tried to call pure virtual function "{owner}::{method}"')
        return implemented(receiver, *arguments)

    def _method(self, owner: str, name: str, overloads: list[str], does: Any) -> Any:
        def method(self_: Any, *args: Any, **kwargs: Any) -> Any:
            signatures = map(arguments_of, overloads)
            bound = next((b for s in signatures if (b := self._bind(s, args, kwargs)) is not None), None)
            if bound is None:
                raise TypeError(
                    f"{name}(): incompatible function arguments. The following argument types are supported:\n"
                    + "\n".join(overloads)
                    + f"\n\nInvoked with: {args} {kwargs}"
                )
            if does is None:
                raise NotImplementedError(f"the stand-in does not say what {owner}.{name} does")
            return does(self_, **bound)

        method.__name__ = name
        return method

    def _bind(self, signature: list[tuple[str, str, bool]], args: tuple, kwargs: dict) -> dict | None:
        names = [name for name, _, _ in signature]
        if len(args) > len(names) or any(k not in names[len(args) :] for k in kwargs):
            return None
        bound = dict(zip(names, args, strict=False)) | kwargs
        for name, kind, default in signature:
            if name in bound:
                if not ((bound[name] is None and default) or self._fits(bound[name], kind)):
                    return None
            elif not default:
                return None
        return bound

    def _fits(self, value: Any, kind: str) -> bool:
        if kind in _INTEGERS:
            return isinstance(value, int)
        if kind == "str":
            return isinstance(value, str)
        if kind == "bool":
            return isinstance(value, bool)
        if kind in _BUFFERS:
            return isinstance(value, (bytes, bytearray, memoryview))
        plain = kind.split("::")[-1]
        known = getattr(self.module, plain, None)
        if plain == "Dims":  # sequences of integers become Dims
            return isinstance(value, (known, list, tuple))
        if isinstance(known, type):
            return isinstance(value, known)
        return True


def _stored(name: str) -> property:
    def get(self: Any) -> Any:
        return self.__dict__.get(f"_{name}")

    def put(self: Any, value: Any) -> None:
        self.__dict__[f"_{name}"] = value

    return property(get, put)


def _guarded(owner: type) -> Any:
    def put(self: Any, name: str, value: Any) -> None:
        # A class that Python derives has a dictionary, and so takes anything.
        if name.startswith("_") or hasattr(type(self), name) or type(self) is not owner:
            object.__setattr__(self, name, value)
        else:
            raise Unrecorded(f"'tensorrt.tensorrt.{owner.__name__}' object has no attribute {name!r}")

    return put


def _missing(self: Any, name: str) -> Any:
    raise Unrecorded(f"'tensorrt.tensorrt.{type(self).__name__}' object has no attribute {name!r}")


def host_memory(version: Version) -> type:
    """Bytes that have the buffer protocol and nothing else of bytes: no length, no index, no methods."""
    names = {n for n in dir(bytes) if not n.startswith("_")}

    def missing(name: str) -> property:
        def get(self: Any) -> Any:
            raise AttributeError(f"'tensorrt.tensorrt.IHostMemory' object has no attribute {name!r}")

        return property(get)

    space: dict[str, Any] = {name: missing(name) for name in names}
    space |= dict.fromkeys(("__len__", "__getitem__", "__iter__", "__contains__", "__add__"), None)
    space["nbytes"] = property(lambda self: bytes.__len__(self))
    assert version.api["classes"]["IHostMemory"]["properties"] == ["dtype", "nbytes"]
    return type("IHostMemory", (bytes,), space)
