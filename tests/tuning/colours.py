"""A recipe with a space, and studies of it whose trials are arithmetic."""

import math
from pathlib import Path
from typing import Any

from edgetune.tuning import study as studies
from edgetune.tuning.space import as_it_is
from edgetune.tuning.study import Outcome, Watch
from edgetune.tuning.trial import Search

RECIPE = """\
# Photographs of three colours.
schema_version: 1
name: colours
data:
  path: images    # beside this file
  min_images: 2
model:
  name: mobilenet_v2_035_cifar10
  weights: none
finetune:
  strategy: full    # every weight
  epochs: 6
  batch: 8
  learning_rate: 0.003

tune:
"""
SPACE = """\
  space:
    finetune.learning_rate: {low: 1e-4, high: 1e-1, log: true}
    finetune.strategy: [full, feature-extractor, gradual]
    finetune.batch: {low: 4, high: 16, step: 4}
"""


def arithmetic(values: dict[str, Any], folder: Path, watch: Watch) -> Outcome:
    """A training whose accuracy depends on its settings alone: best at a rate of 0.01 and in full."""
    far = abs(math.log10(values["finetune.learning_rate"]) + 2)
    top = 0.95 - 0.2 * far - {"full": 0, "gradual": 0.05}.get(values["finetune.strategy"], 0.15)
    history = []
    for epoch in range(1, 7):
        history.append(
            {"epoch": epoch, "val_top1": max(0.1, top * (1 - 0.5**epoch)), "val_loss": 1.0, "seconds": 2.0}
        )
        if epoch < 6:
            watch(history)
    return Outcome(history[-1]["val_top1"], history, {"val_loss": 1.0, "epoch": 6, "seconds": 12.0})


def play(search: Search, trials: int, work: Any = arithmetic) -> Any:
    """Do as `edgetune tune` does, without networks; return the study."""
    with studies.turn(search.out):
        study = studies.open_study(search.out, {"of": "colours"}, 6)
        mine = as_it_is(search.draft.recipe, search.space)
        if not study.get_trials() and mine:
            study.enqueue_trial(mine, user_attrs={"as_it_is": True})
    while True:
        with studies.turn(search.out):
            ticket = studies.begin_trial(study, search.out, search.space, trials, 0)
        if ticket is None:
            return study
        studies.run_trial(study, ticket, work, search.limit_ms)
