"""Images and texts through one door: what is read, in which lengths, and what torch and a file take of it."""

from pathlib import Path

import numpy as np
import pytest

from edgetune.artifact import TensorSpec, Tokens
from edgetune.data.folders import Dataset, scan
from edgetune.data.reader import arranged, batches, example, for_file, frames
from edgetune.data.tokens import bucket, encode, filled
from edgetune.errors import ArtifactError
from edgetune.models import model_row
from edgetune.recipe import DataSection

TAKES = [TensorSpec(name=name, dtype="int32", shape=(1, "L")) for name in ("input_ids", "attention_mask")]


@pytest.fixture
def how(bert: Path) -> Tokens:
    found = model_row(f"hf:{bert}").preprocess
    assert isinstance(found, Tokens)
    return found.model_copy(update={"length": 9, "lengths": (6, 9)})


@pytest.fixture
def data(reviews: Path) -> Dataset:
    return scan(DataSection(path=str(reviews), task="text-classification"), reviews)


def test_texts_are_cut_and_counted(how: Tokens) -> None:
    found = encode(["good food", " ".join(["very"] * 20), "unheard"], how)
    assert [own.tolist() for own in found.ids] == [[2, 4, 13, 3], [2, *[16] * 7, 3], [2, 1, 3]]
    assert found.cut == [False, True, False]
    made = filled(found.ids[:1], how.pad, 6)
    assert made.tolist() == [[[2, 4, 13, 3, 0, 0], [1, 1, 1, 1, 0, 0]]]
    assert [bucket(count, how) for count in (1, 6, 7, 9, 30)] == [6, 6, 9, 9, 9]


def test_each_text_comes_in_its_own_length(how: Tokens, data: Dataset) -> None:
    samples = arranged(data.root, data.splits["train"], how)
    assert sorted(samples, key=lambda s: s.path) == sorted(data.splits["train"], key=lambda s: s.path)
    parts = list(frames(data.root, samples, how, 4))
    assert sum(map(len, parts)) == len(samples)
    widths = [part.shape[2] for part in parts]
    assert widths == sorted(widths)
    assert set(widths) == {6, 9}
    for part in parts:
        filled_up = part[:, 1].sum(1)
        assert filled_up.max() <= part.shape[2]
        assert part.shape[2] == 6 or filled_up.min() > 6
    (same,) = {part.dtype for part in batches(data.root, samples, how, 4)}
    assert same == np.int64


def test_a_file_is_given_what_its_inputs_are_called(how: Tokens) -> None:
    tokens = example(how, 2)
    given = for_file(tokens, how, TAKES)
    assert not isinstance(given, np.ndarray)
    assert {name: values.dtype.name for name, values in given.items()} == dict.fromkeys(given, "int32")
    np.testing.assert_array_equal(given["input_ids"], tokens[:, 0])
    with pytest.raises(ArtifactError, match="'token_type_ids' is none of input_ids, attention_mask"):
        for_file(tokens, how, [TAKES[0].model_copy(update={"name": "token_type_ids"})])


def test_an_example_holds_numbers_that_every_vocabulary_has(how: Tokens) -> None:
    for pad in (0, 1, 16):
        found = example(how.model_copy(update={"pad": pad}), 4)
        assert set(np.unique(found[:, 0])) == {0, 1, 2, 3} - {pad}
        assert (found[:, 1] == 1).all()


def test_another_tokenizer_than_the_network_s_is_refused(how: Tokens) -> None:
    changed = how.model_copy(update={"tokenizer": "0" * 64})
    with pytest.raises(ArtifactError, match="is not the tokenizer that the network was trained with"):
        encode(["good"], changed)
