"""Export: a true file of the opset asked for, equal to torch, equal to itself, or a clear refusal."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgetune.artifact import Artifact
from edgetune.data.folders import Dataset, scan
from edgetune.data.images import normalise
from edgetune.engines.onnxruntime import Session
from edgetune.errors import ConfigError, StageError
from edgetune.models import MODELS, build_model, preprocess_for
from edgetune.profile import Runtime
from edgetune.recipe import DataSection, ExportSection, ModelSection
from edgetune.stages.export import _simplify, export
from edgetune.training.checkpoint import save_network

CLASSES = ("blue", "green", "red")
OPSET_17 = Runtime(opset=17, ir=8, rendering="cpu")
STRONG = Runtime(opset=19, ir=9, rendering="strong")
NEWEST = Runtime(opset=23, ir=11, rendering="strong")
TIMM = ("timm:resnet10t", "timm:mobilenetv3_small_050", "timm:efficientnet_lite0", "timm:ghostnet_100")
QUICK = (
    "mobilenet_v2_035_cifar10",
    "mobilenet_v3_small",
    "squeezenet1_1",
    "shufflenet_v2_x1_0",
    "timm:ghostnet_100",
)
SLOW = [name for name in (*MODELS, *TIMM) if name not in QUICK]


@pytest.fixture
def data(class_folders: Path) -> Dataset:
    return scan(DataSection(path=str(class_folders)), class_folders)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Artifact]:
    """Return a function that makes a checkpoint of a row or of an own module."""

    def checkpoint(
        name: str, net: nn.Module | None = None, channels: int = 3, adapter: str = "sum"
    ) -> Artifact:
        known = "resnet18" if net is not None else name
        size_px = 224 if name.startswith("vgg") else 32 if net is not None or "cifar" in name else 64
        preprocess = preprocess_for(known, channels, size_px)
        made = net or build_model(name, len(CLASSES), channels, "none", adapter, size_px)
        disturb(made)
        folder = tmp_path / "checkpoint"
        folder.mkdir(exist_ok=True)
        save_network(made, folder / "model.safetensors")
        section = ModelSection.model_validate({"name": name, "adapter": adapter, "size_px": size_px})
        details = {"model": section.model_dump(), "channels": channels, "classes": len(CLASSES)}
        return Artifact(kind="checkpoint", classes=CLASSES, preprocess=preprocess, details=details).write(
            folder
        )

    return checkpoint


def disturb(net: nn.Module) -> None:
    """Give BatchNorm statistics of its own, or folding it would be an identity."""
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)


def onto(folder: Path) -> Path:
    folder.mkdir()
    return folder


def batch_norm_after_convolution(model: onnx.ModelProto) -> list[str]:
    producers = {name: node.op_type for node in model.graph.node for name in node.output}
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "BatchNormalization" and producers.get(node.input[0]) == "Conv"
    ]


def check_row(
    name: str, channels: int, adapter: str, make: Callable[..., Artifact], data: Dataset, into: Path
) -> None:
    made = export(
        make(name, channels=channels, adapter=adapter), ExportSection(), OPSET_17, data, into=onto(into)
    )
    model = onnx.load(made.file("model.onnx"))
    assert {entry.version for entry in model.opset_import} == {17}
    assert not batch_norm_after_convolution(model)
    operators = {node.op_type for node in model.graph.node}
    assert operators.isdisjoint({"Identity", "Constant", "Shape", "Gather", "Dropout"})
    assert made.details["parity"]["difference_over_std"] < 1e-4
    assert made.details["parity"]["agreement"] == 1.0


@pytest.mark.parametrize("name", QUICK)
def test_quick_rows(name: str, make: Callable[..., Artifact], data: Dataset, tmp_path: Path) -> None:
    check_row(name, 3, "sum", make, data, tmp_path / "onnx")


@pytest.mark.parametrize("adapter", ["sum", "conv"])
def test_adapters(adapter: str, make: Callable[..., Artifact], data: Dataset, tmp_path: Path) -> None:
    check_row("mobilenet_v2_035_cifar10", 1, adapter, make, data, tmp_path / "onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_every_other_row(name: str, make: Callable[..., Artifact], data: Dataset, tmp_path: Path) -> None:
    check_row(name, 3, "sum", make, data, tmp_path / "onnx")


@pytest.mark.parametrize("runtime", [OPSET_17, STRONG, NEWEST], ids=lambda r: str(r.opset))
def test_opset_and_ir_are_the_runtimes(
    runtime: Runtime, make: Callable[..., Artifact], data: Dataset, tmp_path: Path
) -> None:
    made = export(
        make("mobilenet_v2_035_cifar10"), ExportSection(), runtime, data, into=onto(tmp_path / "onnx")
    )
    model = onnx.load(made.file("model.onnx"))
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", runtime.opset)]
    assert model.ir_version == runtime.ir
    assert (made.details["opset"], made.details["ir"]) == (runtime.opset, runtime.ir)


@pytest.mark.parametrize("runtime", [OPSET_17, STRONG, NEWEST], ids=lambda r: str(r.opset))
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dynamic", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_normalisation_is_baked_in(
    runtime: Runtime,
    channels: int,
    dynamic: bool,
    make: Callable[..., Artifact],
    data: Dataset,
    tmp_path: Path,
) -> None:
    checkpoint = make("mobilenet_v2_035_cifar10", channels=channels)
    settings = {
        "float": ExportSection(dynamic=dynamic),
        "raw": ExportSection(input="uint8_nhwc", dynamic=dynamic),
    }
    made = {
        name: export(checkpoint, setting, runtime, data, into=onto(tmp_path / name))
        for name, setting in settings.items()
    }
    raw, plain = made["raw"], made["float"]
    batch = "N" if dynamic else 1
    assert [spec.model_dump() for spec in raw.inputs] == [
        {"name": "input", "dtype": "uint8", "shape": (batch, 32, 32, channels)}
    ]
    assert raw.outputs == plain.outputs
    assert (raw.preprocess, raw.details["input"]) == (checkpoint.preprocess, "uint8_nhwc")
    assert raw.details["parity"] == plain.details["parity"]
    model = onnx.load(raw.file("model.onnx"))
    assert [entry.version for entry in model.opset_import] == [runtime.opset]
    assert model.ir_version == runtime.ir
    # TensorRT takes uint8 at the input alone, and casts it there.
    readers = [node for node in model.graph.node if "input" in node.input]
    assert [node.op_type for node in readers] == ["Cast"]
    assert checkpoint.preprocess
    pixels = np.random.default_rng(0).integers(0, 256, (4, channels, 32, 32), dtype=np.uint8)
    files = {name: Session(one.file("model.onnx"), threads=1, exact=True) for name, one in made.items()}
    right = files["float"].run(normalise(pixels, checkpoint.preprocess))[0]
    found = files["raw"].run(np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)))[0]
    np.testing.assert_array_equal(found, right)


def test_the_file_describes_itself(make: Callable[..., Artifact], data: Dataset, tmp_path: Path) -> None:
    checkpoint = make("mobilenet_v2_035_cifar10")
    made = export(checkpoint, ExportSection(), OPSET_17, data, into=onto(tmp_path / "onnx"))
    model = onnx.load(made.file("model.onnx"))
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(properties["classes"]) == list(CLASSES)
    assert json.loads(properties["preprocess"]) == checkpoint.preprocess.model_dump(mode="json")
    assert properties["checkpoint"] == checkpoint.digest == made.parents["checkpoint"]
    assert properties["edgetune"]
    assert [(spec.name, spec.shape) for spec in (*made.inputs, *made.outputs)] == [
        ("input", (1, 3, 32, 32)),
        ("logits", (1, 3)),
    ]
    assert sorted(made.files) == ["model.onnx"]


def test_two_exports_are_equal_to_the_byte_and_name_no_path(
    make: Callable[..., Artifact], data: Dataset, tmp_path: Path
) -> None:
    checkpoint = make("mobilenet_v2_035_cifar10")
    files = [
        export(checkpoint, ExportSection(), OPSET_17, data, into=onto(tmp_path / name))
        .file("model.onnx")
        .read_bytes()
        for name in ("first", "second")
    ]
    assert files[0] == files[1]
    for part in (str(Path(torch.__file__).parent), str(tmp_path), ".py"):
        assert part.encode() not in files[0]


def test_a_dynamic_batch_takes_any(make: Callable[..., Artifact], data: Dataset, tmp_path: Path) -> None:
    made = export(
        make("shufflenet_v2_x1_0"), ExportSection(dynamic=True), OPSET_17, data, into=onto(tmp_path / "onnx")
    )
    assert made.inputs[0].shape == ("N", 3, 64, 64)
    assert made.outputs[0].shape == ("N", 3)
    batch = np.random.default_rng(0).standard_normal((3, 3, 64, 64)).astype(np.float32)
    session = Session(made.file("model.onnx"))
    single = np.concatenate([session.run(batch[i : i + 1])[0] for i in range(3)])
    assert np.allclose(session.run(batch)[0], single, atol=1e-4)


def test_a_static_batch_of_several(make: Callable[..., Artifact], data: Dataset, tmp_path: Path) -> None:
    made = export(
        make("mobilenet_v2_035_cifar10"), ExportSection(batch=4), OPSET_17, data, into=onto(tmp_path / "onnx")
    )
    assert made.inputs[0].shape == (4, 3, 32, 32)
    assert made.details["parity"]["images"] == len(data.splits["test"]) > 4


@pytest.mark.parametrize(
    ("opset", "runtime", "message"),
    [
        (18, OPSET_17, "export.opset: 18 is above 17, the profile's"),
        (12, OPSET_17, "export.opset: 12 is below 13"),
        (17, NEWEST, "export.opset: 17 is below 19, which a strongly typed engine needs"),
    ],
)
def test_an_opset_that_does_not_go_is_refused(
    opset: int, runtime: Runtime, message: str, make: Callable[..., Artifact], data: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        export(make("squeezenet1_1"), ExportSection(opset=opset), runtime, data, into=tmp_path)


def test_a_lower_opset_than_the_profiles_is_granted(
    make: Callable[..., Artifact], data: Dataset, tmp_path: Path
) -> None:
    made = export(
        make("squeezenet1_1"), ExportSection(opset=13), OPSET_17, data, into=onto(tmp_path / "onnx")
    )
    assert made.details["opset"] == 13


class Own(nn.Module):
    """A user's network with something strange in the middle."""

    def __init__(self, middle: Callable[[torch.Tensor], torch.Tensor], classes: int = 3) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8, affine=False)
        self.middle = middle
        self.last = nn.Linear(8, classes)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.last(self.middle(self.norm(self.first(batch))).mean((2, 3)))


