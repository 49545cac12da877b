"""Ranges of activations, from statistics of fixed size that grow with neither inputs nor pixels.

One pass: what a tensor holds for one input is added to its statistics and forgotten. Estimators turn
statistics into a range. It knows nothing of graphs or hardware. It may import errors and quant.plan.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d

from edgetune.errors import StageError
from edgetune.quant.plan import asymmetric
from edgetune.quant.plan import symmetric as symmetric_scale

# Bins per octave: a bin is never wider than half of a level, whatever range is chosen.
OCTAVE = 256
# Magnitudes below this share the first bin.
FLOOR = 2.0**-32
# Values counted per tensor and input at most, evenly spread over it. Extremes are taken of all. Against counting
# all, 95 of 100 ranges by least squared error differ by nothing on mobilenet_v2, by under 1.5% on squeezenet1_0.
COUNTED = 1 << 18
ENTROPY_BINS = 2048
# Thresholds tried over the whole width, and then as many again around the best.
ENTROPY_CANDIDATES = 40
# A candidate clips no more than 1% of the values.
ENTROPY_KEPT = 0.99
PERCENTILE = 0.9999
# The least squared error is looked for no further below the extremes than so many octaves.
DEEPEST = 40
_SHIFT = 15  # of a float32's bits: what is left are 8 of exponent and 8 of mantissa
_FIRST = ((127 - 32) << 8) - 1
# Values looked at at a time: what is in between stays in the processor's cache.
_BLOCK = 1 << 15

Range = tuple[float, float]
Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


def _none() -> Counts:
    return np.zeros(0, np.int64)


@dataclass
class Statistics:
    """Extremes of a tensor and, on request, a histogram of its values.

    The histogram is a floating-point one: `OCTAVE` bins from every power of two to the next. So a single
    huge value costs no resolution where the others lie, and neither the order of the inputs nor how they
    are batched makes a difference. For each sign that occurs it takes 64 KiB up to a magnitude of 1, and 2 KiB
    for every power of two above.

    Attributes:
        tensor: its name, for messages.
        keep_counts: whether there is a histogram; extremes alone cost less time.
        low: smallest value.
        high: largest value.
        inputs: how many were added.
        lows: sum of the inputs' smallest values.
        highs: sum of the inputs' largest values.
        positive: counts of values from 0 up, by bin; as long as the largest value needs.
        negative: counts of values below 0, by bin of their magnitude.
    """

    tensor: str
    keep_counts: bool = True
    low: float = np.inf
    high: float = -np.inf
    inputs: int = 0
    lows: float = 0.0
    highs: float = 0.0
    positive: Counts = field(default_factory=_none)
    negative: Counts = field(default_factory=_none)

    def add(self, values: NDArray[np.float32]) -> None:
        """Take in what the tensor holds for one input, any shape.

        Raises:
            StageError: a value is NaN or infinite.
        """
        if values.size == 0:
            return
        flat = values.reshape(-1)
        blocks = [flat[start : start + _BLOCK] for start in range(0, flat.size, _BLOCK)]
        # NumPy's minimum and maximum hand a NaN on.
        low = float(np.min([block.min() for block in blocks]))
        high = float(np.max([block.max() for block in blocks]))
        if not (np.isfinite(low) and np.isfinite(high)):
            raise StageError(
                f"the tensor {self.tensor!r} holds NaN or infinite values for input {self.inputs + 1}",
                hint="the network itself is broken: run it on this input in FP32 and look for overflow",
            )
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.inputs, self.lows, self.highs = self.inputs + 1, self.lows + low, self.highs + high
        if self.keep_counts:
            # An odd stride is no divisor of a row, so no column is looked at more often than another.
            counted = np.ascontiguousarray(flat[:: -(-flat.size // COUNTED) | 1])
            for start in range(0, counted.size, _BLOCK):
                self._count(counted[start : start + _BLOCK], signed=low < 0)

    def _count(self, values: NDArray[np.float32], signed: bool) -> None:
        place = values.view(np.int32) & np.int32(0x7FFFFFFF)
        place >>= _SHIFT
        place -= _FIRST
        np.maximum(place, 0, out=place)
        if signed:
            below = values < 0
            self.negative = _sum(self.negative, np.bincount(place[below]))
            place = place[~below]
        self.positive = _sum(self.positive, np.bincount(place))

    def copy(self) -> "Statistics":
        """Return these statistics as they are now."""
        return replace(self, positive=self.positive.copy(), negative=self.negative.copy())

    @property
    def bytes(self) -> int:
        """Size of the counts."""
        return self.positive.nbytes + self.negative.nbytes

    def density(self) -> tuple[Floats, Floats]:
        """Return edges `[n + 1]`, ascending within what was seen, and how many values lie between, `[n]`."""
        edges = np.concatenate([-_edges(len(self.negative))[:0:-1], _edges(len(self.positive))])
        counts = np.concatenate([self.negative[::-1], self.positive]).astype(np.float64)
        held = np.flatnonzero(counts)
        if not len(held):
            return np.array([self.low, self.high]), np.ones(1)
        used = slice(int(held[0]), int(held[-1]) + 1)
        return np.clip(edges[used.start : used.stop + 1], self.low, self.high), counts[used]


def _sum(counts: Counts, more: Counts) -> Counts:
    longer, shorter = (counts, more) if len(counts) >= len(more) else (more, counts)
    longer[: len(shorter)] += shorter
    return longer


def _edges(bins: int) -> Floats:
    """Return the magnitudes at which bins begin, and at which the last one ends, `[bins + 1]`."""
    bits = np.arange(_FIRST, _FIRST + bins + 1, dtype=np.int32) << _SHIFT
    edges = bits.view(np.float32).astype(np.float64)
    edges[0] = 0.0
    return edges


def minmax(statistics: Statistics, symmetric: bool) -> Range:
    """Everything that was seen."""
    del symmetric
    return statistics.low, statistics.high


def mean(statistics: Statistics, symmetric: bool) -> Range:
    """The mean of the inputs' smallest values, and of their largest ones."""
    del symmetric
    low, high = statistics.lows / statistics.inputs, statistics.highs / statistics.inputs
    return max(low, statistics.low), min(high, statistics.high)


