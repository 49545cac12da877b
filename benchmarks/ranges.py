"""Estimators of activation ranges side by side: agreement and SQNR with FP32, seconds, memory.

    python benchmarks/ranges.py --images DIR mobilenet_v2.onnx [MORE.onnx ...] [--renderings weak cpu]

Networks are ImageNet classifiers that take 224 pixels. Per draw, a seed decides which images calibrate; all
others judge. Every row is a process of its own, whose times are of quantizing alone: decoding included, since
images are decoded as they are needed, imports and judging excluded; its peak memory is that of the whole
process. One more row is ONNX Runtime's own quantizer with its min-max ranges, fed with the same images in the
same way.
"""

import argparse
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from machine import heading
from numpy.typing import NDArray

from edgetune.artifact import Preprocess
from edgetune.data.images import load, normalise
from edgetune.engines.onnxruntime import Session
from edgetune.quant.choose import METHODS
from edgetune.quant.quantizer import quantize_model

PREPROCESS = Preprocess(
    resize_px=256, size_px=224, channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
PEER = "onnxruntime minmax"
ENDINGS = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Images:
    """Preprocessed inputs `[1, C, H, W]`, decoded anew every time they are gone through."""

    files: tuple[Path, ...]
    count: int = 0

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        for index in range(self.count or len(self.files)):
            yield normalise(load(self.files[index % len(self.files)], PREPROCESS)[None], PREPROCESS)


@dataclass(frozen=True)
class Job:
    """One row's work on one draw. `judges` are places in `files`; with `count`, images are repeated."""

    network: Path
    rendering: str
    method: str
    files: tuple[Path, ...]
    judges: tuple[int, ...]
    logits: Path
    threads: int
    count: int = 0


def work(job: Job) -> dict[str, Any]:
    """Quantize, then judge; return the figures."""
    judged = set(job.judges)
    fitted = Images(tuple(f for i, f in enumerate(job.files) if i not in judged), job.count)
    started, worked = time.perf_counter(), time.process_time()
    details: dict[str, Any] = {}
    if job.method == PEER:
        content = quantize_with_onnxruntime(job.network, job.rendering, fitted)
    else:
        made, details = quantize_model(onnx.load(job.network), fitted, job.rendering, job.method)
        content = made.SerializeToString()
    figures: dict[str, Any] = {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - worked,
        "mb": peak_mb(),
        "enough_images": details.get("enough_images"),
    }
    if not job.count:
        session = Session(content, job.threads, exact=True)
        judges = Images(tuple(job.files[index] for index in job.judges))
        found = np.concatenate([session.run(image)[0].reshape(1, -1) for image in judges])
        reference = np.load(job.logits)[list(job.judges)]
        same = reference.argmax(axis=1) == found.argmax(axis=1)
        figures["agreement"] = 100 * float(same.mean())
        noise = np.square(reference - found, dtype=np.float64).sum()
        figures["sqnr"] = float(10 * np.log10(np.square(reference, dtype=np.float64).sum() / noise))
    return figures


def peak_mb() -> float:
    """Return the largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def quantize_with_onnxruntime(network: Path, rendering: str, fitted: Iterable[NDArray[np.float32]]) -> bytes:
    """Quantize as ONNX Runtime does: signed and symmetric, or for its own CPU kernels unsigned."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static

    name = Session(network).inputs[0].name

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rest = iter(fitted)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            image = next(self._rest, None)
            return None if image is None else {name: image}

    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "int8.onnx"
        quantize_static(
            str(network),
            str(target),
            Reader(),
            per_channel=True,
            calibrate_method=CalibrationMethod.MinMax,
            activation_type=QuantType.QUInt8 if rendering == "cpu" else QuantType.QInt8,
            weight_type=QuantType.QInt8,
            extra_options={"ActivationSymmetric": rendering != "cpu"},
        )
        return target.read_bytes()


def reference_logits(network: Path, files: list[Path], threads: int) -> NDArray[np.float32]:
    """Run FP32 on every image; `[N, classes]`."""
    session = Session(network, threads)
    return np.concatenate([session.run(image)[0].reshape(1, -1) for image in Images(tuple(files))])


def main() -> None:
    """Measure and print a table for each network and rendering."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", type=Path, nargs="+", help="ONNX files")
    parser.add_argument("--images", type=Path, required=True, help="folder of images, labels not needed")
    parser.add_argument("--renderings", nargs="+", default=["weak", "cpu"])
    parser.add_argument("--methods", nargs="+", default=[*METHODS, PEER])
    parser.add_argument("--calibrate", type=int, default=128)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument(
        "--grow", type=int, default=1024, help="inputs for the memory at a larger count; 0: skip"
    )
    parser.add_argument("--threads", type=int, default=0, help="for judging; 0: all cores")
    given = parser.parse_args()
    files = sorted(p for p in given.images.rglob("*") if p.suffix.lower() in ENDINGS)
    print(heading("numpy", "onnx", "onnxruntime"))
    print(f"{given.calibrate} images calibrate, {len(files) - given.calibrate} judge; draws: {given.draws}")
    with tempfile.TemporaryDirectory() as folder:
        for network in given.networks:
            logits = Path(folder) / f"{network.stem}.npy"
            np.save(logits, reference_logits(network, files, given.threads))
            for rendering in given.renderings:
                print(f"\n{network.stem}, rendering {rendering}")
                table(given, network, rendering, tuple(files), logits)


def table(given: Any, network: Path, rendering: str, files: tuple[Path, ...], logits: Path) -> None:
    """Print one network's rows: means over the draws, and the range of the SQNR."""
    grown = f"{f'MB at {given.grow}':>11}" if given.grow else ""
    print(
        f"{'':20}{'agreement %':>12}{'SQNR dB':>9}{'lowest':>8}{'seconds':>9}{'CPU s':>7}{'peak MB':>9}{grown}  enough"
    )
    for method in given.methods:
        rows = []
        for draw in range(given.draws):
            order = np.random.default_rng(draw).permutation(len(files))
            judges = tuple(int(index) for index in order[given.calibrate :])
            job = Job(network, rendering, method, files, judges, logits, given.threads)
            rows.append(alone(job))
        last = ""
        if given.grow:
            larger = Job(network, rendering, method, files, judges, logits, given.threads, given.grow)
            last = f"{alone(larger)['mb']:11.0f}"
        mean = {
            k: statistics.mean(row[k] for row in rows)
            for k in ("agreement", "sqnr", "seconds", "cpu_seconds")
        }
        print(
            f"{method:20}{mean['agreement']:12.2f}{mean['sqnr']:9.2f}{min(row['sqnr'] for row in rows):8.2f}"
            f"{mean['seconds']:9.1f}{mean['cpu_seconds']:7.1f}{max(row['mb'] for row in rows):9.0f}{last}  "
            f"{', '.join(str(row['enough_images'] or '-') for row in rows)}",
            flush=True,
        )


def alone(job: Job) -> dict[str, Any]:
    """Do a job in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, job).result()


if __name__ == "__main__":
    main()
