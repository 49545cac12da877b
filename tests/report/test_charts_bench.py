"""Charts of latencies and layers: what they say, and that a picture stands by itself."""

from xml.etree import ElementTree

from edgetune.report.charts_bench import layer_chart, picture, span_chart


def model(p50: float) -> dict[str, float]:
    return {
        "p50_ms": p50,
        "p50_low_ms": 0.9 * p50,
        "p50_high_ms": 1.1 * p50,
        "p90_ms": 1.3 * p50,
        "p99_ms": 9 * p50,
    }


def layer(name: str, ms: float, roof: float | None) -> dict[str, object]:
    return {"name": name, "ms": ms, "roofline_ms": roof}


def test_medians_are_named_the_fastest_first() -> None:
    drawn = span_chart({"slow": model(2.0), "fast": model(1.0)})
    assert 'aria-label="Medians with intervals: fast 1.00 ms, slow 2.00 ms."' in drawn
    assert "tails go beyond the edge" in drawn
    assert drawn == span_chart({"slow": model(2.0), "fast": model(1.0)})


def test_layers_with_and_without_a_roofline() -> None:
    drawn = layer_chart("m", [layer("/conv_output_0_nchwc", 0.5, 0.1), layer("pool", 0.2, None)])
    assert ">/conv<" in drawn
    assert "roofline" in drawn
    assert "roofline" not in layer_chart("m", [layer("pool", 0.2, None)])
    assert layer_chart("m", []) == ""


def test_a_picture_stands_by_itself() -> None:
    root = ElementTree.fromstring(picture(span_chart({"m": model(1.0)})))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert float(root.attrib["width"]) > 300
    assert "var(--" not in ElementTree.tostring(root, encoding="unicode")
