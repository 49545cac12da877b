"""Batches of texts: every text once per epoch, those of like length together, the same after a resume."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgetune.errors import StageError
from edgetune.models import build_model
from edgetune.progress import Silent
from edgetune.training.accelerator import choose_accelerator
from edgetune.training.frozen import compute_features
from edgetune.training.texts import Texts, bucketed, check_memory, step_bytes, text_feed


@given(st.lists(st.integers(1, 60), min_size=2, max_size=300), st.integers(1, 16), st.integers(1, 3))
def test_every_text_stands_in_one_batch(lengths: list[int], batch: int, epoch: int) -> None:
    found = bucketed(torch.tensor(lengths), batch, seed=5, epoch=epoch)
    numbers = sorted(torch.cat(found).tolist())
    # Of a shuffled epoch a last batch of one is left out, as of images.
    left_out = len(lengths) - len(numbers)
    assert left_out in ((0, 1) if batch > 1 else (0,))
    assert len(set(numbers)) == len(numbers)
    assert max(map(len, found)) <= batch
    assert sorted(torch.cat(bucketed(torch.tensor(lengths), batch, None, 1)).tolist()) == list(
        range(len(lengths))
    )


def test_like_lengths_meet_and_epochs_differ() -> None:
    lengths = torch.from_numpy(np.random.default_rng(0).integers(4, 100, 512))

    def filled(batches: list[torch.Tensor]) -> int:
        return sum(int(lengths[pick].max()) * len(pick) for pick in batches)

    one, other = (bucketed(lengths, 16, 0, epoch) for epoch in (1, 2))
    shuffled = list(torch.split(torch.randperm(512, generator=torch.Generator().manual_seed(0)), 16))
    assert filled(one) < 1.1 * int(lengths.sum()) < 0.7 * filled(shuffled)
    assert [pick.tolist() for pick in one] != [pick.tolist() for pick in other]
    assert [pick.tolist() for pick in one] == [pick.tolist() for pick in bucketed(lengths, 16, 0, 1)]
    # The largest first, for memory's sake; for the rest a batch's place says nothing of its length.
    means = [float(lengths[pick].float().mean()) for pick in one]
    assert int(lengths[one[0]].max()) == int(lengths.max())
    assert means[1:] not in (sorted(means[1:]), sorted(means[1:], reverse=True))


def test_batches_are_filled_up_to_their_longest() -> None:
    ids = [np.arange(1, 1 + size, dtype=np.int32) for size in (3, 7, 2, 5)]
    texts = Texts(ids, torch.tensor([0, 1, 0, 1]), pad=9)
    feed = text_feed(texts, 2, choose_accelerator("cpu"), seed=0, shuffled=False)
    assert (feed.images, feed.steps, feed.ragged) == (4, 2, True)
    first, second = feed.batches(1)
    assert first.picks.tolist() == [1, 3]
    assert first.targets.tolist() == [1, 1]
    assert first.inputs.tolist()[1] == [[1, 2, 3, 4, 5, 9, 9], [1, 1, 1, 1, 1, 0, 0]]
    assert second.inputs.shape == (2, 2, 3)


def test_a_batch_that_memory_cannot_hold_is_refused(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = build_model(f"hf:{bert}", 2)
    small, large = step_bytes(net, (4, 2, 10)), step_bytes(net, (8, 2, 40))
    # Of two layers of 32 the products' inputs alone, and more where more is kept; parameters three times.
    fixed = 3 * sum(p.nbytes for p in net.parameters())
    assert fixed + 4 * 2 * 8 * 40 * 6 * 32 < large < fixed + 4 * 2 * 8 * 40 * 60 * 32
    assert large > small
    for parameter in net.get_submodule("encoder").parameters():
        parameter.requires_grad_(False)
    assert step_bytes(net, (8, 2, 40)) < (large - fixed) / 4
    texts = Texts([np.ones(40, np.int32), np.ones(3, np.int32)], torch.zeros(2), 0)
    check_memory(net, texts, 32)
    monkeypatch.setattr("edgetune.training.texts.free_bytes", lambda: 1000)
    with pytest.raises(
        StageError, match=r"a batch of 2 texts of up to 40 tokens takes .* GB of memory"
    ) as caught:
        check_memory(net, texts, 32)
    assert "finetune.batch" in caught.value.hint
    assert "model.length" in caught.value.hint


class Sums(torch.nn.Module):
    """Its features are the sums of a text's numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(1, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head((tokens[:, 0] * tokens[:, 1]).sum(1, keepdim=True).float())


@pytest.mark.parametrize("kept", [False, True])
def test_features_belong_to_their_texts_whatever_the_order_of_batches(tmp_path: Path, kept: bool) -> None:
    dice = np.random.default_rng(0)
    ids = [dice.integers(1, 90, dice.integers(1, 20)).astype(np.int32) for _ in range(37)]
    accelerator = choose_accelerator("cpu")
    feed = text_feed(Texts(ids, torch.zeros(37), 0), 5, accelerator, seed=0, shuffled=False)
    net, sample = Sums(), torch.ones(1, 2, 4, dtype=torch.int64)
    found = compute_features(
        net, net.head, [feed], accelerator, Silent(), sample=sample, folder=tmp_path if kept else None
    )
    assert found is not None
    assert found[0, :, 0].tolist() == [float(own.sum()) for own in ids]
