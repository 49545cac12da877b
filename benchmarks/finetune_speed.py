"""Fine-tuning beside plain PyTorch loops, in one run on the same images: seconds, images per second, accuracy.

    python benchmarks/finetune_speed.py --data ants-bees --model mobilenet_v2 --weights mobilenet_v2.pth

head: edgetune's feature-extractor, images decoded and features computed included, beside the usual loop: the
backbone has requires_grad False, every epoch decodes the images by a DataLoader and runs all of the network.
Both learn from the same images with the same optimizer and peak rate, without augmentation, validate after each
epoch, and are judged on the same test images, after the clock has stopped.

full: images per second of edgetune's epochs beside those of a bare loop: all inputs normalised in memory, forward,
backward, step, in channels last as edgetune does. Their steps take turns. Wall and CPU time: where others use
the machine, only the latter says something.

The folder holds train/ and val/ with one folder of images per class. Prints Markdown tables; imports are not timed.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from machine import heading
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms

import edgetune
from edgetune.artifact import Artifact, Preprocess
from edgetune.data.folders import Dataset, Sample, scan
from edgetune.data.images import pixels
from edgetune.models import build_model, model_row, preprocess_for
from edgetune.progress import Silent
from edgetune.recipe import FinetuneSection, ModelSection
from edgetune.stages.finetune import finetune
from edgetune.training.checkpoint import load_network
from edgetune.training.strategies import peak_rate

BATCH = 32


class Clock:
    """Wall and CPU seconds since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """Return both."""
        return time.perf_counter() - self._wall, time.process_time() - self._cpu


