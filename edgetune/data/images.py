"""From an image file to numbers: resize, crop, normalise. The one implementation that there is.

Training, calibration, checking and prediction all read images here, so they cannot disagree. It knows no
network. It may import errors, artifact, machine, progress, data.decode, and data.folders for the types.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgetune.artifact import Preprocess, TensorSpec
from edgetune.data.decode import decode as decode
from edgetune.data.folders import Sample
from edgetune.machine import cores
from edgetune.progress import Progress, Silent

CACHE_BYTES = 1 << 30
CHUNK = 64
# So many times the shorter side is kept of the longer: a line of pixels must not fill memory once scaled up.
LONGEST = 8
RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


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
    # At twice the size or more the reduced scale of a JPEG leaves the resized pixels as they are, nearly.
    image = _middle(decode(path, preprocess.channels, 2 * preprocess.resize_px))
    scale = preprocess.resize_px / min(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    if size != image.size:
        image = image.resize(size, RESAMPLING[preprocess.interpolation])
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    pixels = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    return center_crop(pixels, preprocess.size_px) if crop else pixels


def _middle(image: Image.Image) -> Image.Image:
    """Cut the ends off an image that is extremely long."""
    longest = LONGEST * min(image.size)
    width, height = min(image.width, longest), min(image.height, longest)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height)) if (width, height) != image.size else image


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


def as_input(pixels: NDArray[np.uint8], preprocess: Preprocess, takes: TensorSpec) -> NDArray[Any]:
    """Return what a network's input takes of pixels [N, C, H, W].

    A uint8 input takes them as they are, since such a network normalises itself; any other one normalised. The
    channels come last where the input's shape has them there.
    """
    given: NDArray[Any] = pixels if takes.dtype == "uint8" else normalise(pixels, preprocess)
    own = preprocess.channels
    last = len(takes.shape) == 4 and takes.shape[1] != own and takes.shape[3] == own
    return np.ascontiguousarray(given.transpose(0, 2, 3, 1)) if last else given


def batches(
    root: Path,
    samples: Sequence[Sample],
    preprocess: Preprocess,
    batch: int,
    progress: Progress | None = None,
) -> Iterator[NDArray[np.float32]]:
    """Yield normalised images [N, C, H, W] in the samples' order; otherwise as `pixels`."""
    for part in pixels(root, samples, preprocess, batch, progress):
        yield normalise(part, preprocess)


def pixels(
    root: Path,
    samples: Sequence[Sample],
    preprocess: Preprocess,
    batch: int,
    progress: Progress | None = None,
) -> Iterator[NDArray[np.uint8]]:
    """Yield resized and cropped images [N, C, H, W] in the samples' order; the last batch may be smaller.

    One batch is decoded ahead. `progress` counts images; whoever calls begins and ends it.

    Raises:
        ConfigError: a file that was readable no longer is.
    """
    shown = progress or Silent()
    starts = range(0, len(samples), batch)
    with ThreadPoolExecutor(cores()) as pool:
        ahead: deque[list[Future[NDArray[np.uint8]]]] = deque()

        def submit(start: int) -> None:
            part = samples[start : start + batch]
            ahead.append([pool.submit(load, root / sample.path, preprocess) for sample in part])

        try:
            for start in starts[:2]:
                submit(start)
            for index in range(len(starts)):
                part = np.stack([future.result() for future in ahead.popleft()])
                if index + 2 < len(starts):
                    submit(starts[index + 2])
                yield part
                shown.advance(len(part))
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
        pixels = self._load(sample)
        self._keep(sample, pixels)
        return pixels

    def fill(self, samples: Iterable[Sample], progress: Progress | None = None) -> None:
        """Decode in threads until the limit is reached, so that the first epoch does not wait.

        Raises:
            ConfigError: one cannot be read.
        """
        shown = progress or Silent()
        wanted = [sample for sample in samples if sample.path not in self._kept]
        with ThreadPoolExecutor(cores()) as pool:
            for start in range(0, len(wanted), CHUNK):
                part = wanted[start : start + CHUNK]
                for sample, pixels in zip(part, pool.map(self._load, part), strict=True):
                    if not self._keep(sample, pixels):
                        return
                    shown.advance()

    def _load(self, sample: Sample) -> NDArray[np.uint8]:
        return load(self._root / sample.path, self._preprocess, crop=False)

    def _keep(self, sample: Sample, pixels: NDArray[np.uint8]) -> bool:
        if pixels.nbytes > self._left:
            return False
        self._left -= pixels.nbytes
        self._kept[sample.path] = pixels
        return True
