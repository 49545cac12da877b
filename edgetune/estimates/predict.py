"""Latency, memory and fit of a network on a device that is not at hand, with an interval and what it rests on.

What is estimated: one inference after another, compute alone, no CUDA graph, clocks at the maximum of the mode.
It may import errors, profile and the other modules of estimates.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np

from edgetune.errors import ConfigError
from edgetune.estimates.fusing import kernels_of
from edgetune.estimates.hardware import architecture, hardware_of
from edgetune.estimates.kernels import FLOAT_BYTES, Kernel, Precision
from edgetune.estimates.model import Floats, columns, seconds, sizes_of
from edgetune.estimates.network import Network, Shapes, read_network
from edgetune.estimates.parameters import Parameters
from edgetune.profile import Target, load_profile, names

# Of the module's memory, for the system, CUDA and TensorRT: an assumption. A desktop and its browser take more.
RESERVED_MB = 1000
# Half widths, as factors, where no row says how wrong an estimate is: assumptions, and said to be.
SLOWER_MODE, OTHER_CHIP = 1.5, 2.0
UNLIKE = (
    "no network that reads texts is among those that the fit has seen, and of transformers one alone: the interval is "
    "widened by a guess"
)
# A factor on a module's time from which it is said.
OFF = 1.15
# Compute capabilities of the modules that were measured.
MEASURED_CHIPS = ("5.3", "6.2", "7.2", "8.7")
# Operations of the smallest and largest network that was measured, whole batch.
SMALLEST, LARGEST = 1e8, 4.4e11
# Kinds of which few rows hold much, and the share of the time from which that is said.
RARE = {
    "grouped": "grouped convolutions",
    "matmul": "products of activations",
    "reduce": "normalizations and reductions",
    "copy": "copies and transposes",
}
RARE_SHARE = 0.2
PRECISIONS: tuple[Precision, ...] = ("int8", "fp16")


Basis = Literal["measured", "related", "guess"]


@dataclass
class Read:
    """A network and its kernels, with what every target needs of them counted once."""

    network: Network
    kernels: tuple[Kernel, ...]

    def __post_init__(self) -> None:
        self.sizes = cache(lambda precision: sizes_of(self.kernels, precision))
        self.engine_mb = cache(self._engine_mb)
        self.activations_mb = cache(self._activations_mb)

    @property
    def operations(self) -> int:
        """Multiplications and additions of the whole batch."""
        return sum(kernel.operations for kernel in self.kernels)

    def _engine_mb(self, precision: Precision) -> float:
        """Weights as the engine stores them; its plan is a little larger."""
        read = sum(kernel.weight_bytes(precision) for kernel in self.kernels)
        return (read + sum(kernel.unread for kernel in self.kernels) * FLOAT_BYTES[precision]) / 1e6

    def _activations_mb(self, precision: Precision) -> float:
        """The largest sum of activations that are needed at one time."""
        born: dict[str, int] = {}
        dies: dict[str, int] = {}
        size: dict[str, int] = {}
        for place, kernel in enumerate(self.kernels):
            for name, elements in (*kernel.reads.items(), *kernel.writes.items()):
                width = kernel.width(name, precision)
                size[name] = max(size.get(name, 0), elements * width)
                born.setdefault(name, place)
                dies[name] = place
        alive = np.zeros(len(self.kernels) + 1)
        for name, amount in size.items():
            alive[born[name]] += amount
            alive[dies[name] + 1] -= amount
        return float(np.cumsum(alive).max()) / 1e6


@dataclass(frozen=True)
class Estimate:
    """What is to be expected of a network on one target in one precision.

    Attributes:
        ms: latency, with the ends of its 90% interval.
        engine_mb: weights.
        activations_mb: activations alive at once.
        fits: whether both fit into the module beside what the system takes; None: its memory is not stated.
        why: the sums behind `fits`.
        basis: `measured`: rows of this mode were fitted; `related`: of other modules with the same kind of GPU;
            `guess`: no row says how wide the interval has to be.
        notes: what the estimate assumes and extrapolates.
        kernel_ms: per kernel; their sum is `ms`.
    """

    target: Target
    precision: Precision
    ms: float
    low_ms: float
    high_ms: float
    engine_mb: float
    activations_mb: float
    fits: bool | None
    why: str
    basis: Basis
    notes: tuple[str, ...]
    kernel_ms: tuple[float, ...]

    def dump(self) -> dict[str, Any]:
        """Return it as JSON, without the kernels."""
        return {
            "target": self.target.label,
            "profile": self.target.profile.name,
            "mode": self.target.mode,
            "jetpack": self.target.jetpack,
            "precision": self.precision,
            "ms": round(self.ms, 4),
            "low_ms": round(self.low_ms, 4),
            "high_ms": round(self.high_ms, 4),
            "engine_mb": round(self.engine_mb, 2),
            "activations_mb": round(self.activations_mb, 2),
            "fits": self.fits,
            "why": self.why,
            "basis": self.basis,
            "notes": list(self.notes),
        }


def read(source: Any, shapes: Shapes | None = None) -> Read:
    """Read an ONNX file or a loaded model; errors as `network.read_network` and `fusing.kernels_of` raise them."""
    network = read_network(source, shapes)
    return Read(network, kernels_of(network))


def why_not(target: Target, precision: Precision) -> str:
    """Return why there is no estimate for a target, as a clause; empty where there is one."""
    if target.is_host:
        return "it is a host, whose latency is measured on the spot: edgetune bench"
    hardware = hardware_of(target.profile, target.mode)
    if hardware is None:
        return "its profile does not state clock, bandwidth and FP16 peak of this mode"
    if precision == "int8" and target.no_int8:
        return target.no_int8
    if precision == "int8" and not hardware.int8:
        return "its profile states no INT8 peak of this mode"
    return ""


def predict(read: Read, target: Target, precision: Precision, known: Parameters) -> Estimate:
    """Estimate one network on one target.

    Raises:
        ConfigError: there is no estimate for this target or precision.
    """
    hardware = hardware_of(target.profile, target.mode)
    reason = why_not(target, precision)
    if reason or hardware is None:
        raise ConfigError(
            f"{target.label}, {precision}: no estimate: {reason}", hint="edgetune profiles show NAME"
        )
    found = seconds(columns(read.sizes(precision), hardware), known.values)
    times = found * 1e3 * known.devices.get(_measured_mode(target, known), 1.0)
    ms = float(times.sum())
    half, basis, notes = _rests_on(target, known)
    if read.network.reads_texts:
        half = max(half, OTHER_CHIP)
        notes.append(UNLIKE)
    notes += _about_network(read, precision, times / ms)
    engine, activations = read.engine_mb(precision), read.activations_mb(precision)
    fits, why = _fit(target, engine + activations)
    return Estimate(
        target, precision, ms, ms / half, ms * half, engine, activations, fits, why, basis, tuple(notes),
        tuple(times.tolist()),
    )  # fmt: skip


def _fit(target: Target, needed: float) -> tuple[bool | None, str]:
    memory = target.profile.memory_gb
    if memory is None:
        return None, "the profile does not state the module's memory"
    left = memory * 1000 - RESERVED_MB
    verb = "fit" if needed <= left else "do not fit"
    return needed <= left, (
        f"{needed:.0f} MB of weights and activations {verb} into {left:.0f} MB: {memory:g} GB less {RESERVED_MB} MB "
        "taken to be for the system, CUDA and TensorRT"
    )


def _measured_mode(target: Target, known: Parameters) -> str:
    """Return the measured mode of the same module whose peak is nearest, its own first; "" where none is."""
    profile, modes = target.profile, target.profile.modes
    own = math.log(modes[target.mode].fp16_dense_tflops or 1.0)
    keys = {name: f"{profile.name}:{name}" for name in modes}
    if profile.extends in names():
        # A profile of one's own is the module that it inherits from, where it says the same of it.
        above = load_profile(profile.extends)
        for name in set(modes) & set(above.modes):
            if keys[name] not in known.devices and hardware_of(profile, name) == hardware_of(above, name):
                keys[name] = f"{above.name}:{name}"
    keys = {name: key for name, key in keys.items() if key in known.devices}
    distance = {name: abs(math.log(modes[name].fp16_dense_tflops or 1.0) - own) for name in keys}
    nearest = (
        target.mode if target.mode in keys else min(distance, key=lambda name: distance[name], default="")
    )
    return keys.get(nearest, "")


def _rests_on(target: Target, known: Parameters) -> tuple[float, Basis, list[str]]:
    """Return the half width of the interval as a factor, and what of the device is extrapolated."""
    profile, measured = target.profile, _measured_mode(target, known)
    factor = known.devices.get(measured, 1.0)
    said = []
    if abs(math.log(factor)) > math.log(OFF):
        ratio, way = max(factor, 1 / factor), "slower" if factor > 1 else "faster"
        said.append(
            f"{measured} was measured {ratio:.2f} times {way} than other modules explain, which is included"
        )
    if measured.partition(":")[2] == target.mode:
        if not measured.startswith(f"{profile.name}:"):
            said.append(f"taken to be as fast as {measured}, whose clocks and peaks it states")
        return known.intervals["network"], "measured", said
    if profile.compute_capability not in MEASURED_CHIPS:
        like = {"cuda": "Maxwell and Pascal", "volta": "Volta", "ampere": "Orin"}[architecture(profile)]
        said.append(
            f"nothing of compute capability {profile.compute_capability} was measured: taken to be as efficient as "
            f"{like}; the interval is a guess"
        )
        return OTHER_CHIP, "guess", said
    peak = max(mode.fp16_dense_tflops or 0.0 for mode in profile.modes.values())
    if measured or (profile.modes[target.mode].fp16_dense_tflops or 0.0) < 0.999 * peak:
        said.append("no mode below a module's maximum was measured: the interval is a guess")
        return SLOWER_MODE, "guess", said
    said.append(f"{profile.name} was not measured: judged by modules with the same kind of GPU")
    return known.intervals["both"], "related", said


def _about_network(read: Read, precision: Precision, shares: Floats) -> list[str]:
    """Return what of the network is extrapolated, or taken for granted."""
    said = []
    if precision == "int8" and not read.network.quantized:
        said.append(
            "the file has no Q/DQ: taken as if every convolution and product with weights ran in INT8"
        )
    if precision == "fp16" and read.network.quantized:
        said.append("the file has Q/DQ: FP16 is estimated for the network without them")
    if not SMALLEST <= read.operations <= LARGEST:
        side = "smaller" if read.operations < SMALLEST else "larger"
        said.append(f"{read.operations / 1e9:.3g} G operations: {side} than every network that was measured")
    by_kind = {
        kind: sum(share for kernel, share in zip(read.kernels, shares, strict=True) if kernel.kind == kind)
        for kind in RARE
    }
    for kind, words in RARE.items():
        if by_kind[kind] > RARE_SHARE:
            said.append(
                f"{by_kind[kind]:.0%} of the time are {words}, of which few measured networks have many"
            )
    return said
