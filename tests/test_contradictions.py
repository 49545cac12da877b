"""Each contradiction is found where it is, and nothing that stands in a file makes the rules fall over."""

import copy
import functools
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.contradictions import CHIPS, contradictions, peak, version_of
from edgetune.profile import folder, names
from edgetune.yaml import load_yaml

NX = "jetson-orin-nx-16gb"


@functools.cache
def read(name: str) -> dict[str, Any]:
    return load_yaml(folder() / f"{name}.yaml", what="profile").values


def values(name: str) -> dict[str, Any]:
    return copy.deepcopy(read(name))


def changed(name: str, **dotted: Any) -> dict[str, Any]:
    """A profile's values with keys replaced: `modes/MAXN/gpu_mhz`."""
    made = values(name)
    for path, value in dotted.items():
        *above, last = path.split("/")
        here = made
        for part in above:
            here = here[part]
        if value is KeyError:
            del here[last]
        else:
            here[last] = value
    return made


def test_the_shipped_ones_contradict_nothing() -> None:
    assert len(names()) >= 14
    for name in names():
        assert list(contradictions(values(name))) == [], name


@pytest.mark.parametrize(
    ("name", "change", "key", "message"),
    [
        (NX, {"modes/MAXN/int8_dense_tops": 100.0},
         "modes.MAXN.int8_dense_tops",
         r"100, but 8 SMs x 4096 .* 30.1.*half of a sparse"),
        (NX, {"modes/MAXN/fp16_dense_tflops": 30.1},
         "modes.MAXN.fp16_dense_tflops",
         r"30.1, but 8 SMs x 2048"),
        (NX, {"modes/MAXN/gpu_mhz": 1100}, "modes.MAXN.int8_dense_tops", r"x 1100 MHz make 36"),
        (NX, {"modes/MAXN/gpu_mhz": 0.918}, "modes.MAXN.gpu_mhz", r"0.918 MHz is none .*in another unit"),
        (NX, {"modes/MAXN/bandwidth_gb_s": 102400}, "modes.MAXN.bandwidth_gb_s", "102400 GB/s is none"),
        (NX, {"modes/MAXN/power_w": 15000}, "modes.MAXN.power_w", "15000 W is none"),
        (NX, {"memory_gb": 16384}, "memory_gb", "16384 GB is none"),
        (NX, {"l2_mb": 2048}, "l2_mb", "2048 MiB is none"),
        (NX, {"modes/MAXN/gpu_mhz": KeyError, "modes/MAXN/fp16_dense_tflops": 20.0},
         "modes.MAXN.fp16_dense_tflops",
         r"20, but on this chip it is half of INT8's 30.1"),
        (NX, {"modes/MAXN/sms": 20}, "modes.MAXN.sms", r"20, but no Jetson .* more than 16"),
        (NX, {"modes/25W/bandwidth_gb_s": 51.2},
         "modes.25W.bandwidth_gb_s",
         r"51.2, below the 102.4 of 15W, which has less power \(15 < 25 W\)"),
        (NX, {"modes/10W/power_w": 60}, "modes.10W.int8_dense_tops", r"10, below the 38.4 of 40W"),
        (NX, {"modes/MAXN/sources": {"gpu_ghz": "me"}},
         "modes.MAXN.sources",
         r"'gpu_ghz' is no figure of this mode: .*gpu_mhz"),
        (NX, {"jetpacks/6.2/modes": ["15W", "60W"]},
         "jetpacks.6.2.modes",
         r"'60W' is none of this profile's modes: 10W"),
        (NX, {"jetpacks/6.0/modes": ["15W", "40W"]},
         "jetpacks.6.0.modes",
         r"40W, a Super mode, which begin with JetPack 6.2"),
        (NX, {"jetpacks/6.0/modes": KeyError}, "jetpacks.6.0.modes", r"Super mode"),
        (NX, {"jetpacks/6.2/typing": "strong", "jetpacks/6.2/opset": 19},
         "jetpacks.6.2.typing",
         r"TensorRT 10.3.0 takes weak: strong typing begins with 10.12"),
        (NX, {"jetpacks/7.2/typing": "weak"}, "jetpacks.7.2.typing", r"TensorRT 10.16.2 takes strong"),
        (NX, {"jetpacks/7.2/opset": 17}, "jetpacks.7.2.opset", r"strong typing needs 19 or later"),
        (NX, {"jetpacks/6.0/opset_max": 20},
         "jetpacks.6.0.opset_max",
         r"TensorRT 8.6.2 reads opset 17 at most"),
        (NX, {"jetpacks/6.2/opset": 21}, "jetpacks.6.2.opset", r"21 is above opset_max, 20"),
        (NX, {"jetpacks/6.2/ir": 7}, "jetpacks.6.2.ir", r"opset 17 came with IR version 8"),
        (NX, {"dla_cores": 3}, "dla_cores", r"3, but Jetson Orin NX 16 GB .* has at most 2 DLAs"),
        ("jetson-orin-nano-8gb", {"dla_cores": 1},
         "dla_cores",
         r"1, but Jetson Orin Nano 8 GB .* has no DLA"),
        ("jetson-agx-thor", {"dla_cores": 2}, "dla_cores", r"has no DLA"),
        ("desktop-rtx-4090", {"dla_cores": 1}, "dla_cores", r"has no DLA"),
        ("host-cpu", {"dla_cores": 1}, "dla_cores", r"has no DLA"),
        ("jetson-nano-4gb", {"modes/MAXN/int8_dense_tops": 0.9},
         "modes.MAXN.int8_dense_tops",
         r"no INT8 path: leave it out"),
        ("jetson-nano-4gb", {"int8": True}, "int8", r"5.3 has no INT8 path in TensorRT: write int8: false"),
        (NX, {"int8": False}, "int8", r"weakly typed alone"),
        ("host-cpu", {"int8": False}, "int8", r"weakly typed alone"),
        (NX, {"default_mode": "16W"}, "default_mode", r"'16W' is none of modes: 10W"),
        (NX, {"default_jetpack": "9"}, "default_jetpack", r"'9' is none of jetpacks: 5.1"),
        (NX, {"jetpacks": KeyError}, "jetpacks", r"missing; a jetson needs at least one"),
        (NX, {"host": {"opset": 17, "ir": 8, "rendering": "cpu"}}, "host", r"is for kind: host"),
        ("host-cpu", {"host": KeyError}, "host", r"missing; a host profile needs opset, ir and rendering"),
        ("host-cpu", {"jetpacks": {"6.2": {}}}, "jetpacks", r"a host has none"),
    ],
)  # fmt: skip
def test_a_contradiction_names_the_key_and_says_what_to_write(
    name: str, change: dict[str, Any], key: str, message: str
) -> None:
    found = [(".".join(location), said) for location, said in contradictions(changed(name, **change))]
    with_key = [said for where, said in found if where == key]
    assert with_key, found
    assert any(re.search(message, said) for said in with_key), with_key


