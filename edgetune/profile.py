"""Hardware profiles: where a network must run. A profile knows no models and no recipe.

`--profile NAME[:MODE][@JETPACK]` names a target; mode and JetPack have defaults that the profile states.
A profile is one YAML file in profiles/, or a path to one of the user's own, which may inherit from another.
It may import errors, hardware, contradictions, recipe (for the gates) and yaml.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgetune.contradictions import STRONG_OPSET as STRONG_OPSET
from edgetune.contradictions import contradictions
from edgetune.errors import ConfigError, nearest
from edgetune.hardware import JetPack as JetPack
from edgetune.hardware import Mode as Mode
from edgetune.hardware import Profile as Profile
from edgetune.hardware import Runtime as Runtime
from edgetune.recipe import Gates, Section
from edgetune.yaml import Complaint, Document, examine, load_yaml, refused

# From here on DequantizeLinear has scales per channel.
LEAST_OPSET = 13
# The TensorRT from which the device program builds INT8, and with which uint8 inputs begin.
INT8_SINCE = UINT8_SINCE = (8, 5)
# What two targets are compared by.
PROFILE_FACTS = ("title", "kind", "chip", "compute_capability", "memory_gb", "l2_mb", "dla_cores", "int8")
MODE_FIGURES = (
    "sms", "gpu_mhz", "bandwidth_gb_s", "int8_dense_tops", "fp16_dense_tflops", "power_w", "super", "confidence",
)  # fmt: skip
JETPACK_FACTS = ("l4t", "tensorrt", "cuda", "python", "opset_max", "opset", "ir", "typing")


class Target(Section):
    """A profile with its mode and JetPack chosen."""

    profile: Profile
    mode: str
    jetpack: str

    @property
    def label(self) -> str:
        """The target in full: `jetson-orin-nano-8gb:15W@6.2`."""
        return f"{self.profile.name}:{self.mode}" + (f"@{self.jetpack}" if self.jetpack else "")

    @property
    def runtime(self) -> Runtime:
        """What files for this target must fit."""
        if self.profile.host is not None:
            return self.profile.host
        jetpack = self.profile.jetpacks[self.jetpack]
        return Runtime(
            opset=jetpack.opset,
            ir=jetpack.ir,
            rendering=jetpack.typing,
            tensorrt=jetpack.tensorrt,
            opset_max=jetpack.opset_max,
        )

    @property
    def no_int8(self) -> str:
        """Why no INT8 engine is built for it, as a clause; empty where one is."""
        profile, version = self.profile, self.runtime.version
        if not profile.int8:
            return f"{profile.title} has no INT8 path (compute capability {profile.compute_capability})"
        if version and version < INT8_SINCE:
            has = f"JetPack {self.jetpack} has " if profile.kind == "jetson" else ""
            return f"{has}TensorRT {self.runtime.tensorrt}, and INT8 begins with 8.5 here"
        return ""

    @property
    def software(self) -> str:
        """What runs there: `JetPack 6.2, TensorRT 10.3.0`; on a desktop TensorRT alone, on a host nothing."""
        tensorrt = f"TensorRT {self.runtime.tensorrt}" if self.jetpack else ""
        return f"JetPack {self.jetpack}, {tensorrt}" if self.profile.kind == "jetson" else tensorrt

    @property
    def is_host(self) -> bool:
        """Whether this machine itself is the target."""
        return self.profile.kind == "host"

    def facts(self) -> dict[str, Any]:
        """What distinguishes it from others, by key: of the profile, the mode, the JetPack."""
        mode = self.profile.modes[self.mode]
        pack = self.profile.jetpacks.get(self.jetpack)
        return {
            **{key: getattr(self.profile, key) for key in PROFILE_FACTS},
            "mode": self.mode,
            **{key: getattr(mode, key) for key in MODE_FIGURES},
            "jetpack": self.jetpack,
            **{key: getattr(pack, key, None) for key in JETPACK_FACTS},
        }


def folder() -> Path:
    """Return where the profiles lie: inside an installed package, beside it in a checkout."""
    inside = Path(__file__).parent / "profiles"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "profiles"


def names() -> list[str]:
    """Return the names of the shipped profiles."""
    return sorted(path.stem for path in folder().glob("*.yaml"))


def load_profile(name: str) -> Profile:
    """Read a profile by its name, or by the path of a YAML file.

    Raises:
        ConfigError: unknown name (with the nearest ones), or mistakes in the file: the first, and in the hint the
            others.
    """
    profile, complaints = look_through(name)
    if profile is None:
        raise refused(complaints)
    return profile


def look_through(name: str) -> tuple[Profile | None, list[Complaint]]:
    """Read a profile, or say everything that is wrong with it: its keys, and figures that contradict each other.

    Raises:
        ConfigError: there is no such profile, it is not YAML, or what it inherits from is not there or is wrong.
    """
    return examine(Profile, _with_parents(_path_of(name), ()), contradictions)


def validate_profile(name: str) -> dict[str, Any]:
    """Say all that is wrong with a profile, and what it is where nothing is.

    Returns:
        `file`, `valid`, `profile` (its name, or None), and `complaints`: `line` and `key` where they are known,
        `message`, `hint`, and `text`, all of it in one line.
    """
    try:
        profile, complaints = look_through(name)
    except ConfigError as error:
        text = f"{error.message} ({error.hint})" if error.hint else error.message
        only = {"line": None, "key": "", "message": error.message, "hint": error.hint, "text": text}
        return {"file": name, "valid": False, "profile": None, "complaints": [only]}
    found = [
        {"line": one.line, "key": one.key, "message": one.message, "hint": "",
         "text": f"{one.path}:{one.line}: {one.key}: {one.message}"}
        for one in complaints
    ]  # fmt: skip
    return {
        "file": name,
        "valid": not found,
        "profile": profile.name if profile else None,
        "complaints": found,
    }


def _path_of(name: str) -> Path:
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    if name in names():
        return folder() / f"{name}.yaml"
    raise ConfigError(
        f"unknown profile {name!r}", hint=f"{nearest(name, names())} (edgetune profiles list shows them)"
    )


def _with_parents(path: Path, children: tuple[Path, ...]) -> Document:
    """Read a profile's file with what it inherits; lines are those of the file itself."""
    document = load_yaml(path, what="profile", hint="edgetune profiles list")
    parent = document.values.get("extends")
    if not parent or not isinstance(parent, str):
        return document
    line = document.line(("extends",))
    try:
        above = _path_of(parent)
    except ConfigError as error:
        raise ConfigError(f"{path}:{line}: extends: {error.message}", hint=error.hint) from None
    above = path.parent / above if parent.endswith((".yaml", ".yml")) else above
    chain = (*children, path)
    if above.resolve() in [one.resolve() for one in chain]:
        circle = " -> ".join(one.name for one in (*chain, above))
        raise ConfigError(
            f"{path}:{line}: extends: goes in a circle: {circle}", hint="let one of them stand by itself"
        )
    if not above.is_file():
        raise ConfigError(
            f"{path}:{line}: extends: there is no {above}",
            hint=f"a path begins at the folder of this file; shipped: {', '.join(names())}",
        )
    inherited = _with_parents(above, chain)
    profile, complaints = examine(Profile, inherited, contradictions)
    if profile is None:
        raise refused(complaints)
    # What a file lacks, or contradicts in what it inherits, is said at its `extends`.
    lines = {(): line, **document.lines}
    return Document(path, {**_merged(inherited.values, document.values), "extends": parent}, lines)


