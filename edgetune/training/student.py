"""A student around its network: takes the views that its teacher sees, and lets its features be matched.

It knows no loss and no data. It may import errors, artifact, and this package's strategies.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgetune.artifact import How, Preprocess, Tokens
from edgetune.data.reader import example
from edgetune.data.tokens import MASK
from edgetune.errors import ConfigError, nearest
from edgetune.training.strategies import Layout

# What is trained beside the network and thrown away; a name that no network of its own has.
PROJECTIONS = "projections"
# ITU-R BT.601, as Pillow makes colours gray.
GRAY = (0.299, 0.587, 0.114)


def shared_view(student: How, teacher: How) -> How:
    """Return how images are cut for both: framed as the student's, at the larger of the two sizes.

    Where the student's is the larger, this is the student's own. Texts are cut as the student's.

    Raises:
        ConfigError: one takes images and the other texts, or they read texts by different tokenizers.
    """
    if isinstance(student, Tokens) and isinstance(teacher, Tokens):
        if student.tokenizer != teacher.tokenizer or student.length > teacher.length:
            wrong = "another tokenizer" if student.tokenizer != teacher.tokenizer else "shorter texts alone"
            raise ConfigError(
                f"distill.teacher: takes {wrong} than the student",
                hint="both read the same tokens: take them from one family, the teacher's length no smaller",
            )
        return student
    if isinstance(student, Tokens) or isinstance(teacher, Tokens):
        raise ConfigError("distill.teacher: one of teacher and student takes images, the other texts")
    size_px = max(student.size_px, teacher.size_px)
    channels = max(student.channels, teacher.channels)
    spread = channels // student.channels
    return student.model_copy(
        update={
            "size_px": size_px,
            "resize_px": max(size_px, round(size_px * student.resize_px / student.size_px)),
            "channels": channels,
            "mean": student.mean * spread,
            "std": student.std * spread,
        }
    )


def seen_by(images: Tensor, view: How, own: How) -> Tensor:
    """Turn a batch that is cut and scaled as `view` says into what another network takes of it.

    Args:
        images: [N, C, H, W], normalised.
        view: how.
        own: size, channels, mean and standard deviation that come out.

    Tokens of texts are the same for both.
    """
    if isinstance(view, Tokens) or isinstance(own, Tokens):
        return images
    images = resized(images, own.size_px, own.interpolation)
    if (view.channels, view.mean, view.std) == (own.channels, own.mean, own.std):
        return images
    mean, std = (_per_channel(values, images) for values in (view.mean, view.std))
    values = _with_channels(images * std + mean, own.channels)
    return (values - _per_channel(own.mean, images)) / _per_channel(own.std, images)


def resized(images: Tensor, size_px: int, interpolation: str = "bilinear") -> Tensor:
    """Resize [N, C, S, S] with antialiasing; what has the size already is returned as it is."""
    if images.shape[-1] == size_px:
        return images
    mode = "bicubic" if interpolation == "bicubic" else "bilinear"
    return functional.interpolate(images, (size_px, size_px), mode=mode, antialias=True)


def _per_channel(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device, dtype=like.dtype).view(1, -1, 1, 1)


def _with_channels(images: Tensor, channels: int) -> Tensor:
    if channels == images.shape[1]:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    return (images * _per_channel(GRAY, images)).sum(1, keepdim=True)


class Catcher:
    """Keeps what chosen layers of a network gave last."""

    def __init__(self, net: nn.Module, layers: Iterable[str], whose: str) -> None:
        """Listen to layers.

        Raises:
            ConfigError: the network has no such layer; the hint names the closest.
        """
        self.caught: dict[str, Tensor] = {}
        self._mask: Tensor | None = None
        net.register_forward_pre_hook(self._look)
        known = dict(net.named_modules())
        for layer in layers:
            if not layer or layer not in known:
                names = [name for name in known if name]
                raise ConfigError(
                    f"distill.features: the {whose} has no layer {layer!r}", hint=nearest(layer, names)
                )
            known[layer].register_forward_hook(partial(self._catch, layer))

    def _catch(self, layer: str, module: nn.Module, given: Any, made: Any) -> None:  # noqa: ARG002
        if self._mask is not None:
            made = made[0] if isinstance(made, tuple) else made
            if isinstance(made, Tensor) and made.ndim == 3:
                made = (made * self._mask).sum(1) / self._mask.sum(1)
        self.caught[layer] = made

    def _look(self, module: nn.Module, given: tuple[Tensor, ...]) -> None:  # noqa: ARG002
        """Of texts, remember which tokens are text: of what is caught of a text, their mean is kept."""
        tokens = given[0]
        self._mask = tokens[:, MASK, :, None].float() if tokens.ndim == 3 else None

    def shapes(self, whose: str) -> dict[str, tuple[int, ...]]:
        """Return the shapes of what was caught.

        Raises:
            ConfigError: a layer was not asked, or gives neither maps [N, C, H, W] nor vectors [N, C].
        """
        found = {}
        for layer, made in self.caught.items():
            if not isinstance(made, Tensor) or made.ndim not in (2, 4):
                what = list(made.shape) if isinstance(made, Tensor) else type(made).__name__
                raise ConfigError(
                    f"distill.features: layer {layer!r} of the {whose} gives {what}, neither maps [N, C, H, W] "
                    "nor vectors [N, C]"
                )
            found[layer] = tuple(made.shape)
        return found


class Student(nn.Module):
    """A network that learns from a teacher, and the 1x1 projections that are learned beside it."""

    def __init__(
        self,
        net: nn.Module,
        preprocess: How,
        layers: Mapping[str, str],
        shapes: Mapping[str, Sequence[int]],
    ) -> None:
        """Wrap a network.

        Args:
            net: is trained in place.
            preprocess: how images become its input.
            layers: of the student, each with the teacher's that it is matched with.
            shapes: of what the teacher's layers give, by their names.

        Raises:
            ConfigError: an unknown layer, or two that cannot be matched.
        """
        super().__init__()
        self.net = net
        self._how = preprocess
        self._catcher = Catcher(net, layers, "student")
        self.projections = nn.ModuleDict()
        self._places = {layer: str(place) for place, layer in enumerate(layers)}
        if layers:
            self._project(layers, shapes, preprocess)

    def _project(
        self, layers: Mapping[str, str], shapes: Mapping[str, Sequence[int]], preprocess: How
    ) -> None:
        with torch.no_grad():
            self.net.eval()(torch.from_numpy(example(preprocess, 1)))
        own = self._catcher.shapes("student")
        for layer, theirs in layers.items():
            if layer not in own:
                raise ConfigError(
                    f"distill.features: layer {layer!r} of the student takes no part in its answer"
                )
            one, other = own[layer], shapes[theirs]
            if len(one) != len(other):
                raise ConfigError(
                    f"distill.features: {layer!r} gives {list(one)}, {theirs!r} of the teacher {list(other)}: "
                    "a map and a vector cannot be matched"
                )
            # Without a bias where widths agree: features that are comparable as they are stay as they are.
            same = one[1] == other[1]
            fitted: nn.Module = nn.Identity() if same else nn.Conv2d(one[1], other[1], 1)
            self.projections[self._places[layer]] = fitted

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of views of any size [N, C, S, S], or of tokens [N, 2, L]."""
        own = self._how
        if isinstance(own, Preprocess):
            images = _with_channels(resized(images, own.size_px, own.interpolation), own.channels)
        logits: Tensor = self.net(images)
        return logits

    @property
    def layers(self) -> list[str]:
        """Names of the network's layers that are matched."""
        return list(self._places)

    def features(self) -> dict[str, Tensor]:
        """Return what the chosen layers gave last, projected; nothing of layers that do not learn now."""
        found = {}
        for layer, place in self._places.items():
            made = self._catcher.caught.pop(layer, None)
            if made is None or not made.requires_grad:
                continue
            flat = made.ndim == 2
            projected: Tensor = self.projections[place](made[:, :, None, None] if flat else made)
            found[layer] = projected.flatten(1) if flat else projected
        return found

    def layout(self, own: Layout) -> Layout:
        """Return the network's parts by the names that they have in here; projections learn with the last."""
        groups = [tuple(f"net.{name}" if name else "" for name in group) for group in own.groups]
        if groups and self._places:
            groups[-1] = (*groups[-1], PROJECTIONS)
        return Layout(f"net.{own.head}" if own.head else "", tuple(groups))
