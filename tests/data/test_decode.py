"""Every mode of image becomes the pixels that a person would see, and a broken one is named."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgetune.data.decode import decode, inspect
from edgetune.errors import ConfigError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


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
