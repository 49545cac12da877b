"""Building for a Deep Learning Accelerator: what it takes, what falls back to the GPU, and its INT8 scales.

Up to TensorRT 10.7 a DLA does not read Q/DQ: it takes a graph without, and scales from a calibration cache,
which is written here from ours. From 10.8 to 11.3 there is no DLA at all; from 11.4 on it takes Q/DQ.
It knows nothing of files. It may import messages, plan and problem.
"""

from __future__ import annotations

import math
import struct
from typing import Any

from .plan import Build
from .problem import Problem

_NONE, _BACK = (10, 8), (11, 4)


def drives(version: tuple[int, ...]) -> bool:
    """Say whether a version of TensorRT drives DLAs at all."""
    return not _NONE <= version < _BACK


def takes_pairs(version: tuple[int, ...]) -> bool:
    """Say whether a version's DLA takes Q/DQ."""
    return version >= _BACK


def refuse(version: tuple[int, ...], shown: str, job: Build, scales: dict[str, float] | None) -> None:
    """Refuse what this version's DLA does not do.

    Args:
        version: of TensorRT.
        shown: the same as text.
        job: what to build.
        scales: of tensors, or None.

    Raises:
        Problem: it does not.
    """
    if job.dla_core is None:
        if scales is not None:
            raise Problem(f"{job.name}: scales beside the graph are for a DLA; the GPU's are in Q/DQ", code=3)
        return
    if not drives(version):
        raise Problem(
            f"{job.name}: TensorRT {shown} does not drive a DLA: 10.7 was the last before 11.4",
            "build for the GPU",
            3,
        )
    needs = job.precision == "int8" and not takes_pairs(version)
    if needs and not scales:
        raise Problem(
            f"{job.name}: INT8 on a DLA under TensorRT {shown} needs the scales of its tensors",
            "give the graph without Q/DQ and its scales",
            3,
        )
    if scales and not needs:
        raise Problem(
            f"{job.name}: scales beside the graph are for INT8 on a DLA up to TensorRT 10.7", code=3
        )


def configure(
    trt: Any,
    builder: Any,
    network: Any,
    config: Any,
    job: Build,
    scales: dict[str, float] | None,
    found: dict[str, Any],
) -> Any:
    """Send a build to a DLA, where the job asks for one.

    Args:
        trt: the module `tensorrt`.
        builder: what builds.
        network: parsed.
        config: of the build.
        job: what to build.
        scales: of tensors, where this version's DLA takes them beside the graph.
        found: takes `dla_layers` (how many layers the DLA takes), `fallback_layers` (how many it does not)
            and `fallback_names`.

    Returns:
        What has to stay alive until the build is over, or None.

    Raises:
        Problem: the device has no such DLA, or the graph is not one that it takes.
    """
    if job.dla_core is None:
        return None
    cores = builder.num_DLA_cores
    if not 0 <= job.dla_core < cores:
        has = f"{cores} DLA cores, numbered from 0" if cores else "no DLA"
        raise Problem(
            f"{job.name}: asks for DLA core {job.dla_core}; this device has {has}", "build for the GPU", 3
        )
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    if scales is not None:
        kinds = (trt.LayerType.QUANTIZE, trt.LayerType.DEQUANTIZE)
        pairs = [layer.name for layer in layers if layer.type in kinds]
        if pairs:
            raise Problem(
                f"{job.onnx}: has Q/DQ ({pairs[0]!r} and {len(pairs) - 1} more), which no DLA takes up to "
                "TensorRT 10.7",
                "give the graph without Q/DQ and its scales",
                3,
            )
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = job.dla_core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    calibrator = None
    if scales is not None:
        calibrator = config.int8_calibrator = _calibrator(trt, calibration_cache(trt.__version__, scales))
    on_gpu = [layer.name for layer in layers if not config.can_run_on_DLA(layer)]
    found.update(dla_layers=len(layers) - len(on_gpu), fallback_layers=len(on_gpu), fallback_names=on_gpu)
    return calibrator


def calibration_cache(version: str, scales: dict[str, float]) -> bytes:
    """Write scales as the cache of an entropy calibrator, which TensorRT reads instead of calibrating.

    Args:
        version: of TensorRT, in whose first line it stands.
        scales: real value of one step, by the tensor's name.

    Raises:
        Problem: a scale is not a positive number, or a name cannot stand in a line.
    """
    numbers = [int(part) for part in version.split(".")[:3]]
    # Patch and minor have two digits in 8.x, and four together with the major from 10 on.
    weights = (10000, 100, 1) if numbers[0] >= 10 else (1000, 100, 1)
    lines = [f"TRT-{sum(n * w for n, w in zip(numbers, weights))}-EntropyCalibration2"]
    for name, scale in scales.items():
        if not (scale > 0 and math.isfinite(scale)) or "\n" in name:
            raise Problem(f"tensor {name!r}: {scale} is no scale for a calibration cache", code=5)
        lines.append(f"{name}: {struct.pack('>f', scale).hex()}")
    return ("\n".join(lines) + "\n").encode()


def _calibrator(trt: Any, cache: bytes) -> Any:
    class Calibrator(trt.IInt8EntropyCalibrator2):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IInt8EntropyCalibrator2.__init__(self)

        def get_batch_size(self) -> int:
            return 1

        def get_batch(self, names: list[str]) -> None:
            """There are no images: None ends calibration, and the build fails if the cache was not taken."""

        def read_calibration_cache(self) -> bytes:
            return cache

        def write_calibration_cache(self, cache: Any) -> None:
            """Ours is written already."""

    return Calibrator()
