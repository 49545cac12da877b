"""Fits the model's parameters to measured latencies, from what is plausible or from an earlier fit.

Errors are relative, large ones count less than by their square, and every parameter is held to its prior by as
much as the prior is sure. A device may be slower or faster than its figures say; most are held to almost
nothing, and one that is off altogether does not drag the others along (Cauchy). It may import errors,
estimates.model and estimates.parameters.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from edgetune.estimates.model import Columns, Floats, seconds
from edgetune.estimates.parameters import PLAIN

Prior = tuple[float, float]
# What is typical, and the standard deviation of its logarithm.
PRIORS: dict[str, Prior] = {
    # A launch on Orin takes 4 to 8 us with CUDA graphs; cores without tensor cores belong to older, slower CPUs.
    "launch_us": (4.0, 0.5),
    "launch_cycles": (3000.0, 0.7),
    "launch_cuda": (1.0, 0.4),
    "launch_volta": (1.0, 0.2),
    "launch_ampere": (1.0, 0.2),
    "launch_graph": (0.5, 0.4),
    "efficiency": (0.7, 0.4),
    "efficiency_cuda": (1.0, 0.4),
    "efficiency_volta": (1.0, 0.2),
    "efficiency_ampere": (1.0, 0.2),
    "efficiency_int8": (0.9, 0.25),
    "kind_grouped": (0.4, 0.5),
    "kind_depthwise": (0.05, 0.7),
    "kind_gemm": (0.7, 0.4),
    "kind_matmul": (0.3, 0.6),
    "kind_pool": (0.05, 0.5),
    "kind_pointwise": (0.1, 0.5),
    "kind_reduce": (0.05, 0.5),
    # Without tensor cores a depthwise convolution loses less against others.
    "depthwise_cuda": (3.0, 0.7),
    "fill_cycles": (4.0, 0.7),
    "fill_int8": (0.5, 0.6),
    "fill_cuda": (1.0, 0.8),
    "fill_volta": (1.0, 0.8),
    "fill_ampere": (1.0, 0.8),
    "bandwidth": (0.7, 0.2),
    "bandwidth_cuda": (1.0, 0.3),
    "bandwidth_volta": (1.0, 0.15),
    "bandwidth_ampere": (1.0, 0.15),
    "bandwidth_weights": (1.0, 0.2),
    "overlap": (0.5, 0.4),
    # How each source measured: as a factor on all, and what Python and copies add to a query.
    "source_mlperf": (1.0, 0.07),
    "source_ultralytics": (1.0, 0.07),
    "source_torch2trt": (1.0, 0.07),
    "source_mmdeploy": (1.0, 0.07),
    "source_ultralytics_ms": (1.5, 0.5),
}
DEVICE_SPREAD = 0.04
# Of a measured latency around the model, in logarithms.
SPREAD = 0.1
ROUNDS = 25


class Row(NamedTuple):
    """One measured latency.

    Attributes:
        columns: the network on its hardware.
        target: profile and mode.
        network: its name.
        measured: how: a source of the published rows; or `plain`: compute alone, without a CUDA graph, or `graph`,
            with one.
        ms: what was measured.
    """

    columns: Columns
    target: str
    network: str
    measured: str
    ms: float


class Rows:
    """Rows side by side, so that all are predicted at once."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = list(rows)
        parts = zip(*(row.columns for row in rows), strict=True)
        self.columns = Columns(*(np.concatenate(part) for part in parts))
        self.index = np.repeat(np.arange(len(rows)), [len(row.columns.kind) for row in rows])
        self.graph = np.array([row.measured in ("mlperf", "graph") for row in rows])[self.index]
        self.ms = np.array([row.ms for row in rows])
        self.targets = np.array([row.target for row in rows])
        self.networks = np.array([row.network for row in rows])
        self.measured = np.array([row.measured for row in rows])

    def predict(self, values: Mapping[str, float], devices: Mapping[str, float]) -> Floats:
        """Return milliseconds as each source would have measured them."""
        own = np.bincount(self.index, seconds(self.columns, values, self.graph), len(self.rows)) * 1e3
        factor = [values.get(f"source_{name}", 1.0) for name in self.measured]
        device = [devices.get(name, 1.0) for name in self.targets]
        extra = [values.get(f"source_{name}_ms", 0.0) for name in self.measured]
        made: Floats = own * np.array(factor) * np.array(device) + np.array(extra)
        return made


