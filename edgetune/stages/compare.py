"""Sets trainings side by side: learning curves, what each kind ends with, and how sure that is.

Trainings of the same settings and images but another seed are one group, and only more than one seed makes an
interval over seeds. Nothing is chosen by the result. It may import errors, artifact, data, training and latency
(for statistics).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgetune.artifact import Artifact, hash_json, write_atomic
from edgetune.data.folders import Dataset, Sample, list_some
from edgetune.data.reader import batches
from edgetune.errors import ArtifactError, ConfigError
from edgetune.latency.statistics import mean_difference, mean_interval, paired_drop, wilson

BATCH = 64
SCRATCH, DISTILLATION = "from scratch", "distilled"
# What a distilled network's training depends on besides its settings.
DISTILLED = ("teacher", "loss", "temperature", "labels", "features", "feature_weight", "views", "unlabelled")


class Training(NamedTuple):
    """A checkpoint with the images it was made of.

    Attributes:
        name: what the user calls it, for messages.
        checkpoint: holds how the training went.
        data: its images.
    """

    name: str
    checkpoint: Artifact
    data: Dataset

    @property
    def settings(self) -> dict[str, Any]:
        """Everything the training depends on but its seed and its images."""
        details = self.checkpoint.details
        # An earlier edgetune did not write the settings down; such a training is like no other.
        known = details.get("settings") or {"digest": self.checkpoint.digest}
        model = {f"model.{key}": value for key, value in details["model"].items()}
        distilled = details.get("distillation") or {}
        learning = {f"distill.{key}": distilled[key] for key in DISTILLED if key in distilled}
        return model | {key: value for key, value in known.items() if key != "seed"} | learning

    @property
    def seed(self) -> int:
        """Of the training."""
        return int((self.checkpoint.details.get("settings") or {}).get("seed", 0))

    @property
    def kind(self) -> str:
        """The short name of what was done."""
        details = self.checkpoint.details
        if details.get("distillation"):
            return DISTILLATION
        scratch = details["model"].get("weights") == "none"
        return SCRATCH if scratch else str(details["training"]["strategy"])


class Group(NamedTuple):
    """Trainings that differ in nothing but their seed."""

    label: str
    members: list[Training]


def answers(checkpoint: Artifact, data: Dataset, *, into: Path) -> Artifact:
    """Write down which test images a checkpoint gets right, by content and label, in `right.json`.

    Raises:
        ArtifactError: it does not say how inputs are preprocessed.
    """
    from edgetune.training.checkpoint import load_network
    from edgetune.training.evaluate import predict_logits

    into.mkdir(parents=True, exist_ok=True)
    if checkpoint.preprocess is None:
        raise ArtifactError(f"{checkpoint.path}: does not say how inputs are preprocessed")
    samples = data.splits["test"]
    logits = predict_logits(
        load_network(checkpoint), batches(data.root, samples, checkpoint.preprocess, BATCH)
    )
    right = logits.argmax(axis=1) == np.array([sample.label for sample in samples])
    content = {_key(sample): bool(value) for sample, value in zip(samples, right, strict=True)}
    write_atomic(into / "right.json", json.dumps(content, sort_keys=True) + "\n")
    return Artifact(kind="measures", parents={"checkpoint": checkpoint.digest}).write(into)


def compare(trainings: Sequence[Training], right: Sequence[dict[str, bool] | None]) -> dict[str, Any]:
    """Compare trainings.

    Args:
        trainings: at least one; in the user's order.
        right: which test images each gets right, by `answers`; None: it has none.

    Raises:
        ConfigError: other classes, or nothing to compare.
    """
    first = trainings[0]
    for other in trainings[1:]:
        if other.checkpoint.classes != first.checkpoint.classes:
            raise ConfigError(
                f"{other.name}: other classes than {first.name}: nothing to compare",
                hint=f"{_some(other.checkpoint.classes)} against {_some(first.checkpoint.classes)}",
            )
    groups, warnings = group(trainings)
    if len(groups) < 2:
        warnings.append("one kind of training only: there is a curve, and nothing to hold it against")
    known = {id(training): found for training, found in zip(trainings, right, strict=True)}
    warnings += list(_differences(groups))
    reference = next((g for g in groups if g.members[0].kind == SCRATCH), groups[0])
    best = float(np.mean([max(top1 for top1 in _curve(m)[3]) for m in reference.members]))
    return {
        "classes": len(first.checkpoint.classes),
        "reference": reference.label,
        "reference_top1": best,
        "warnings": warnings,
        "groups": [_judged(one, reference, known, best) for one in groups],
    }


def group(trainings: Sequence[Training]) -> tuple[list[Group], list[str]]:
    """Put trainings together that differ in their seed alone, and say which are there twice."""
    together: dict[str, list[Training]] = {}
    warnings = []
    for training in trainings:
        members = together.setdefault(hash_json([training.settings, training.data.digest]), [])
        twin = next((m for m in members if m.seed == training.seed), None)
        if twin is None:
            members.append(training)
        elif twin.checkpoint.path.resolve() != training.checkpoint.path.resolve():
            warnings.append(
                f"{training.name}: the same settings, inputs and seed as {twin.name}; counted once: only another "
                "finetune.seed makes another training"
            )
    found = list(together.values())
    return [Group(_label(members, found), members) for members in found], warnings


def _label(members: list[Training], groups: list[list[Training]]) -> str:
    """Name a group by what was done, and where several did that, by what they differ in."""
    one = members[0]
    alike = [other[0] for other in groups if other[0].kind == one.kind and other is not members]
    if not alike:
        return one.kind
    settings = one.settings
    unlike = [key for key in settings if any(o.settings.get(key) != settings[key] for o in alike)]
    parts = [f"{key.rpartition('.')[2]} {_value(settings[key])}" for key in unlike]
    if any(_count(other, "train") != _count(one, "train") for other in alike):
        parts.append(f"{_count(one, 'train')} inputs")
    elif not parts:
        parts.append(one.name)
    return f"{one.kind}, {', '.join(parts)}"


def _judged(
    one: Group, reference: Group, known: dict[int, dict[str, bool] | None], best: float
) -> dict[str, Any]:
    """Return what is told of a group."""
    told = [member.checkpoint.details["training"] for member in one.members]
    curve = _mean_curve(one.members)
    # What the reference reaches at its best is what the others may reach earlier.
    reached = next((point for point in curve if point["top1"] >= best), None)
    found = [known[id(member)] for member in one.members]
    against = None if one is reference else _against(one, reference, known)
    return {
        "label": one.label,
        "kind": one.members[0].kind,
        "runs": [member.name for member in one.members],
        "seeds": [member.seed for member in one.members],
        "network": one.members[0].checkpoint.details["model"]["name"],
        "accelerators": sorted({str(t.get("accelerator", "")) for t in told}),
        "train_images": _count(one.members[0], "train"),
        "trained_parameters": told[0].get("trained_parameters"),
        "epochs": min(len(t["epochs"]) for t in told),
        "seconds": float(np.mean([_curve(member)[2][-1] for member in one.members])),
        "val_top1": float(np.mean([t["val_top1"] for t in told])),
        "curve": curve,
        "reached": reached and {key: reached[key] for key in ("epoch", "images", "seconds")},
        "test": _test([list(values.values()) for values in found if values]),
        "against": against,
    }


def _test(found: list[list[bool]]) -> dict[str, Any] | None:
    """Return accuracy on the test split: of one seed with Wilson's interval, of several over the seeds."""
    if not found:
        return None
    each = np.array([np.mean(values) for values in found])
    over = mean_interval(each)
    low, high = over or wilson(sum(found[0]), len(found[0]))
    return {
        "images": len(found[0]), "each": each.tolist(), "top1": float(each.mean()),
        "over": "seeds" if over else "inputs",
        "low": max(0.0, low), "high": min(1.0, high),
    }  # fmt: skip


