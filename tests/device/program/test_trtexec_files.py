"""What trtexec writes is read whole, whatever layers are called; what is cut or damaged is refused by name."""

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.device.program.problem import Problem
from edgetune.device.program.trtexec_files import (
    read_layers,
    read_outputs,
    read_profile,
    read_times,
)

# Any bytes but zero; not the writer's own next words, which no reader could tell from them.
names = st.binary(max_size=30).map(lambda raw: raw.replace(b"\0", b"").decode("utf-8", "surrogateescape"))
awkward = st.sampled_from(
    ['"', "\\", 'a"b', '", "timeMs', "{", "} ,", "]", "\x1e", "\n", '"\n  , "dimensions', "[V]"]
)
any_name = st.one_of(names, awkward, st.tuples(names, awkward, names).map("".join))
values = st.floats(width=32, allow_nan=True, allow_infinity=True)
spans = st.floats(0, 1e5)


def read(reader: Callable[[str], Any], content: str | bytes) -> Any:
    raw = content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "told.json"
        path.write_bytes(raw)
        return reader(str(path))


def six(value: float) -> float:
    return float(f"{value:g}")


def outputs_text(tensors: dict[str, list[float]]) -> str:
    parts = [
        f'{{ "name" : "{name}"\n  , "dimensions" : "1x{len(row)}"\n  , "values" : [ '
        f"{', '.join(f'{value:g}' for value in row)} ]\n  }}\n"
        for name, row in tensors.items()
    ]
    return "[\n  " + ", ".join(parts) + "]\n"


def profile_text(layers: list[tuple[str, float, float]]) -> str:
    lines = [
        f', {{ "name" : "{name}", "timeMs" : {10 * average:g}, "averageMs" : {average:g}, "medianMs" : {median:g}, '
        f'"percentage" : 5 }}\n'
        for name, average, median in layers
    ]
    return '[\n  { "count" : 10 }\n' + "".join(lines) + "]\n"


def times_text(rows: list[tuple[float, float]]) -> str:
    lines = [f'{{ "startEnqMs" : 2001.1, "computeMs" : {c:g}, "latencyMs" : {t:g} }}\n' for c, t in rows]
    return "[\n  " + ", ".join(lines) + "]\n"


@given(st.dictionaries(any_name, st.lists(values, min_size=1, max_size=5), min_size=1, max_size=4))
def test_outputs_of_any_name_and_value(tensors: dict[str, list[float]]) -> None:
    told = read(read_outputs, outputs_text(tensors))
    assert [*told] == [*tensors]
    for name, row in tensors.items():
        np.testing.assert_array_equal(told[name], [six(value) for value in row])


@given(st.lists(st.tuples(any_name, spans, spans), max_size=5))
def test_layers_of_any_name(layers: list[tuple[str, float, float]]) -> None:
    told = read(read_profile, profile_text(layers))
    assert told["count"] == 10
    assert [(layer["name"], layer["average_ms"], layer["median_ms"]) for layer in told["layers"]] == [
        (name, six(average), six(median)) for name, average, median in layers
    ]


@given(st.lists(st.tuples(spans, spans), min_size=1, max_size=5))
def test_times(rows: list[tuple[float, float]]) -> None:
    told = read(read_times, times_text(rows))
    assert told == {"compute_ms": [six(c) for c, _ in rows], "latency_ms": [six(t) for _, t in rows]}


WHOLE = {
    "outputs": (read_outputs, outputs_text({"a": [1.5, math.nan], 'b"': [-math.inf]})),
    "profile": (read_profile, profile_text([("conv", 1, 2), ('re"lu', 3, 4)])),
    "times": (read_times, times_text([(1.25, 1.5), (1.5, 1.75)])),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_cut_file_is_refused_by_name_wherever_it_is_cut(kind: str) -> None:
    reader, text = WHOLE[kind]
    assert read(reader, text)
    body = text.rstrip()
    assert len(body) > 50
    for end in range(len(body)):
        with pytest.raises(Problem, match=r"told\.json"):
            read(reader, body[:end])


@pytest.mark.parametrize("kind", WHOLE)
@given(st.binary(max_size=60))
def test_any_bytes_are_refused_by_name(kind: str, raw: bytes) -> None:
    with pytest.raises(Problem, match=r"told\.json"):
        read(WHOLE[kind][0], raw)


@pytest.mark.parametrize("kind", WHOLE)
@given(st.data())
def test_damage_is_refused_or_stays_where_it_is(kind: str, data: st.DataObject) -> None:
    """A changed byte may change a name or a number; it never ends in another error."""
    reader, text = WHOLE[kind]
    place = data.draw(st.integers(0, len(text) - 1))
    damaged = text[:place] + data.draw(st.sampled_from('0x"]},[ nan\x00')) + text[place + 1 :]
    told: Any = ""
    try:
        told = read(reader, damaged)
    except Problem as refused:
        told = refused.message if "told.json" in refused.message else None
    assert told


@pytest.mark.parametrize("kind", WHOLE)
def test_a_missing_file_and_more_after_the_end(kind: str, tmp_path: Path) -> None:
    reader, text = WHOLE[kind]
    with pytest.raises(Problem, match=r"none\.json"):
        reader(str(tmp_path / "none.json"))
    with pytest.raises(Problem, match=r"told\.json"):
        read(reader, text + "[")


def test_values_must_fill_the_dimensions() -> None:
    text = outputs_text({"a": [1, 2, 3]})
    with pytest.raises(Problem, match="1x4"):
        read(read_outputs, text.replace("1x3", "1x4"))
    assert read(read_outputs, text.replace("1x3", "3x1")) == {"a": [1, 2, 3]}


def test_two_outputs_of_one_name_are_damage() -> None:
    text = outputs_text({"a": [1], "b": [2]})
    assert read(read_outputs, text) == {"a": [1], "b": [2]}
    with pytest.raises(Problem, match="'a'"):
        read(read_outputs, text.replace('"b"', '"a"'))


def test_a_damaged_record_does_not_swallow_the_next() -> None:
    outputs, layers = outputs_text({"a": [1], "b": [2]}), profile_text([("c", 1, 2), ("d", 3, 4)])
    with pytest.raises(Problem, match=r"told\.json"):
        read(read_outputs, outputs.replace("1x1", "1y1", 1))
    with pytest.raises(Problem, match=r"told\.json"):
        read(read_profile, layers.replace('"averageMs" : 1', '"averageMs" : ?'))


@pytest.mark.parametrize("row", [(math.nan, 1.0), (1.0, math.inf), (-1.0, 1.0)])
def test_times_that_are_no_times(row: tuple[float, float]) -> None:
    with pytest.raises(Problem, match=r"told\.json"):
        read(read_times, times_text([row]))
    with pytest.raises(Problem, match=r"told\.json"):
        read(read_times, times_text([row]).replace("nan", "NaN").replace("inf", "Infinity"))


def test_a_profile_without_medians_is_from_before_84() -> None:
    text = profile_text([("conv", 1, 2)]).replace(', "medianMs" : 2', "")
    assert read(read_profile, text)["layers"][0]["median_ms"] is None


def test_layer_information_with_control_characters(tmp_path: Path) -> None:
    text = '{"Layers": [{"Name": "a\x1eb"}]}'
    assert read(read_layers, text) == text
    assert read(read_layers, text[:-1]) is None
    assert read_layers(str(tmp_path / "none.json")) is None
