"""Compares three networks on the test split: torch, its FP32 ONNX file, and the INT8 one, where there is one.

One pass, batch by batch; what is kept per image is a few numbers. It knows nothing of gates, latency or how
a network was made. It may import artifact, recipe, data, engines, training, quant.compare and latency's
statistics.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgetune.artifact import Artifact, How, TensorSpec, write_atomic
from edgetune.data.folders import Dataset, Sample
from edgetune.data.reader import Bucket, Given, at, buckets, for_file, for_torch, frames
from edgetune.data.subset import chosen, relabelled, spaced
from edgetune.engines.onnxruntime import Session
from edgetune.errors import ArtifactError, ConfigError, StageError
from edgetune.latency.statistics import paired_drop, wilson
from edgetune.progress import Progress, Silent
from edgetune.quant.compare import Comparison, agreement
from edgetune.recipe import CheckSection
from edgetune.training.checkpoint import load_network

BATCH = 32
# Texts of each length, where there are several, on which outputs are compared.
PER_LENGTH = 32
FLIPS = 50
PAIRS = 50
# As in the paper that made the measure known.
ECE_BINS = 15
# Confusion matrices beyond this many classes are megabytes that nobody reads.
CONFUSION_CLASSES = 200
TITLES = {"torch": "torch", "fp32": "FP32 ONNX", "int8": "INT8"}

Logits = NDArray[np.float32]
Run = Callable[[Any], Logits]
# What torch takes of a batch of samples, and what the files take.
Batch = tuple[NDArray[Any], Given]
Predictions = dict[str, NDArray[np.int64]]
Confidences = dict[str, NDArray[np.float64]]


def check(
    checkpoint: Artifact,
    network: Artifact,
    qdq: Artifact | None,
    data: Dataset,
    settings: CheckSection,
    *,
    into: Path,
    module: nn.Module | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Measure parity and accuracy on the test split and write `measures.json`.

    Where the INT8 file stands for a TensorRT engine, ONNX Runtime runs it without the optimisations that
    change rounding.

    Args:
        checkpoint: the fine-tuned network.
        network: the ONNX file made of it.
        qdq: the INT8 file made of that; None: the device has no use for one.
        data: whose test split decides.
        settings: how many images; 0: all.
        into: where the measures go.
        module: the user's own network, where the checkpoint was made of one.
        progress: counts images.

    Raises:
        ArtifactError: a file cannot be loaded, or does not fit the classes.
        ConfigError: the data's classes are not the network's, or the test split is empty.
        StageError: a network gives something that is not a number.
    """
    into.mkdir(parents=True, exist_ok=True)
    begun, shown = time.perf_counter(), progress or Silent()
    if network.preprocess is None:
        raise ArtifactError(
            f"{network.path}: does not say how inputs are preprocessed", hint="export it again"
        )
    samples = relabelled(chosen(data.splits["test"], settings.images), data.classes, network.classes)
    if not samples:
        raise ConfigError(
            f"{data.root}: the test split has no inputs",
            hint="data.test_share cuts one off; or add a test/ folder",
        )
    if len(samples) < len(data.splits["test"]):
        shown.line(f"check: judged on {len(samples)} of the {len(data.splits['test'])} test inputs")
    fp32 = Session(network.file("model.onnx"))
    runs: dict[str, Run] = {
        "torch": _torch_run(load_network(checkpoint, module)),
        "fp32": _first_output(fp32),
    }
    parents = {"checkpoint": checkpoint.digest, "onnx": network.digest}
    standing_in = qdq is not None and qdq.details.get("rendering") in ("weak", "strong")
    if qdq is not None:
        runs["int8"] = _first_output(Session(qdq.file("model.onnx"), exact=standing_in))
        parents["qdq"] = qdq.digest
    how = network.preprocess
    shares = buckets(data.root, samples, how, PER_LENGTH)
    samples = [sample for share in shares if share.own for sample in share.samples]
    inputs = _inputs(frames(data.root, samples, how, BATCH), how, fp32.inputs)
    against_torch, against_fp32, top1, sure = _compare(runs, inputs, samples, len(network.classes), shown)
    parity: dict[str, Any] = {
        "fp32_vs_torch": against_torch.figures() | agreement(top1["torch"], top1["fp32"])
    }
    if qdq is not None:
        near = against_fp32.figures() | agreement(top1["fp32"], top1["int8"])
        flips = _flips(samples, top1, network.classes)
        parity["int8_vs_fp32"] = near | {"exact": standing_in, "flips": flips}
    if len(shares) > 1:
        parity["lengths"] = _by_length(
            shares, data.root, how, fp32.inputs, runs, len(network.classes), samples, top1
        )
        lent = [str(share.length) for share in shares if not share.own]
        if lent:
            shown.line(
                f"check: no test text is filled up to {' or '.join(lent)} tokens: others are, or cut to that"
            )
    measures = {
        "parity": parity,
        "accuracy": accuracy(samples, top1, network.classes, sure) | {"of": len(data.splits["test"])},
    }
    write_atomic(into / "measures.json", json.dumps(measures, indent=1, allow_nan=False) + "\n")
    seconds = round(time.perf_counter() - begun, 2)
    return Artifact(
        kind="measures",
        classes=network.classes,
        parents=parents,
        details={"seconds": seconds, "images": len(samples)},
    ).write(into)


