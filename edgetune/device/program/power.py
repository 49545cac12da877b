"""Electrical power and temperatures of a device, from the sensors that its kernel shows.

Jetsons carry INA3221 chips of three rails each; how far a rail lies from the truth is not known here. A sample
costs some reads over a slow bus: five a second are enough for energy and leave the processor alone. Where the kernel
shows none, NVIDIA's own program is asked. It may import look and tegrastats.
"""

from __future__ import annotations

import os
import re
import threading
import time
from typing import Callable, Mapping, NamedTuple

from . import look, tegrastats

PERIOD_S = 0.2
# Zones that are no temperature of the module: a constant (PMIC-Die reads 100 °C on TX2), a fan's estimate, a radio's.
NO_ZONES = re.compile(r"PMIC|fan.?est|iwlwifi", re.IGNORECASE)
# Rails that feed the whole module, first where one alone does (NVIDIA's developer guides, INA3221 tables).
WHOLE = (
    ("VDD_IN",),  # Orin Nano and NX, Xavier NX, TX2
    ("POM_5V_IN",),  # Nano
    ("VIN",),  # Thor, as devices list it
    # AGX Orin: memory's rail VDDQ_VDD2_1V8AO hangs on the last of these.
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),  # AGX Xavier
)


class Sample(NamedTuple):
    """What the sensors said at one time.

    Attributes:
        at_s: by the sampler's clock.
        rails_mw: per rail.
        zones_c: per zone.
    """

    at_s: float
    rails_mw: dict[str, float]
    zones_c: dict[str, float]


class Rail(NamedTuple):
    """Where a rail is read: power in units of `unit_mw`, or else voltage in mV and current in mA."""

    name: str
    power: str
    unit_mw: float = 1.0
    current: str = ""


def rails(root: str = "/") -> list[Rail]:
    """Return the rails that can be measured.

    JetPack 5 and later show them as `in1_label`, `in1_input`, `curr1_input` (Linux, hwmon/ina3221), with
    `power1_input` in µW where a chip multiplies itself; JetPack 4 as `rail_name_0`, `in_power0_input` in mW.
    """
    found = []
    for path in look.entries(root, "sys/bus/i2c/drivers/ina*/*/hwmon/hwmon*/in*_label"):
        folder, _, file = path.rpartition("/")
        channel = file[len("in") : -len("_label")]
        power, current = f"{folder}/power{channel}_input", f"{folder}/curr{channel}_input"
        if look.number(root, power) is not None:
            found.append(Rail(look.read(root, path), power, unit_mw=1e-3))
        elif look.number(root, current) is not None:
            found.append(Rail(look.read(root, path), f"{folder}/in{channel}_input", current=current))
    for path in look.entries(root, "sys/bus/i2c/drivers/ina*/*/iio:device*/rail_name_*"):
        folder, _, file = path.rpartition("/")
        found.append(Rail(look.read(root, path), f"{folder}/in_power{file[len('rail_name_') :]}_input"))
    # NC: nothing is connected there.
    return [rail for rail in found if rail.name not in ("", "NC")]


def whole_module(names: list[str]) -> tuple[str, ...]:
    """Return the rails whose sum is what the module draws; empty where that is not known."""
    return next((group for group in WHOLE if set(group) <= set(names)), ())


def milliwatts(root: str, rail: Rail) -> float | None:
    """Measure a rail, in mW."""
    value = look.number(root, rail.power)
    if value is None or not rail.current:
        return None if value is None else value * rail.unit_mw
    current = look.number(root, rail.current)
    return None if current is None else value * current / 1e3


def zones(root: str = "/") -> list[tuple[str, str]]:
    """Return the name of each temperature and the file it is read from; those without a sensor too."""
    found = []
    for path in look.entries(root, "sys/class/thermal/thermal_zone*"):
        name = look.read(root, f"{path}/type")
        if name and not NO_ZONES.search(name):
            found.append((name, f"{path}/temp"))
    return found


