r"""How much faster a student learns when its teacher answers once: CPU seconds beside the teacher in every step.

    python benchmarks/distill_host.py --data cifar10/train --images 1000

Both sides are edgetune's own stage `distill`, given the same images, student, teacher and epochs; one with
`views: 1` (or 4), the other with `views: 0`. They take turns, each turn with another seed. Timed is all of a stage
but imports and decoding: the teacher's answers, training, and validation after each epoch. Ten epochs without
augmentation and one kept view; forty with shifts and flips and four kept views, where the other side has new
views in every epoch. Accuracy is that of the validation images, which are as many as a fifth of the images.

The teacher is the ResNet whose forward pass takes closest to four times the student's, measured first. Were a
training step three forward passes, ten epochs could gain (3 + 4) / (3 + 4 / 10) = 2.06 times; the table says
what could be gained at the costs that were measured. Prints a Markdown table.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from distill_networks import CIFAR10, ResNet
from machine import heading

from edgetune.artifact import Artifact
from edgetune.data.folders import Dataset, scan
from edgetune.models import operations
from edgetune.progress import Silent
from edgetune.recipe import DataSection, DistillSection, FinetuneSection, ModelSection
from edgetune.stages.distill import distill
from edgetune.stages.finetune import finetune
from edgetune.training.accelerator import choose_accelerator

DEPTHS = (14, 20, 26, 32, 38, 44, 50)
BATCH = 64
CUSTOM = ModelSection(name="custom")


class Turn(NamedTuple):
    """One training: CPU seconds, wall seconds, validation accuracy."""

    cpu_s: float
    wall_s: float
    top1: float


class Clock(Silent):
    """Stops while images are decoded."""

    def __init__(self) -> None:
        self.cpu_s = self.wall_s = 0.0
        self._begun: tuple[float, float] | None = None

    def begin(self, what: str, total: int, unit: str = "image") -> None:  # noqa: ARG002
        """Remember when decoding began."""
        if what.startswith("decode"):
            self._begun = (time.process_time(), time.perf_counter())

    def end(self) -> None:
        """Count decoding."""
        if self._begun:
            self.cpu_s += time.process_time() - self._begun[0]
            self.wall_s += time.perf_counter() - self._begun[1]
            self._begun = None


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="one folder of 32 px images per class")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--only", choices=("1", "4"), help="one kept view over ten epochs, or four over forty"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    depth, costs = four_times()
    print(heading("torch", "torchvision"))
    print(
        f"{args.images} images, batch {BATCH}, {args.threads} thread(s); student ResNet-8 "
        f"({costs['student_macs'] / 1e6:.1f} M multiply-adds, {costs['student_ms']:.1f} ms forward, "
        f"{costs['step_ms']:.1f} ms a training step), teacher ResNet-{depth} ({costs['teacher_macs'] / 1e6:.1f} M, "
        f"{costs['teacher_ms']:.1f} ms forward: {costs['teacher_ms'] / costs['student_ms']:.2f} times the "
        "student's)\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        data = subset(args.data, Path(folder) / "images", args.images)
        teacher = ResNet(depth, len(data.classes))
        taught = finetune(
            CUSTOM, data, FinetuneSection(strategy="full", epochs=10, batch=BATCH, learning_rate=3e-3),
            into=Path(folder) / "teacher", accelerator="cpu", module=teacher, preprocess=CIFAR10,
        )  # fmt: skip
        print("| kept views | epochs | | CPU s | wall s | times as fast (CPU) | could be | top-1, val |")
        print("|---|---|---|---|---|---|---|---|")
        for views, epochs in ((1, 10), (4, 40)):
            if args.only in (None, str(views)):
                compare(taught, teacher, data, views, epochs, args.rounds, costs, Path(folder))


def four_times() -> tuple[int, dict[str, float]]:
    """Choose the teacher, and measure what both cost."""
    images = choose_accelerator("cpu").move(torch.randn(BATCH, 3, 32, 32))
    student = ResNet(8).to(memory_format=torch.channels_last)

    def forward(net: ResNet) -> Callable[[], object]:
        net.to(memory_format=torch.channels_last).eval()
        return torch.no_grad()(lambda: net(images))

    def step() -> None:
        student.train()(images).sum().backward()

    teachers = {depth: ResNet(depth) for depth in DEPTHS}
    found = cpu_ms({"student": forward(student), **{str(d): forward(net) for d, net in teachers.items()}})
    depth = min(DEPTHS, key=lambda d: abs(found[str(d)] / found["student"] - 4))
    return depth, {
        "student_ms": found["student"],
        "teacher_ms": found[str(depth)],
        "step_ms": cpu_ms({"step": step})["step"],
        "student_macs": operations(student, CIFAR10),
        "teacher_macs": operations(teachers[depth], CIFAR10),
    }


def cpu_ms(works: dict[str, Callable[[], object]], rounds: int = 15) -> dict[str, float]:
    """Return medians of CPU time, measured in turns."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for index in range(rounds + 1):
        for name, work in works.items():
            began = time.process_time()
            work()
            times[name] += [1e3 * (time.process_time() - began)] if index else []
    return {name: float(np.median(found)) for name, found in times.items()}


