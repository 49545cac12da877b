import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgetune.data.augment import Augment, Knobs, build_mix
from edgetune.errors import ConfigError
from edgetune.training import ranks
from edgetune.training.accelerator import choose_accelerator
from edgetune.training.features import (
    Images,
    epoch_order,
    image_feed,
    normalise,
    seed_for,
)

CPU = choose_accelerator("cpu")


SHIFTED = Augment(Knobs(shift=0.4, flip=0.5, colour=0.2), 8)


def same(left: Any, right: Any) -> bool:
    pairs = list(zip(left, right, strict=True))
    return bool(pairs) and all(
        torch.equal(a.inputs, b.inputs)
        and torch.equal(a.targets, b.targets)
        and torch.equal(a.picks, b.picks)
        for a, b in pairs
    )


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 5), st.integers(1, 5))
def test_an_epoch_shows_every_image_once_but_no_batch_of_one(
    images: int, batch: int, seed: int, epoch: int
) -> None:
    order = epoch_order(images, batch, seed, epoch)
    shown = torch.cat(order).tolist()
    assert len(set(shown)) == len(shown)
    left_out = images % batch == 1 and images > 1 and batch > 1 and images > batch
    assert len(shown) == images - left_out
    assert all(len(pick) == batch for pick in order[:-1])


def test_epochs_and_seeds_shuffle_differently() -> None:
    orders = [torch.cat(epoch_order(50, 8, seed, epoch)).tolist() for seed in (0, 1) for epoch in (1, 2)]
    assert len({tuple(order) for order in orders}) == 4
    assert seed_for(1, 2) != seed_for(2, 1)


def test_batches_are_normalised_like_inference(images: Images) -> None:
    inputs, targets, picks, view, _ = next(image_feed(images, 7, CPU, seed=0, shuffled=False).batches(1))
    assert (picks.tolist(), view) == (list(range(7)), 1)
    assert isinstance(images.pixels, torch.Tensor)
    torch.testing.assert_close(inputs, (images.pixels[:7].float() / 255 - 0.5) / 0.25)
    assert targets.tolist() == images.labels[:7].tolist()
    assert normalise(images.pixels[:2], images.preprocess).dtype is torch.float32


def test_augmented_epochs_repeat_exactly_and_differ_from_each_other(images: Images) -> None:
    feed = image_feed(images, 7, CPU, seed=3, augment=SHIFTED)
    torch.manual_seed(99)
    first = list(feed.batches(1))
    assert same(first, feed.batches(1)), "whatever the state of the global generator"
    assert not same(first, feed.batches(2))
    assert feed.steps == len(first) == 5


def test_threads_make_the_same_batches(images: Images) -> None:
    alone = image_feed(images, 16, CPU, seed=3, augment=SHIFTED)
    helped = image_feed(images, 16, CPU, seed=3, augment=SHIFTED, decodes=True)
    assert same(alone.batches(2), helped.batches(2))


def test_an_image_is_augmented_alike_in_every_batch(images: Images) -> None:
    def inputs(**how: Any) -> torch.Tensor:
        found = list(image_feed(images, seed=3, augment=SHIFTED, accelerator=CPU, **how).batches(2))
        order = torch.cat([batch.picks for batch in found]).argsort()
        return torch.cat([batch.inputs for batch in found])[order]

    ordered = inputs(batch=7, shuffled=False)
    assert len(ordered) == 31
    for how in ({"batch": 7}, {"batch": 31}, {"batch": 5, "shuffled": False}):
        torch.testing.assert_close(inputs(**how), ordered, rtol=0, atol=1e-4)


