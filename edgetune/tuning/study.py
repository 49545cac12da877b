"""The search itself: Optuna proposes, several processes share its journal, what was killed is tried again.

Trials are told apart by numbers, and each works in a folder of its own, `trials/0007`, which its process keeps
locked. The lock goes with the process: a trial that is under way but not locked has lost its process, and its
settings are tried again in the same folder, where its training goes on.

The storage is Optuna's journal, not SQLite: Optuna itself advises against SQLite for several processes (a
transaction that begins with reading and goes on to write fails at once where another has written meanwhile,
whatever the timeout). The journal is one file that only grows; its lock is the kernel's, so it ends with whoever
holds it, and half a line of a writer that was killed is cut off by the next. It knows no network and no recipe.
It may import errors, recipe and this package's space.
"""

import fcntl
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from edgetune.artifact import disk_error, write_atomic
from edgetune.errors import ConfigError, EdgetuneError, MissingTool
from edgetune.recipe import Axis, Span
from edgetune.tuning.space import Space

try:
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage
    from optuna.trial import FrozenTrial, Trial, TrialState
except ImportError as error:
    raise MissingTool(
        f"edgetune tune needs Optuna, which does not load here ({error})", hint='pip install "edgetune[tune]"'
    ) from error

JOURNAL, STUDY_FILE, TURN = "journal.jsonl", "study.json", ".turn"
# A training that kills its process every time (memory) must not be begun for ever.
MOST_TRIES = 3
# Before so many trials have gone through, their median says little.
BEFORE_PRUNING = 4
DIGITS = 3

# The whole history of a training so far; what it raises ends the training.
Watch = Callable[[list[dict[str, Any]]], None]


class Outcome(NamedTuple):
    """What came of a trial that went through.

    Attributes:
        value: what is made as large as possible, a share of the validation images.
        history: of the training, an entry per epoch.
        figures: more to remember; `latency_ms` is held against the limit.
    """

    value: float
    history: list[dict[str, Any]]
    figures: dict[str, Any]


# Settings, the trial's folder and who looks on make an outcome.
Work = Callable[[dict[str, Any], Path, Watch], Outcome]


class Ticket(NamedTuple):
    """A trial that this process has begun, and the lock that says so."""

    trial: Trial
    values: dict[str, Any]
    folder: Path
    lock: int


@contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Wait until no other process decides anything in the study's folder.

    Raises:
        StageError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / TURN, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise disk_error(error, folder) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def open_study(folder: Path, about: dict[str, Any], epochs: int) -> optuna.Study:
    """Begin a study, or go on with the one in a folder. Within `turn`.

    Args:
        folder: of the study.
        about: what the search is about; another one is refused.
        epochs: of a training; the first third is not judged, since what learns more begins more slowly.

    Raises:
        ConfigError: the folder holds a study of something else.
    """
    about = json.loads(json.dumps(about))
    described = folder / STUDY_FILE
    if described.is_file():
        _refuse_other(described, about)
    else:
        write_atomic(described, json.dumps(about, indent=1) + "\n")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    journal = str(folder / JOURNAL)
    storage = JournalStorage(JournalFileBackend(journal, lock_obj=_Lock(journal)))
    pruner = optuna.pruners.MedianPruner(n_startup_trials=BEFORE_PRUNING, n_warmup_steps=1 + epochs // 3)
    return optuna.create_study(
        storage=storage, study_name="edgetune", direction="maximize", pruner=pruner, load_if_exists=True
    )


def begin_trial(study: optuna.Study, folder: Path, space: Space, most: int, seed: int) -> Ticket | None:
    """Take the next trial; None where as many as wanted are done or under way. Within `turn`."""
    reap(study, folder)
    few = combinations(space)
    begun = [t.user_attrs.get("values", {}) for t in study.get_trials(deepcopy=False) if counts(t)]
    if len(begun) >= most or len({tuple(values.items()) for values in begun}) >= few:
        return None
    number = len(study.get_trials(deepcopy=False))
    # Seeded by the number of trials, not once: a search that goes on proposes what it would have anyway.
    seed = seed * 100_003 + number
    tpe = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    # Where all can be tried, each is tried once: the same settings make the same network.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.sampler = optuna.samplers.BruteForceSampler(seed=seed) if few <= most else tpe
    trial = study.ask()
    values = {key: _suggest(trial, key, axis, key in space.whole) for key, axis in space.axes.items()}
    # The other one wants to stop a loop of Optuna's when it has tried all, and there is none.
    study.sampler = tpe
    name = str(trial.user_attrs.get("folder", f"{trial.number:04d}"))
    trial.set_user_attr("folder", name)
    trial.set_user_attr("values", values)
    place = folder / "trials" / name
    place.mkdir(parents=True, exist_ok=True)
    lock = _locked(place)
    if lock is None:
        raise ConfigError(f"{place}: another process works in it", hint="run edgetune tune again")
    return Ticket(trial, values, place, lock)


def combinations(space: Space) -> float:
    """Return how many different trials a space holds; infinity where a setting has no list of values."""
    return math.prod(math.inf if isinstance(axis, Span) else len(set(axis)) for axis in space.axes.values())


def run_trial(study: optuna.Study, ticket: Ticket, work: Work, limit_ms: float | None = None) -> FrozenTrial:
    """Do a trial's work and tell the study what came of it.

    A setting that cannot be trained with is a failed trial. What is no fault of the settings (a full disk) is
    raised, and the trial is tried again by the next call.

    Raises:
        EdgetuneError: the disk is full, or a folder cannot be written.
    """
    trial = ticket.trial
    seen = 0

    def watch(history: list[dict[str, Any]]) -> None:
        nonlocal seen
        for entry in history[seen:]:
            trial.report(entry["val_top1"], entry["epoch"])
        seen = len(history)
        if seen and trial.should_prune():
            raise optuna.TrialPruned

    try:
        outcome = work(ticket.values, ticket.folder, watch)
        for entry in outcome.history[seen:]:
            trial.report(entry["val_top1"], entry["epoch"])
        for name, figure in outcome.figures.items():
            trial.set_user_attr(name, figure)
        if limit_ms is not None:
            trial.set_constraint("latency_ms", outcome.figures["latency_ms"] - limit_ms)
        return study.tell(trial, outcome.value)
    except optuna.TrialPruned:
        return study.tell(trial, state=TrialState.PRUNED)
    except EdgetuneError as error:
        if isinstance(error.__cause__, OSError):
            raise
        trial.set_user_attr("error", error.message)
        # As a pruned one, the sampler learns to keep away; a failed one it would not look at.
        return study.tell(trial, state=TrialState.PRUNED)
    finally:
        os.close(ticket.lock)


def reap(study: optuna.Study, folder: Path) -> None:
    """Queue the settings of trials whose process is gone. Within `turn`."""
    for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        name = frozen.user_attrs.get("folder")
        # Without a folder it was killed before it had settings.
        place = folder / "trials" / name if name else None
        if place is not None and place.is_dir():
            lock = _locked(place)
            if lock is None:
                continue
            os.close(lock)
        tries = frozen.user_attrs.get("tries", 1)
        if place is not None and tries < MOST_TRIES:
            study.enqueue_trial(frozen.params, user_attrs={"folder": name, "tries": tries + 1})
        study.tell(frozen.number, state=TrialState.FAIL)


def counts(trial: FrozenTrial) -> bool:
    """Tell whether a trial is one of those that were asked for: not one that waits or is tried again."""
    if trial.state == TrialState.FAIL:
        return bool(reason(trial))
    return trial.state != TrialState.WAITING


def reason(trial: FrozenTrial) -> str:
    """Say why a trial failed for good; empty where it did not."""
    tries = trial.user_attrs.get("tries", 1)
    if trial.state == TrialState.FAIL and tries >= MOST_TRIES:
        return f"its process was killed {tries} times; memory may not do"
    return str(trial.user_attrs.get("error", ""))


def alive(study: optuna.Study) -> int:
    """Return how many trials are under way in any process."""
    return len(study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))


