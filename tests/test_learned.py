"""A run that distills: the teacher first, its mistakes before anything is trained, nothing made twice."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from typer.testing import CliRunner

from edgetune import cli
from edgetune.artifact import Artifact
from edgetune.errors import ArtifactError, ConfigError, EdgetuneError
from edgetune.learned import (
    check_teacher,
    look_at_unlabelled,
    make_alone,
    make_distillation,
    make_distilled,
    make_teacher,
)
from edgetune.models import build_model
from edgetune.pipeline import look, run
from edgetune.profile import load_target
from edgetune.progress import Silent
from edgetune.recipe import Recipe, recipe_from
from edgetune.report.assemble import read_measures
from edgetune.store import Store
from edgetune.training.checkpoint import save_network

NETWORK = "mobilenet_v2_035_cifar10"
CHEAP = {"strategy": "full", "epochs": 1, "batch": 8}


def recipe(images: Path, distill: dict[str, Any], **changes: object) -> Recipe:
    values: dict[str, object] = {
        "name": "test",
        "data": {"path": str(images), "test_share": 0.25, "val_share": 0.2, "min_images": 2},
        "model": {"name": NETWORK, "weights": "none"},
        "finetune": CHEAP,
        "quantize": {"preset": "quick"},
        "gates": {"top1_drop_points": 100, "int8_cosine_min": -1, "int8_agreement_percent_min": 0},
        "distill": distill,
    }
    return recipe_from(values | changes)


def classifier(path: Path) -> Path:
    """An ONNX file that answers with the mean of each channel: blue, green, red."""
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["m"], axes=[2, 3], keepdims=0),
        helper.make_node("Gather", ["m", "order"], ["logits"], axis=1),
    ]
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 24, 24])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor("order", TensorProto.INT64, [3], [2, 1, 0])],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def onnx_teacher(path: Path, **more: object) -> dict[str, Any]:
    parts = {"resize_px": 24, "size_px": 24, "mean": (0.5,), "std": (0.25,)}
    return {"path": str(classifier(path)), "preprocess": parts, **more}


@pytest.mark.parametrize(
    ("teacher", "words", "hint"),
    [
        ({"name": "resnet81"}, "distill.teacher: unknown network 'resnet81'", "'resnet18'"),
        (
            {"name": "vgg16_bn", "size_px": 100},
            "takes multiples of 224 px, not 100",
            "distill.teacher.size_px",
        ),
        ({"name": "resnet18", "weights": "none.pth"}, "distill.teacher: weights: no file", ""),
        ({"path": "nowhere"}, "distill.teacher: no such file or folder", ""),
        ({"path": "."}, "distill.teacher: .*not an artifact", ""),
        ({"path": "weights.pth"}, "neither an artifact's folder nor an ONNX file", "weights: FILE"),
        ({"path": "net.onnx"}, "nothing says how images become its inputs", "distill.teacher.preprocess"),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused_at_once(
    tmp_path: Path, teacher: dict[str, Any], words: str, hint: str
) -> None:
    (tmp_path / "weights.pth").touch()
    classifier(tmp_path / "net.onnx")
    made = recipe(tmp_path, {"teacher": teacher}).model_copy(update={"folder": tmp_path})
    with pytest.raises(EdgetuneError, match=words) as caught:
        check_teacher(made)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("features", "words"),
    [
        ({"features.99": "features.3"}, f"the student \\({NETWORK}\\) has no layer 'features.99'"),
        ({"features.3": "layer5"}, "the teacher \\(resnet18\\) has no layer 'layer5'"),
    ],
)
def test_layers_are_looked_up_before_a_teacher_learns(
    tmp_path: Path, features: dict[str, str], words: str
) -> None:
    distill = {"teacher": {"name": "resnet18", "finetune": {}}, "features": features}
    with pytest.raises(ConfigError, match=words) as caught:
        check_teacher(recipe(tmp_path, distill))
    assert "did you mean" in caught.value.hint


def test_an_artifact_is_not_told_what_it_says_itself(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    Artifact(kind="onnx").write(tmp_path / "made")
    given = {"path": str(tmp_path / "made"), "preprocess": {"preset": "imagenet"}}
    with pytest.raises(ConfigError, match="says itself how inputs are preprocessed"):
        check_teacher(recipe(tmp_path, {"teacher": given}))
    (tmp_path / "int8").mkdir()
    Artifact(kind="qdq").write(tmp_path / "int8")
    with pytest.raises(ArtifactError, match="a 'qdq' artifact, where 'checkpoint' or 'onnx' is needed"):
        check_teacher(recipe(tmp_path, {"teacher": {"path": str(tmp_path / "int8")}}))


def test_what_transfer_bought_needs_the_student_alone(tmp_path: Path) -> None:
    distill = {"teacher": {"name": "resnet18"}, "baseline": False}
    with pytest.raises(ConfigError, match="counted without a teacher"):
        check_teacher(recipe(tmp_path, distill, finetune=CHEAP | {"scratch_baseline": True}))


def test_unlabelled_folders_are_looked_at_first(tmp_path: Path, class_folders: Path) -> None:
    empty = tmp_path / "empty"
    made = recipe(class_folders, {"teacher": {"name": "resnet18"}, "unlabelled": str(empty)})
    with pytest.raises(ConfigError, match=r"distill\.unlabelled: no folder"):
        check_teacher(made)
    (empty / "deep").mkdir(parents=True)
    (empty / "deep" / "notes.txt").touch()
    check_teacher(made)
    with pytest.raises(
        ConfigError, match=r"distill\.unlabelled: .*no image in this folder or below"
    ) as caught:
        look_at_unlabelled(made, tmp_path, Silent())
    assert ".jpg" in caught.value.hint


def test_unlabelled_images_are_not_read_again(
    tmp_path: Path, class_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(class_folders, {"teacher": {"name": "resnet18"}, "unlabelled": str(class_folders / "red")})
    found = look_at_unlabelled(made, tmp_path, Silent())
    assert found is not None
    assert len(found.splits["train"]) == 12
    monkeypatch.setattr("edgetune.data.files._read", lambda _: pytest.fail("read again"))
    again = look_at_unlabelled(made, tmp_path, Silent())
    assert again is not None
    assert again.digest == found.digest


def make_all(made: Recipe, out: Path) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Do what a run does until the student is distilled and judged; name what was made."""
    progress = Silent()
    check_teacher(made)
    with Store(out).locked() as keep:
        data = look(made, out, progress)
        teacher = make_teacher(keep, made, data, "cpu", progress)
        assert teacher is not None
        checkpoint = make_distilled(keep, made, teacher, data, None, "cpu", progress)
        alone = make_alone(keep, made, data, "cpu", progress)
        judged = make_distillation(keep, teacher, alone, checkpoint, data, "cpu", progress)
        assert judged is not None
        return tuple(keep.made), read_measures(judged)["distillation"]


