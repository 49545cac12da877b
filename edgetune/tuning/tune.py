"""`edgetune tune`: trials until there are enough, the winner tested once and written out.

No trial is given the test split: it is looked at when the search is over, for the winner. It may import
everything below the cli but steps.
"""

import json
import os
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from edgetune import learned, pipeline
from edgetune.artifact import write_atomic
from edgetune.data.folders import Dataset
from edgetune.errors import ConfigError, MissingTool, StageError
from edgetune.latency.statistics import wilson
from edgetune.profile import Target, load_target
from edgetune.progress import Progress, Silent
from edgetune.recipe import Recipe, Span
from edgetune.store import Store
from edgetune.tuning import study as studies
from edgetune.tuning.outcome import outcome
from edgetune.tuning.space import Draft, Space, as_it_is, described, own_values, space_of, write_recipe
from edgetune.tuning.trial import Search, tested, work

BEST, TESTED = "best.yaml", "tested.json"
# What a network depends on.
SECTIONS = ("model", "finetune", "distill", "export", "quantize")


def tune(
    path: Path,
    trials: int,
    out: Path | None = None,
    *,
    profile: str = "",
    accelerator: str = "auto",
    command: str = "",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Search a recipe's settings until so many trials are done, by this process and others.

    Args:
        path: the recipe; its `tune` section says what is searched and what for.
        trials: of the whole study. The same call goes on with what is there; made by several processes at
            once, they share the trials.
        out: the study's folder; default: `runs/NAME/tune`.
        profile: instead of the recipe's.
        accelerator: `auto`, `cpu` or `cuda`.
        command: what the user typed, for the report.
        progress: told of every trial.

    Returns:
        The content of tune.json.

    Raises:
        ConfigError: the recipe or its space is wrong, or the folder holds another study.
        MissingTool: a GPU is asked for where none is.
        StageError: every trial failed, none keeps to the latency, or the disk is full.
    """
    progress = progress or Silent()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "edgetune tune is not started by torchrun: its processes share the trials, not a training",
            hint="start the same command once for each GPU, with CUDA_VISIBLE_DEVICES",
        )
    draft = Draft.load(path)
    recipe = draft.recipe
    target = load_target(profile or recipe.profile)
    _refuse_latency_elsewhere(recipe, target)
    pipeline.preflight(recipe, target, accelerator)
    space = space_of(draft)
    _preflight_choices(draft, space, target)
    out = out or Path("runs") / recipe.name / "tune"
    mine = as_it_is(recipe, space)
    with studies.turn(out):
        data = pipeline.look(recipe, out, progress)
        # Before any trial: two processes must not make it at once.
        learned.make_teacher(Store(out, progress.line), recipe, data, accelerator, progress)
        study = studies.open_study(out, _about(draft, space, target, data), recipe.finetune.epochs)
        if mine is None:
            progress.line("the recipe's own settings lie outside the space: they are no trial")
        elif not study.get_trials(deepcopy=False):
            study.enqueue_trial(mine, user_attrs={"as_it_is": True})
    search = Search(draft, space, target, out, data, accelerator, progress)
    _search(search, study, trials)
    with studies.turn(out):
        return _conclude(search, study, command)


def _search(search: Search, study: optuna.Study, trials: int) -> None:
    seed, limit_ms = search.draft.recipe.tune.seed, search.limit_ms
    while True:
        with studies.turn(search.out):
            ticket = studies.begin_trial(study, search.out, search.space, trials, seed)
        if ticket is None:
            if (few := studies.combinations(search.space)) < trials:
                search.progress.line(f"there are no more than {few} combinations: all are tried")
            return
        began = time.perf_counter()
        search.progress.line(f"trial {ticket.trial.number}: {_said(ticket.values)}")
        done = studies.run_trial(study, ticket, partial(work, search), limit_ms)
        with studies.turn(search.out):
            best = studies.best_of(study, limit_ms)
            _tidy(search.out, study, best)
        search.progress.line(
            f"trial {done.number}: {_result(done)}, {time.perf_counter() - began:.1f} s; best so far: "
            + (f"{100 * (best.value or 0):.1f}% (trial {best.number})" if best else "none")
        )


def _conclude(search: Search, study: optuna.Study, command: str) -> dict[str, Any]:
    """Test the winner where nothing is under way any more, write its recipe and the report. Within `turn`."""
    from edgetune.report.tune import publish

    best, running = studies.best_of(study, search.limit_ms), studies.alive(study)
    winner = _winner(search, study, best, over=not running) if best else None
    report = outcome(search, study, winner, running, command)
    publish(report, search.out)
    if running:
        search.progress.line(
            f"{running} trials are under way in other processes; the last one tests the winner"
        )
    elif best is None:
        raise _nothing(study, search.limit_ms)
    return report


def _winner(search: Search, study: optuna.Study, best: FrozenTrial, *, over: bool) -> dict[str, Any]:
    recipe, values = search.draft.recipe, best.user_attrs["values"]
    own = own_values(recipe, search.space)
    changed = {key: value for key, value in values.items() if value != own[key]}
    top1, images = best.value or 0.0, len(search.data.splits["val"])
    interval = wilson(round(top1 * images), images)
    told = sum(map(studies.counts, study.get_trials(deepcopy=False)))
    head = [
        f"edgetune run {BEST}",
        "",
        f"The best of {told} trials of edgetune tune {search.draft.document.path.name}: trial {best.number},",
        f"{100 * top1:.1f}% of {images} validation inputs.",
    ]
    write_recipe(search.draft, changed, head, search.out / BEST)
    return {
        "number": best.number, "values": values, "changed": {key: {"was": own[key]} for key in changed},
        "val": {"images": images, "top1": top1, **interval._asdict()}, "recipe": BEST,
        **(_tested(search, best) if over else {"test": None, "looks": []}),
    }  # fmt: skip


def _tested(search: Search, best: FrozenTrial) -> dict[str, Any]:
    """Look at the test split for the winner, unless that was done before.

    A search that goes on may find another winner: then the split is looked at again, and the report says so.
    """
    file, key = search.out / TESTED, str(best.number)
    known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if key not in known:
        folder = search.out / "trials" / best.user_attrs["folder"]
        right = tested(search, best.user_attrs["values"], folder)
        ends = wilson(int(right.sum()), right.size)
        known[key] = {"images": right.size, "top1": float(right.mean()), **ends._asdict()}
        write_atomic(file, json.dumps(known, indent=1) + "\n")
    return {"test": known[key], "looks": sorted(int(other) for other in known if other != key)}


def _about(draft: Draft, space: Space, target: Target, data: Dataset) -> dict[str, Any]:
    """Say what a study is about: another one must not go on in its folder."""
    recipe = draft.recipe.model_dump(mode="json")
    return {
        "schema_version": 1,
        **{section: recipe[section] for section in SECTIONS if section in recipe},
        "images": data.digest,
        "profile": target.label,
        "tune": {key: value for key, value in recipe["tune"].items() if key != "space"},
        "space": described(space),
    }


def _preflight_choices(draft: Draft, space: Space, target: Target) -> None:
    """Find out about names and files before an hour is spent."""
    for key, axis in space.axes.items():
        for value in () if isinstance(axis, Span) else axis:
            try:
                pipeline.preflight(draft.changed({key: value}), target)
            except (ConfigError, MissingTool) as error:
                line = draft.document.line(("tune", "space", key))
                place = f"{draft.document.path}:{line}: tune.space.{key}: {value}"
                raise type(error)(f"{place}: {error.message}", hint=error.hint) from error


def _refuse_latency_elsewhere(recipe: Recipe, target: Target) -> None:
    if recipe.tune.latency_ms is not None and not target.is_host:
        raise ConfigError(
            f"tune.latency_ms is this machine's, but the profile is {target.label}",
            hint="--profile host-cpu searches for this machine; without latency_ms accuracy alone decides",
        )


def _nothing(study: optuna.Study, limit_ms: float | None) -> StageError:
    """Say why there is no winner."""
    timed = [trial.user_attrs["latency_ms"] for trial in studies.completed(study) if limit_ms is not None]
    if timed:
        return StageError(
            f"no trial keeps to tune.latency_ms: {limit_ms:g}; the fastest took {min(timed):.3g} ms",
            hint="raise it, or let the space hold smaller networks: model.name, model.size_px",
        )
    reasons = filter(None, map(studies.reason, study.get_trials(deepcopy=False)))
    return StageError(
        f"every trial failed, the first one so: {next(reasons, 'unknown')}",
        hint="mend the recipe or narrow tune.space (a lower learning rate), and name another folder with -o",
    )


def _tidy(out: Path, study: optuna.Study, best: FrozenTrial | None) -> None:
    """Remove what ended trials left behind, the best one's aside: all of it can be made again."""
    ended: set[str | None] = set()
    kept: set[str | None] = set()
    for trial in study.get_trials(deepcopy=False):
        won = best is not None and trial.number == best.number
        (ended if trial.state.is_finished() and not won else kept).add(trial.user_attrs.get("folder"))
    for name in ended - kept - {None}:
        shutil.rmtree(out / "trials" / str(name), ignore_errors=True)


def _said(values: dict[str, Any]) -> str:
    return "  ".join(f"{key.rpartition('.')[2]} {value}" for key, value in values.items())


def _result(trial: FrozenTrial) -> str:
    if trial.state.name == "COMPLETE":
        ms = trial.user_attrs.get("latency_ms")
        return f"{100 * (trial.value or 0.0):.1f}%" + (f", {ms:.3g} ms" if ms else "")
    why = studies.reason(trial)
    return f"failed: {why}" if why else f"stopped after epoch {trial.last_step}, it was behind"