def _merged(inherited: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Lay a file's own keys over what it inherits; `null` takes a mode or a JetPack away.

    A mode that is gone is gone from inherited JetPacks, too; one that is left without any goes with it.
    """
    made = _laid_over({key: value for key, value in inherited.items() if key != "name"}, own)
    gone: set[str] = set()
    above = inherited.get("jetpacks") or {}
    for key in ("modes", "jetpacks"):
        if isinstance(made.get(key), dict):
            gone |= {name for name, entry in made[key].items() if entry is None}
            made[key] = {name: entry for name, entry in made[key].items() if entry is not None}
    packs = made.get("jetpacks")
    if not isinstance(packs, dict):
        return made
    for name, pack in list(packs.items()):
        listed: list[str] = above.get(name, {}).get("modes") or []
        if listed and isinstance(pack, dict) and pack.get("modes") is listed:
            left = [mode for mode in listed if mode not in gone]
            packs.update({name: pack | {"modes": left}}) if left else packs.pop(name)
    return made


def _laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {
        key: _laid_over(below[key], value)
        for key, value in above.items()
        if isinstance(value, dict) and isinstance(below.get(key), dict)
    }
    return below | above | both


def load_target(spec: str) -> Target:
    """Resolve `NAME[:MODE][@JETPACK]`.

    Raises:
        ConfigError: the profile, mode or JetPack is unknown, or the mode is not in that JetPack.
    """
    name, mode, jetpack = _parts_of(spec)
    return _chosen(load_profile(name), mode, jetpack)


def own_content(target: Target) -> dict[str, Any]:
    """Return what a report or a bundle must keep of a target's profile: `own`, its content, if it does not ship."""
    name = target.profile.name
    if name in names() and load_profile(name) == target.profile:
        return {}
    return {"own": target.profile.model_dump(mode="json", exclude_unset=True)}


def target_of(label: str, own: Mapping[str, Any] | None) -> Target:
    """Return the target of a report or a bundle, wherever its profile's file may be by now.

    Args:
        label: in full.
        own: the content of its profile, if that does not ship.

    Raises:
        ConfigError: the profile, mode or JetPack is unknown, or the content is damaged.
    """
    if not own:
        return load_target(label)
    try:
        profile = Profile.model_validate_json(json.dumps(own))
    except ValueError as error:
        raise ConfigError(f"{label}: the profile that is kept beside it is damaged: {error}") from None
    return _chosen(profile, *_parts_of(label)[1:])


def _parts_of(spec: str) -> tuple[str, str, str]:
    match = re.fullmatch(r"(?P<name>[^:@]+)(:(?P<mode>[^@]+))?(@(?P<jetpack>.+))?", spec)
    if match is None:
        raise ConfigError(f"profile {spec!r}: write NAME[:MODE][@JETPACK]", hint="edgetune profiles list")
    return match["name"], match["mode"] or "", match["jetpack"] or ""


def _chosen(profile: Profile, wanted: str, named: str) -> Target:
    jetpack = named or profile.default_jetpack
    called = "TensorRT" if profile.kind == "desktop" else "JetPack"
    if named and jetpack not in profile.jetpacks:
        known = ", ".join(profile.jetpacks) or "it has none"
        raise ConfigError(f"profile {profile.name!r}: unknown {called} {jetpack!r}", hint=f"known: {known}")
    allowed = profile.jetpacks[jetpack].modes if jetpack else ()
    default = profile.default_mode if not allowed or profile.default_mode in allowed else allowed[0]
    wanted = wanted or default
    mode = next((known for known in profile.modes if known.lower() == wanted.lower()), "")
    if not mode:
        raise ConfigError(
            f"profile {profile.name!r}: unknown mode {wanted!r}", hint=nearest(wanted, profile.modes)
        )
    if allowed and mode not in allowed:
        raise ConfigError(
            f"profile {profile.name!r}: {called} {jetpack} has no mode {mode!r}",
            hint=f"known: {', '.join(allowed)}",
        )
    return Target(profile=profile, mode=mode, jetpack=jetpack)


def compare_targets(specs: Sequence[str]) -> dict[str, Any]:
    """Set targets side by side.

    Args:
        specs: `NAME[:MODE][@JETPACK]` each; without a mode, all modes of its JetPack are listed.

    Returns:
        `targets` (their labels), `differs` (a list of `what` and `values`, in that order), `same` (by key), and
        `modes`, the fastest first.

    Raises:
        ConfigError: fewer than two, or one of them is unknown.
    """
    if len(specs) < 2:
        raise ConfigError("compare takes two or more profiles", hint="one alone: edgetune profiles show NAME")
    targets = [load_target(spec) for spec in specs]
    facts = [target.facts() for target in targets]
    differs, same = [], {}
    for key in facts[0]:
        values = [fact[key] for fact in facts]
        if any(value != values[0] for value in values):
            differs.append({"what": key, "values": values})
        elif values[0] not in (None, ""):
            same[key] = values[0]
    modes: dict[str, dict[str, Any]] = {}
    for spec, target in zip(specs, targets, strict=True):
        allowed = target.profile.jetpacks[target.jetpack].modes if target.jetpack else ()
        for name in [target.mode] if ":" in spec else allowed or target.profile.modes:
            one = target.model_copy(update={"mode": name})
            modes[one.label] = {"target": one.label, "mode": name} | {
                key: one.facts()[key] for key in MODE_FIGURES
            }
    fastest = sorted(
        modes.values(),
        key=lambda row: [row[key] or 0 for key in ("int8_dense_tops", "fp16_dense_tflops", "bandwidth_gb_s")],
        reverse=True,
    )
    return {
        "targets": [target.label for target in targets],
        "differs": differs,
        "same": same,
        "modes": fastest,
    }


def check_int8(target: Target) -> None:
    """Refuse to quantize for a device that has no use for it.

    Raises:
        ConfigError: with what to do instead.
    """
    if target.no_int8:
        raise ConfigError(
            f"{target.label}: nothing is quantized for it: {target.no_int8}",
            hint="its engine runs in FP16 and is built of the exported network: edgetune run, then edgetune bundle",
        )


def check_input(takes: str, runtime: Runtime) -> None:
    """Refuse networks that take pixels as they are, where TensorRT takes no uint8.

    Raises:
        ConfigError: with what to do instead.
    """
    if takes == "uint8_nhwc" and runtime.version and runtime.version < UINT8_SINCE:
        raise ConfigError(
            f"export.input: {takes}, where TensorRT {runtime.tensorrt} takes no uint8 (that begins with 8.5)",
            hint="leave it out: float32_nchw",
        )


def merged_gates(profile: Gates, recipe: Gates) -> Gates:
    """Return the limits in force: a recipe's win over a profile's, a profile's over the defaults."""
    own = {name: getattr(profile, name) for name in profile.model_fields_set}
    own.update(
        {name: getattr(recipe, name) for name in recipe.model_fields_set if name in Gates.model_fields}
    )
    return Gates(**own)
