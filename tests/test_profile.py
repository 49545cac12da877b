"""Profiles: every shipped one is whole, and a target resolves to one mode and one JetPack."""

from pathlib import Path

import pytest

from edgetune import profile
from edgetune.errors import ConfigError
from edgetune.profile import load_profile, load_target, merged_gates, names
from edgetune.recipe import Gates

FULL_IR = {17: 8, 18: 8, 19: 9, 20: 9, 21: 10}


def test_there_are_profiles() -> None:
    assert {"host-cpu", "jetson-orin-nano-8gb", "jetson-agx-orin-64gb"} <= set(names())


@pytest.mark.parametrize("name", names())
def test_every_profile_is_whole(name: str) -> None:
    loaded = load_profile(name)
    assert loaded.name == name, "file and name agree"
    target = load_target(name)
    assert target.mode == loaded.default_mode
    for mode in loaded.modes.values():
        assert mode.source
        if mode.sms and mode.gpu_mhz and mode.int8_dense_tops and loaded.compute_capability == "8.7":
            # Orin: 4096 dense INT8 operations per SM and cycle.
            assert mode.int8_dense_tops == pytest.approx(mode.sms * 4096 * mode.gpu_mhz * 1e-6, rel=0.01)
            assert mode.fp16_dense_tflops == pytest.approx(mode.int8_dense_tops / 2, rel=0.02)
    for version, jetpack in loaded.jetpacks.items():
        assert FULL_IR[jetpack.opset] == jetpack.ir
        strong = tuple(map(int, jetpack.tensorrt.split(".")[:2])) >= (10, 12)
        assert jetpack.typing == ("strong" if strong else "weak")
        runtime = load_target(f"{name}@{version}").runtime
        assert (runtime.opset, runtime.ir, runtime.rendering) == (jetpack.opset, jetpack.ir, jetpack.typing)


def test_a_target_is_named_in_parts() -> None:
    assert load_target("jetson-orin-nano-8gb").label == "jetson-orin-nano-8gb:15W@6.2"
    assert load_target("jetson-orin-nano-8gb:maxn_super").label == "jetson-orin-nano-8gb:MAXN_SUPER@6.2"
    assert load_target("jetson-orin-nano-8gb:7W@5.1").label == "jetson-orin-nano-8gb:7W@5.1"
    assert load_target("host-cpu").label == "host-cpu:default"


@pytest.mark.parametrize(
    ("spec", "message", "hint"),
    [
        ("jetson-orin-nano", "unknown profile", "jetson-orin-nano-8gb"),
        ("zzz", "unknown profile", "host-cpu"),
        ("jetson-orin-nano-8gb:15", "unknown mode", "15W"),
        ("jetson-orin-nano-8gb@4.6", "unknown JetPack", "6.2"),
        ("jetson-orin-nano-8gb:MAXN_SUPER@5.1", "has no mode", "15W"),
        ("host-cpu@6.2", "unknown JetPack", "none"),
        ("@6.2", "NAME", "profiles list"),
    ],
)
def test_an_unknown_part_is_answered_with_the_known_ones(spec: str, message: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_target(spec)
    assert hint in caught.value.hint


def test_a_profile_of_ones_own(tmp_path: Path) -> None:
    text = (profile.folder() / "host-cpu.yaml").read_text().replace("name: host-cpu", "name: mine")
    path = tmp_path / "mine.yaml"
    path.write_text(text + "gates:\n  latency_p50_ms: 5\n")
    assert load_target(str(path)).profile.gates.latency_p50_ms == 5
    path.write_text(text + "gates:\n  latency: 5\n")
    with pytest.raises(ConfigError, match=r"mine.yaml:\d+: gates.latency: unknown key"):
        load_profile(str(path))


def test_a_recipes_limits_win_over_a_profiles() -> None:
    merged = merged_gates(Gates(size_mb=9, latency_p50_ms=5), Gates(size_mb=3, top1_drop_points=None))
    assert (merged.size_mb, merged.latency_p50_ms, merged.top1_drop_points) == (3, 5, None)
    assert merged.int8_cosine_min == Gates().int8_cosine_min


def test_an_inconsistent_profile_is_refused(tmp_path: Path) -> None:
    text = (profile.folder() / "jetson-orin-nano-8gb.yaml").read_text()
    path = tmp_path / "x.yaml"
    for old, new in (
        ("default_mode: 15W", "default_mode: 16W"),
        ('default_jetpack: "6.2"', 'default_jetpack: "9"'),
    ):
        assert old in text
        path.write_text(text.replace(old, new))
        with pytest.raises(ConfigError, match="is none of"):
            load_profile(str(path))
