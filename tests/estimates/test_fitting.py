"""The fit finds what made the rows, does not follow single devices, and a user's rows move what they speak of."""

import numpy as np
import pytest
from small_networks import residual

from edgetune.estimates.fitting import PRIORS, Fit, Row, Rows, fit, held_out, refit
from edgetune.estimates.fusing import kernels_of
from edgetune.estimates.model import Hardware, columns, seconds, sizes_of
from edgetune.estimates.network import read_network
from edgetune.estimates.parameters import load_parameters

CHIPS = {
    "a:MAX": ("ampere", 1300, 2e11, 8e13),
    "b:MAX": ("ampere", 900, 1e11, 3e13),
    "c:MAX": ("ampere", 600, 7e10, 2e13),
}
NETWORKS = {f"{channels}-{side}": (channels, side) for channels in (16, 128) for side in (16, 64, 200)}


def made_rows(slower: str = "", factor: float = 1.0) -> list[Row]:
    """Rows that the shipped parameters give, with one device off."""
    values, rows = load_parameters().values, []
    sizes = {
        name: sizes_of(kernels_of(read_network(residual(*shape))), "fp16") for name, shape in NETWORKS.items()
    }
    for target, (kind, mhz, bandwidth, peak) in CHIPS.items():
        hardware = Hardware(kind, mhz, bandwidth, peak, peak / 2, 2e6)
        for name, size in sizes.items():
            own = columns(size, hardware)
            ms = float(seconds(own, values).sum()) * 1e3 * (factor if target == slower else 1.0)
            rows.append(Row(own, target, name, "netspresso", ms))
    return rows


@pytest.fixture(scope="module")
def true_rows() -> list[Row]:
    """Rows without any error."""
    return made_rows()


def test_rows_are_predicted_as_their_source_measured_them(true_rows: list[Row]) -> None:
    values = {**load_parameters().values, "source_ultralytics": 1.1, "source_ultralytics_ms": 2.0}
    rows = [row._replace(measured="ultralytics") for row in true_rows[:2]]
    found = Rows(rows).predict(values, {"a:MAX": 1.5})
    assert found == pytest.approx([row.ms * 1.1 * 1.5 + 2.0 for row in true_rows[:2]])
    graph = Rows([true_rows[0]._replace(measured="mlperf")]).predict(load_parameters().values, {})
    assert graph[0] < true_rows[0].ms


def test_the_fit_explains_the_rows(true_rows: list[Row]) -> None:
    made = fit(true_rows)
    wrong = Rows(true_rows).predict(*made) / [row.ms for row in true_rows] - 1
    assert np.abs(wrong).max() < 0.08
    assert set(made.values) == set(PRIORS)


def test_a_device_that_is_off_does_not_drag_the_others_along() -> None:
    rows = made_rows("c:MAX", 1.6)
    made = fit(rows)
    assert made.devices["c:MAX"] == pytest.approx(1.6, rel=0.15)
    assert made.devices["a:MAX"] == pytest.approx(1.0, abs=0.08)
    others = [row for row in rows if row.target != "c:MAX"]
    assert np.abs(Rows(others).predict(*made) / [row.ms for row in others] - 1).max() < 0.15


def test_what_is_held_out_is_not_seen(true_rows: list[Row]) -> None:
    spoilt = [row._replace(ms=row.ms * 50) if row.target == "b:MAX" else row for row in true_rows]
    of = [place for place, row in enumerate(true_rows) if row.target == "b:MAX"]
    start = Fit(load_parameters().values, {})
    found = held_out(spoilt, "device", start)[of]
    assert found == pytest.approx([true_rows[place].ms for place in of], rel=0.2)


def test_a_users_rows_set_their_own_device() -> None:
    known = Fit(load_parameters().values, load_parameters().devices)
    rows = [row for row in made_rows("a:MAX", 1.3) if row.target == "a:MAX"]
    made = refit(rows, known)
    assert Rows(rows).predict(*made) == pytest.approx([row.ms for row in rows], rel=0.06)
    assert {name: made.devices[name] for name in known.devices} == known.devices
    for name in ("launch_volta", "kind_depthwise", "source_mlperf"):  # nothing in the rows speaks of them
        assert made.values[name] == pytest.approx(known.values[name], rel=1e-3)
