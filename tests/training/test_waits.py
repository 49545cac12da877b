"""How long a model waited."""

import time
from typing import Any

from edgetune.training.features import Feed
from edgetune.training.waits import Waits


def test_waits_are_counted_and_work_is_not() -> None:
    def slow(_: int) -> Any:
        for batch in range(3):
            time.sleep(0.02)
            yield batch

    waits = Waits()
    seen = []
    for batch in waits.around(Feed(3, 3, slow)).batches(1):
        seen.append(batch)
        time.sleep(0.1)
    assert seen == [0, 1, 2]
    assert 0.06 <= waits.seconds < 0.3