def test_rounding_of_data_sheets_is_borne() -> None:
    # 20 TOPS where the formula makes 20.5, and 10 TFLOPS where it makes 10.2.
    change = {"modes/15W/int8_dense_tops": 20.0, "modes/15W/fp16_dense_tflops": 10.0}
    assert list(contradictions(changed("jetson-orin-nano-8gb", **change))) == []


def test_an_unknown_chip_is_not_judged_by_a_formula() -> None:
    change = {"compute_capability": "12.1", "modes/MAXN/int8_dense_tops": 999.0}
    assert list(contradictions(changed("jetson-agx-thor", **change))) == []
    assert peak("12.1", "int8_dense_tops", 20, 1000) is None


@given(st.sampled_from(sorted(CHIPS)), st.integers(1, 128), st.floats(100, 3000), st.floats(0.3, 3))
def test_a_peak_is_refused_beyond_the_tolerance_alone(cc: str, sms: int, mhz: float, off: float) -> None:
    right = peak(cc, "fp16_dense_tflops", sms, mhz)
    assert right
    mode = {"sms": sms, "gpu_mhz": mhz, "fp16_dense_tflops": right * off}
    profile = {"kind": "desktop", "compute_capability": cc, "modes": {"m": mode}, "default_mode": "m"}
    told = [where for where, _ in contradictions(profile) if where[-1] == "fp16_dense_tflops"]
    if abs(off - 1) > 0.031:
        assert told == [("modes", "m", "fp16_dense_tflops")]
    elif abs(off - 1) < 0.029:
        assert told == []


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(names()), st.data())
def test_no_value_makes_the_rules_fall_over(name: str, data: st.DataObject) -> None:
    made = values(name)
    here: Any = made
    for _ in range(data.draw(st.integers(0, 3))):
        below = [key for key, value in here.items() if isinstance(value, dict) and value]
        if not below:
            break
        here = here[data.draw(st.sampled_from(below))]
    here[data.draw(st.sampled_from(sorted(here)))] = data.draw(ODD)
    for location, said in contradictions(made):
        assert location
        assert said


@pytest.mark.parametrize(("text", "parts"), [("10.16.2", (10, 16)), ("8", (8, 0)), ("", ()), ("x", ())])
def test_versions(text: str, parts: tuple[int, ...]) -> None:
    assert version_of(text) == parts
