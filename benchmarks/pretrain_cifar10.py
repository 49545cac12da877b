r"""Train the small checkpoint that ships with edgetune, from random weights, on CIFAR-10.

    export EDGETUNE_CIFAR10=/data/cifar10
    python benchmarks/pretrain_cifar10.py -o first.safetensors
    python benchmarks/pretrain_cifar10.py --go-on-from first.safetensors --epochs 42 --learning-rate 0.12 \
        --seed 1 -o mobilenet_v2_035_cifar10.safetensors

The folder holds train/ and test/ with one folder of images per class. Both together took three hours on one
CPU core beside other work. The test images are looked at after the last epoch of each.

`--network` names others of torchvision's, which int8_peers.py quantizes and which do not ship:

    python benchmarks/pretrain_cifar10.py --network mobilenet_v3_small --epochs 24 -o mobilenet_v3_small.safetensors
    python benchmarks/pretrain_cifar10.py --network efficientnet_b0 --epochs 12 --learning-rate 0.1 \
        -o efficientnet_b0.safetensors
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from edgetune.models import build_cifar10

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class Network:
    """What is trained.

    Attributes:
        build: gives it with random weights.
        size_px: the side that images are scaled to.
        told: what it is, for the card.
    """

    build: Callable[[], nn.Module]
    size_px: int
    told: str


def _mobilenet_v3_small() -> nn.Module:
    net = torchvision.models.mobilenet_v3_small(num_classes=10)
    net.features[0][0].stride = (1, 1)
    return net


SHIPPED = "mobilenet_v2_035_cifar10"
NETWORKS = {
    SHIPPED: Network(
        lambda: build_cifar10(classes=10),
        32,
        "mobilenet_v2, width 0.35, stride 1 in features.0 and features.7, 32 px",
    ),
    "mobilenet_v3_small": Network(
        _mobilenet_v3_small, 32, "torchvision's mobilenet_v3_small, stride 1 in features.0, 32 px"
    ),
    "efficientnet_b0": Network(
        lambda: torchvision.models.efficientnet_b0(num_classes=10),
        40,
        "torchvision's efficientnet_b0, 32 px images scaled to 40",
    ),
}


def load(folder: Path) -> tuple[Tensor, Tensor, list[str]]:
    """Read class folders of 32x32 images as uint8 [N, 3, 32, 32] and labels [N]."""
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir())
    images, labels = [], []
    for label, name in enumerate(classes):
        for path in sorted((folder / name).iterdir()):
            with Image.open(path) as image:
                images.append(np.asarray(image.convert("RGB")).transpose(2, 0, 1))
            labels.append(label)
    return torch.from_numpy(np.stack(images)), torch.tensor(labels), classes


def normalise(batch: Tensor, size_px: int = 32) -> Tensor:
    """Return uint8 [N, 3, 32, 32] as what the network takes, scaled as Pillow does (bilinear)."""
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    values = batch.float() / 255
    if size_px != batch.shape[-1]:
        values = F.interpolate(values, size=(size_px, size_px), mode="bilinear", antialias=True)
    return (values - mean) / std


def augment(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Shift by up to 4 px (reflected border) and flip half of the images, uint8 [N, 3, 32, 32]."""
    n = len(batch)
    padded = F.pad(batch.float(), (4, 4, 4, 4), mode="reflect").to(torch.uint8)
    rows = torch.randint(0, 9, (n, 1), generator=generator) + torch.arange(32)
    cols = torch.randint(0, 9, (n, 1), generator=generator) + torch.arange(32)
    flip = torch.rand(n, 1, generator=generator) < 0.5
    cols = torch.where(flip, cols.flip(1), cols)
    index = torch.arange(n).view(n, 1, 1)
    return padded.permute(0, 2, 3, 1)[index, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)


@torch.inference_mode()
def accuracy(net: nn.Module, images: Tensor, labels: Tensor, size_px: int) -> float:
    net.eval()
    right = 0
    for start in range(0, len(images), 500):
        logits = net(normalise(images[start : start + 500], size_px))
        right += int((logits.argmax(1) == labels[start : start + 500]).sum())
    return right / len(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--network", choices=[*NETWORKS], default=SHIPPED)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=0.15)
    parser.add_argument("--weight-decay", type=float, default=2e-4)
    parser.add_argument("--go-on-from", type=Path, help="a checkpoint of this script to train further")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's own choice")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=0, help="images to train on (0: all), for a trial")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the .safetensors to write")
    args = parser.parse_args()
    root = Path(os.environ["EDGETUNE_CIFAR10"])
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    images, labels, classes = load(root / "train")
    if args.limit:
        pick = torch.randperm(len(images), generator=generator)[: args.limit]
        images, labels = images[pick], labels[pick]
    network = NETWORKS[args.network]
    net = network.build()
    if args.go_on_from:
        net.load_state_dict(load_file(args.go_on_from), strict=False)
    # A fifth faster here than channels-last without compilation, which is a third faster than neither.
    compiled = torch.compile(net)
    decayed = [p for p in net.parameters() if p.ndim > 1]
    plain = [p for p in net.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": args.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=args.learning_rate,
        momentum=0.9,
        nesterov=True,
    )
    steps = len(images) // args.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=args.learning_rate,
        total_steps=steps * args.epochs,
        pct_start=0.1,
        cycle_momentum=False,
    )
    began = time.perf_counter()
    for epoch in range(args.epochs):
        net.train()
        order = torch.randperm(len(images), generator=generator)
        total = 0.0
        for step in range(steps):
            pick = order[step * args.batch : (step + 1) * args.batch]
            batch = normalise(augment(images[pick], generator), network.size_px)
            loss = F.cross_entropy(compiled(batch), labels[pick])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(
            f"epoch {epoch + 1}/{args.epochs} loss {total / steps:.4f} {time.perf_counter() - began:.0f} s",
            flush=True,
        )
    seconds = time.perf_counter() - began
    test_images, test_labels, _ = load(root / "test")
    top1 = accuracy(net, test_images, test_labels, network.size_px)
    print(f"top-1 on {len(test_images)} test images: {100 * top1:.2f}%")
    state = {k: v.contiguous() for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_bytes(save(state))
    card = {
        "architecture": network.told,
        "data": "CIFAR-10 (train: 50,000 images as JPEG)",
        "top1_test": round(top1, 4),
        "test_images": len(test_images),
        "classes": classes,
        "mean": MEAN,
        "std": STD,
        "settings": {
            "epochs": args.epochs,
            "batch": args.batch,
            "optimizer": "sgd, nesterov momentum 0.9",
            "learning_rate": args.learning_rate,
            "schedule": "one cycle, 10% warm-up",
            "weight_decay": args.weight_decay,
            "seed": args.seed,
            "augmentation": "shift by up to 4 px, horizontal flip",
        },
        "seconds": round(seconds),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
        "made_by": "benchmarks/pretrain_cifar10.py",
    }
    if args.go_on_from:
        earlier = json.loads(args.go_on_from.with_suffix(".json").read_text())
        card["went_on_from"] = {key: earlier[key] for key in ("top1_test", "settings", "seconds")}
    args.out.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n")


if __name__ == "__main__":
    main()
