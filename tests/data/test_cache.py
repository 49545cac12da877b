"""Decoded images on disk: found again, shared, made anew when in doubt; nothing strange is ever deleted."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgetune.artifact import Preprocess
from edgetune.data import cache
from edgetune.data.cache import INDEX, PARTIAL, PIXELS, TAG_FILE, Decoded, Undecoded, decoded
from edgetune.data.folders import Sample
from edgetune.data.images import resized
from edgetune.errors import ConfigError
from edgetune.progress import Silent

COUNT = 70  # more than are decoded at once


class Told(Silent):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.decoded = 0

    def line(self, text: str) -> None:
        self.lines.append(text)

    def advance(self, count: int = 1, **_: float) -> None:
        self.decoded += count


def preprocess(resize: int = 8, channels: int = 3) -> Preprocess:
    return Preprocess(
        resize_px=resize, size_px=4, channels=channels, mean=(0.5,) * channels, std=(1.0,) * channels
    )  # type: ignore[arg-type]


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, list[Sample]]:
    """Return a folder of small pictures of many shapes, and the list of them."""
    root = tmp_path / "images"
    root.mkdir()
    random = np.random.default_rng(0)
    found = []
    for number in range(COUNT):
        size = random.integers(6, 20, 2)
        Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)).save(root / f"{number}.png")
        content = hashlib.sha256((root / f"{number}.png").read_bytes()).hexdigest()
        found.append(Sample(f"{number}.png", 0, content, 0, 0))
    return root, found


def keep(
    folder: Path, images: tuple[Path, list[Sample]], name: str = "train", **how: int
) -> tuple[Any, Told]:
    told = Told()
    return decoded(folder, name, *images, preprocess(**how), told), told


def right(found: Any, images: tuple[Path, list[Sample]], **how: int) -> bool:
    root, samples = images
    return len(samples) == COUNT and all(
        np.array_equal(found[n], resized(root / s.path, preprocess(**how)).transpose(2, 0, 1))
        for n, s in enumerate(samples)
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_those_that_decoding_gives(tmp_path: Path, images: Any, channels: int) -> None:
    found, told = keep(tmp_path / "c", images, channels=channels)
    assert isinstance(found, Decoded)
    assert right(found, images, channels=channels)
    assert told.decoded == COUNT
    assert not found[0].flags.writeable


def test_it_is_found_again_without_a_look_at_the_images(tmp_path: Path, images: Any) -> None:
    first, _ = keep(tmp_path / "c", images)
    pixels = np.array(first[3])
    for file in images[0].iterdir():
        file.unlink()
    again, told = keep(tmp_path / "c", images)
    assert told.decoded == 0
    assert np.array_equal(again[3], pixels)


def test_mean_and_crop_do_not_matter_but_size_channels_and_interpolation_do(
    tmp_path: Path, images: Any
) -> None:
    keep(tmp_path / "c", images)
    other = preprocess().model_copy(update={"mean": (0.1,) * 3, "size_px": 2})
    told = Told()
    decoded(tmp_path / "c", "train", *images, other, told)
    assert told.decoded == 0
    for change in ({"resize_px": 9}, {"interpolation": "nearest"}):
        told = Told()
        decoded(tmp_path / "c", "train", *images, preprocess().model_copy(update=change), told)
        assert told.decoded == COUNT
    _, told = keep(tmp_path / "c", images)
    assert told.decoded == 0, "other sizes of the same images stay: a teacher's beside a student's"


def test_splits_lie_beside_each_other(tmp_path: Path, images: Any) -> None:
    root, samples = images
    for _ in range(2):
        train, told = keep(tmp_path / "c", (root, samples[:50]))
        val, _ = keep(tmp_path / "c", (root, samples[50:]), "val")
    assert told.decoded == 0
    assert np.array_equal(val[0], resized(root / "50.png", preprocess()).transpose(2, 0, 1))
    assert len(train.sizes) == 50


def test_other_images_take_the_place_of_earlier_ones(tmp_path: Path, images: Any) -> None:
    root, samples = images
    keep(tmp_path / "c", images)
    keep(tmp_path / "c", images, resize=9)
    keep(tmp_path / "c", images, "val")
    Image.new("RGB", (9, 9), (1, 2, 3)).save(root / "0.png")
    samples[0] = Sample("0.png", 0, "other", 0, 0)
    found, told = keep(tmp_path / "c", images)
    assert told.decoded == COUNT
    assert "train-8-3-bilinear.pixels: of other images, or not whole" in told.lines[-1]
    assert right(found, images)
    names = sorted(file.name for file in (tmp_path / "c").glob(f"*{PIXELS}"))
    assert [name.split("-")[:2] for name in names] == [["train", "8"], ["val", "8"]], (
        "what is out of date is gone"
    )


def remade(folder: Path, images: Any) -> None:
    found, told = keep(folder, images)
    assert isinstance(found, Decoded)
    assert told.decoded == COUNT
    assert right(found, images)
    assert not list(folder.glob(f"*{PARTIAL}"))


def one(folder: Path, end: str) -> Path:
    (found,) = folder.glob(f"*{end}")
    return found


def test_a_half_written_one_is_made_anew(tmp_path: Path, images: Any) -> None:
    folder = tmp_path / "c"
    keep(folder, images)
    file = one(folder, PIXELS)
    # Killed while writing: a beginning under its own name, nothing else.
    file.rename(file.with_suffix(PARTIAL))
    one(folder, INDEX).unlink()
    (folder / f"train-99-3-bilinear{PARTIAL}").write_bytes(b"of another size")
    remade(folder, images)
    # Killed between the pixels and their index.
    one(folder, INDEX).unlink()
    remade(folder, images)
    # Cut off by something else.
    os.truncate(one(folder, PIXELS), 1000)
    remade(folder, images)


def change_a_pixel(folder: Path) -> None:
    file = one(folder, PIXELS)
    data = bytearray(file.read_bytes())
    data[1000] ^= 1
    file.write_bytes(data)
    later = time.time() + 5
    os.utime(file, (later, later))


def change_an_index(folder: Path) -> None:
    file = one(folder, INDEX)
    found = json.loads(file.read_text())
    found["sizes"][:2] = [[1, 1], [10**6, 10**6]]
    file.write_text(json.dumps(found))


def swap_two_sizes(folder: Path) -> None:
    file = one(folder, INDEX)
    found = json.loads(file.read_text())
    found["sizes"].reverse()
    file.write_text(json.dumps(found))


def break_an_index(folder: Path) -> None:
    one(folder, INDEX).write_bytes(b"\xff{[")


def empty_an_index(folder: Path) -> None:
    one(folder, INDEX).write_text("[]")


@pytest.mark.parametrize(
    "tamper", [change_a_pixel, change_an_index, swap_two_sizes, break_an_index, empty_an_index]
)
def test_one_that_was_tampered_with_is_made_anew(tmp_path: Path, images: Any, tamper: Any) -> None:
    keep(tmp_path / "c", images)
    tamper(tmp_path / "c")
    remade(tmp_path / "c", images)


def test_a_copy_is_hashed_once_and_used(tmp_path: Path, images: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(tmp_path / "c", images)
    later = time.time() + 0.01
    os.utime(one(tmp_path / "c", PIXELS), (later, later))
    time.sleep(0.02)
    hashed = []
    monkeypatch.setattr(
        cache, "sha256_of", lambda file: hashed.append(file) or hashlib.sha256(file.read_bytes()).hexdigest()
    )
    for _ in range(2):
        found, told = keep(tmp_path / "c", images)
        assert told.decoded == 0
    assert len(hashed) == 1
    assert right(found, images)


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path: Path, images: Any) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    stranger = folder / f"train-8-3-bilinear{PIXELS}"
    stranger.write_bytes(b"precious")
    found, told = keep(folder, images)
    assert isinstance(found, Undecoded)
    assert right(found, images)
    assert [file.name for file in folder.iterdir()] == [stranger.name]
    assert stranger.read_bytes() == b"precious"
    assert "warning" in told.lines[0]
    assert "holds something else" in told.lines[0]


def test_what_lies_in_our_folder_and_is_not_ours_stays(tmp_path: Path, images: Any) -> None:
    keep(tmp_path / "c", images)
    (tmp_path / "c" / "notes.txt").write_text("mine")
    (tmp_path / "c" / "folder").mkdir()
    one(tmp_path / "c", INDEX).unlink()
    remade(tmp_path / "c", images)
    assert (tmp_path / "c" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "c" / "folder").is_dir()


def test_backups_are_told_to_skip_it(tmp_path: Path, images: Any) -> None:
    keep(tmp_path / "c", images)
    assert (tmp_path / "c" / TAG_FILE).read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55\n")


@pytest.mark.parametrize("bytes_free", [5 * 8 * 8 * 3 * COUNT - 1, 5 * 8 * 9 * 3 * COUNT])
def test_more_than_its_share_of_the_disk_is_not_kept(
    tmp_path: Path, images: Any, monkeypatch: pytest.MonkeyPatch, bytes_free: int
) -> None:
    # Seen at once, or once the first images turn out to be larger than squares.
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: type("Usage", (), {"free": bytes_free}))
    found, told = keep(tmp_path / "c", images)
    assert isinstance(found, Undecoded)
    assert right(found, images)
    assert told.decoded < COUNT
    assert [file.name for file in (tmp_path / "c").iterdir()] == [TAG_FILE]
    (line,) = told.lines
    assert "20%" in line
    assert "decoded whenever they are needed" in line


def full_disk(tmp_path: Path, images: Any, monkeypatch: pytest.MonkeyPatch) -> Told:
    real, written = Path.open, [0]

    def opened(self: Path, *args: Any, **options: Any) -> Any:
        handle = real(self, *args, **options)
        if self.name.endswith(PARTIAL):
            write = handle.write

            def limited(data: Any) -> int:
                written[0] += 1
                if written[0] > 20:
                    raise OSError(errno.ENOSPC, "No space left on device", str(self))
                return write(data)

            class Full:
                __enter__ = lambda _: Full()  # noqa: E731
                __exit__ = lambda _, *error: handle.close()  # noqa: E731

            Full.write = staticmethod(limited)  # type: ignore[attr-defined]
            return Full()
        return handle

    monkeypatch.setattr(Path, "open", opened)
    found, told = keep(tmp_path / "c", images)
    monkeypatch.undo()
    assert isinstance(found, Undecoded)
    assert right(found, images)
    return told


def test_a_disk_that_fills_up_costs_nothing_but_a_warning(
    tmp_path: Path, images: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = full_disk(tmp_path, images, monkeypatch)
    assert "warning: decoded images cannot be kept" in told.lines[0]
    assert "No space left" in told.lines[0]
    assert [file.name for file in (tmp_path / "c").iterdir()] == [TAG_FILE]
    remade(tmp_path / "c", images)


def test_a_place_that_cannot_be_written_costs_nothing_but_a_warning(tmp_path: Path, images: Any) -> None:
    (tmp_path / "c").write_text("a file")
    found, told = keep(tmp_path / "c", images)
    assert right(found, images)
    assert "warning" in told.lines[0]
    assert (tmp_path / "c").read_text() == "a file"


def test_an_unreadable_image_is_named_and_leaves_nothing_half_done(tmp_path: Path, images: Any) -> None:
    root, _ = images
    whole = (root / "66.png").read_bytes()
    (root / "66.png").write_bytes(whole[:50])
    with pytest.raises(ConfigError, match=r"66\.png: not a readable image"):
        keep(tmp_path / "c", images)
    assert [file.name for file in (tmp_path / "c").iterdir()] == [TAG_FILE]
    (root / "66.png").write_bytes(whole)
    remade(tmp_path / "c", images)


@pytest.mark.slow
def test_processes_wait_for_each_other_and_share_one_file(tmp_path: Path, images: Any) -> None:
    code = """
import pickle, sys
from pathlib import Path
from edgetune.data.cache import decoded
folder, images, preprocess = pickle.load(sys.stdin.buffer)
sys.path.insert(0, "")
from edgetune.progress import Silent
class Told(Silent):
    count = 0
    def advance(self, count=1, **_): self.count += count
told = Told()
found = decoded(folder, "train", *images, preprocess, told)
print(told.count, int(found[5].sum()), type(found).__name__)
"""
    import pickle

    given = pickle.dumps((tmp_path / "c", images, preprocess()))
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    for process in running:
        assert process.stdin
        process.stdin.write(given)
        process.stdin.close()
    told = sorted(process.stdout.read().split() for process in running if process.stdout)
    assert all(process.wait() == 0 for process in running)
    total = str(int(resized(images[0] / "5.png", preprocess()).sum())).encode()
    assert told == [
        [b"0", total, b"Decoded"],
        [b"0", total, b"Decoded"],
        [str(COUNT).encode(), total, b"Decoded"],
    ]


def test_no_images_need_no_file(tmp_path: Path) -> None:
    found, told = keep(tmp_path / "c", (tmp_path, []))
    assert isinstance(found, Undecoded)
    assert not (tmp_path / "c").exists()
    assert not told.lines
