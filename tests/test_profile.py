"""Profiles: every shipped one is whole, and a target resolves to one mode and one JetPack."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgetune import profile
from edgetune.device.program.plan import Build
from edgetune.device.program.problem import Problem
from edgetune.device.program.spoilers import NO_INT8
from edgetune.device.program.trtexec_commands import check
from edgetune.errors import ConfigError
from edgetune.profile import (
    JetPack,
    Profile,
    check_input,
    check_int8,
    compare_targets,
    load_profile,
    load_target,
    merged_gates,
    names,
    own_content,
    target_of,
    validate_profile,
)
from edgetune.recipe import Gates, RecipeGates

HEAD = "schema_version: 1\nname: mine\n"


def test_there_are_profiles() -> None:
    assert {"host-cpu", "jetson-orin-nano-8gb", "jetson-agx-orin-64gb"} <= set(names())


@pytest.mark.parametrize("name", names())
def test_every_profile_is_whole(name: str) -> None:
    loaded = load_profile(name)
    assert loaded.name == name, "file and name agree"
    target = load_target(name)
    assert target.mode == loaded.default_mode
    for version, jetpack in loaded.jetpacks.items():
        strong = tuple(map(int, jetpack.tensorrt.split(".")[:2])) >= (10, 12)
        assert jetpack.typing == ("strong" if strong else "weak")
        runtime = load_target(f"{name}@{version}").runtime
        assert (runtime.opset, runtime.ir, runtime.rendering) == (jetpack.opset, jetpack.ir, jetpack.typing)


@pytest.mark.parametrize("name", names())
def test_profiles_and_the_device_program_agree_on_int8(name: str) -> None:
    loaded = load_profile(name)
    assert loaded.int8 == (loaded.compute_capability not in NO_INT8)
    for version, jetpack in loaded.jetpacks.items():
        job = Build("int8", "x.onnx", "x.plan", "int8", jetpack.typing, 1)
        able = load_target(f"{name}@{version}")
        able = able.model_copy(update={"profile": loaded.model_copy(update={"int8": True})})
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
        ("desktop-rtx-4090@6.2", "unknown TensorRT '6.2'", "10.16"),
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
    # That an estimate may stand in for a measurement is for a recipe to say.
    for key in ("latency: 5", "estimates: true"):
        path.write_text(f"{text}gates:\n  {key}\n")
        with pytest.raises(ConfigError, match=rf"mine.yaml:\d+: gates.{key.split(':')[0]}: unknown key"):
            load_profile(str(path))


def test_a_recipes_limits_win_over_a_profiles() -> None:
    merged = merged_gates(Gates(size_mb=9, latency_p50_ms=5), Gates(size_mb=3, top1_drop_points=None))
    assert (merged.size_mb, merged.latency_p50_ms, merged.top1_drop_points) == (3, 5, None)
    assert merged.int8_cosine_min == Gates().int8_cosine_min
    assert merged_gates(Gates(), RecipeGates(size_mb=3, estimates=True)) == Gates(size_mb=3)


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


def test_software_is_named_as_the_machine_names_it() -> None:
    assert load_target("jetson-orin-nx-8gb@6.0").software == "JetPack 6.0, TensorRT 8.6.2"
    assert load_target("desktop-rtx-3060").software == "TensorRT 10.16.1"
    assert load_target("host-cpu").software == ""
    old = load_target("jetson-xavier-nx@4.6")
    assert old.no_int8 == "JetPack 4.6 has TensorRT 8.2.1, and INT8 begins with 8.5 here"


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_three_lines_make_the_module_with_more_memory(tmp_path: Path) -> None:
    mine = load_profile(write(tmp_path / "x.yaml", f"{HEAD}extends: jetson-xavier-nx\nmemory_gb: 16\n"))
    shipped = load_profile("jetson-xavier-nx")
    changed = {"name": "mine", "memory_gb": 16, "extends": "jetson-xavier-nx"}
    assert mine.model_dump() == shipped.model_dump() | changed
    assert load_target(f"{tmp_path}/x.yaml:20w_6core@5.1").label == "mine:20W_6CORE@5.1"


def test_a_mode_and_a_jetpack_are_changed_added_and_taken_away(tmp_path: Path) -> None:
    text = f"""{HEAD}extends: jetson-orin-nx-16gb
modes:
  10W: null
  15W: {{power_w: 14}}
  cool: {{sms: 8, gpu_mhz: 306, int8_dense_tops: 10.0, fp16_dense_tflops: 5.0, source: me, confidence: derived}}