def accuracy(
    samples: Sequence[Sample],
    top1: Predictions,
    classes: Sequence[str],
    confidences: Confidences | None = None,
) -> dict[str, Any]:
    """Return accuracy per network and class, the drop from FP32 to INT8, and where images ended up.

    Args:
        samples: in the order of the predictions.
        top1: of `torch`, `fp32` and `int8`, [N] each; without INT8, what compares it with FP32 is left out.
        classes: names, by label.
        confidences: in those predictions, [N] each: then also how far they are from the truth.
    """
    truth = np.array([sample.label for sample in samples])
    right = {name: predicted == truth for name, predicted in top1.items()}
    models = {}
    for name, hits in right.items():
        count = int(hits.sum())
        low, high = wilson(count, truth.size)
        models[name] = {"right": count, "top1": count / truth.size, "low": low, "high": high}
        if confidences:
            mean, error = float(confidences[name].mean()), calibration_error(confidences[name], hits)
            models[name] |= {"confidence": mean, "ece": error}
    files = [name for name in ("fp32", "int8") if name in top1]
    per_class: list[dict[str, Any]] = [
        {
            "name": name,
            "images": int((truth == label).sum()),
            **{file: int(right[file][truth == label].sum()) for file in files},
        }
        for label, name in enumerate(classes)
    ]
    fits = len(classes) <= CONFUSION_CLASSES
    found = {
        "images": truth.size,
        "models": models,
        "per_class": per_class,
        "confusion": {name: confusion(truth, top1[name], len(classes)) for name in files} if fits else None,
    }
    if "int8" not in top1:
        return found
    for label, row in enumerate(per_class):
        row["flips"] = int((top1["fp32"] != top1["int8"])[truth == label].sum())
    drop = paired_drop(right["fp32"], right["int8"])._asdict()
    return found | {"drop": drop, "confused": confused(truth, top1, classes)}


def confidence(logits: Logits) -> NDArray[np.float64]:
    """Return the softmax of the largest of logits [N, K], [N]."""
    exact = logits.astype(np.float64)
    largest: NDArray[np.float64] = 1 / np.exp(exact - exact.max(axis=1, keepdims=True)).sum(axis=1)
    return largest


