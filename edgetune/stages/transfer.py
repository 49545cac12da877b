"""Says what transfer bought: the fine-tuned network beside the same one trained from random weights.

Both answer on the test split, on the same inputs. Nothing is chosen by the result. It may import artifact,
data, training and latency (for statistics).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from edgetune.artifact import Artifact, write_atomic
from edgetune.data.folders import Dataset
from edgetune.data.reader import batches
from edgetune.errors import ArtifactError
from edgetune.latency.statistics import paired_drop
from edgetune.training.checkpoint import load_network
from edgetune.training.evaluate import predict_logits

BATCH = 64


def transfer(checkpoint: Artifact, scratch: Artifact, data: Dataset, *, into: Path) -> Artifact:
    """Compare two checkpoints on the test split and write `measures.json`.

    Args:
        checkpoint: the network that began with pretrained weights.
        scratch: the same network, begun with random ones, given as many epochs.
        data: whose test split is looked at.
        into: where the measures go.

    Raises:
        ArtifactError: the two were made for other inputs or classes.
    """
    into.mkdir(parents=True, exist_ok=True)
    if checkpoint.classes != scratch.classes or checkpoint.preprocess != scratch.preprocess:
        raise ArtifactError(f"{checkpoint.path} and {scratch.path} were made for other inputs or classes")
    truth = np.array([sample.label for sample in data.splits["test"]])
    right = [_top1(artifact, data) == truth for artifact in (checkpoint, scratch)]
    difference = paired_drop(*right)
    measures = {
        "transfer": {
            "images": truth.size,
            "split": "test",
            "pretrained_top1": float(right[0].mean()),
            "scratch_top1": float(right[1].mean()),
            "points": difference.points,
            "low": difference.low,
            "high": difference.high,
            "epochs_pretrained": _curve(checkpoint),
            "epochs_scratch": _curve(scratch),
        }
    }
    write_atomic(into / "measures.json", json.dumps(measures, indent=1, allow_nan=False) + "\n")
    parents = {"checkpoint": checkpoint.digest, "scratch": scratch.digest}
    return Artifact(kind="measures", classes=checkpoint.classes, parents=parents).write(into)


def _top1(artifact: Artifact, data: Dataset) -> Any:
    if artifact.preprocess is None:
        raise ArtifactError(f"{artifact.path}: does not say how inputs are preprocessed")
    inputs = batches(data.root, data.splits["test"], artifact.preprocess, BATCH)
    return predict_logits(load_network(artifact), inputs).argmax(axis=1)


def _curve(artifact: Artifact) -> list[dict[str, Any]]:
    epochs = artifact.details["training"]["epochs"]
    return [{"epoch": entry["epoch"], "val_top1": entry["val_top1"]} for entry in epochs]