def percentile(statistics: Statistics, symmetric: bool, share: float = PERCENTILE) -> Range:
    """All but the outermost values: `1 - share` of them, half at either end."""
    del symmetric
    edges, counts = statistics.density()
    low = _quantile(edges, counts, (1 - share) / 2)
    high = -_quantile(-edges[::-1], counts[::-1], (1 - share) / 2)
    return (low, high) if low <= high else (statistics.low, statistics.high)


def _quantile(edges: Floats, counts: Floats, share: float) -> float:
    """Return where so large a share of the values lies below, values spread evenly within a bin."""
    below = np.concatenate([[0.0], np.cumsum(counts)])
    wanted = share * below[-1]
    index = min(int(np.searchsorted(below, wanted, side="right")) - 1, len(counts) - 1)
    part = (wanted - below[index]) / counts[index] if counts[index] else 0.0
    found = float(edges[index] + min(part, 1.0) * (edges[index + 1] - edges[index]))
    # The first bin is as good as zero.
    return found if abs(found) >= FLOOR else float(np.clip(0.0, edges.min(), edges.max()))


def mse(statistics: Statistics, symmetric: bool) -> Range:
    """The range with the least squared error between values and what their integers stand for.

    Clipping and rounding are integrated over the histogram, with the scale and zero point that the range
    would get: -128 to 127 around zero, or 0 to 255 around a zero point, where either end moves by itself.
    """
    if statistics.low == statistics.high:
        return statistics.low, statistics.high
    top = max(-statistics.low, statistics.high)
    low, high = (-top, top) if symmetric else (min(statistics.low, 0.0), max(statistics.high, 0.0))
    edges, counts = statistics.density()
    below = np.concatenate([[0.0], np.cumsum(counts)])

    def best(narrowed: list[tuple[float, float]]) -> tuple[float, float, float]:
        """Of ranges, each narrowed by octaves on the left and on the right: the least error, and where."""
        ranges = [(low * 2.0**-left, high * 2.0**-right) for left, right in narrowed]
        # Four bins to a level of the narrowest range are as good as more.
        width = min(b - a for a, b in ranges) / 1024
        errors = squared_errors(*_merged(edges, below, width), ranges, symmetric)
        place = int(np.argmin(errors))
        return float(errors[place]), *narrowed[place]

    least, left, right = best([(0, 0)])
    for octave in range(DEEPEST):
        error, *found = best([(octave + part, octave + part) for part in (0.25, 0.5, 0.75, 1)])
        if error > 2 * least:
            break
        if error < least:
            least, (left, right) = error, found
    sides = [(1, 1)] if symmetric or low == 0 or high == 0 else [(1, 0), (0, 1)]
    for step in (0.5, 0.125, 0.03125) if len(sides) == 2 else (0.0625, 0.015625):
        for a, b in sides:
            moves = sorted(range(-4, 5), key=abs)  # of equal errors that where it is
            _, left, right = best(
                [(max(left + a * m * step, 0), max(right + b * m * step, 0)) for m in moves]
            )
    return max(statistics.low, low * 2.0**-left), min(statistics.high, high * 2.0**-right)


def _merged(edges: Floats, below: Floats, width: float) -> tuple[Floats, Floats]:
    """Return edges and counts, neighbouring bins that are narrower than `width` merged."""
    cells = np.floor(edges / width)
    kept = np.ones(len(edges), bool)
    kept[1:-1] = cells[1:-1] != cells[:-2]
    return edges[kept], np.diff(below[kept])


