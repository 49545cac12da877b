"""What raw results say, against what was put into them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetune.errors import ArtifactError
from edgetune.latency.statistics import wilson
from edgetune.stages.verify import FEWEST_QUERIES, verify

Make = Callable[..., Path]


@pytest.fixture
def made(brought_back: Make, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def make(change: Callable[[dict[str, Any]], Any] | None = None, **given: Any) -> dict[str, Any]:
        folder = brought_back(tmp_path / "bundle", **given)
        path = folder / "results/result.json"
        content = json.loads(path.read_text())
        if change:
            change(content)
            path.write_text(json.dumps(content))
        found = verify(folder)
        assert json.loads(json.dumps(found, allow_nan=False)) == found | {}
        return found

    return make


def test_a_good_device(made: Callable[..., dict[str, Any]]) -> None:
    found = made()
    fp16, int8 = found["engines"]["fp16"], found["engines"]["int8"]
    assert (fp16["agreement"], int8["agreement"], int8["samples"]) == (1.0, 1.0, 400)
    assert int8["sqnr_db"] == 200.0
    assert 60 < fp16["sqnr_db"] < 90
    assert int8["accuracy"] == int8["host_accuracy"]
    assert int8["accuracy"]["top1"] == 1.0
    assert (found["drop"]["points"], found["drop_from_fp32"]["points"], found["drop"]["images"]) == (
        0,
        0,
        400,
    )
    assert int8["layers"] == {"int8": 30, "fp16": 8, "fp32": 2, "other": 0}
    assert int8["memory_mb"] == pytest.approx(8.0)
    for what, factor in (("compute", 1.0), ("copies", 1.1)):
        timing = found["timing"][what]
        assert timing["trusted"], timing["why"]
        assert timing["models"]["fp16"]["p50_ms"] == pytest.approx(2.0 * factor, rel=0.01)
        assert timing["speedup"]["low"] <= timing["speedup"]["value"] <= timing["speedup"]["high"]
        assert timing["speedup"]["value"] == pytest.approx(2.0, rel=0.01)
        # Five watts, for as long as a query takes.
        assert timing["energy"]["int8"]["mj"] == pytest.approx(5.0 * factor, rel=0.01)
        assert timing["energy"]["fp16"]["mj"] == pytest.approx(10.0 * factor, rel=0.01)
        assert timing["energy"]["int8"]["rails"] == ["VDD_IN"]
        assert not timing["energy"]["int8"]["estimated"]
        assert timing["temperatures_c"]["gpu-thermal"][0] == 45


def test_what_a_dla_left_to_the_gpu(made: Callable[..., dict[str, Any]]) -> None:
    def change(content: dict[str, Any]) -> None:
        told = {"fallback_layers": 2, "fallback_names": ["pool", "flatten"]}
        content["engines"]["fp16"]["build"] |= told | {"dla_layers": 5}
        content["engines"]["int8"]["build"] |= told | {"dla_subgraphs": 1}

    engines = made(change)["engines"]
    fp16, int8 = engines["fp16"], engines["int8"]
    assert (fp16["gpu_layers"], fp16["all_layers"], fp16["dla_parts"]) == (2, 7, None)
    assert (int8["gpu_layers"], int8["all_layers"], int8["dla_parts"]) == (2, None, 1)
    assert fp16["gpu_names"] == int8["gpu_names"] == ["pool", "flatten"]


def test_a_gpu_leaves_nothing_to_itself(made: Callable[..., dict[str, Any]]) -> None:
    found = made()
    assert not found["without_qdq"]
    assert {engine["gpu_layers"] for engine in found["engines"].values()} == {None}


def test_counts_and_intervals_of_a_bad_one(made: Callable[..., dict[str, Any]]) -> None:
    found = made(host_loss=20, engine_flips=30)
    int8 = found["engines"]["int8"]
    assert (int8["agreed"], int8["agreement"]) == (370, 0.925)
    assert (int8["agreement_low"], int8["agreement_high"]) == pytest.approx(wilson(370, 400))
    assert found["host"]["agreed"] == 380
    assert found["host"]["drop"]["points"] == pytest.approx(5.0)
    assert int8["host_accuracy"]["right"] == 380
    assert int8["accuracy"]["right"] == 350
    assert found["drop"]["points"] == found["drop_from_fp32"]["points"] == pytest.approx(12.5)
    assert found["drop"]["low"] < 12.5 < found["drop"]["high"]


def test_unlabelled_samples_count_for_agreement_alone(made: Callable[..., dict[str, Any]]) -> None:
    found = made(labelled=150)
    assert (found["samples"], found["labelled"]) == (400, 150)
    assert found["engines"]["int8"]["accuracy"]["images"] == found["drop"]["images"] == 150
    assert found["engines"]["int8"]["samples"] == 400


def test_no_labels_at_all(made: Callable[..., dict[str, Any]]) -> None:
    found = made(labelled=0)
    assert found["engines"]["int8"]["accuracy"] is None
    assert found["drop"] is found["drop_from_fp32"] is found["host"]["drop"] is None


def _without_int8(content: dict[str, Any]) -> None:
    del content["engines"]["int8"]
    for timed in content["timing"].values():
        timed["blocks"] = [block for block in timed["blocks"] if block["name"] == "fp16"]
    content["errors"] = {"build-int8": {"message": "no kernel", "hint": "", "code": 6}}
    content["finished"] = False


def test_an_engine_that_could_not_be_built(made: Callable[..., dict[str, Any]]) -> None:
    found = made(_without_int8)
    assert list(found["engines"]) == ["fp16"]
    assert found["drop"] is None
    assert found["timing"]["copies"]["speedup"] is None
    assert found["errors"]["build-int8"]["message"] == "no kernel"


def _timed(**change: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["timing"]["copies"].update(change)


@pytest.mark.parametrize(("change", "why"), [
    (_timed(complete={"fp16": True, "int8": False}), "int8: the time ended before"),
    (_timed(warmup={"fp16": {"stable": False}}), "fp16: its times were still changing"),
    (lambda c: c.update(warnings=[{"code": "power_mode", "message": "the mode is 7W", "remedy": ""}]), "7W"),
    (lambda c: c.update(warnings=[{"code": "module", "message": "this is no Orin", "remedy": ""}]), "no Orin"),
    (lambda c: c["timing"]["copies"]["blocks"][0].update(ms=[9.0] * 3000), "drifted|uncertain|one query in ten"),
])  # fmt: skip
def test_what_makes_a_timing_doubtful(
    made: Callable[..., dict[str, Any]], change: Callable[[dict[str, Any]], Any], why: str
) -> None:
    timing = made(change)["timing"]["copies"]
    assert not timing["trusted"]
    assert any(word in timing["why"] for word in why.split("|")), timing["why"]


def test_a_desktop_alone_does_not_spoil_a_timing(made: Callable[..., dict[str, Any]]) -> None:
    warning = {"code": "desktop", "message": "a desktop is running", "remedy": ""}
    assert made(lambda c: c.update(warnings=[warning]))["timing"]["copies"]["trusted"]


def _few(content: dict[str, Any]) -> None:
    for block in content["timing"]["copies"]["blocks"]:
        block["ms"] = [1.5]


def test_too_few_queries_decide_nothing(made: Callable[..., dict[str, Any]]) -> None:
    timing = made(_few)["timing"]["copies"]
    assert timing["models"]["int8"]["count"] == 8 < FEWEST_QUERIES
    assert "8 queries timed" in timing["why"]


def _beside(make: Callable[[list[Any]], list[Any]]) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        timed = content["timing"]["copies"]
        timed["beside"] = [make(list(sample)) for sample in timed["beside"]]

    return change


def _first_half(content: dict[str, Any]) -> None:
    beside = content["timing"]["copies"]["beside"]
    content["timing"]["copies"]["beside"] = beside[: len(beside) // 2]


def _short(content: dict[str, Any]) -> None:
    for block in content["timing"]["copies"]["blocks"]:
        block["end_s"] = block["start_s"] + 0.1


@pytest.mark.parametrize(("change", "why"), [
    (_beside(lambda sample: [sample[0], {}, sample[2]]), "no power rails"),
    (_beside(lambda sample: [sample[0], {"VDD_CORE": 3.0}, {}]), "VDD_CORE feed the whole module is not known"),
    (_first_half, "not read all along"),
    (_short, "too short"),
])  # fmt: skip
def test_energy_that_is_not_known_says_why(
    made: Callable[..., dict[str, Any]], change: Callable[[dict[str, Any]], Any], why: str
) -> None:
    timing = made(change)["timing"]["copies"]
    assert timing["energy"] == {}
    assert why in timing["energy_why"]
    assert timing["trusted"]


def _loading(content: dict[str, Any]) -> None:
    """As trtexec's runs are: three seconds of loading at twice the power before the queries."""
    content["tool"] = "trtexec"
    shift = 0.0
    for timed in content["timing"].values():
        marks = []
        for block in timed["blocks"]:
            start = block["start_s"] + shift
            shift += 3.0
            marks.append((start, start + 3.0))
            block.update(start_s=start, end_s=block["end_s"] + shift)
        last = timed["blocks"][-1]["end_s"]
        moments = np.arange(marks[0][0] - 0.2, last + 0.4, 0.2)
        timed["beside"] = [
            [float(at), {"VDD_IN": 10e3 if any(a <= at < b - 0.2 for a, b in marks) else 5e3}, {}]
            for at in moments
        ]


def test_with_trtexec_energy_is_estimated_without_the_loading(made: Callable[..., dict[str, Any]]) -> None:
    energy = made(_loading)["timing"]["compute"]["energy"]["int8"]
    assert energy["estimated"]
    assert energy["mj"] == pytest.approx(5.0, rel=0.1)


def test_a_cut_result_is_no_measure(brought_back: Make, tmp_path: Path) -> None:
    folder = brought_back(tmp_path / "bundle")
    path = folder / "results/result.json"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ArtifactError, match="cut"):
        verify(folder)
