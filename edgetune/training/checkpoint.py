"""Networks to and from safetensors.

It knows no optimizer and no data. It may import errors, artifact, recipe and models.
"""

from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from edgetune.artifact import Artifact, Tokens, disk_error
from edgetune.errors import ArtifactError
from edgetune.learning import HF
from edgetune.models import build_model
from edgetune.recipe import ModelSection

MODEL_FILE = "model.safetensors"
CUSTOM = "custom"
# Of a network of transformers, as it names it.
CONFIG_FILE = "config.json"
SHOWN = 3


def network_tensors(net: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name, on the CPU, without BatchNorm's step counters.

    The counters serve only BatchNorm without a momentum, which none of our networks has, and would make
    equal networks differ.
    """
    return {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in net.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


def save_network(net: nn.Module, path: Path) -> None:
    """Write a network's parameters and buffers as safetensors; equal networks give equal files.

    Raises:
        StageError: the disk is full, or the folder cannot be written.
    """
    write_tensors(network_tensors(net), path)


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors.

    Raises:
        StageError: the disk is full, or the folder cannot be written.
    """
    # safetensors' own writer hides the system's error number and leaves files that only the owner reads.
    try:
        path.write_bytes(save(dict(tensors)))
    except OSError as error:
        raise disk_error(error, path) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        ArtifactError: it cannot be read, or is no whole safetensors file.
    """
    try:
        return load_file(str(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{path}: not whole safetensors ({error})", hint="make it again") from error


def fill_network(net: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Copy tensors into a network that must have exactly these names and shapes.

    Raises:
        ArtifactError: names or shapes differ; the message shows the first few.
    """
    wanted = {n: t for n, t in net.state_dict().items() if not n.endswith("num_batches_tracked")}
    complaints = [
        f"{name}: {list(tensors[name].shape)} in the file, {list(wanted[name].shape)} in the network"
        for name in wanted
        if name in tensors and tensors[name].shape != wanted[name].shape
    ]
    complaints += [f"{name}: missing in the file" for name in wanted if name not in tensors]
    complaints += [f"{name}: unknown to the network" for name in tensors if name not in wanted]
    if complaints:
        more = f"; and {len(complaints) - SHOWN} more" if len(complaints) > SHOWN else ""
        raise ArtifactError(
            f"{source}: does not fit the network: {'; '.join(complaints[:SHOWN])}{more}",
            hint="use the network and the number of classes that it was made with",
        )
    net.load_state_dict(dict(tensors), strict=False)


def load_network(checkpoint: Artifact, module: nn.Module | None = None) -> nn.Module:
    """Rebuild the network of a checkpoint.

    Args:
        checkpoint: an artifact of the kind `checkpoint`.
        module: the user's own network, required where the checkpoint was made of one; it is filled in place.

    Returns:
        The network in eval mode, on the CPU.

    Raises:
        ArtifactError: not a checkpoint, corrupt, or names and shapes that do not fit the network.
    """
    if checkpoint.kind != "checkpoint":
        raise ArtifactError(f"{checkpoint.path}: a {checkpoint.kind!r} artifact, not a checkpoint")
    path = checkpoint.file(MODEL_FILE)
    tensors = read_tensors(path)
    net = module if module is not None else _rebuild(checkpoint)
    fill_network(net.cpu(), tensors, path)
    return net.eval()


def _rebuild(checkpoint: Artifact) -> nn.Module:
    try:
        section = ModelSection.model_validate(checkpoint.details["model"])
        channels = int(checkpoint.details["channels"])
        # A teacher's logits may have no names.
        classes = int(checkpoint.details.get("classes") or len(checkpoint.classes))
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise ArtifactError(
            f"{checkpoint.path}: does not say which network it holds", hint="make the checkpoint again"
        ) from error
    if section.name == CUSTOM:
        raise ArtifactError(
            f"{checkpoint.path}: made of your own torch module, which it does not hold",
            hint="hand the module over from Python: edgetune.export(..., module=net), "
            "edgetune.predict(..., module=net)",
        )
    if isinstance(checkpoint.preprocess, Tokens):
        # Its folder holds what transformers builds a network from.
        checkpoint.file(CONFIG_FILE)
        return build_model(f"{HF}{checkpoint.path.absolute()}", classes, weights="none")
    size_px = checkpoint.preprocess.size_px if checkpoint.preprocess else section.size_px
    return build_model(section.name, classes, channels, "none", section.adapter, size_px, seed=0)
