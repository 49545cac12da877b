"""What each node takes: names, bytes and operations against what the network says of itself."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetune.engines.profiling import nodes, operations, roof


def network() -> bytes:
    """A convolution of 3 to 8 channels, pooled, and a matrix product."""
    noise = np.random.default_rng(0)
    weights = {"k": (8, 3, 3, 3), "w": (8, 5)}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "k"], ["c"], "conv", pads=[1, 1, 1, 1]),
            helper.make_node("MaxPool", ["c"], ["m"], "most", kernel_shape=[2, 2], strides=[2, 2]),
            helper.make_node("GlobalAveragePool", ["m"], ["p"], "pool"),
            helper.make_node("Flatten", ["p"], ["f"], "flat"),
            helper.make_node("MatMul", ["f", "w"], ["y"], "product"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5])],
        [numpy_helper.from_array(noise.normal(size=s).astype(np.float32), n) for n, s in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def test_every_node_with_its_time_bytes_and_operations() -> None:
    found = nodes(network(), {"x": np.ones((1, 3, 16, 16), np.float32)}, runs=3)
    kinds = {node["kind"]: node for node in found if node["kind"] != "ReorderOutput"}
    assert {"Conv", "GlobalAveragePool", "MatMul"} <= set(kinds)
    assert all(node["ms"] >= 0 and node["precision"] == "fp32" for node in found)
    # 8 x 16 x 16 values of 3 x 3 x 3 products each; ONNX Runtime may fill channels up.
    assert kinds["Conv"]["operations"] in (2 * 2048 * 27, 4 * 2048 * 27)
    assert kinds["MatMul"]["operations"] == 2 * 8 * 5
    # 8 x 8 x 8 values of 2 x 2 each.
    assert kinds["MaxPool"]["operations"] in (512 * 4, 2 * 512 * 4)
    # What it reads, the weights that the kernel has repacked among it, and what it writes.
    assert kinds["MatMul"]["bytes"] >= 4 * (8 + 8 * 5 + 5)


@pytest.mark.parametrize(
    ("kind", "reads", "writes", "weights", "expected"),
    [
        ("Conv", [(1, 4, 8, 8), (16, 4, 3, 3)], [(1, 16, 8, 8)], [(16, 4, 3, 3)], 2 * 1024 * 36),
        ("QLinearConv", [(1, 8, 8, 4), (), ()], [(1, 8, 8, 16)], [(16, 4, 1, 1), (16,)], 2 * 1024 * 4),
        ("Conv", [(1, 4, 8, 8)], [(1, 16, 8, 8)], [], None),
        ("QGemm", [(2, 32), (), (), (10, 32)], [(2, 10)], [], 2 * 20 * 32),
        ("MatMulIntegerToFloat", [(2, 32), (32, 10)], [(2, 10)], [], 2 * 20 * 32),
        ("ReorderInput", [(2, 32)], [(32, 2)], [], 0),
        ("QLinearAdd", [(2, 32), (), (), (2, 32)], [(2, 32)], [], 64),
        ("QuantizeLinear", [(2, 32), ()], [(2, 32)], [], 64),
        ("SkipLayerNormalization", [(2, 32), (2, 32)], [(2, 32)], [], 64),
        ("BiasGelu", [(2, 32), (32,)], [(2, 32)], [], 64),
        ("Attention", [(1, 4, 32), (32, 96)], [(1, 4, 32)], [], None),
    ],
)
def test_operations(
    kind: str,
    reads: list[tuple[int, ...]],
    writes: list[tuple[int, ...]],
    weights: list[tuple[int, ...]],
    expected: int | None,
) -> None:
    assert operations(kind, reads, writes, weights) == expected


def test_a_roof_is_measured() -> None:
    found = roof(1, side=64, seconds=0.01)
    assert min(found[name] or 0 for name in ("int8_ops_s", "fp32_ops_s", "bytes_s")) > 1e6
    assert "measured here" in found["source"]


def test_the_network_of_these_tests_is_valid() -> None:
    onnx.checker.check_model(onnx.load_from_string(network()))
