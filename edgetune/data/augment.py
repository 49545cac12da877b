"""Random changes to training inputs, on whole batches: presets, and single knobs that override them.

What is done to an image is drawn on the CPU from numbers that hang on seed, version and image alone; it is
done to all images of a batch at once, on whatever device they are. So neither the batch that an image is in
nor the device changes the draw. Draws are shares of an image's sides: networks with other input sizes see
the same crop. It knows no network and no files. It may import errors, recipe and data.rand_augment.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2

from edgetune.data.rand_augment import OPERATIONS, rand_augment
from edgetune.recipe import AugmentSection

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Floats = NDArray[np.float64]

# A rectangle is drawn anew until it fits (torchvision's RandomResizedCrop and RandomErasing: so often).
ATTEMPTS = 10
CROP_RATIOS = (3 / 4, 4 / 3)
ERASED_SHARES = (0.02, 0.33)
ERASED_RATIOS = (0.3, 3.3)
# Luma and two of chroma (NTSC's YIQ): hue turns the chroma, saturation stretches it, luma stays.
YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
# Columns of the random numbers, and of the numbers that go to the device.
ROTATION, SHIFT, FLIP, COLOUR, ERASE, CROP, ERASED, LAYERS = 0, 1, 3, 4, 8, 9, 31, 53
AFFINE, RANGE, OFFSET, HOLE, MATRIX = slice(0, 6), slice(6, 10), 10, slice(11, 15), slice(15, None)


@dataclass(frozen=True)
class Knobs:
    """What an augmentation does; `AugmentSection` says what each knob means.

    Attributes:
        shift: largest shift to either side, as a share of the side; only where there is no random crop.
    """

    rotation_deg: float = 0.0
    crop_scale: float = 1.0
    flip: float = 0.0
    colour: float = 0.0
    rand_augment: int = 0
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    shift: float = 0.0


PRESETS: dict[str, Knobs] = {
    "none": Knobs(),
    "light": Knobs(flip=0.5, shift=0.08),
    "standard": Knobs(crop_scale=0.35, flip=0.5, colour=0.2),
    "strong": Knobs(crop_scale=0.25, flip=0.5, colour=0.2, rand_augment=2, erase=0.25, mixup=0.2, cutmix=1.0),
}


def knobs(section: AugmentSection) -> Knobs:
    """Return a section's preset with its single knobs put over it."""
    own = {f.name: getattr(section, f.name, None) for f in fields(Knobs)}
    return replace(
        PRESETS[section.preset], **{name: value for name, value in own.items() if value is not None}
    )


@dataclass(frozen=True)
class Plan:
    """What was drawn for the images of a batch.

    Attributes:
        boxes: what is looked at of each image: top, left, height, width in pixels [N, 4].
        numbers: for the device, float32 [N, ...].
        layers: RandAugment's operations, by number [N, layers].
    """

    boxes: NDArray[np.int64]
    numbers: Tensor
    layers: NDArray[np.int64]


