"""Multiply-accumulates from shapes alone."""

import pytest
from small_networks import network, node

from edgetune.quant.graph import Graph, infer_types
from edgetune.quant.macs import multiply_accumulates


@pytest.mark.parametrize(
    ("made", "shape", "weight", "macs"),
    [
        (
            node("Conv", "x w", "y", kernel_shape=[3, 3], pads=[1] * 4),
            (2, 4, 8, 8),
            (6, 4, 3, 3),
            2 * 6 * 64 * 36,
        ),
        (node("Conv", "x w", "y", kernel_shape=[3, 3], group=4), (1, 4, 8, 8), (4, 1, 3, 3), 4 * 36 * 9),
        (node("Conv", "x w", "y", kernel_shape=[1, 1]), ("N", 4, 8, 8), (6, 4, 1, 1), 6 * 64 * 4),
        (
            node("ConvTranspose", "x w", "y", kernel_shape=[2, 2], strides=[2, 2]),
            (1, 4, 8, 8),
            (4, 6, 2, 2),
            4 * 64 * 24,
        ),
        (node("Gemm", "x w", "y", transB=1), (3, 5), (7, 5), 3 * 7 * 5),
        (node("MatMul", "x w", "y"), (2, 3, 5), (5, 7), 2 * 3 * 7 * 5),
        (node("Conv", "x w", "y", kernel_shape=[1, 1]), (1, 4, "H", 8), (6, 4, 1, 1), 0),
        (node("Add", "x w", "y"), (3, 5), (3, 5), 0),
    ],
)
def test_as_the_definition_says(made, shape, weight, macs) -> None:
    model = infer_types(network([made], {"x": shape}, ["y"], {"w": weight}))
    assert multiply_accumulates(Graph(model), made) == macs