def calibration_error(confidences: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """Return the expected calibration error: how far confidence lies from accuracy, bin by bin.

    Bins are of equal width, each weighed by its images (Guo et al. 2017, arXiv:1706.04599, equation 3).

    Args:
        confidences: in the class that was named, [N], N at least 1.
        right: whether that class was right, [N].
    """
    # A bin holds its upper end: 1.0 belongs to the last one.
    bins = np.clip(np.ceil(confidences * ECE_BINS).astype(np.int64) - 1, 0, ECE_BINS - 1)
    gaps = np.bincount(bins, weights=confidences - right, minlength=ECE_BINS)
    return float(np.abs(gaps).sum() / right.size)


def confused(truth: NDArray[np.int64], top1: Predictions, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the pairs of classes that INT8 confuses most, with the images of INT8 and of FP32 in each.

    Args:
        truth: labels, [N].
        top1: of `fp32` and `int8`, [N] each.
        classes: names, by label.
    """
    fp32, int8 = (truth * len(classes) + top1[name] for name in ("fp32", "int8"))
    pairs, counts = np.unique(int8[truth != top1["int8"]], return_counts=True)
    return [
        {
            "truth": classes[pairs[index] // len(classes)],
            "predicted": classes[pairs[index] % len(classes)],
            "int8": int(counts[index]),
            "fp32": int(np.count_nonzero(fp32 == pairs[index])),
        }
        for index in np.argsort(-counts, kind="stable")[:PAIRS]
    ]


def confusion(truth: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> list[list[int]]:
    """Count images [classes, classes]: rows are true classes, columns predicted ones."""
    counts = np.bincount(truth * classes + predicted, minlength=classes * classes)
    table: list[list[int]] = counts.reshape(classes, classes).tolist()
    return table


def _compare(
    runs: Mapping[str, Run],
    inputs: Iterable[Batch],
    samples: Sequence[Sample],
    classes: int,
    progress: Progress,
) -> tuple[Comparison, Comparison, Predictions, Confidences]:
    """Run the networks side by side over all inputs, once."""
    against_torch, against_fp32 = Comparison(), Comparison()
    predicted: dict[str, list[NDArray[np.int64]]] = {name: [] for name in runs}
    sure: dict[str, list[NDArray[np.float64]]] = {name: [] for name in runs}
    done = 0
    progress.begin("check", len(samples))
    for batch, given in inputs:
        part = samples[done : done + len(batch)]
        logits = {
            name: _sound(run(batch if name == "torch" else given), TITLES[name], part, classes)
            for name, run in runs.items()
        }
        for name, values in logits.items():
            predicted[name].append(values.argmax(axis=1))
            sure[name].append(confidence(values))
        against_torch.add(logits["torch"], logits["fp32"])
        if "int8" in logits:
            against_fp32.add(logits["fp32"], logits["int8"])
        done += len(batch)
        progress.advance(len(batch))
    progress.end()
    top1 = {name: np.concatenate(parts) for name, parts in predicted.items()}
    return against_torch, against_fp32, top1, {name: np.concatenate(parts) for name, parts in sure.items()}


def _by_length(
    shares: Sequence[Bucket],
    root: Path,
    how: How,
    takes: Sequence[TensorSpec],
    runs: Mapping[str, Run],
    classes: int,
    samples: Sequence[Sample],
    top1: Predictions,
) -> list[dict[str, Any]]:
    """Say of each length of texts how close the networks are on a few, and how often they are right on its own.

    Returns:
        By length: `images` of the test split that have it by themselves (with none, others are filled up or cut),
        `compared`, `difference_over_std` of FP32 from torch; `sqnr_db` and `agreement` of INT8 with FP32; and
        each network's accuracy.
    """
    truth = np.array([sample.label for sample in samples])
    found, begin = [], 0
    for share in shares:
        few = spaced(share.samples, PER_LENGTH)
        inputs = _inputs(frames(root, few, at(how, share.length), BATCH), how, takes)
        near, far, said, _ = _compare(runs, inputs, few, classes, Silent())
        row: dict[str, Any] = {"length": share.length, "images": 0, "compared": len(few)}
        row["difference_over_std"] = near.figures()["difference_over_std"]
        if "int8" in runs:
            row |= {"sqnr_db": far.figures()["sqnr_db"]}
            row |= {"agreement": float((said["fp32"] == said["int8"]).mean())}
        if share.own:
            end = begin + len(share.samples)
            row |= {"images": len(share.samples)}
            row |= {name: float((own == truth)[begin:end].mean()) for name, own in top1.items()}
            if "int8" in top1:
                row["agreement"] = float((top1["fp32"] == top1["int8"])[begin:end].mean())
            begin = end
        found.append(row)
    return found


def _inputs(read: Iterable[NDArray[Any]], how: How, takes: Sequence[TensorSpec]) -> Iterator[Batch]:
    for part in read:
        given = for_file(part, how, takes)
        # A file of images mostly takes what torch does: nothing is normalised twice.
        same = isinstance(given, np.ndarray) and given.dtype == np.float32
        yield np.asarray(given) if same else for_torch(part, how), given


def _torch_run(net: nn.Module) -> Run:
    def run(batch: NDArray[Any]) -> Logits:
        with torch.inference_mode():
            logits: Logits = net(torch.from_numpy(batch)).numpy()
        return logits

    return run


def _first_output(session: Session) -> Run:
    return lambda batch: session.run(batch)[0]


def _sound(logits: NDArray[Any], title: str, part: Sequence[Sample], classes: int) -> Logits:
    """Return logits [N, K] that are numbers, one per class.

    Raises:
        ArtifactError: another number of outputs than classes.
        StageError: NaN or infinity.
    """
    flat = logits.reshape(len(part), -1)
    if flat.shape[1] != classes:
        raise ArtifactError(
            f"the {title} network has {flat.shape[1]} outputs, where there are {classes} classes",
            hint="the network and the classes in artifact.json do not belong together; export it again",
        )
    bad = np.flatnonzero(~np.isfinite(flat).all(axis=1))
    if bad.size:
        raise StageError(
            f"the {title} network's output for {part[bad[0]].path} is not a number",
            hint="the training or a calibration range overflowed: lower finetune.learning_rate, or choose "
            "another quantize.ranges",
        )
    return flat.astype(np.float32, copy=False)


def _flips(samples: Sequence[Sample], top1: Predictions, classes: Sequence[str]) -> list[dict[str, str]]:
    """Name the first inputs that FP32 and INT8 see differently."""
    changed = np.flatnonzero(top1["fp32"] != top1["int8"])[:FLIPS]
    return [
        {
            "path": samples[index].path,
            "truth": classes[samples[index].label],
            "fp32": classes[top1["fp32"][index]],
            "int8": classes[top1["int8"][index]],
        }
        for index in changed
    ]
