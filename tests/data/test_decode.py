"""Every mode of image becomes the pixels that a person would see, and a broken one is named."""

import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "tif", "jpg"])
def test_every_orientation_is_put_upright(tmp_path: Path, orientation: int, ending: str) -> None:
    """The corner that is marked stands where the EXIF standard (CIPA DC-008, 4.6.4) puts row 0, column 0."""
    image = Image.new("L", (64, 32), 0)
    image.paste(255, (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / f"x.{ending}", exif=exif)
    seen = np.asarray(decode(tmp_path / f"x.{ending}", 1)) > 128
    assert seen.shape == ((32, 64) if orientation < 5 else (64, 32))
    row = 0 if orientation in (1, 2, 5, 6) else -1
    column = 0 if orientation in (1, 4, 5, 8) else -1
    assert seen[row, column]
    assert seen.sum() == 16 * 16


def test_malformed_exif_costs_no_picture(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), RED).save(
        tmp_path / "x.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12", quality=95
    )
    with pytest.warns(UserWarning, match="EXIF"):
        red, _, _ = pixel(decode(tmp_path / "x.jpg", 3))  # type: ignore[misc]
    assert red > 250


@pytest.mark.parametrize(
    ("name", "image", "expected"),
    [
        ("float.tif", np.full((2, 2), 0.2, np.float32), 51),
        ("float255.tif", np.full((2, 2), 51, np.float32), 51),
        ("nan.tif", np.full((2, 2), np.nan, np.float32), 0),
        ("int.tif", np.full((2, 2), 257 * 51, np.int32), 51),
        ("short.tif", np.full((2, 2), 257 * 51, np.uint16), 51),
    ],
)  # fmt: skip
def test_wide_gray_is_scaled(tmp_path: Path, name: str, image: np.ndarray, expected: int) -> None:
    Image.fromarray(image).save(tmp_path / name)
    assert pixel(decode(tmp_path / name, 3)) == (expected,) * 3
    assert inspect((tmp_path / name).read_bytes()) == (True, "")


@pytest.mark.parametrize(
    ("mode", "ending", "gray"),
    [
        ("1", "png", True),
        ("L", "jpg", True),
        ("LA", "png", True),
        ("RGB", "webp", False),
        ("P", "png", False),
    ],
)
def test_gray_is_told_from_colour(tmp_path: Path, mode: str, ending: str, gray: bool) -> None:
    Image.new(mode, (4, 4)).save(tmp_path / f"x.{ending}")
    assert inspect((tmp_path / f"x.{ending}").read_bytes()) == (gray, "")


def test_content_decides_not_the_ending_and_no_program_is_started(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), RED).save(tmp_path / "x.png", "JPEG", quality=95)
    assert decode(tmp_path / "x.png", 3).size == (4, 4)
    (tmp_path / "y.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(ConfigError, match="cannot identify"):
        decode(tmp_path / "y.png", 3)


def test_a_reduced_scale_is_never_too_small(tmp_path: Path) -> None:
    Image.new("RGB", (400, 100)).save(tmp_path / "x.jpg")
    wide = {size: decode(tmp_path / "x.jpg", 3, size).width for size in (0, 101, 100, 51, 50, 26, 1)}
    assert wide == {0: 400, 101: 400, 100: 400, 51: 400, 50: 200, 26: 200, 1: 50}


SOURCES = [
    ("RGB", "JPEG"),
    ("L", "JPEG"),
    ("CMYK", "JPEG"),
    ("P", "PNG"),
    ("LA", "PNG"),
    ("RGB", "BMP"),
    ("RGB", "WEBP"),
]


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(SOURCES),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4),
    st.data(),
)
def test_scan_and_training_agree_on_what_is_broken(
    source: tuple[str, str], flips: list[tuple[int, int]], data: st.DataObject
) -> None:
    mode, kind = source
    stream = io.BytesIO()
    image = Image.linear_gradient("L").resize((24, 24)).convert("RGB" if mode == "CMYK" else "L")
    image.convert(mode).save(stream, kind)
    content = bytearray(stream.getvalue())
    for place, value in flips:
        content[place % len(content)] = value
    content = content[: data.draw(st.sampled_from([len(content), len(content), len(content) // 2]))]
    _, reason = inspect(bytes(content))
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        if reason:
            with pytest.raises(ConfigError):
                decode(Path(file.name), 3)
        else:
            assert decode(Path(file.name), 3).mode == "RGB"
