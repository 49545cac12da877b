"""From an image file to numbers: decode, resize, crop, normalise. The one implementation that there is.

Training, calibration, checking and prediction all read images here, so they cannot disagree. It knows no
network. It may import errors, artifact, progress and data.folders (for the types).
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from edgetune.artifact import Preprocess
from edgetune.data.folders import Sample
from edgetune.errors import ConfigError
from edgetune.progress import Progress, Silent

WORKERS = 2
CACHE_BYTES = 1 << 30
RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
# What Pillow raises for files that are broken, unsupported, or made to exhaust memory.
BROKEN = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    MemoryError,
    Image.DecompressionBombError,
)
WIDE_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")


def decode(path: Path, channels: int, at_least_px: int = 0) -> Image.Image:
    """Read an image as it is meant to be seen.

    EXIF rotation is applied, transparency is laid on white, palettes and CMYK become colours, 16 bits are
    scaled to 8 (not cut off), only the first frame of an animation counts.

    Args:
        path: JPEG, PNG, BMP, WebP or TIFF.
        channels: 3 for RGB, 1 for luma (ITU-R BT.601).
        at_least_px: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, at least twice this large.

    Raises:
        ConfigError: it cannot be read; names the file.
    """
    mode = "RGB" if channels == 3 else "L"
    try:
        with Image.open(path) as opened:
            if at_least_px and opened.format == "JPEG":
                shorter = 2 * at_least_px
                opened.draft(None, (shorter, shorter))
            image = ImageOps.exif_transpose(opened)
            return _flatten(image).convert(mode)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: is gone", hint="run again; the folder is then read anew") from error
    except BROKEN as error:
        raise ConfigError(f"{path}: not a readable image: {_reason(error)}") from error


def _flatten(image: Image.Image) -> Image.Image:
    """Bring any mode to one that converts to RGB and L without losing what it shows."""
    if image.mode in WIDE_MODES:
        return _to_8_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        seen = image.convert("RGBA")
        white = Image.new("RGBA", seen.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, seen).convert("RGB")
    return image.convert("RGB") if image.mode in ("P", "CMYK", "YCbCr", "LAB", "HSV") else image


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit gray to 8 bits; floats that run from 0 to 1 are scaled by 255, others cut off there."""
    values = np.asarray(image).astype(np.float64)
    unit = 1.0 if values.size and values.max() <= 1.0 else 255.0
    top = unit if image.mode == "F" else 65535.0
    return Image.fromarray(np.round(np.clip(values / top, 0, 1) * 255).astype(np.uint8))


def _reason(error: BaseException) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text.split(" '")[0].split(" <")[0]


def load(path: Path, preprocess: Preprocess, crop: bool = True) -> NDArray[np.uint8]:
    """Read an image, resize its shorter side and cut out the centre.

    Args:
        path: the file.
        preprocess: the sizes, the interpolation and the number of channels.
        crop: without it the whole resized image comes back.

    Returns:
        [C, H, W]; with crop H = W = size_px.

    Raises:
        ConfigError: it cannot be read.
    """
    image = decode(path, preprocess.channels, preprocess.resize_px)
    width, height = image.size
    scale = preprocess.resize_px / min(width, height)
    size = (max(preprocess.resize_px, round(width * scale)), max(preprocess.resize_px, round(height * scale)))
    size = (preprocess.resize_px, size[1]) if width <= height else (size[0], preprocess.resize_px)
    if size != image.size:
        image = image.resize(size, RESAMPLING[preprocess.interpolation])
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    pixels = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    return center_crop(pixels, preprocess.size_px) if crop else pixels


def center_crop(pixels: NDArray[np.uint8], size_px: int) -> NDArray[np.uint8]:
    """Cut the centre square out of an image [C, H, W] whose sides are at least `size_px`."""
    top = (pixels.shape[1] - size_px) // 2
    left = (pixels.shape[2] - size_px) // 2
    return pixels[:, top : top + size_px, left : left + size_px]


def normalise(batch: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.float32]:
    """Scale [N, C, H, W] from 0..255 to 0..1, subtract the mean, divide by the standard deviation."""
    mean = np.asarray(preprocess.mean, np.float32).reshape(1, -1, 1, 1)
    std = np.asarray(preprocess.std, np.float32).reshape(1, -1, 1, 1)
    scaled: NDArray[np.float32] = (batch.astype(np.float32) / np.float32(255) - mean) / std
    return scaled


def batches(
    root: Path,
    samples: Sequence[Sample],
    preprocess: Preprocess,
    batch: int,
    progress: Progress | None = None,
) -> Iterator[NDArray[np.float32]]:
    """Yield preprocessed inputs [N, C, H, W] in the samples' order; the last batch may be smaller.

    Two batches are decoded ahead, no more are in memory.

    Raises:
        ConfigError: a file that was readable no longer is.
    """
    shown = progress or Silent()
    starts = range(0, len(samples), batch)
    with ThreadPoolExecutor(WORKERS) as pool:
        ahead: deque[list[Future[NDArray[np.uint8]]]] = deque()

        def submit(start: int) -> None:
            part = samples[start : start + batch]
            ahead.append([pool.submit(load, root / sample.path, preprocess) for sample in part])

        try:
            for start in starts[:2]:
                submit(start)
            for index in range(len(starts)):
                pixels = np.stack([future.result() for future in ahead.popleft()])
                if index + 2 < len(starts):
                    submit(starts[index + 2])
                yield normalise(pixels, preprocess)
                shown.advance(len(pixels))
        finally:
            pool.shutdown(cancel_futures=True)


class ImageCache:
    """Decoded, resized, uncropped images in memory, up to a limit; beyond it each is decoded anew."""

    def __init__(self, root: Path, preprocess: Preprocess, limit_bytes: int = CACHE_BYTES) -> None:
        self._root = root
        self._preprocess = preprocess
        self._left = limit_bytes
        self._kept: dict[str, NDArray[np.uint8]] = {}

    def get(self, sample: Sample) -> NDArray[np.uint8]:
        """Return the image [C, H, W], its shorter side resize_px.

        Raises:
            ConfigError: it cannot be read.
        """
        kept = self._kept.get(sample.path)
        if kept is not None:
            return kept
        pixels = load(self._root / sample.path, self._preprocess, crop=False)
        if pixels.nbytes <= self._left:
            self._left -= pixels.nbytes
            self._kept[sample.path] = pixels
        return pixels

    def fill(self, samples: Iterable[Sample], progress: Progress | None = None) -> None:
        """Decode what fits, in threads, so that the first epoch does not wait."""
        shown = progress or Silent()
        with ThreadPoolExecutor(WORKERS) as pool:
            for _ in pool.map(self.get, samples):
                shown.advance()
