"""The one place that counts operations."""

import pytest

from edgetune import counting


@pytest.mark.parametrize(
    ("operator", "reads", "writes", "more", "expected"),
    [
        ("Conv", [(1, 4, 8, 8), (16, 4, 3, 3)], [(1, 16, 8, 8)], {}, 2 * 1024 * 36),
        ("Conv", [(1, 4, 8), (16, 4, 3)], [(1, 16, 8)], {}, 2 * 128 * 12),
        ("ConvTranspose", [(1, 4, 8, 8), (4, 2, 2, 2)], [(1, 2, 16, 16)], {}, 2 * 256 * 8),
        ("Gemm", [(2, 32), (10, 32)], [(2, 10)], {}, 2 * 20 * 32),
        ("MatMul", [(3, 5, 7), (7, 2)], [(3, 5, 2)], {}, 2 * 30 * 7),
        ("Einsum", [(3, 5, 7), (3, 2, 7)], [(3, 5, 2)], {"equation": "bij, bkj -> bik"}, 2 * 30 * 7),
        ("Relu", [(2, 32)], [(2, 32)], {}, 64),
        ("Softmax", [(2, 32)], [(2, 32)], {}, 64),
        ("ReduceMean", [(2, 32)], [(2, 1)], {}, 64),
        ("MaxPool", [(1, 4, 8, 8)], [(1, 4, 4, 4)], {"window": (3, 3)}, 64 * 9),
        ("Gather", [(1000, 32), (1, 4)], [(1, 4, 32)], {}, 0),
        ("Shape", [], [], {}, 0),
    ],
)
def test_as_the_definition_says(operator, reads, writes, more, expected) -> None:
    assert counting.operations(operator, reads, writes, **more) == expected


@pytest.mark.parametrize(
    ("operator", "reads", "writes", "more"),
    [
        ("LSTM", [(1, 4, 8)], [(1, 4, 8)], {}),
        ("Conv", [(1, 4, 8, 8)], [(1, 16, 8, 8)], {}),
        ("MatMul", [()], [()], {}),
        ("Einsum", [(3, 5)], [(3,)], {"equation": "...j->..."}),
        ("Relu", [], [], {}),
    ],
)
def test_what_is_not_known_is_no_figure(operator, reads, writes, more) -> None:
    assert counting.operations(operator, reads, writes, **more) is None
