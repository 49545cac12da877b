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

    Equal contents stay together, and each class keeps at least one item on the first side. A content that
    two classes claim stays there, too: it can judge nothing. The order of the items and their paths do not
    matter, only seed, class and content.

    Args:
        items: what to cut.
        share: of each class that goes to the second side, rounded, at least one where there are two.
        seed: decides which.

    Returns:
        Both sides, in the order of the items.
    """
    classes: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    claims: dict[str, set[int]] = defaultdict(set)
    for item in items:
        classes[item.label][item.sha256] += 1
        claims[item.sha256].add(item.label)
    taken: set[str] = set()
    for counts in classes.values():
        total = sum(counts.values())
        room = min(max(1, round(share * total)), total - 1)
        for content in sorted(counts, key=lambda content: order(content, seed)):
            if len(claims[content]) == 1 and counts[content] <= room:
                taken.add(content)
                room -= counts[content]
    first = [item for item in items if item.sha256 not in taken]
    second = [item for item in items if item.sha256 in taken]
    return first, second
