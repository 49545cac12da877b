"""How images become the inputs of a network that does not say so itself: as given, and never guessed.

It knows shapes, not networks. It may import errors, artifact and recipe.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from edgetune.artifact import Preprocess, TensorSpec
from edgetune.errors import ConfigError, nearest
from edgetune.recipe import Section

# One value of mean or std stands for all channels. A preset without sizes needs them from whoever names it.
PRESETS: dict[str, dict[str, Any]] = {
    "imagenet": {
        "resize_px": 256,
        "size_px": 224,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "interpolation": "bilinear",
    },
    "imagenet-bicubic": {
        "resize_px": 256,
        "size_px": 224,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "interpolation": "bicubic",
    },
    "zero-one": {"mean": (0.0,), "std": (1.0,)},
    "minus-one-one": {"mean": (0.5,), "std": (0.5,)},
    "zero-255": {"mean": (0.0,), "std": (1 / 255,)},
}
ARRAYS = "give arrays instead: edgetune.quantize_onnx(model, [array, ...]), each as the network takes it"
WAYS = (
    f"name a known way: --preprocess imagenet (or {', '.join(name for name in PRESETS if name != 'imagenet')})\n"
    "or give its parts: --resize 256 --crop 224 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225\n"
    'in Python: preprocess="imagenet", or an edgetune.Preprocess'
)
UINT8 = (
    "it scales pixels itself, and edgetune would have to know how images are resized for it",
    f"export it without that part, or {ARRAYS}",
)
# The parts that must be said, by the options of the command line.
OPTIONS = {"resize_px": "--resize", "size_px": "--crop", "mean": "--mean", "std": "--std"}
Side = Annotated[int, Field(gt=0, le=8192)]
PerChannel = Annotated[tuple[float, ...], Field(min_length=1)]


class Given(Section):
    """What a person says of the preprocessing: a preset, and parts that take its parts' place.

    Attributes:
        preset: a key of `PRESETS`.
        resize_px: of the shorter side.
        size_px: side of the square that is cut out of the middle.
        mean: of values from 0 to 1, for all channels or for each.
        std: as `mean`.
        interpolation: of the resizing; bilinear unless the preset says otherwise.
    """

    preset: str = ""
    resize_px: Side | None = None
    size_px: Side | None = None
    mean: PerChannel | None = None
    std: PerChannel | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic"] | None = None


def given_as(preset: str, resize: int, crop: int, mean: str, std: str, interpolation: str) -> Given:
    """Read the options of the command line; empty ones say nothing.

    Raises:
        ConfigError: a value is wrong; names the option.
    """
    try:
        return Given.model_validate(
            {
                "preset": preset,
                "resize_px": resize or None,
                "size_px": crop or None,
                "mean": _per_channel("--mean", mean),
                "std": _per_channel("--std", std),
                "interpolation": interpolation or None,
            }
        )
    except ValidationError as error:
        first = error.errors()[0]
        option = OPTIONS.get(str(first["loc"][0]), f"--{first['loc'][0]}")
        raise ConfigError(f"{option}: {first['msg']} (got {first['input']!r})") from None


def _per_channel(option: str, text: str) -> tuple[float, ...] | None:
    try:
        return tuple(float(part) for part in text.split(",")) if text else None
    except ValueError:
        raise ConfigError(f"{option} {text}: write numbers with commas between: 0.5,0.5,0.5") from None


@dataclass(frozen=True)
class ImageInput:
    """The input of a network that takes images; None: the dimension is dynamic.

    Attributes:
        name: of the input.
        shape: as the network states it.
        channels: 1 or 3.
        height_px: of the image.
        width_px: of the image.
        channels_last: `[N, H, W, C]` instead of `[N, C, H, W]`.
    """

    name: str
    shape: tuple[int | str, ...]
    channels: int | None
    height_px: int | None
    width_px: int | None
    channels_last: bool

    @property
    def wanted(self) -> str:
        """What it takes, for messages: `'input' takes [1, 3, 224, 224]`."""
        return f"{self.name!r} takes {list(self.shape)}"


def image_input(inputs: Sequence[TensorSpec], known: bool = False) -> ImageInput:
    """Return the input that images go into.

    Args:
        inputs: of the network.
        known: whether the network's own description says how images are resized for it; without that, one that
            takes uint8 is refused.

    Raises:
        ConfigError: there are several, or it takes something else than images in float32.
    """
    if len(inputs) != 1:
        named = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in inputs) or "none"
        raise ConfigError(
            f"the network takes {len(inputs)} inputs ({named}), and images make one",
            hint="give arrays instead: edgetune.quantize_onnx(model, [{name: array, ...}, ...])",
        )
    spec = inputs[0]
    if spec.dtype != "float32" and not (known and spec.dtype == "uint8"):
        wrong, way = UINT8 if spec.dtype == "uint8" else ("it is no FP32 network", "export it again in FP32")
        raise ConfigError(f"input {spec.name!r} takes {spec.dtype}, not float32: {wrong}", hint=way)
    first, last = (spec.shape[1], spec.shape[3]) if len(spec.shape) == 4 else ("", "")
    channels_last = first not in (1, 3) and last in (1, 3)
    channels = last if channels_last else first
    if len(spec.shape) != 4 or (isinstance(channels, int) and channels not in (1, 3)):
        raise ConfigError(
            f"input {spec.name!r} takes {list(spec.shape)}: no images [N, C, H, W] or [N, H, W, C] of 1 or 3 "
            "channels",
            hint=ARRAYS,
        )
    sides = spec.shape[1:3] if channels_last else spec.shape[2:]
    height, width, count = (side if isinstance(side, int) else None for side in (*sides, channels))
    return ImageInput(spec.name, spec.shape, count, height, width, channels_last)


def preprocess_as(given: Preprocess | Given | str | None, wanted: ImageInput) -> Preprocess:
    """Return the whole preprocessing, checked against what the network takes.

    Args:
        given: whole, in parts, or the name of a preset.
        wanted: of `image_input`.

    Raises:
        ConfigError: nothing is given, a part is missing or wrong, or the result does not fit the network.
    """
    if isinstance(given, str):
        given = Given(preset=given)
    if given is None or given == Given():
        raise ConfigError("nothing says how images become inputs, and edgetune does not guess", hint=WAYS)
    found = given if isinstance(given, Preprocess) else _complete(given, wanted)
    sides = (found.channels, found.size_px, found.size_px)
    takes = (wanted.channels, wanted.height_px, wanted.width_px)
    if any(want not in (None, side) for want, side in zip(takes, sides, strict=True)):
        gives = [found.size_px, found.size_px]
        gives = [*gives, found.channels] if wanted.channels_last else [found.channels, *gives]
        raise ConfigError(
            f"input {wanted.wanted}, the preprocessing gives [N, {', '.join(map(str, gives))}]",
            hint=_way_to_fit(wanted, found),
        )
    return found


def _complete(given: Given, wanted: ImageInput) -> Preprocess:
    if given.preset and given.preset not in PRESETS:
        raise ConfigError(f"preprocess: unknown preset {given.preset!r}", hint=nearest(given.preset, PRESETS))
    own = {name: value for name, value in given if name != "preset" and value is not None}
    values = PRESETS.get(given.preset, {}) | own
    missing = [option for name, option in OPTIONS.items() if name not in values]
    if missing:
        said = f"--preprocess {given.preset}" if given.preset else "this"
        raise ConfigError(
            f"{said} leaves open how images become inputs: {' and '.join(missing)} missing",
            hint=f"input {wanted.wanted}\n{WAYS}",
        )
    most = max(len(values["mean"]), len(values["std"]))
    channels = most if most > 1 else wanted.channels
    if channels is None:
        raise ConfigError(
            f"input {wanted.wanted}: nothing says how many channels",
            hint="give --mean and --std a value for each channel",
        )
    for name in ("mean", "std"):
        values[name] = values[name] * channels if len(values[name]) == 1 else values[name]
    try:
        return Preprocess(**values | {"channels": channels})
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{OPTIONS.get(str(part), part)}: " for part in first["loc"][:1])
        raise ConfigError(f"preprocess: {where}{first['msg'].removeprefix('Value error, ')}") from None


def _way_to_fit(wanted: ImageInput, found: Preprocess) -> str:
    if wanted.channels not in (None, found.channels):
        return "it was made for another number of channels: give --mean and --std one value per channel"
    if None not in (wanted.height_px, wanted.width_px) and wanted.height_px != wanted.width_px:
        return f"only squares are cut out here; {ARRAYS}"
    side = wanted.height_px or wanted.width_px
    return f"--crop {side}, and --resize as it was trained ({side} or more)"
