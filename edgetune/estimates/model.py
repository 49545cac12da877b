"""Time of a kernel: the sum of an overhead, a compute term and a memory term.

    overhead   microseconds + cycles / clock, per launch
    compute    operations / (peak * efficiency of the kind), channels padded as tensor cores want them, and cycles
               per step of the longest sum: what is left when a layer is too small to fill the GPU
    memory     bytes / (bandwidth * share reached); an activation counts by how much of it outgrows the L2 cache

Where both terms are long, part of the shorter one hides behind the longer. The parameters are fitted by
benchmarks/estimate_fit.py. It may import profile and estimates.kernels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from edgetune.estimates.kernels import Kernel, Kind, Precision

Floats = NDArray[np.float64]
KINDS: tuple[Kind, ...] = get_args(Kind)
ARCHITECTURES = ("cuda", "volta", "ampere")
# Bytes of L2 that hold half of a tensor of the same size: the share of the cache that one tensor finds free.
L2_SHARE = 0.3
# Channels come in packs: 16 bytes on tensor cores; an input of 3 or 4 has kernels of its own.
_PACK = {True: 16, False: 8}


@dataclass(frozen=True)
class Hardware:
    """What of a chip in a mode decides about time.

    Attributes:
        architecture: `cuda` (no tensor cores), `volta` or `ampere`.
        mhz: clock of the GPU.
        bandwidth: of memory, in bytes per second.
        int8: dense peak in operations per second; 0: no INT8 path.
        fp16: dense peak in operations per second.
        l2: bytes of the last cache before memory.
    """

    architecture: str
    mhz: float
    bandwidth: float
    int8: float
    fp16: float
    l2: float


class Columns(NamedTuple):
    """Kernels with the hardware that each runs on, as arrays of one length."""

    kind: NDArray[np.int64]
    architecture: NDArray[np.int64]
    int8: NDArray[np.bool_]
    operations: Floats
    depth: Floats
    activations: Floats
    weights: Floats
    hertz: Floats
    peak: Floats
    bandwidth: Floats


@dataclass(frozen=True)
class Sizes:
    """What of a network's kernels does not depend on the hardware, in one precision."""

    kind: NDArray[np.int64]
    int8: NDArray[np.bool_]
    operations: Floats
    depth: Floats
    weights: Floats
    tensor_bytes: Floats
    tensor_of: NDArray[np.int64]


def sizes_of(kernels: Sequence[Kernel], precision: Precision) -> Sizes:
    """Gather a network's kernels."""
    tensors = [
        (index, size) for index, kernel in enumerate(kernels) for size in kernel.tensor_bytes(precision)
    ]
    return Sizes(
        kind=np.array([KINDS.index(kernel.kind) for kernel in kernels]),
        int8=np.array([kernel.runs_int8(precision) for kernel in kernels]),
        operations=np.array([kernel.operations * _padding(kernel, precision) for kernel in kernels]),
        depth=np.array([float(kernel.depth) for kernel in kernels]),
        weights=np.array([float(kernel.weight_bytes(precision)) for kernel in kernels]),
        tensor_bytes=np.array([float(size) for _, size in tensors]),
        tensor_of=np.array([index for index, _ in tensors]),
    )


def _padding(kernel: Kernel, precision: Precision) -> float:
    """Return by what factor a product grows when its channels are filled up to whole packs."""
    if kernel.kind not in ("conv", "gemm", "matmul"):
        return 1.0
    pack = _PACK[kernel.runs_int8(precision)]
    inner = 4 if kernel.inner <= 4 else -(-kernel.inner // pack) * pack
    return (inner / kernel.inner) * (-(-kernel.outer // pack) * pack / kernel.outer)


def columns(sizes: Sizes, hardware: Hardware) -> Columns:
    """Set a network beside the hardware that is to run it."""
    count = len(sizes.kind)
    beyond = sizes.tensor_bytes**2 / (sizes.tensor_bytes + L2_SHARE * hardware.l2)
    return Columns(
        kind=sizes.kind,
        architecture=np.full(count, ARCHITECTURES.index(hardware.architecture)),
        int8=sizes.int8,
        operations=sizes.operations,
        depth=sizes.depth,
        activations=np.bincount(sizes.tensor_of, beyond, count).astype(np.float64),
        weights=sizes.weights,
        hertz=np.full(count, hardware.mhz * 1e6),
        peak=np.where(sizes.int8, hardware.int8 or np.nan, hardware.fp16),
        bandwidth=np.full(count, hardware.bandwidth),
    )


def seconds(c: Columns, p: Mapping[str, float], graph: Any = False) -> Floats:
    """Return the time of every kernel.

    Args:
        c: the kernels.
        p: the fitted parameters.
        graph: whether a CUDA graph launches them; one answer, or one per kernel.
    """

    def by_architecture(name: str) -> Floats:
        return np.array([p[f"{name}_{a}"] for a in ARCHITECTURES])[c.architecture]

    launch = p["launch_us"] * 1e-6 + p["launch_cycles"] / c.hertz
    launch = launch * by_architecture("launch") * np.where(graph, p["launch_graph"], 1.0)
    kinds = np.array([[p.get(f"kind_{kind}", 1.0) for kind in KINDS]] * len(ARCHITECTURES))
    kinds[0, KINDS.index("depthwise")] *= p["depthwise_cuda"]
    efficiency = p["efficiency"] * by_architecture("efficiency") * kinds[c.architecture, c.kind]
    efficiency = efficiency * np.where(c.int8, p["efficiency_int8"], 1.0)
    fill = (
        p["fill_cycles"] * np.where(c.int8, p["fill_int8"], 1.0) * by_architecture("fill") * c.depth / c.hertz
    )
    compute = c.operations / (c.peak * efficiency) + fill
    reached = p["bandwidth"] * by_architecture("bandwidth") * c.bandwidth
    memory = c.activations / reached + c.weights / (reached * p["bandwidth_weights"])
    result: Floats = launch + compute + memory - p["overlap"] * np.minimum(compute, memory)
    return result
