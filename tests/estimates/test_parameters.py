"""The shipped parameters, the rows they were fitted to, and files of a user's own."""

import csv
import json
from pathlib import Path

import pytest

from edgetune.errors import ArtifactError, ConfigError
from edgetune.estimates.fitting import PRIORS
from edgetune.estimates.hardware import hardware_of
from edgetune.estimates.parameters import PUBLISHED, SHIPPED, load_parameters
from edgetune.profile import load_target

# What estimates have to reach on rows that their fit has not seen; both held out: half as wide again.
MEDIAN, BEYOND, LARGEST, WIDEST = 0.12, 0.30, 0.50, 1.4


def rows() -> list[dict[str, str]]:
    """All published rows."""
    with PUBLISHED.open(newline="") as file:
        found = list(csv.DictReader(file))
    assert len(found) > 70
    return found


def test_every_row_has_a_source_and_a_target_or_a_reason() -> None:
    for row in rows():
        assert row["source"], row
        assert float(row["value"]) > 0
        assert bool(row["target"]) != bool(row["left_out"]), row
        assert not row["target"] or row["mode"] == "stated" or row["mode"].startswith("assigned: "), row


def test_targets_of_rows_can_be_estimated() -> None:
    used = [row for row in rows() if row["target"]]
    for name in {row["target"] for row in used}:
        target = load_target(name)
        assert hardware_of(target.profile, target.mode) is not None, name
    assert {row["precision"] for row in used} == {"int8", "fp16"}


def test_parameters_belong_to_the_rows() -> None:
    known, used = load_parameters(), [row for row in rows() if row["target"]]
    assert known.rows == len(used)
    assert set(known.devices) == {row["target"] for row in used}
    assert set(known.networks) == {row["network"] for row in used}
    assert set(known.values) == set(PRIORS)
    assert {f"source_{row['measured']}" for row in used} - {"source_netspresso"} <= set(known.values)
    assert 0 <= known.values["overlap"] <= 1


def test_errors_on_rows_held_out_are_within_the_aim() -> None:
    errors = load_parameters().errors
    for by, room in (("device", 1.0), ("network", 1.0), ("both", 1.25)):
        assert errors[by]["median"] <= MEDIAN * room
        assert errors[by]["largest"] <= LARGEST
    assert errors["device"]["p90"] <= BEYOND
    assert errors["network"]["p90"] <= BEYOND
    assert errors["both"]["p90"] <= 0.35
    for held in errors.values():
        assert held["int8"]["rows"] + held["fp16"]["rows"] == held["rows"] == load_parameters().rows
    assert max(load_parameters().intervals.values()) <= WIDEST


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    known = load_parameters()
    (tmp_path / "mine.json").write_text(json.dumps(known.dump()))
    assert load_parameters(tmp_path / "mine.json") == known


@pytest.mark.parametrize("text", ["", "[]", '{"values": 3}', '{"values": {"launch_us": "fast"}}'])
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(text)
    with pytest.raises(ArtifactError, match="not parameters"):
        load_parameters(tmp_path / "mine.json")


def test_damaged_parameters_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    with pytest.raises(ConfigError, match=r"mine\.json"):
        load_parameters(path)
    shipped = json.loads(SHIPPED.read_text())
    path.write_text(json.dumps(shipped | {"values": shipped["values"] | {"launch_us": -1.0}}))
    with pytest.raises(ArtifactError, match="negative"):
        load_parameters(path)
    del shipped["values"]["overlap"]
    path.write_text(json.dumps(shipped))
    with pytest.raises(ArtifactError, match="'overlap' is missing"):
        load_parameters(path)
