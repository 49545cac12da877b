"""Texts of several lengths: one engine with a profile each by the bindings, an engine each by trtexec."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import small_bundle
import standin_cuda
import standin_tensorrt as standin
import standin_trtexec
from onnx import TensorProto, helper, numpy_helper

from edgetune.device.program import inputs, plan, tools, work
from edgetune.device.program.problem import Problem
from edgetune.engines.onnxruntime import Session
from edgetune.stages.verify import verify

LENGTHS, OWN = (4, 8, 12), (4, 8, 12, 8, 4)
recorded = pytest.mark.skipif(not standin.RECORDINGS, reason="no recorded API in shared/tensorrt-api")
every = pytest.mark.parametrize("recording", standin.RECORDINGS, ids=lambda path: path.stem)


def network(path: Path, quantized: bool) -> None:
    """An embedding, its masked mean, one matrix; both sizes of its inputs' last dimension open."""
    noise = np.random.default_rng(0)
    weights = {"table": noise.normal(size=(9, 16)), "matrix": noise.normal(size=(16, 3))}
    pair = [
        helper.make_node("QuantizeLinear", ["mean", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"]),
    ]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["looked"], name="look"),
        helper.make_node("Cast", ["attention_mask"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["float", "last"], ["mask"]),
        helper.make_node("Mul", ["looked", "mask"], ["kept"], name="keep"),
        helper.make_node("ReduceMean", ["kept"], ["mean"], axes=[1], keepdims=0),
        *(pair if quantized else []),
        helper.make_node("MatMul", ["dq" if quantized else "mean", "matrix"], ["logits"], name="head"),
    ]
    takes = [
        helper.make_tensor_value_info(name, TensorProto.INT32, (1, "L"))
        for name in ("input_ids", "attention_mask")
    ]
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    constants += [
        numpy_helper.from_array(np.float32(1 / 64), "scale"), numpy_helper.from_array(np.int8(0), "zero"),
        numpy_helper.from_array(np.array([-1]), "last"),
    ]  # fmt: skip
    gives = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (1, 3))]
    graph = helper.make_graph(nodes, "texts", takes, gives, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def bundle(folder: Path, typing: str = "weak") -> Path:
    """A bundle of five texts of three lengths."""
    folder.mkdir()
    (folder / "edgetune.pyz").write_text("")
    noise = np.random.default_rng(1)
    texts = [np.stack([noise.integers(0, 9, n), np.ones(n)]).astype("<i4") for n in OWN]
    (folder / "samples.bin").write_bytes(b"".join(text.tobytes() for text in texts))
    for name in ("fp16", "int8"):
        network(folder / f"{name}.onnx", name == "int8")
        session = Session(folder / f"{name}.onnx", exact=True)
        right = [session.run({"input_ids": t[:1], "attention_mask": t[1:]})[0] for t in texts]
        (folder / f"{name}.expected.bin").write_bytes(np.concatenate(right).astype("<f4").tobytes())
    tensor = {"dtype": "int32", "shape": [1, 12]}
    engine = {"typing": typing, "workspace_mb": 64, "optimization_level": None, "dla_core": None}
    small_bundle.describe(
        folder, input={"name": "input_ids", **tensor}, more_inputs=[{"name": "attention_mask", **tensor}],
        lengths=list(LENGTHS), trtexec_samples=3,
        engines=[{"name": n, "onnx": f"{n}.onnx", "precision": n, **engine} for n in ("fp16", "int8")],
        samples={
            "number": 5, "inputs": "samples.bin", "table": "", "labels": [0, 1, 2, None, 0], "lengths": list(OWN),
            "expected": {name: f"{name}.expected.bin" for name in ("fp16", "int8")},
        },
        timing={"warmup_s": 0.01, "seconds": 0.02, "queries": 4, "rounds": 1, "limit_s": 20.0},
    )  # fmt: skip
    (folder / plan.RESULTS).mkdir()
    return folder


def judged(folder: Path, found: dict[str, Any], samples: int) -> None:
    assert found["finished"], found["errors"]
    assert set(found["timing"]) == {
        f"{what}{length}" for what in ("compute", "copies") for length in ("", "-4", "-8")
    }
    measured = verify(folder)
    assert [row["length"] for row in measured["lengths"]] == list(LENGTHS)
    assert [row["samples"] for row in measured["lengths"]] == [2, 2, 1]
    for row in measured["lengths"]:
        assert {engine["agreement"] for engine in row["engines"].values()} == {1.0}
        assert row["timing"]["copies"]["models"]["int8"]["p50_ms"] > 0
    assert measured["engines"]["int8"]["samples"] == samples
    layers = {layer["name"]: layer for layer in measured["engines"]["int8"]["timed_layers"]["layers"]}
    # Of the longest texts, whose times they are.
    assert layers["keep"]["operations"] == 12 * 16
    assert measured["timing"]["copies"] == measured["lengths"][-1]["timing"]["copies"]


@recorded
@every
def test_by_the_bindings_one_engine_has_a_profile_each(tmp_path: Path, recording: Path) -> None:
    strong = tuple(int(part) for part in recording.stem.split(".")) >= plan.STRONG
    folder = bundle(tmp_path / "bundle", "strong" if strong else "weak")
    cuda, trt = standin_cuda.Runtime(), standin.load(recording)
    found = work.do(
        plan.load(folder), tools.Bindings(trt, lambda: cuda, lambda _: None), {}, [], lambda _: None
    )
    judged(folder, found, 5)
    assert not cuda.live, "everything is given back"
    assert sorted(path.name for path in folder.glob("results/*.plan")) == ["fp16.plan", "int8.plan"]


@pytest.mark.slow
def test_by_trtexec_each_length_has_an_engine(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "bundle")
    tool = tools.Trtexec(standin_trtexec.install(tmp_path / "bin", "8.5.2"), lambda _: None, 3)
    found = work.do(plan.load(folder), tool, {}, [], lambda _: None)
    judged(folder, found, 3)
    built = sorted(path.name for path in folder.glob("results/*.plan"))
    assert built == [f"{name}{length}.plan" for name in ("fp16", "int8") for length in ("-4", "-8", "")]
    assert found["engines"]["int8"]["build"]["plan_bytes"] == sum(
        (folder / "results" / name).stat().st_size for name in built if name.startswith("int8")
    )
    facts = json.loads((folder / "results" / "int8-4.plan.json").read_text())
    assert facts["shapes"] == {"input_ids": [1, 4], "attention_mask": [1, 4]}
    # All of them stand for the step: one that is gone is built again.
    (folder / "results" / "int8-4.plan").unlink()
    said: list[str] = []
    assert work.do(plan.load(folder), tool, {}, [], said.append)["finished"]
    assert "build-int8 …" in said
    assert "build-fp16: done before" in said


def test_a_sample_says_its_length_by_its_size(tmp_path: Path) -> None:
    loaded = plan.load(bundle(tmp_path / "bundle"))
    assert tuple(inputs.length_of(loaded, one) for one in inputs.feeds(loaded)) == OWN
    eight = inputs.split(loaded, inputs.first(loaded, 8))
    assert {name: len(part) for name, part in eight.items()} == {"input_ids": 32, "attention_mask": 32}
    with pytest.raises(Problem, match="no sample of 5 tokens"):
        inputs.first(loaded, 5)


@recorded
def test_an_engine_of_other_lengths_says_so(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "bundle")
    oldest = next(path for path in standin.RECORDINGS if path.stem.startswith("8"))
    trt, cuda = standin.load(oldest), standin_cuda.Runtime()
    loaded = plan.load(folder)
    job = loaded.builds[0]
    tools.bindings.build(trt, job._replace(lengths=(8,)))
    with tools.Engine(trt, cuda, job.plan) as engine:
        assert [tensor.shape for tensor in engine.inputs] == [(1, 8), (1, 8)]
        with pytest.raises(Problem, match="takes no texts of 12 tokens"):
            engine.choose(12)
    with pytest.raises(Problem, match="has no fixed shape"):
        tools.bindings.build(trt, job._replace(lengths=()))
