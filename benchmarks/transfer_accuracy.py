r"""What pretrained weights and a teacher buy on a few hundred photographs, over seeds.

    python benchmarks/transfer_accuracy.py --data ants-bees --weights mobilenet_v2.pth \
        --student-weights squeezenet1_0.pth

The folder holds train/ and val/ with one folder of images per class; the latter judge. mobilenet_v2 learns them
from random weights and by four strategies; what `full` makes of seed 0 then teaches squeezenet1_0, which also
learns alone. Everything is edgetune's own: `finetune` and `distill`, augmentation `standard`, as many epochs for all.

Prints a Markdown table: mean and standard deviation of top-1 over seeds, and the difference to the row it is beside,
seed by seed, with Student's 95% interval.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from distill_accuracy import gain
from machine import heading

from edgetune.artifact import Artifact, Preprocess
from edgetune.data.folders import Dataset, scan
from edgetune.data.images import batches
from edgetune.models import preprocess_for
from edgetune.recipe import DataSection, DistillSection, FinetuneSection, ModelSection
from edgetune.stages.distill import distill
from edgetune.stages.finetune import finetune
from edgetune.training.checkpoint import load_network
from edgetune.training.evaluate import predict_logits

TEACHER, STUDENT = "mobilenet_v2", "squeezenet1_0"


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="a folder with train/ and val/")
    parser.add_argument("--weights", required=True, help=f"of {TEACHER}, on ImageNet")
    parser.add_argument("--student-weights", required=True, help=f"of {STUDENT}, on ImageNet")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--size", type=int, default=128, help="of the images, in pixels")
    args = parser.parse_args()
    print(heading("torch", "torchvision"))
    data = scan(DataSection(path=str(args.data.absolute())), args.data)
    counts = ", ".join(f"{len(samples)} {name}" for name, samples in data.splits.items())
    print(f"{counts} images, {args.size} px, {args.epochs} epochs, {args.seeds} seeds\n")
    print("| | | top-1 | | seconds |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scratch = rows(TEACHER, "from random weights", "full", "none", data, args, folder)
        for strategy in ("feature-extractor", "partial", "gradual", "full"):
            rows(TEACHER, strategy, strategy, args.weights, data, args, folder, beside=scratch)
        teacher = Artifact.load(folder / f"{TEACHER}-full-0")
        alone = rows(STUDENT, "alone", "feature-extractor", args.student_weights, data, args, folder)
        rows(
            STUDENT,
            "distilled",
            "feature-extractor",
            args.student_weights,
            data,
            args,
            folder,
            alone,
            teacher,
        )


def rows(
    name: str,
    title: str,
    strategy: str,
    weights: str,
    data: Dataset,
    args: argparse.Namespace,
    folder: Path,
    beside: list[float] | None = None,
    teacher: Artifact | None = None,
) -> list[float]:
    """Train a network with each seed, print its row, and return its accuracies."""
    source = weights if weights == "none" else str(Path(weights).absolute())
    model = ModelSection(name=name, weights=source, size_px=args.size)
    found, seconds = [], []
    for seed in range(args.seeds):
        into = folder / f"{name}-{title.replace(' ', '_')}-{seed}"
        common: dict[str, Any] = {"into": into, "accelerator": "auto", "cache": folder / "decoded"}
        chosen = settings(strategy, args.epochs, seed)
        if teacher:
            distil = DistillSection.model_validate({"teacher": {"name": TEACHER}, "labels": 0.5})
            made = distill(teacher, model, data, chosen, distil, answers=folder / "answers", **common)
        else:
            made = finetune(model, data, chosen, **common)
        found.append(accuracy(made, data, preprocess_for(name, 3, args.size)))
        seconds.append(made.details["training"]["seconds"])
    print(
        f"| {name} | {title} | {100 * np.mean(found):.2f}% ± {100 * np.std(found, ddof=1):.2f} | "
        f"{gain(found, beside) if beside else ''} | {np.mean(seconds):.0f} |",
        flush=True,
    )
    return found


def settings(strategy: str, epochs: int, seed: int) -> FinetuneSection:
    """Return how everyone learns, but for the strategy."""
    return FinetuneSection.model_validate(
        {"strategy": strategy, "epochs": epochs, "seed": seed, "augment": {"preset": "standard"}}
    )


def accuracy(made: Artifact, data: Dataset, preprocess: Preprocess) -> float:
    """Return the share of test images that a network gets right."""
    samples = data.splits["test"]
    said = predict_logits(
        load_network(made).eval(), batches(data.root, samples, preprocess, 64), torch.device("cpu")
    )
    return float((said.argmax(axis=1) == np.array([sample.label for sample in samples])).mean())


if __name__ == "__main__":
    main()