def test_an_own_module(make: Callable[..., Artifact], data: Dataset, tmp_path: Path) -> None:
    net = Own(torch.relu)
    made = export(
        make("custom", net), ExportSection(), OPSET_17, data, into=onto(tmp_path / "onnx"), module=net
    )
    assert not batch_norm_after_convolution(onnx.load(made.file("model.onnx")))
    assert made.details["parity"]["difference_over_std"] < 1e-4


def test_an_operator_that_onnx_lacks_is_named_and_nothing_is_printed(
    make: Callable[..., Artifact], data: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    net = Own(torch.special.i0)
    with pytest.raises(StageError, match="'aten::i0' to ONNX opset version 17"):
        export(make("custom", net), ExportSection(), OPSET_17, data, into=onto(tmp_path / "onnx"), module=net)
    pooled = Own(nn.AdaptiveAvgPool2d(7))
    with pytest.raises(StageError, match="adaptive_avg_pool2d"):
        export(make("custom", pooled), ExportSection(), OPSET_17, data, into=tmp_path / "onnx", module=pooled)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
    assert list((tmp_path / "onnx").iterdir()) == []


STRANGE = {
    "branches on values": lambda x: (
        x if float(x.abs().max()) > 1e3 else torch.relu(x) + (0.0 if x.sum() == 0 else x)
    ),
    "is random": lambda x: x + 50 * (torch.rand_like(x) - 0.5),
}


@pytest.mark.parametrize("what", STRANGE)
def test_a_file_that_computes_something_else_is_refused(
    what: str, make: Callable[..., Artifact], data: Dataset, tmp_path: Path
) -> None:
    net = Own(STRANGE[what])
    net.first.weight.data *= 1 if what == "is random" else 1e5
    with pytest.raises(StageError, match=r"does not compute what torch computes.*limit 0\.1\)"):
        export(make("custom", net), ExportSection(), OPSET_17, data, into=onto(tmp_path / "onnx"), module=net)


def test_a_small_difference_is_left_to_the_gate(
    make: Callable[..., Artifact], data: Dataset, tmp_path: Path
) -> None:
    net = Own(lambda x: x + 0.5 * torch.rand_like(x))
    made = export(
        make("custom", net), ExportSection(), OPSET_17, data, into=onto(tmp_path / "onnx"), module=net
    )
    assert 1e-3 < made.details["parity"]["difference_over_std"] < 0.1


def test_what_subgraphs_read_and_what_is_random_survives() -> None:
    def value(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)

    def branch(name: str) -> onnx.GraphProto:
        nodes = [
            helper.make_node("Add", ["copied", "stored"], [f"{name}_sum"]),
            helper.make_node("Add", [f"{name}_sum", "folded"], [name]),
        ]
        return helper.make_graph(nodes, name, [], [value(name)])

    def constant(name: str, content: float | bool) -> onnx.TensorProto:
        return numpy_helper.from_array(np.array(content, np.float32 if name != "flag" else bool), name)

    nodes = [
        helper.make_node("Identity", ["x"], ["copied"]),
        helper.make_node("Neg", ["two"], ["folded"]),
        helper.make_node("If", ["flag"], ["chosen"], then_branch=branch("a"), else_branch=branch("b")),
        helper.make_node("RandomNormal", [], ["noise"], shape=[1]),
        helper.make_node("Add", ["chosen", "noise"], ["y"]),
    ]
    constants = [constant("two", 2.0), constant("stored", 5.0), constant("flag", True)]
    shape = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph(nodes, "net", [shape], [value("y")], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    _simplify(model)
    assert [node.op_type for node in model.graph.node] == ["Identity", "If", "RandomNormal", "Add"]
    assert {item.name for item in model.graph.initializer} == {"stored", "flag", "folded"}
    (y,) = Session(model.SerializeToString(), threads=1).run(np.array([1], np.float32))
    assert abs(float(y[0]) - (1 + 5 - 2)) < 6  # five deviations of the noise, and more


def test_logits_that_are_not_finite_are_refused(
    make: Callable[..., Artifact], data: Dataset, tmp_path: Path
) -> None:
    net = Own(lambda x: x / 0)
    with pytest.raises(StageError, match="not finite"):
        export(make("custom", net), ExportSection(), OPSET_17, data, into=onto(tmp_path / "onnx"), module=net)


def test_a_network_with_another_number_of_outputs_is_refused(
    make: Callable[..., Artifact], data: Dataset, tmp_path: Path
) -> None:
    net = Own(torch.relu, classes=4)
    with pytest.raises(StageError, match=r"where logits \[1, 3\] was expected"):
        export(make("custom", net), ExportSection(), OPSET_17, data, into=onto(tmp_path / "onnx"), module=net)
