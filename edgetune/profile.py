"""Hardware profiles: where a network must run. A profile knows no models and no recipe.

`--profile NAME[:MODE][@JETPACK]` names a target; mode and JetPack have defaults that the profile states.
A profile is one YAML file in profiles/, or a path to one of the user's own. It may import errors,
artifact and recipe (for the gates).
"""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from edgetune.errors import ConfigError, nearest
from edgetune.recipe import Gates, Section
from edgetune.yaml import load_yaml, validate

Confidence = Literal["confirmed", "derived", "unconfirmed"]
# From here on DequantizeLinear has scales per channel.
LEAST_OPSET = 13
# From here on Q/DQ scales may be FP16, which types written into the graph need.
STRONG_OPSET = 19
# The TensorRT from which the device program builds INT8, and with which uint8 inputs begin.
INT8_SINCE = UINT8_SINCE = (8, 5)
# Of the module's memory, where its profile says nothing: the rest is for the system and the tensors.
WORKSPACE_SHARE = 0.25
Positive = Annotated[float, Field(gt=0)]


class Mode(Section):
    """A power mode: what of the chip is on, and how fast. Peaks are dense: without sparsity."""

    sms: Annotated[int, Field(gt=0)] | None = None
    gpu_mhz: Positive | None = None
    bandwidth_gb_s: Positive | None = None
    int8_dense_tops: Positive | None = None
    fp16_dense_tflops: Positive | None = None
    power_w: Positive | None = None
    nvpmodel_id: Annotated[int, Field(ge=0)] | None = None
    super: bool = False
    source: str
    confidence: Confidence


class JetPack(Section):
    """What a JetPack brings, and so what an ONNX file may hold.

    `typing` says where the types of an engine come from: `weak` from the builder's flags, `strong` from
    the graph (TensorRT 10.12 and later).
    """

    l4t: str
    tensorrt: Annotated[str, Field(pattern=r"^\d+(\.\d+)+$")]
    cuda: str
    python: str
    opset_max: Annotated[int, Field(ge=7, le=26)]
    opset: Annotated[int, Field(ge=7, le=26)]
    ir: Annotated[int, Field(ge=3, le=14)]
    typing: Literal["weak", "strong"]
    modes: tuple[str, ...] = ()
    source: str
    confidence: Confidence


class Runtime(Section):
    """What a rendering of a network must fit: the part of a target that changes files.

    Attributes:
        opset: that networks are exported with.
        rendering: `cpu` for ONNX Runtime's kernels, `weak` or `strong` for TensorRT.
        tensorrt: its version, empty for `cpu`.
        opset_max: the highest it reads; 0: `opset`, or for `cpu` whatever opens.
    """

    opset: int
    ir: int
    rendering: Literal["cpu", "weak", "strong"]
    tensorrt: str = ""
    opset_max: int = 0

    @property
    def version(self) -> tuple[int, ...]:
        """TensorRT's major and minor version; empty for `cpu`."""
        return tuple(int(part) for part in re.findall(r"\d+", self.tensorrt)[:2])


