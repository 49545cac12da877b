"""A seeded, stratified cut that depends on nothing but content.

It knows no files. It may import nothing of edgetune.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol, TypeVar


class Labelled(Protocol):
    """What can be cut: it has a class and a content."""

    @property
    def label(self) -> int:
        """Class, from 0."""

    @property
    def sha256(self) -> str:
        """Hash of the content."""


Item = TypeVar("Item", bound=Labelled)


def order(content: str, seed: int) -> str:
    """Return a key that sorts contents in a random order which the seed alone decides."""
    return hashlib.sha256(f"{seed}:{content}".encode()).hexdigest()


def cut(items: Sequence[Item], share: float, seed: int) -> tuple[list[Item], list[Item]]:
    """Divide items in two, each class by the same share.

    Equal contents stay together, and each class keeps at least one item on the first side. The order of
    the items and their paths do not matter, only seed, class and content.

    Args:
        items: what to cut.
        share: of each class that goes to the second side, rounded, at least one where there are two.
        seed: decides which.

    Returns:
        Both sides, in the order of the items.
    """
    classes: dict[int, dict[str, list[Item]]] = defaultdict(lambda: defaultdict(list))
    for item in items:
        classes[item.label][item.sha256].append(item)
    taken: set[tuple[int, str]] = set()
    for label, contents in classes.items():
        total = sum(map(len, contents.values()))
        wanted = max(1, round(share * total)) if total > 1 else 0
        count = 0
        for content in sorted(contents, key=lambda c: order(c, seed)):
            if count + len(contents[content]) > min(wanted, total - 1):
                continue
            taken.add((label, content))
            count += len(contents[content])
    first = [item for item in items if (item.label, item.sha256) not in taken]
    second = [item for item in items if (item.label, item.sha256) in taken]
    return first, second
