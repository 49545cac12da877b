"""The time of a kernel: what must hold for any network, device and parameters near the fitted ones."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.estimates.kernels import Kernel, Kind, Precision
from edgetune.estimates.model import ARCHITECTURES, KINDS, Hardware, columns, seconds, sizes_of
from edgetune.estimates.parameters import load_parameters

VALUES = load_parameters().values


def kernel(
    kind: Kind = "conv", operations: int = 10**7, size: int = 10**5, depth: int = 576, weights: int = 10**4
) -> Kernel:
    """A kernel by itself."""
    int8, stored = kind == "conv", frozenset({"a"})
    return Kernel(
        "k", ("k",), kind, operations, {"a": size}, {"b": size}, weights, int8, stored, size, depth, 64, 64
    )  # fmt: skip


KERNELS = st.builds(
    kernel,
    kind=st.sampled_from(KINDS),
    operations=st.integers(0, 10**10),
    size=st.integers(1, 10**8),
    depth=st.integers(1, 10**4),
    weights=st.integers(0, 10**8),
)
HARDWARE = st.builds(
    Hardware,
    architecture=st.sampled_from(ARCHITECTURES),
    mhz=st.floats(100, 3000),
    bandwidth=st.floats(1e10, 1e12),
    int8=st.floats(1e12, 1e15),
    fp16=st.floats(1e11, 1e15),
    l2=st.floats(1e5, 1e8),
)
# The terms are floats: the same sum in another order may differ in the last digits.
SLACK = 1 - 1e-9


def time_of(one: Kernel, hardware: Hardware, precision: Precision = "fp16", graph: bool = False) -> float:
    """Seconds of one kernel."""
    return float(seconds(columns(sizes_of([one], precision), hardware), VALUES, graph).sum())


@given(KERNELS, HARDWARE, st.integers(1, 10**9))
def test_more_work_is_never_faster(one: Kernel, hardware: Hardware, more: int) -> None:
    before = time_of(one, hardware)
    assert before > 0
    assert time_of(replace(one, operations=one.operations + more), hardware) >= before * SLACK
    assert time_of(replace(one, weights=one.weights + more), hardware) >= before * SLACK
    assert time_of(replace(one, reads={"a": one.reads["a"] + more}), hardware) >= before * SLACK
    assert time_of(replace(one, depth=one.depth + more), hardware) >= before * SLACK


@given(KERNELS, HARDWARE, st.floats(1, 10))
def test_better_hardware_is_never_slower(one: Kernel, hardware: Hardware, factor: float) -> None:
    before = time_of(one, hardware, "int8")
    faster = replace(
        hardware, mhz=hardware.mhz * factor, int8=hardware.int8 * factor, fp16=hardware.fp16 * factor
    )
    assert time_of(one, faster, "int8") <= before / SLACK
    assert time_of(one, replace(hardware, bandwidth=hardware.bandwidth * factor), "int8") <= before / SLACK
    assert time_of(one, replace(hardware, l2=hardware.l2 * factor), "int8") <= before / SLACK


@given(KERNELS, HARDWARE)
def test_a_graph_launches_no_slower(one: Kernel, hardware: Hardware) -> None:
    assert time_of(one, hardware, graph=True) <= time_of(one, hardware)


@given(st.lists(KERNELS, min_size=1, max_size=5), HARDWARE)
def test_kernels_add_up(many: list[Kernel], hardware: Hardware) -> None:
    together = seconds(columns(sizes_of(many, "fp16"), hardware), VALUES)
    assert together == pytest.approx([time_of(one, hardware) for one in many])
    assert len(together) == len(many)


def test_int8_without_a_path_is_no_figure() -> None:
    without = Hardware("cuda", 900, 2.5e10, 0, 4.7e11, 2.6e5)
    assert np.isnan(time_of(kernel(), without, "int8"))
    assert time_of(kernel(), without, "fp16") > 0


def test_channels_are_padded() -> None:
    orin = Hardware("ampere", 1000, 1e11, 3e13, 1.5e13, 2e6)
    odd, whole = replace(kernel(), inner=9), replace(kernel(), inner=16)
    assert time_of(odd, orin) > time_of(whole, orin)
    assert sizes_of([replace(kernel(), inner=3)], "fp16").operations[0] == pytest.approx(10**7 * 4 / 3)


def test_a_tensor_that_stays_in_l2_moves_less() -> None:
    small = kernel(size=1000, operations=0, weights=0)
    sizes = sizes_of([small], "fp16")
    orin = Hardware("ampere", 1000, 1e11, 3e13, 1.5e13, 2e6)
    assert columns(sizes, orin).activations[0] < 0.01 * 4000
    assert columns(sizes, replace(orin, l2=0.0)).activations[0] == 4000
