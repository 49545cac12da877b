r"""What a teacher adds to a small network on CIFAR-10, over seeds: alone, and distilled in several ways.

    python benchmarks/distill_accuracy.py --data cifar10 --images 10000 --seeds 5

The folder holds train/ and test/ with one folder of 32 px images per class. Of train, the first images of each
class are taken, as many as asked for (all: 50,000), and 15% of those choose the epoch; test decides. One teacher,
a ResNet-20, is trained first; then for each seed the student, a ResNet-8 of half its width, alone and distilled,
from the same random weights, for as many epochs. Everything is edgetune's own: `finetune` and `distill`.

Prints a Markdown table: mean and standard deviation over seeds, and the difference to the student alone, seed by
seed, with Student's 95% interval. With the defaults about an hour on one core.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from distill_networks import CIFAR10, ResNet
from machine import heading

from edgetune.artifact import Artifact
from edgetune.data.folders import Dataset, scan
from edgetune.data.images import batches
from edgetune.latency.statistics import mean_interval
from edgetune.models import operations
from edgetune.recipe import DataSection, DistillSection, FinetuneSection, ModelSection
from edgetune.stages.distill import distill
from edgetune.stages.finetune import finetune
from edgetune.training.accelerator import choose_accelerator
from edgetune.training.checkpoint import load_network
from edgetune.training.evaluate import predict_logits

CUSTOM = ModelSection(name="custom")
WAYS: dict[str, dict[str, Any]] = {
    "soft": {"loss": "soft"},
    "soft-unmixed": {"loss": "soft", "labels": 0.0},
    "standardised": {"loss": "standardised"},
    "features": {"loss": "soft", "features": {"body.2": "body.8"}},
}


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="a folder with train/ and test/")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20, help="of the student")
    parser.add_argument("--teacher-epochs", type=int, default=30)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--ways", default="soft,standardised", help=", ".join(WAYS))
    parser.add_argument("--accelerator", default="auto")
    args = parser.parse_args()
    print(heading("torch", "torchvision"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = subset(args.data, folder / "images", args.images)
        teacher, began = ResNet(20), time.perf_counter()
        taught = finetune(
            CUSTOM, data, settings(args.teacher_epochs, 0), into=folder / "teacher", module=teacher,
            preprocess=CIFAR10, accelerator=args.accelerator,
        )  # fmt: skip
        seconds, top1 = time.perf_counter() - began, accuracy(taught, ResNet(20), data)
        print(
            f"{len(data.splits['train'])} training images, {len(data.splits['test'])} test images, {args.seeds} "
            f"seeds, {args.epochs} epochs, {args.views} kept views; teacher ResNet-20 "
            f"({operations(teacher, CIFAR10) / 1e6:.1f} M multiply-adds) {100 * top1:.2f}% after "
            f"{args.teacher_epochs} epochs in {seconds:.0f} s\n",
            flush=True,
        )
        table(taught, teacher, data, args, folder)


def table(taught: Artifact, teacher: ResNet, data: Dataset, args: argparse.Namespace, folder: Path) -> None:
    """Train each student, and print a row for each way."""
    print(f"| ResNet-8, half as wide ({operations(ResNet(8, width=8), CIFAR10) / 1e6:.1f} M) | top-1 | "
          "beside alone, in points | seconds |\n|---|---|---|---|")  # fmt: skip
    alone: list[float] = []
    for way in ("alone", *args.ways.split(",")):
        found, seconds = [], []
        for seed in range(args.seeds):
            made = train(way, seed, taught, teacher, data, args, folder / f"{way}-{seed}" / "student")
            found.append(accuracy(made, ResNet(8, width=8), data))
            seconds.append(made.details["training"]["seconds"])
        alone = alone or found
        print(
            f"| {way} | {100 * np.mean(found):.2f}% ± {100 * np.std(found, ddof=1):.2f} | "
            f"{'' if way == 'alone' else gain(found, alone)} | {np.mean(seconds):.0f} |",
            flush=True,
        )


def train(
    way: str,
    seed: int,
    taught: Artifact,
    teacher: ResNet,
    data: Dataset,
    args: argparse.Namespace,
    into: Path,
) -> Artifact:
    """Train one student."""
    student = ResNet(8, width=8, seed=seed)
    if way == "alone":
        return finetune(
            CUSTOM, data, settings(args.epochs, seed), into=into, module=student, preprocess=CIFAR10,
            accelerator=args.accelerator,
        )  # fmt: skip
    distil = DistillSection.model_validate({"teacher": {"name": "own"}, "views": args.views, **WAYS[way]})
    return distill(
        taught, CUSTOM, data, settings(args.epochs, seed), distil, into=into, module=student,
        preprocess=CIFAR10, teacher_module=teacher, accelerator=args.accelerator, answers=into.parents[1] / "answers",
    )  # fmt: skip


def settings(epochs: int, seed: int) -> FinetuneSection:
    """Return how everyone learns: shifts and flips, AdamW at 3e-3, one cosine."""
    return FinetuneSection.model_validate({
        "strategy": "full", "epochs": epochs, "batch": 64, "learning_rate": 3e-3, "weight_decay": 0.05,
        "seed": seed, "augment": {"preset": "light"},
    })  # fmt: skip


def gain(found: list[float], alone: list[float]) -> str:
    """Say how many points were gained, seed by seed, and whether that is more than the seeds' spread."""
    points = 100 * (np.array(found) - np.array(alone))
    ends = mean_interval(points)
    if ends is None:
        return f"{points[0]:+.2f} (one seed cannot tell)"
    spread = 100 * max(np.std(found, ddof=1), np.std(alone, ddof=1))
    verdict = "more" if points.mean() > spread and ends.low > 0 else "not more"
    return f"{points.mean():+.2f} ({ends.low:+.2f} to {ends.high:+.2f}); {verdict} than the seeds' spread"


def accuracy(made: Artifact, net: torch.nn.Module, data: Dataset) -> float:
    """Return the share of test images that a network gets right."""
    target = choose_accelerator("auto")
    inputs = batches(data.root, data.splits["test"], CIFAR10, 250)
    said = predict_logits(target.place(load_network(made, net)), inputs, target.device).argmax(axis=1)
    return float((said == np.array([sample.label for sample in data.splits["test"]])).mean())


def subset(source: Path, folder: Path, images: int) -> Dataset:
    """Copy the first images of each class of train, and all of test."""
    for split, most in (("train", images // 10), ("test", None)):
        for path in sorted(path for path in (source / split).iterdir() if path.is_dir()):
            (folder / split / path.name).mkdir(parents=True)
            for file in sorted(path.iterdir())[:most]:
                shutil.copy(file, folder / split / path.name)
    return scan(DataSection(path=str(folder)), folder)


if __name__ == "__main__":
    main()
