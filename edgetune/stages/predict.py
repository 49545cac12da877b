"""Classify images or texts with any artifact: a checkpoint, an ONNX network, or its INT8 version.

It may import errors, artifact, data, engines and training.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from edgetune.artifact import Artifact, How, Preprocess, Tokens
from edgetune.data import files
from edgetune.data.folders import DATA_FILE, load_dataset
from edgetune.data.images import load
from edgetune.data.reader import for_file, for_torch
from edgetune.data.texts import ENDINGS, TABLES, texts_of
from edgetune.data.tokens import bucket, encode, filled
from edgetune.errors import ArtifactError, ConfigError

BATCH = 32
# Where a text stands, or the text itself where it was typed; and the text.
Text = tuple[dict[str, str], str]


def predict(
    artifact: Artifact,
    inputs: Sequence[Path] = (),
    *,
    texts: Sequence[str] = (),
    top: int = 5,
    module: nn.Module | None = None,
) -> list[dict[str, Any]]:
    """Classify images, or texts where the network takes those.

    Args:
        artifact: of kind checkpoint, onnx or qdq.
        inputs: image or text files; a folder stands for those in it, a table (.csv, .tsv, .jsonl) for its rows.
        texts: as they are.
        top: how many classes to name for each.
        module: the user's own network, for a checkpoint that was made from one.

    Returns:
        One entry per input, files before `texts`, in order: `path` (`FILE:LINE` of a table's row) or `text`, and
        `classes`, a list of `name` and `probability`, best first; with `cut` where a text was too long. What
        cannot be read has `error` instead of `classes`.

    Raises:
        ConfigError: no such file, nothing to classify in it, or texts for a network that takes images.
        ArtifactError: the artifact is not a network.
    """
    how = artifact.preprocess
    if how is None or artifact.kind not in ("checkpoint", "onnx", "qdq"):
        raise ArtifactError(
            f"{artifact.path}: a {artifact.kind!r} artifact classifies nothing",
            hint="name the checkpoint, onnx or int8 folder of a run",
        )
    if texts and not isinstance(how, Tokens):
        raise ConfigError(f"{artifact.path}: takes images, and texts are given")
    paths = _expand(inputs, ENDINGS if isinstance(how, Tokens) else files.ENDINGS)
    if not paths and not texts:
        raise ConfigError("nothing to classify", hint="name files or folders")
    network = _Network(artifact, how, module)
    found: list[dict[str, Any]] = []
    if isinstance(how, Tokens):
        given = [*_written(artifact, paths), *(({"text": text}, text.strip()) for text in texts)]
        for start in range(0, len(given), BATCH):
            found += _classify_texts(network, given[start : start + BATCH], how, artifact.classes, top)
    else:
        for start in range(0, len(paths), BATCH):
            found += _classify(network, paths[start : start + BATCH], how, artifact.classes, top)
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
                what = "text" if endings == ENDINGS else "image"
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
    network: _Network, paths: list[Path], preprocess: Preprocess, classes: tuple[str, ...], top: int
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


def _written(artifact: Artifact, paths: Sequence[Path]) -> list[Text]:
    """Return the texts of files, of tables by the column that the network was trained with."""
    places = (artifact.path / DATA_FILE, artifact.path.parent / DATA_FILE)
    known = next((place for place in places if place.is_file()), None)
    tables = any(path.suffix.lower() in TABLES for path in paths)
    column = load_dataset(known).columns[0] if known and tables else ""
    found: list[Text] = []
    for path in paths:
        try:
            found += [({"path": place}, text) for place, text in texts_of(path, column)]
        except ConfigError as error:
            if path.suffix.lower() in TABLES:
                raise
            found.append(({"path": str(path), "error": error.message}, ""))
    return found


def _classify_texts(
    network: _Network, given: Sequence[Text], how: Tokens, classes: tuple[str, ...], top: int
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [({} if text else {"error": "empty"}) | place for place, text in given]
    full = [index for index, (_, text) in enumerate(given) if text]
    if full:
        encoded = encode([given[index][1] for index in full], how)
        rows = network(filled(encoded.ids, how.pad, bucket(max(map(len, encoded.ids)), how)))
        for index, row, cut in zip(full, rows, encoded.cut, strict=True):
            found[index] |= {"classes": _best(row, classes, top)} | ({"cut": True} if cut else {})
    return found


def _best(logits: NDArray[np.float32], classes: tuple[str, ...], top: int) -> list[dict[str, Any]]:
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    probabilities = shifted / shifted.sum()
    order = np.argsort(-probabilities, kind="stable")[:top]
    return [{"name": classes[i], "probability": float(probabilities[i])} for i in order]
