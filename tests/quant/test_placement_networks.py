"""Placement and all renderings on whole networks as torch exports them, weights random."""

import contextlib
import io
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torchvision import models as tv

from edgetune.quant import half
from edgetune.quant.graph import Graph
from edgetune.quant.placement import place
from edgetune.quant.plan import WEIGHTED, Plan, is_copy
from edgetune.quant.prepare import prepare
from edgetune.quant.trace import POINTWISE, joins_two


def conv(into: int, out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(into, out, 3, stride, 1), nn.BatchNorm2d(out), nn.ReLU())


class Pyramid(nn.Module):
    """A feature pyramid: lateral convolutions, additions over scales, every kind of enlarging."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 16, 2), conv(16, 32, 2), conv(32, 64, 2)
        self.la, self.lb, self.lc = (nn.Conv2d(width, 32, 1) for width in (16, 32, 64))
        self.near, self.smooth = nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=2, mode="bilinear")
        self.larger, self.last = nn.ConvTranspose2d(32, 16, 2, 2), nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(a)
        p = self.lb(b) + self.near(self.lc(self.c(b)))
        p = self.larger(self.la(a) + self.near(p)).relu()
        return self.smooth(self.last(self.smooth(p)))


class Encoder(nn.Module):
    """A transformer's layer with everything written out: LayerNorm before opset 17, GELU with tanh."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 64), nn.Linear(64, width)
        self.gain = nn.Parameter(torch.ones(width))

    def norm(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * self.gain

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.avg_pool2d(x, 8).flatten(2).transpose(1, 2)
        x = torch.cat([x] * 11, dim=-1)[..., :32]
        for _ in range(2):
            q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
            x = x + self.out((q @ k.transpose(1, 2) * 0.2).softmax(-1) @ v)
            h = self.up(self.norm(x))
            h = 0.5 * h * (1 + torch.tanh(0.797885 * (h + 0.044715 * h.pow(3))))
            x = x + self.down(h)
        return self.norm(x).mean(1)


@dataclass(frozen=True)
class Case:
    """A network, and what its plan must be.

    Attributes:
        weighted: how many operators with weights run in INT8.
        tensors: how many activations carry Q/DQ.
        floats: operators that stay float, but for copies.
        least_db: what INT8 keeps. Deep networks with random weights amplify every rounding.
    """

    make: Callable[[], nn.Module]
    weighted: int
    tensors: int
    floats: dict[str, int]
    least_db: float
    slow: bool = False


def convnext() -> nn.Module:
    block = tv.convnext.CNBlockConfig
    return tv.ConvNeXt([block(32, 64, 1), block(64, None, 1)], num_classes=20)


class First(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)["out"]


# Two heads, two layers: scaled on both sides, multiplied, and once more by the values.
ATTENTION = {"MatMul": 4, "Softmax": 2, "Mul": 4}
WRITTEN_OUT = {
    **{"ReduceMean": 11, "Sub": 5, "Pow": 5, "Add": 9, "Sqrt": 5, "Div": 5, "Mul": 7},
    **{"MatMul": 4, "Softmax": 2, "AveragePool": 1, "Concat": 1},
}
CASES = {
    "resnet18": Case(lambda: tv.resnet18(num_classes=20), 21, 22, {}, 15, True),
    "mobilenet_v2": Case(lambda: tv.mobilenet_v2(num_classes=20), 53, 54, {}, 0, True),
    "mobilenet_v3": Case(lambda: tv.mobilenet_v3_small(num_classes=20), 54, 73, {}, 15),
    "squeezenet": Case(lambda: tv.squeezenet1_1(num_classes=20), 26, 34, {"GlobalAveragePool": 1}, 20),
    "shufflenet_v2": Case(lambda: tv.shufflenet_v2_x0_5(num_classes=20), 57, 87, {}, 5, True),
    "densenet": Case(
        lambda: tv.DenseNet(16, (2, 2, 2, 2), 32, num_classes=20),
        21,
        25,
        {"Concat": 12, "BatchNormalization": 12, "Relu": 12},
        15,
    ),
    "convnext": Case(
        convnext, 9, 9, {"LayerNormalization": 5, "Mul": 2, "Add": 2, "GlobalAveragePool": 1}, 30
    ),
    "vit": Case(
        lambda: tv.VisionTransformer(64, 16, 2, 2, 32, 64, num_classes=20),
        10,
        10,
        {**ATTENTION, "LayerNormalization": 5, "Add": 5, "Concat": 1},
        20,
    ),
    "pyramid": Case(Pyramid, 8, 11, {"Resize": 1}, 30),
    "encoder": Case(Encoder, 8, 8, WRITTEN_OUT, 30),
    "efficientnet_b0": Case(lambda: tv.efficientnet_b0(num_classes=20), 82, 115, {}, 0, True),
    "regnet_y": Case(lambda: tv.regnet_y_400mf(num_classes=20), 86, 119, {}, 0, True),
    "mnasnet": Case(lambda: tv.mnasnet0_5(num_classes=20), 53, 54, {}, 0, True),
    "googlenet": Case(
        lambda: tv.googlenet(init_weights=False, aux_logits=False, num_classes=20), 58, 77, {}, 5, True
    ),
    "inception": Case(
        lambda: tv.inception_v3(init_weights=False, aux_logits=False, num_classes=20), 95, 118, {}, 0, True
    ),
    "swin": Case(
        lambda: tv.SwinTransformer([4, 4], 32, [2, 2], [2, 4], [4, 4], num_classes=20),
        19,
        28,
        {"LayerNormalization": 11, "MatMul": 8, "Mul": 4, "Softmax": 4, "Pad": 5, "Add": 14, "Concat": 5},
        30,
        True,
    ),
    "lraspp": Case(
        lambda: First(
            tv.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=20)
        ),
        66,
        84,
        {"Add": 1, "Resize": 1},
        5,
        True,
    ),
}
NETWORKS = [pytest.param(name, marks=pytest.mark.slow if case.slow else ()) for name, case in CASES.items()]


