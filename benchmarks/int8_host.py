"""INT8 on this machine's CPU: how fast, and how true to FP32, beside ONNX Runtime's own quantizer.

    python benchmarks/int8_host.py --weights mobilenet_v2.pth --images DIR [--model mobilenet_v2]

Exports the network, quantizes it for both kinds of runtime on every fourth image, judges on the others.
Latencies are taken in turns, one variant after the other in every round, so that whatever else the machine
does meets all of them; the speed-up is the median over the rounds of FP32's time over the variant's.
"""

import argparse
import platform
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torchvision
from numpy.typing import NDArray
from ranges import quantize_with_onnxruntime

from edgetune.artifact import Preprocess, library_versions
from edgetune.data.images import load, normalise
from edgetune.engines.feeds import random_feed
from edgetune.engines.onnxruntime import Session
from edgetune.machine import has_vnni
from edgetune.quant.quantizer import quantize_model

PREPROCESS = Preprocess(
    resize_px=256, size_px=224, channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
Batch = NDArray[np.float32]


def export(name: str, weights: Path, path: Path) -> None:
    """Write a torchvision network with these weights as ONNX, batch 1, opset 17."""
    net = torchvision.models.get_model(name)
    net.load_state_dict(torch.load(weights, weights_only=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net.eval(), (torch.zeros(1, 3, 224, 224),), str(path), dynamo=False, opset_version=17
        )


def logits(path: Path, images: list[Batch], exact: bool) -> Batch:
    """Run all images; `[N, classes]`."""
    session = Session(path, exact=exact)
    return np.concatenate([session.run(image)[0] for image in images])


def interleaved_ms(sessions: dict[str, Session], rounds: int, runs: int) -> dict[str, list[float]]:
    """Return per variant the median latency of each round."""
    feeds = {name: random_feed(session.inputs) for name, session in sessions.items()}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for turn in range(rounds + 1):
        for name, session in sessions.items():
            taken = []
            for _ in range(runs):
                started = time.perf_counter()
                session.run_once(feeds[name])
                taken.append((time.perf_counter() - started) * 1e3)
            if turn:  # the first round warms up
                times[name].append(statistics.median(taken))
    return times


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, required=True, help="state dict of the torchvision network")
    parser.add_argument("--images", type=Path, required=True, help="folder of images, labels not needed")
    parser.add_argument("--model", default="mobilenet_v2")
    parser.add_argument("--ranges", default="percentile", help="minmax, percentile or entropy")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    files = sorted(p for p in given.images.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    images = [normalise(load(path, PREPROCESS)[None], PREPROCESS) for path in files]
    fitted = images[::4]
    judged = [image for index, image in enumerate(images) if index % 4]
    with tempfile.TemporaryDirectory() as scratch:
        paths = make(given, Path(scratch), fitted)
        reference = logits(paths["FP32"], judged, exact=False)
        rows = {name: compare(reference, logits(path, judged, name in EXACT)) for name, path in paths.items()}
        sessions = {name: Session(path, threads=given.threads) for name, path in paths.items()}
        times = interleaved_ms(sessions, given.rounds, runs=10)
        sizes = {name: path.stat().st_size / 1e6 for name, path in paths.items()}
    versions = library_versions("edgetune", "torch", "onnx", "onnxruntime")
    print(f"{processor()}, VNNI {'yes' if has_vnni() else 'no'}, {given.threads} threads, batch 1")
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    print(
        f"{given.model}, ranges {given.ranges}, "
        f"{len(fitted)} images to calibrate, {len(judged)} others to judge\n"
    )
    print(f"{'':26}{'agreement %':>12}{'SQNR dB':>9}{'MB':>7}{'p50 ms':>9}{'speed':>7}  over rounds")
    for name, (agreement, sqnr) in rows.items():
        speeds = [a / b for a, b in zip(times["FP32"], times[name], strict=True)]
        spread = f"{min(speeds):.2f} to {max(speeds):.2f}"
        print(
            f"{name:26}{agreement:12.2f}{sqnr:9.1f}{sizes[name]:7.1f}{statistics.median(times[name]):9.2f}"
            f"{statistics.median(speeds):6.2f}x  {spread}"
        )


EXACT = ("edgetune, TensorRT file",)


def make(given: Any, folder: Path, fitted: list[Batch]) -> dict[str, Path]:
    """Export and quantize; return the files by the name of the variant."""
    paths = {
        "FP32": folder / "fp32.onnx",
        "edgetune, CPU file": folder / "cpu.onnx",
        "edgetune, TensorRT file": folder / "tensorrt.onnx",
        "onnxruntime uint8": folder / "onnxruntime.onnx",
    }
    export(given.model, given.weights, paths["FP32"])
    model = onnx.load(paths["FP32"])
    for name, rendering in (("edgetune, CPU file", "cpu"), ("edgetune, TensorRT file", "weak")):
        made, details = quantize_model(model, fitted, rendering, given.ranges)
        paths[name].write_bytes(made.SerializeToString(deterministic=True))
        print(f"{name}: {details['seconds']:.1f} s")
    started = time.perf_counter()
    paths["onnxruntime uint8"].write_bytes(quantize_with_onnxruntime(paths["FP32"], "cpu", fitted))
    print(f"onnxruntime uint8: {time.perf_counter() - started:.1f} s\n")
    return paths


def compare(reference: Batch, found: Batch) -> tuple[float, float]:
    """Return top-1 agreement in percent and SQNR in dB."""
    noise = np.square(reference - found).sum()
    sqnr = 10 * np.log10(np.square(reference).sum() / noise) if noise else np.inf
    return 100 * float((reference.argmax(1) == found.argmax(1)).mean()), float(sqnr)


def processor() -> str:
    """Return the CPU's name."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.machine()


if __name__ == "__main__":
    main()
