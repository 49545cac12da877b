"""From an image file to numbers: resize, crop, normalise. The one implementation that there is.

Training, calibration, checking and prediction all read images here, so they cannot disagree. It knows no
network. It may import errors, artifact, machine, progress, data.decode, and data.folders for the types.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgetune.artifact import Preprocess, TensorSpec
from edgetune.data.decode import decode as decode
from edgetune.data.folders import Sample
from edgetune.machine import cores
from edgetune.progress import Progress, Silent

Given = TypeVar("Given")
Made = TypeVar("Made")
AHEAD = 2
# So many times the shorter side is kept of the longer: a line of pixels must not fill memory once scaled up.
LONGEST = 8
RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def load(path: Path, preprocess: Preprocess) -> NDArray[np.uint8]:
    """Read an image, resize its shorter side and cut out the centre.

    Returns:
        [C, size_px, size_px].

    Raises:
        ConfigError: it cannot be read.
    """
    return np.ascontiguousarray(center_crop(resized(path, preprocess), preprocess.size_px).transpose(2, 0, 1))


def resized(path: Path, preprocess: Preprocess) -> NDArray[np.uint8]:
    """Read an image and resize its shorter side.

    Args:
        path: the file.
        preprocess: the size, the interpolation and the number of channels.

    Returns:
        [H, W, C], the shorter side resize_px.

    Raises:
        ConfigError: it cannot be read.
    """
    # At twice the size or more the reduced scale of a JPEG leaves the resized pixels as they are, nearly.
    image = _middle(decode(path, preprocess.channels, 2 * preprocess.resize_px))
    scale = preprocess.resize_px / min(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    if size != image.size:
        image = image.resize(size, RESAMPLING[preprocess.interpolation])
    return np.asarray(image).reshape(size[1], size[0], preprocess.channels)


def _middle(image: Image.Image) -> Image.Image:
    """Cut the ends off an image that is extremely long."""
    longest = LONGEST * min(image.size)
    width, height = min(image.width, longest), min(image.height, longest)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height)) if (width, height) != image.size else image


def center_crop(pixels: NDArray[np.uint8], size_px: int) -> NDArray[np.uint8]:
    """Cut the centre square out of an image [H, W, C] whose sides are at least `size_px`."""
    top, left = (pixels.shape[0] - size_px) // 2, (pixels.shape[1] - size_px) // 2
    return pixels[top : top + size_px, left : left + size_px]


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
    parts = [samples[start : start + batch] for start in range(0, len(samples), batch)]
    for part in in_threads(lambda sample: load(root / sample.path, preprocess), parts):
        yield np.stack(part)
        shown.advance(len(part))


def in_threads(work: Callable[[Given], Made], parts: Iterable[Sequence[Given]]) -> Iterator[list[Made]]:
    """Yield what work makes of each part's items, in order; two parts ahead, on all cores.

    Threads, not processes: Pillow decodes and resizes without Python's lock, and nothing is copied.
    """
    with ThreadPoolExecutor(cores()) as pool:
        ahead: deque[list[Future[Made]]] = deque()
        try:
            for part in parts:
                ahead.append([pool.submit(work, item) for item in part])
                if len(ahead) > AHEAD:
                    yield [future.result() for future in ahead.popleft()]
            while ahead:
                yield [future.result() for future in ahead.popleft()]
        finally:
            pool.shutdown(cancel_futures=True)
