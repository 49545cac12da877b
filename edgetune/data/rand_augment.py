"""RandAugment (Cubuk et al. 2019, arXiv:1909.13719) on whole batches: images with the same operation at once.

Operations and strengths are torchvision's RandAugment at magnitude 9 of 31. It knows no random numbers: what
is done is given. It may import nothing of edgetune.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional

LEVEL = 9 / 30
SHEAR_DEG = math.degrees(math.atan(0.3 * LEVEL))
SHIFT = 150 / 331 * LEVEL
ENHANCED = 0.9 * LEVEL
POSTERIZED_BITS = 7
SOLARIZED = 255 * (1 - LEVEL)


def _moved(
    pixels: Tensor, across: float = 0, down: float = 0, shear_x: float = 0, shear_y: float = 0
) -> Tensor:
    moved: Tensor = functional.affine(
        pixels, 0.0, [int(across), int(down)], 1.0, [shear_x, shear_y],
        center=[0, 0] if shear_x or shear_y else None,
    )  # fmt: skip
    return moved


# Of images uint8 [N, C, H, W] and a sign, of which those below the first few make no use.
_OPERATIONS: tuple[Callable[[Tensor, int], Tensor], ...] = (
    lambda x, sign: _moved(x, shear_x=sign * SHEAR_DEG),
    lambda x, sign: _moved(x, shear_y=sign * SHEAR_DEG),
    lambda x, sign: _moved(x, across=sign * SHIFT * x.shape[3]),
    lambda x, sign: _moved(x, down=sign * SHIFT * x.shape[2]),
    lambda x, sign: functional.rotate(x, sign * 30 * LEVEL),
    lambda x, sign: functional.adjust_brightness(x, 1 + sign * ENHANCED),
    lambda x, sign: functional.adjust_saturation(x, 1 + sign * ENHANCED),
    lambda x, sign: functional.adjust_contrast(x, 1 + sign * ENHANCED),
    lambda x, sign: functional.adjust_sharpness(x, 1 + sign * ENHANCED),
    lambda x, _: functional.posterize(x, POSTERIZED_BITS),
    lambda x, _: functional.solarize(x, SOLARIZED),
    lambda x, _: functional.autocontrast(x),
    lambda x, _: functional.equalize(x),
    lambda x, _: x,
)
OPERATIONS = len(_OPERATIONS)


def rand_augment(pixels: Tensor, layers: NDArray[np.int64]) -> Tensor:
    """Apply operations, one after the other.

    Args:
        pixels: uint8 [N, C, H, W].
        layers: [N, layers], each twice the number of an operation, plus 1 where its sign is negative.
    """
    colour = pixels.repeat(1, 3 // pixels.shape[1], 1, 1)
    for layer in layers.T:
        for drawn in np.unique(layer):
            same = torch.from_numpy(np.flatnonzero(layer == drawn)).to(pixels.device)
            colour[same] = _OPERATIONS[drawn // 2](colour[same], -1 if drawn % 2 else 1)
    return colour[:, : pixels.shape[1]]
