"""Pretrained weights: read safely, compared readably, filled in.

Nothing here ever runs code from a file: safetensors, or torch's own format with `weights_only`. It knows no
rows, no data and no recipe. It may import errors.
"""

import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from edgetune.errors import ArtifactError, ConfigError, MissingTool

State = dict[str, Tensor]

_NESTS = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "_orig_mod.", "model.")
_SHOWN = 3


def read_state(path: Path) -> State:
    """Read the tensors of a .safetensors, .pth or .pt file by name.

    A dict nested under `state_dict` or `model`, and the prefix that data parallel training leaves, are
    seen through.

    Raises:
        ConfigError: no such file, or of another kind.
        ArtifactError: corrupt, asks to run code, holds no weights, or not finite ones.
    """
    readers: dict[str, Callable[[Path], Any]] = {
        ".safetensors": _read_safetensors, ".pth": _read_torch, ".pt": _read_torch,
    }  # fmt: skip
    if path.suffix not in readers:
        raise ConfigError(f"{path}: weights are read from {', '.join(readers)}, 'default' or 'none'")
    if not path.is_file():
        raise ConfigError(f"{path}: no such file", hint="weights: default, none, or the path of a file")
    state = _flat(readers[path.suffix](path), path)
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ArtifactError(
                f"{path}: {name} holds NaN or infinite values",
                hint="its training diverged; use an earlier one",
            )
    return state


def _read_safetensors(path: Path) -> Any:
    try:
        return safetensors.torch.load_file(str(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{path}: not whole safetensors ({error})", hint="get the file again") from error


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if zipfile.is_zipfile(path) or _looks_pickled(path):
            raise ArtifactError(
                f"{path}: refused: it holds more than tensors, and reading it could run foreign code",
                hint="save only the weights: torch.save(net.state_dict(), …) or safetensors",
            ) from error
        raise ArtifactError(f"{path}: not a file of torch.save", hint="get the file again") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ArtifactError(f"{path}: cannot be read ({reason})", hint="get the file again") from error


def _looks_pickled(path: Path) -> bool:
    with path.open("rb") as handle:
        return handle.read(1) == pickle.PROTO


def _flat(found: Any, path: Path) -> State:
    while isinstance(found, Mapping) and not any(isinstance(value, Tensor) for value in found.values()):
        inner = next((found[key] for key in _NESTS if isinstance(found.get(key), Mapping)), None)
        if inner is None:
            break
        found = inner
    state = (
        {str(k): v for k, v in found.items() if isinstance(v, Tensor)} if isinstance(found, Mapping) else {}
    )
    if not state:
        raise ArtifactError(f"{path}: holds no weights by name", hint="save net.state_dict()")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def fetch_torchvision(entry: WeightsEnum) -> State:
    """Return torchvision's weights from its cache, or download them into it.

    Raises:
        MissingTool: they are not there and cannot be downloaded.
        ArtifactError: what was downloaded is not what torchvision expects.
    """
    try:
        state: State = entry.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except OSError as error:
        raise MissingTool(
            f"{entry} are not in torch's cache and cannot be downloaded: {error}",
            hint=f"get {entry.url} on another machine and name the file as weights, "
            f"or put it into {torch.hub.get_dir()}/checkpoints",
        ) from error
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise ArtifactError(
            f"{entry}: {str(error).splitlines()[0]}", hint=f"delete it from {torch.hub.get_dir()}/checkpoints"
        ) from error
    return state


def fits(net: nn.Module, state: Mapping[str, Tensor], head: str) -> int:
    """Count the tensors outside the head that fit a network by name and shape."""
    own = _without(wanted(net), head)
    return sum(name in own and own[name].shape == tensor.shape for name, tensor in state.items())


def wanted(net: nn.Module) -> State:
    """Return a network's parameters and buffers by name, without BatchNorm's step counters."""
    return _counterless(net.state_dict())


def fill(net: nn.Module, state: Mapping[str, Tensor], head: str, keep_head: bool, source: str) -> str:
    """Copy weights into a network, all of them or none.

    Args:
        net: is filled in place.
        state: the weights.
        head: dotted name of the network's head.
        keep_head: also take the head over where it fits.
        source: whose weights they are, for messages.

    Returns:
        What became of the head.

    Raises:
        ArtifactError: names or shapes outside the head differ; the message shows the first few.
    """
    own, given = wanted(net), _counterless(state)
    theirs = {name: tensor for name, tensor in given.items() if name not in _without(given, head)}
    body, body_own = _without(given, head), _without(own, head)
    complaints = _complaints(body, body_own)
    if complaints:
        good = len(body_own) - sum(n not in body or body[n].shape != t.shape for n, t in body_own.items())
        raise ArtifactError(
            f"{source}: do not fit: {good} of {len(body_own)} tensors match\n" + "\n".join(complaints),
            hint="use the weights of this network, or name the network that they belong to",
        )
    same = {n: t.shape for n, t in theirs.items()} == {
        n: t.shape for n, t in own.items() if n not in body_own
    }
    kept = keep_head and same
    net.load_state_dict({**body, **(theirs if kept else {})}, strict=False)
    if kept:
        return f"{source}: the head is taken over as well"
    rows = {len(tensor) for name, tensor in theirs.items() if name.endswith("bias")} or {0}
    return f"{source}: the head ({max(rows)} classes) is left out, a new one takes its place"


def _counterless(state: Mapping[str, Tensor]) -> State:
    return {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")}


def _without(state: Mapping[str, Tensor], head: str) -> State:
    return {name: tensor for name, tensor in state.items() if not name.startswith(f"{head}.")}


def _complaints(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """List what differs, a few lines per kind."""
    kinds = {
        "missing in the file": [f"{n} {list(t.shape)}" for n, t in own.items() if n not in given],
        "unknown to the network": [f"{n} {list(t.shape)}" for n, t in given.items() if n not in own],
        "another shape": [
            f"{n} {list(given[n].shape)} in the file, {list(t.shape)} in the network"
            for n, t in own.items()
            if n in given and given[n].shape != t.shape
        ],
    }
    lines = []
    for kind, found in kinds.items():
        lines += [f"  {kind}: {line}" for line in found[:_SHOWN]]
        if len(found) > _SHOWN:
            lines.append(f"  {kind}: and {len(found) - _SHOWN} more")
    return lines
