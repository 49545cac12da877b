"""Several processes: who does what, what each is told, and how they end."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from several import commanded, several

from edgetune.errors import ConfigError
from edgetune.training import ranks


@contextmanager
def as_one_of(size: int, rank: int) -> Iterator[None]:
    before = ranks._launch, ranks._together
    ranks._launch, ranks._together = ranks._Launch(rank, size, None), True
    try:
        yield
    finally:
        ranks._launch, ranks._together = before


@given(images=st.integers(0, 300), most=st.integers(1, 80), size=st.integers(1, 9))
def test_every_image_is_in_exactly_one_share(images: int, most: int, size: int) -> None:
    shares = []
    for rank in range(size):
        with as_one_of(size, rank):
            shares.append(ranks.parts(images, most))
    assert len({len(own) for own in shares}) == 1, "all go through as many parts"
    taken = [index for part in zip(*shares, strict=True) for rows in part for index in range(images)[rows]]
    assert taken == list(range(images))
    for part in zip(*shares, strict=True):
        counts = [rows.stop - rows.start for rows in part]
        assert sum(counts) <= most
        assert max(counts) - min(counts) <= 1


def test_without_a_launcher_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ranks.TOLD:
        monkeypatch.delenv(name, raising=False)
    assert not ranks.launched()
    assert (ranks.size(), ranks.rank(), ranks.place()) == (1, 0, (0, 1))
    values = torch.ones(2)
    assert ranks.total(values) is values
    assert ranks.leaders({"a": 1}) == {"a": 1}
    assert ranks.together(lambda: ranks.size())() == 1
    for name, value in zip(ranks.TOLD, ("0", "1", "here", "1"), strict=True):
        monkeypatch.setenv(name, value)
    assert not ranks.launched(), "torchrun with one process"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert ranks.launched()


def test_outside_of_a_training_the_leader_works_alone() -> None:
    with as_one_of(3, 2):
        assert (ranks.size(), ranks.rank()) == (3, 2)
        with ranks.alone():
            assert (ranks.size(), ranks.rank()) == (1, 0)
        with ranks.alone(False):
            assert (ranks.size(), ranks.rank()) == (3, 2)
    assert ranks.size() == 1


@pytest.mark.forks
def test_sums_and_the_leaders_values() -> None:
    def work() -> tuple[Any, ...]:
        own = torch.full((2, 3), float(ranks.rank() + 1)).t()
        summed = ranks.total(torch.tensor([1.0, float(ranks.rank())], dtype=torch.float64)).tolist()
        ranks.same([own])
        return summed, own.tolist(), ranks.leaders(f"of {ranks.rank()}"), ranks.place()

    found = several(3, work)
    assert [entry[0] for entry in found] == [[3.0, 3.0]] * 3
    assert [entry[1] for entry in found] == [[[1.0, 1.0]] * 3] * 3
    assert [entry[2] for entry in found] == ["of 0"] * 3
    assert [entry[3] for entry in found] == [(0, 3), (1, 3), (2, 3)]


@pytest.mark.parametrize(
    ("size", "images", "batch", "message"),
    [(3, 2, 8, "3 processes for 2 training inputs"), (3, 9, 2, r"finetune\.batch: 2, which 3 processes")],
)
def test_more_processes_than_images_are_refused(size: int, images: int, batch: int, message: str) -> None:
    with as_one_of(size, 0), pytest.raises(ConfigError, match=message) as caught:
        ranks.check_enough(images, batch)
    assert "torchrun --nproc-per-node 2 or less" in caught.value.hint
    ranks.check_enough(images, batch)


WHERE = Path()  # A stage is told by its name, so what it writes to is told by a global.


@ranks.together
def stage(word: str, progress: Any = None) -> int:
    """Says who took part, with what."""
    everyone = int(ranks.total(torch.tensor(1)))
    (WHERE / f"{word}-{ranks.rank()}").write_text(f"{everyone} {progress}")
    return everyone


@ranks.together
def failing(who: int, how: str) -> None:
    """Fails in one process, while the others wait for it."""
    if ranks.rank() == who or who < 0:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ConfigError("no such image", hint="look again") if how == "refused" else ValueError("a bug")
    ranks.total(torch.tensor(1))


@ranks.together
def ended() -> None:
    """The leader meets something that the others cannot know."""

    def full() -> None:
        raise ConfigError("by the leader")

    ranks.by_leader(lambda: None)
    ranks.by_leader(full)


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(f"{__name__}.WHERE", tmp_path)
    monkeypatch.setattr(ranks, "GRACE_S", 0.5)
    monkeypatch.setattr(ranks, "LEAVE_S", 0.5)
    return tmp_path / "errors"


@pytest.mark.forks
def test_all_take_part_in_a_stage_and_end_together(written: Path) -> None:
    def command() -> None:
        assert ranks.size() == 1
        assert stage("one", progress="bar") == 2
        assert stage("two") == 2

    assert commanded(2, command, written) == [0, 0]
    said = {path.name: path.read_text() for path in written.parent.iterdir() if path != written}
    assert said == {"one-0": "2 bar", "one-1": "2 None", "two-0": "2 None", "two-1": "2 None"}
    assert written.read_text() == ""


@pytest.mark.forks
def test_a_leader_that_goes_on_after_an_error_is_followed(written: Path) -> None:
    def command() -> None:
        for how in ("refused", "bug"):
            with pytest.raises((ConfigError, ValueError)):
                failing(0, how)
        with pytest.raises(ConfigError):
            failing(-1, "refused")
        with pytest.raises(ConfigError, match="by the leader"):
            ended()
        assert stage("after", progress="bar") == 2

    assert commanded(2, command, written) == [0, 0]
    assert (written.parent / "after-1").read_text() == "2 None"
    assert written.read_text() == ""


@pytest.mark.forks
@pytest.mark.parametrize("code", [0, 7])
def test_a_command_that_trains_nothing_ends_everywhere(written: Path, code: int) -> None:
    def command() -> None:
        if code:
            raise SystemExit(code)

    assert commanded(3, command, written) == [code] * 3
    assert written.read_text() == ""


@pytest.mark.forks
def test_what_the_leader_complains_of_is_said_once(written: Path) -> None:
    assert commanded(2, lambda: failing(0, "refused"), written) == [3, 3]
    assert written.read_text() == "error: no such image\n"


@pytest.mark.forks
def test_what_another_process_complains_of_is_said_once(written: Path) -> None:
    assert commanded(2, lambda: failing(1, "refused"), written) == [3, 3]
    assert written.read_text() == "error: process 2 of 2: no such image\n  look again\n"


@pytest.mark.forks
def test_a_bug_in_another_process_keeps_its_traceback(written: Path) -> None:
    assert commanded(2, lambda: failing(1, "bug"), written) == [1, 1]
    assert written.read_text().count("Traceback") == 1
    assert "ValueError: a bug" in written.read_text()


@pytest.mark.forks
def test_a_process_that_is_killed_ends_the_others(written: Path) -> None:
    assert commanded(2, lambda: failing(1, "killed"), written) == [6, -signal.SIGKILL]
    assert written.read_text() == "error: another process of this training has ended, without a word\n"