def settled(net: nn.Module, size: int) -> nn.Module:
    """Give a random network what training would: fitting BatchNorm statistics, no weights left at zero."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1)
        net.train()(torch.randn(4, 3, size, size))
    return net.eval()


@pytest.fixture(scope="module")
def exported() -> Callable[[str], onnx.ModelProto]:
    made: dict[str, onnx.ModelProto] = {}

    def export(name: str) -> onnx.ModelProto:
        if name not in made:
            torch.manual_seed(0)
            size = 96 if name == "inception" else 64
            net = settled(CASES[name].make(), size)
            file = io.BytesIO()
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                torch.onnx.export(net, (torch.randn(1, 3, size, size),), file, dynamo=False, opset_version=17)
            made[name] = onnx.load_model_from_string(file.getvalue())
        return made[name]

    return export


def floats(graph: Graph, plan: Plan) -> dict[str, int]:
    nodes = {node.name: node for node in graph.nodes}
    return dict(
        Counter(
            layer.op
            for layer in plan.layers
            if layer.precision == "FP32" and not is_copy(graph, nodes[layer.name])
        )
    )


def broken_rules(graph: Graph, plan: Plan) -> list[str]:
    """What a plan does against the rules that hold in every network."""
    found = []
    int8 = {layer.name for layer in plan.layers if layer.precision == "INT8"}
    for node in graph.nodes:
        quantized = [name for name in node.input if node.name in plan.reads.get(name, ())]
        if node.name in plan.weighted and node.input[0] not in quantized:
            found.append(f"{node.name}: its input is not quantized")
        if node.op_type in POINTWISE and not joins_two(graph, node) and quantized:
            found.append(f"{node.name}: Q/DQ before an activation")
        if node.op_type == "Add" and node.name in int8 and joins_two(graph, node) and not quantized:
            found.append(f"{node.name}: no side of it is quantized")
        if node.op_type == "Concat" and quantized:
            groups = {plan.groups[name] for name in [*quantized, node.output[0]] if name in plan.groups}
            if len(groups) > 1 or len(quantized) < len(node.input):
                found.append(f"{node.name}: scales differ")
        if is_copy(graph, node):
            groups = {plan.groups[name] for name in [node.input[0], node.output[0]] if name in plan.groups}
            if len(groups) > 1:
                found.append(f"{node.name}: another scale behind it")
    return found


def sqnr_db(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(np.square(a).mean() / (np.square(a - b).mean() + 1e-30)))


@pytest.mark.parametrize("name", NETWORKS)
def test_plans(exported: Any, name: str) -> None:
    case = CASES[name]
    graph = prepare(exported(name))
    plan = place(graph)
    assert broken_rules(graph, plan) == []
    assert (len(plan.weighted), len(plan.reads), floats(graph, plan)) == (
        case.weighted,
        case.tensors,
        case.floats,
    )
    assert all(layer.why for layer in plan.layers if layer.precision == "FP32")


@pytest.mark.parametrize("name", ["vit", "encoder"])
def test_residual_streams_and_attention_stay_float_and_say_why(exported: Any, name: str) -> None:
    graph = prepare(exported(name))
    layers = {layer.name: layer for layer in place(graph).layers}
    adds = [node for node in graph.nodes if node.op_type == "Add" and joins_two(graph, node)]
    assert len(adds) == 4
    assert {layers[node.name].why for node in adds} == {
        "the residual stream of a transformer, whose outliers INT8 cannot hold"
    }
    products = [node for node in graph.nodes if node.op_type == "MatMul" and len(graph.variables(node)) == 2]
    assert len(products) == 4
    assert {layers[node.name].why for node in products} == {"both of its inputs are computed"}


def test_weights_of_matrix_products_are_per_channel(exported: Any, kit: SimpleNamespace) -> None:
    model = exported("vit")
    graph = prepare(model)
    made = kit.write(graph, "weak", kit.feeds(model))
    sizes = {
        name: graph.constants[name].shape
        for node in graph.nodes
        if node.op_type in WEIGHTED and (name := node.input[1]) in graph.constants
    }
    scales = {item.name: list(item.dims) for item in made.graph.initializer}
    gemms = [name for name, shape in sizes.items() if len(shape) == 2]
    assert len(gemms) == 9
    assert all(len(scales[f"{name}/scale"]) == 1 and scales[f"{name}/scale"][0] > 1 for name in gemms)


@pytest.mark.parametrize("how", ["weak", "strong", "cpu"])
@pytest.mark.parametrize("name", NETWORKS)
def test_renderings(exported: Any, kit: SimpleNamespace, name: str, how: str) -> None:
    model = exported(name)
    feed = kit.feeds(model)
    made = kit.write(prepare(model, 19 if how == "strong" else 13), how, feed)
    onnx.checker.check_model(made, full_check=True)
    (a,), (b,) = (kit.run(m, feed) for m in (model, made))
    assert sqnr_db(a, b) > CASES[name].least_db


@pytest.mark.parametrize("name", NETWORKS)
def test_fp16_baselines(exported: Any, kit: SimpleNamespace, name: str) -> None:
    model = exported(name)
    made = half.render(prepare(model))
    onnx.checker.check_model(made, full_check=True)
    (a,), (b,) = (kit.run(m, kit.feeds(model)) for m in (model, made))
    assert sqnr_db(a, b) > 20
