"""What every tool is given: the FP32 network, images drawn to calibrate, and others that judge.

Decoded and normalised once, written as arrays, so that no tool sees another image than its peers.
"""

import hashlib
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetune.artifact import Preprocess
from edgetune.data.images import load, normalise

IMAGENET = Preprocess(
    resize_px=256, size_px=224, channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
CIFAR10 = "cifar10"
CIFAR10_MODEL = "mobilenet_v2_035_cifar10"
ENDINGS = (".jpg", ".jpeg", ".png")
OPSET = 17


@dataclass(frozen=True)
class Images:
    """Images to draw from.

    Attributes:
        pool: those that may calibrate.
        judges: those that may judge, unless they calibrate.
        labels: a class number for each judge, by the network's order; none where unknown.
        preprocess: how they become inputs.
    """

    pool: tuple[Path, ...]
    judges: tuple[Path, ...]
    labels: tuple[int, ...]
    preprocess: Preprocess

    def draw(self, number: int, calibrate: int, judge: int) -> tuple[list[int], list[int]]:
        """Return places in `pool` and in `judges`; `judge` 0: all that do not calibrate."""
        order = np.random.default_rng(number).permutation(len(self.pool))
        used = {self.pool[index] for index in order[:calibrate]}
        # A short trial judges on a share of every class, and not on the first one alone.
        left = np.random.default_rng(0).permutation(len(self.judges))
        kept = [int(index) for index in left if self.judges[index] not in used]
        return [int(index) for index in order[:calibrate]], sorted(kept[:judge] if judge else kept)


def imagenet(folder: Path) -> Images:
    """Take a folder of photographs: those that do not calibrate judge."""
    files = tuple(sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS))
    return Images(files, files, (), IMAGENET)


def cifar10(folder: Path, network: str) -> Images:
    """Take class folders in train/, which calibrates, and test/, which judges."""
    from pretrain_cifar10 import NETWORKS

    from edgetune.models.build import preprocess_for

    size = NETWORKS[network].size_px
    scaled = preprocess_for(CIFAR10_MODEL, 3).model_copy(update={"resize_px": size, "size_px": size})
    found = [(path, path.parent.name) for path in sorted((folder / "test").glob("*/*"))]
    classes = sorted({name for _, name in found})
    return Images(
        tuple(sorted((folder / "train").glob("*/*"))),
        tuple(path for path, _ in found),
        tuple(classes.index(name) for _, name in found),
        scaled,
    )


def decoded(files: list[Path], preprocess: Preprocess, path: Path) -> Path:
    """Write files as inputs `[N, C, H, W]`; what is there is taken."""
    named = "\n".join(map(str, files)) + preprocess.model_dump_json()
    final = path.with_name(f"{path.stem}-{hashlib.sha256(named.encode()).hexdigest()[:12]}.npy")
    if not final.exists():
        scratch = final.with_suffix(f".{os.getpid()}.npy")
        shape = (len(files), preprocess.channels, preprocess.size_px, preprocess.size_px)
        array = np.lib.format.open_memmap(scratch, "w+", np.float32, shape)
        for index, file in enumerate(files):
            array[index] = normalise(load(file, preprocess)[None], preprocess)[0]
        array.flush()
        scratch.replace(final)
    return final


def export(network: str, weights: Path | None, size_px: int, path: Path) -> str:
    """Write a network as ONNX, batch 1; return the digest of the file.

    Args:
        network: of torchvision's; or of `pretrain_cifar10.py`, where its weights are safetensors or None.
        weights: None: those that ship with edgetune.
        size_px: side of its input.
        path: the file to write.
    """
    import torch
    import torchvision
    from pretrain_cifar10 import NETWORKS
    from safetensors.torch import load_file

    from edgetune.models.rows import CIFAR10 as SHIPPED

    if weights is not None and weights.suffix == ".pth":
        net = torchvision.models.get_model(network)
        net.load_state_dict(torch.load(weights, weights_only=True))
    else:
        net = NETWORKS[network].build()
        # Batches that were counted are left out of these files, and of no use here.
        net.load_state_dict(load_file(weights or SHIPPED), strict=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = (torch.zeros(1, 3, size_px, size_px),)
        torch.onnx.export(
            net.eval(), example, str(path), dynamo=False, opset_version=OPSET, input_names=["input"]
        )
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def reference(network: Path, inputs: Path, path: Path) -> Path:
    """Write FP32's logits `[N, classes]` of all inputs; what is there is taken."""
    from edgetune.engines.onnxruntime import Session

    if not path.exists():
        session = Session(network)
        found: list[NDArray[np.float32]] = [
            session.run(image[None])[0].reshape(1, -1) for image in np.load(inputs, mmap_mode="r")
        ]
        scratch = path.with_suffix(f".{os.getpid()}.npy")
        np.save(scratch, np.concatenate(found))
        scratch.replace(path)
    return path
