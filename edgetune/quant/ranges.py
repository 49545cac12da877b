"""Ranges of activations, from statistics of fixed size that grow with neither images nor pixels.

One pass: each batch of each tensor is added to its statistics and forgotten. Per tensor that is 64 KiB of
counts, whatever the number of images. It knows nothing of graphs or hardware. It may import errors.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d

from edgetune.errors import StageError

BINS = 4096
ENTROPY_BINS = 2048
ENTROPY_CANDIDATES = 192
# A candidate clips no more than 1% of the values.
ENTROPY_KEPT = 0.99
PERCENTILE = 0.9999
# Values counted at a time: what is in between stays in the processor's cache.
_BLOCK = 1 << 16

Range = tuple[float, float]


@dataclass
class Statistics:
    """Extremes of a tensor and, on request, a histogram of its values.

    The histogram has `BINS` bins for each sign, over 0 to `limit`. The limit is a power of two that
    doubles when a larger value comes, whereupon pairs of bins merge exactly: the order and the size of
    the batches make no difference. Between 2,048 and 4,096 bins of the wider sign are in use.

    Attributes:
        tensor: its name, for messages.
        keep_counts: whether there is a histogram; extremes alone cost less time.
        low: smallest value.
        high: largest value.
        limit: magnitude at the end of the last bin; 0: nothing but zeros so far.
        counts: int64 `[2 * BINS]`, from the most negative bin to the most positive one.
    """

    tensor: str
    keep_counts: bool = True
    low: float = np.inf
    high: float = -np.inf
    limit: float = 0.0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(2 * BINS, np.int64))

    def add(self, values: NDArray[np.float32]) -> None:
        """Take in one batch of the tensor, any shape.

        Raises:
            StageError: a value is NaN or infinite.
        """
        if values.size == 0:
            return
        low, high = float(values.min()), float(values.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise StageError(
                f"the tensor {self.tensor!r} holds NaN or infinite values",
                hint="the network itself is broken: run it on these images in FP32 and look for overflow",
            )
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self.keep_counts:
            self._grow(max(high, -low))
            self._count(values.ravel(), signed=low < 0)

    def _grow(self, magnitude: float) -> None:
        # frexp gives the power of two strictly above, so that every value falls inside.
        needed = float(np.ldexp(1.0, int(np.frexp(magnitude)[1])))
        if magnitude == 0 or needed <= self.limit:
            return
        if self.limit:
            doublings = int(np.log2(needed / self.limit))
            self.counts = np.concatenate(
                [_coarser(self.counts[:BINS][::-1], doublings)[::-1], _coarser(self.counts[BINS:], doublings)]
            )
        # Without a limit there were only zeros so far, and those stay in the first bin.
        self.limit = needed

    def _count(self, values: NDArray[np.float32], signed: bool) -> None:
        factor = BINS / self.limit if self.limit else 0.0
        for start in range(0, values.size, _BLOCK):
            block = values[start : start + _BLOCK]
            # float32 times a power of two is exact; only a tensor of nothing but denormals needs more.
            exact = block if factor < 2.0**127 else block.astype(np.float64)
            place = (exact * exact.dtype.type(factor)).astype(np.intp)
            if signed:
                place += BINS
                place -= block < 0
                self.counts += np.bincount(place, minlength=2 * BINS)
            else:
                self.counts[BINS:] += np.bincount(place, minlength=BINS)

    @property
    def bytes(self) -> int:
        """Size of the counts."""
        return self.counts.nbytes

    @property
    def magnitudes(self) -> NDArray[np.int64]:
        """Counts of absolute values by bin, `[BINS]`."""
        return self.counts[BINS:] + self.counts[:BINS][::-1]


def _coarser(counts: NDArray[np.int64], doublings: int) -> NDArray[np.int64]:
    # BINS is 2**12: after as many doublings everything so far is in the first bin.
    merged = counts.reshape(-1, 2 ** min(doublings, 12)).sum(axis=1)
    return np.concatenate([merged, np.zeros(BINS - len(merged), np.int64)])


def minmax(statistics: Statistics, symmetric: bool) -> Range:
    """Everything that was seen."""
    del symmetric
    return statistics.low, statistics.high


def percentile(statistics: Statistics, symmetric: bool, share: float = PERCENTILE) -> Range:
    """All but the outermost values: `1 - share` of them, half at either end."""
    del symmetric
    counts = statistics.counts
    rest = (1 - share) / 2 * float(counts.sum())
    width = statistics.limit / BINS
    low = float(np.searchsorted(np.cumsum(counts), rest, side="right") - BINS) * width
    high = float(BINS - np.searchsorted(np.cumsum(counts[::-1]), rest, side="right")) * width
    low, high = max(low, statistics.low), min(high, statistics.high)
    return (low, high) if low <= high else (statistics.low, statistics.high)


def entropy(statistics: Statistics, symmetric: bool) -> Range:
    """The clipping at which the quantized distribution tells most of the original one.

    For every candidate threshold, values beyond it are counted into the last bin of the reference P; the
    same bins without them are spread over the quantized levels and back over the bins that hold anything,
    which gives Q; the candidate with the least KL(P || Q) wins. (S. Migacz, 8-bit Inference with
    TensorRT, GTC 2017.) Magnitudes are looked at, so a signed tensor has half of the levels.

    Counts are first smoothed over two levels of the widest range. Without that, the comb that integer
    weights leave in an activation counts as shape, and is bought with clipping: on mobilenet_v2 that cost
    5 dB (13.5 instead of 18.5), on squeezenet1_0 0.6 dB.
    """
    one_sided = statistics.low >= 0 or statistics.high <= 0
    levels = 128 if symmetric or not one_sided else 256
    counts = statistics.magnitudes.astype(np.float64).reshape(ENTROPY_BINS, -1).sum(axis=1)
    used = int(np.flatnonzero(counts)[-1]) + 1 if counts.any() else 0
    if used <= levels:
        return statistics.low, statistics.high
    # Exact zeros (ReLU, padding) are represented exactly at any scale; their spike says nothing about it.
    counts[0] = min(counts[0], counts[1])
    counts[:used] = uniform_filter1d(counts[:used], max(1, 2 * used // levels), mode="reflect")
    total = counts.sum()
    # With nearly everything clipped P and Q are one and the same spike, which is no reason to do it.
    fewest = int(np.searchsorted(np.cumsum(counts), ENTROPY_KEPT * total)) + 1
    candidates = np.unique(np.linspace(max(levels, fewest), used, ENTROPY_CANDIDATES).round().astype(int))
    losses = [_divergence(counts, int(bins), levels, total) for bins in candidates]
    # Of equal losses the widest range: nothing is clipped without a gain.
    best = int(candidates[len(losses) - 1 - int(np.argmin(losses[::-1]))])
    threshold = best * statistics.limit / ENTROPY_BINS
    return max(statistics.low, -threshold), min(statistics.high, threshold)


def _divergence(counts: NDArray[np.float64], bins: int, levels: int, total: float) -> float:
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


# What QuantizeSection.ranges may name.
RANGES: dict[str, Callable[[Statistics, bool], Range]] = {
    "minmax": minmax,
    "percentile": percentile,
    "entropy": entropy,
}
