"""The state that survives a kill: tensors as safetensors, counters as JSON, switched in one rename.

Every epoch writes its tensors under a new name and then replaces the small `state.json`, which names them
with their digest. Killed at any moment, the folder holds the last complete epoch. It knows no network and
no loop. It may import errors, artifact and this package's checkpoint.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgetune.artifact import disk_error, sha256_of, write_atomic
from edgetune.errors import ArtifactError
from edgetune.training.checkpoint import read_tensors, write_tensors

STATE_FILE = "state.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class State:
    """A training between two epochs: tensors by name, and everything else as JSON values."""

    tensors: dict[str, Tensor]
    counters: dict[str, Any]


def save_state(folder: Path, state: State, epoch: int, fingerprint: str) -> None:
    """Write a state beside the last one and switch to it.

    Args:
        folder: made where it is not there.
        state: what to keep.
        epoch: the last complete one.
        fingerprint: of everything that the result depends on.

    Raises:
        StageError: the disk is full, or the folder cannot be written.
    """
    try:
        folder.mkdir(exist_ok=True)
        tensors = folder / f"epoch-{epoch}.safetensors"
        write_tensors(state.tensors, tensors)
        counters = json.dumps(state.counters, allow_nan=False)
        pointer = {
            "schema_version": SCHEMA_VERSION,
            "fingerprint": fingerprint,
            "tensors": tensors.name,
            "sha256": _digest(tensors, counters),
            "counters": counters,
        }
        write_atomic(folder / STATE_FILE, json.dumps(pointer))
        for old in folder.iterdir():
            if old.name not in (tensors.name, STATE_FILE):
                old.unlink()
    except OSError as error:
        raise disk_error(error, folder) from error


def load_state(folder: Path, fingerprint: str) -> State | None:
    """Read the last complete state; None where there is none, or one of another training.

    Raises:
        ArtifactError: there is one, and it is damaged.
    """
    path = folder / STATE_FILE
    try:
        pointer = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: damaged ({error})") from error
    try:
        if pointer["schema_version"] != SCHEMA_VERSION or pointer["fingerprint"] != fingerprint:
            return None
        tensors = folder / Path(pointer["tensors"]).name
        if _digest(tensors, pointer["counters"]) != pointer["sha256"]:
            raise ArtifactError(f"{path}: changed since it was written")
        return State(read_tensors(tensors), json.loads(pointer["counters"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{path}: damaged ({type(error).__name__} {error})") from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimizer's moments and counters as `number/name`; its rates follow from settings."""
    return {
        f"{index}/{name}": value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def fill_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` returned."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split("/", 1)
        weight = weights[int(index)]
        # Fused kernels walk through memory: moments must lie as their weights do, channels last or not.
        alike = torch.empty_like(weight.detach()).copy_(tensor) if tensor.shape == weight.shape else tensor
        state.setdefault(int(index), {})[name] = alike
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _digest(tensors: Path, counters: str) -> str:
    return hashlib.sha256(f"{sha256_of(tensors)} {counters}".encode()).hexdigest()