class Fit(NamedTuple):
    """Fitted parameters, and a factor on the time of every device that was among the rows."""

    values: dict[str, float]
    devices: dict[str, float]


def fit(rows: Sequence[Row], priors: Mapping[str, Prior] = PRIORS, start: Fit | None = None) -> Fit:
    """Fit the parameters to some rows.

    Args:
        rows: at least one.
        priors: what is held for likely without them.
        start: where to begin; the result hardly depends on it, the time does.
    """
    together = Rows(rows)
    names, devices = list(priors), sorted(set(together.targets.tolist()))
    middle = np.array([math.log(priors[name][0]) for name in names])
    spread = np.array([priors[name][1] for name in names])
    observed = np.log(together.ms)

    def unpack(logs: Floats) -> Fit:
        found = np.exp(logs)
        values = dict(zip(names, found[: len(names)].tolist(), strict=True))
        values["overlap"] = min(values["overlap"], 1.0)
        return Fit(values, dict(zip(devices, found[len(names) :].tolist(), strict=True)))

    def residuals(logs: Floats) -> Floats:
        error = (np.log(together.predict(*unpack(logs))) - observed) / SPREAD
        held = (logs[: len(names)] - middle) / spread
        own = logs[len(names) :] / DEVICE_SPREAD
        made: Floats = np.concatenate(
            [
                np.sign(error) * np.sqrt(2 * (np.sqrt(1 + error**2) - 1)),
                held,
                np.sign(own) * np.sqrt(np.log1p(own**2)),
            ]
        )
        return made

    begin = np.concatenate([middle, np.zeros(len(devices))])
    if start is not None:
        near = [math.log(start.values[name]) for name in names]
        begin = np.array(near + [math.log(start.devices.get(name, 1.0)) for name in devices])
    return unpack(least_squares(residuals, begin, max_nfev=ROUNDS, ftol=1e-4, xtol=1e-4).x)


HELD: dict[str, tuple[str, ...]] = {
    "device": ("target",), "module": ("module",), "network": ("network",), "both": ("target", "network")
}  # fmt: skip


def held_out(rows: Sequence[Row], by: str, full: Fit | None = None) -> NDArray[np.float64]:
    """Predict each row from a fit that saw nothing of its group; return ms.

    Args:
        rows: all of them.
        by: what is held out: a `device` (profile and mode), a `module` with all its modes, a `network`, or `both`
            a device and a network.
        full: a fit to all rows, from which the others start.
    """
    full = full or fit(rows)
    found = np.zeros(len(rows))
    for group in sorted({group_of(row, by) for row in rows}):
        held = [place for place, row in enumerate(rows) if group_of(row, by) == group]
        seen = [row for row in rows if all(a != b for a, b in zip(group_of(row, by), group, strict=True))]
        made = fit(seen, start=full)
        found[held] = Rows([rows[place] for place in held]).predict(*made)
    return found


def group_of(row: Row, by: str) -> tuple[str, ...]:
    """Return which group a row is in."""
    known = {"target": row.target, "module": row.target.split(":")[0], "network": row.network}
    return tuple(known[name] for name in HELD[by])


def refit(rows: Sequence[Row], known: Fit) -> Fit:
    """Fit to a user's own rows, holding to what is known: what the rows say nothing about stays."""
    priors = {name: (value, PLAIN) for name, value in known.values.items()}
    made = fit(rows, priors, Fit(known.values, {}))
    return Fit(made.values, {**known.devices, **made.devices})
