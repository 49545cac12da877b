"""Which layers hurt and how ranges settle, as pictures."""

import itertools
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.report import charts_int8
from edgetune.report.schema_int8 import Calibration, Layer, Settling


def texts(chart: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(chart).iter("text")]


def conv(name: str, sqnr: float | None = None, precision: str = "INT8") -> Layer:
    return Layer(name=f"/{name}/Conv", op="Conv", precision=precision, sqnr_db=sqnr)


def test_the_worst_five_are_named_and_float_layers_marked() -> None:
    layers = [conv(f"layer{n:02d}", 50.0 - n) for n in range(30)]
    said = texts(charts_int8.layer_chart(layers))
    assert [f"layer{n}" for n in range(25, 30)] == [text for text in said if text.startswith("layer")]
    assert {"INT8", "the 5 lowest"} <= set(said)
    assert "in float" not in said
    assert "in float" in texts(charts_int8.layer_chart([*layers, conv("last", precision="FP32")]))


def test_long_names_leave_room_and_stay_apart() -> None:
    layers = [conv(f"a/long/way/to/blocks.{n}/projection_of_all_queries", 50.0 - n) for n in range(30)]
    chart = charts_int8.layer_chart([*layers, conv("a/long/way/to/last", precision="FP32")])
    named = [text for text in texts(chart) if text.startswith("blocks.")]
    assert len(set(named)) == 5
    assert all(text.endswith("all_queries") for text in named)


@pytest.mark.filterwarnings("error")
def test_little_and_odd_noise_is_drawn_without_complaint() -> None:
    assert texts(charts_int8.layer_chart([conv("only", 3.0)])).count("only") == 1
    assert charts_int8.layer_chart([conv("a", -12.5), conv("b", 200.0), conv("<i>$x", -12.5)])
    assert charts_int8.layer_chart([conv(f"l{n}", 20.0) for n in range(900)])


def test_nothing_to_draw_is_no_chart() -> None:
    for layers in ([], [conv("a")], [conv("a", 200.0)], [conv("a", precision="FP32")]):
        assert charts_int8.layer_chart(layers) == ""
    assert charts_int8.settling_chart(Calibration()) == ""
    assert (
        charts_int8.settling_chart(Calibration(convergence=(Settling(images=1, median=0.0, p95=0.0),))) == ""
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("enough", [None, 4])
def test_settling_marks_how_many_were_enough(enough: int | None) -> None:
    steps = tuple(Settling(images=n, median=0.1 / n, p95=0.4 / n) for n in (1, 2, 4, 6))
    said = texts(charts_int8.settling_chart(Calibration(convergence=steps, enough_images=enough)))
    assert {"median", "95th percentile", "inputs", "1", "6"} <= set(said)
    assert ("enough: 4" in said) == (enough is not None)


@given(st.lists(st.integers(0, 10), unique=True, min_size=1).map(sorted), st.integers(1, 1024))
def test_numbers_below_the_axis_end_with_the_last(powers: list[int], last: int) -> None:
    images = [2**power for power in powers if 2**power < last] + [last]
    shown = charts_int8._apart(images)
    assert shown[-1] == last
    assert set(shown) <= set(images)
    assert shown == sorted(shown)


@given(st.lists(st.integers(0, 99), unique=True, min_size=1, max_size=5).map(sorted), st.floats(0.5, 19))
def test_names_stand_apart_in_order_and_inside(places: list[int], gap: float) -> None:
    spots = charts_int8._dodge(places, gap, -0.6, 99.6)
    assert all(after - before >= gap - 1e-6 for before, after in itertools.pairwise(spots))
    assert spots[0] >= -0.6 + gap / 2 - 1e-6
    assert spots[-1] <= 99.6 - gap / 2 + 1e-6