def subset(source: Path, folder: Path, images: int) -> Dataset:
    """Copy the first images of each class."""
    classes = sorted(path for path in source.iterdir() if path.is_dir())
    for path in classes:
        (folder / path.name).mkdir(parents=True)
        for file in sorted(path.iterdir())[: images // len(classes)]:
            shutil.copy(file, folder / path.name)
    # What would be the test split is not looked at: as little as goes.
    return scan(DataSection(path=str(folder), val_share=0.2, test_share=0.01), folder)


def compare(
    taught: Artifact, teacher: ResNet, data: Dataset, views: int, epochs: int, rounds: int,
    costs: dict[str, float], folder: Path,
) -> None:  # fmt: skip
    """Train both sides in turns, and print a row of each."""
    turns: dict[int, list[Turn]] = {views: [], 0: []}
    for seed in range(rounds):
        for kept in (views, 0) if seed % 2 else (0, views):
            turns[kept].append(
                turn(taught, teacher, data, kept, epochs, seed, folder / f"{kept}-{epochs}-{seed}")
            )
    ratios = [slow.cpu_s / fast.cpu_s for slow, fast in zip(turns[0], turns[views], strict=True)]
    step, asked = costs["step_ms"], costs["teacher_ms"]
    could = epochs * (step + asked) / (epochs * step + views * asked)
    for kept, title in ((0, "teacher in every step"), (views, "teacher once")):
        cpu, wall, top1 = (np.array(values) for values in zip(*turns[kept], strict=True))
        fast = f"{np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if kept else ""
        spread = f" ± {100 * top1.std(ddof=1):.1f}" if len(top1) > 1 else ""
        print(
            f"| {kept or '–'} | {epochs} | {title} | {np.median(cpu):.1f} | {np.median(wall):.1f} | {fast} "
            f"| {f'{could:.2f}' if kept else ''} | {100 * top1.mean():.1f}%{spread} |",
            flush=True,
        )


def turn(
    taught: Artifact, teacher: ResNet, data: Dataset, views: int, epochs: int, seed: int, folder: Path
) -> Turn:
    """Distill once, with an empty folder of answers."""
    augment: dict[str, Any] = {"preset": "none" if epochs == 10 else "light"}
    settings = FinetuneSection.model_validate(
        {
            "strategy": "full",
            "epochs": epochs,
            "batch": BATCH,
            "learning_rate": 3e-3,
            "seed": seed,
            "augment": augment,
        }
    )
    distil = DistillSection.model_validate({"teacher": {"name": "own"}, "views": views})
    clock, cpu, wall = Clock(), time.process_time(), time.perf_counter()
    made = distill(
        taught, CUSTOM, data, settings, distil, into=folder / "student", accelerator="cpu",
        module=ResNet(8, len(data.classes), seed=seed), preprocess=CIFAR10, teacher_module=teacher, progress=clock,
    )  # fmt: skip
    cpu, wall = time.process_time() - cpu - clock.cpu_s, time.perf_counter() - wall - clock.wall_s
    return Turn(cpu, wall, made.details["training"]["val_top1"])


if __name__ == "__main__":
    main()
