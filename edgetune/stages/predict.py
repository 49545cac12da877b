"""Classify images with any artifact: a checkpoint, an ONNX network, or its INT8 version.

It may import errors, artifact, data, engines and training.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from edgetune.artifact import Artifact, Preprocess
from edgetune.data.files import ENDINGS
from edgetune.data.images import as_input, load, normalise
from edgetune.errors import ArtifactError, ConfigError

BATCH = 32


def predict(
    artifact: Artifact, inputs: Sequence[Path], *, top: int = 5, module: nn.Module | None = None
) -> list[dict[str, Any]]:
    """Classify images.

    Args:
        artifact: of kind checkpoint, onnx or qdq.
        inputs: image files; a folder stands for the images in it.
        top: how many classes to name for each.
        module: the user's own network, for a checkpoint that was made from one.

    Returns:
        One entry per image, in order: `path` and `classes`, a list of `name` and `probability`, best
        first. An image that cannot be read has `error` instead of `classes`.

    Raises:
        ConfigError: no such file, or no image at all.
        ArtifactError: the artifact is not a network.
    """
    if artifact.preprocess is None or artifact.kind not in ("checkpoint", "onnx", "qdq"):
        raise ArtifactError(
            f"{artifact.path}: a {artifact.kind!r} artifact classifies nothing",
            hint="name the checkpoint, onnx or int8 folder of a run",
        )
    paths = _expand(inputs)
    found: list[dict[str, Any]] = []
    network = _Network(artifact, artifact.preprocess, module)
    for start in range(0, len(paths), BATCH):
        found.extend(
            _classify(network, paths[start : start + BATCH], artifact.preprocess, artifact.classes, top)
        )
    return found


class _Network:
    """A checkpoint or ONNX file as one call from pixels [N, C, H, W] to logits [N, K]."""

    def __init__(self, artifact: Artifact, preprocess: Preprocess, module: nn.Module | None) -> None:
        self._preprocess = preprocess
        if artifact.kind == "checkpoint":
            from edgetune.training.checkpoint import load_network

            self._torch: nn.Module | None = load_network(artifact, module)
        else:
            from edgetune.engines.onnxruntime import Session

            self._torch = None
            exact = artifact.details.get("rendering") in ("weak", "strong")
            self._session = Session(artifact.file("model.onnx"), exact=exact)

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        if self._torch is None:
            given = as_input(pixels, self._preprocess, self._session.inputs[0])
            return np.asarray(self._session.run(given)[0], dtype=np.float32)
        import torch

        with torch.inference_mode():
            logits = self._torch(torch.from_numpy(normalise(pixels, self._preprocess))).flatten(1)
        return np.asarray(logits.numpy(), dtype=np.float32)


def _expand(inputs: Sequence[Path]) -> list[Path]:
    try:
        return _found(inputs)
    except PermissionError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}", hint="check its permissions") from error


def _found(inputs: Sequence[Path]) -> list[Path]:
    paths: list[Path] = []
    for given in inputs:
        if given.is_dir():
            inside = sorted(p for p in given.rglob("*") if p.suffix.lower() in ENDINGS and p.is_file())
            if not inside:
                raise ConfigError(
                    f"{given}: no image in this folder", hint=f"it takes {', '.join(sorted(ENDINGS))}"
                )
            paths.extend(inside)
        elif given.is_file():
            paths.append(given)
        else:
            raise ConfigError(f"{given}: no such file or folder")
    return paths


def _classify(
    network: _Network, paths: list[Path], preprocess: Preprocess, classes: tuple[str, ...], top: int
) -> list[dict[str, Any]]:
    answers: dict[Path, dict[str, Any]] = {}
    readable, pixels = [], []
    for path in paths:
        try:
            pixels.append(load(path, preprocess))
            readable.append(path)
        except ConfigError as error:
            answers[path] = {"path": str(path), "error": error.message}
    if readable:
        for path, row in zip(readable, network(np.stack(pixels)), strict=True):
            answers[path] = {"path": str(path), "classes": _best(row, classes, top)}
    return [answers[path] for path in paths]


def _best(logits: NDArray[np.float32], classes: tuple[str, ...], top: int) -> list[dict[str, Any]]:
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    probabilities = shifted / shifted.sum()
    order = np.argsort(-probabilities, kind="stable")[:top]
    return [{"name": classes[i], "probability": float(probabilities[i])} for i in order]
