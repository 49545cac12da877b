"""Small networks in every rendering, for building engines."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

SHAPE = (1, 3, 16, 16)


def network(opset: int) -> ModelProto:
    """Two convolutions, a skip, a head: FP32."""
    noise = np.random.default_rng(0)
    values = {
        "w0": noise.standard_normal((16, 3, 3, 3)) / 4,
        "b0": noise.standard_normal(16),
        "w1": noise.standard_normal((16, 16, 3, 3)) / 12,
        "b1": noise.standard_normal(16),
        "w2": noise.standard_normal((5, 16)) / 4,
        "b2": noise.standard_normal(5),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], name="conv0", pads=[1] * 4),
        helper.make_node("Relu", ["c0"], ["r0"], name="relu0"),
        helper.make_node("Conv", ["r0", "w1", "b1"], ["c1"], name="conv1", pads=[1] * 4),
        helper.make_node("Add", ["c1", "r0"], ["a"], name="add"),
        helper.make_node("GlobalAveragePool", ["a"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w2", "b2"], ["logits"], name="head", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (1, 5))],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """A file for every precision and typing, as edgetune's quantizer writes them."""
    from edgetune.quant import half
    from edgetune.quant.graph import Graph
    from edgetune.quant.prepare import prepare
    from edgetune.quant.quantizer import quantize_model

    folder = tmp_path_factory.mktemp("networks")
    batch = np.random.default_rng(1).standard_normal((8, *SHAPE[1:])).astype(np.float32)
    made = {("fp16", "weak"): network(17), ("fp16", "strong"): half.render(prepare(network(19), 19))}
    for typing in ("weak", "strong"):
        made["int8", typing] = quantize_model(network(17), [batch[i : i + 1] for i in range(8)], typing)[0]
    assert any(n.op_type == "QuantizeLinear" for n in Graph(made["int8", "weak"]).nodes)
    for (precision, typing), model in made.items():
        onnx.save(model, folder / f"{precision}-{typing}.onnx")
    return {(p, t): folder / f"{p}-{t}.onnx" for p, t in made}


@pytest.fixture(scope="session")
def image() -> np.ndarray:
    return np.random.default_rng(2).standard_normal(SHAPE).astype(np.float32)
