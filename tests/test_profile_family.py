"""The shipped family: every figure of every profile file follows a formula, a table, or says that it is not known."""

import pytest

from edgetune.contradictions import CHIPS, IR_OF_OPSET, peak
from edgetune.profile import Profile, load_profile, load_target, names

FAMILY = {
    "host-cpu", "desktop-rtx-3060", "desktop-rtx-4090", "jetson-nano-4gb", "jetson-tx2", "jetson-xavier-nx",
    "jetson-agx-xavier", "jetson-orin-nano-4gb", "jetson-orin-nano-8gb", "jetson-orin-nx-8gb", "jetson-orin-nx-16gb",
    "jetson-agx-orin-32gb", "jetson-agx-orin-64gb", "jetson-agx-thor",
}  # fmt: skip
# Total sparse INT8 TOPS as NVIDIA sells them, by mode, and the DLAs' clock in GHz there. A DLA of Orin: 32.8 sparse
# TOPS per GHz (NVIDIA's technical brief: 105 of two at 1.6 GHz).
SOLD = [
    ("jetson-agx-orin-64gb:MAXN", 275, 1.6),
    ("jetson-agx-orin-32gb:MAXN", 200, 1.4),
    ("jetson-orin-nx-16gb:MAXN", 100, 0.614),
    ("jetson-orin-nx-8gb:MAXN", 70, 0.614),
    ("jetson-orin-nx-16gb:MAXN_SUPER", 157, 1.23),
    ("jetson-orin-nx-8gb:MAXN_SUPER", 117, 1.23),
    ("jetson-orin-nano-8gb:15W", 40, 0),
    ("jetson-orin-nano-4gb:10W", 20, 0),
    ("jetson-orin-nano-8gb:MAXN_SUPER", 67, 0),
    ("jetson-orin-nano-4gb:MAXN_SUPER", 34, 0),
]
# Memory bus in bytes, from which bandwidth follows: data rate of its clock x 2 x width.
EMC = {
    "jetson-tx2": (16, {"MAXN": 1866, "MAXQ": 1331.2, "MAXP_CORE_ALL": 1600}),
    "jetson-xavier-nx": (16, {"15W_6CORE": 1600, "20W_6CORE": 1866}),
    "jetson-agx-xavier": (32, {"10W": 1065.6, "15W": 1331.2, "30W_ALL": 1600, "MAXN": 2133}),
    "jetson-orin-nano-4gb": (8, {"10W": 2133, "25W": 3199}),
    "jetson-orin-nano-8gb": (16, {"15W": 2133, "25W": 3199}),
    "jetson-orin-nx-16gb": (16, {"10W": 2133, "15W": 3199}),
    "jetson-orin-nx-8gb": (16, {"10W": 2133, "20W": 3199}),
    "jetson-agx-orin-32gb": (32, {"15W": 2133, "MAXN": 3199}),
    "jetson-agx-orin-64gb": (32, {"15W": 2133, "MAXN": 3199}),
}


def every() -> list[Profile]:
    found = [load_profile(name) for name in names()]
    assert len(found) >= len(FAMILY)
    return found


def test_the_family_is_whole() -> None:
    assert set(names()) == FAMILY
    assert {p.kind for p in every()} == {"host", "jetson", "desktop"}


