"""Random changes to training inputs: presets, and single knobs that override them.

Everything draws from torch's global generator, so `torch.manual_seed` repeats it. It knows no network and
no files. It may import errors and recipe.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2

from edgetune.recipe import AugmentSection

Augment = Callable[[Tensor], Tensor]
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


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


def build_augment(knobs: Knobs, size_px: int) -> Augment | None:
    """Return what is done to each training image, None where nothing is random.

    Args:
        knobs: what to do.
        size_px: of the square that comes out.

    Returns:
        A function from uint8 [C, H, W], at least `size_px` on each side, to uint8 [C, size_px, size_px].
    """
    if replace(knobs, mixup=0.0, cutmix=0.0) == Knobs():
        return None
    steps: list[Callable[[Tensor], Tensor]] = []
    if knobs.rotation_deg:
        steps.append(v2.RandomRotation(knobs.rotation_deg, v2.InterpolationMode.BILINEAR))
    if knobs.crop_scale < 1:
        steps.append(v2.RandomResizedCrop(size_px, scale=(knobs.crop_scale, 1.0), antialias=True))
    elif knobs.shift:
        steps.append(_Shifted(size_px, round(knobs.shift * size_px)))
    else:
        steps.append(v2.CenterCrop(size_px))
    if knobs.flip:
        steps.append(v2.RandomHorizontalFlip(knobs.flip))
    if knobs.rand_augment:
        steps.append(_as_colour(v2.RandAugment(knobs.rand_augment)))
    if knobs.colour:
        steps.append(_Colour(knobs.colour))
    if knobs.erase:
        steps.append(v2.RandomErasing(knobs.erase))

    def augment(image: Tensor) -> Tensor:
        for step in steps:
            image = step(image)
        return image

    return augment


def build_mix(knobs: Knobs, classes: int) -> Mix | None:
    """Return MixUp (arXiv:1710.09412), CutMix (arXiv:1905.04899), or a draw of both; None where both are off.

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


class _Shifted:
    """Cut a square out near the centre; beyond the border the image is reflected."""

    def __init__(self, size_px: int, most_px: int) -> None:
        self._size = size_px
        self._most = most_px

    def __call__(self, image: Tensor) -> Tensor:
        most = min(self._most, min(image.shape[-2:]) - 1)
        padded = functional.pad(image[None].float(), (most,) * 4, mode="reflect")[0].to(image.dtype)
        top = (padded.shape[-2] - self._size) // 2 + int(torch.randint(-most, most + 1, ()))
        left = (padded.shape[-1] - self._size) // 2 + int(torch.randint(-most, most + 1, ()))
        return padded[:, max(0, top) : max(0, top) + self._size, max(0, left) : max(0, left) + self._size]


class _Colour:
    """Change brightness and contrast, and of colour images saturation and hue."""

    def __init__(self, strength: float) -> None:
        self._gray = v2.ColorJitter(strength, strength)
        self._colour = v2.ColorJitter(strength, strength, strength, min(0.5, strength / 4))

    def __call__(self, image: Tensor) -> Tensor:
        changed: Tensor = (self._colour if image.shape[0] == 3 else self._gray)(image)
        return changed


def _as_colour(step: Callable[[Tensor], Tensor]) -> Augment:
    """Let a gray image pass as colour through a step that takes only that."""

    def through(image: Tensor) -> Tensor:
        if image.shape[0] == 3:
            return step(image)
        return step(image.expand(3, -1, -1).contiguous())[:1]

    return through
