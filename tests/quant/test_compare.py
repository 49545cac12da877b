"""FP32 beside INT8: figures per output, agreement of classifiers, and what cannot be compared."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgetune.errors import ConfigError, StageError
from edgetune.quant.compare import SQNR_CEILING_DB, Comparison, Decisions, compare

LOGITS = st.integers(2, 6).flatmap(
    lambda n: st.lists(st.lists(st.floats(-50, 50, width=32), min_size=3, max_size=3), min_size=n, max_size=n)
)


@given(LOGITS, st.integers(0, 2**31), st.integers(1, 6))
def test_batches_do_not_change_the_comparison(rows: list[list[float]], seed: int, cut: int) -> None:
    reference = np.array(rows, np.float32)
    other = reference + np.random.default_rng(seed).normal(0, 0.1, reference.shape).astype(np.float32)
    assume(reference.std() > 1e-3)
    whole, parts = Comparison(), Comparison()
    whole.add(reference, other)
    for side in (slice(0, cut), slice(cut, None)):
        if len(reference[side]):
            parts.add(reference[side], other[side])
    first, second = whole.figures(), parts.figures()
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert second[key] == pytest.approx(value, rel=1e-6, abs=1e-9), key
    assert -1 <= first["cosine_min"] <= first["cosine_mean"] <= 1
    json.dumps(first, allow_nan=False)


def test_a_common_offset_of_the_logits_does_not_drown_their_deviation() -> None:
    reference = (1e4 + np.random.default_rng(0).normal(size=(64, 5))).astype(np.float32)
    both = Comparison()
    for half in (reference[:40], reference[40:]):
        both.add(half, half + np.float32(0.25))
    assert both.figures()["difference_over_std"] == pytest.approx(
        0.25 / reference.std(dtype=np.float64), rel=1e-6
    )


def test_zeros_and_constants_give_numbers() -> None:
    zeros, ones = np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)
    for reference, other, cosine, ratio in (
        (zeros, zeros, 1.0, SQNR_CEILING_DB),
        (zeros, ones, 0.0, -SQNR_CEILING_DB),
        (ones, zeros, 0.0, 0.0),
    ):
        both = Comparison()
        both.add(reference, other)
        figures = both.figures()
        assert (figures["cosine_mean"], figures["sqnr_db"]) == (cosine, ratio)
        json.dumps(figures, allow_nan=False)


FLOAT = TensorProto.FLOAT


def network(
    *nodes: tuple[str, list[str], str], batch: int | str = "n", width: int = 4, **constants: np.ndarray
) -> ModelProto:
    """Nodes as (operator, inputs, output); every output that no node reads is one of the network's."""
    made = [helper.make_node(kind, inputs, [out]) for kind, inputs, out in nodes]
    read = {name for _, inputs, _ in nodes for name in inputs}
    graph = helper.make_graph(
        made,
        "net",
        [helper.make_tensor_value_info("x", FLOAT, [batch, width])],
        [
            helper.make_tensor_value_info(out, TensorProto.INT64 if kind == "ArgMax" else FLOAT, None)
            for kind, _, out in nodes
            if out not in read
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def shifted(by: float, batch: int | str = "n") -> ModelProto:
    return network(("Add", ["x", "c"], "y"), batch=batch, c=np.array([by, 0, 0, 0], np.float32))


INPUTS = np.random.default_rng(0).standard_normal((10, 4)).astype(np.float32)


@pytest.mark.parametrize("batch", [1, 4, "n"])
def test_a_classifier_is_judged_by_agreement(batch: int | str, tmp_path: Path) -> None:
    bent = INPUTS + np.array([1, 0, 0, 0], np.float32)
    same = np.count_nonzero(INPUTS.argmax(1) == bent.argmax(1))
    assert 0 < same < 10, "or the figures below say nothing"
    onnx.save(shifted(0, batch), tmp_path / "fp32.onnx")
    int8 = shifted(1, batch)
    for model in (int8, int8.SerializeToString()):
        found = compare(tmp_path / "fp32.onnx", model, [INPUTS[:7], INPUTS[7:]], exact=True)
        assert (found["images"], found["agreed"], found["agreement"]) == (10, same, same / 10)
        assert found["agreement_low"] < same / 10 < found["agreement_high"]
        assert found["exact"] is True
        figures = found["outputs"]["y"]
        assert figures["difference"] == pytest.approx(1)
        expected = 10 * np.log10((INPUTS.astype(np.float64) ** 2).sum() / 10)
        assert figures["sqnr_db"] == pytest.approx(expected, abs=1e-5)
        json.dumps(found, allow_nan=False)


def test_maps_and_several_outputs_get_figures_and_no_agreement() -> None:
    shape = np.array([-1, 1, 2, 2], np.int64)
    maps = [
        network(("Add", ["x", "c"], "s"), ("Reshape", ["s", "d"], "y"), c=np.float32([c, 0, 0, 0]), d=shape)
        for c in (0, 1)
    ]
    found = compare(*maps, [INPUTS])
    assert "agreement" not in found
    assert found["outputs"]["y"]["images"] == 10
    double = [network(("Relu", ["x"], "a"), ("Neg", ["x"], "b")) for _ in range(2)]
    found = compare(*double, [INPUTS])
    assert "agreement" not in found
    assert [found["outputs"][name]["sqnr_db"] for name in "ab"] == [SQNR_CEILING_DB] * 2


def test_one_value_per_input_is_no_choice_and_a_1x1_map_is() -> None:
    single = network(("ReduceMean", ["x"], "y"))
    assert "agreement" not in compare(single, single, [INPUTS])
    pixel = network(("Reshape", ["x", "d"], "y"), d=np.array([-1, 4, 1, 1], np.int64))
    assert compare(pixel, pixel, [INPUTS])["agreed"] == 10


def test_integers_are_counted_where_they_are_the_same() -> None:
    nets = [
        network(("Add", ["x", "c"], "s"), ("ArgMax", ["s"], "y"), c=np.float32([c, 0, 0, 0])) for c in (0, 1)
    ]
    for model in nets:
        model.graph.node[1].attribute.append(helper.make_attribute("axis", 1))
    same = np.count_nonzero(INPUTS.argmax(1) == (INPUTS + np.float32([1, 0, 0, 0])).argmax(1))
    found = compare(*nets, [INPUTS[:3], INPUTS[3:]])
    assert found["outputs"]["y"] == {"same": same / 10}
    assert "agreement" not in found


def test_outputs_of_unlike_shapes_are_not_compared() -> None:
    wide = network(("Concat", ["x", "x"], "y"))
    wide.graph.node[0].attribute.append(helper.make_attribute("axis", 1))
    found = compare(shifted(0), wide, [INPUTS])
    assert found["outputs"]["y"] == {"unlike": "[1, 4] in FP32, [1, 8] in INT8"}
    json.dumps(found, allow_nan=False)


def test_several_inputs_come_by_name(net: Callable[..., object]) -> None:
    both = network(("Add", ["x", "z"], "y"), batch=2)
    both.graph.input.append(helper.make_tensor_value_info("z", FLOAT, [2, 4]))
    feeds = [{"x": INPUTS[i : i + 2], "z": INPUTS[i : i + 2]} for i in (0, 2)]
    found = compare(both, both, feeds)
    assert (found["images"], found["agreed"]) == (4, 4)
    with pytest.raises(ConfigError, match="has 2 inputs"):
        compare(both, both, [INPUTS])
    with pytest.raises(ConfigError, match="takes x, z, not x"):
        compare(both, both, [{"x": INPUTS[:2]}])
    with pytest.raises(ConfigError, match=r"'z' takes float32 \[2, 4\], not float32 \[3, 4\]"):
        compare(both, both, [{"x": INPUTS[:2], "z": INPUTS[:3]}])


def test_what_is_no_number_is_named() -> None:
    log = network(("Log", ["x"], "y"))
    with pytest.raises(StageError, match="FP32 network's output 'y' holds NaN"):
        compare(log, shifted(0), [INPUTS])
    with pytest.raises(StageError, match="INT8 network's output 'y' holds NaN"):
        compare(shifted(0), log, [INPUTS])
    with pytest.raises(StageError, match="no inputs"):
        compare(log, log, [])


def test_the_expected_agreement_is_what_many_inputs_come_to() -> None:
    noise = np.random.default_rng(0)
    reference = 3 * noise.standard_normal((4000, 20))
    for size in (0.1, 0.3, 0.6):
        decisions = Decisions()
        decisions.add(reference[:100], reference[:100] + size * noise.standard_normal((100, 20)))
        other = reference + size * noise.standard_normal(reference.shape)
        came = float((other.argmax(axis=1) == reference.argmax(axis=1)).mean())
        expected = decisions.figures()["agreement_expected"]
        assert expected == pytest.approx(came, abs=0.05)
    # What softmax does not see does not count.
    exact = Decisions()
    exact.add(reference, reference + noise.standard_normal((4000, 1)))
    found = exact.figures()
    assert found["decision_db"] > 150
    assert found["agreement"] == 1
    assert found["agreement_expected"] == pytest.approx(1)
    assert found["agreement_at_least"] == pytest.approx(1)


@pytest.mark.parametrize(("classes", "size"), [(3, 0.1), (10, 0.6), (1000, 0.6)])
def test_few_inputs_expect_what_many_show_and_promise_less(classes: int, size: float) -> None:
    noise, draws = np.random.default_rng(0), 100
    reference = 3 * noise.standard_normal((32 * draws, classes))
    other = reference + size * noise.standard_normal(reference.shape)
    truth = float((other.argmax(axis=1) == reference.argmax(axis=1)).mean())
    found = []
    for start in range(0, len(reference), 32):
        few = Decisions()
        few.add(reference[start : start + 32], other[start : start + 32])
        found.append(few.figures())
        assert found[-1]["agreement_at_least"] < found[-1]["agreement_expected"]
    assert np.mean([figures["agreement_expected"] for figures in found]) == pytest.approx(truth, abs=0.01)
    # 90% are promised of normally distributed chances; those near 1 are skewed, and fewer hold.
    assert np.mean([figures["agreement_at_least"] <= truth for figures in found]) > 0.65


def test_two_classes_have_one_runner_up() -> None:
    decisions = Decisions()
    decisions.add(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[0.9, 0.0], [0.0, 1.2]]))
    assert 0.99 < decisions.figures()["agreement_expected"] < 1
