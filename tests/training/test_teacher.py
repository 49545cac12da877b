"""A teacher answers in the order of the data's classes, or is refused with the reason."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgetune.artifact import Artifact, Preprocess
from edgetune.data.folders import Dataset
from edgetune.engines.onnxruntime import Session
from edgetune.errors import ArtifactError, ConfigError
from edgetune.progress import Silent
from edgetune.training.accelerator import choose_accelerator
from edgetune.training.checkpoint import save_network
from edgetune.training.distil import LOGITS
from edgetune.training.teacher import Teacher, in_order, load_teacher

CPU = choose_accelerator("cpu")
PREPROCESS = Preprocess(resize_px=16, size_px=16, channels=3, mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.3))


class Colours(nn.Module):
    """Answers with the mean of each channel, in an order of its own: the data's classes are colours."""

    def __init__(
        self, order: tuple[int, ...] = (2, 1, 0), shape: tuple[int, ...] = (), soft: bool = False
    ) -> None:
        super().__init__()
        self.body = nn.Identity()
        self.scale = nn.Parameter(torch.ones(1))
        self.order, self.shape, self.soft = list(order), shape, soft

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = 5 * self.scale * self.body(images).mean((2, 3))[:, self.order]
        found = found.softmax(1) if self.soft else found
        return found.reshape(len(images), *self.shape) if self.shape else found


def artifact_of(net: nn.Module, folder: Path, classes: tuple[str, ...] = ()) -> Artifact:
    folder.mkdir(exist_ok=True)
    save_network(net, folder / "model.safetensors")
    details = {"model": {"name": "custom"}, "channels": 3}
    return Artifact(kind="checkpoint", classes=classes, preprocess=PREPROCESS, details=details).write(folder)


def onnx_artifact(folder: Path, takes: str = "float32", gives: str = "logits") -> Artifact:
    """One that answers with the mean of each channel; of pixels, [N, H, W, C], where it takes uint8."""
    folder.mkdir(exist_ok=True)
    last = takes == "uint8"
    shape = ["N", 16, 16, 3] if last else ["N", 3, 16, 16]
    nodes = [helper.make_node("Cast", ["input"], ["f"], to=TensorProto.FLOAT)]
    nodes += [helper.make_node("ReduceMean", ["f"], ["m"], axes=[1, 2] if last else [2, 3], keepdims=0)]
    nodes += [helper.make_node("Mul", ["m", "s"], ["logits"])]
    nodes += [helper.make_node("Softmax", ["logits"], ["probabilities"])]
    kind = TensorProto.UINT8 if last else TensorProto.FLOAT
    name = {"maps": "f"}.get(gives, gives)
    scale = numpy_helper.from_array(np.full(3, 1 / 50 if last else 5, np.float32), "s")
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("input", kind, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)], [scale],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    session = Session(folder / "model.onnx")
    return Artifact(
        kind="onnx", classes=("red", "green", "blue"), inputs=session.inputs, outputs=session.outputs,
        preprocess=PREPROCESS,
    ).write(folder)  # fmt: skip


@pytest.fixture
def teach(tmp_path: Path) -> Callable[..., Teacher]:
    def make(net: nn.Module, classes: tuple[str, ...] = ()) -> Teacher:
        return load_teacher(artifact_of(net, tmp_path / "teacher", classes), CPU, module=net)

    return make


def test_logits_are_put_in_the_order_of_the_data_s_classes(
    teach: Callable[..., Teacher], dataset: Dataset
) -> None:
    teacher = teach(Colours((0, 1, 2)), ("red", "green", "blue"))
    images = torch.rand(4, 3, 16, 16)
    given = teacher.answer(images)[LOGITS]
    ordered = in_order(teacher, dataset, Silent())
    assert dataset.classes == ("blue", "green", "red")
    assert torch.equal(ordered.answer(images)[LOGITS], given[:, [2, 1, 0]])
    assert ordered.logits == 3
    assert not given.requires_grad


def test_a_teacher_may_know_more(teach: Callable[..., Teacher], dataset: Dataset) -> None:
    teacher = in_order(teach(Colours((1, 0, 1, 2)), ("lilac", "red", "green", "blue")), dataset, Silent())
    assert teacher.answer(torch.rand(2, 3, 16, 16))[LOGITS].shape == (2, 3)
    assert teacher.shapes[LOGITS] == (2, 3)


def test_missing_classes_are_listed(teach: Callable[..., Teacher], dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match="does not know 2 of the data's 3 classes: blue, green") as caught:
        in_order(teach(Colours(), ("bleu", "gren", "red")), dataset, Silent())
    assert "'bleu'" in caught.value.hint
    assert "distill.teacher.finetune" in caught.value.hint


def test_names_and_logits_must_be_as_many(teach: Callable[..., Teacher], dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match="gives 3 logits, and 2 names"):
        in_order(teach(Colours(), ("red", "green")), dataset, Silent())


