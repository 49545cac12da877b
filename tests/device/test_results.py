"""What came back is checked before anything is computed: every damage ends in a message that names it."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetune.device.results import Result, expected_of, load_result, load_work, outputs_of
from edgetune.errors import ArtifactError, ConfigError

Make = Callable[..., Path]


@pytest.fixture
def bundle(brought_back: Make, tmp_path: Path) -> Path:
    return brought_back(tmp_path / "bundle", samples=120, rounds=3)


def load(bundle: Path) -> tuple[Any, Result]:
    work = load_work(bundle)
    return work, load_result(work)


def rewrite(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = bundle / "results/result.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_what_is_whole_is_read(bundle: Path) -> None:
    work, result = load(bundle)
    found = outputs_of(work, "int8", result.engines["int8"])
    assert found.shape == expected_of(work, "int8").shape == (120, 5)
    assert np.array_equal(found, expected_of(work, "int8"))


def test_no_bundle_and_no_results(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no bundle") as caught:
        load_work(tmp_path)
    assert "edgetune bundle" in caught.value.hint
    (bundle / "results/result.json").unlink()
    with pytest.raises(ConfigError, match="no results yet") as caught:
        load(bundle)
    assert "python3 edgetune.pyz" in caught.value.hint


def test_a_file_of_the_bundle_that_has_changed(bundle: Path) -> None:
    (bundle / "int8.onnx").write_bytes(b"other")
    with pytest.raises(ArtifactError, match=r"int8\.onnx: not the file that was bundled"):
        load(bundle)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_result_that_is_cut(bundle: Path, share: float) -> None:
    path = bundle / "results/result.json"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ArtifactError, match="not JSON, or cut") as caught:
        load(bundle)
    assert "edgetune device pull" in caught.value.hint


def _first_ms(value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        content["timing"]["copies"]["blocks"][0]["ms"][0] = value

    return change


@pytest.mark.parametrize(("change", "message"), [
    (lambda c: c.update(bundle="f" * 64), "of another bundle"),
    (lambda c: c.update(schema_version=2), "schema_version 2"),
    (lambda c: c.pop("tool"), "tool: Field required"),
    (lambda c: c["engines"].update(int4=c["engines"]["int8"]), "no engine int4"),
    (lambda c: c["engines"]["int8"]["build"].update(plan_bytes=-1), r"engines.int8.build.plan_bytes"),
    (lambda c: c["timing"]["copies"]["blocks"].pop(), "not one block per engine and round"),
    (lambda c: c["timing"]["copies"].update(blocks=[]), "not one block per engine and round"),
    (lambda c: c["timing"]["compute"]["blocks"][1].update(end_s=0.0), "ends before it begins"),
    (lambda c: c["timing"]["compute"]["blocks"][1].update(name="other"), "not one block per engine and round"),
    (_first_ms(float("nan")), r"timing.copies.blocks.0.ms.0"),
    (_first_ms(0.0), r"timing.copies.blocks.0.ms.0"),
    (_first_ms("fast"), r"timing.copies.blocks.0.ms.0"),
    (lambda c: c["engines"]["int8"]["build"].update(plan_sha256="0" * 64), "not the engine that was measured"),
])  # fmt: skip
def test_results_that_say_nothing(
    bundle: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    rewrite(bundle, change)
    with pytest.raises(ArtifactError, match=message) as caught:
        load(bundle)
    assert caught.value.hint


@pytest.mark.parametrize("text", ["[]", "null", "3", '"done"', "[" * 100_000])
def test_other_json(bundle: Path, text: str) -> None:
    (bundle / "results/result.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"schema_version None|not JSON"):
        load(bundle)


def _outputs(bundle: Path) -> None:
    work, result = load(bundle)
    outputs_of(work, "int8", result.engines["int8"])


def _digest_too(bundle: Path, data: bytes) -> None:
    """Write outputs that the device itself would have written."""
    (bundle / "results/int8.output0.bin").write_bytes(data)
    path = bundle / "results/compare-int8.json"
    step = json.loads(path.read_text())
    step["files"]["int8.output0.bin"] = hashlib.sha256(data).hexdigest()
    path.write_text(json.dumps(step))


def test_outputs_that_are_missing_cut_or_changed(bundle: Path) -> None:
    path = bundle / "results/int8.output0.bin"
    whole = path.read_bytes()
    for content, message in ((whole[:-4], "2396 bytes"), (bytes(len(whole)), "not what the device wrote")):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match=message):
            _outputs(bundle)
    path.unlink()
    with pytest.raises(ArtifactError, match=r"output0\.bin: missing"):
        _outputs(bundle)


def test_outputs_whose_digests_are_missing_or_of_another_step(bundle: Path) -> None:
    path = bundle / "results/compare-int8.json"
    path.write_text(path.read_text().replace('"samples": 120', '"samples": 12'))
    with pytest.raises(ArtifactError, match="belongs to other outputs"):
        _outputs(bundle)
    path.write_text("{")
    with pytest.raises(ArtifactError, match="missing or damaged"):
        _outputs(bundle)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_no_numbers(bundle: Path, value: float) -> None:
    values = np.frombuffer((bundle / "results/int8.output0.bin").read_bytes(), "<f4").copy()
    values[37] = value
    _digest_too(bundle, values.tobytes())
    with pytest.raises(ArtifactError, match="NaN or infinity for 1 of 120 samples, first 7") as caught:
        _outputs(bundle)
    assert "quantize.exclude" in caught.value.hint


def test_more_samples_than_there_are(bundle: Path) -> None:
    rewrite(bundle, lambda c: c["engines"]["int8"]["outputs"].update(samples=121))
    path = bundle / "results/compare-int8.json"
    path.write_text(path.read_text().replace('"samples": 120', '"samples": 121'))
    with pytest.raises(ArtifactError, match="121 samples, where the bundle has 120"):
        _outputs(bundle)
