"""The cut: each item on one side, each class by its share, and nothing but content and seed decides."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from edgetune.data.cut import cut


@dataclass(frozen=True)
class Item:
    label: int
    sha256: str
    name: int = 0


items = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60)), max_size=80).map(
    lambda pairs: [Item(label, str(content), index) for index, (label, content) in enumerate(pairs)]
)
shares = st.floats(0.05, 0.45)


@given(items, shares, st.integers(0, 99))
def test_every_item_is_on_exactly_one_side(listed: list[Item], share: float, seed: int) -> None:
    first, second = cut(listed, share, seed)
    assert sorted([*first, *second], key=lambda i: i.name) == listed


@given(items, shares, st.integers(0, 99))
def test_equal_contents_stay_together(listed: list[Item], share: float, seed: int) -> None:
    first, second = cut(listed, share, seed)
    assert not {item.sha256 for item in first} & {item.sha256 for item in second}


@given(items, shares, st.integers(0, 99))
def test_each_class_keeps_some_and_gives_no_more_than_its_share(
    listed: list[Item], share: float, seed: int
) -> None:
    first, second = cut(listed, share, seed)
    for label in {item.label for item in listed}:
        total, taken = (sum(item.label == label for item in side) for side in (listed, second))
        assert any(item.label == label for item in first)
        assert taken <= max(1, round(share * total))


@given(st.integers(5, 200), st.integers(0, 9))
def test_an_addition_moves_few(count: int, seed: int) -> None:
    listed = [Item(0, str(index)) for index in range(count)]
    before, after = cut(listed, 0.2, seed)[1], cut([*listed, Item(0, "new")], 0.2, seed)[1]
    assert len(set(before) ^ set(after)) <= 2


@given(items, shares, st.randoms())
def test_the_order_does_not_matter(listed: list[Item], share: float, random: object) -> None:
    shuffled = list(listed)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert set(cut(listed, share, 1)[1]) == set(cut(shuffled, share, 1)[1])


@given(st.lists(st.integers(2, 60), min_size=1, max_size=4), shares, st.integers(0, 9))
def test_each_class_gives_its_share_and_keeps_some(counts: list[int], share: float, seed: int) -> None:
    listed = [Item(label, f"{label}-{i}") for label, count in enumerate(counts) for i in range(count)]
    first, second = cut(listed, share, seed)
    for label, count in enumerate(counts):
        taken = sum(item.label == label for item in second)
        assert taken == max(1, round(share * count))
        assert sum(item.label == label for item in first) == count - taken > 0


def test_a_class_of_one_is_kept() -> None:
    assert cut([Item(0, "a")], 0.4, 0) == ([Item(0, "a")], [])


def test_an_item_of_another_class_changes_nothing() -> None:
    listed = [Item(0, str(i)) for i in range(20)]
    before = cut(listed, 0.3, 0)[1]
    after = cut([*listed, Item(1, "x"), Item(1, "y")], 0.3, 0)[1]
    assert [item for item in after if item.label == 0] == before
