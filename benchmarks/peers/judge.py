"""One judge for every tool's file: ONNX Runtime, and edgetune's lint for what TensorRT would say."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgetune.engines.onnxruntime import Session
from edgetune.latency.protocol import PRESETS, measure
from edgetune.profile import load_target
from edgetune.stages.lint import lint

# The board whose TensorRT has to take a file.
BOARD = "jetson-orin-nano-8gb"


@dataclass(frozen=True)
class Case:
    """What there is to judge.

    Attributes:
        fp32: the network it was made of.
        made: the quantized file.
        on_cpu: made for ONNX Runtime's CPU kernels: run optimised, and timed beside FP32. Other files run
            with optimisations off, so that they round where a TensorRT engine does.
        inputs: `[N, C, H, W]`, of which `judges` count.
        logits: FP32's of all inputs, `[N, classes]`.
        labels: class numbers of all inputs, or none.
        arrays: the .npz to write: what there is to say of each input.
    """

    fp32: Path
    made: Path
    on_cpu: bool
    inputs: Path
    judges: tuple[int, ...]
    logits: Path
    labels: tuple[int, ...]
    arrays: Path


def judge(case: Case) -> dict[str, Any]:
    """Return the figures of one file."""
    places = np.array(case.judges)
    inputs = np.load(case.inputs, mmap_mode="r")
    session = Session(case.made, exact=not case.on_cpu)
    found = np.concatenate([session.run(inputs[index][None])[0].reshape(1, -1) for index in places])
    reference = np.load(case.logits)[places].astype(np.float64)
    same = reference.argmax(axis=1) == found.argmax(axis=1)
    signal = np.square(reference).sum(axis=1)
    noise = np.square(reference - found).sum(axis=1)
    case.arrays.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(case.arrays, places=places, same=same, noise=noise)
    verdict = lint(case.made, load_target(BOARD))
    wrong = sorted({item.rule for item in verdict.findings if item.severity == "error"})
    figures: dict[str, Any] = {
        "agreement": 100 * float(same.mean()),
        "sqnr_db": float(10 * np.log10(signal.sum() / noise.sum())),
        "legal": not wrong,
        "refused_for": wrong,
        "megabytes": case.made.stat().st_size / 1e6,
    }
    if case.labels:
        labels = np.array(case.labels)[places]
        figures["top1_fp32"] = 100 * float((reference.argmax(axis=1) == labels).mean())
        figures["top1_int8"] = 100 * float((found.argmax(axis=1) == labels).mean())
    if case.on_cpu:
        figures["speed"] = speed(case.fp32, case.made, inputs[places[0]][None])
    return figures


def speed(fp32: Path, int8: Path, image: Any) -> dict[str, Any]:
    """Time both at batch 1, in turns; return how many times faster the second one is."""
    queries = {}
    for name, path in (("FP32", fp32), ("INT8", int8)):
        session = Session(path)
        feed = {session.inputs[0].name: np.ascontiguousarray(image)}
        queries[name] = lambda session=session, feed=feed: session.run_once(feed)
    found = measure(queries, PRESETS["quick"])
    times = {name: entry["p50_ms"] for name, entry in found["models"].items()}
    return {
        **(found["speedup"] or {}),
        "p50_ms": times,
        "trusted": found["trusted"],
        "threads": session.threads,
    }
