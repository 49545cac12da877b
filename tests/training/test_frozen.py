"""Features are computed once: the same for every training that shares the frozen part, and for no other."""

from pathlib import Path
from typing import Any

import pytest
import torch
from several import several
from torch import nn

from edgetune.data.augment import Augment, Knobs
from edgetune.progress import Silent
from edgetune.training import frozen, kept
from edgetune.training.accelerator import choose_accelerator
from edgetune.training.features import Feed, Images, feature_feed, image_feed
from edgetune.training.frozen import compute_features

CPU = choose_accelerator("cpu")
SHIFTED = Augment(Knobs(shift=0.4, flip=0.5, colour=0.2), 8)


def test_features_are_the_head_input(images: Images, tiny: Any) -> None:
    net = tiny()
    feed = image_feed(images, 7, CPU, seed=0, shuffled=False)
    found = compute_features(net, net.head, [feed], CPU, Silent(), sample=torch.rand(1, 3, 8, 8))
    assert found is not None
    assert found.shape == (1, 31, 8)
    with torch.no_grad():
        inputs = torch.cat([batch.inputs for batch in feed.batches(1)])
        torch.testing.assert_close(net.eval().head(found[0]), net(inputs))
    assert not net.head._forward_pre_hooks, "the hook is gone"


def test_feature_maps_are_kept_as_maps(images: Images, tiny: Any) -> None:
    net = tiny()
    feed = image_feed(images, 7, CPU, seed=0, shuffled=False)
    found = compute_features(net, net.second, [feed], CPU, Silent(), sample=torch.rand(1, 3, 8, 8))
    assert found is not None
    assert found.shape == (1, 31, 6, 4, 4)


def test_views_differ_and_epochs_take_turns(images: Images, tiny: Any) -> None:
    net = tiny()
    feed = image_feed(images, 7, CPU, seed=0, shuffled=False, augment=SHIFTED)
    found = compute_features(net, net.head, [feed] * 3, CPU, Silent(), sample=torch.rand(1, 3, 8, 8))
    assert found is not None
    assert found.shape == (3, 31, 8)
    assert not torch.equal(found[0], found[1])
    batches = feature_feed(found, images.labels, 31, CPU, seed=0, shuffled=False)
    for epoch, view in ((1, 0), (3, 2), (4, 0)):
        assert torch.equal(next(batches.batches(epoch))[0], found[view])


def test_views_are_the_same_whether_kept_or_made_anew(images: Images, tiny: Any) -> None:
    net = tiny()
    ordered = image_feed(images, 7, CPU, seed=3, shuffled=False, augment=SHIFTED)
    views = compute_features(net, net.head, [ordered] * 2, CPU, Silent(), sample=torch.rand(1, 3, 8, 8))
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
    monkeypatch.setattr(frozen, "FEATURE_BYTES", 31 * 8 * 4 - 1)
    net = tiny()
    feed = image_feed(images, 7, CPU, seed=0, shuffled=False)
    assert compute_features(net, net.head, [feed], CPU, Silent(), sample=torch.rand(1, 3, 8, 8)) is None
    assert not net.head._forward_pre_hooks


@pytest.mark.forks
def test_features_are_computed_in_shares(images: Images) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.Linear(5, 2))

    def work() -> Any:
        seen = []
        net.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
        feeds = [image_feed(images, 7, CPU, seed=1, shuffled=False, augment=SHIFTED, share=7)] * 2
        found = compute_features(net, net[2], feeds, CPU, Silent(), sample=torch.rand(1, 3, 8, 8))
        return None if found is None else found.numpy(), sum(seen[1:])

    whole, all_seen = work()
    assert (whole.shape, all_seen) == ((2, 31, 5), 62)
    shares = several(3, work)
    assert sum(count for _, count in shares) == all_seen, "each image and view in one process"
    for found, _ in shares:
        torch.testing.assert_close(torch.from_numpy(found), torch.from_numpy(whole))


def counted(feed: Feed) -> tuple[Feed, list[int]]:
    """A feed that tells how many of its images were asked for."""
    seen: list[int] = []

    def batches(epoch: int) -> Any:
        for batch in feed.batches(epoch):
            seen.append(len(batch.picks))
            yield batch

    return Feed(feed.images, feed.steps, batches), seen


def test_they_are_found_again_by_another_head_and_by_nobody_else(
    images: Images, tiny: Any, tmp_path: Path
) -> None:
    feed, seen = counted(image_feed(images, 7, CPU, seed=0, shuffled=False))

    def compute(net: nn.Module, **options: Any) -> torch.Tensor:
        options = {"images": ["these"], "folder": tmp_path / "features"} | options
        found = compute_features(
            net, net.head, [feed], CPU, Silent(), sample=torch.rand(1, 3, 8, 8), **options
        )
        assert found is not None
        return found

    net = tiny()
    plain = compute(net, folder=None)
    first = compute(net)
    assert torch.equal(first, plain)
    assert sum(seen) == 62
    nn.init.zeros_(net.head[1].weight)
    assert torch.equal(compute(net), first)
    assert sum(seen) == 62, "not computed again"
    compute(net, images=["others"])
    assert sum(seen) == 93
    with torch.no_grad():
        net.stem[0].weight += 0.1
    changed = compute(net)
    assert sum(seen) == 124
    assert not torch.equal(changed, first)
    net.stem[2] = nn.Tanh()  # The same weights, another network.
    assert not torch.equal(compute(net), changed)
    mapped = Path("/proc/self/maps").read_text()
    assert str(tmp_path) in mapped, "out of memory's way"


@pytest.mark.parametrize("trouble", ["full", "share", "gone"])
def test_without_room_on_the_disk_they_lie_in_memory(
    images: Images, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    folder = tmp_path / "features"
    if trouble == "full":
        monkeypatch.setattr(kept.os, "posix_fallocate", full)
    if trouble == "share":
        monkeypatch.setattr(frozen, "DISK_SHARE", 0.0)
    if trouble == "gone":
        folder.write_text("a file")
    net, feed = tiny(), image_feed(images, 7, CPU, seed=0, shuffled=False)
    found = compute_features(
        net, net.head, [feed], CPU, Silent(), sample=torch.rand(1, 3, 8, 8), folder=folder
    )
    assert found is not None
    assert torch.equal(
        found, compute_features(net, net.head, [feed], CPU, Silent(), sample=torch.rand(1, 3, 8, 8))
    )
    assert not folder.is_dir() or not list(folder.iterdir()), "nothing is left"


@pytest.mark.forks
@pytest.mark.parametrize("trouble", ["", "full"])
def test_of_several_processes_the_first_one_writes(
    images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    if trouble:
        monkeypatch.setattr(kept.os, "posix_fallocate", full)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.Linear(5, 2))

    def work() -> Any:
        feeds = [image_feed(images, 7, CPU, seed=1, shuffled=False, augment=SHIFTED, share=7)] * 2
        found = compute_features(
            net, net[2], feeds, CPU, Silent(), sample=torch.rand(1, 3, 8, 8), folder=tmp_path / "features"
        )
        return None if found is None else found.numpy()

    shares = several(3, work)
    assert len(list((tmp_path / "features").iterdir())) == (not trouble)
    monkeypatch.undo()
    whole = work()
    for found in shares:
        torch.testing.assert_close(torch.from_numpy(found), torch.from_numpy(whole))