def test_images_of_different_sizes_go_through_the_augmentation(images: Images) -> None:
    sizes = [np.full((3, 9 + n, 12), 40 + n, np.uint8) for n in range(4)]
    mixed = Images(sizes, torch.arange(4), images.preprocess)
    for augment in (None, Augment(Knobs(crop_scale=0.3, rotation_deg=20.0), 8)):
        feed = image_feed(mixed, 4, CPU, seed=0, shuffled=False, augment=augment)
        ((inputs, *_),) = feed.batches(1)
        for number, found in enumerate(inputs):
            torch.testing.assert_close(found, torch.full((3, 8, 8), ((40 + number) / 255 - 0.5) / 0.25))


def test_batches_lie_channels_last_and_their_middle_is_cut_out(images: Images) -> None:
    larger = np.random.default_rng(0).integers(0, 256, (3, 3, 10, 13), np.uint8)
    mixed = Images(larger, torch.arange(3), images.preprocess)
    ((inputs, *_),) = image_feed(mixed, 3, CPU, seed=0, shuffled=False).batches(1)
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    expected = torch.from_numpy(larger[:, :, 1:9, 2:10]).float() / 255
    torch.testing.assert_close(inputs, (expected - 0.5) / 0.25)


def test_the_next_batches_are_read_while_the_model_learns(images: Images) -> None:
    asked: list[int] = []

    class Slow:
        def __getitem__(self, index: int) -> torch.Tensor:
            asked.append(index)
            return images.pixels[index]

    feed = image_feed(Images(Slow(), images.labels, images.preprocess), 4, CPU, seed=0, shuffled=False)
    batches = feed.batches(1)
    next(batches)
    for _ in range(200):
        if len(asked) >= 12:
            break
        time.sleep(0.01)
    assert 12 <= len(asked) <= 16, "two more, not all"
    batches.close()
    assert len(asked) < 31, "whoever stops looking stops the reading"


def test_what_goes_wrong_in_the_thread_is_said_by_the_batches(images: Images) -> None:
    class Broken:
        def __getitem__(self, index: int) -> torch.Tensor:
            if index == 20:
                raise ConfigError("20.png: not a readable image")
            return images.pixels[index]

    broken = Images(Broken(), images.labels, images.preprocess)
    for decodes in (False, True):
        seen = []
        with pytest.raises(ConfigError, match=r"20\.png"):
            seen.extend(image_feed(broken, 4, CPU, seed=0, shuffled=False, decodes=decodes).batches(1))
        assert len(seen) == 5, "the batches before it are good"


def test_mix_turns_labels_into_shares(images: Images) -> None:
    def mix(inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return inputs * torch.rand(()), torch.eye(3)[targets]

    feed = image_feed(images, 7, CPU, seed=0, mix=mix)
    assert same(feed.batches(1), feed.batches(1))
    assert next(feed.batches(1))[1].shape == (7, 3)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("augmented", [False, True])
@pytest.mark.parametrize("size", [2, 5])
def test_shares_are_the_batches_of_one_process(
    images: Images, monkeypatch: pytest.MonkeyPatch, size: int, augmented: bool, mixed: bool
) -> None:
    augment = SHIFTED if augmented else None
    mix = build_mix(Knobs(mixup=0.4, cutmix=1.0), 3) if mixed else None
    options = {"seed": 1, "augment": augment, "mix": mix}
    whole = list(image_feed(images, 14, CPU, **options).batches(2))
    monkeypatch.setattr(ranks, "size", lambda: size)
    shares = []
    for rank in range(size):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        shares.append(list(image_feed(images, 14, CPU, share=7, **options).batches(2)))
    for step, batch in enumerate(whole):
        assert {part[step].rows for part in shares} == {len(batch.picks)}
        found = torch.cat([part[step].picks for part in shares])
        assert sorted(found.tolist()) == sorted(batch.picks.tolist()), "each once"
        places = [batch.picks.tolist().index(pick) for pick in found.tolist()]
        torch.testing.assert_close(torch.cat([part[step].inputs for part in shares]), batch.inputs[places])
        torch.testing.assert_close(torch.cat([part[step].targets for part in shares]), batch.targets[places])
    assert any(len(part[-1].picks) == 0 for part in shares) == (size == 5), "three images for five"
