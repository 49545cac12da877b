"""Numbers and statuses in words, the same in the terminal, in Markdown and in HTML.

A number that is missing is an en dash. It knows nothing of where the words go. Standard library only.
"""

import math
import re

NONE = "–"
MINUS = "−"

# A float64 has no more of them.
MOST_DIGITS = 17


def amount(value: int | None) -> str:
    """Return a large number with its unit: `12.3 M`."""
    if value is None:
        return NONE
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{number(value / size)} {unit}"
    return str(value)


def doubts(why: str) -> list[str]:
    """Return why a measurement is not to be trusted, one reason each."""
    return why.split("; ")


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with so many significant digits, without trailing noise: `0.423`, `12.3`, `1.2e-6`."""
    if value is None or not math.isfinite(value):
        return NONE
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-3 or size >= 1e6:
        mantissa, exponent = f"{value:.{max(digits - 2, 0)}e}".split("e")
        return _signed(f"{mantissa}e{int(exponent)}")
    rounded = float(f"{value:.{digits}g}")
    decimals = max(digits - 1 - math.floor(math.log10(abs(rounded))), 0)
    return _signed(f"{rounded if decimals else round(value):,.{decimals}f}")


def count(value: int | None, one: str = "", many: str = "") -> str:
    """Return a whole number with separators, and its noun: `1 image`, `1,797 images`."""
    if value is None:
        return NONE
    noun = one if value == 1 else many or (f"{one}s" if one else "")
    return f"{value:,} {noun}".rstrip()


def signed(value: int) -> str:
    """Return a change: `+1`, `−2`, and nothing for none."""
    return "" if value == 0 else f"+{value}" if value > 0 else f"{MINUS}{-value}"


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share as per cent: 0.9917 is `99.2%`. Less than everything is never shown as `100%`."""
    if share is None or not math.isfinite(share):
        return NONE
    limit = 100 - 10.0**-digits
    shown = min(100 * share, limit) if share < 1 else 100 * share
    return _signed(f"{shown:.{digits}f}%")


def points(value: float | None, digits: int = 2) -> str:
    """Return points of accuracy, with a sign where they are below zero: `0.28`."""
    return NONE if value is None else _signed(f"{value:.{digits}f}")


def milliseconds(value: float | None) -> str:
    """Return a duration: `0.423 ms`."""
    return NONE if value is None else f"{number(value)} ms"


def seconds(value: float | None) -> str:
    """Return a longer duration: `41 s`, `3 min 20 s`, `2 h 5 min`."""
    if value is None:
        return NONE
    if value < 9.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(value: int | None) -> str:
    """Return a size in decimal units: `812 B`, `1.62 MB`."""
    if value is None:
        return NONE
    if value < 1000:
        return f"{value} B"
    if value < 999_500:
        return f"{number(value / 1e3)} kB"
    return f"{number(value / 1e6)} MB"


def times(value: float | None) -> str:
    """Return a ratio: `1.92×`."""
    return NONE if value is None else f"{number(value)}×"


def quantity(value: float | None, unit: str, limit: float | None = None) -> str:
    """Return a gate's value with its unit, with as many digits as it takes to see on which side of the limit.

    94.996% below a limit of 95% is not shown as 95.00%, which would pass.
    """
    if value is None or not math.isfinite(value):
        return NONE
    text = _quantity(value, unit.strip(), 0)
    for more in range(1, MOST_DIGITS):
        if limit is None or _side(_read(text), limit) == _side(value, limit):
            break
        text = _quantity(value, unit.strip(), more)
    return text


def _quantity(value: float, unit: str, more: int) -> str:
    """Return a value with its unit and so many more digits than usual."""
    if unit in ("%", "percent"):
        return percent(value / 100, digits=2 + more)
    if unit in ("point", "points"):
        return f"{points(value, 2 + more)} points"
    if unit in ("x", "×", "times"):
        return f"{number(value, 3 + more)}×"
    # Cosines: the digits that matter come after the nines.
    figure = number(value, more + (5 if not unit and 0.9 < abs(value) <= 1 else 3))
    return f"{figure} {unit}".rstrip()


def _side(value: float, limit: float) -> int:
    return (value > limit) - (value < limit)


def _read(text: str) -> float:
    """Return the number that a text begins with."""
    figure = re.match(rf"[\d.,e{MINUS}-]+", text)
    return float(figure[0].replace(MINUS, "-").replace(",", "")) if figure else math.nan


def bound(limit: float | None, direction: str, unit: str) -> str:
    """Return a gate's limit as it was written: `≤ 1 point`, `≥ 95%`."""
    if limit is None:
        return NONE
    sign = "≤" if direction == "max" else "≥"
    unit = unit.strip()
    word = {"percent": "%", "%": "%", "x": "×", "times": "×", "×": "×"}.get(unit, f" {unit}".rstrip())
    if unit == "points" and limit == 1:
        word = " point"
    return f"{sign} {_signed(f'{limit:.12g}')}{word}"


def interval(low: float | None, high: float | None, unit: str = "", limit: float | None = None) -> str:
    """Return an interval, or nothing where there is none; both ends on their side of the limit."""
    if low is None or high is None:
        return ""
    one, two = quantity(low, unit, limit), quantity(high, unit, limit)
    shared = re.fullmatch(r"[\d.,e−-]+(%|×| .+)", two)
    if shared and one.endswith(shared[1]):
        one = one.removesuffix(shared[1])
    return f"{one} to {two}"


def change(before: str, after: str) -> tuple[str, str]:
    """Return two figures for `before → after`: a unit that both share is said once."""
    figure, _, unit = before.partition(" ")
    return (figure, after) if unit and after.endswith(f" {unit}") else (before, after)


def when(made_at: str) -> str:
    """Return an ISO time as people read it: `2026-11-21 10:00 UTC`."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d)(:\d\d(\.\d+)?)?(\+00:00|Z)", made_at)
    return f"{match[1]} {match[2]} UTC" if match else made_at


def middle(text: str, width: int) -> str:
    """Shorten a text to so many characters by leaving out its middle."""
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"


def _signed(text: str) -> str:
    """A proper minus sign, and none before zero."""
    if not text.startswith("-"):
        return text
    return MINUS + text[1:] if re.search(r"[1-9]", text.split("e")[0]) else text[1:]