def _against(one: Group, reference: Group, known: dict[int, dict[str, bool] | None]) -> dict[str, Any] | None:
    """Return a group's accuracy above the reference's, in points, where both answered on the same test images.

    Over test images: with one seed each Tango's paired interval and McNemar's exact test, else Student's interval
    of what each image differs by, the seeds taken as they are. Over seeds: Welch's interval of the means.
    """
    mine, theirs = ([known[id(member)] for member in g.members] for g in (one, reference))
    sides = [[answer for answer in side if answer] for side in (mine, theirs)]
    if not all(sides) or len({frozenset(answer) for side in sides for answer in side}) != 1:
        return None
    images = sorted(sides[0][0])
    # [seeds, images] each.
    right = [np.array([[answer[key] for key in images] for answer in side]) for side in sides]
    found: dict[str, Any] = {"images": len(images), "p_value": None}
    if len(right[0]) == len(right[1]) == 1:
        drop = paired_drop(right[0][0], right[1][0])
        found |= {"points": drop.points, "low": drop.low, "high": drop.high, "p_value": drop.p_value}
    else:
        differences: NDArray[np.float64] = right[0].mean(axis=0) - right[1].mean(axis=0)
        low, high = mean_interval(differences) or (float("nan"), float("nan"))
        found |= {"points": 100 * float(differences.mean()), "low": 100 * low, "high": 100 * high}
    seeds = mean_difference(right[0].mean(axis=1), right[1].mean(axis=1))
    return found | {
        "seeds_low": 100 * seeds.low if seeds else None, "seeds_high": 100 * seeds.high if seeds else None
    }  # fmt: skip


