"""The contract of every row: head, stem, groups and figures are those of the network it builds."""

import pytest
import torch
from torch import nn

from edgetune.errors import ConfigError
from edgetune.models import (
    MODELS,
    build_model,
    describe_model,
    head_of,
    list_models,
    model_row,
    operations,
    preprocess_for,
)
from edgetune.models.build import skeleton

TIMM = [
    "timm:resnet10t",
    "timm:mobilenetv3_small_050",
    "timm:efficientnet_lite0",
    "timm:ghostnet_100",
    "timm:repvgg_a0",
]
ALL = [*MODELS, *TIMM]
SMALL = [name for name in ALL if not name.startswith("vgg")]


def covering(net: nn.Module, name: str) -> dict[str, list[int]]:
    """Which parts (groups, then the head) each parameter belongs to."""
    row = model_row(name)
    parts = [*row.groups, (row.head,)]
    return {
        parameter: [
            i for i, part in enumerate(parts) if any(f"{parameter}.".startswith(f"{p}.") for p in part)
        ]
        for parameter, _ in net.named_parameters()
    }


@pytest.mark.parametrize("name", ALL)
def test_every_parameter_is_in_one_part_and_depth_grows(name: str) -> None:
    covered = covering(skeleton(model_row(name)), name)
    assert len(covered) > 20
    assert all(len(parts) == 1 for parts in covered.values()), covered
    order = [parts[0] for parts in covered.values()]
    assert order == sorted(order)
    assert set(order) == set(range(len(model_row(name).groups) + 1))


@pytest.mark.parametrize("adapter", ["sum", "conv"])
@pytest.mark.parametrize("name", SMALL)
def test_an_adapter_keeps_every_parameter_in_one_part(name: str, adapter: str) -> None:
    net = build_model(name, 4, channels=1, weights="none", adapter=adapter)
    covered = covering(net, name)
    assert all(len(parts) == 1 for parts in covered.values()), covered
    assert sum(parts == [0] for parts in covered.values()) > 1
    assert net.eval()(torch.zeros(1, 1, 64, 64)).shape == (1, 4)


@pytest.mark.parametrize(
    "name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in ALL if name not in SMALL)]
)
def test_logits_are_the_head_of_its_input(name: str) -> None:
    net = build_model(name, 7, weights="none").eval()
    seen = []
    head_of(net, name).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    size_px = 64 if name in SMALL else 224
    with torch.inference_mode():
        logits = net(torch.randn(2, 3, size_px, size_px, generator=torch.Generator().manual_seed(0)))
        again = head_of(net, name)(seen[0]).flatten(1)
    assert logits.shape == (2, 7)
    assert torch.equal(logits, again)


@pytest.mark.parametrize("name", [name for name in MODELS if MODELS[name].operations])
def test_counted_operations_and_parameters_are_the_published_ones(name: str) -> None:
    net = skeleton(MODELS[name])
    assert sum(p.numel() for p in net.parameters()) == MODELS[name].parameters
    assert operations(net, MODELS[name].preprocess) == pytest.approx(MODELS[name].operations, rel=0.01)


@pytest.mark.parametrize(("name", "giga"), [("mobilenet_v2", 0.30), ("resnet50", 4.1), ("resnet18", 1.8)])
def test_operations_are_those_of_the_papers(name: str, giga: float) -> None:
    assert operations(skeleton(MODELS[name]), MODELS[name].preprocess) / 1e9 == pytest.approx(giga, rel=0.02)


def test_counting_operations_leaves_the_network_as_it_was() -> None:
    net = build_model("squeezenet1_1", 3, weights="none")
    net.features.eval()
    operations(net, preprocess_for("squeezenet1_1", 3, 64))
    assert net.training
    assert not net.features[0].training
    assert not any(module._forward_hooks for module in net.modules())


def test_descriptions_are_whole() -> None:
    found = list_models()
    assert [model["name"] for model in found] == list(MODELS)
    for model in found:
        assert all(model.values()), model
        assert model["parameters"] > 1e5


def test_the_shipped_network_is_small() -> None:
    shown = describe_model("mobilenet_v2_035_cifar10")
    assert shown["size_px"] == 32
    assert shown["parameters"] < 0.5e6


def test_a_timm_network_is_described_without_weights() -> None:
    shown = describe_model("timm:resnet10t")
    assert shown["size_px"] == 176
    assert shown["parameters"] == pytest.approx(5.4e6, rel=0.01)
    assert shown["groups"] == ["conv1 + bn1", "layer1", "layer2", "layer3", "layer4"]


def test_timm_preprocess_is_that_of_its_weights() -> None:
    own = model_row("timm:mobilenetv3_small_050").preprocess
    assert (own.resize_px, own.size_px, own.interpolation) == (256, 224, "bicubic")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("mobilnet_v2", "mobilenet_v2"),
        ("timm:resnet10tt", "timm:resnet10t"),
        ("timm:resnet18.nosuch_tag", ""),
    ],
)
def test_an_unknown_network_names_its_neighbours(name: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        model_row(name)
    assert name.removeprefix("timm:").split(".")[0] in caught.value.message
    assert hint in caught.value.hint


def test_a_timm_network_with_two_heads_is_refused() -> None:
    with pytest.raises(ConfigError, match="no single linear head"):
        model_row("timm:deit_tiny_distilled_patch16_224")


def test_a_timm_network_of_fixed_size_takes_no_other() -> None:
    with pytest.raises(ConfigError, match="takes 224 px only"):
        preprocess_for("timm:vit_tiny_patch16_224", 3, 64)
