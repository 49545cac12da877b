"""Every mode of image becomes the pixels that a person would see."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgetune.artifact import Preprocess
from edgetune.data.folders import Sample
from edgetune.data.images import ImageCache, batches, decode, load, normalise
from edgetune.errors import ConfigError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def preprocess(resize: int = 8, size: int = 8, channels: int = 3) -> Preprocess:
    return Preprocess(
        resize_px=resize, size_px=size, channels=channels, mean=(0.5,) * channels, std=(0.25,) * channels
    )


def pixel(image: Image.Image, x: int = 0, y: int = 0) -> object:
    return image.getpixel((x, y))


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 2), RED)
    image.putpixel((0, 0), BLUE)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to see it upright
    image.save(tmp_path / "x.png", exif=exif)
    seen = decode(tmp_path / "x.png", 3)
    assert seen.size == (2, 4)
    assert pixel(seen, 1, 0) == BLUE


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("RGBA", (2, 2), (255, 0, 0, 128)).save(tmp_path / "half.png")
    Image.new("LA", (2, 2), (0, 0)).save(tmp_path / "gray.png")
    assert pixel(decode(tmp_path / "clear.png", 3)) == (255, 255, 255)
    red, green, blue = pixel(decode(tmp_path / "half.png", 3))  # type: ignore[misc]
    assert red == 255
    assert green == blue == pytest.approx(127, abs=1)
    assert pixel(decode(tmp_path / "gray.png", 1)) == 255


def test_palettes_become_colours(tmp_path: Path) -> None:
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, *GREEN])
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "clear.png", transparency=1)
    assert pixel(decode(tmp_path / "plain.png", 3)) == GREEN
    assert pixel(decode(tmp_path / "clear.png", 3)) == (255, 255, 255)


@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_16_bits_are_scaled_not_cut_off(tmp_path: Path, ending: str) -> None:
    values = np.array([[0, 257 * 10], [257 * 128, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"x.{ending}")
    for channels in (1, 3):
        seen = np.asarray(decode(tmp_path / f"x.{ending}", channels))
        assert seen.reshape(2, 2, -1)[..., 0].tolist() == [[0, 10], [128, 255]]


def test_cmyk_is_not_inverted(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "x.jpg", quality=95)
    red, green, blue = pixel(decode(tmp_path / "x.jpg", 3))  # type: ignore[misc]
    assert red > 230
    assert green < 25
    assert blue < 25


def test_one_bit_and_gray(tmp_path: Path) -> None:
    Image.new("1", (2, 2), 1).save(tmp_path / "bit.png")
    Image.new("L", (2, 2), 77).save(tmp_path / "gray.bmp")
    assert pixel(decode(tmp_path / "bit.png", 3)) == (255, 255, 255)
    assert pixel(decode(tmp_path / "gray.bmp", 3)) == (77, 77, 77)
    assert pixel(decode(tmp_path / "gray.bmp", 1)) == 77


def test_luma_of_colours(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2), RED).save(tmp_path / "x.webp", lossless=True)
    assert pixel(decode(tmp_path / "x.webp", 1)) == 76  # 0.299 * 255


def test_an_animation_is_its_first_frame(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (2, 2), RED), Image.new("RGB", (2, 2), BLUE)
    first.save(tmp_path / "x.webp", save_all=True, append_images=[second], lossless=True)
    assert pixel(decode(tmp_path / "x.webp", 3)) == RED


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n"])
def test_a_broken_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ConfigError, match=r"x\.png: not a readable image"):
        decode(tmp_path / "x.png", 3)


def test_a_truncated_jpeg_is_named(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(stream, "JPEG")
    (tmp_path / "x.jpg").write_bytes(stream.getvalue()[:600])
    with pytest.raises(ConfigError, match=r"x\.jpg: not a readable image: .*(?i:truncated)"):
        decode(tmp_path / "x.jpg", 3)


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (300, 300)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ConfigError, match="decompression bomb"):
        decode(tmp_path / "x.png", 3)


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"x\.png: is gone"):
        decode(tmp_path / "x.png", 3)


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
        whole = load(path, preprocess(size + more, size), crop=False)
        assert min(whole.shape[1:]) == size + more


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


def test_the_cache_keeps_what_fits(tmp_path: Path) -> None:
    listed = samples(tmp_path, 3)
    cache = ImageCache(tmp_path, preprocess(channels=1), limit_bytes=2 * 64)
    cache.fill(listed)
    for name in ("0.png", "1.png", "2.png"):
        (tmp_path / name).unlink()
    kept = 0
    for sample in listed:
        try:
            assert cache.get(sample)[0, 0, 0] == int(sample.path[0])
            kept += 1
        except ConfigError:
            continue
    assert kept == 2
