"""The error tree: an exit code per class, and hints that name what is near."""

import inspect

from edgetune import errors
from edgetune.errors import EdgetuneError, nearest


def classes() -> list[type[EdgetuneError]]:
    found = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, EdgetuneError)]
    return [c for c in found if c is not EdgetuneError]


def test_every_class_has_an_exit_code_of_its_own() -> None:
    codes = [c.exit_code for c in classes()]
    assert len(codes) >= 4
    assert len(set(codes)) == len(codes)
    assert not {0, 1, 2, 7, 130} & set(codes), "those mean success, bug, usage, failed gate, interrupt"


def test_the_tree_in_the_docstring_is_complete() -> None:
    drawn = errors.__doc__ or ""
    for cls in classes():
        assert any(cls.__name__ in line and str(cls.exit_code) in line for line in drawn.splitlines()), cls


def test_nearest_suggests_or_lists() -> None:
    assert nearest("mobilenet_v22", ["mobilenet_v2", "vgg16_bn"]) == "did you mean 'mobilenet_v2'?"
    assert nearest("xyz", ["b", "a"]) == "known: a, b"