@pytest.mark.slow
def test_teacher_and_students_are_made_once(class_folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    distill = {"teacher": onnx_teacher(tmp_path / "net.onnx", classes=("blue", "green", "red"))}
    made, told = make_all(recipe(class_folders, distill), out)
    assert made == ("teacher", "checkpoint", "alone", "distillation")
    checkpoint = Artifact.load(out / "checkpoint", "checkpoint")
    assert checkpoint.parents == {"teacher": Artifact.load(out / "teacher", "onnx").digest}
    assert Artifact.load(out / "alone").digest != checkpoint.digest
    assert told["models"].keys() == {"teacher", "alone", "distilled"}
    assert told["models"]["teacher"]["top1"] == 1
    assert make_all(recipe(class_folders, distill), out)[0] == ()
    made, told = make_all(recipe(class_folders, distill | {"baseline": False}), out)
    assert made == ("distillation",)
    assert told["models"].keys() == {"teacher", "distilled"}
    assert told["gain"] is None
    made, _ = make_all(recipe(class_folders, distill | {"temperature": 2.0}), out)
    assert made == ("checkpoint", "distillation"), "the teacher has answered, the student alone is there"


def test_a_teacher_that_has_answered_serves_the_students_of_other_runs(
    class_folders: Path, tmp_path: Path
) -> None:
    def asked_earlier(distill: dict[str, Any], out: Path) -> bool:
        made, progress = recipe(class_folders, distill), Silent()
        with Store(out).locked() as keep:
            data = look(made, out, progress)
            teacher = make_teacher(keep, made, data, "cpu", progress)
            assert teacher is not None
            checkpoint = make_distilled(keep, made, teacher, data, None, "cpu", progress)
        return bool(checkpoint.details["distillation"]["asked_earlier"])

    given = onnx_teacher(tmp_path / "net.onnx", classes=("blue", "green", "red"))
    assert not asked_earlier({"teacher": given}, tmp_path / "one")
    other = {"teacher": {"path": str(tmp_path / "one" / "teacher")}, "temperature": 2.0}
    assert asked_earlier(other, tmp_path / "two")
    assert not (tmp_path / "two" / "answers").exists()
    # Beside what is no run's, nothing is written.
    (tmp_path / "one" / "data.json").unlink()
    assert not asked_earlier(other, tmp_path / "three")


@pytest.mark.slow
def test_a_run_judges_the_distilled_student(class_folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    target = load_target("jetson-orin-nano-8gb")
    distill = {"teacher": onnx_teacher(tmp_path / "net.onnx", classes=("blue", "green", "red"))}
    wanted = recipe(class_folders, distill, finetune=CHEAP | {"scratch_baseline": True})
    done = run(wanted, target, out)
    digests = {entry["role"]: entry["digest"] for entry in done.report["artifacts"]}
    names = ("checkpoint", "onnx", "int8", "teacher", "alone", "scratch")
    assert digests == {name: Artifact.load(out / name).digest for name in names}
    told = done.report["distillation"]
    assert told["models"]["distilled"]["right"] == done.report["accuracy"]["models"]["fp32"]["right"]
    assert done.report["transfer"]["pretrained_top1"] == told["models"]["alone"]["top1"]
    assert "one run cannot tell" in (out / "report.md").read_text()
    assert run(wanted, target, out).made == ()


@pytest.mark.slow
def test_the_verb_makes_teacher_and_student(class_folders: Path, tmp_path: Path) -> None:
    text = f"""schema_version: 1
data: {{path: {class_folders}, min_images: 2}}
model: {{name: {NETWORK}, weights: none}}
finetune: {{strategy: full, epochs: 1, batch: 8}}
"""
    path, out = tmp_path / "recipe.yaml", tmp_path / "made" / "student"
    path.write_text(text)
    bare = CliRunner().invoke(cli.app, ["distill", str(path), "-o", str(out)])
    assert isinstance(bare.exception, ConfigError)
    assert "nothing says who teaches" in bare.exception.message
    learned = "size_px: 48, finetune: {strategy: full, epochs: 1, batch: 8}"
    path.write_text(f"{text}distill: {{teacher: {{name: {NETWORK}, weights: none, {learned}}}}}\n")
    done = CliRunner().invoke(cli.app, ["distill", str(path), "-o", str(out), "--quiet"])
    assert done.exit_code == 0, done.output
    assert "validation top-1" in done.output
    taught = Artifact.load(tmp_path / "made" / "teacher", "checkpoint")
    assert taught.preprocess is not None
    assert taught.preprocess.size_px == 48
    assert Artifact.load(out, "checkpoint").parents == {"teacher": taught.digest}


@pytest.mark.slow
def test_a_teacher_by_weights_or_from_another_run(
    class_folders: Path, tmp_path: Path, trained: Callable[[int], Path]
) -> None:
    file = trained(3)
    given = {"name": NETWORK, "weights": str(file), "classes": ("red", "green", "blue")}
    made, told = make_all(recipe(class_folders, {"teacher": given}), tmp_path / "one")
    assert "teacher" in made
    assert told["models"]["teacher"]["network"] == NETWORK
    made, other = make_all(recipe(class_folders, {"teacher": {"path": str(file.parent)}}), tmp_path / "two")
    assert "teacher" not in made
    assert other["models"]["teacher"]["right"] == told["models"]["teacher"]["right"]


def test_default_weights_know_other_classes(class_folders: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gives 10 logits without names, the data has 3 classes") as caught:
        run(recipe(class_folders, {"teacher": {"name": NETWORK}}), load_target("host-cpu"), tmp_path / "run")
    assert "distill.teacher.finetune" in caught.value.hint
    with pytest.raises(ConfigError, match="random weights knows nothing"):
        run(
            recipe(class_folders, {"teacher": {"name": NETWORK, "weights": "none"}}),
            load_target("host-cpu"), tmp_path / "run",
        )  # fmt: skip


def test_a_pickle_does_not_teach(class_folders: Path, tmp_path: Path) -> None:
    file = tmp_path / "whole.pth"
    torch.save(torch.nn.Linear(2, 2), file)
    given = {"name": NETWORK, "weights": str(file)}
    with pytest.raises(ArtifactError, match="refused: it holds more than tensors"):
        run(recipe(class_folders, {"teacher": given}), load_target("host-cpu"), tmp_path / "run")


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"preset": "imagenet"}, r"takes \['N', 3, 24, 24\], the preprocessing gives \[N, 3, 224, 224\]"),
        ({"preset": "zero-one"}, "leaves open how images become inputs: --resize and --crop missing"),
    ],
)
def test_sizes_that_do_not_fit_a_file(
    class_folders: Path, tmp_path: Path, parts: dict[str, Any], words: str
) -> None:
    given = {"path": str(classifier(tmp_path / "net.onnx")), "preprocess": parts}
    with pytest.raises(ConfigError, match=f"distill.teacher.preprocess: .*{words}") as caught:
        run(recipe(class_folders, {"teacher": given}), load_target("host-cpu"), tmp_path / "run")
    assert "preprocess: {preset: imagenet}" in caught.value.hint


def test_a_file_that_is_no_network(class_folders: Path, tmp_path: Path) -> None:
    given = onnx_teacher(tmp_path / "net.onnx")
    (tmp_path / "net.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(ArtifactError, match="cannot load it"):
        run(recipe(class_folders, {"teacher": given}), load_target("host-cpu"), tmp_path / "run")


@pytest.fixture
def trained(tmp_path: Path) -> Callable[[int], Path]:
    """Makes a checkpoint artifact of random weights with so many classes; returns its weights."""

    def make(classes: int) -> Path:
        from edgetune.models import preprocess_for

        folder = tmp_path / "other"
        folder.mkdir()
        save_network(build_model(NETWORK, classes, 3, "none"), folder / "model.safetensors")
        model = {"name": NETWORK, "weights": "none", "channels": 0, "adapter": "sum", "size_px": 0}
        Artifact(
            kind="checkpoint", classes=("red", "green", "blue"), preprocess=preprocess_for(NETWORK, 3),
            details={"model": model, "channels": 3, "classes": classes},
        ).write(folder)  # fmt: skip
        return folder / "model.safetensors"

    return make
