"""How much better one tool is than another on the same images and draws, with an interval at 95%.

Both images and draws are resampled, independently of each other (Owen 2007, arXiv:0712.1111): an image judges
in several draws, and a draw moves all of its images at once.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

RESAMPLES = 2000


class Lead(NamedTuple):
    """A difference and its interval."""

    value: float
    low: float
    high: float


class Leads(NamedTuple):
    """In points of agreement, and in dB."""

    agreement: Lead
    sqnr_db: Lead


def lead(ours: list[Path], theirs: list[Path]) -> Leads:
    """Return by how much ours leads.

    Args:
        ours: the judge's arrays, one file for each draw.
        theirs: the same draws in the same order.
    """
    mask, agree, noise = _matrices(ours)
    _, peers_agree, peers_noise = _matrices(theirs)
    gained = agree - peers_agree

    def agreement(draws: NDArray[np.int64], images: NDArray[np.int64]) -> float:
        weight = np.outer(*_weights(draws, images, mask.shape)) * mask
        return float(100 * (weight * gained).sum() / weight.sum())

    def sqnr_db(draws: NDArray[np.int64], images: NDArray[np.int64]) -> float:
        by_draw, by_image = _weights(draws, images, mask.shape)
        ratios = 10 * np.log10((peers_noise @ by_image) / (noise @ by_image))
        return float(by_draw @ ratios / by_draw.sum())

    return Leads(_resampled(agreement, mask.shape), _resampled(sqnr_db, mask.shape))


def _matrices(files: list[Path]) -> tuple[NDArray[np.float64], ...]:
    """Return which image judged in which draw, whether it agreed, and its noise: `[draws, images]` each."""
    read = [np.load(file) for file in files]
    shape = (len(read), 1 + max(int(entry["places"].max()) for entry in read))
    mask, agree, noise = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for row, entry in enumerate(read):
        mask[row, entry["places"]] = 1
        agree[row, entry["places"]] = entry["same"]
        noise[row, entry["places"]] = entry["noise"]
    seen = mask.any(axis=0)
    return mask[:, seen], agree[:, seen], noise[:, seen]


def _weights(
    draws: NDArray[np.int64], images: NDArray[np.int64], shape: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return np.bincount(draws, minlength=shape[0]), np.bincount(images, minlength=shape[1])


def _resampled(statistic, shape: tuple[int, ...]) -> Lead:  # noqa: ANN001
    draws, images = np.arange(shape[0]), np.arange(shape[1])
    value = statistic(draws, images)
    # One draw says nothing of how draws differ: then images alone are resampled.
    parts = (draws, images) if len(draws) > 1 else (images,)
    found = bootstrap(
        parts,
        lambda *given: statistic(given[0] if len(given) > 1 else draws, given[-1]),
        n_resamples=RESAMPLES,
        vectorized=False,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Lead(value, float(found.low), float(found.high))
