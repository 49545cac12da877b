"""The whole line on texts: the same stages, gates and artifacts as for images."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from textual import tiny_bert, write_reviews
from typer.testing import CliRunner

import edgetune
from edgetune import pipeline
from edgetune.artifact import Artifact, Tokens
from edgetune.cli import app
from edgetune.data.folders import load_dataset, save_dataset, scan
from edgetune.data.reader import frames
from edgetune.data.tokens import filled
from edgetune.device.program.inputs import feeds
from edgetune.device.results import load_work
from edgetune.engines.onnxruntime import Session
from edgetune.errors import ArtifactError, ConfigError, StageError
from edgetune.models import model_row
from edgetune.profile import load_target
from edgetune.progress import Silent
from edgetune.recipe import (
    CheckSection,
    DataSection,
    ExportSection,
    QuantizeSection,
    Recipe,
    load_recipe,
    recipe_from,
)
from edgetune.stages.bench import bench_models
from edgetune.stages.bundle import bundle
from edgetune.stages.init import init
from edgetune.stages.lint import lint
from edgetune.stages.predict import predict
from edgetune.steps import find_data
from edgetune.training.accelerator import choose_accelerator
from edgetune.training.checkpoint import load_network
from edgetune.training.teacher import load_teacher
from edgetune.tuning.space import Draft, as_it_is, space_of, write_recipe

pytest.importorskip("transformers", reason="the extra `text` is not installed")


class Told(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


def recipe(table: Path, network: Path, profile: str = "host-cpu", **more: dict[str, Any]) -> Recipe:
    sections: dict[str, Any] = {
        "data": {"path": str(table), "task": "text-classification"},
        "model": {"name": f"hf:{network}", "length": 16},
        "finetune": {"strategy": "full", "epochs": 3, "batch": 16, "learning_rate": 3e-3},
        "quantize": {"preset": "quick", "method": "plain"},
        "bench": {"preset": "quick"},
    }
    return recipe_from({**sections, **more, "profile": profile})


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Any]:
    folder = tmp_path_factory.mktemp("text")
    write_reviews(folder / "reviews.csv")
    asked = recipe(folder / "reviews.csv", tiny_bert(folder / "bert"), finetune={
        "strategy": "full", "epochs": 6, "batch": 16, "learning_rate": 3e-3,
    })  # fmt: skip
    return asked, edgetune.run(asked, load_target("host-cpu"), folder / "run")


@pytest.mark.slow
def test_a_run_learns_quantizes_and_judges(ran: tuple[Recipe, Any]) -> None:
    asked, made = ran
    accuracy = made.report["accuracy"]
    assert accuracy["models"]["fp32"]["top1"] > 0.9
    assert accuracy["models"]["int8"]["top1"] > 0.9
    assert made.report["latency"]["speedup"]
    gates = {gate["name"]: gate["status"] for gate in made.report["gates"]}
    assert gates["fp32_difference"] == "pass"
    assert (made.out / "report.html").is_file()
    # Unchanged, nothing is made again.
    assert edgetune.run(asked, load_target("host-cpu"), made.out).made == ()


@pytest.mark.slow
def test_the_tokenizer_travels_and_the_network_is_found_without_its_folder(ran: tuple[Recipe, Any]) -> None:
    asked, made = ran
    for name in ("checkpoint", "onnx", "int8"):
        artifact = Artifact.load(made.out / name)
        assert isinstance(artifact.preprocess, Tokens)
        assert "tokenizer.json" in artifact.files
    network = Path(asked.model.name.removeprefix("hf:"))
    network.rename(network.with_name("moved"))
    try:
        net = load_network(Artifact.load(made.out / "checkpoint"))
        assert net(torch.ones(1, 2, 5, dtype=torch.int64)).shape == (1, 2)
    finally:
        network.with_name("moved").rename(network)


@pytest.mark.slow
def test_texts_are_classified_by_every_artifact(ran: tuple[Recipe, Any], tmp_path: Path) -> None:
    _, made = ran
    (tmp_path / "a.txt").write_text("good tasty the food was fast")
    (tmp_path / "b.txt").write_text("cold stale the food was slow")
    (tmp_path / "c.txt").write_text(" ")
    for name in ("checkpoint", "onnx", "int8"):
        artifact = Artifact.load(made.out / name)
        found = predict(artifact, [tmp_path], texts=["the food was very tasty", " ".join(["cold"] * 30)])
        assert [entry["classes"][0]["name"] for entry in found if "classes" in entry] == [
            "positive", "negative", "positive", "negative",
        ]  # fmt: skip
        assert "empty" in found[2]["error"]
        assert [entry.get("cut", False) for entry in found[3:]] == [False, True]
        rows = predict(artifact, [Path(ran[0].data.path)], top=1)
        assert (len(rows), rows[0]["path"]) == (120, f"{ran[0].data.path}:2")
        right = [row["classes"][0]["name"] == ("positive", "negative")[at % 2] for at, row in enumerate(rows)]
        assert sum(right) > 110


@pytest.mark.slow
def test_a_device_gets_tokens_and_the_tokenizer(ran: tuple[Recipe, Any], tmp_path: Path) -> None:
    _, made = ran
    asked = recipe(Path(ran[0].data.path), Path(ran[0].model.name[3:]), "jetson-orin-nano-8gb")
    target = load_target("jetson-orin-nano-8gb")
    run = edgetune.run(asked.model_copy(update={"finetune": ran[0].finetune}), target, tmp_path / "run")
    network, int8 = (Artifact.load(run.out / name) for name in ("onnx", "int8"))
    assert [(spec.name, spec.dtype, spec.shape) for spec in network.inputs] == [
        ("input_ids", "int32", (1, 16)), ("attention_mask", "int32", (1, 16)),
    ]  # fmt: skip
    data = load_dataset(run.out / "data.json")
    told = bundle(network, int8, data, target, name="reviews", samples=5, into=tmp_path / "bundle")
    work = json.loads((tmp_path / "bundle" / "work.json").read_text())
    assert (tmp_path / "bundle" / "tokenizer.json").read_bytes() == network.file(
        "tokenizer.json"
    ).read_bytes()
    assert [entry["name"] for entry in work["more_inputs"]] == ["attention_mask"]
    stored = np.frombuffer((tmp_path / "bundle" / "samples.bin").read_bytes(), "<i4").reshape(5, 2, 16)
    assert set(np.unique(stored[:, 1])) <= {0, 1}
    assert (stored[:, 0, 0] == 2).all()
    expected = np.frombuffer((tmp_path / "bundle" / "fp16.expected.bin").read_bytes(), "<f4").reshape(5, 2)
    given = {"input_ids": stored[:, 0].copy(), "attention_mask": stored[:, 1].copy()}
    np.testing.assert_allclose(Session(network.file("model.onnx")).run(given)[0], expected, atol=1e-5)
    assert told["samples"] == 5
    del made


@pytest.mark.slow
def test_several_lengths_give_what_one_does(ran: tuple[Recipe, Any], tmp_path: Path) -> None:
    from edgetune.stages.export import export

    _, made = ran
    checkpoint, data = Artifact.load(made.out / "checkpoint"), load_dataset(made.out / "data.json")
    runtime = load_target("host-cpu").runtime
    several = export(checkpoint, ExportSection(lengths=(16, 8)), runtime, data, into=tmp_path / "several")
    assert isinstance(several.preprocess, Tokens)
    assert several.preprocess.lengths == (8, 16)
    assert [spec.shape for spec in several.inputs] == [(1, "L"), (1, "L")]
    assert several.details["parity"]["difference_over_std"] < 1e-3
    with pytest.raises(ConfigError, match="17, and the network was trained with 16 tokens"):
        export(checkpoint, ExportSection(lengths=(17,)), runtime, data, into=tmp_path / "longer")
    widths = {part.shape[2] for part in frames(data.root, data.splits["test"], several.preprocess, 4)}
    assert widths == {8, 16}
    timed = bench_models({"FP32": several.file("model.onnx")}, "quick", 1)
    assert timed["models"]["FP32"]["inputs"] == {"input_ids": [1, 16], "attention_mask": [1, 16]}


@pytest.mark.slow
def test_the_verb_export_takes_lengths(ran: tuple[Recipe, Any], tmp_path: Path) -> None:
    _, made = ran
    asked = ["export", str(made.out / "checkpoint"), "--length", "8", "--length", "16", "-q"]
    done = CliRunner().invoke(app, [*asked, "-o", str(tmp_path / "onnx")])
    assert done.exit_code == 0, done.output
    how = Artifact.load(tmp_path / "onnx").preprocess
    assert isinstance(how, Tokens)
    assert how.lengths == (8, 16)


@pytest.mark.slow
def test_every_length_is_compared_and_bundled_also_one_that_no_text_has(
    ran: tuple[Recipe, Any], tmp_path: Path
) -> None:
    from edgetune.stages.check import check
    from edgetune.stages.export import export
    from edgetune.stages.quantize import quantize

    _, made = ran
    checkpoint, data = Artifact.load(made.out / "checkpoint"), load_dataset(made.out / "data.json")
    target = load_target("jetson-orin-nano-8gb")
    # The shortest text has 5 tokens.
    asked = ExportSection(lengths=(4, 8, 16))
    network = export(checkpoint, asked, target.runtime, data, into=tmp_path / "onnx")
    apart = network.details["parity"]["lengths"]
    assert [(row["length"], row["own"]) for row in apart] == [(4, False), (8, True), (16, True)]
    assert max(row["difference_over_std"] for row in apart) < 1e-3
    # As TensorRT wants it: attention's scale is on the queries.
    graph = onnx.load(network.file("model.onnx")).graph
    makers = {name: node for node in graph.node for name in node.output}
    masked = [makers[node.input[0]] for node in graph.node if node.op_type == "Softmax"]
    scores = [makers[node.input[0]] for node in masked]
    assert [node.op_type for node in scores] == ["MatMul", "MatMul"]
    assert {makers[node.input[0]].op_type for node in scores} == {"Mul"}
    settings = QuantizeSection(preset="quick", method="plain", ranges="minmax")
    int8 = quantize(network, data, settings, target.runtime, into=tmp_path / "int8")
    found = lint(int8.file("model.onnx"), target).findings
    assert [entry.reason for entry in found if entry.rule == "dynamic-shape"] == [
        f"input {name!r} is 1xL: a bundle builds it for texts of 4, 8, 16 tokens each"
        for name in ("input_ids", "attention_mask")
    ]
    assert not [entry for entry in found if entry.severity != "info"]
    told = Told()
    checked = check(checkpoint, network, int8, data, CheckSection(), into=tmp_path / "check", progress=told)
    assert any("no test text is filled up to 4 tokens" in line for line in told.lines)
    measures = json.loads(checked.file("measures.json").read_text())
    rows = measures["parity"]["lengths"]
    assert rows[0]["images"] == 0
    assert "fp32" not in rows[0]
    assert sum(row["images"] for row in rows) == measures["accuracy"]["images"]
    assert all(row["compared"] and row["difference_over_std"] < 1e-3 for row in rows)
    bundle(network, int8, data, target, name="reviews", samples=6, into=tmp_path / "bundle")
    work = load_work(tmp_path / "bundle")
    assert (work.lengths, work.input.shape) == ((4, 8, 16), (1, 16))
    assert set(work.samples.lengths[:3]) == {4, 8, 16}
    assert {
        length
        for length, label in zip(work.samples.lengths, work.samples.labels, strict=True)
        if label is None
    } == {4}
    sizes = [len(one) for one in feeds(work)]
    assert sizes == [2 * 4 * length for length in work.samples.lengths]
    for label, core in (("jetson-nano-4gb", None), ("jetson-agx-orin-64gb@6.2", 0)):
        other, into = load_target(label), tmp_path / "no"
        with pytest.raises(ConfigError, match="takes texts of 4, 8, 16 tokens, and"):
            bundle(network, int8, data, other, name="x", samples=6, into=into, dla_core=core)


@pytest.mark.slow
def test_a_student_of_fewer_layers_learns_from_a_teacher(ran: tuple[Recipe, Any], tmp_path: Path) -> None:
    asked, made = ran
    changed = recipe(
        Path(asked.data.path), Path(asked.model.name[3:]),
        model={"name": f"{asked.model.name}#1", "length": 16},
        distill={
            "teacher": {"path": str(made.out / "checkpoint")}, "baseline": False,
            "features": {"encoder.encoder.layer.0": "encoder.encoder.layer.1"},
            "unlabelled": str(write_reviews(tmp_path / "more.csv", 150)),
        },
        finetune={"strategy": "full", "epochs": 6, "batch": 16, "learning_rate": 3e-3},
    )  # fmt: skip
    run = edgetune.run(changed, load_target("host-cpu"), tmp_path / "run")
    models = run.report["distillation"]["models"]
    assert models["distilled"]["parameters"] < models["teacher"]["parameters"]
    assert models["distilled"]["top1"] > 0.8
    # Its answers are computed once, though batches are of texts of other lengths each time.
    told = Artifact.load(run.out / "checkpoint").details
    assert told["distillation"]["views"] == 1
    assert 0 < told["distillation"]["unlabelled"] <= 30
    assert Artifact.load(run.out / "onnx").details["parity"]["difference_over_std"] < 1e-3


@pytest.mark.slow
def test_an_onnx_file_teaches_as_its_checkpoint_does(ran: tuple[Recipe, Any]) -> None:
    _, made = ran
    accelerator = choose_accelerator("cpu")
    teachers = [load_teacher(Artifact.load(made.out / name), accelerator) for name in ("checkpoint", "onnx")]
    tokens = torch.from_numpy(filled([np.array([2, 4, 13, 3]), np.array([2, 8, 9, 10, 11, 13, 3])], 0))
    given = [teacher.answer(tokens)["logits"] for teacher in teachers]
    torch.testing.assert_close(*given, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_a_teacher_with_another_tokenizer_is_refused(ran: tuple[Recipe, Any], tmp_path: Path) -> None:
    asked, made = ran
    other = tiny_bert(tmp_path / "other")
    content = json.loads((other / "tokenizer.json").read_text())
    (other / "tokenizer.json").write_text(json.dumps(content, indent=1))
    changed = recipe(
        Path(asked.data.path), other, distill={"teacher": {"path": str(made.out / "checkpoint")}}
    )
    with pytest.raises(ConfigError, match="takes another tokenizer than the student"):
        edgetune.run(changed, load_target("host-cpu"), tmp_path / "run")


def test_a_recipe_for_texts_is_written(reviews: Path, bert: Path, tmp_path: Path) -> None:
    found = init(reviews, model=f"hf:{bert}", profile="host-cpu", out=tmp_path / "recipe.yaml")
    assert found.noun == "text"
    written = load_recipe(tmp_path / "recipe.yaml")
    assert (written.data.task, written.model.name) == ("text-classification", f"hf:{bert}")
    pipeline.preflight(written, load_target("host-cpu"))
    text = (tmp_path / "recipe.yaml").read_text()
    assert "texts: " in text
    assert "augment" not in text


def test_what_does_not_go_together_is_refused_before_anything_runs(reviews: Path, bert: Path) -> None:
    target = load_target("host-cpu")
    asked = recipe(reviews, bert)
    pipeline.preflight(asked, target)
    for changed, message in (
        ({"model": {"name": "resnet18"}}, "resnet18 takes images, and data.task is text-classification"),
        ({"data": {"path": str(reviews.parent)}}, "takes texts, and data.task is image-classification"),
        ({"model": {"name": f"hf:{bert}", "length": 64}}, "takes 3 to 40 tokens, not 64"),
        ({"model": {"name": "hf:./nothing-here"}}, "no config.json there"),
        ({"data": {"path": "gone.csv", "task": "text-classification"}}, "no folder and no table gone.csv"),
        ({"finetune": {"augment": {"preset": "light"}}}, "images are augmented, texts are not"),
        ({"distill": {"teacher": {"name": f"hf:{bert}"}}}, "has no head for the data's classes"),
        ({"distill": {"teacher": {"name": "hf:./gone", "finetune": {}}}}, "no config.json there"),
    ):
        with pytest.raises(ConfigError, match=message):
            pipeline.preflight(recipe(reviews, bert, **changed), target)
    shutil.copytree(bert, bert.with_name("bare"))
    (bert.with_name("bare") / "model.safetensors").unlink()
    teacher = {"teacher": {"name": f"hf:{bert.with_name('bare')}", "finetune": {}}}
    for asked in (recipe(reviews, bert.with_name("bare")), recipe(reviews, bert, distill=teacher)):
        with pytest.raises(ArtifactError, match=r"no model.safetensors"):
            pipeline.preflight(asked, target)


def test_a_recipe_elsewhere_finds_its_network_and_odd_columns(
    reviews: Path, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reviews.write_text(reviews.read_text().replace("text,label", "Was,Wie", 1))
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "there" / "recipe.yaml"
    with pytest.raises(ConfigError, match="none of the columns 'Was', 'Wie'"):
        init(reviews, model="hf:./bert#1", profile="host-cpu", out=out)
    init(reviews, model="hf:./bert#1", profile="host-cpu", columns=("Was", "Wie"), out=out)
    monkeypatch.chdir("/")
    written = load_recipe(out)
    assert (written.name, written.model.name) == ("reviews", "hf:../bert#1")
    assert (written.data.text, written.data.label) == ("Was", "Wie")
    pipeline.preflight(written, load_target("host-cpu"))
    with pytest.raises(ConfigError, match="a table of texts, and resnet18 takes images") as caught:
        init(reviews, model="resnet18", profile="host-cpu", out=out, force=True)
    assert "hf:NAME" in caught.value.hint


def test_texts_are_found_again_where_they_lay_and_elsewhere(
    reviews: Path, bert: Path, tmp_path: Path
) -> None:
    reviews.write_text(reviews.read_text().replace("text,label", "Was,Wie", 1))
    section = DataSection(path=str(reviews), task="text-classification", text="Was", label="Wie")
    data = scan(section, reviews)
    network = Artifact(kind="checkpoint", classes=data.classes, preprocess=model_row(f"hf:{bert}").preprocess)
    (tmp_path / "run").mkdir()
    save_dataset(data, tmp_path / "run" / "data.json")
    network = network.write(tmp_path / "run")
    assert find_data(network, None, Silent()) == data
    copy = tmp_path / "copy.csv"
    copy.write_text(reviews.read_text() + "more of it,positive\n")
    found = find_data(network, copy, Silent())
    assert {name: len(split) for name, split in found.splits.items()} == {
        name: len(split) for name, split in data.splits.items()
    }
    reviews.write_text(reviews.read_text().replace("good", "fine"))
    with pytest.raises(ConfigError, match=r"texts are gone or changed: reviews.csv:"):
        find_data(network, None, Silent())


def test_stages_for_images_say_so(reviews: Path, bert: Path) -> None:
    how = model_row(pipeline.model_name(recipe(reviews, bert))).preprocess
    with pytest.raises(ArtifactError, match="takes texts, and images are needed here"):
        Artifact(kind="onnx", preprocess=how).of_images()


def test_a_search_leaves_augmentation_out_and_finds_the_network_from_elsewhere(
    reviews: Path, bert: Path, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    asked = f"data: {{path: {reviews}, task: text-classification}}\nmodel: {{name: 'hf:./{bert.name}'}}\n"
    path.write_text(f"schema_version: 1\n{asked}finetune: {{strategy: full}}\n")
    draft = Draft.load(path)
    space = space_of(draft)
    assert "finetune.augment.preset" not in space.axes
    mine = as_it_is(draft.recipe, space)
    assert mine is not None
    (tmp_path / "deep").mkdir()
    write_recipe(draft, {"finetune.strategy": "partial"}, [], tmp_path / "deep" / "best.yaml")
    found = load_recipe(tmp_path / "deep" / "best.yaml")
    assert found.model.name == f"hf:../{bert.name}"
    pipeline.preflight(found, load_target("host-cpu"))


def test_memory_that_does_not_do_is_said_before_an_epoch(
    reviews: Path, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgetune.training.texts.free_bytes", lambda: 1000)
    with pytest.raises(StageError, match=r"a batch of 16 texts of up to 11 tokens takes .* 0.0 GB are free"):
        edgetune.run(recipe(reviews, bert), load_target("host-cpu"), tmp_path / "run")
