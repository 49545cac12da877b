import errno
import gc
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from several import several
from torch import nn

from edgetune.data.augment import Augment, Knobs, build_mix
from edgetune.errors import ConfigError
from edgetune.progress import Silent
from edgetune.training import features, ranks
from edgetune.training.accelerator import choose_accelerator
from edgetune.training.features import (
    Images,
    compute_features,
    epoch_order,
    feature_feed,
    image_feed,
    normalise,
    roomy,
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


def test_features_are_the_head_input(images: Images, tiny: Any) -> None:
    net = tiny()
    feed = image_feed(images, 7, CPU, seed=0, shuffled=False)
    found = compute_features(net, net.head, [feed], CPU, Silent())
    assert found is not None
    assert found.shape == (1, 31, 8)
    with torch.no_grad():
        inputs = torch.cat([batch.inputs for batch in feed.batches(1)])
        torch.testing.assert_close(net.eval().head(found[0]), net(inputs))
    assert not net.head._forward_pre_hooks, "the hook is gone"


def test_feature_maps_are_kept_as_maps(images: Images, tiny: Any) -> None:
    net = tiny()
    feed = image_feed(images, 7, CPU, seed=0, shuffled=False)
    found = compute_features(net, net.second, [feed], CPU, Silent())
    assert found is not None
    assert found.shape == (1, 31, 6, 4, 4)


def test_features_lie_in_a_file_that_vanishes(images: Images, tiny: Any, tmp_path: Path) -> None:
    net = tiny()
    feed = image_feed(images, 7, CPU, seed=0, shuffled=False)
    kept = compute_features(net, net.head, [feed], CPU, Silent(), tmp_path)
    plain = compute_features(net, net.head, [feed], CPU, Silent())
    assert kept is not None
    assert plain is not None
    assert torch.equal(kept, plain)
    assert not list(tmp_path.iterdir())
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
    assert mapped
    del kept
    gc.collect()
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
    assert not mapped


@pytest.mark.parametrize("trouble", ["full", "share", "gone"])
def test_without_room_on_the_disk_they_lie_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if trouble == "full":
        monkeypatch.setattr(features.os, "posix_fallocate", full)
    if trouble == "share":
        monkeypatch.setattr(features.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 5 * 48 - 1}))
    found = roomy((3, 4), tmp_path / "gone" if trouble == "gone" else tmp_path)
    assert found.fill_(1).sum() == 12
    maps = Path("/proc/self/maps").read_text()
    assert str(tmp_path) not in maps


def test_views_differ_and_epochs_take_turns(images: Images, tiny: Any) -> None:
    net = tiny()
    feed = image_feed(images, 7, CPU, seed=0, shuffled=False, augment=SHIFTED)
    found = compute_features(net, net.head, [feed] * 3, CPU, Silent())
    assert found is not None
    assert found.shape == (3, 31, 8)
    assert not torch.equal(found[0], found[1])
    batches = feature_feed(found, images.labels, 31, CPU, seed=0, shuffled=False)
    for epoch, view in ((1, 0), (3, 2), (4, 0)):
        assert torch.equal(next(batches.batches(epoch))[0], found[view])


def test_views_are_the_same_whether_kept_or_made_anew(images: Images, tiny: Any) -> None:
    net = tiny()
    ordered = image_feed(images, 7, CPU, seed=3, shuffled=False, augment=SHIFTED)
    views = compute_features(net, net.head, [ordered] * 2, CPU, Silent())
    assert views is not None
    kept = feature_feed(views, images.labels, 7, CPU, seed=3)
    anew = image_feed(images, 7, CPU, seed=3, augment=SHIFTED, views=2)
    for epoch in (1, 2, 3, 6):
        pairs = list(zip(kept.batches(epoch), anew.batches(epoch), strict=True))
        assert len(pairs) == anew.steps
        for found, made in pairs:
            assert torch.equal(found.targets, made.targets)
            assert torch.equal(found.picks, made.picks)
            assert found.view == made.view == (1, 2, 1, None, None, 2)[epoch - 1]
            with torch.no_grad():
                torch.testing.assert_close(net.head(found.inputs), net(made.inputs))


def test_features_that_are_too_large_are_not_kept(
    images: Images, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "FEATURE_BYTES", 31 * 8 * 4 - 1)
    net = tiny()
    feed = image_feed(images, 7, CPU, seed=0, shuffled=False)
    assert compute_features(net, net.head, [feed], CPU, Silent()) is None
    assert not net.head._forward_pre_hooks


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


@pytest.mark.forks
def test_features_are_computed_in_shares(images: Images) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.Linear(5, 2))

    def work() -> Any:
        seen = []
        net.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
        feeds = [image_feed(images, 7, CPU, seed=1, shuffled=False, augment=SHIFTED, share=7)] * 2
        found = compute_features(net, net[2], feeds, CPU, Silent())
        return None if found is None else found.numpy(), sum(seen)

    whole, all_seen = work()
    assert (whole.shape, all_seen) == ((2, 31, 5), 62)
    shares = several(3, work)
    assert sum(count for _, count in shares) == all_seen, "each image and view in one process"
    for found, _ in shares:
        torch.testing.assert_close(torch.from_numpy(found), torch.from_numpy(whole))
