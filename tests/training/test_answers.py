"""Answers are computed once, kept whole or not at all, and those of another teacher are never taken for them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgetune.data.augment import Augment, Knobs
from edgetune.errors import StageError
from edgetune.progress import Silent
from edgetune.training import answers as module
from edgetune.training.accelerator import choose_accelerator
from edgetune.training.answers import kept_answers
from edgetune.training.distil import Answers
from edgetune.training.features import Batch, Images, image_feed

CPU = choose_accelerator("cpu")
SHAPES = {"logits": (2, 3), "layer": (2, 3, 8, 8)}
SHIFTED = Augment(Knobs(shift=0.4, flip=0.5, colour=0.2), 8)
KEY = "0123456789abcdef" * 4


class Lines(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


class Asked:
    """Answers with what it is shown, and counts."""

    def __init__(self) -> None:
        self.images = 0

    def __call__(self, batch: Batch) -> Answers:
        self.images += len(batch.picks)
        return {"logits": batch.inputs.mean((2, 3)), "layer": batch.inputs}


@pytest.fixture
def keep(images: Images, tmp_path: Path) -> Callable[..., tuple[Callable[[Batch], Answers], bool]]:
    feeds = [image_feed(images, 7, CPU, seed=3, shuffled=False, augment=SHIFTED)] * 2

    def make(ask: Callable[[Batch], Answers], key: str = KEY, **options: object) -> object:
        return kept_answers(tmp_path / "answers", key, SHAPES, feeds, ask, options.get("progress", Silent()))

    return make


def test_what_is_looked_up_is_what_was_said_of_that_view(
    images: Images, keep: Callable, tmp_path: Path
) -> None:
    asked = Asked()
    look_up, there = keep(asked)
    assert not there
    assert asked.images == 62
    feed = image_feed(images, 5, CPU, seed=3, augment=SHIFTED, views=2)
    seen = 0
    for epoch in (1, 2, 3):
        for batch in feed.batches(epoch):
            found = look_up(batch)
            assert found["logits"].dtype == torch.float32
            torch.testing.assert_close(found["layer"], batch.inputs, atol=2e-3, rtol=1e-3)
            torch.testing.assert_close(found["logits"], batch.inputs.mean((2, 3)), atol=2e-3, rtol=1e-3)
            seen += 1
    assert seen == 18, "the last batch of one image is left out"


def test_they_are_kept_in_half_precision_and_not_asked_for_again(keep: Callable, tmp_path: Path) -> None:
    keep(Asked())
    (file,) = (tmp_path / "answers").iterdir()
    kept = load_file(file)
    assert {name: (t.dtype, tuple(t.shape)) for name, t in kept.items()} == {
        "logits": (torch.float16, (2, 31, 3)), "layer": (torch.float16, (2, 31, 3, 8, 8)),
    }  # fmt: skip
    again, said = Asked(), Lines()
    _, there = keep(again, progress=said)
    assert there
    assert again.images == 0
    assert said.lines == ["teacher: 31 inputs in 2 views, answered earlier"]
    other = Asked()
    keep(other, key="f" + KEY)
    assert other.images == 62, "another key, other answers"


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def foreign_key(file: Path) -> None:
    save_file(load_file(file), file, metadata={"key": "another"})


def foreign_shape(file: Path) -> None:
    kept = load_file(file)
    save_file({name: t[:, :-1].contiguous() for name, t in kept.items()}, file, metadata={"key": KEY})


def no_tensors(file: Path) -> None:
    file.write_bytes(b"not at all")


@pytest.mark.parametrize("spoil", [cut, foreign_key, foreign_shape, no_tensors])
def test_half_or_foreign_answers_are_made_anew(
    keep: Callable, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    keep(Asked())
    (file,) = (tmp_path / "answers").iterdir()
    whole = file.read_bytes()
    spoil(file)
    again, said = Asked(), Lines()
    keep(again, progress=said)
    assert again.images == 62
    assert "it is made again" in said.lines[0]
    assert file.read_bytes() == whole


def test_stopped_half_way_nothing_is_left(keep: Callable, tmp_path: Path) -> None:
    class Stopped(Asked):
        def __call__(self, batch: Batch) -> Answers:
            if self.images > 20:
                raise KeyboardInterrupt
            return super().__call__(batch)

    with pytest.raises(KeyboardInterrupt):
        keep(Stopped())
    assert list((tmp_path / "answers").iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_what_half_precision_cannot_hold_is_no_answer(keep: Callable, tmp_path: Path, value: float) -> None:
    class Mad(Asked):
        def __call__(self, batch: Batch) -> Answers:
            said = super().__call__(batch)
            said["logits"][0, 0] = value
            return said

    with pytest.raises(
        StageError, match="the teacher's logits are no finite numbers, or above 65504, for some"
    ):
        keep(Mad())
    assert list((tmp_path / "answers").iterdir()) == []


def test_too_much_for_the_disk_is_said_first(keep: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DISK_SHARE", 0.0)
    asked = Asked()
    with pytest.raises(StageError, match="a teacher's answers would take") as caught:
        keep(asked)
    assert asked.images == 0
    assert "distill.views" in caught.value.hint


def test_a_folder_that_cannot_be_written_is_said(keep: Callable, tmp_path: Path) -> None:
    (tmp_path / "answers").write_text("a file")
    with pytest.raises(StageError, match="answers"):
        keep(Asked())