def _curve(training: Training) -> tuple[list[int], list[float], list[float], list[float]]:
    """Return epochs, images seen, seconds since the start, and validation accuracy."""
    told = training.checkpoint.details["training"]
    epochs = told["epochs"]
    unlabelled = (training.checkpoint.details.get("distillation") or {}).get("unlabelled", 0)
    images = np.arange(1, len(epochs) + 1) * (_count(training, "train") + unlabelled)
    spent = np.cumsum([entry["seconds"] for entry in epochs])
    # The features of a frozen network, a teacher's answers: they were waited for as well. Not so decoding, which
    # an earlier run may have done. After a kill only the last call's share is known.
    known = told.get("seconds", 0.0) - told.get("decode_seconds", 0.0)
    before = max(0.0, known - float(spent[-1]))
    return (
        [entry["epoch"] for entry in epochs],
        images.astype(float).tolist(),
        (before + spent).tolist(),
        [entry["val_top1"] for entry in epochs],
    )


def _mean_curve(members: Sequence[Training]) -> list[dict[str, Any]]:
    """Return the mean of the members' curves, epoch by epoch, to the end of the shortest."""
    curves = [_curve(member) for member in members]
    points = []
    for index in range(min(len(curve[0]) for curve in curves)):
        shares = np.array([curve[3][index] for curve in curves])
        ends = mean_interval(shares)
        points.append(
            {
                "epoch": curves[0][0][index],
                "images": float(np.mean([curve[1][index] for curve in curves])),
                "seconds": float(np.mean([curve[2][index] for curve in curves])),
                "top1": float(shares.mean()),
                "low": max(0.0, ends.low) if ends else None,
                "high": min(1.0, ends.high) if ends else None,
            }
        )
    return points


def _differences(groups: Sequence[Group]) -> list[str]:
    """Say what makes groups hard to compare."""
    everyone = [member for one in groups for member in one.members]
    found = []
    said = {
        "val": "the curves are of different inputs and cannot be compared point by point",
        "test": "final accuracies are shown without what one gains over the other",
        "train": "what differs may be the inputs, not the training",
    }
    for split, consequence in said.items():
        if len({_digest(member, split) for member in everyone}) > 1:
            counts = sorted({_count(member, split) for member in everyone})
            many = " and ".join(map(str, counts)) if len(counts) > 1 else f"{counts[0]} each"
            found.append(f"not the same {split} inputs ({many}): {consequence}")
    if len({str(m.checkpoint.details["training"].get("accelerator")) for m in everyone}) > 1:
        found.append("trained on different accelerators: seconds are not comparable")
    if len({m.checkpoint.details["model"]["name"] for m in everyone}) > 1:
        found.append("different networks are compared")
    if any(one.members[0].kind == DISTILLATION for one in groups):
        found.append("what the teacher itself took to train is not part of the distilled one's seconds")
    reused = [member.name for member in everyone if _reused(member)]
    if reused:
        found.append(
            "features of a frozen network or a teacher's answers were there from an earlier training, whose time is "
            f"not part of the seconds: {list_some(reused)}"
        )
    single = [one.label for one in groups if len(one.members) == 1]
    if single:
        found.append(
            f"one seed only ({'; '.join(single)}): no interval over seeds is drawn; runs of the same recipe with "
            "another finetune.seed make one"
        )
    return found


def _reused(training: Training) -> bool:
    details = training.checkpoint.details
    told = details.get("distillation") or {}
    return bool(details["training"].get("features_earlier") or told.get("asked_earlier"))


def _digest(training: Training, split: str) -> str:
    return hash_json(sorted(_key(sample) for sample in training.data.splits[split]))


def _count(training: Training, split: str) -> int:
    return len(training.data.splits[split])


def _key(sample: Sample) -> str:
    return f"{sample.sha256}:{sample.label}"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key} {item}" for key, item in value.items() if item is not None)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
