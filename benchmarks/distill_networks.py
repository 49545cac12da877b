"""The small residual networks that the distillation benchmarks train: those of He et al. 2016 for CIFAR-10."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgetune.artifact import Preprocess

CIFAR10 = Preprocess(
    resize_px=32, size_px=32, channels=3, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)
)


class Block(nn.Module):
    """Two 3x3 convolutions and a way around them; where the width changes, a 1x1 convolution goes around."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.around = nn.Sequential()
        if before != width:
            self.around = nn.Sequential(
                nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, images: Tensor) -> Tensor:
        """Return as many maps as the block is wide."""
        inner = functional.relu(self.bn1(self.conv1(images)))
        return functional.relu(self.bn2(self.conv2(inner)) + self.around(images))


class ResNet(nn.Module):
    """ResNet-(6n+2), section 4.2 of arXiv:1512.03385, with 1x1 convolutions around."""

    def __init__(self, depth: int, classes: int = 10, width: int = 16, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.stem = nn.Sequential(
                nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
            )
            blocks, before = [], width
            for stage in range(3):
                for index in range((depth - 2) // 6):
                    blocks.append(Block(before, width << stage, 2 if stage and not index else 1))
                    before = width << stage
            self.body = nn.Sequential(*blocks)
            self.head = nn.Linear(before, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [N, K]."""
        return self.head(self.body(self.stem(images)).mean((2, 3)))
