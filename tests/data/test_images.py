"""From files to numbers: sizes, order, memory."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgetune.artifact import Preprocess
from edgetune.data.folders import Sample
from edgetune.data.images import LONGEST, batches, in_threads, load, normalise, resized
from edgetune.errors import ConfigError

RED, GREEN = (255, 0, 0), (0, 255, 0)


def preprocess(resize: int = 8, size: int = 8, channels: int = 3) -> Preprocess:
    return Preprocess(
        resize_px=resize, size_px=size, channels=channels, mean=(0.5,) * channels, std=(0.25,) * channels
    )


@given(width=st.integers(1, 70), height=st.integers(1, 70), size=st.integers(1, 24), more=st.integers(0, 8))
def test_any_shape_becomes_the_square_that_is_asked_for(
    width: int, height: int, size: int, more: int
) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.png"
        Image.new("RGB", (width, height), (10, 20, 30)).save(path)
        cropped = load(path, preprocess(size + more, size))
        assert cropped.shape == (3, size, size)
        assert cropped[:, 0, 0].tolist() == [10, 20, 30]
        whole = resized(path, preprocess(size + more, size))
        assert min(whole.shape[:2]) == size + more
        assert whole.shape[2] == 3


def test_the_centre_is_cut_out(tmp_path: Path) -> None:
    image = Image.new("RGB", (12, 8), RED)
    image.paste(GREEN, (4, 2, 8, 6))
    image.save(tmp_path / "x.png")
    assert (load(tmp_path / "x.png", preprocess(8, 4)).transpose(1, 2, 0) == GREEN).all()


def test_a_large_jpeg_is_read_at_reduced_scale_alike(tmp_path: Path) -> None:
    gradient = np.tile(np.linspace(0, 255, 512, dtype=np.uint8)[:, None, None], (1, 512, 3))
    Image.fromarray(gradient).save(tmp_path / "x.jpg", quality=95)
    Image.fromarray(gradient).save(tmp_path / "x.png")
    jpeg, png = (load(tmp_path / f"x.{e}", preprocess(32, 32)).astype(int) for e in ("jpg", "png"))
    assert np.abs(jpeg - png).max() <= 4


def test_normalise_is_the_formula() -> None:
    batch = np.array([0, 51, 255], np.uint8).reshape(3, 1, 1, 1).repeat(3, 1)
    scaled = normalise(batch, preprocess())
    assert scaled.dtype == np.float32
    assert scaled[:, 0, 0, 0] == pytest.approx([(0 - 0.5) / 0.25, (0.2 - 0.5) / 0.25, (1 - 0.5) / 0.25])


def samples(folder: Path, count: int) -> list[Sample]:
    for index in range(count):
        Image.new("L", (8, 8), index).save(folder / f"{index}.png")
    return [Sample(f"{index}.png", 0, "", 0, 0) for index in range(count)]


@pytest.mark.parametrize(
    ("count", "batch", "sizes"), [(0, 4, []), (7, 3, [3, 3, 1]), (4, 4, [4]), (3, 8, [3])]
)
def test_batches_come_in_order(tmp_path: Path, count: int, batch: int, sizes: list[int]) -> None:
    found = list(batches(tmp_path, samples(tmp_path, count), preprocess(channels=1), batch))
    assert [len(part) for part in found] == sizes
    values = [round(float(x) * 0.25 * 255 + 0.5 * 255) for part in found for x in part[:, 0, 0, 0]]
    assert values == list(range(count))


def test_batches_name_a_file_that_broke_since(tmp_path: Path) -> None:
    listed = samples(tmp_path, 5)
    (tmp_path / "3.png").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"3\.png"):
        list(batches(tmp_path, listed, preprocess(channels=1), 2))


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1)])
def test_a_line_of_pixels_fills_no_memory(tmp_path: Path, size: tuple[int, int]) -> None:
    image = Image.new("L", size, 0)
    image.paste(200, (size[0] // 2 - 4, size[1] // 2 - 4, size[0] // 2 + 5, size[1] // 2 + 5))
    image.save(tmp_path / "x.png")
    pixels = resized(tmp_path / "x.png", preprocess(32, 16))
    assert sorted(pixels.shape[:2]) == [32, 32 * LONGEST]
    assert (load(tmp_path / "x.png", preprocess(32, 16)) == 200).all()


def test_threads_keep_the_order_and_stay_two_parts_ahead() -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        return item * item

    found = in_threads(work, [range(n, n + 3) for n in range(0, 30, 3)])
    assert next(found) == [0, 1, 4]
    assert max(begun) < 9, "a part that is asked for, and two more"
    assert [item for part in found for item in part] == [n * n for n in range(3, 30)]


def test_giving_up_on_batches_stops_the_threads(tmp_path: Path) -> None:
    found = batches(tmp_path, samples(tmp_path, 30), preprocess(channels=1), 2)
    next(found)
    found.close()
    with pytest.raises(StopIteration):
        next(found)
