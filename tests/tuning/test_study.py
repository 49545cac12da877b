"""Trials that are arithmetic: shared by processes, killed and tried again, pruned, failed, resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from colours import SPACE, arithmetic, play
from optuna.trial import TrialState

from edgetune.errors import ConfigError, StageError
from edgetune.tuning import study as studies
from edgetune.tuning.study import MOST_TRIES, Outcome, Watch
from edgetune.tuning.trial import Search

Searching = Callable[..., Search]


def begin(search: Search, study: Any, most: int = 100) -> Any:
    with studies.turn(search.out):
        return studies.begin_trial(study, search.out, search.space, most, 0)


def counted(study: Any) -> list[Any]:
    return [trial for trial in study.get_trials() if studies.counts(trial)]


def test_the_recipe_as_it_is_comes_first_and_better_settings_are_found(searching: Searching) -> None:
    search = searching()
    study = play(search, 20)
    found = counted(study)
    assert len(found) == 20
    assert found[0].user_attrs["values"] == {
        "finetune.learning_rate": 0.003, "finetune.strategy": "full", "finetune.batch": 8,
    }  # fmt: skip
    best = studies.best_of(study, None)
    assert best is not None
    assert best.value > found[0].value
    pruned = [trial for trial in found if trial.state == TrialState.PRUNED]
    assert pruned
    assert all(trial.last_step < 6 for trial in pruned)
    assert all(trial.last_step >= 3 for trial in pruned), "the first third of the epochs is not judged"
    rates = [trial.user_attrs["values"]["finetune.learning_rate"] for trial in found]
    assert all(1e-4 <= rate <= 1e-1 and float(f"{rate:.3g}") == rate for rate in rates)
    assert sum(studies.importance(study).values()) == pytest.approx(1)


def test_a_search_that_goes_on_proposes_what_it_would_have(searching: Searching, tmp_path: Path) -> None:
    search = searching()
    play(search, 5)
    on = play(search, 12)
    straight = play(search._replace(out=tmp_path / "straight"), 12)
    assert [t.user_attrs["values"] for t in counted(on)] == [
        t.user_attrs["values"] for t in counted(straight)
    ]
    assert len(counted(play(search, 7))) == 12, "what is done is done"


LISTS = """\
  space: {finetune.learning_rate: [0.003, 0.01], finetune.batch: [4, 8, 16]}
