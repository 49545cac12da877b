"""Classify images or texts with any artifact: a checkpoint, an ONNX network, or its INT8 version.

It may import errors, artifact, data, engines and training.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from edgetune.artifact import Artifact, How, Tokens
from edgetune.data import files, texts
from edgetune.data.reader import for_file, for_torch, load
from edgetune.errors import ArtifactError, ConfigError

BATCH = 32


def predict(
    artifact: Artifact, inputs: Sequence[Path], *, top: int = 5, module: nn.Module | None = None
) -> list[dict[str, Any]]:
    """Classify images, or texts of .txt files where the network takes those.

    Args:
        artifact: of kind checkpoint, onnx or qdq.
        inputs: image or text files; a folder stands for those in it.
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
    paths = _expand(inputs, texts.ENDINGS if isinstance(artifact.preprocess, Tokens) else files.ENDINGS)
    found: list[dict[str, Any]] = []
    network = _Network(artifact, artifact.preprocess, module)
    for start in range(0, len(paths), BATCH):
        found.extend(
            _classify(network, paths[start : start + BATCH], artifact.preprocess, artifact.classes, top)
        )
    return found


class _Network:
    """A checkpoint or ONNX file as one call from frames (see `data.reader`) to logits [N, K]."""

    def __init__(self, artifact: Artifact, preprocess: How, module: nn.Module | None) -> None:
        self._preprocess = preprocess
        if artifact.kind == "checkpoint":
            from edgetune.training.checkpoint import load_network

            self._torch: nn.Module | None = load_network(artifact, module)
        else:
            from edgetune.engines.onnxruntime import Session

            self._torch = None
            exact = artifact.details.get("rendering") in ("weak", "strong")
            self._session = Session(artifact.file("model.onnx"), exact=exact)

    def __call__(self, frames: NDArray[Any]) -> NDArray[np.float32]:
        if self._torch is None:
            given = for_file(frames, self._preprocess, self._session.inputs)
            return np.asarray(self._session.run(given)[0], dtype=np.float32)
        import torch

        with torch.inference_mode():
            logits = self._torch(torch.from_numpy(for_torch(frames, self._preprocess))).flatten(1)
        return np.asarray(logits.numpy(), dtype=np.float32)


def _expand(inputs: Sequence[Path], endings: frozenset[str]) -> list[Path]:
    try:
        return _found(inputs, endings)
    except PermissionError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}", hint="check its permissions") from error


def _found(inputs: Sequence[Path], endings: frozenset[str]) -> list[Path]:
    paths: list[Path] = []
    for given in inputs:
        if given.is_dir():
            inside = sorted(p for p in given.rglob("*") if p.suffix.lower() in endings and p.is_file())
            if not inside:
                what = "text" if endings == texts.ENDINGS else "image"
                raise ConfigError(
                    f"{given}: no {what} in this folder", hint=f"it takes {', '.join(sorted(endings))}"
                )
            paths.extend(inside)
        elif given.is_file():
            paths.append(given)
        else:
            raise ConfigError(f"{given}: no such file or folder")
    return paths


def _classify(
    network: _Network, paths: list[Path], preprocess: How, classes: tuple[str, ...], top: int
) -> list[dict[str, Any]]:
    answers: dict[Path, dict[str, Any]] = {}
    readable, frames = [], []
    for path in paths:
        try:
            frames.append(load(path, preprocess))
            readable.append(path)
        except ConfigError as error:
            answers[path] = {"path": str(path), "error": error.message}
    if readable:
        for path, row in zip(readable, network(np.stack(frames)), strict=True):
            answers[path] = {"path": str(path), "classes": _best(row, classes, top)}
    return [answers[path] for path in paths]


def _best(logits: NDArray[np.float32], classes: tuple[str, ...], top: int) -> list[dict[str, Any]]:
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    probabilities = shifted / shifted.sum()
    order = np.argsort(-probabilities, kind="stable")[:top]
    return [{"name": classes[i], "probability": float(probabilities[i])} for i in order]
