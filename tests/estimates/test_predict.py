"""An estimate: its parts, its interval, and what it says it rests on."""

from dataclasses import replace
from pathlib import Path

import pytest
from small_networks import conv, network, node, residual

from edgetune.errors import ConfigError
from edgetune.estimates.parameters import Parameters, load_parameters
from edgetune.estimates.predict import PRECISIONS, Estimate, Read, predict, read
from edgetune.profile import Target, load_profile, load_target, names

SMALL = read(residual())


def made(target: str, what: Read = SMALL, known: Parameters | None = None) -> Estimate:
    """An estimate in FP16."""
    return predict(what, load_target(target), "fp16", known or load_parameters())


def test_kernels_add_up_and_the_interval_is_around() -> None:
    found = made("jetson-agx-orin-64gb:MAXN")
    assert sum(found.kernel_ms) == pytest.approx(found.ms)
    assert len(found.kernel_ms) == len(SMALL.kernels)
    assert found.low_ms < found.ms < found.high_ms
    assert found.basis == "measured"


def test_what_was_not_measured_is_said_and_widens_the_interval() -> None:
    def width(found: Estimate) -> float:
        return found.high_ms / found.ms

    measured, related = made("jetson-agx-orin-64gb:MAXN"), made("jetson-agx-orin-32gb:MAXN")
    slower, thor = made("jetson-agx-orin-64gb:30W"), made("jetson-agx-thor")
    assert [found.basis for found in (related, slower, thor)] == ["related", "guess", "guess"]
    assert width(measured) < width(related) < width(slower) < width(thor)
    assert "no mode below a module's maximum was measured" in slower.notes[0]
    assert "compute capability 11.0" in thor.notes[0]
    assert "was not measured" in related.notes[0]


def test_a_module_that_is_off_is_off_in_all_its_modes_and_that_is_said() -> None:
    known = load_parameters()
    key = "jetson-agx-orin-64gb:MAXN"
    odd = replace(known, devices=known.devices | {key: 2.0})
    ratio = known.devices[key] / 2.0
    for mode in ("MAXN", "30W"):
        found = made(f"jetson-agx-orin-64gb:{mode}", known=odd)
        assert found.ms * ratio == pytest.approx(made(f"jetson-agx-orin-64gb:{mode}").ms)
        assert "2.00 times slower" in found.notes[0]


@pytest.mark.parametrize("name", [name for name in names() if name.startswith("jetson-")])
def test_a_faster_mode_of_a_module_is_never_slower(name: str) -> None:
    profile, known = load_profile(name), load_parameters()
    figures = {
        mode: (own.gpu_mhz, own.bandwidth_gb_s, own.fp16_dense_tflops)
        for mode, own in profile.modes.items()
        if own.gpu_mhz and own.bandwidth_gb_s and own.fp16_dense_tflops
    }
    assert figures
    big = read(residual(128, 128))
    times = {
        mode: predict(
            big, Target(profile=profile, mode=mode, jetpack=profile.default_jetpack), "fp16", known
        ).ms
        for mode in figures
    }
    for slow, weak in figures.items():
        for fast, strong in figures.items():
            if all(a <= b for a, b in zip(weak, strong, strict=True)):
                assert times[fast] <= times[slow] * (1 + 1e-9), f"{fast} against {slow}"


def test_a_profile_of_one_s_own_rests_on_the_module_that_it_inherits_from(tmp_path: Path) -> None:
    head = "schema_version: 1\nname: mine\nextends: jetson-orin-nano-8gb\n"
    (tmp_path / "mine.yaml").write_text(f"{head}gates: {{memory_mb: 5}}\n")
    (tmp_path / "faster.yaml").write_text(f"{head}modes: {{15W: {{bandwidth_gb_s: 80}}}}\n")
    shipped, mine = made("jetson-orin-nano-8gb:15W"), made(f"{tmp_path}/mine.yaml:15W")
    assert (mine.ms, mine.low_ms, mine.basis) == (shipped.ms, shipped.low_ms, "measured")
    assert any("as fast as jetson-orin-nano-8gb:15W" in note for note in mine.notes)
    # Its own figures make it another module.
    assert made(f"{tmp_path}/faster.yaml:15W").basis != "measured"


def test_memory_is_what_is_alive_at_once() -> None:
    nodes = [conv("x", "w", "a"), conv("a", "w", "b"), conv("b", "w", "c"), node("Add", "a c", "y")]
    what = read(network(nodes, {"x": (1, 16, 8, 8)}, ["y"], {"w": (16, 16, 3, 3)}))
    tensor = 16 * 8 * 8 * 2 / 1e6
    assert what.activations_mb("fp16") == pytest.approx(3 * tensor)  # a is kept beside b for the sum
    assert what.engine_mb("fp16") == pytest.approx(3 * 16 * 16 * 9 * 2 / 1e6)
    assert what.engine_mb("int8") == pytest.approx(what.engine_mb("fp16") / 2)


def test_a_network_that_does_not_fit_is_said_not_to() -> None:
    wide = network([node("MatMul", "x w", "y")], {"x": (1, 40000)}, ["y"])
    from onnx import TensorProto, helper

    # Its weights are only declared: 3.2 GB in FP16.
    big = helper.make_tensor_value_info("w", TensorProto.FLOAT, (40000, 40000))
    wide.graph.input.append(big)
    found = made("jetson-nano-4gb:MAXN", read(wide))
    assert found.fits is False
    assert "do not fit into 3000 MB: 4 GB less 1000 MB" in found.why
    assert made("jetson-nano-4gb:MAXN").fits is True


def test_what_has_no_estimate_says_why() -> None:
    known = load_parameters()
    for target, precision, why in (
        ("host-cpu", "fp16", "edgetune bench"),
        ("jetson-tx2", "int8", "no INT8 path"),
        ("jetson-agx-thor:70W", "fp16", "does not state clock"),
    ):
        with pytest.raises(ConfigError, match=why):
            predict(SMALL, load_target(target), precision, known)  # type: ignore[arg-type]


def test_notes_about_the_network() -> None:
    target, known = load_target("jetson-agx-orin-64gb:MAXN"), load_parameters()
    notes = " ".join(predict(SMALL, target, "int8", known).notes)
    assert "no Q/DQ" in notes
    assert "smaller than every network that was measured" in notes
    attention = [node("MatMul", "x x", "a"), node("Softmax", "a", "b"), node("MatMul", "b x", "y")]
    some = read(network(attention, {"x": (8, 512, 512)}, ["y"]))
    assert "products of activations" in " ".join(predict(some, target, "fp16", known).notes)


def test_a_larger_network_is_never_faster() -> None:
    known, target = load_parameters(), load_target("jetson-orin-nx-16gb:MAXN")
    for precision in PRECISIONS:
        wider = [
            predict(read(residual(channels, 32)), target, precision, known).ms for channels in range(2, 40, 3)
        ]
        higher = [
            predict(read(residual(16, side)), target, precision, known).ms for side in range(4, 200, 13)
        ]
        assert wider == sorted(wider)
        assert higher == sorted(higher)
