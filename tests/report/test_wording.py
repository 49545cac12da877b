"""Numbers in words."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.report import wording


@pytest.mark.parametrize(("value", "shown"), [
    (None, "–"), (math.nan, "–"), (0, "0"), (0.4231, "0.423"), (12.345, "12.3"), (9.999, "10.0"),
    (999.7, "1,000"), (1234.5, "1,234"), (1.2e-6, "1.2e-6"), (-0.3, "−0.300"), (2.5e7, "2.5e7"),
])  # fmt: skip
def test_number(value: float | None, shown: str) -> None:
    assert wording.number(value) == shown


@given(st.floats(-1e300, 1e300), st.integers(2, 6))
def test_number_is_the_number(value: float, digits: int) -> None:
    shown = float(wording.number(value, digits).replace(wording.MINUS, "-").replace(",", ""))
    assert math.isclose(shown, value, rel_tol=0.51 * 10 ** (2 - digits))


@given(st.floats(0, 1, exclude_max=True))
def test_less_than_everything_is_never_all(share: float) -> None:
    assert float(wording.percent(share).rstrip("%")) < 100
    assert wording.percent(1.0) == "100.0%"


@pytest.mark.parametrize(("value", "unit", "shown"), [
    (0.277, "points", "0.28 points"), (-0.004, "points", "0.00 points"), (98.333, "%", "98.33%"),
    (98.333, "percent", "98.33%"), (0.99234, "", "0.99234"), (1.3e-6, "", "1.3e-6"),
    (3.4123, "ms", "3.41 ms"), (1.934, "times", "1.93×"), (None, "ms", "–"),
])  # fmt: skip
def test_quantity(value: float | None, unit: str, shown: str) -> None:
    assert wording.quantity(value, unit) == shown


@pytest.mark.parametrize(("value", "unit", "limit", "shown"), [
    (1.0033, "points", 1.0, "1.003 points"), (0.9999, "points", 1.0, "0.9999 points"),
    (1.0, "points", 1.0, "1.00 points"), (94.996, "%", 95.0, "94.996%"), (95.001, "%", 95.0, "95.001%"),
    (99.9999, "%", 100.0, "99.99%"), (4.0004, "ms", 4.0, "4.0004 ms"), (1.4999, "times", 1.5, "1.4999×"),
    (0.989999, "", 0.99, "0.989999"), (0.0010004, "", 0.001, "0.0010004"),
    (0.28, "points", 1.0, "0.28 points"),
])  # fmt: skip
def test_quantity_lies_where_it_was_judged(value: float, unit: str, limit: float, shown: str) -> None:
    assert wording.quantity(value, unit, limit) == shown


@given(
    st.integers(-(10**7), 10**7),
    st.integers(-(10**6), 10**6),
    st.sampled_from(["points", "times", "ms", "", "MB"]),
)
def test_no_rounding_contradicts_the_verdict(thousandths: int, billionths: int, unit: str) -> None:
    limit = thousandths / 1e3
    value = limit + billionths / 1e9
    figure = wording.quantity(value, unit, limit).split(" ")[0].rstrip("×").replace(",", "")
    shown = float(figure.replace(wording.MINUS, "-"))
    assert (shown > limit, shown < limit) == (value > limit, value < limit)


@given(st.floats(0, 100), st.floats(0, 100))
def test_no_percentage_contradicts_the_verdict(value: float, limit: float) -> None:
    # As the gates round: further digits of a share are noise.
    value, limit = round(value, 9), round(limit, 9)
    shown = float(wording.quantity(value, "%", limit).rstrip("%"))
    assert (shown > limit, shown < limit) == (value > limit, value < limit)


def test_an_interval_keeps_the_limit_inside() -> None:
    assert wording.interval(0.5, 1.0033, "points", 1.0) == "0.50 to 1.003 points"
    assert wording.interval(94.996, 96.0, "%", 95.0) == "94.996 to 96.00%"


@pytest.mark.parametrize(("limit", "direction", "unit", "shown"), [
    (1.0, "max", "points", "≤ 1 point"), (0.5, "max", "points", "≤ 0.5 points"), (95.0, "min", "%", "≥ 95%"),
    (0.001, "max", "", "≤ 0.001"), (4.0, "max", "ms", "≤ 4 ms"), (-1.0, "min", "", "≥ −1"),
    (1.8, "min", "times", "≥ 1.8×"), (94.99999, "min", "%", "≥ 94.99999%"),
])  # fmt: skip
def test_bound(limit: float, direction: str, unit: str, shown: str) -> None:
    assert wording.bound(limit, direction, unit) == shown


@pytest.mark.parametrize(("low", "high", "unit", "shown"), [
    (-0.2, 0.8, "points", "−0.20 to 0.80 points"), (94.4, 99.3, "%", "94.40 to 99.30%"),
    (1.9, 2.1, "times", "1.90 to 2.10×"), (0.9989, 0.9994, "", "0.99890 to 0.99940"), (None, 1.0, "", ""),
])  # fmt: skip
def test_interval_says_its_unit_once(low: float | None, high: float, unit: str, shown: str) -> None:
    assert wording.interval(low, high, unit) == shown


@pytest.mark.parametrize(("words", "shown"), [
    (wording.seconds(3.0), "3.0 s"), (wording.seconds(59.7), "1 min 0 s"),
    (wording.seconds(7500), "2 h 5 min"),
    (wording.size(812), "812 B"), (wording.size(999_999), "1.00 MB"), (wording.size(1_623_410), "1.62 MB"),
    (wording.count(1, "image"), "1 image"), (wording.count(1797, "image"), "1,797 images"),
    (wording.count(2, "class", "classes"), "2 classes"), (wording.count(None), "–"),
    (wording.signed(-2), "−2"), (wording.signed(0), ""), (wording.signed(3), "+3"),
    (wording.change("0.5 ms", "0.2 ms"), ("0.5", "0.2 ms")),
    (wording.change("1 MB", "5 kB"), ("1 MB", "5 kB")),
    (wording.when("2026-11-21T10:00:00+00:00"), "2026-11-21 10:00 UTC"), (wording.when("today"), "today"),
])  # fmt: skip
def test_small_words(words: object, shown: object) -> None:
    assert words == shown


@given(st.text(), st.integers(4, 40))
def test_middle_keeps_both_ends(text: str, width: int) -> None:
    short = wording.middle(text, width)
    assert len(short) <= max(width, 0)
    if short != text:
        head, tail = re.split("…", short, maxsplit=1) if text.count("…") == 0 else ("", "")
        assert text.startswith(head)
        assert text.endswith(tail)
