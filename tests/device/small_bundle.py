"""A bundle small enough to send many times: two tiny networks, two samples, the real program."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgetune.artifact import sha256_of
from edgetune.device.packing import write_program

SHAPE, CLASSES, NUMBER = (1, 1, 4, 4), 3, 2


def network(path: Path, quantized: bool) -> None:
    """Flatten and one matrix, Q/DQ before it where it is quantized."""
    noise = np.random.default_rng(0)
    weights = noise.normal(size=(16, CLASSES)).astype(np.float32)
    rounded = [
        helper.make_node("QuantizeLinear", ["input", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"]),
    ]
    nodes = [
        *(rounded if quantized else []),
        helper.make_node("Flatten", ["dq" if quantized else "input"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
    ]
    made = helper.make_model(
        helper.make_graph(
            nodes,
            "small",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, SHAPE)],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (1, CLASSES))],
            [
                numpy_helper.from_array(weights, "weights"),
                numpy_helper.from_array(np.float32(1 / 127), "scale"),
                numpy_helper.from_array(np.int8(0), "zero"),
            ],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.save(made, path)


def make(folder: Path, program: str = "", **more: bytes) -> Path:
    """Write a bundle; `more` are files beside (`name_bin` for `name.bin`), there to be large.

    `program` is Python that stands where the real program would.
    """
    folder.mkdir(parents=True)
    for name in ("fp16", "int8"):
        network(folder / f"{name}.onnx", name == "int8")
        (folder / f"{name}.expected.bin").write_bytes(np.zeros((NUMBER, CLASSES), "<f4").tobytes())
    (folder / "samples.bin").write_bytes(bytes(range(16)) * NUMBER)
    (folder / "table.bin").write_bytes((np.arange(256) / 255).astype("<f4").tobytes())
    for name, content in more.items():
        (folder / name.replace("_", ".")).write_bytes(content)
    if program:
        (folder / "edgetune.pyz").write_text(program)
    else:
        write_program(folder / "edgetune.pyz")
    describe(folder)
    return folder


def describe(folder: Path, **changed: Any) -> None:
    """Write the plan of work anew, over the files that lie there."""
    (folder / "work.json").unlink(missing_ok=True)
    files = {file.name: sha256_of(file) for file in sorted(folder.iterdir()) if file.is_file()}
    engine = {"typing": "weak", "workspace_mb": 64, "optimization_level": None, "dla_core": None}
    work = {
        "schema_version": 1,
        "name": "small",
        "wanted": {"profile": "jetson-orin-nano-8gb:15W@6.2", "tensorrt": "10.3.0"},
        "input": {"name": "input", "dtype": "float32", "shape": list(SHAPE)},
        "outputs": [{"name": "logits", "dtype": "float32", "shape": [1, CLASSES]}],
        "classes": ["a", "$(touch hit)", "; b"],
        "engines": [
            {"name": name, "onnx": f"{name}.onnx", "precision": name, **engine} for name in ("fp16", "int8")
        ],
        "samples": {
            "number": NUMBER, "inputs": "samples.bin", "table": "table.bin", "labels": [0, 1],
            "expected": {name: f"{name}.expected.bin" for name in ("fp16", "int8")},
        },
        "timing": {"warmup_s": 0.0, "seconds": 0.1, "queries": 1, "rounds": 1, "limit_s": 20.0},
        "trtexec_samples": 1,
        "files": files,
    }  # fmt: skip
    (folder / "work.json").write_text(json.dumps({**work, **changed}))
