"""What a search found, as JSON: the content of tune.json.

It may import everything below the cli but steps.
"""

import datetime
from typing import Any

import optuna
from optuna.trial import FrozenTrial

import edgetune
from edgetune.machine import machine
from edgetune.tuning import study as studies
from edgetune.tuning.space import described
from edgetune.tuning.trial import Search

SCHEMA_VERSION = 1
FIGURES = (
    "val_loss", "epoch", "seconds", "fp32_top1", "latency_ms", "latency_low_ms", "latency_high_ms", "trusted",
)  # fmt: skip


def outcome(
    search: Search, study: optuna.Study, winner: dict[str, Any] | None, running: int, command: str
) -> dict[str, Any]:
    """Gather what a study knows.

    Args:
        search: what was searched.
        study: the trials.
        winner: the best one, judged; None where there is none.
        running: trials that are under way in other processes.
        command: what the user typed.
    """
    recipe = search.draft.recipe
    found = [trial for trial in study.get_trials(deepcopy=False) if studies.counts(trial)]
    return {
        "schema_version": SCHEMA_VERSION,
        "edgetune": edgetune.__version__,
        "made_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "name": recipe.name,
        "command": command,
        "objective": recipe.tune.objective,
        "latency_ms": search.limit_ms,
        "profile": search.target.label,
        "machine": machine(),
        "images": {split: len(samples) for split, samples in search.data.splits.items()},
        "classes": len(search.data.classes),
        "space": described(search.space),
        "as_it_is": next((trial.number for trial in found if trial.user_attrs.get("as_it_is")), None),
        "winner": winner,
        "running": running,
        "importance": studies.importance(study),
        "front": studies.front(study),
        "trials": [_trial(trial) for trial in found],
    }


def _trial(trial: FrozenTrial) -> dict[str, Any]:
    attributes = trial.user_attrs
    return {
        "number": trial.number,
        "state": "failed" if studies.reason(trial) else trial.state.name.lower(),
        "values": attributes.get("values", {}),
        "top1": trial.value if trial.state.name == "COMPLETE" else None,
        "curve": [[step, value] for step, value in sorted(trial.intermediate_values.items())],
        "tries": attributes.get("tries", 1),
        "error": studies.reason(trial),
        **{key: attributes[key] for key in FIGURES if key in attributes},
    }
