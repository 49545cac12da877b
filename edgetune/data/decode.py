"""From a file's bytes to the picture a person sees, whatever the format stores: the one place that decodes.

It knows no folders, sizes or networks. It may import errors only.
"""

import io
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps

from edgetune.errors import ConfigError

# Content decides, not the ending; anything else that Pillow reads may start programs (EPS) and is refused.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF")
SCALED_FORMATS = ("JPEG", "MPO")
GRAY_MODES = frozenset(("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F"))
WIDE_MODES = frozenset(("I", "I;16", "I;16B", "I;16L", "F"))
CLEAR_MODES = frozenset(("RGBA", "LA", "PA"))


def decode(path: Path, channels: int, at_least_px: int = 0) -> Image.Image:
    """Read an image as it is meant to be seen.

    EXIF rotation is applied, transparency is laid on white, palettes and CMYK become colours (without their
    colour profile), 16 bits are scaled to 8 (not cut off), only the first frame of an animation counts.

    Args:
        path: JPEG, PNG, BMP, WebP, TIFF or GIF.
        channels: 3 for RGB, 1 for luma (ITU-R BT.601).
        at_least_px: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, with a shorter side at least this
            long; 0: in full.

    Raises:
        ConfigError: it cannot be read, or is larger than Pillow's limit for images from strangers; names
            the file.
    """
    try:
        with path.open("rb") as file:
            return _decode(file, at_least_px).convert("RGB" if channels == 3 else "L")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: is gone", hint="run again; the folder is then read anew") from error
    except Exception as error:  # what Pillow raises for hostile files is no closed set
        hint = "mend or remove it, and run again"
        raise ConfigError(f"{path}: not a readable image: {_reason(error)}", hint=hint) from error


def inspect(data: bytes) -> tuple[bool, str]:
    """Decode a file's content, a JPEG at an eighth of its size, as `decode` would.

    Returns:
        Whether it has one channel only, and why `decode` would refuse it (empty: it would not).
    """
    if not data:
        return False, "empty file"
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            gray = opened.mode in GRAY_MODES
            opened.draft(None, (1, 1))
            opened.load()
            _flatten(opened.crop((0, 0, 1, 1))).convert("RGB")
        return gray, ""
    except Exception as error:
        return False, _reason(error)


def _decode(file: IO[bytes], at_least_px: int) -> Image.Image:
    with Image.open(file, formats=FORMATS) as opened:
        if at_least_px and opened.format in SCALED_FORMATS:
            opened.draft(None, (at_least_px, at_least_px))
        opened.load()
        try:
            upright = ImageOps.exif_transpose(opened)
        except Exception:  # malformed EXIF is no reason to lose a whole picture
            upright = opened
        return _flatten(upright)


def _flatten(image: Image.Image) -> Image.Image:
    """Bring any mode to one that converts to RGB and L without losing what it shows."""
    if image.mode in WIDE_MODES:
        return _to_8_bits(image)
    if image.mode in CLEAR_MODES or "transparency" in image.info:
        seen = image.convert("RGBA")
        white = Image.new("RGBA", seen.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, seen).convert("RGB")
    return image if image.mode in ("1", "L") else image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16 bits to 8. Floats run from 0 to 1, or to 255 where one is above 1."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    top = 65535.0
    if image.mode == "F":
        top = 1.0 if values.max() <= 1 else 255.0
    return Image.fromarray(np.round(np.clip(values / top, 0, 1) * 255).astype(np.uint8))


def _reason(error: Exception) -> str:
    """Shorten an error to a line without addresses in memory."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0].split(" '")[0].split(" <")[0]
