"""Charts: text that stays text, ids of their own, the page's colours, nothing where nothing is to draw."""

import re
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgetune.report import charts, charts_int8, drawing
from edgetune.report.schema import ClassRow, Epoch, Latency, Timing, Training, Transfer, read_report


def drawn(report: dict[str, Any]) -> dict[str, str]:
    typed = read_report(report)
    assert typed.training
    assert typed.accuracy
    found = dict(charts.training_charts(typed.training))
    found["classes"] = charts.class_chart(typed.accuracy.per_class)
    if typed.transfer:
        found["transfer"] = charts.transfer_chart(typed.transfer)
    if typed.latency:
        found["latency"] = charts.latency_chart(typed.latency)
    found["layers"] = charts_int8.layer_chart(typed.layers)
    found["settling"] = charts_int8.settling_chart(typed.calibration)
    found = {name: chart for name, chart in found.items() if chart}
    assert len(found) >= 3
    return found


@pytest.mark.slow
def test_charts_are_svg_with_text_and_a_label(any_report: dict[str, Any]) -> None:
    for name, chart in drawn(any_report).items():
        root = ElementTree.fromstring(chart)
        assert root.tag == "svg", name
        assert root.get("role") == "img"
        assert root.get("aria-label")
        assert root.get("viewBox", "").startswith(f"0 0 {drawing.WIDTH} ")
        assert root.get("width") is None, "the page decides"
        assert list(root.iter("text")), "text stays text"
        assert "font-family" not in chart
        assert "matplotlib" not in chart


@pytest.mark.slow
def test_charts_share_no_id(any_report: dict[str, Any]) -> None:
    every = [i for chart in drawn(any_report).values() for i in re.findall(r' id="([^"]+)"', chart)]
    assert len(every) > 10
    assert len(every) == len(set(every))


@pytest.mark.slow
def test_every_stand_in_becomes_a_variable(any_report: dict[str, Any]) -> None:
    for chart in drawn(any_report).values():
        assert "#0100" not in chart
        assert "var(--second)" in chart


@pytest.mark.slow
def test_someone_s_own_settings_have_no_say(samples: Any) -> None:
    before = drawn(samples["quickstart"]())
    with mpl.rc_context(
        {"font.size": 30, "axes.facecolor": "pink", "svg.fonttype": "path", "lines.linewidth": 9}
    ):
        assert drawn(samples["quickstart"]()) == before


def test_nothing_to_draw_is_no_chart() -> None:
    assert charts.training_charts(Training()) == []
    assert charts.training_charts(Training(epochs=(Epoch(epoch=1),))) == []
    assert charts.transfer_chart(Transfer()) == ""
    assert charts.class_chart([]) == ""
    assert charts.class_chart([ClassRow(name="a", images=0, fp32=0, int8=0)]) == ""
    assert charts.latency_chart(Latency()) == ""
    assert charts.latency_chart(Latency(models={"fp32": Timing(samples_ms=(1.0,))})) == ""


@pytest.mark.filterwarnings("error")
def test_little_to_draw_is_drawn_without_complaint() -> None:
    assert (
        len(charts.training_charts(Training(epochs=(Epoch(epoch=1, loss=1.0, val_top1=0.5),), best_epoch=1)))
        == 2
    )
    assert charts.class_chart([ClassRow(name="名前 \\alpha $x", images=3, fp32=0, int8=0)])
    same = {"fp32": Timing(samples_ms=(1.0,) * 9, p50_ms=1.0), "int8": Timing(samples_ms=(1.0,) * 9)}
    assert charts.latency_chart(Latency(models=same))


def test_class_names_are_text_and_shortened_in_the_middle() -> None:
    chart = charts.class_chart([ClassRow(name='<i>"$&' + "x" * 99 + "end", images=2, fp32=1, int8=2)])
    texts = [element.text or "" for element in ElementTree.fromstring(chart).iter("text")]
    assert any(text.startswith('<i>"$&') and text.endswith("end") and "…" in text for text in texts)
    assert "<i>" not in chart


@pytest.mark.slow
def test_slow_runs_do_not_squeeze_the_chart_and_are_counted(samples: Any) -> None:
    report = samples["quickstart"]()
    report["latency"]["models"]["fp32"]["samples_ms"][0] = 8000.0
    chart = drawn(report)["latency"]
    assert re.search(r"[\d.]+% of the runs were slower", chart)
    ticks = [element.text or "" for element in ElementTree.fromstring(chart).iter("text")]
    assert max(float(tick) for tick in ticks if re.fullmatch(r"[\d.]+", tick)) < 1


@pytest.mark.slow
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_may_be_missing(spoiled: st.SearchStrategy[dict[str, Any]], data: st.DataObject) -> None:
    typed = read_report(data.draw(spoiled))
    found = [chart for _, chart in charts.training_charts(typed.training or Training())]
    found.append(charts.transfer_chart(typed.transfer or Transfer()))
    found.append(charts.class_chart(typed.accuracy.per_class if typed.accuracy else []))
    found.append(charts.latency_chart(typed.latency or Latency()))
    found.append(charts_int8.layer_chart(typed.layers))
    found.append(charts_int8.settling_chart(typed.calibration))
    for chart in filter(None, found):
        assert "None" not in chart
        ElementTree.fromstring(chart)
