"""The networks of the published latencies, from torchvision, timm, or their public definition, without weights.

Detectors end where their raw predictions do, with a choice of the best candidates where the engine that was
timed held one. `python benchmarks/estimate_networks.py FOLDER` exports all of them as ONNX.
"""

import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 80


def conv(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = True
) -> nn.Sequential:
    """Convolution, batch normalization and SiLU, as in the YOLO networks."""
    layers = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([nn.SiLU()] if act else []))


class Bottleneck(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(
        self, inputs: int, outputs: int, first: int, hidden: float = 1.0, shortcut: bool = True
    ) -> None:
        super().__init__()
        inner = int(outputs * hidden)
        self.one, self.two = conv(inputs, inner, first), conv(inner, outputs, 3)
        self.add = shortcut and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.two(self.one(x))
        return x + y if self.add else y


class CSP(nn.Module):
    """Cross-stage block with three 1x1 convolutions (YOLOX's CSPLayer, YOLO11's C3k)."""

    def __init__(self, inputs: int, outputs: int, count: int, first: int, shortcut: bool = True) -> None:
        super().__init__()
        inner = outputs // 2
        self.one, self.two, self.three = conv(inputs, inner), conv(inputs, inner), conv(2 * inner, outputs)
        self.inside = nn.Sequential(
            *(Bottleneck(inner, inner, first, shortcut=shortcut) for _ in range(count))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.three(torch.cat((self.inside(self.one(x)), self.two(x)), 1))


class Pyramid(nn.Module):
    """Spatial pyramid pooling: YOLOX pools with three windows, YOLO11 with one three times."""

    def __init__(self, inputs: int, outputs: int, windows: Sequence[int], chained: bool) -> None:
        super().__init__()
        inner = inputs // 2
        self.one, self.two = conv(inputs, inner), conv(inner * 4, outputs)
        self.pools = nn.ModuleList(nn.MaxPool2d(w, 1, w // 2) for w in windows)
        self.chained = chained

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.one(x)]
        for pool in self.pools:
            parts.append(pool(parts[-1] if self.chained else parts[0]))
        return self.two(torch.cat(parts, 1))


class YoloX(nn.Module):
    """YOLOX (Ge et al. 2021, arXiv:2107.08430): CSPDarknet, path aggregation, decoupled heads."""

    def __init__(self, depth: float, width: float) -> None:
        super().__init__()
        base, count = int(64 * width), max(round(3 * depth), 1)
        self.stem = conv(12, base, 3)
        self.dark2 = nn.Sequential(conv(base, base * 2, 3, 2), CSP(base * 2, base * 2, count, 1))
        self.dark3 = nn.Sequential(conv(base * 2, base * 4, 3, 2), CSP(base * 4, base * 4, count * 3, 1))
        self.dark4 = nn.Sequential(conv(base * 4, base * 8, 3, 2), CSP(base * 8, base * 8, count * 3, 1))
        self.dark5 = nn.Sequential(
            conv(base * 8, base * 16, 3, 2),
            Pyramid(base * 16, base * 16, (5, 9, 13), chained=False),
            CSP(base * 16, base * 16, count, 1, shortcut=False),
        )
        small, middle, large = base * 4, base * 8, base * 16
        self.lateral, self.reduce = conv(large, middle), conv(middle, small)
        self.p4, self.p3 = CSP(2 * middle, middle, count, 1, False), CSP(2 * small, small, count, 1, False)
        self.down3, self.down4 = conv(small, small, 3, 2), conv(middle, middle, 3, 2)
        self.n3, self.n4 = CSP(2 * small, middle, count, 1, False), CSP(2 * middle, large, count, 1, False)
        hidden = int(256 * width)
        self.stems = nn.ModuleList(conv(size, hidden) for size in (small, middle, large))
        pair = lambda: nn.Sequential(conv(hidden, hidden, 3), conv(hidden, hidden, 3))  # noqa: E731
        self.kinds, self.places = (nn.ModuleList(pair() for _ in range(3)) for _ in range(2))
        self.scores = nn.ModuleList(nn.Conv2d(hidden, CLASSES, 1) for _ in range(3))
        self.boxes = nn.ModuleList(nn.Conv2d(hidden, 4, 1) for _ in range(3))
        self.objects = nn.ModuleList(nn.Conv2d(hidden, 1, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[..., a::2, b::2] for b in (0, 1) for a in (0, 1)]
        c3 = self.dark3(self.dark2(self.stem(torch.cat(parts, 1))))
        c4 = self.dark4(c3)
        c5 = self.lateral(self.dark5(c4))
        p4 = self.reduce(self.p4(torch.cat((F.interpolate(c5, scale_factor=2.0), c4), 1)))
        p3 = self.p3(torch.cat((F.interpolate(p4, scale_factor=2.0), c3), 1))
        n3 = self.n3(torch.cat((self.down3(p3), p4), 1))
        n4 = self.n4(torch.cat((self.down4(n3), c5), 1))
        found = []
        for level, features in enumerate((p3, n3, n4)):
            stem = self.stems[level](features)
            kind, place = self.kinds[level](stem), self.places[level](stem)
            scores, seen = self.scores[level](kind).sigmoid(), self.objects[level](place).sigmoid()
            found.append(torch.cat((self.boxes[level](place), seen, scores), 1).flatten(2))
        return torch.cat(found, 2).permute(0, 2, 1)


class C3k2(nn.Module):
    """YOLO11's block: a split, blocks in a row, everything put together."""

    def __init__(self, inputs: int, outputs: int, count: int, deep: bool, hidden: float = 0.5) -> None:
        super().__init__()
        self.inner = int(outputs * hidden)
        self.one, self.two = conv(inputs, 2 * self.inner), conv((2 + count) * self.inner, outputs)
        make = (lambda: CSP(self.inner, self.inner, 2, 3)) if deep else (
            lambda: Bottleneck(self.inner, self.inner, 3, 0.5)
        )  # fmt: skip
        self.blocks = nn.ModuleList(make() for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.one(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(block(parts[-1]))
        return self.two(torch.cat(parts, 1))


class Attention(nn.Module):
    """Attention over positions with a depthwise convolution for the position, and a feed-forward part."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.heads, self.size = max(size // 64, 1), size
        self.head = size // self.heads
        self.key = self.head // 2
        self.qkv = conv(size, size + 2 * self.key * self.heads, act=False)
        self.out, self.where = conv(size, size, act=False), conv(size, size, 3, groups=size, act=False)
        self.forward_part = nn.Sequential(conv(size, 2 * size), conv(2 * size, size, act=False))

    def forward(self, x: Tensor) -> Tensor:
        _, _, height, width = x.shape
        together = self.qkv(x).view(1, self.heads, 2 * self.key + self.head, height * width)
        query, key, value = together.split((self.key, self.key, self.head), 2)
        weight = ((query.transpose(2, 3) @ key) * self.key**-0.5).softmax(-1)
        mixed = (value @ weight.transpose(2, 3)).view(1, self.size, height, width)
        x = x + self.out(mixed + self.where(value.reshape(1, self.size, height, width)))
        return x + self.forward_part(x)


class C2PSA(nn.Module):
    """Half of the channels go through attention."""

    def __init__(self, size: int, count: int) -> None:
        super().__init__()
        self.one, self.two = conv(size, size), conv(size, size)
        self.blocks = nn.Sequential(*(Attention(size // 2) for _ in range(count)))

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.one(x).chunk(2, 1)
        return self.two(torch.cat((left, self.blocks(right)), 1))


class Yolo11(nn.Module):
    """YOLO11 (Jocher and Qiu 2024, its public network description), with the decoding that is in its export."""

    def __init__(self, depth: float, width: float, most: int, deep: bool) -> None:
        super().__init__()

        def wide(channels: int) -> int:
            return -(-int(min(channels, most) * width) // 8) * 8

        count = max(round(2 * depth), 1)
        w = {size: wide(size) for size in (64, 128, 256, 512, 1024)}
        self.early = nn.Sequential(
            conv(3, w[64], 3, 2), conv(w[64], w[128], 3, 2), C3k2(w[128], w[256], count, deep, 0.25),
            conv(w[256], w[256], 3, 2), C3k2(w[256], w[512], count, deep, 0.25),
        )  # fmt: skip
        self.middle = nn.Sequential(conv(w[512], w[512], 3, 2), C3k2(w[512], w[512], count, True))
        self.late = nn.Sequential(
            conv(w[512], w[1024], 3, 2), C3k2(w[1024], w[1024], count, True),
            Pyramid(w[1024], w[1024], (5, 5, 5), chained=True), C2PSA(w[1024], count),
        )  # fmt: skip
        self.up4 = C3k2(w[1024] + w[512], w[512], count, deep)
        self.up3 = C3k2(2 * w[512], w[256], count, deep)
        self.down4, self.mix4 = conv(w[256], w[256], 3, 2), C3k2(w[256] + w[512], w[512], count, deep)
        self.down5, self.mix5 = conv(w[512], w[512], 3, 2), C3k2(w[512] + w[1024], w[1024], count, True)
        levels = (w[256], w[512], w[1024])
        box, kind = max(16, levels[0] // 4, 64), max(levels[0], min(CLASSES, 100))
        self.boxes = nn.ModuleList(
            nn.Sequential(conv(size, box, 3), conv(box, box, 3), nn.Conv2d(box, 64, 1)) for size in levels
        )
        self.kinds = nn.ModuleList(
            nn.Sequential(
                conv(size, size, 3, groups=size), conv(size, kind), conv(kind, kind, 3, groups=kind),
                conv(kind, kind), nn.Conv2d(kind, CLASSES, 1),
            ) for size in levels
        )  # fmt: skip
        self.bins = nn.Conv2d(16, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        c3 = self.early(x)
        c4 = self.middle(c3)
        c5 = self.late(c4)
        p4 = self.up4(torch.cat((F.interpolate(c5, scale_factor=2.0), c4), 1))
        p3 = self.up3(torch.cat((F.interpolate(p4, scale_factor=2.0), c3), 1))
        n4 = self.mix4(torch.cat((self.down4(p3), p4), 1))
        n5 = self.mix5(torch.cat((self.down5(n4), c5), 1))
        found = [
            torch.cat((box(level), kind(level)), 1).flatten(2)
            for level, box, kind in zip((p3, n4, n5), self.boxes, self.kinds, strict=True)
        ]
        box, kind = torch.cat(found, 2).split((64, CLASSES), 1)
        sides = self.bins(box.reshape(1, 4, 16, -1).transpose(2, 1).softmax(1)).reshape(1, 4, -1)
        near, far = sides.chunk(2, 1)
        place = torch.cat((near + far, far - near), 1) * 8.0
        return torch.cat((place, kind.sigmoid()), 1)


class MobileNetSSD(nn.Module):
    """SSD with MobileNet v1 at 300 px, as MLPerf took it from the TensorFlow detection zoo."""

    def __init__(self) -> None:
        super().__init__()

        def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
            def part(kernel: int, wide: int, step: int, groups: int) -> list[nn.Module]:
                layer = nn.Conv2d(inputs, wide, kernel, step, kernel // 2, groups=groups, bias=False)
                return [layer, nn.BatchNorm2d(wide), nn.ReLU6()]

            return nn.Sequential(*part(3, inputs, stride, inputs), *part(1, outputs, 1, 1))

        def plain(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
            layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
            return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU6())

        self.first = nn.Sequential(
            plain(3, 32, 3, 2), block(32, 64), block(64, 128, 2), block(128, 128), block(128, 256, 2),
            block(256, 256), block(256, 512, 2), *(block(512, 512) for _ in range(5)),
        )  # fmt: skip
        sizes = ((1024, 256, 512), (512, 128, 256), (256, 128, 256), (256, 64, 128))
        extras = [nn.Sequential(plain(a, b, 1, 1), plain(b, c, 3, 2)) for a, b, c in sizes]
        self.rest = nn.ModuleList([nn.Sequential(block(512, 1024, 2), block(1024, 1024)), *extras])
        levels = zip((512, 1024, 512, 256, 256, 128), (3, 6, 6, 6, 6, 6), strict=True)
        self.boxes, self.kinds = nn.ModuleList(), nn.ModuleList()
        for channels, anchors in levels:
            self.boxes.append(nn.Conv2d(channels, anchors * 4, 1))
            self.kinds.append(nn.Conv2d(channels, anchors * 91, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        levels = [self.first(x)]
        for part in self.rest:
            levels.append(part(levels[-1]))
        return _detections(levels, self.boxes, self.kinds, 91)


def _detections(
    levels: list[Tensor], boxes: nn.ModuleList, kinds: nn.ModuleList, classes: int
) -> tuple[Tensor, Tensor]:
    """Return all boxes and the scores of the best candidates per class."""
    places = [head(level).permute(0, 2, 3, 1).flatten(1) for level, head in zip(levels, boxes, strict=True)]
    scores = [head(level).permute(0, 2, 3, 1).flatten(1) for level, head in zip(levels, kinds, strict=True)]
    score = torch.cat(scores, 1).view(levels[0].shape[0], -1, classes).softmax(-1)
    return torch.cat(places, 1), score.topk(100, 1).values


class ResNetSSD(nn.Module):
    """SSD with ResNet-34 at 1200 px, as in MLPerf: the third stage keeps its size, heads take every third pixel."""

    def __init__(self) -> None:
        super().__init__()
        body = torchvision.models.resnet34(weights=None)
        body.layer3[0].conv1.stride = body.layer3[0].downsample[0].stride = (1, 1)
        self.body = nn.Sequential(
            body.conv1, body.bn1, body.relu, body.maxpool, body.layer1, body.layer2, body.layer3
        )
        sizes = (
            (256, 256, 512, 2),
            (512, 256, 512, 2),
            (512, 128, 256, 2),
            (256, 128, 256, 2),
            (256, 128, 256, 1),
        )
        self.rest = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 1), nn.ReLU(), nn.Conv2d(b, c, 3, stride, 1), nn.ReLU())
            for a, b, c, stride in sizes
        )
        self.boxes, self.kinds = nn.ModuleList(), nn.ModuleList()
        for channels, anchors in zip((256, 512, 512, 256, 256, 256), (4, 6, 6, 6, 4, 4), strict=True):
            self.boxes.append(nn.Conv2d(channels, anchors * 4, 3, 3, 1))
            self.kinds.append(nn.Conv2d(channels, anchors * 81, 3, 3, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        levels = [self.body(x)]
        for part in self.rest:
            levels.append(part(levels[-1]))
        return _detections(levels, self.boxes, self.kinds, 81)


class RetinaNet(nn.Module):
    """RetinaNet with ResNeXt-50 32x4d at 800 px and 264 classes, as in MLPerf (torchvision's parts)."""

    def __init__(self) -> None:
        super().__init__()
        body = torchvision.models.resnext50_32x4d(weights=None)
        self.stem = nn.Sequential(body.conv1, body.bn1, body.relu, body.maxpool, body.layer1)
        self.stages = nn.ModuleList((body.layer2, body.layer3, body.layer4))
        self.inner = nn.ModuleList(nn.Conv2d(size, 256, 1) for size in (512, 1024, 2048))
        self.outer = nn.ModuleList(nn.Conv2d(256, 256, 3, 1, 1) for _ in range(3))
        self.p6, self.p7 = nn.Conv2d(256, 256, 3, 2, 1), nn.Conv2d(256, 256, 3, 2, 1)

        def head(outputs: int) -> nn.Sequential:
            parts = [layer for _ in range(4) for layer in (nn.Conv2d(256, 256, 3, 1, 1), nn.ReLU())]
            return nn.Sequential(*parts, nn.Conv2d(256, outputs, 3, 1, 1))

        self.kind, self.box = head(9 * 264), head(9 * 4)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        features, x = [], self.stem(x)
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        tops = [self.inner[2](features[2])]
        for level in (1, 0):
            up = F.interpolate(tops[0], size=features[level].shape[2:])
            tops.insert(0, self.inner[level](features[level]) + up)
        levels = [layer(top) for layer, top in zip(self.outer, tops, strict=True)]
        levels.append(self.p6(levels[-1]))
        levels.append(self.p7(F.relu(levels[-1])))
        found = []
        for level in levels:
            scores = self.kind(level).permute(0, 2, 3, 1).flatten(1).sigmoid()
            best = min(1000, scores.shape[1])
            found += [self.box(level).flatten(1), scores.topk(best, 1).values]
        return tuple(found)


def _vision(name: str) -> Callable[[], nn.Module]:
    return lambda: torchvision.models.get_model(name, weights=None)


def _timm(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm
        from timm.layers import set_fused_attn

        set_fused_attn(False)
        return timm.create_model(name, pretrained=False)

    return build


# Network, side of the square input in pixels, how it is built.
NETWORKS: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    **{
        name: (224, _vision(name))
        for name in (
            *("resnet18", "resnet34", "resnet50", "mobilenet_v3_small", "mobilenet_v3_large"),
            *("squeezenet1_1", "densenet121", "vgg16"),
        )
    },
    "vit_tiny": (224, _timm("vit_tiny_patch16_224")),
    "efficientformer_l1": (224, _timm("efficientformer_l1")),
    "yolox_s": (640, lambda: YoloX(0.33, 0.5)),
    "yolox_m": (640, lambda: YoloX(0.67, 0.75)),
    "yolox_l": (640, lambda: YoloX(1.0, 1.0)),
    "yolo11n": (640, lambda: Yolo11(0.5, 0.25, 1024, False)),
    "yolo11s": (640, lambda: Yolo11(0.5, 0.5, 1024, False)),
    "yolo11m": (640, lambda: Yolo11(0.5, 1.0, 512, True)),
    "yolo11l": (640, lambda: Yolo11(1.0, 1.0, 512, True)),
    "yolo11x": (640, lambda: Yolo11(1.0, 1.5, 512, True)),
    "ssd_mobilenet_v1": (300, MobileNetSSD),
    "ssd_resnet34": (1200, ResNetSSD),
    "retinanet": (800, RetinaNet),
}


def export(name: str, folder: Path, batch: int = 1) -> Path:
    """Write a network as ONNX, unless it is there, and return the file."""
    path = folder / f"{name}{'' if batch == 1 else f'-b{batch}'}.onnx"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        size, build = NETWORKS[name]
        image = torch.zeros(batch, 3, size, size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(build().eval(), (image,), str(path), opset_version=17, dynamo=False)
    return path


if __name__ == "__main__":
    for network in NETWORKS:
        print(export(network, Path(sys.argv[1])))