def celsius(root: str, path: str) -> float | None:
    """Read a temperature, in °C; None where the sensor is off, as those of idle units are."""
    value = look.number(root, path)
    # Drivers say -256 °C for a sensor that is off.
    return None if value is None or value <= -100_000 else value / 1e3


class Sampler:
    """Reads rails and temperatures beside the work, in a thread of its own.

        with Sampler() as sampler:
            ...
        sampler.energy_j(start_s, end_s)

    Args:
        root: where the device's files lie.
        period_s: between two samples.
        clock: in seconds; the one that work is timed by, so that both can be laid side by side.
        environ: to find `tegrastats` by, which is asked for what cannot be read: rails, temperatures, or both.
    """

    def __init__(
        self,
        root: str = "/",
        period_s: float = PERIOD_S,
        clock: Callable[[], float] = time.monotonic,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self.samples: list[Sample] = []
        self._root = root
        self._period_s = period_s
        self._clock = clock
        self._environ = environ
        self._rails = [rail for rail in rails(root) if milliwatts(root, rail) is not None]
        self._zones = zones(root)
        self._child: tegrastats.Child | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="sampler", daemon=True)

    def __enter__(self) -> Sampler:
        self.take()
        if not (self._rails and self._zones):
            self._child = tegrastats.start(self._environ, self._period_s)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._child is not None:
            self._child.close()
        self._thread.join()
        self.take()

    def take(self, told: tegrastats.Told | None = None) -> None:
        """Take one sample; what cannot be read is as `tegrastats` told it, or left out."""
        power = {rail.name: milliwatts(self._root, rail) for rail in self._rails}
        heat = {name: celsius(self._root, path) for name, path in self._zones}
        if told is not None:
            known = {name: value for name, value in told.zones_c.items() if not NO_ZONES.search(name)}
            power, heat = power or {**told.rails_mw}, heat or {**known}
        self.samples.append(
            Sample(
                self._clock(),
                {name: value for name, value in power.items() if value is not None},
                {name: value for name, value in heat.items() if value is not None},
            )
        )

    def energy_j(self, start_s: float, end_s: float) -> dict[str, float]:
        """Return the energy per rail between two times, in J; without the rails not measured all along."""
        return energy_j(self.samples, start_s, end_s, slack_s=2 * self._period_s)

    def _sample(self) -> None:
        for told in self._child or ():
            self.take(told)
        while not self._stop.wait(self._period_s):
            self.take()


def energy_j(samples: list[Sample], start_s: float, end_s: float, slack_s: float) -> dict[str, float]:
    """Integrate power between two times: straight lines between samples, level beyond the first and last.

    Args:
        samples: in the order of time.
        start_s: by the samples' clock.
        end_s: likewise.
        slack_s: by how much the samples may begin late or end early.

    Returns:
        Energy in J per rail; a rail is left out where its samples do not cover the time.
    """
    names = {name for sample in samples for name in sample.rails_mw}
    found = {}
    for name in sorted(names):
        points = [(sample.at_s, sample.rails_mw[name]) for sample in samples if name in sample.rails_mw]
        if points[0][0] <= start_s + slack_s and points[-1][0] >= end_s - slack_s:
            found[name] = _integral(points, start_s, end_s) / 1e3
    return found


def _integral(points: list[tuple[float, float]], start: float, end: float) -> float:
    inner = [point for point in points if start < point[0] < end]
    line = [(start, _height(points, start)), *inner, (end, _height(points, end))]
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in zip(line, line[1:]))


def _height(points: list[tuple[float, float]], at: float) -> float:
    before = [point for point in points if point[0] <= at]
    after = [point for point in points if point[0] >= at]
    if not before or not after:
        return (before[-1] if before else after[0])[1]
    (t0, v0), (t1, v1) = before[-1], after[0]
    return v0 if t1 == t0 else v0 + (v1 - v0) * (at - t0) / (t1 - t0)
