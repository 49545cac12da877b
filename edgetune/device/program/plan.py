"""What is to be done on a device: the plan of work that a bundle carries. Standard library only."""

from __future__ import annotations

from typing import NamedTuple


class Tensor(NamedTuple):
    """An input or output of a network; `dtype` is `float32`, `float16`, `uint8`, `int32`, …"""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Build(NamedTuple):
    """An engine to build.

    Attributes:
        name: of the engine, such as `int8`.
        onnx: path of the network.
        plan: path of the engine to write.
        precision: `int8` or `fp16`.
        typing: how the ONNX file is rendered: `weak` (types by the builder's flags) or `strong` (in the graph).
        workspace_mb: memory that a layer may use beside its tensors, at most, in MiB.
        optimization_level: 0 to 5; None: the builder's own default.
        dla_core: None: the GPU.
        timing_cache: path of this device's cache of timings; empty: none.
    """

    name: str
    onnx: str
    plan: str
    precision: str
    typing: str
    workspace_mb: int
    optimization_level: int | None = None
    dla_core: int | None = None
    timing_cache: str = ""
