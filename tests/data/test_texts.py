"""Texts of tables and of class folders: found, refused by byte and line, and read again by their digest."""

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.data.calibration import choose_samples, load_manifest, save_manifest
from edgetune.data.folders import Dataset, load_dataset, save_dataset, scan, unchanged
from edgetune.data.texts import text_of
from edgetune.data.unlabelled import gather_texts
from edgetune.errors import ArtifactError, ConfigError
from edgetune.progress import Silent
from edgetune.recipe import DataSection, recipe_from


def look(path: Path, **more: object) -> Dataset:
    return scan(DataSection(path=str(path), task="text-classification", min_images=2, **more), path)


def rows(count: int = 40) -> list[tuple[str, str]]:
    return [(f"text number {index}", ("yes", "no")[index % 2]) for index in range(count)]


def table(path: Path, content: list[tuple[str, str]], header: tuple[str, str] = ("text", "label")) -> Path:
    with path.open("w", encoding="utf-8", newline="") as handle:
        csv.writer(handle, delimiter="\t" if path.suffix == ".tsv" else ",").writerows([header, *content])
    return path


def texts_of(data: Dataset) -> dict[str, str]:
    samples = [sample for split in data.splits.values() for sample in split]
    return {text_of(data.root, sample.path, sample.sha256): data.classes[sample.label] for sample in samples}


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_a_table_is_cut_like_images_are(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"all.{ending}"
    if ending == "jsonl":
        path.write_text("".join(json.dumps({"text": t, "label": name}) + "\n" for t, name in rows()))
    else:
        table(path, rows())
    data = look(path)
    assert data.classes == ("no", "yes")
    assert data.noun == "text"
    assert texts_of(data) == dict(rows())
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 28, "val": 4, "test": 8}
    saved = tmp_path / "data.json"
    save_dataset(data, saved)
    assert load_dataset(saved).digest == data.digest
    assert texts_of(load_dataset(saved)) == dict(rows())


fields = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), min_size=1).filter(str.strip)


@given(st.lists(fields, min_size=12, max_size=16, unique_by=str.strip))
def test_any_text_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    folder = tmp_path_factory.mktemp("any")
    wanted = {text.strip(): str(index % 2) for index, text in enumerate(texts)}
    path = folder / "any.jsonl"
    path.write_text("".join(json.dumps({"a": t, "b": i % 2}) + "\n" for i, t in enumerate(texts)))
    named = {"text": "a", "label": "b", "val_share": 0.2, "test_share": 0.2}
    section = DataSection(path=str(path), task="text-classification", min_images=2, **named)
    for file in (path, table(folder / "any.csv", [(t, str(i % 2)) for i, t in enumerate(texts)], ("a", "b"))):
        assert texts_of(scan(section, file)) == wanted


def test_class_folders_of_txt_files(tmp_path: Path) -> None:
    for index, (text, name) in enumerate(rows(24)):
        place = tmp_path / ("train" if index < 16 else "test") / name / f"{index}.txt"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"\n{text}\n")
    (tmp_path / "train" / "yes" / "notes.md").write_text("no text")
    data = look(tmp_path)
    assert texts_of(data) == dict(rows(24))
    assert len(data.splits["test"]) == 8
    assert any("1 files are not texts" in warning for warning in data.warnings)


def test_tables_named_after_splits(tmp_path: Path) -> None:
    table(tmp_path / "train.csv", rows(20))
    table(tmp_path / "test.csv", [*rows(6), ("another one", "yes")])
    data = look(tmp_path)
    assert len(data.splits["test"]) == 7
    # What is in both is named, as for images.
    assert len(data.duplicates) == 6
    assert any("6 texts are in more than one split: test.csv:2 = train.csv:2" in w for w in data.warnings)


def test_columns_are_found_or_named(tmp_path: Path) -> None:
    odd = table(tmp_path / "odd.csv", rows(), ("Was", "Wie"))
    with pytest.raises(ConfigError, match="none of the columns 'Was', 'Wie' is called text") as caught:
        look(odd)
    assert "data.text: COLUMN" in caught.value.hint
    assert len(look(odd, text="Was").splits["train"]) == 28
    with pytest.raises(ConfigError, match="no column 'What'") as caught:
        look(odd, text="What")
    assert "did you mean 'Was'" in caught.value.hint
    with pytest.raises(ConfigError, match="same column"):
        look(odd, text="Was", label="Was")


