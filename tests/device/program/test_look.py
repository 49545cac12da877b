"""Reading files and asking programs: an empty answer where there is none, never an error."""

import sys
from pathlib import Path

from edgetune.device.program import look


def test_files_that_cannot_be_read_are_empty(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert look.read(str(tmp_path), "folder") == look.read(str(tmp_path), "/none") == ""
    assert look.read(str(tmp_path), "a\0b") == ""
    assert look.number(str(tmp_path), "none") is None


def test_numbers_sort_as_numbers(tmp_path: Path) -> None:
    for number in (10, 9, 1):
        (tmp_path / f"zone{number}").touch()
    assert look.entries(str(tmp_path), "/zone*") == ["/zone1", "/zone9", "/zone10"]
    assert look.entries(str(tmp_path / "none"), "*") == []


def test_a_program_says_its_part_on_both_streams_and_reads_what_it_is_fed() -> None:
    code = (
        "import sys; print(sys.stdin.read()); sys.stdout.flush(); print('no', file=sys.stderr); sys.exit(3)"
    )
    assert look.run([sys.executable, "-c", code], {}, feed="yes") == (3, "yes\nno\n")


def test_a_program_that_is_not_there_or_does_not_end_gives_no_answer(tmp_path: Path) -> None:
    assert look.run([str(tmp_path / "none")], {}) is None
    assert look.run([sys.executable, "-c", "import time; time.sleep(60)"], {}, seconds=0.1) is None
    assert look.run([sys.executable, "\0"], {}) is None


def test_administrators_programs_are_found_without_their_folder_on_path(tmp_path: Path, monkeypatch) -> None:
    tool = tmp_path / "sbin" / "nvpmodel"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    assert look.find("nvpmodel", {"PATH": ""}) is None
    monkeypatch.setattr(look, "USUAL", (str(tool.parent),))
    assert look.find("nvpmodel", {"PATH": "/none"}) == look.find("nvpmodel", {}) == str(tool)
