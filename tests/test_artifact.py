"""Artifacts and their store: made once, never half, and nothing changed is taken for whole."""

import errno
import json
import multiprocessing
import os
from pathlib import Path

import pytest
from pydantic import BaseModel

from edgetune import artifact as artifact_module
from edgetune import store as store_module
from edgetune.artifact import Artifact, Preprocess, disk_error, write_atomic
from edgetune.errors import ArtifactError, ConfigError, StageError
from edgetune.store import Store


class Settings(BaseModel):
    value: int = 1


class Counter:
    """A stage that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, settings: Settings, *, into: Path, fail: bool = False) -> Artifact:
        self.calls += 1
        (into / "data.bin").write_bytes(bytes([settings.value]) * 100)
        if fail:
            raise RuntimeError("cut off")
        (into / ".scratch").write_text("work in progress")
        return Artifact(kind="test", details={"seconds": self.calls}).write(into)

    __name__ = "counter"


def test_a_stage_runs_once_per_distinct_input(tmp_path: Path) -> None:
    stage, store = Counter(), Store(tmp_path)
    first = store("a", stage, Settings(value=1))
    again = Store(tmp_path)("a", stage, Settings(value=1))
    assert stage.calls == 1
    assert again.digest == first.digest
    other = store("a", stage, Settings(value=2))
    assert stage.calls == 2
    assert other.digest != first.digest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]
    assert not (tmp_path / "a" / ".scratch").exists()


def test_what_a_stage_is_not_told_can_still_count(tmp_path: Path) -> None:
    stage = Counter()
    Store(tmp_path)("a", stage, Settings(), also={"weights": "1"})
    Store(tmp_path)("a", stage, Settings(), also={"weights": "2"})
    assert stage.calls == 2


def test_a_new_version_of_a_library_makes_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Counter()
    Store(tmp_path)("a", stage, Settings(), uses=("numpy",))
    monkeypatch.setattr(artifact_module, "version", lambda _: "9.9")
    Store(tmp_path)("a", stage, Settings(), uses=("numpy",))
    assert stage.calls == 2


def test_a_crash_leaves_only_a_partial_and_the_next_call_goes_on_in_it(tmp_path: Path) -> None:
    stage = Counter()
    with pytest.raises(RuntimeError):
        Store(tmp_path)("a", stage, Settings(), fail=True)
    assert [p.name for p in tmp_path.iterdir()] == ["a.partial"]
    (tmp_path / "a.partial" / ".resume").write_text("kept for the same key")
    seen = []

    def resuming(settings: Settings, *, into: Path) -> Artifact:
        seen.append((into / ".resume").exists())
        return Counter()(settings, into=into)

    resuming.__name__ = "counter"
    Store(tmp_path)("a", resuming, Settings())
    assert seen == [True]


def test_a_partial_of_other_inputs_is_thrown_away(tmp_path: Path) -> None:
    stage = Counter()
    with pytest.raises(RuntimeError):
        Store(tmp_path)("a", stage, Settings(value=1), fail=True)
    (tmp_path / "a.partial" / "stale.bin").write_bytes(b"old")
    made = Store(tmp_path)("a", stage, Settings(value=2))
    assert "stale.bin" not in made.files


def test_a_changed_file_is_noticed_and_made_again(tmp_path: Path) -> None:
    stage, said = Counter(), list[str]()
    made = Store(tmp_path)("a", stage, Settings())
    made.file("data.bin").write_bytes(b"x" * 100)
    with pytest.raises(ArtifactError, match=r"data\.bin: changed since"):
        Artifact.load(tmp_path / "a")
    Store(tmp_path, said.append)("a", stage, Settings())
    assert stage.calls == 2
    assert any("changed since" in line for line in said)


def test_a_moved_folder_is_the_same_artifact(tmp_path: Path) -> None:
    made = Store(tmp_path / "x")("a", Counter(), Settings())
    (tmp_path / "x").rename(tmp_path / "y")
    assert Artifact.load(tmp_path / "y" / "a").digest == made.digest


def test_durations_do_not_change_the_digest(tmp_path: Path) -> None:
    one = Artifact(kind="test", details={"seconds": 1}).write(_folder(tmp_path / "1"))
    two = Artifact(kind="test", details={"seconds": 2}).write(_folder(tmp_path / "2"))
    assert one.digest == two.digest


def _folder(path: Path) -> Path:
    path.mkdir()
    (path / "f").write_bytes(b"same")
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not JSON"),
        ("{}", "kind"),
        ('{"kind": "x", "files": {"../../etc/passwd": {"sha256": "0", "bytes": 1}}}', "leads out"),
        ('{"kind": "x", "files": {"/etc/passwd": {"sha256": "0", "bytes": 1}}}', "leads out"),
        ('{"kind": "x", "files": {"gone": {"sha256": "0", "bytes": 1}}}', "No such file"),
        ('{"kind": "x", "surprise": 1}', "surprise"),
    ],
)
def test_a_bad_description_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "artifact.json").write_text(content)
    with pytest.raises(ArtifactError, match=message):
        Artifact.load(tmp_path)


def test_the_wrong_kind_is_refused(tmp_path: Path) -> None:
    Artifact(kind="onnx").write(tmp_path)
    with pytest.raises(ArtifactError, match="'onnx' artifact, where 'checkpoint' is needed"):
        Artifact.load(tmp_path, "checkpoint")


def test_a_run_folder_names_its_artifacts(tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    Artifact(kind="onnx").write(tmp_path / "onnx")
    with pytest.raises(ArtifactError) as caught:
        Artifact.load(tmp_path)
    assert "onnx" in caught.value.hint


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    with Store(tmp_path).locked():
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            assert "another edgetune" in pool.apply(_lock, (tmp_path,))
    assert _lock(tmp_path) == ""


def _lock(folder: Path) -> str:
    try:
        with Store(folder).locked():
            return ""
    except StageError as error:
        return error.message


def test_a_full_disk_ends_in_a_way_out(tmp_path: Path) -> None:
    def stage(*, into: Path) -> Artifact:
        raise OSError(errno.ENOSPC, "No space left on device", str(into / "model.onnx"))

    with pytest.raises(StageError, match="the disk is full") as caught:
        Store(tmp_path)("a", stage)
    assert "goes on from here" in caught.value.hint


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_really_full_device_is_recognised() -> None:
    with pytest.raises(OSError, match="No space left") as caught, Path("/dev/full").open("w") as full:
        full.write("x" * 100_000)
    assert "disk is full" in disk_error(caught.value, Path("/dev/full")).message


@pytest.mark.skipif(
    os.geteuid() == 0 and not Path("/proc/version").exists(), reason="needs a folder nobody writes"
)
def test_an_unwritable_folder_is_a_stage_error() -> None:
    with pytest.raises(StageError, match="/proc"):
        Store(Path("/proc/edgetune"))("a", Counter(), Settings())
    with pytest.raises(StageError, match="/proc"), Store(Path("/proc/edgetune")).locked():
        pass


def test_write_atomic_leaves_no_scratch(tmp_path: Path) -> None:
    write_atomic(tmp_path / "x.json", "1")
    write_atomic(tmp_path / "x.json", "2")
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
    assert (tmp_path / "x.json").read_text() == "2"


def test_an_interrupted_replacement_is_not_taken_for_whole(tmp_path: Path) -> None:
    stage = Counter()
    Store(tmp_path)("a", stage, Settings(value=1))
    (tmp_path / "a").rename(tmp_path / "a.old")  # cut off between the two renames
    made = Store(tmp_path)("a", stage, Settings(value=1))
    assert stage.calls == 2
    assert made.file("data.bin").read_bytes() == b"\x01" * 100


@pytest.mark.parametrize(
    "change",
    [
        {"mean": (0.5,)},
        {"std": (0.0, 1.0, 1.0)},
        {"size_px": 64},
        {"resize_px": 0},
        {"channels": 2},
        {"extra": 1},
    ],
)
def test_an_impossible_preprocess_is_refused(change: dict[str, object]) -> None:
    good = {"resize_px": 40, "size_px": 32, "channels": 3, "mean": (0.5,) * 3, "std": (0.2,) * 3}
    Preprocess.model_validate(good)
    with pytest.raises(ValueError):  # noqa: PT011
        Preprocess.model_validate(good | change)


def test_the_description_is_json_that_lists_every_file(tmp_path: Path) -> None:
    made = Store(tmp_path)("a", Counter(), Settings())
    described = json.loads((made.path / "artifact.json").read_text())
    assert list(described["files"]) == ["data.bin"]
    assert described["made_by"] == "counter"
    assert "edgetune" in described["versions"]


def test_a_kill_between_the_last_file_and_the_rename_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Counter()
    with monkeypatch.context() as patched:
        patched.setattr(store_module, "_replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            Store(tmp_path)("a", stage, Settings())
    made = Store(tmp_path)("a", stage, Settings())
    assert stage.calls == 1
    assert made.path == tmp_path / "a"
    assert Artifact.load(tmp_path / "a").made_by == "counter"


def test_a_folder_that_holds_something_else_is_kept(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years")
    with pytest.raises(
        ConfigError, match=r"precious: is there already and holds something else \(thesis.txt"
    ):
        Store(tmp_path)("precious", Counter(), Settings())
    (tmp_path / "a.partial").mkdir()
    (tmp_path / "a.partial" / "mine").write_text("x")
    with pytest.raises(ConfigError, match="something else"):
        Store(tmp_path)("a", Counter(), Settings())
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "years"


def test_a_stage_does_not_replace_what_it_reads(tmp_path: Path) -> None:
    made = Store(tmp_path)("a", Counter(), Settings())

    def copy(parent: Artifact, *, into: Path) -> Artifact:
        return Artifact(kind="copy", parents={"parent": parent.digest}).write(into)

    with pytest.raises(ConfigError, match="is what this is made from"):
        Store(tmp_path)("a", copy, made)
    with pytest.raises(ConfigError, match="is what this is made from"):
        Store(tmp_path.parent)(tmp_path.name, copy, made)
    assert Store(tmp_path)("b", copy, made).kind == "copy"


def test_an_artifact_that_is_better_made_again(tmp_path: Path) -> None:
    stage = Counter()
    Store(tmp_path)("a", stage, Settings())
    Store(tmp_path)("a", stage, Settings(), reusable=lambda made: made.details["seconds"] > 1)
    Store(tmp_path)("a", stage, Settings(), reusable=lambda made: made.details["seconds"] > 1)
    assert stage.calls == 2


def test_where_data_lay_does_not_change_the_digest(tmp_path: Path) -> None:
    for name in ("1", "2"):
        _folder(tmp_path / name)
        (tmp_path / name / "data.json").write_text(name)
    one, two = (Artifact(kind="test").write(tmp_path / name) for name in ("1", "2"))
    assert one.digest == two.digest
    assert "data.json" in one.files


@pytest.mark.parametrize("bad", ["folder", "file"])
def test_an_unreadable_artifact_is_an_artifact_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ArtifactError, match="Permission denied"):
        Artifact.load(tmp_path / bad)
