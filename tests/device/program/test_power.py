"""Rails of every generation of sensors, energy as the area under them, and a sampler that nothing stops."""

import shutil
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standin_device import BOARDS, OFF, hwmon, iio, write

from edgetune.device.program import power
from edgetune.device.program.power import Sample, Sampler, energy_j


def measured(root: Path) -> dict[str, float | None]:
    return {rail.name: power.milliwatts(str(root), rail) for rail in power.rails(str(root))}


@pytest.mark.parametrize(
    ("board", "rails", "whole"),
    [
        ("orin-nano", {"VDD_IN": 5307.072, "VDD_CPU_GPU_CV": 928.832, "VDD_SOC": 1496.576}, ("VDD_IN",)),
        (
            "agx-orin",
            {"VDD_GPU_SOC": 3999.096, "VDD_CPU_CV": 797.12, "VIN_SYS_5V0": 3427.2, "VDDQ_VDD2_1V8AO": 604.8},
            ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
        ),
        (
            "tx2",
            {
                "VDD_SYS_GPU": 152.0,
                "VDD_SYS_SOC": 457.0,
                "VDD_4V0_WIFI": 0.0,
                "VDD_IN": 2324.0,
                "VDD_SYS_CPU": 305.0,
                "VDD_SYS_DDR": 326.0,
            },
            ("VDD_IN",),
        ),
        ("pc", {}, ()),
    ],
)
def test_rails(board: str, rails: dict[str, float], whole: tuple[str, ...], tmp_path: Path) -> None:
    assert measured(BOARDS[board](tmp_path)) == pytest.approx(rails)
    assert power.whole_module(list(rails)) == whole


def test_a_chip_that_multiplies_itself_says_microwatts(tmp_path: Path) -> None:
    folder = "sys/bus/i2c/drivers/ina238/2-0044/hwmon/hwmon4"
    write(
        tmp_path,
        {f"{folder}/in1_label": "VIN", f"{folder}/in1_input": 19700, f"{folder}/power1_input": 25_600_000},
    )
    assert measured(tmp_path) == {"VIN": 25600.0}


def test_zones_that_are_off_or_no_temperature(tmp_path: Path) -> None:
    root = str(BOARDS["agx-orin"](tmp_path))
    found = {name: power.celsius(root, path) for name, path in power.zones(root)}
    assert found["GPU-therm"] is None
    assert found["CPU-therm"] == 47.0
    assert "PMIC-Die" not in dict(power.zones(str(BOARDS["tx2"](tmp_path / "tx2"))))


def test_a_sample_leaves_out_what_fails_meanwhile(tmp_path: Path) -> None:
    write(tmp_path, {**hwmon("1-0040", 1, [("A", 5000, 100)]), **iio("0-0041", 0, [("B", 7)])})
    sampler = Sampler(str(tmp_path), clock=lambda: 1.5)
    sampler.take()
    shutil.rmtree(tmp_path / "sys/bus/i2c/drivers/ina3221x")
    current = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/curr1_input"
    (tmp_path / current).write_text("200\n")
    sampler.take()
    (tmp_path / current).unlink()
    write(tmp_path, {current: OFF})
    sampler.take()
    assert sampler.samples == [
        Sample(1.5, {"A": 500.0, "B": 7.0}, {}),
        Sample(1.5, {"A": 1000.0}, {}),
        Sample(1.5, {}, {}),
    ]


def test_a_sampler_samples_beside_the_work_and_ends(tmp_path: Path) -> None:
    threads = threading.active_count()
    seen = threading.Event()
    with Sampler(str(BOARDS["orin-nano"](tmp_path)), period_s=0.001) as sampler:
        while len(sampler.samples) < 5:
            seen.wait(0.001)
    assert threading.active_count() == threads
    times = [sample.at_s for sample in sampler.samples]
    assert times == sorted(times)
    assert sampler.samples[3].rails_mw["VDD_IN"] == pytest.approx(5307.072)
    assert sampler.samples[3].zones_c["tj-thermal"] == 49.062
    energy = sampler.energy_j(times[0], times[-1])
    assert energy["VDD_IN"] == pytest.approx(5.307072 * (times[-1] - times[0]))


def test_energy_is_the_area_under_straight_lines() -> None:
    samples = [Sample(at, {"A": mw}, {}) for at, mw in ((0.0, 1000.0), (1.0, 3000.0), (2.0, 3000.0))]
    assert energy_j(samples, 0.0, 2.0, 0.0) == {"A": 5.0}
    assert energy_j(samples, 0.5, 1.0, 0.0) == {"A": pytest.approx(1.25)}
    assert energy_j(samples, 0.25, 0.75, 0.0) == {"A": pytest.approx(1.0)}
    assert energy_j(samples, 1.0, 1.0, 0.0) == {"A": 0.0}


def test_energy_is_not_told_where_samples_do_not_cover_the_time() -> None:
    samples = [Sample(1.0, {"A": 1000.0, "B": 1.0}, {}), Sample(2.0, {"A": 1000.0}, {})]
    assert energy_j(samples, 0.9, 2.1, 0.2) == {"A": pytest.approx(1.2)}
    assert energy_j(samples, 0.5, 2.0, 0.2) == energy_j(samples, 1.0, 2.5, 0.2) == {}
    assert energy_j([], 0.0, 1.0, 9.0) == {}


@given(
    st.lists(st.tuples(st.floats(0.01, 5), st.floats(0, 1e5)), min_size=2, max_size=20),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_energy_of_parts_adds_up_and_lies_within_the_extremes(
    steps: list[tuple[float, float]], first: float, second: float
) -> None:
    at, samples = 0.0, []
    for step, mw in steps:
        samples.append(Sample(at, {"A": mw}, {}))
        at += step
    last = samples[-1].at_s
    low, high = sorted((first * last, second * last))
    parts = [energy_j(samples, a, b, 0.0)["A"] for a, b in ((0.0, low), (low, high), (high, last))]
    assert sum(parts) == pytest.approx(energy_j(samples, 0.0, last, 0.0)["A"], abs=1e-6)
    powers = [mw for _, mw in steps]
    assert min(powers) * (high - low) / 1e3 - 1e-6 <= parts[1] <= max(powers) * (high - low) / 1e3 + 1e-6
