"""Subsets hold every class in its share; labels are told apart by the names of their classes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.data.folders import Sample
from edgetune.data.subset import chosen, relabelled
from edgetune.errors import ConfigError


@given(st.lists(st.integers(0, 4), min_size=1, max_size=120), st.integers(0, 130))
def test_a_subset_holds_every_class_in_its_share(labels: list[int], images: int) -> None:
    samples = [Sample(f"{index}.png", label, "", 0, 0) for index, label in enumerate(labels)]
    taken = chosen(samples, images)
    assert taken == chosen(samples, images)
    assert len(taken) == (images if 0 < images < len(samples) else len(samples))
    assert [sample for sample in samples if sample in taken] == list(taken)
    for label in set(labels):
        expected = labels.count(label) * len(taken) / len(labels)
        assert abs(sum(sample.label == label for sample in taken) - expected) <= len(set(labels))


def test_labels_follow_the_names_of_classes() -> None:
    samples = [Sample(f"{index}.png", index, "", 0, 0) for index in range(2)]
    assert relabelled(samples, ("a", "b"), ("a", "b")) == samples
    assert [found.label for found in relabelled(samples, ("a", "b"), ("b", "c", "a"))] == [2, 0]
    with pytest.raises(ConfigError, match="'b' is none of the network's"):
        relabelled(samples, ("a", "b"), ("a", "c"))