jetpacks:
  "5.1": null
  "6.0": {{modes: [cool, MAXN]}}
"""
    mine, shipped = load_profile(write(tmp_path / "x.yaml", text)), load_profile("jetson-orin-nx-16gb")
    assert set(mine.modes) == set(shipped.modes) - {"10W"} | {"cool"}
    assert mine.modes["15W"] == shipped.modes["15W"].model_copy(update={"power_w": 14})
    assert set(mine.jetpacks) == set(shipped.jetpacks) - {"5.1"}
    assert mine.jetpacks["6.0"].modes == ("cool", "MAXN")
    assert mine.jetpacks["6.1"].modes == ("15W", "25W", "MAXN"), "a mode that is gone is gone there, too"


def test_a_profile_of_ones_own_is_a_parent_as_well(tmp_path: Path) -> None:
    write(tmp_path / "parent.yaml", f"{HEAD}extends: jetson-tx2\ngates: {{latency_p50_ms: 9, size_mb: 3}}\n")
    child = write(
        tmp_path / "child.yaml", "schema_version: 1\nname: child\nextends: parent.yaml\ngates: {size_mb: 2}\n"
    )
    loaded = load_profile(child)
    assert (loaded.gates.latency_p50_ms, loaded.gates.size_mb) == (9, 2)
    assert loaded.gates.model_fields_set == {"latency_p50_ms", "size_mb"}
    assert not loaded.int8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: jetson-orin\n", r"x.yaml:3: extends: unknown profile 'jetson-orin'"),
        ("extends: absent.yaml\n", r"x.yaml:3: extends: there is no .*absent.yaml"),
        ("extends: x.yaml\n", r"x.yaml:3: extends: goes in a circle: x.yaml -> x.yaml"),
        ("extends: y.yaml\n", r"y.yaml:1: extends: goes in a circle: x.yaml -> y.yaml -> x.yaml"),
        ("extends: wrong.yaml\n", r"wrong.yaml:3: modes.MAXN.gpu_mhz: input should be greater than 0"),
        (
            "extends: jetson-tx2\nmodes:\n  MAXN:\n    gpu_mhz: 1000\n",
            r"x.yaml:5: modes.MAXN.fp16_dense_tflops: 1.33, but",
        ),
        ("extends: jetson-tx2\ncompute_capability: '8.7'\n", r"x.yaml:3: modes.*fp16_dense_tflops"),
        ("extends: jetson-tx2\nmodes: null\n", r"x.yaml:4: modes: "),
        ("extends: jetson-tx2\nmodes: {MAXN: null}\n", r"x.yaml:3: default_mode: 'MAXN' is none of modes"),
        ("extends: jetson-tx2\njetpacks: {'4.6': null}\n", r"x.yaml:4: jetpacks: missing"),
    ],
)
def test_what_is_wrong_with_an_heir_names_its_own_file_and_line(
    tmp_path: Path, text: str, message: str
) -> None:
    write(tmp_path / "y.yaml", "extends: x.yaml\n")
    write(
        tmp_path / "wrong.yaml",
        "schema_version: 1\nname: wrong\nmodes: {MAXN: {gpu_mhz: -1}}\nextends: jetson-tx2\n",
    )
    with pytest.raises(ConfigError, match=message):
        load_profile(write(tmp_path / "x.yaml", HEAD + text))


def test_an_heir_needs_a_name_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"x.yaml:2: name: missing"):
        load_profile(write(tmp_path / "x.yaml", "schema_version: 1\nextends: jetson-tx2\n"))


read = functools.cache(load_profile)
SHIPPED = sorted(set(names()) - {"host-cpu"})
OVERRIDES = st.fixed_dictionaries(
    {},
    optional={
        "memory_gb": st.integers(1, 512),
        "workspace_mb": st.integers(1, 4096),
        "notes": st.text("abc \n:#-", max_size=20),
        "gates": st.dictionaries(
            st.sampled_from(["size_mb", "latency_p50_ms", "memory_mb"]), st.integers(1, 99), min_size=1
        ),
    },
)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(SHIPPED), st.lists(OVERRIDES, min_size=1, max_size=3))
def test_the_closest_word_counts_and_all_else_is_inherited(
    tmp_path: Path, root: str, chain: list[dict[str, Any]]
) -> None:
    parent = root
    for number, own in enumerate(chain):
        values = {"schema_version": 1, "name": f"heir-{number}", "extends": parent, **own}
        # JSON is YAML, and quotes what needs it.
        parent = f"heir-{number}.yaml"
        (tmp_path / parent).write_text(json.dumps(values))
    loaded, shipped = load_profile(str(tmp_path / parent)), read(root)
    for key in Profile.model_fields:
        said = [own[key] for own in chain if key in own]
        if key == "gates":
            merged = {name: value for gates in said for name, value in gates.items()}
            assert loaded.gates.model_dump(exclude_unset=True) == merged
        elif key not in ("name", "extends"):
            assert getattr(loaded, key) == (said[-1] if said else getattr(shipped, key))
    assert loaded.name == f"heir-{len(chain) - 1}"


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(SHIPPED), st.data())
def test_modes_are_laid_over_key_by_key(tmp_path: Path, root: str, data: st.DataObject) -> None:
    shipped = read(root)
    mode = data.draw(st.sampled_from(sorted(shipped.modes)))
    own = data.draw(
        st.dictionaries(st.sampled_from(["source", "confidence", "super"]), st.just("derived"), min_size=1)
    )
    own = {key: (False if key == "super" else value) for key, value in own.items()}
    values = {"schema_version": 1, "name": "heir", "extends": root, "modes": {mode: own}}
    (tmp_path / "x.yaml").write_text(json.dumps(values))
    loaded = load_profile(str(tmp_path / "x.yaml"))
    assert loaded.modes == shipped.modes | {mode: shipped.modes[mode].model_copy(update=own)}
    assert list(loaded.modes) == list(shipped.modes)


def test_what_does_not_ship_is_kept_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "x.yaml", f"{HEAD}extends: jetson-orin-nx-8gb\ngates: {{size_mb: 3}}\n")
    target = load_target(f"{path}:20W@6.0")
    kept = json.loads(json.dumps(own_content(target)))["own"]
    Path(path).unlink()
    again = target_of(target.label, kept)
    assert again == target
    assert again.profile.gates.model_fields_set == {"size_mb"}, "defaults are not limits of its own"
    shipped = load_target("jetson-orin-nx-8gb:20W@6.0")
    assert own_content(shipped) == {}
    assert target_of(shipped.label, None) == shipped
    with pytest.raises(ConfigError, match="damaged"):
        target_of(target.label, kept | {"modes": 3})
    with pytest.raises(ConfigError, match="unknown profile"):
        target_of(target.label, None)


def test_targets_side_by_side() -> None:
    found = compare_targets(
        ["jetson-orin-nx-16gb", "jetson-orin-nano-8gb:MAXN_SUPER", "jetson-orin-nx-8gb@5.1"]
    )
    assert found["targets"][2] == "jetson-orin-nx-8gb:15W@5.1"
    differs = {row["what"]: row["values"] for row in found["differs"]}
    assert differs["memory_gb"] == [16, 8, 8]
    assert differs["tensorrt"] == ["10.3.0", "10.3.0", "8.5.2"]
    assert found["same"]["compute_capability"] == "8.7"
    assert not set(differs) & set(found["same"])
    listed = [row["target"] for row in found["modes"]]
    assert sum(one.startswith("jetson-orin-nano") for one in listed) == 1, "one mode was named, one is listed"
    assert "jetson-orin-nx-8gb:40W@5.1" not in listed, "Super modes are none of JetPack 5.1"
    peaks = [row["int8_dense_tops"] for row in found["modes"]]
    assert peaks == sorted(peaks, reverse=True)
    with pytest.raises(ConfigError, match="two or more"):
        compare_targets(["host-cpu"])


def test_validation_tells_everything_at_once(tmp_path: Path) -> None:
    text = (
        f"{HEAD}extends: jetson-orin-nano-8gb\ndla_cores: 1\ncolour: red\nmodes:\n  15W: {{gpu_mhz: 800}}\n"
    )
    found = validate_profile(write(tmp_path / "x.yaml", text))
    assert not found["valid"]
    lines = [(one["line"], one["key"]) for one in found["complaints"]]
    assert lines == [
        (4, "dla_cores"), (5, "colour"), (7, "modes.15W.int8_dense_tops"), (7, "modes.15W.fp16_dense_tflops"),
    ]  # fmt: skip
    assert all(one["text"].startswith(f"{tmp_path}/x.yaml:") for one in found["complaints"])
    assert validate_profile("host-cpu") == {
        "file": "host-cpu", "valid": True, "profile": "host-cpu", "complaints": [],
    }  # fmt: skip
    absent = validate_profile(str(tmp_path / "absent.yaml"))
    assert not absent["valid"]
    assert "No such file" in absent["complaints"][0]["text"]