class Profile(Section):
    """One module or machine.

    Attributes:
        int8: whether TensorRT has INT8 kernels for its GPU.
        workspace_mb: memory that a layer of an engine may use beside its tensors, in MiB; None: a quarter of
            the module's.
        optimization_level: how long TensorRT searches, 0 to 5; None: its own default.
    """

    schema_version: Literal[1]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    title: str
    kind: Literal["host", "jetson"]
    chip: str
    compute_capability: str = ""
    memory_gb: Positive | None = None
    dla_cores: Annotated[int, Field(ge=0)] = 0
    int8: bool = True
    workspace_mb: Annotated[int, Field(gt=0)] | None = None
    optimization_level: Annotated[int, Field(ge=0, le=5)] | None = None
    modes: dict[str, Mode]
    default_mode: str
    jetpacks: dict[str, JetPack] = Field(default_factory=dict)
    default_jetpack: str = ""
    host: Runtime | None = None
    gates: Gates = Gates()
    notes: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.default_mode not in self.modes:
            raise ValueError(f"default_mode {self.default_mode!r} is none of modes: {', '.join(self.modes)}")
        if self.kind == "host" and self.host is None:
            raise ValueError("a host profile needs host: opset, ir, rendering")
        strong = any(jetpack.typing == "strong" for jetpack in self.jetpacks.values())
        if not self.int8 and (self.kind == "host" or strong):
            # Where types are in the graph, quantizing is what writes the FP16 network.
            raise ValueError("int8: false is for Jetsons whose engines are weakly typed alone")
        if self.kind == "jetson":
            if self.default_jetpack not in self.jetpacks:
                raise ValueError(f"default_jetpack {self.default_jetpack!r} is none of jetpacks")
            for version, jetpack in self.jetpacks.items():
                unknown = [mode for mode in jetpack.modes if mode not in self.modes]
                if unknown:
                    raise ValueError(f"jetpacks.{version}.modes: {unknown[0]!r} is none of modes")
                if jetpack.opset > jetpack.opset_max:
                    raise ValueError(f"jetpacks.{version}.opset is above opset_max")
                if jetpack.typing == "strong" and jetpack.opset < STRONG_OPSET:
                    raise ValueError(f"jetpacks.{version}.opset: strong typing needs {STRONG_OPSET} or later")
        return self

    @property
    def workspace(self) -> int:
        """Memory that a layer of an engine may use beside its tensors, in MiB."""
        return self.workspace_mb or int((self.memory_gb or 4) * 1024 * WORKSPACE_SHARE)


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
            return (
                f"JetPack {self.jetpack} has TensorRT {self.runtime.tensorrt}, and INT8 begins with 8.5 here"
            )
        return ""

    @property
    def is_host(self) -> bool:
        """Whether this machine itself is the target."""
        return self.profile.kind == "host"


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
        ConfigError: unknown name (with the nearest ones), or a mistake in the file.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
    elif name in names():
        path = folder() / f"{name}.yaml"
    else:
        raise ConfigError(
            f"unknown profile {name!r}", hint=f"{nearest(name, names())} (edgetune profiles list shows them)"
        )
    return validate(Profile, load_yaml(path, what="profile", hint="edgetune profiles list"))


def load_target(spec: str) -> Target:
    """Resolve `NAME[:MODE][@JETPACK]`.

    Raises:
        ConfigError: the profile, mode or JetPack is unknown, or the mode is not in that JetPack.
    """
    match = re.fullmatch(r"(?P<name>[^:@]+)(:(?P<mode>[^@]+))?(@(?P<jetpack>.+))?", spec)
    if match is None:
        raise ConfigError(f"profile {spec!r}: write NAME[:MODE][@JETPACK]", hint="edgetune profiles list")
    profile = load_profile(match["name"])
    jetpack = match["jetpack"] or profile.default_jetpack
    if match["jetpack"] and jetpack not in profile.jetpacks:
        known = ", ".join(profile.jetpacks) or "it has none"
        raise ConfigError(f"profile {profile.name!r}: unknown JetPack {jetpack!r}", hint=f"known: {known}")
    allowed = profile.jetpacks[jetpack].modes if jetpack else ()
    default = profile.default_mode if not allowed or profile.default_mode in allowed else allowed[0]
    wanted = match["mode"] or default
    mode = next((known for known in profile.modes if known.lower() == wanted.lower()), "")
    if not mode:
        raise ConfigError(
            f"profile {profile.name!r}: unknown mode {wanted!r}", hint=nearest(wanted, profile.modes)
        )
    if allowed and mode not in allowed:
        raise ConfigError(
            f"profile {profile.name!r}: JetPack {jetpack} has no mode {mode!r}",
            hint=f"known: {', '.join(allowed)}",
        )
    return Target(profile=profile, mode=mode, jetpack=jetpack)


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
    own.update({name: getattr(recipe, name) for name in recipe.model_fields_set})
    return Gates(**own)