@pytest.mark.parametrize("name", sorted(FAMILY - {"host-cpu"}))
def test_each_says_what_the_issue_asks_of_it(name: str) -> None:
    profile = load_profile(name)
    chip = CHIPS[profile.compute_capability]
    assert profile.chip
    assert profile.memory_gb
    assert profile.l2_mb
    assert profile.source
    assert len(profile.notes) > 50
    for mode in profile.modes.values():
        assert len(mode.source) > 10
        known = [mode.sms, mode.gpu_mhz, mode.fp16_dense_tflops]
        assert all(known) or not any(known), "a peak follows from SMs and a clock, or is not known"
        if not any(known):
            assert mode.confidence == "unconfirmed"
    for pack in profile.jetpacks.values():
        assert len(pack.source) > 10
        assert pack.l4t or profile.kind == "desktop"
        assert pack.ir == IR_OF_OPSET[pack.opset], "the newest IR that was made sure of"
    if profile.kind == "jetson":
        assert profile.dla_cores <= chip.dlas
        # Two names of one clock limit are one mode of nvpmodel; MAXN and MAXN_SUPER are one number on two flashes.
        numbers = [(m.nvpmodel_id, m.super) for n, m in profile.modes.items() if m.nvpmodel_id is not None]
        assert len(numbers) == len(set(numbers))


def test_peaks_follow_the_formula() -> None:
    checked = 0
    for profile in every():
        for mode in profile.modes.values():
            for figure in ("int8_dense_tops", "fp16_dense_tflops"):
                value = getattr(mode, figure)
                if value is not None:
                    right = peak(profile.compute_capability, figure, mode.sms, mode.gpu_mhz)
                    assert value == pytest.approx(right, rel=0.012), (profile.name, figure)
                    checked += 1
    assert checked > 90


@pytest.mark.parametrize(("spec", "sold", "dla_ghz"), SOLD)
def test_peaks_and_dlas_make_what_is_sold(spec: str, sold: float, dla_ghz: float) -> None:
    target = load_target(spec)
    tops = target.profile.modes[target.mode].int8_dense_tops
    assert 2 * tops + target.profile.dla_cores * 32.8 * dla_ghz == pytest.approx(sold, rel=0.03)


@pytest.mark.parametrize("name", EMC)
def test_bandwidth_follows_from_the_memory_clock(name: str) -> None:
    width, clocks = EMC[name]
    modes = load_profile(name).modes
    for mode, mhz in clocks.items():
        assert modes[mode].bandwidth_gb_s == pytest.approx(mhz * 2 * width * 1e-3, rel=0.005), mode


def test_super_modes_need_jetpack_6_2() -> None:
    found = [p for p in every() if any(mode.super for mode in p.modes.values())]
    assert {p.name for p in found} == {n for n in FAMILY if "orin-n" in n}
    for profile in found:
        fast = {name for name, mode in profile.modes.items() if mode.super}
        for version, pack in profile.jetpacks.items():
            if version in ("5.1", "6.0", "6.1"):
                assert pack.modes
                assert not fast & set(pack.modes)
            else:
                assert fast <= set(pack.modes or profile.modes)


def test_thor_is_strongly_typed_alone_and_modes_below_its_maximum_are_not_known() -> None:
    thor = load_profile("jetson-agx-thor")
    assert {pack.typing for pack in thor.jetpacks.values()} == {"strong"}
    assert [name for name, mode in thor.modes.items() if mode.gpu_mhz] == ["MAXN"]
    assert "No published latency" in thor.notes


@pytest.mark.parametrize("name", sorted(FAMILY))
def test_every_target_of_every_profile_resolves(name: str) -> None:
    profile = load_profile(name)
    newest = f"@{list(profile.jetpacks)[-1]}" if profile.jetpacks else ""
    specs = {f"{name}@{version}" for version in profile.jetpacks} | {
        f"{name}:{m}{newest}" for m in profile.modes
    }
    for spec in sorted(specs):
        target = load_target(spec)
        assert target.label.startswith(name)
        assert spec.partition(":")[2] in ("", f"{target.mode}{newest}")
        assert target.runtime.opset >= 13
        assert target.is_host or target.software


def test_ir_versions_are_those_of_onnx() -> None:
    helper = pytest.importorskip("onnx.helper")
    told = {row[2]: row[1] for row in helper.VERSION_TABLE if row[2] in IR_OF_OPSET}
    assert len(told) >= 10
    assert told == {opset: IR_OF_OPSET[opset] for opset in told}
