"""A row for any network of timm, read from what timm knows of it.

timm is an optional extra. It may import errors and artifact.
"""

from functools import cache
from math import floor
from typing import Any

import torch
from torch import Tensor, nn

from edgetune.artifact import Preprocess
from edgetune.errors import ConfigError, MissingTool, nearest
from edgetune.models.rows import TIMM, Groups, ModelRow

_INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
_SPLIT = ("blocks", "stages", "layers", "features")


@cache
def timm_row(name: str) -> ModelRow:
    """Make the row of a timm network.

    Args:
        name: as in `timm.list_models()`, optionally with the tag of its weights.

    Raises:
        MissingTool: timm is not installed.
        ConfigError: timm has no such network, or it is not an image classifier with one linear head.
    """
    timm = _timm()
    if not timm.is_model(name):
        raise ConfigError(f"unknown network {TIMM + name!r}", hint=nearest(TIMM + name, _names(timm)))
    try:
        with torch.device("meta"):
            net = timm.create_model(name, pretrained=False)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"{TIMM}{name}: {str(error).splitlines()[0]}") from error
    config: dict[str, Any] = net.pretrained_cfg
    stems, head = config.get("first_conv"), _head(net, name)
    if config["input_size"][0] != 3 or not stems:
        raise ConfigError(f"{TIMM}{name}: not a network for colour images", hint="edgetune models list")
    tag = config.get("tag")
    return ModelRow(
        build=lambda classes: timm.create_model(name, pretrained=False, num_classes=classes),
        head=head,
        stems=(stems,) if isinstance(stems, str) else tuple(stems),
        groups=_groups(net, head),
        preprocess=_preprocess(config),
        weights=f"timm {name if not tag or '.' in name else f'{name}.{tag}'}",
        fetch=lambda: _fetch(timm, name),
        source=f"timm, licence of the weights: {config.get('license') or 'not stated'}",
        int8="not measured here: ReLU networks mostly lose little; SiLU, hard-swish, squeeze-and-excitation "
        "and thin depthwise layers lose the most",
        classes=config.get("num_classes") or 1000,
        step_px=0 if config.get("fixed_input_size") else 1,
    )


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise MissingTool("timm is not installed", hint="pip install timm") from error
    return timm


def _names(timm: Any) -> list[str]:
    return [TIMM + known for known in timm.list_models()]


def _head(net: Any, name: str) -> str:
    classifier = net.get_classifier()
    found: list[str] = [where for where, module in net.named_modules() if module is classifier]
    if not isinstance(classifier, nn.Linear | nn.Conv2d) or not found:
        raise ConfigError(f"{TIMM}{name}: has no single linear head", hint="choose another network")
    return found[0]


def _preprocess(config: dict[str, Any]) -> Preprocess:
    size_px = config["input_size"][1]
    interpolation = config.get("interpolation")
    return Preprocess(
        resize_px=floor(size_px / config.get("crop_pct", 1.0)),
        size_px=size_px,
        channels=3,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=interpolation if interpolation in _INTERPOLATIONS else "bicubic",
    )


def _groups(net: nn.Module, head: str) -> Groups:
    """Group by the children of the network, and of those that hold its stages; in the order of the code.

    What has only normalisation or bare parameters joins the group before it.
    """
    groups: dict[str, list[str]] = {}
    for name, parameter in net.named_parameters():
        if name.startswith(f"{head}."):
            continue
        parts = name.split(".")
        depth = 2 if parts[0] in _SPLIT else 1
        # Beside the head inside its parent (`head.norm` next to `head.fc`).
        if head.startswith(f"{parts[0]}."):
            depth = len(head.split("."))
        key = ".".join(parts[: min(depth, len(parts))])
        groups.setdefault(key, []).append("matrix" if parameter.ndim > 1 and "." in name else "")
    merged: list[tuple[str, ...]] = []
    for key, kinds in groups.items():
        if merged and "matrix" not in kinds:
            merged[-1] += (key,)
        else:
            merged.append((key,))
    return tuple(merged)


def _fetch(timm: Any, name: str) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = timm.create_model(name, pretrained=True).state_dict()
    # timm reaches its weights through several libraries that share no error of their own.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MissingTool(
            f"the weights of {TIMM}{name} are not in the cache and cannot be downloaded: {reason}",
            hint="get the file of the weights on another machine and name it as weights, or weights: none",
        ) from error
    return state