def squared_errors(edges: Floats, counts: Floats, ranges: list[Range], symmetric: bool) -> Floats:
    """Return the mean squared error of quantizing a histogram with each of some ranges.

    Args:
        edges: ascending, `[n + 1]`.
        counts: of values between two edges, over which they are spread evenly, `[n]`.
        ranges: candidates.
        symmetric: signed integers with zero point 0, or unsigned ones with a zero point.
    """
    made = [(symmetric_scale if symmetric else asymmetric)(low, high) for low, high in ranges]
    scale = np.array([item.scale for item in made], np.float64)[:, None]
    zero = np.array([item.zero_point for item in made])[:, None]
    lowest = (-128 if symmetric else 0) - zero
    levels = np.clip(np.rint(edges / scale), lowest, lowest + 255)
    away = edges - levels * scale
    # The integral of the squared error from 0: a full step of it is scale**3 / 12; clipped, it just goes on.
    integral = levels * scale**3 / 12 + away**3 / 3
    width = np.diff(edges)
    points = width <= 1e-9 * np.abs(edges[1:])
    within = np.where(points, away[:, 1:] ** 2, np.diff(integral) / np.where(points, 1.0, width))
    found: Floats = within @ counts / counts.sum()
    return found


def entropy(statistics: Statistics, symmetric: bool) -> Range:
    """The clipping at which the quantized distribution tells most of the original one.

    For every candidate threshold, values beyond it are counted into the last of the reference's bins P; the
    same bins without them are spread over the quantized levels and back over the bins that hold anything,
    which gives Q; the candidate with the least KL(P || Q) wins. (S. Migacz, 8-bit Inference with
    TensorRT, GTC 2017.) Magnitudes are looked at, in `ENTROPY_BINS` bins from zero to the largest one, so a
    signed tensor has half of the levels.

    Counts are first smoothed over two levels of the widest range. Without that, the comb that integer
    weights leave in an activation counts as shape, and is bought with clipping: on mobilenet_v2 that cost
    5 dB (13.5 instead of 18.5), on squeezenet1_0 0.6 dB.
    """
    top = max(-statistics.low, statistics.high)
    if statistics.low == statistics.high or top < FLOOR:
        return statistics.low, statistics.high
    one_sided = statistics.low >= 0 or statistics.high <= 0
    levels = 128 if symmetric or not one_sided else 256
    edges, spread = statistics.density()
    below = np.concatenate([[0.0], np.cumsum(spread)])
    places = np.linspace(0, top, ENTROPY_BINS + 1)
    counts = np.diff(np.interp(places, edges, below) - np.interp(-places, edges, below))
    # Exact zeros (ReLU, padding) are represented exactly at any scale; their spike says nothing about it.
    counts[0] = min(counts[0], counts[1])
    counts = uniform_filter1d(counts, 2 * ENTROPY_BINS // levels, mode="reflect")
    total = counts.sum()
    # With nearly everything clipped P and Q are one and the same spike, which is no reason to do it.
    fewest = int(np.searchsorted(np.cumsum(counts), ENTROPY_KEPT * total)) + 1
    first, last = max(levels, fewest), ENTROPY_BINS
    for _ in range(2):
        candidates = np.unique(np.linspace(last, first, ENTROPY_CANDIDATES).round().astype(int))[::-1]
        # Of equal losses the widest range: nothing is clipped without a gain.
        best = int(np.argmin([_divergence(counts, int(bins), levels, total) for bins in candidates]))
        threshold = float(candidates[best]) * top / ENTROPY_BINS
        last = int(candidates[max(best - 1, 0)])
        first = int(candidates[min(best + 1, len(candidates) - 1)])
    return max(statistics.low, -threshold), min(statistics.high, threshold)


def _divergence(counts: Floats, bins: int, levels: int, total: float) -> float:
    """KL(P || Q) of clipping at `bins`; where Q is empty it counts as a ten-thousandth of a value."""
    kept = counts[:bins]
    reference = kept.copy()
    reference[-1] += total - kept.sum()
    level = np.arange(bins) * levels // bins
    filled = kept > 0
    mass = np.bincount(level, weights=kept, minlength=levels)
    places = np.bincount(level, weights=filled, minlength=levels)
    spread = np.where(filled, (mass / np.maximum(places, 1))[level], 0.0)
    if spread.sum() == 0:
        return np.inf
    p = reference / total
    q = np.maximum(spread / spread.sum(), 1e-4 / total)
    held = p > 0
    return float(np.sum(p[held] * np.log(p[held] / q[held])))


# What finds a range from a tensor's statistics alone.
RANGES: dict[str, Callable[[Statistics, bool], Range]] = {
    "minmax": minmax,
    "mean": mean,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
}