class Files(TorchDataset[tuple[Tensor, int]]):
    """Images as torchvision's references read them, at each call."""

    def __init__(self, root: Path, samples: tuple[Sample, ...], preprocess: Preprocess) -> None:
        self._root, self._samples = root, samples
        self._change = transforms.Compose([
            transforms.Resize(preprocess.resize_px), transforms.CenterCrop(preprocess.size_px),
            transforms.ToTensor(), transforms.Normalize(preprocess.mean, preprocess.std),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        sample = self._samples[index]
        with Image.open(self._root / sample.path) as image:
            return self._change(image.convert("RGB")), sample.label


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="mobilenet_v2")
    parser.add_argument("--weights", default="default")
    parser.add_argument("--what", nargs="+", choices=["head", "full"], default=["head", "full"])
    parser.add_argument("--epochs", type=int, default=10, help="of head")
    parser.add_argument("--full-epochs", type=int, default=6, help="of full, after one to warm up")
    parser.add_argument("--rounds", type=int, default=1, help="of head, each with another seed")
    parser.add_argument("--workers", type=int, default=0, help="of the usual loop's DataLoader")
    args = parser.parse_args()
    print(heading("torch", "torchvision", "pillow"), f"threads: {torch.get_num_threads()}\n")
    recipe = edgetune.recipe_from(
        {"data": {"path": str(args.data.absolute())}, "model": {"name": args.model}}
    )
    data = scan(recipe.data, args.data)
    weights = args.weights if args.weights in ("default", "none") else str(Path(args.weights).absolute())
    model = ModelSection(name=args.model, weights=weights)
    preprocess = preprocess_for(args.model, 3, 0)
    print(
        f"{args.model}, {preprocess.size_px} px, "
        + ", ".join(f"{len(s)} {n}" for n, s in data.splits.items())
    )
    if "head" in args.what:
        head(model, data, preprocess, args)
    if "full" in args.what:
        full(model, data, preprocess, args.full_epochs)


def head(model: ModelSection, data: Dataset, preprocess: Preprocess, args: Any) -> None:
    """Compare seconds and accuracy of learning a head."""
    ways: dict[str, Callable[[int], tuple[nn.Module, tuple[float, float]]]] = {
        "edgetune": lambda seed: ours(model, data, args.epochs, seed),
        "usual loop": lambda seed: usual(model, data, preprocess, args.epochs, seed, args.workers, False),
        "usual loop, channels last": lambda seed: usual(
            model, data, preprocess, args.epochs, seed, args.workers, True
        ),
    }
    print(f"\nhead, {args.epochs} epochs\n\n| | wall s | CPU s | test top-1 |\n|---|---|---|---|")
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for seed in range(args.rounds):
        for name, way in ways.items():
            net, times = way(seed)
            taken[name].append(times)
            print(
                f"| {name} | {times[0]:.1f} | {times[1]:.1f} | {accuracy(net, data, preprocess):.2%} |",
                flush=True,
            )
    print()
    for name in list(ways)[1:]:
        wall, cpu = (
            statistics.median(t[k] for t in taken[name]) / statistics.median(t[k] for t in taken["edgetune"])
            for k in (0, 1)
        )
        print(f"{name} over edgetune: {wall:.1f} times the wall time, {cpu:.1f} times the CPU time")


def ours(model: ModelSection, data: Dataset, epochs: int, seed: int) -> tuple[nn.Module, tuple[float, float]]:
    """Let edgetune learn the head, from files to the checkpoint."""
    settings = FinetuneSection(epochs=epochs, batch=BATCH, seed=seed)
    with tempfile.TemporaryDirectory() as out:
        clock = Clock()
        made = fitted(model, data, settings, Path(out), Silent())
        times = clock.read()
        return load_network(made), times


def fitted(
    model: ModelSection, data: Dataset, settings: FinetuneSection, out: Path, progress: Silent
) -> Artifact:
    """Fine-tune on this CPU."""
    return finetune(model, data, settings, into=out / "checkpoint", accelerator="cpu", progress=progress)


def usual(
    model: ModelSection,
    data: Dataset,
    preprocess: Preprocess,
    epochs: int,
    seed: int,
    workers: int,
    last: bool,
) -> tuple[nn.Module, tuple[float, float]]:
    """Learn the head as tutorials do; the last epoch counts."""
    torch.manual_seed(seed)
    clock = Clock()
    layout = torch.channels_last if last else torch.contiguous_format
    net = fresh(model, data, preprocess, seed).to(memory_format=layout)
    for parameter in net.parameters():
        parameter.requires_grad = False
    classifier = net.get_submodule(model_row(model.name).head)
    for parameter in classifier.parameters():
        parameter.requires_grad = True
    rate = peak_rate(FinetuneSection(), net)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=rate)
    train, val = (
        DataLoader(
            Files(data.root, data.splits[split], preprocess),
            BATCH,
            shuffle=split == "train",
            num_workers=workers,
        )
        for split in ("train", "val")
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(train))
    for _ in range(epochs):
        net.train()
        for images, labels in train:
            loss = functional.cross_entropy(net(images.contiguous(memory_format=layout)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        net.eval()
        with torch.no_grad():
            for images, labels in val:
                (net(images.contiguous(memory_format=layout)).argmax(1) == labels).sum().item()
    return net, clock.read()


class Turns(Silent):
    """After each of edgetune's steps, lets something else have one; notes what both took."""

    def __init__(self, other: Callable[[], tuple[float, float]]) -> None:
        self._other = other
        self.own: list[tuple[float, float]] = []
        self.others: list[tuple[float, float]] = []

    def begin(self, *_: str, **__: int) -> None:
        """Start the clock."""
        self._clock = Clock()

    def advance(self, *_: int, loss: float | None = None, **__: float) -> None:
        """Read the clock after a step, its batch included."""
        if loss is not None:
            self.own.append(self._clock.read())
            self.others.append(self._other())
            self._clock = Clock()


def full(model: ModelSection, data: Dataset, preprocess: Preprocess, epochs: int) -> None:
    """Compare images per second where all of the network learns."""
    # Batches of the same size on both sides.
    steps = len(data.splits["train"]) // BATCH
    fewer = Dataset(data.root, data.classes, {**data.splits, "train": data.splits["train"][: steps * BATCH]})
    bare = bare_steps(model, fewer, preprocess)
    turns = Turns(lambda: next(bare))
    settings = FinetuneSection(strategy="full", epochs=epochs + 1, batch=BATCH)
    with tempfile.TemporaryDirectory() as out:
        made = fitted(model, fewer, settings, Path(out), turns)
    print(f"\nfull, {epochs * steps} steps in turns after {steps} to warm up: images per second\n")
    print("| | edgetune | bare loop | ratio of the sums | median ratio |\n|---|---|---|---|---|")
    for kind, name in enumerate(("wall", "CPU")):
        own, peer = ([times[kind] for times in side[steps:]] for side in (turns.own, turns.others))
        ratios = [b / a for a, b in zip(own, peer, strict=True)]
        print(
            f"| {name} | {BATCH * len(own) / sum(own):.2f} | {BATCH * len(peer) / sum(peer):.2f} "
            f"| {sum(peer) / sum(own):.3f} | {statistics.median(ratios):.3f} |"
        )
    waited = sum(epoch["waited_seconds"] for epoch in made.details["training"]["epochs"])
    print(f"\nthe model waited for data {waited / sum(wall for wall, _ in turns.own):.2%} of its time")


def bare_steps(model: ModelSection, data: Dataset, preprocess: Preprocess) -> Iterator[tuple[float, float]]:
    """Yield seconds of step after step, with nothing around them."""
    samples = data.splits["train"]
    found = torch.from_numpy(next(pixels(data.root, samples, preprocess, len(samples))))
    shape = (1, 3, 1, 1)
    inputs = (found / 255 - torch.tensor(preprocess.mean).view(shape)) / torch.tensor(preprocess.std).view(
        shape
    )
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    labels = torch.tensor([sample.label for sample in samples])
    net = fresh(model, data, preprocess, 0).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    while True:
        for pick in torch.randperm(len(labels)).split(BATCH):
            clock = Clock()
            loss = functional.cross_entropy(net(inputs[pick]), labels[pick], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
            yield clock.read()


def fresh(model: ModelSection, data: Dataset, preprocess: Preprocess, seed: int) -> nn.Module:
    """Build the pretrained network with a new head."""
    source: str | Path = model.weights if model.weights in ("default", "none") else Path(model.weights)
    return build_model(model.name, len(data.classes), 3, source, "sum", preprocess.size_px, seed)


@torch.inference_mode()
def accuracy(net: nn.Module, data: Dataset, preprocess: Preprocess) -> float:
    """Return top-1 on the test split."""
    net.eval()
    samples = data.splits["test"]
    labels = torch.tensor([sample.label for sample in samples])
    inputs = DataLoader(Files(data.root, samples, preprocess), BATCH)
    logits = torch.cat([net(images) for images, _ in inputs])
    return float((logits.argmax(1) == labels).float().mean())


if __name__ == "__main__":
    main()
