"""One row per network: how to build it, where its head and stem are, how its layers group, what it expects.

Adding a network is adding a row. It knows no data and no recipe. It may import errors and artifact.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torchvision
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import MobileNetV2

from edgetune.artifact import How, Preprocess
from edgetune.errors import ConfigError, nearest
from edgetune.learning import HF
from edgetune.models.weights import fetch_torchvision, read_state

Groups = tuple[tuple[str, ...], ...]

TIMM = "timm:"
CIFAR10 = Path(__file__).parent.parent / "weights" / "mobilenet_v2_035_cifar10.safetensors"


@dataclass(frozen=True)
class ModelRow:
    """A network to start from.

    Attributes:
        build: makes it with random weights, three input channels and the given number of classes.
        head: dotted name of the last module: `logits = head(features).flatten(1)`.
        stems: dotted names of the convolutions that see the input.
        groups: dotted names of modules, shallow to deep; with the head they hold every parameter.
        preprocess: what the pretrained weights expect, of images or of texts.
        weights: name of the pretrained weights.
        fetch: gets them as a state dict: from the package, a cache or the network.
        source: what the weights were trained on, by whom, under which licence.
        int8: how well it takes INT8, with the source of the figures.
        classes: of the head that the pretrained weights have.
        parameters: with that head; 0: count them.
        operations: multiply-accumulates at its own input size; 0: count them.
        least_px: smallest input it makes sense of.
        step_px: the input's side must be a multiple of it; 0: only its own size will do.
        rate: share of the usual learning rates where its pretrained layers learn.
        most: of texts, tokens of the longest input that it takes.
    """

    build: Callable[[int], nn.Module]
    head: str
    stems: tuple[str, ...]
    groups: Groups
    preprocess: How
    weights: str
    fetch: Callable[[], dict[str, Tensor]]
    source: str
    int8: str
    classes: int = 1000
    parameters: int = 0
    operations: int = 0
    least_px: int = 32
    step_px: int = 1
    rate: float = 1.0
    most: int = 0


def build_cifar10(classes: int) -> nn.Module:
    """Build MobileNetV2 (arXiv:1801.04381) at width 0.35 for 32 px.

    Two of its five strides are 1, so that 4x4 positions are left at the end instead of one.
    """
    net: nn.Module = MobileNetV2(num_classes=classes, width_mult=0.35, dropout=0.0)
    for name in ("features.0.0", "features.7.conv.1.0"):
        net.get_submodule(name).stride = (1, 1)  # type: ignore[assignment]
    return net


def _parts(prefix: str, *starts: int) -> Groups:
    """Cut the numbered children of a module before each start; the last start is their end."""
    return tuple(tuple(f"{prefix}.{index}" for index in range(low, high)) for low, high in pairwise(starts))


def _torchvision(
    name: str, head: str, stem: str, groups: Groups, int8: str, version: str = "V1", step_px: int = 1
) -> ModelRow:
    """Complete a row with what torchvision knows of its weights.

    V1 everywhere: the recipes of V2 (label smoothing, mixing, averaging) gain ImageNet accuracy and lose
    as fixed features for other tasks, which is the default here (Kornblith et al. 2021, arXiv:2010.16402).
    """
    entry = torchvision.models.get_model_weights(name)[f"IMAGENET1K_{version}"]
    seen = entry.transforms()
    return ModelRow(
        build=lambda classes: torchvision.models.get_model(name, weights=None, num_classes=classes),
        head=head,
        stems=(stem,),
        groups=groups,
        preprocess=Preprocess(
            resize_px=seen.resize_size[0],
            size_px=seen.crop_size[0],
            channels=3,
            mean=tuple(seen.mean),
            std=tuple(seen.std),
            interpolation=seen.interpolation.value,
        ),
        weights=str(entry),
        fetch=lambda: fetch_torchvision(entry),
        source=f"ImageNet-1K, top-1 {entry.meta['_metrics']['ImageNet-1K']['acc@1']}% (torchvision, "
        f"code under BSD-3-Clause; recipe: {entry.meta['recipe']})",
        int8=int8,
        parameters=entry.meta["num_params"],
        operations=round(entry.meta["_ops"] * 1e9),
        step_px=step_px,
    )


_RESNET: Groups = (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))
_MOBILENET_V2 = _parts("features", 0, 2, 4, 7, 14, 18, 19)
_SHUFFLENET: Groups = (("conv1",), ("stage2",), ("stage3",), ("stage4",), ("conv5",))
_REGNET: Groups = (("stem",), *((f"trunk_output.block{n}",) for n in range(1, 5)))
_SQUEEZENET_1_0 = (("features.0",), *_parts("features", 3, 6), *_parts("features", 7, 11), ("features.12",))
_SQUEEZENET_1_1 = (
    ("features.0",),
    *(g for a, b in ((3, 5), (6, 8), (9, 13)) for g in _parts("features", a, b)),
)
_VGG_HIDDEN: Groups = (("classifier.0", "classifier.3"),)


def _mobilenet_v3(*starts: int) -> Groups:
    *most, last = _parts("features", *starts)
    return (*most, (*last, "classifier.0"))


MODELS: dict[str, ModelRow] = {
    "resnet18": _torchvision(
        "resnet18", "fc", "conv1", _RESNET,
        "well: 69.76 to 69.61 (Intel Neural Compressor, validated models) or 69.49 (torchvision, quantized "
        "models)",
    ),
    "resnet34": _torchvision(
        "resnet34", "fc", "conv1", _RESNET,
        "well, as its relatives do: resnet18 loses 0.3 points, resnet50 0.2 (torchvision, quantized models)",
    ),
    "resnet50": _torchvision(
        "resnet50", "fc", "conv1", _RESNET,
        "well: 76.13 to 75.92 (torchvision, quantized models; Intel Neural Compressor, validated models)",
    ),
    "vgg11_bn": _torchvision(
        "vgg11_bn", "classifier.6", "features.0", (*_parts("features", 0, 4, 8, 15, 22, 29), *_VGG_HIDDEN),
        "well by its kind (plain convolutions with ReLU); no figure published for these weights",
        step_px=224,
    ),
    "vgg16_bn": _torchvision(
        "vgg16_bn", "classifier.6", "features.0", (*_parts("features", 0, 7, 14, 24, 34, 44), *_VGG_HIDDEN),
        "well by its kind (plain convolutions with ReLU); no figure published for these weights",
        step_px=224,
    ),
    "mobilenet_v2": _torchvision(
        "mobilenet_v2", "classifier", "features.0.0", _MOBILENET_V2,
        "with care: about 0.9 points in TensorRT's scheme, 71.77 to 70.87 (NVIDIA, TensorFlow quantization "
        "toolkit, model zoo); 0.2 after quantization-aware training (torchvision, quantized models)",
    ),
    "mobilenet_v3_small": _torchvision(
        "mobilenet_v3_small", "classifier.3", "features.0.0", _mobilenet_v3(0, 1, 2, 4, 9, 12, 13),
        "badly without corrections: 67.66 to 66.79 with asymmetric activations and bias correction (NNCF, "
        "post-training reference figures), many points without; look at mobilenet_v2 first",
    ),
    "mobilenet_v3_large": _torchvision(
        "mobilenet_v3_large", "classifier.3", "features.0.0", _mobilenet_v3(0, 2, 4, 7, 13, 16, 17),
        "badly without corrections: about 74 to 69 or less (ONNX Runtime, issue 11415); 74.04 to 73.00 after "
        "quantization-aware training (torchvision, quantized models); look at mobilenet_v2 first",
    ),
    "efficientnet_b0": _torchvision(
        "efficientnet_b0", "classifier", "features.0.0", _parts("features", 0, 2, 3, 4, 6, 8, 9),
        "badly in TensorRT's symmetric scheme: 76.97 to 71.71, 75.82 after quantization-aware training "
        "(NVIDIA, TensorFlow quantization toolkit, model zoo); 77.70 to 77.19 with asymmetric activations "
        "(NNCF, post-training reference figures)",
    ),
    "squeezenet1_0": _torchvision(
        "squeezenet1_0", "classifier", "features.0", _SQUEEZENET_1_0,
        "well: 56.87 to 56.54 for the ONNX model zoo's (Intel Neural Compressor, validated models)",
    ),
    "squeezenet1_1": _torchvision(
        "squeezenet1_1", "classifier", "features.0", _SQUEEZENET_1_1,
        "well: 56.87 to 56.54 for the ONNX model zoo's (Intel Neural Compressor, validated models)",
    ),
    "shufflenet_v2_x1_0": _torchvision(
        "shufflenet_v2_x1_0", "fc", "conv1.0", _SHUFFLENET,
        "with care: 69.36 to 68.36 (torchvision, quantized models)",
    ),
    "regnet_y_400mf": _torchvision(
        "regnet_y_400mf", "fc", "stem.0", _REGNET,
        "well by its kind: its relative without squeeze-and-excitation, regnetx_002, goes from 68.76 to "
        "68.66 (NNCF, post-training reference figures)",
    ),
    "mobilenet_v2_035_cifar10": ModelRow(
        build=build_cifar10,
        head="classifier",
        stems=("features.0.0",),
        groups=_MOBILENET_V2,
        preprocess=Preprocess(
            resize_px=32, size_px=32, channels=3,
            mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616),
        ),
        weights="shipped with edgetune",
        fetch=lambda: read_state(CIFAR10),
        source="CIFAR-10, trained from scratch by benchmarks/pretrain_cifar10.py (Apache-2.0)",
        int8="with care, as mobilenet_v2, whose thin sister it is; edgetune quickstart measures it",
        classes=10,
        least_px=16,
    ),
}  # fmt: skip


def model_row(name: str) -> ModelRow:
    """Return the row of a network; `timm:NAME` and `hf:NAME` build one on the spot.

    Raises:
        ConfigError: no such network; the hint names the nearest ones.
        MissingTool: a network of timm or transformers, and that is not installed.
    """
    if name in MODELS:
        return MODELS[name]
    if name.startswith(TIMM):
        from edgetune.models.timm_row import timm_row

        return timm_row(name.removeprefix(TIMM))
    if name.startswith(HF):
        from edgetune.models.text import text_row

        return text_row(name.removeprefix(HF))
    raise ConfigError(
        f"unknown network {name!r}",
        hint=f"{nearest(name, MODELS)} (edgetune models list; timm:NAME; for texts hf:NAME)",
    )
