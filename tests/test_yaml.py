"""YAML 1.2 with line numbers, and nothing in it ever runs."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.errors import ConfigError
from edgetune.yaml import load_yaml


def read(tmp_path: Path, text: str | bytes) -> dict[str, object]:
    path = tmp_path / "x.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_yaml(path, what="recipe").values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("1E3", 1000.0), ("on", "on"), ("yes", "yes"), ("true", True), ("012", 12),
        ("0o17", 15),
        ("0x1F", 31), ("12:30", "12:30"), ("null", None), ("~", None), (".5", 0.5), ("'7'", "7"),
        ("[1, two]", [1, "two"]), ("-.inf", float("-inf")),
    ],
)  # fmt: skip
def test_values_are_those_of_yaml_1_2(tmp_path: Path, text: str, value: object) -> None:
    found = read(tmp_path, f"key: {text}\n")["key"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "x.yaml:2.*duplicate key"),
        ("a: [1\nb: 2\n", "x.yaml:[12].*not YAML"),
        ("- 1\n", "mapping"),
        ("", "mapping"),
        ("just text\n", "mapping"),
        (b"a: \xff\n", "x.yaml:1: not UTF-8"),
        (b"a: 1\nb: \xe9\n", "x.yaml:2: not UTF-8"),
        ("a: !!python/object/apply:os.system [touch hacked]\n", "x.yaml:1.*tag"),
        ("a: !run x\n", "x.yaml:1.*tag"),
        ("a: !!binary aGVsbG8=\n", "x.yaml:1: a: a bytes"),
        ("a: 1\nb: !x {c: 1}\n", "x.yaml:2: b: the tag !x"),
        ("a: \x00\n", "not YAML"),
    ],
)
def test_mistakes_name_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | bytes, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, text)
    assert not (tmp_path / "hacked").exists()


def test_a_bomb_of_anchors_is_defused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(ConfigError, match="too deep or too many"):
        read(tmp_path, "\n".join(lines))


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="too large"):
        read(tmp_path, "a: " + "x" * 2_000_000)


@pytest.mark.slow
def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        read(tmp_path, "a: " + "[" * 5000 + "]" * 5000)


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    assert read(tmp_path, b"\xef\xbb\xbfa: 1\n") == {"a": 1}


def test_a_folder_or_nothing_is_a_config_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.yaml"):
        with pytest.raises(ConfigError) as caught:
            load_yaml(path, what="recipe", hint="write one")
        assert caught.value.hint == "write one"


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.yaml"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        complaint = ""
        try:
            load_yaml(path, what="recipe")
        except ConfigError as error:
            complaint = error.message
        assert not complaint or str(path) in complaint
