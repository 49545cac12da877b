"""What a hardware profile says: chip, power modes, JetPacks. It knows no files.

It may import recipe (for the gates) only.
"""

import re
from typing import Annotated, Literal

from pydantic import Field

from edgetune.recipe import Gates, Section

Confidence = Literal["confirmed", "derived", "unconfirmed"]
# Of the module's memory, where its profile says nothing: the rest is for the system and the tensors.
WORKSPACE_SHARE = 0.25
Positive = Annotated[float, Field(gt=0)]


class Mode(Section):
    """A power mode: what of the chip is on, and how fast. Peaks are dense: without sparsity.

    Attributes:
        sms: streaming multiprocessors of the GPU that are on.
        gpu_mhz: the GPU's highest clock in this mode.
        bandwidth_gb_s: of the memory, by its clock and width.
        int8_dense_tops: peak of the GPU alone, in 10^12 operations a second; None: no INT8, or not known.
        fp16_dense_tflops: the same for FP16.
        power_w: what the mode is named after: a budget of the module, not a measurement.
        nvpmodel_id: its number for `nvpmodel -m`.
        super: it came with JetPack 6.2.
        source: where the figures are from.
        sources: of single figures that are from elsewhere, by their key.
        confidence: `confirmed` by NVIDIA's own files or pages, `derived` from those by a formula, or `unconfirmed`.
            The weakest of its figures counts; `source` says which that is.
    """

    sms: Annotated[int, Field(gt=0)] | None = None
    gpu_mhz: Positive | None = None
    bandwidth_gb_s: Positive | None = None
    int8_dense_tops: Positive | None = None
    fp16_dense_tflops: Positive | None = None
    power_w: Positive | None = None
    nvpmodel_id: Annotated[int, Field(ge=0)] | None = None
    super: bool = False
    source: str
    sources: dict[str, str] = Field(default_factory=dict)
    confidence: Confidence


class JetPack(Section):
    """What a JetPack brings, and so what an ONNX file may hold; on a desktop, a release of TensorRT.

    Attributes:
        l4t: the releases of Jetson Linux below it; empty on a desktop.
        tensorrt: its version.
        cuda: its version.
        python: of the system, or those that TensorRT has bindings for.
        opset_max: the highest that its ONNX parser reads.
        opset: that networks are exported with.
        ir: the newest IR version that it was made sure to read; files are written with it.
        typing: where the types of an engine come from: `weak` from the builder's flags, `strong` from the graph
            (TensorRT 10.12 and later).
        modes: that it offers; empty: all.
        source: where each figure is from.
        confidence: as of a mode.
    """

    l4t: str = ""
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
        ir: the IR version that files are written with.
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
        schema_version: of this format.
        name: what `--profile` takes.
        extends: the profile that it inherits from: a shipped one's name, or a YAML file beside this one.
        title: for people; a device says the same words of itself.
        kind: `jetson` for a module, `desktop` for a GPU in a workstation, `host` for this machine's processor.
        chip: its name and generation.
        compute_capability: of its GPU, as CUDA numbers them.
        memory_gb: of the module, shared by processor and GPU; of a desktop's GPU alone.
        l2_mb: last cache of the GPU, in MiB.
        dla_cores: Deep Learning Accelerators.
        int8: whether TensorRT has INT8 kernels for its GPU.
        workspace_mb: memory that a layer of an engine may use beside its tensors, in MiB; None: a quarter of
            the module's.
        optimization_level: how long TensorRT searches, 0 to 5; None: its own default.
        modes: power modes by name, as `nvpmodel -q` says them.
        default_mode: where none is named.
        jetpacks: by version; on a desktop, releases of TensorRT.
        default_jetpack: where none is named.
        host: what files for this machine's processor must fit; for `kind: host` alone.
        gates: limits that hold unless a recipe has its own.
        notes: what else to know.
        source: where what does not depend on the mode is from.
        confidence: as of a mode.
    """

    schema_version: Literal[1]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    extends: str = ""
    title: str
    kind: Literal["host", "jetson", "desktop"]
    chip: str
    compute_capability: Annotated[str, Field(pattern=r"^(\d+\.\d+)?$")] = ""
    memory_gb: Positive | None = None
    l2_mb: Positive | None = None
    dla_cores: Annotated[int, Field(ge=0)] = 0
    int8: bool = True
    workspace_mb: Annotated[int, Field(gt=0)] | None = None
    optimization_level: Annotated[int, Field(ge=0, le=5)] | None = None
    modes: Annotated[dict[str, Mode], Field(min_length=1)]
    default_mode: str
    jetpacks: dict[str, JetPack] = Field(default_factory=dict)
    default_jetpack: str = ""
    host: Runtime | None = None
    gates: Gates = Gates()
    notes: str = ""
    source: str = ""
    confidence: Confidence = "unconfirmed"

    @property
    def workspace(self) -> int:
        """Memory that a layer of an engine may use beside its tensors, in MiB."""
        return self.workspace_mb or int((self.memory_gb or 4) * 1024 * WORKSPACE_SHARE)

    @property
    def best(self) -> Mode:
        """The mode with the highest peak: INT8, or FP16 where there is none."""
        return max(self.modes.values(), key=lambda m: (m.int8_dense_tops or 0, m.fp16_dense_tflops or 0))
