"""From a row to a network: pretrained weights, a new head, an adapter for other channels; and its cost.

It knows no training and no files but weights. It may import errors and artifact.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgetune.artifact import How, Preprocess, Tokens
from edgetune.errors import ArtifactError, ConfigError
from edgetune.models.rows import MODELS, ModelRow, model_row
from edgetune.models.weights import State, fill, fits, read_state, wanted


def preprocess_for(name: str, channels: int, size_px: int = 0, length: int = 0) -> How:
    """Return how inputs of a network are prepared.

    Args:
        name: of the network.
        channels: 3, or 1, where mean and standard deviation are averaged.
        size_px: side of the square input; 0: the network's own. The resize before the centre crop keeps
            its proportion.
        length: of texts, tokens of the longest input; 0: the network's own.

    Raises:
        ConfigError: another number of channels, a size or a length that the network does not take.
    """
    row = model_row(name)
    own = row.preprocess
    if isinstance(own, Tokens):
        if length > row.most or length in (1, 2):
            raise ConfigError(
                f"{name}: takes 3 to {row.most} tokens, not {length}", hint="model.length: 0 is its own"
            )
        return own.model_copy(update={"length": length, "lengths": (length,)}) if length else own
    size_px = size_px or own.size_px
    if channels not in (1, 3):
        raise ConfigError(f"{name}: inputs have 1 or 3 channels, not {channels}")
    if size_px != own.size_px:
        if row.step_px == 0 or size_px % row.step_px:
            steps = f"multiples of {row.step_px} px" if row.step_px else f"{own.size_px} px only"
            raise ConfigError(
                f"{name}: takes {steps}, not {size_px} px", hint="model.size_px: 0 is its own size"
            )
        if size_px < row.least_px:
            raise ConfigError(
                f"{name}: needs at least {row.least_px} px, not {size_px} px",
                hint="smaller images are scaled up; model.size_px: 0 is its own size",
            )
    mean, std = own.mean, own.std
    if channels == 1:
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    return own.model_copy(
        update={
            "resize_px": max(size_px, round(size_px * own.resize_px / own.size_px)),
            "size_px": size_px,
            "channels": channels,
            "mean": mean,
            "std": std,
        }
    )


def build_model(
    name: str,
    classes: int,
    channels: int = 3,
    weights: str | Path = "default",
    adapter: str = "sum",
    size_px: int = 0,
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
    whole: bool = False,
) -> nn.Module:
    """Build a network with a head for the given classes.

    Args:
        name: a row of `MODELS`, or `timm:NAME`.
        classes: number of outputs.
        channels: of the input, 1 or 3.
        weights: `default` (the row's pretrained ones under a new head), `none`, or a file, whose head is
            taken over where it has as many classes.
        adapter: how a network made for three channels takes one: `sum` adds up the kernels of the first
            convolution, `conv` puts a 1x1 convolution in front of it. Both begin so that a gray image
            gives what the colour image with three equal channels gave.
        size_px: side of the input, only checked here.
        seed: of everything random; the global generator is left as it was.
        say: told what became of the weights.
        whole: with the head of the default weights, too.

    Returns:
        The network on the CPU, in training mode.

    Raises:
        ConfigError: unknown network, weights or adapter, or channels and size that do not go.
        MissingTool: the default weights cannot be downloaded, or timm is not installed.
        ArtifactError: weights that are corrupt, unsafe, or of another network.
    """
    row = model_row(name)
    preprocess_for(name, channels, size_px)
    own = row.preprocess
    if classes < 1:
        raise ConfigError(f"{name}: a network needs at least one class")
    if adapter not in ("sum", "conv"):
        raise ConfigError(f"unknown adapter {adapter!r}", hint="known: sum, conv")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        net = row.build(classes)
    state = _state(row, weights)
    adapt = isinstance(own, Preprocess) and channels != own.channels
    # Weights of a network that was adapted before already fit the adapted one.
    if adapt and state and _adapted(row, state, channels):
        _adapt(net, row, adapter)
        adapt = False
    if state:
        source = row.weights if weights == "default" else str(weights)
        try:
            say(fill(net, state, row.head, keep_head=whole or weights != "default", source=source))
        except ArtifactError as error:
            raise ArtifactError(error.message, hint=_better(row, net, state) or error.hint) from None
    if adapt:
        _adapt(net, row, adapter)
    return net


def build_taught(
    name: str, channels: int, weights: str | Path, adapter: str = "sum", size_px: int = 0
) -> tuple[nn.Module, int]:
    """Build a network as its weights were trained, with their head; otherwise as `build_model`.

    Returns:
        The network, and how many logits it gives.

    Raises:
        ConfigError: weights without a head, or none at all.
    """
    row = model_row(name)
    heads = [t for n, t in _state(row, weights).items() if n.startswith(f"{row.head}.") and t.ndim > 1]
    if not heads:
        raise ConfigError(f"{name}: weights: {weights}: without a head that was trained")
    classes = len(heads[-1])
    return build_model(name, classes, channels, weights, adapter, size_px, whole=True), classes


def head_of(net: nn.Module, name: str) -> nn.Module:
    """Return a network's head: `logits = head(features).flatten(1)`, features being its input."""
    return net.get_submodule(model_row(name).head)


@torch.inference_mode()
def operations(net: nn.Module, preprocess: How) -> int:
    """Count the multiply-accumulates of convolutions and linear layers for one input.

    Args:
        net: on any device, `meta` too; its mode is left as it was.
        preprocess: gives the input, `[1, C, H, W]` of images or `[1, 2, L]` of texts.
    """
    total = 0

    def count(module: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal total
        weight = module.weight
        assert isinstance(weight, Tensor)
        total += output.numel() * weight[0].numel()

    layers = [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    shape = (
        (1, 2, preprocess.length)
        if isinstance(preprocess, Tokens)
        else (1, preprocess.channels, preprocess.size_px, preprocess.size_px)
    )
    kind = torch.int64 if isinstance(preprocess, Tokens) else torch.float32
    trained = {module: module.training for module in net.modules()}
    try:
        net.eval()(torch.zeros(shape, dtype=kind, device=device))
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in trained.items():
            module.training = training
    return total


def _state(row: ModelRow, weights: str | Path) -> State:
    if weights == "none":
        return {}
    return row.fetch() if weights == "default" else read_state(Path(weights))


def _adapted(row: ModelRow, state: State, channels: int) -> bool:
    stem = row.stems[0]
    first = state.get(f"{stem}.weight", state.get(f"{stem}.0.weight"))
    return first is not None and first.ndim == 4 and first.shape[1] == channels


@torch.no_grad()
def _adapt(net: nn.Module, row: ModelRow, adapter: str) -> None:
    """Let the stem take one channel.

    With the averaged mean m and deviation s, a gray input u stands for the value v = s u + m, and the
    stem's channel c was made for (v - m_c) / s_c = (s / s_c) u + (m - m_c) / s_c.
    """
    assert isinstance(row.preprocess, Preprocess)
    mean, std = torch.tensor(row.preprocess.mean), torch.tensor(row.preprocess.std)
    scale, shift = std.mean() / std, (mean.mean() - mean) / std
    for name in row.stems:
        stem = net.get_submodule(name)
        if not isinstance(stem, nn.Conv2d) or stem.in_channels != len(mean) or stem.groups != 1:
            raise ConfigError(
                f"the first layer {name!r} takes no other number of channels", hint="model.channels: 3"
            )
        if adapter == "conv":
            first = nn.Conv2d(1, len(mean), 1)
            first.weight.copy_(scale.view(-1, 1, 1, 1))
            first.bias.copy_(shift)  # type: ignore[union-attr]
            net.set_submodule(name, nn.Sequential(first, stem))
            continue
        offset = (stem.weight * shift.view(1, -1, 1, 1)).sum((1, 2, 3))
        summed = (stem.weight * scale.view(1, -1, 1, 1)).sum(1, keepdim=True)
        stem.weight = nn.Parameter(summed)
        stem.bias = nn.Parameter(offset if stem.bias is None else stem.bias + offset)
        stem.in_channels = 1


def _better(row: ModelRow, net: nn.Module, state: State) -> str:
    """Name the row that weights belong to, where they fit it better than the network asked for."""
    scores = {
        name: fits(skeleton(other), state, other.head) for name, other in MODELS.items() if other is not row
    }
    best = max(scores, key=lambda name: scores[name])
    if scores[best] <= fits(net, state, row.head):
        return ""
    other = MODELS[best]
    body = sum(not name.startswith(f"{other.head}.") for name in wanted(skeleton(other)))
    return f"they fit {best!r} better ({scores[best]} of {body} tensors match)"


def layer_names(name: str) -> tuple[str, ...]:
    """Return the names of a network's layers, from the input to the output as far as they are registered so."""
    return tuple(layer for layer, _ in skeleton(model_row(name)).named_modules() if layer)


def skeleton(row: ModelRow) -> nn.Module:
    """Build a network for its names and shapes only, without memory for its weights where that goes."""
    try:
        with torch.device("meta"):
            return row.build(row.classes)
    except NotImplementedError:  # regnet reads its own tensors while it is built
        return row.build(row.classes)