"""


def test_where_all_can_be_tried_each_is_tried_once(searching: Searching) -> None:
    search = searching(LISTS)
    study = play(search, 1, simple)
    # Two under way at once.
    for ticket in [begin(search, study), begin(search, study)]:
        studies.run_trial(study, ticket, simple)
    play(search, 20, simple)
    values = [tuple(t.user_attrs["values"].values()) for t in counted(study)]
    assert len(values) == 6
    assert len(set(values)) == 6, "the same settings make the same network"
    assert studies.combinations(search.space) == 6
    assert studies.combinations(searching().space) == float("inf")


def simple(values: dict[str, Any], folder: Path, watch: Watch) -> Outcome:
    return arithmetic({**values, "finetune.strategy": "full"}, folder, watch)


def test_a_killed_trial_is_tried_again_in_its_folder(searching: Searching) -> None:
    search = searching()
    study = play(search, 1)
    lost = begin(search, study)
    os.close(lost.lock)
    again = begin(search, study)
    assert (again.values, again.folder) == (lost.values, lost.folder)
    assert again.trial.number != lost.trial.number
    studies.run_trial(study, again, arithmetic)
    assert len(counted(study)) == 2


def test_a_trial_under_way_elsewhere_is_left_alone(searching: Searching) -> None:
    search = searching()
    study = play(search, 1)
    first, second = begin(search, study), begin(search, study)
    assert first.folder != second.folder
    assert studies.alive(study) == 2
    assert begin(search, study, most=3) is None, "trials under way count"
    for ticket in (first, second):
        studies.run_trial(study, ticket, arithmetic)
    assert studies.alive(study) == 0


def test_what_kills_its_process_every_time_is_given_up(searching: Searching) -> None:
    search = searching()
    study = play(search, 1)
    values = []
    for _ in range(MOST_TRIES + 1):
        ticket = begin(search, study)
        values.append(json.dumps(ticket.values))
        os.close(ticket.lock)
    assert len(set(values[:MOST_TRIES])) == 1
    assert values[MOST_TRIES] != values[0]
    given_up = [trial for trial in counted(study) if studies.reason(trial)]
    assert [studies.reason(trial) for trial in given_up] == [
        "its process was killed 3 times; memory may not do"
    ]


def test_settings_that_cannot_be_trained_with_fail_alone(searching: Searching) -> None:
    def diverges(values: dict[str, Any], folder: Path, watch: Watch) -> Outcome:
        if values["finetune.learning_rate"] > 0.01:
            raise StageError("the loss is no finite number")
        return arithmetic(values, folder, watch)

    study = play(searching(), 12, diverges)
    failed = [trial for trial in counted(study) if studies.reason(trial)]
    assert failed
    assert all(trial.user_attrs["values"]["finetune.learning_rate"] > 0.01 for trial in failed)
    assert len(counted(study)) == 12
    best = studies.best_of(study, None)
    assert best is not None
    assert not studies.reason(best)


def test_a_full_disk_is_no_fault_of_the_settings(searching: Searching) -> None:
    search = searching()
    study = play(search, 1)

    def full(values: dict[str, Any], folder: Path, watch: Watch) -> Outcome:
        raise StageError("the disk is full") from OSError(28, "No space left on device")

    ticket = begin(search, study)
    with pytest.raises(StageError, match="the disk is full"):
        studies.run_trial(study, ticket, full)
    again = begin(search, study)
    assert again.values == ticket.values


def test_half_a_line_of_a_killed_writer_is_cut_off(searching: Searching) -> None:
    search = searching()
    play(search, 3)
    journal = search.out / studies.JOURNAL
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":4,"worker_id":"x' + b"y" * 9000)
    study = play(search, 5)
    assert len(counted(study)) == 5
    assert journal.read_bytes().startswith(whole)
    assert all(json.loads(line) for line in journal.read_text().splitlines())


def test_a_journal_without_a_whole_line_becomes_empty(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    for content, kept in ((b"", b""), (b"abc", b""), (b"a\nb\n", b"a\nb\n"), (b"a\nb", b"a\n")):
        journal.write_bytes(content)
        studies.mend(journal)
        assert journal.read_bytes() == kept


def test_another_study_is_refused_and_says_what_differs(searching: Searching) -> None:
    search = searching()
    play(search, 1)
    with pytest.raises(ConfigError, match="holds a study of something else: of differ") as caught:
        studies.open_study(search.out, {"of": "shapes"}, 6)
    assert "-o" in caught.value.hint
    (search.out / studies.STUDY_FILE).write_text("half")
    with pytest.raises(ConfigError, match="not a study"):
        studies.open_study(search.out, {"of": "colours"}, 6)


def timed(values: dict[str, Any], folder: Path, watch: Watch) -> Outcome:
    """The larger the batch, the slower the network; what is slow is better."""
    found = arithmetic({**values, "finetune.strategy": "full"}, folder, watch)
    return found._replace(figures=found.figures | {"latency_ms": values["finetune.batch"] / 4})


def test_the_winner_keeps_to_the_limit(searching: Searching) -> None:
    search = searching(SPACE + "  objective: int8\n  latency_ms: 2.5\n")
    study = play(search, 16, timed)
    best = studies.best_of(study, 2.5)
    assert best is not None
    assert best.user_attrs["latency_ms"] <= 2.5
    assert studies.best_of(study, 0.5) is None
    front = [study.get_trials()[number] for number in studies.front(study)]
    assert front
    pairs = [(t.user_attrs["latency_ms"], t.value) for t in front]
    assert pairs == sorted(pairs)
    for trial in studies.completed(study):
        beaten = any(ms <= trial.user_attrs["latency_ms"] and top1 >= trial.value for ms, top1 in pairs)
        assert beaten, "every trial lies on the front or behind it"


def test_equals_are_told_apart_by_their_loss(searching: Searching) -> None:
    losses = iter([0.5, 0.2, 0.9])

    def alike(values: dict[str, Any], folder: Path, watch: Watch) -> Outcome:
        return Outcome(0.8, [], {"val_loss": next(losses)})

    best = studies.best_of(play(searching(), 3, alike), None)
    assert best is not None
    assert best.number == 1


CHILD = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import colours
from edgetune.profile import load_target
from edgetune.progress import Silent
from edgetune.tuning.space import Draft, space_of
from edgetune.tuning.trial import Search
draft = Draft.load(Path(sys.argv[2]))
search = Search(draft, space_of(draft), load_target("host-cpu"), Path(sys.argv[3]), None, "cpu", Silent())
def work(values, folder, watch):
    (folder / "begun").touch()
    time.sleep(float(sys.argv[5]))
    return colours.arithmetic(values, folder, watch)
colours.play(search, int(sys.argv[4]), work)
"""


def child(recipe: Path, out: Path, trials: int, seconds: float) -> subprocess.Popen[bytes]:
    arguments = [str(Path(__file__).parent), str(recipe), str(out), str(trials), str(seconds)]
    return subprocess.Popen([sys.executable, "-c", CHILD, *arguments], stderr=subprocess.PIPE)


@pytest.mark.slow
def test_processes_share_the_trials_and_one_is_killed(searching: Searching, tmp_path: Path) -> None:
    search = searching()
    recipe = search.draft.document.path
    doomed = child(recipe, search.out, 10, 60)
    deadline = time.monotonic() + 60
    while not list(search.out.glob("trials/*/begun")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(search.out.glob("trials/*/begun")), doomed.poll()
    others = [child(recipe, search.out, 10, 0.01) for _ in range(2)]
    doomed.send_signal(signal.SIGKILL)
    doomed.wait()
    for other in others:
        _, complaints = other.communicate(timeout=60)
        assert other.returncode == 0, complaints.decode()
    study = play(search, 10)
    found = counted(study)
    assert len(found) == 10
    assert all(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in found)
    assert len({trial.user_attrs["folder"] for trial in found}) == 10
    assert found[0].user_attrs.get("tries", 1) + found[-1].user_attrs.get("tries", 1) >= 2
    assert sum(trial.user_attrs.get("tries", 1) for trial in found) == 11, "the killed one was tried again"
