"""What is shown of a device: both engines, what is missing left out, why a figure decides nothing."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.report import view_device as on
from edgetune.report.markdown import device_markdown, markdown
from edgetune.report.render import html
from edgetune.report.schema import read_report
from edgetune.report.schema_device import Device

Report = dict[str, Any]
Samples = dict[str, Callable[[], Report]]


def device(samples: Samples, change: Callable[[Report], Any] | None = None) -> Device:
    report = samples["on-device"]()
    if change:
        change(report["device"])
    found = read_report(report).device
    assert found is not None
    return found


def test_rows_hold_both_engines(samples: Samples) -> None:
    rows = {row.title: row for row in on.rows(device(samples))}
    assert rows["same class as ONNX Runtime"][1:3] == ("100.0%", "99.3%")
    assert rows["top-1 accuracy"].change == "−1.32 points (−4.70 to 0.90)"
    assert rows["latency with copies, median"].change == "1.71× as fast (1.68 to 1.74×)"
    assert rows["latency with copies, median"].int8_span.endswith(" ms")
    assert rows["energy per inference, compute alone"][1:4] == ("12.4 mJ", "6.31 mJ", "2.0× less")
    assert rows["memory (weights and activations)"][1:3] == ("9.24 MB", "5.71 MB")
    assert rows["layers in INT8, FP16, FP32"][1:3] == ("0, 61, 0", "58, 4, 1")
    assert rows["layers wider than wanted"][1:3] == ("0", "1")
    assert len(on.brief(device(samples))) < len(on.cells(device(samples))) == len(rows)


def dla(tool: str, without_qdq: bool = True) -> Callable[[Report], None]:
    """What came back of a DLA, by a tool that counts its layers, or by one that tells of parts."""

    def change(found: Report) -> None:
        found["wanted"]["dla_core"] = 1
        found["without_qdq"] = without_qdq
        for name, names in (("fp16", ["pool"]), ("int8", [f"gate{index}" for index in range(8)])):
            told = {"gpu_layers": len(names), "gpu_names": names}
            counted = {"all_layers": 62} if tool == "bindings" else {"dla_parts": 3}
            found["engines"][name] |= told | counted

    return change


def test_a_dla_names_what_it_left_to_the_gpu(samples: Samples) -> None:
    found = device(samples, dla("bindings"))
    rows = {row.title: row for row in on.rows(found)}
    assert rows["layers that fell back to the GPU"][1:3] == ("1 of 62", "8 of 62")
    assert on.where(found) == " (DLA 1)"
    assert dict(on.about(found))["Module"].endswith(" (DLA 1)")
    notes = on.notes(found)
    assert "FP16: 1 of 62 layers fell back to the GPU: pool." in notes
    named = ", ".join(f"gate{index}" for index in range(6))
    assert f"INT8: 8 of 62 layers fell back to the GPU: {named}, and 2 more." in notes
    assert sum(note.startswith("This DLA takes no Q/DQ") for note in notes) == 1
    report = samples["on-device"]()
    dla("bindings")(report["device"])
    read = read_report(report)
    assert "## On the device (DLA 1)\n" in markdown(read)
    assert ">On the device (DLA 1)</h2>" in html(read)


def test_trtexec_tells_of_parts(samples: Samples) -> None:
    found = device(samples, dla("trtexec", without_qdq=False))
    rows = {row.title: row for row in on.rows(found)}
    assert rows["layers that fell back to the GPU"][1:3] == ("1", "8")
    notes = on.notes(found)
    assert "FP16: 1 layer fell back to the GPU, beside 3 parts on the DLA: pool." in notes
    assert not [note for note in notes if "Q/DQ" in note]


def test_what_both_engines_left_is_said_once(samples: Samples) -> None:
    def change(found: Report) -> None:
        for engine in found["engines"].values():
            engine |= {"gpu_layers": 2, "gpu_names": ["pool", "flatten"], "all_layers": 7}

    assert "FP16 and INT8: 2 of 7 layers fell back to the GPU: pool, flatten." in on.notes(
        device(samples, change)
    )


def test_without_a_dla_nothing_is_said_of_one(samples: Samples) -> None:
    found = device(samples)
    assert on.where(found) == ""
    assert not [note for note in on.notes(found) if "DLA" in note]
    assert "layers that fell back to the GPU" not in {row.title for row in on.rows(found)}


def test_what_was_not_measured_has_no_row(samples: Samples) -> None:
    def change(found: Report) -> None:
        found["timing"] = {}
        for engine in found["engines"].values():
            engine["memory_mb"] = None

    titles = [row.title for row in on.rows(device(samples, change))]
    assert "top-1 accuracy" in titles
    assert not [title for title in titles if "latency" in title or "energy" in title or "memory" in title]


def test_one_engine_alone_is_shown_beside_nothing(samples: Samples) -> None:
    found = device(samples, lambda it: it["engines"].pop("int8"))
    rows = {row.title: row for row in on.rows(found)}
    assert (rows["build"].fp16, rows["build"].int8) == ("2 min 11 s", "–")
    assert [row[0] for row in on.host_rows(found)] == ["FP32 here, FP16 there"]


def test_a_doubt_that_both_timings_share_is_said_once(samples: Samples) -> None:
    def change(found: Report) -> None:
        for timing in found["timing"].values():
            timing |= {"trusted": False, "why": "the mode is 7W"}
        found["warnings"] = [{"message": "the mode is 7W"}, {"message": "a desktop is running"}]
        found["errors"] = {"time-copies": {"message": "the GPU fell off", "hint": ""}}

    notes = on.notes(device(samples, change))
    assert notes[0] == "The timing with copies and compute alone is not to be trusted: the mode is 7W."
    assert sum("7W" in note for note in notes) == 1
    assert "Warning there: a desktop is running." in notes
    assert "time-copies failed there: the GPU fell off." in notes


def test_a_timing_as_long_as_mlperf_s_gives_its_estimate(samples: Samples) -> None:
    def change(found: Report) -> None:
        found["timing"]["copies"]["single_stream"] = True
        found["timing"]["copies"]["models"]["int8"]["p90_early_ms"] = 2.5

    notes = on.notes(device(samples, change))
    assert any(
        "90th percentile by early stopping, with copies" in note and "INT8 2.50 ms" in note for note in notes
    )
    assert not [note for note in on.notes(device(samples)) if "MLPerf" in note]


def test_energy_says_whose_it_is_or_why_there_is_none(samples: Samples) -> None:
    assert any("whole module, idle power included (VDD_IN)" in note for note in on.notes(device(samples)))

    def none(found: Report) -> None:
        found["timing"]["copies"] |= {"energy": {}, "energy_why": "no power rails were read"}

    assert "Energy is not known: no power rails were read." in on.notes(device(samples, none))

    def estimated(found: Report) -> None:
        for energy in found["timing"]["copies"]["energy"].values():
            energy["estimated"] = True

    found = device(samples, estimated)
    assert any("Estimated from mean power" in note for note in on.notes(found))
    rows = {row.title: row for row in on.rows(found)}
    assert rows["energy per inference, with copies"].int8.startswith("about ")


def test_a_report_with_a_device_has_no_empty_latency(samples: Samples) -> None:
    there, before = (read_report(samples[name]()) for name in ("on-device", "jetson"))
    assert "Latency was not measured" in markdown(before)
    assert "Latency was not measured" in html(before)
    assert "Latency was not measured" not in markdown(there) + html(there)
    assert "On the device" not in markdown(before)


def test_a_bundle_alone_has_a_page_of_its_own(samples: Samples) -> None:
    report = samples["on-device"]()
    bare = {key: report[key] for key in ("name", "profile", "device", "gates", "verdict")}
    text = device_markdown(read_report(bare))
    assert text.startswith("# insects on a device: failed")
    assert "Is INT8 worth it here?" in text
    assert "Training" not in text


@pytest.mark.slow
@given(st.data())
@settings(deadline=None, max_examples=10)
def test_holes_are_left_out_and_never_a_crash(samples: Samples, data: st.DataObject) -> None:
    report = samples["on-device"]()
    inner: Any = report["device"]
    while True:
        key = data.draw(st.sampled_from(sorted(inner)))
        if not isinstance(inner[key], dict) or not inner[key] or data.draw(st.booleans()):
            inner[key] = None
            break
        inner = inner[key]
    read = read_report(report)
    assert markdown(read)
    assert html(read)
