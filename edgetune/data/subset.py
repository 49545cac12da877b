"""Which samples of a split are looked at, and by which labels.

It knows no network. It may import errors and data.folders for the type.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edgetune.data.folders import Sample
from edgetune.errors import ConfigError, nearest

SUBSET_SEED = 0


def chosen(samples: Sequence[Sample], images: int) -> tuple[Sample, ...]:
    """Return so many samples, each class in its share and evenly over a seeded order; 0: all of them."""
    if images <= 0 or images >= len(samples):
        return tuple(samples)
    return tuple(samples[index] for index in sorted(_order(samples)[:images]))


def spaced(samples: Sequence[Sample], most: int) -> tuple[Sample, ...]:
    """Return at most so many samples, evenly spaced."""
    return tuple(samples[i] for i in np.linspace(0, len(samples) - 1, min(most, len(samples))).astype(int))


def interleaved(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """Return samples in an order of which any first part holds every class in its share."""
    return tuple(samples[index] for index in _order(samples))


def _order(samples: Sequence[Sample]) -> list[int]:
    noise = np.random.default_rng(SUBSET_SEED)
    labels = np.array([sample.label for sample in samples])
    place = np.empty(len(samples))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        # The k-th of n members stands at (k + u) / n: any first part holds every class in its share.
        place[members] = (noise.permutation(len(members)) + noise.random()) / len(members)
    return [int(index) for index in np.argsort(place, kind="stable")]


def relabelled(samples: Sequence[Sample], own: Sequence[str], classes: Sequence[str]) -> list[Sample]:
    """Translate the data's labels into the network's, by the names of the classes.

    Raises:
        ConfigError: the network does not know one of them.
    """
    if tuple(own) == tuple(classes):
        return list(samples)
    for name in own:
        if name not in classes:
            raise ConfigError(
                f"the data's class {name!r} is none of the network's", hint=nearest(name, classes)
            )
    places = [list(classes).index(name) for name in own]
    return [replace(sample, label=places[sample.label]) for sample in samples]