@dataclass(frozen=True)
class Augment:
    """Changes batches of images, each in its own way.

    Attributes:
        knobs: what to do.
        size_px: of the squares that come out.
    """

    knobs: Knobs
    size_px: int

    def plan(self, key: int, images: NDArray[np.int64], sizes: NDArray[np.int64], channels: int) -> Plan:
        """Draw what is done.

        Args:
            key: of the seed and the version; 64 bits.
            images: their numbers [N].
            sizes: their heights and widths in pixels [N, 2].
            channels: 1 or 3.
        """
        chances = uniform(key, images, LAYERS + self.knobs.rand_augment)
        affine = self._affine(chances, sizes.astype(np.float64))
        boxes, ranges = _looked_at(affine, self.size_px, sizes)
        affine[:, [0, 3]] -= boxes[:, [1, 0]]
        offset, matrix = _colours(chances[:, COLOUR:ERASE], self.knobs.colour, channels)
        hole = _hole(chances, self.knobs.erase, self.size_px)
        numbers = np.concatenate([affine, ranges, offset[:, None], hole, matrix.reshape(len(images), -1)], 1)
        drawn = (chances[:, LAYERS:] * (2 * OPERATIONS)).astype(np.int64)
        layers = drawn.reshape(len(images), -1)[:, : self.knobs.rand_augment]
        return Plan(boxes, torch.from_numpy(numbers.astype(np.float32)), layers)

    def apply(self, pixels: Tensor, plan: Plan, numbers: Tensor) -> Tensor:
        """Do what was drawn.

        Args:
            pixels: uint8 [N, C, H, W]; of each image its box of the plan, at the top left.
            plan: of these images.
            numbers: the plan's, on the device.

        Returns:
            float32 [N, C, size_px, size_px], 0 to 255.
        """
        found = functional.grid_sample(
            pixels.float(), self._grid(pixels, numbers), "bilinear", "border", align_corners=True
        )
        if self.knobs.rand_augment:
            found = rand_augment(found.round_().to(torch.uint8), plan.layers).float()
        if self.knobs.colour:
            found = _coloured(found, numbers)
        if self.knobs.erase:
            found = found.masked_fill(_holes(numbers[:, HOLE], self.size_px), 0)
        return found

    def _affine(self, chances: Floats, sizes: Floats) -> Floats:
        """Return, per image, six numbers: x = a + b column + c row, and y alike, in the image's pixels."""
        side = self.size_px
        if self.knobs.crop_scale < 1:
            top, left, height, width = _crop(chances[:, CROP:ERASED], self.knobs.crop_scale, sizes)
        else:
            # Whole pixels: what is only shifted stays sharp.
            most = round(self.knobs.shift * side)
            shift = np.floor(chances[:, SHIFT:FLIP] * (2 * most + 1)) - most
            top, left = ((sizes - side) // 2 + shift).T
            height = width = np.full(len(sizes), float(side))
        across, down = width / side, height / side
        x, y = left + 0.5 * across - 0.5, top + 0.5 * down - 0.5
        flipped = chances[:, FLIP] < self.knobs.flip
        x = np.where(flipped, x + across * (side - 1), x)
        across = np.where(flipped, -across, across)
        angle = np.radians(self.knobs.rotation_deg) * (2 * chances[:, ROTATION] - 1)
        cos, sin = np.cos(angle), np.sin(angle)
        y0, x0 = (sizes.T - 1) / 2
        parts = [
            x0 + cos * (x - x0) - sin * (y - y0), cos * across, -sin * down,
            y0 + sin * (x - x0) + cos * (y - y0), sin * across, cos * down,
        ]  # fmt: skip
        return np.stack(parts, 1)

    def _grid(self, pixels: Tensor, numbers: Tensor) -> Tensor:
        """Return where each pixel comes from, as `grid_sample` counts: -1 to 1 over the width and height."""
        side, count = self.size_px, len(numbers)
        step = torch.arange(side, dtype=torch.float32, device=pixels.device)
        xa, xb, xc, ya, yb, yc = numbers[:, AFFINE, None, None].unbind(1)
        x, y = xa + xb * step, ya + yc * step[:, None]
        if self.knobs.rotation_deg:
            x, y = x + xc * step[:, None], y + yb * step
        if self.knobs.rotation_deg or self.knobs.shift:
            left, right, top, bottom = numbers[:, RANGE, None, None].unbind(1)
            x, y = _reflected(x, left, right), _reflected(y, top, bottom)
        x, y = x * (2 / max(1, pixels.shape[3] - 1)) - 1, y * (2 / max(1, pixels.shape[2] - 1)) - 1
        return torch.stack([x.expand(count, side, side), y.expand(count, side, side)], 3)


def build_augment(knobs: Knobs, size_px: int) -> Augment | None:
    """Return what is done to training images, None where nothing is random.

    Args:
        knobs: what to do; mixing is not its business.
        size_px: of the squares that come out.
    """
    alone = replace(knobs, mixup=0.0, cutmix=0.0)
    return None if alone == Knobs() else Augment(alone, size_px)


def build_mix(knobs: Knobs, classes: int) -> Mix | None:
    """Return MixUp (arXiv:1710.09412), CutMix (arXiv:1905.04899), or a draw of both; None where both are off.

    They draw from torch's global generator, so `torch.manual_seed` repeats them.

    Args:
        knobs: the alphas; where both are on, each batch draws one of the two.
        classes: number of classes, K.

    Returns:
        A function from normalised images [N, C, H, W] and labels [N] to images and soft labels [N, K].
    """
    kinds = [v2.MixUp(alpha=knobs.mixup, num_classes=classes)] if knobs.mixup else []
    kinds += [v2.CutMix(alpha=knobs.cutmix, num_classes=classes)] if knobs.cutmix else []
    if not kinds:
        return None

    def mix(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        drawn = kinds[int(torch.randint(len(kinds), ()))]
        mixed, soft = drawn(images, labels)
        return mixed, soft

    return mix


def uniform(key: int, images: NDArray[np.int64], columns: int) -> Floats:
    """Return random numbers from 0 to 1, [N, columns], that hang on key, image and column alone.

    SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"): a counter,
    scrambled; here one counter for the image and, begun from there, one for the column.
    """
    golden = np.uint64(0x9E3779B97F4A7C15)

    def scrambled(start: NDArray[np.uint64], count: NDArray[np.int64]) -> NDArray[np.uint64]:
        z: NDArray[np.uint64] = start + (count.astype(np.uint64) + np.uint64(1)) * golden
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
        return z

    own = scrambled(np.full(len(images), key, np.uint64), images)
    bits = scrambled(own[:, None], np.arange(columns)) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def _rectangles(
    chances: Floats, shares: tuple[float, float], ratios: tuple[float, float], sizes: Floats
) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Draw heights and widths of a share of the area until they fit; and say whether any did."""
    area, ratio = chances[:, :ATTEMPTS], chances[:, ATTEMPTS : 2 * ATTEMPTS]
    area = sizes.prod(1)[:, None] * (shares[0] + (shares[1] - shares[0]) * area)
    ratio = np.exp(math.log(ratios[0]) + math.log(ratios[1] / ratios[0]) * ratio)
    height, width = np.sqrt(area / ratio), np.sqrt(area * ratio)
    fits = (height <= sizes[:, :1]) & (width <= sizes[:, 1:])
    first = np.arange(len(sizes)), fits.argmax(1)
    return height[first], width[first], fits[first]


def _crop(chances: Floats, least: float, sizes: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Draw top, left, height and width; where nothing fits, the largest rectangle of an allowed shape."""
    height, width, fits = _rectangles(chances, (least, 1.0), CROP_RATIOS, sizes)
    tall, wide = sizes.T
    height = np.where(fits, height, np.minimum(tall, wide / CROP_RATIOS[0]))
    width = np.where(fits, width, np.minimum(wide, tall * CROP_RATIOS[1]))
    place = np.where(fits[:, None], chances[:, -2:], 0.5)
    return (tall - height) * place[:, 0], (wide - width) * place[:, 1], height, width


def _looked_at(affine: Floats, side: int, sizes: NDArray[np.int64]) -> tuple[NDArray[np.int64], Floats]:
    """Return the box of pixels that is needed, and how far the image reaches, counted from the box.

    Beyond its border an image is reflected.
    """
    boxes, ranges = [], []
    for parts, last in ((affine[:, 3:], sizes[:, 0] - 1), (affine[:, :3], sizes[:, 1] - 1)):
        ends = parts[:, 1:] * (side - 1)
        low = np.floor(parts[:, 0] + np.minimum(ends, 0).sum(1) + 1e-6).astype(np.int64)
        high = np.ceil(parts[:, 0] + np.maximum(ends, 0).sum(1) - 1e-6).astype(np.int64)
        first = np.clip(np.minimum(low, 2 * last - high), 0, last)
        end = np.clip(np.maximum(high, -low), 0, last)
        boxes.append((first, end - first + 1))
        ranges += [-first, last - first]
    (top, height), (left, width) = boxes
    return np.stack([top, left, height, width], 1), np.stack(ranges[2:] + ranges[:2], 1).astype(np.float64)


def _reflected(place: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Fold places beyond the first or last pixel back."""
    span = high - low
    return high - ((place - low) % (2 * span).clamp(min=1) - span).abs()


def _colours(chances: Floats, strength: float, channels: int) -> tuple[Floats, Floats]:
    """Draw brightness, contrast, saturation and hue: x becomes matrix x + offset * mean luma of the image.

    All four are linear and do not hang on their order, where nothing is clipped in between.
    """
    factors = 1 + strength * (2 * chances[:, :3] - 1)
    brightness, contrast, saturation = factors.T
    offset = (1 - contrast) * brightness
    if channels == 1:
        return offset, (contrast * brightness)[:, None, None]
    turn = 2 * np.pi * min(0.5, strength / 4) * (2 * chances[:, 3] - 1)
    chroma = np.zeros((len(chances), 3, 3))
    chroma[:, 0, 0] = 1
    chroma[:, 1, 1] = chroma[:, 2, 2] = saturation * np.cos(turn)
    chroma[:, 2, 1] = saturation * np.sin(turn)
    chroma[:, 1, 2] = -chroma[:, 2, 1]
    return offset, (contrast * brightness)[:, None, None] * (np.linalg.inv(YIQ) @ chroma @ YIQ)


def _coloured(pixels: Tensor, numbers: Tensor) -> Tensor:
    count, channels = pixels.shape[:2]
    flat = pixels.flatten(2)
    means = flat.mean(2)
    luma = (
        means @ torch.tensor(YIQ[0], dtype=means.dtype, device=means.device) if channels == 3 else means[:, 0]
    )
    offset = (numbers[:, OFFSET] * luma)[:, None, None]
    matrix = numbers[:, MATRIX].reshape(count, channels, channels)
    return torch.baddbmm(offset, matrix, flat).clamp_(0, 255).reshape(pixels.shape)


def _hole(chances: Floats, chance: float, side: int) -> Floats:
    """Draw the rectangle that is erased: top, bottom, left, right; empty where there is none."""
    sizes = np.full((len(chances), 2), float(side))
    height, width, fits = _rectangles(chances[:, ERASED:LAYERS], ERASED_SHARES, ERASED_RATIOS, sizes)
    there = fits & (chances[:, ERASE] < chance)
    top, left = (side - height) * chances[:, LAYERS - 2], (side - width) * chances[:, LAYERS - 1]
    found = np.round(np.stack([top, top + height, left, left + width], 1))
    return np.where(there[:, None], found, 0.0)


def _holes(hole: Tensor, side: int) -> Tensor:
    """Return what is erased [N, 1, side, side]."""
    step = torch.arange(side, device=hole.device)
    top, bottom, left, right = hole[:, :, None].unbind(1)
    rows, columns = (step >= top) & (step < bottom), (step >= left) & (step < right)
    return (rows[:, :, None] & columns[:, None, :])[:, None]