def best_of(study: optuna.Study, limit_ms: float | None) -> FrozenTrial | None:
    """Return the best trial that keeps to the limit; among equals the one with the lower validation loss."""
    able = [t for t in completed(study) if _excess(t, limit_ms) <= 0]
    return max(able, key=_rank, default=None)


def completed(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that went through."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def importance(study: optuna.Study) -> dict[str, float]:
    """Return how much each setting decides, as shares of one; empty where too few trials went through."""
    done = completed(study)
    if len(done) < BEFORE_PRUNING or len({trial.value for trial in done}) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {key: share for key, share in found.items() if math.isfinite(share)}


def front(study: optuna.Study) -> list[int]:
    """Return the trials that no other one beats in both accuracy and latency, the fastest first."""
    timed = [t for t in completed(study) if "latency_ms" in t.user_attrs]
    found: list[FrozenTrial] = []
    for trial in sorted(timed, key=lambda t: (t.user_attrs["latency_ms"], -(t.value or 0.0))):
        if not found or (trial.value or 0.0) > (found[-1].value or 0.0):
            found.append(trial)
    return [trial.number for trial in found]


def _suggest(trial: Trial, key: str, axis: Axis, whole: bool) -> Any:
    if not isinstance(axis, Span):
        return trial.suggest_categorical(key, axis)
    if whole:
        step = round(axis.step or 1)
        return trial.suggest_int(key, round(axis.low), round(axis.high), step=step, log=axis.log)
    found = trial.suggest_float(key, axis.low, axis.high, step=axis.step, log=axis.log)
    # A recipe is read by people; more digits decide nothing.
    return min(max(float(f"{found:.{DIGITS}g}"), axis.low), axis.high)


def _rank(trial: FrozenTrial) -> tuple[float, float, int]:
    return trial.value or 0.0, -trial.user_attrs.get("val_loss", math.inf), -trial.number


def _excess(trial: FrozenTrial, limit_ms: float | None) -> float:
    """Return by how much a trial's network is slower than the limit, in ms."""
    return 0.0 if limit_ms is None else trial.user_attrs.get("latency_ms", math.inf) - limit_ms


def _locked(folder: Path) -> int | None:
    """Lock a folder until the handle is closed or the process ends; None where another one has it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def _refuse_other(described: Path, about: dict[str, Any]) -> None:
    try:
        known = json.loads(described.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{described}: not a study ({error})", hint="name another folder with -o, or delete this one"
        ) from error
    if known == about:
        return
    different = sorted(
        {*_flat(known).items()} ^ {*_flat(about).items()}, key=lambda item: (item[0], str(item[1]))
    )
    names = list(dict.fromkeys(name for name, _ in different))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    raise ConfigError(
        f"{described.parent}: holds a study of something else: {', '.join(names[:3])}{more} differ",
        hint="name another folder with -o, or delete this one",
    )


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Return nested values by their dotted names."""
    if isinstance(value, dict) and value:
        parts = (_flat(item, f"{prefix}.{key}" if prefix else str(key)) for key, item in value.items())
        return {key: item for part in parts for key, item in part.items()}
    return {prefix: json.dumps(value)}


class _Lock(JournalFileOpenLock):
    """The kernel's lock on a file beside the journal: unlike a file that is the lock, no kill leaves it behind."""

    def __init__(self, journal: str) -> None:
        super().__init__(journal)
        self._journal = journal
        self._handle = -1

    def acquire(self) -> bool:
        """Wait for the lock, and cut off half a line that a writer left when it was killed."""
        self._handle = os.open(self._journal + ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(self._handle, fcntl.LOCK_EX)
        mend(Path(self._journal))
        return True

    def release(self) -> None:
        """Let others write."""
        os.close(self._handle)


def mend(journal: Path) -> None:
    """Cut a journal behind its last whole line. Only its one writer may do that."""
    with journal.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            begin = max(0, end - 4096)
            file.seek(begin)
            found = file.read(end - begin).rfind(b"\n")
            if found >= 0:
                end = begin + found + 1
                break
            end = begin
        if end < file.seek(0, os.SEEK_END):
            file.truncate(end)