def test_without_names_the_images_prove_the_order(teach: Callable[..., Teacher], dataset: Dataset) -> None:
    taken = in_order(teach(Colours((2, 1, 0))), dataset, Silent())
    assert "have no names; they are taken in the order of the data's classes" in taken.said[0]
    assert taken.classes == dataset.classes


def test_without_names_another_order_is_refused(teach: Callable[..., Teacher], dataset: Dataset) -> None:
    with pytest.raises(
        ConfigError, match="another order fits better: its logit 1 rather means 'blue'"
    ) as caught:
        in_order(teach(Colours((1, 2, 0))), dataset, Silent())
    assert "distill.teacher.classes" in caught.value.hint


def test_without_names_chance_is_refused(teach: Callable[..., Teacher], dataset: Dataset) -> None:
    class Same(Colours):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(torch.zeros_like(images)) + torch.tensor([2.0, 0, 0])

    with pytest.raises(ConfigError, match="no more than chance"):
        in_order(teach(Same()), dataset, Silent())


def test_without_names_as_many_are_needed(teach: Callable[..., Teacher], dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match="gives 4 logits without names, the data has 3 classes") as caught:
        in_order(teach(Colours((0, 1, 2, 2))), dataset, Silent())
    assert "distill.teacher.classes" in caught.value.hint


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (Colours(shape=(3, 1, 1)), r"gives no logits: \[2, 3, 1, 1\] for two inputs"),
        (Colours((0,)), r"gives no logits: \[2, 1\]"),
        (Colours(soft=True), "no logits but probabilities"),
    ],
)
def test_what_gives_no_logits_is_refused(teach: Callable[..., Teacher], net: nn.Module, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        teach(net)


def test_what_gives_more_than_logits_or_no_numbers_is_refused(teach: Callable[..., Teacher]) -> None:
    class Pair(Colours):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images), images  # type: ignore[return-value]

    class Mad(Colours):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images) / 0

    with pytest.raises(ConfigError, match="gives no logits: a tuple"):
        teach(Pair())
    with pytest.raises(ConfigError, match="no finite numbers"):
        teach(Mad())


def test_sizes_that_do_not_fit_are_refused(teach: Callable[..., Teacher]) -> None:
    class Wide(Colours):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3 * 32 * 32, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.head(images.flatten(1))

    with pytest.raises(ConfigError, match=r"does not take inputs \[2, 3, 16, 16\]"):
        teach(Wide())


def test_layers_answer_as_well(tmp_path: Path) -> None:
    made = artifact_of(Colours(), tmp_path / "teacher")
    teacher = load_teacher(made, CPU, ["body", "body"], Colours())
    images = torch.rand(2, 3, 16, 16)
    found = teacher.answer(images)
    assert torch.equal(found["body"], images)
    assert teacher.shapes == {LOGITS: (2, 3), "body": (2, 3, 16, 16)}
    with pytest.raises(ConfigError, match="the teacher has no layer 'bodi'") as caught:
        load_teacher(made, CPU, ["bodi"], Colours())
    assert "'body'" in caught.value.hint


@pytest.mark.parametrize("takes", ["float32", "uint8"])
def test_an_onnx_file_answers_as_it_wants_to_be_asked(tmp_path: Path, takes: str) -> None:
    teacher = load_teacher(onnx_artifact(tmp_path / "onnx", takes), CPU)
    pixels = torch.randint(0, 256, (3, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (PREPROCESS.mean, PREPROCESS.std))
    images = (pixels / 255 - mean) / std
    expected = pixels.float().mean((2, 3)) / 50 if takes == "uint8" else 5 * images.mean((2, 3))
    torch.testing.assert_close(teacher.answer(images)[LOGITS], expected, atol=1e-4, rtol=1e-4)
    assert teacher.parameters == 3
    assert teacher.operations is None


def test_onnx_files_that_cannot_teach(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no logits but probabilities"):
        load_teacher(onnx_artifact(tmp_path / "soft", gives="probabilities"), CPU)
    with pytest.raises(ConfigError, match=r"gives no logits: \[2, 3, 16, 16\]"):
        load_teacher(onnx_artifact(tmp_path / "maps", gives="maps"), CPU)
    with pytest.raises(ConfigError, match="an ONNX file, whose layers cannot be matched"):
        load_teacher(onnx_artifact(tmp_path / "whole"), CPU, ["f"])


def test_other_artifacts_cannot_teach(tmp_path: Path) -> None:
    (tmp_path / "int8").mkdir()
    with pytest.raises(ArtifactError, match="a 'qdq' artifact cannot teach"):
        load_teacher(Artifact(kind="qdq", preprocess=PREPROCESS).write(tmp_path / "int8"), CPU)
    (tmp_path / "bare").mkdir()
    with pytest.raises(ArtifactError, match="how inputs are preprocessed"):
        load_teacher(Artifact(kind="onnx").write(tmp_path / "bare"), CPU)