def test_a_bom_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    path = table(tmp_path / "bom.csv", rows())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert look(path).classes == ("no", "yes")


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        (
            "text,label\na,yes\nb,no\n餐,no\n".encode("gb18030"),
            r":4: byte 0xB2 at \d+ is not UTF-8",
            "GB18030",
        ),
        ("text,label\ncafé,yes\n".encode("latin-1"), r":2: byte 0xE9 at 14 is not UTF-8", "CP1252"),
        ("text,label\na,yes\n".encode("utf-16"), ":1: byte 0xFF: UTF-16", "iconv -f UTF-16"),
    ],
)
def test_other_encodings_are_refused_by_byte_and_line(
    tmp_path: Path, content: bytes, message: str, hint: str
) -> None:
    path = tmp_path / "other.csv"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        look(path)
    assert hint in caught.value.hint


def test_empty_texts_and_missing_labels_are_left_out_and_named(tmp_path: Path) -> None:
    bad = table(tmp_path / "bad.csv", [*rows(), ("  ", "yes"), ("no label", "")])
    data = look(bad)
    assert data.broken == (("bad.csv:42", "empty"), ("bad.csv:43", "without a label"))
    assert any("2 unreadable texts are left out" in warning for warning in data.warnings)
    with pytest.raises(ConfigError, match=r"4 of 44 texts \(9.1%\) cannot be read: bad.csv:42: empty"):
        look(table(tmp_path / "bad.csv", [*rows(), *[("", "yes")] * 4]))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ([(text, "yes") for text, _ in rows()], r"some.csv: one class only \('yes'\)"),
        (
            [*rows(), ("rare", "maybe")],
            r"2 texts of each class are needed.*fewer are there of: 'maybe' \(1\)",
        ),
    ],
)
def test_labels_that_cannot_be_learned(tmp_path: Path, made: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        look(table(tmp_path / "some.csv", made))


def test_a_label_that_training_does_not_know_is_named(tmp_path: Path) -> None:
    table(tmp_path / "train.csv", rows(20))
    strange = [("what is this", "unheard"), ("and this", "unheard"), ("hm", "unseen")]
    table(tmp_path / "test.csv", [*rows(6), *strange])
    with pytest.raises(
        ConfigError, match=r"no training text of: 'unheard' \(test.csv:8\), 'unseen' \(test.csv:10\)"
    ):
        look(tmp_path)


def test_tables_that_are_none(tmp_path: Path) -> None:
    open_quote = tmp_path / "open.csv"
    open_quote.write_text('text,label\nfine,yes\n"never closed,no\nrest,no\n')
    with pytest.raises(ConfigError, match=r"open.csv:3: unexpected end of data"):
        look(open_quote)
    wide = tmp_path / "wide.csv"
    wide.write_text("text,label\n" + "".join(f"{t},{n}\n" for t, n in rows()) + "one, two, three,yes\n")
    assert look(wide).broken == (("wide.csv:42", "4 fields, where there are 2 columns"),)
    lines = tmp_path / "lines.jsonl"
    good = "".join(json.dumps({"text": t, "label": n}) + "\n" for t, n in rows())
    lines.write_text(good + "{broken\n[1]\n")
    assert [path for path, _ in look(lines).broken] == ["lines.jsonl:41", "lines.jsonl:42"]
    assert look(lines).broken[1][1] == "not a JSON object"
    lines.write_text(
        good + '{"text": "half \\ud83d of it", "label": "yes"}\n{"text": ["a"], "label": "no"}\n'
    )
    assert look(lines).broken == (("lines.jsonl:41", "half a character"), ("lines.jsonl:42", "empty"))
    apart = tmp_path / "apart.csv"
    apart.write_text("text;label\na;yes\n")
    with pytest.raises(ConfigError, match="none of the columns 'text;label'") as caught:
        look(apart)
    assert "not by ';'" in caught.value.hint
    for name, message in (
        ("empty.csv", "is empty"),
        ("bare.csv", "bare.csv: no text"),
        ("notes.md", "no table of texts"),
        ("gone.csv", "no such"),
    ):
        if name != "gone.csv":
            (tmp_path / name).write_text("text,label\n" if name == "bare.csv" else "")
        with pytest.raises(ConfigError, match=message):
            look(tmp_path / name)


def test_a_row_that_changed_is_not_read_as_if_it_had_not(tmp_path: Path) -> None:
    path = table(tmp_path / "all.csv", rows())
    data = look(path)
    table(path, [("another text", name) for _, name in rows()])
    sample = data.splits["train"][0]
    with pytest.raises(ConfigError, match="changed since"):
        text_of(data.root, sample.path, sample.sha256)


def test_a_quoted_text_of_several_lines_is_one_row(tmp_path: Path) -> None:
    content = io.StringIO()
    csv.writer(content).writerows([("text", "label"), ("first\nsecond", "yes"), *rows()])
    path = tmp_path / "lines.csv"
    path.write_text(content.getvalue())
    assert "first\nsecond" in texts_of(look(path))


def test_texts_are_pinned_and_chosen_as_images_are(tmp_path: Path) -> None:
    path = table(tmp_path / "all.csv", [*rows(), *((f"zzz {text}", name) for text, name in rows())])
    data = look(path)
    diverse = choose_samples(data, 6, "diverse", 0)
    assert sorted(sample.label for sample in diverse) == [0, 0, 0, 1, 1, 1]
    # Half of the texts are like each other; two of each class alone would come of one half by chance.
    begins = {text_of(data.root, s.path, s.sha256)[:3] for s in choose_samples(data, 4, "diverse", 0)}
    assert begins == {"zzz", "tex"}
    save_manifest(diverse, data, tmp_path / "pinned.json")
    assert load_manifest(tmp_path / "pinned.json", data) == diverse
    gone = text_of(data.root, diverse[0].path, diverse[0].sha256)
    path.write_text(path.read_text().replace(f"{gone},", "another text,"))
    assert [unchanged(data, sample) for sample in diverse] == [False, *[True] * 5]
    with pytest.raises(ArtifactError, match="1 of 6 calibration texts are not there as pinned"):
        load_manifest(tmp_path / "pinned.json", look(path))


def test_texts_without_labels_are_gathered(tmp_path: Path) -> None:
    bare = tmp_path / "more.csv"
    bare.write_text("utterance\none\n\n  \ntwo\n")
    found = gather_texts(bare, "", Silent())
    assert [(s.path, s.label) for s in found.splits["train"]] == [("more.csv:2", 0), ("more.csv:5", 0)]
    assert found.broken == (("more.csv:4", "empty"),)
    (tmp_path / "loose" / "deeper").mkdir(parents=True)
    (tmp_path / "loose" / "a.txt").write_text("one")
    (tmp_path / "loose" / "deeper" / "b.txt").write_text("two")
    assert len(gather_texts(tmp_path / "loose", "", Silent()).splits["train"]) == 2
    (tmp_path / "none").mkdir()
    for place, message in (
        ("none", "no text that can be read"),
        ("gone.csv", "No such file"),
        ("a.md", "no table"),
    ):
        with pytest.raises(ConfigError, match=message):
            gather_texts(tmp_path / place, "", Silent())


def test_what_lies_beside_is_named(tmp_path: Path) -> None:
    table(tmp_path / "train.csv", rows(20))
    table(tmp_path / "test.csv", rows(6))
    table(tmp_path / "notes.csv", rows(2))
    assert "tables that are not used: notes.csv" in look(tmp_path).warnings
    table(tmp_path / "train.tsv", rows(20))
    with pytest.raises(ConfigError, match=r"train.csv and train.tsv are both train"):
        look(tmp_path)
    folders = tmp_path / "folders"
    for index, (text, name) in enumerate(rows(24)):
        (folders / name).mkdir(parents=True, exist_ok=True)
        (folders / name / f"{index}.txt").write_text(text)
    table(folders / "about.csv", rows(2))
    assert texts_of(look(folders)) == dict(rows(24))


def test_columns_go_with_texts() -> None:
    with pytest.raises(ConfigError, match="go with task: text-classification"):
        recipe_from({"data": {"path": "x", "text": "a"}, "model": {"name": "resnet18"}})
