"""Profiles: every shipped one is whole, and a target resolves to one mode and one JetPack."""

from pathlib import Path

import pytest

from edgetune import profile
from edgetune.device.program.plan import Build
from edgetune.device.program.problem import Problem
from edgetune.device.program.spoilers import NO_INT8
from edgetune.device.program.trtexec_commands import check
from edgetune.errors import ConfigError
from edgetune.profile import JetPack, check_input, check_int8, load_profile, load_target, merged_gates, names
from edgetune.recipe import Gates

FULL_IR = {13: 7, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10}


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
        if loaded.compute_capability in NO_INT8:
            # Maxwell and Pascal of Jetsons: 128 cores per SM, FP16 at twice the rate of FP32.
            assert mode.int8_dense_tops is None
            assert mode.fp16_dense_tflops == pytest.approx(mode.sms * 128 * 4 * mode.gpu_mhz * 1e-6, rel=0.01)
    for version, jetpack in loaded.jetpacks.items():
        assert FULL_IR[jetpack.opset] == jetpack.ir
        strong = tuple(map(int, jetpack.tensorrt.split(".")[:2])) >= (10, 12)
        assert jetpack.typing == ("strong" if strong else "weak")
        runtime = load_target(f"{name}@{version}").runtime
        assert (runtime.opset, runtime.ir, runtime.rendering) == (jetpack.opset, jetpack.ir, jetpack.typing)


@pytest.mark.parametrize("name", names())
def test_profiles_and_the_device_program_agree_on_int8(name: str, tmp_path: Path) -> None:
    loaded = load_profile(name)
    assert loaded.int8 == (loaded.compute_capability not in NO_INT8)
    text = (profile.folder() / f"{name}.yaml").read_text().replace("int8: false\n", "")
    (tmp_path / "able.yaml").write_text(text)
    for version, jetpack in loaded.jetpacks.items():
        job = Build("int8", "x.onnx", "x.plan", "int8", jetpack.typing, 1)
        able = load_target(f"{tmp_path}/able.yaml@{version}")
        here = tuple(map(int, jetpack.tensorrt.split(".")))
        if not able.no_int8:
            check(job, here)
            continue
        # A module whose GPU could, with a JetPack whose TensorRT is too old.
        assert f"TensorRT {jetpack.tensorrt}" in able.no_int8
        with pytest.raises(Problem, match="out of reach"):
            check(job, here)


@pytest.mark.parametrize("name", ["jetson-nano-4gb", "jetson-tx2"])
def test_a_module_without_int8_says_why_and_refuses_what_it_cannot_take(name: str) -> None:
    target = load_target(name)
    assert target.no_int8 == (
        f"{target.profile.title} has no INT8 path (compute capability {target.profile.compute_capability})"
    )
    with pytest.raises(ConfigError, match="nothing is quantized for it") as caught:
        check_int8(target)
    assert "edgetune bundle" in caught.value.hint
    check_input("float32_nchw", target.runtime)
    with pytest.raises(ConfigError, match=r"TensorRT 8\.2\.1 takes no uint8"):
        check_input("uint8_nhwc", target.runtime)
    for other in ("host-cpu", "jetson-orin-nano-8gb@5.1"):
        assert not load_target(other).no_int8
        check_int8(load_target(other))
        check_input("uint8_nhwc", load_target(other).runtime)


@pytest.mark.parametrize("version", ["8.2.1\nrm -rf ~", "8.2.1; reboot", "$(reboot)", "8", "", "8.2.x"])
def test_a_version_is_numbers_alone(version: str) -> None:
    entry = load_profile("jetson-nano-4gb").jetpacks["4.6"].model_dump()
    assert JetPack.model_validate(entry).tensorrt == "8.2.1"
    with pytest.raises(ValueError, match="tensorrt"):
        JetPack.model_validate(entry | {"tensorrt": version})


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


@pytest.mark.parametrize("name", ["host-cpu", "jetson-orin-nano-8gb"])
def test_int8_is_left_out_only_where_fp16_needs_no_quantizer(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text((profile.folder() / f"{name}.yaml").read_text() + "int8: false\n")
    with pytest.raises(ConfigError, match="weakly typed alone"):
        load_profile(str(path))
