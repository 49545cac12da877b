"""How long a model waits for what it learns from.

It knows no data and no loop. It may import this package's features.
"""

import time
from collections.abc import Iterator

from edgetune.training.features import Batch, Feed


class Waits:
    """How long a model waited for its batches.

    Attributes:
        seconds: so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, feed: Feed) -> Feed:
        """Return the same feed, with its waits counted."""

        def batches(epoch: int) -> Iterator[Batch]:
            source = feed.batches(epoch)
            while True:
                began = time.perf_counter()
                batch = next(source, None)
                self.seconds += time.perf_counter() - began
                if batch is None:
                    return
                yield batch

        return Feed(feed.images, feed.steps, batches)
