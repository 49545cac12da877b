"""Fine-tunes a network that reads texts in several ways and quantizes it, beside ONNX Runtime's dynamic quantizer.

    python benchmarks/text_accuracy.py ag_news.csv --network hf:./all-MiniLM-L6-v2 --out runs/news

Every strategy is a run of its own on the same cut: accuracy on the test texts of FP32, of INT8, and of the same
FP32 file with `onnxruntime.quantization.quantize_dynamic`. The three files are then timed on one thread, one query
each in turn, so that a busy machine is busy for all; a query's time is the processor time it took. Prints a
Markdown table and the learning curves. Needs the extra `text`.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime.quantization import QuantType, quantize_dynamic

import edgetune
from edgetune.artifact import Artifact
from edgetune.data.folders import load_dataset
from edgetune.data.reader import for_file, frames
from edgetune.engines.onnxruntime import Session
from edgetune.latency.statistics import wilson

QUERIES = 60
# Few epochs where the encoder learns: it is pretrained, and an epoch takes minutes on two cores.
EPOCHS = {"feature-extractor": 20, "partial": 2, "full": 2}


def main() -> None:
    """Run, quantize, judge, time."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("table", type=Path)
    asked.add_argument("--network", required=True)
    asked.add_argument("--out", type=Path, default=Path("runs/text"))
    asked.add_argument("--strategies", nargs="+", default=["feature-extractor", "partial"], choices=EPOCHS)
    asked.add_argument("--length", type=int, default=64)
    asked.add_argument("--test-share", type=float, default=0.152)
    given = asked.parse_args()
    lines = []
    for strategy in given.strategies:
        began = time.process_time()
        made = edgetune.run(recipe(given, strategy), edgetune.load_target("host-cpu"), given.out / strategy)
        seconds = time.process_time() - began
        training = made.report["training"]
        curve = [round(100 * epoch["val_top1"], 1) for epoch in training["epochs"]]
        print(f"{strategy}: {training['seconds']:.0f} s of training, % on val by epoch: {curve}", flush=True)
        lines += table_of(strategy, made.out, made.report["accuracy"], seconds)
    print("| strategy | file | top-1 | 95% | ms of processor time | FP32 over it | MB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    print("\n".join(lines))


def recipe(given: argparse.Namespace, strategy: str) -> Any:
    """Return the recipe of a strategy."""
    return edgetune.recipe_from(
        {
            "name": strategy,
            "data": {
                "path": str(given.table.absolute()), "task": "text-classification",
                "test_share": given.test_share,
            },
            "model": {"name": given.network, "length": given.length},
            "finetune": {"strategy": strategy, "epochs": EPOCHS[strategy]},
            "gates": {"top1_drop_points": 0.5},
        },
        Path.cwd(),
    )  # fmt: skip


def table_of(strategy: str, out: Path, accuracy: dict[str, Any], seconds: float) -> list[str]:
    """Return a line per file."""
    files = {"FP32": out / "onnx" / "model.onnx", "INT8": out / "int8" / "model.onnx"}
    files["dynamic INT8"] = out / "dynamic.onnx"
    quantize_dynamic(files["FP32"], files["dynamic INT8"], weight_type=QuantType.QInt8, per_channel=True)
    sessions = {name: Session(path, threads=1) for name, path in files.items()}
    right, texts = dynamic_right(sessions["dynamic INT8"], out)
    low, high = wilson(right, texts)
    found = {
        "FP32": accuracy["models"]["fp32"],
        "INT8": accuracy["models"]["int8"],
        "dynamic INT8": {"top1": right / texts, "low": low, "high": high},
    }
    times = timed(sessions, out)
    print(f"{strategy}: {seconds:.0f} s of processor time in all, {texts} test texts", flush=True)
    return [
        f"| {strategy} | {name} | {100 * found[name]['top1']:.1f}% | {100 * found[name]['low']:.1f} to "
        f"{100 * found[name]['high']:.1f} | {1e3 * times[name]:.1f} | {times['FP32'] / times[name]:.2f} | "
        f"{path.stat().st_size / 1e6:.1f} |"
        for name, path in files.items()
    ]


def dynamic_right(session: Session, out: Path) -> tuple[int, int]:
    """Count the test texts that a file gets right, and all."""
    network, data = Artifact.load(out / "onnx"), load_dataset(out / "data.json")
    assert network.preprocess is not None
    samples = data.splits["test"]
    read = frames(data.root, samples, network.preprocess, 32)
    said = [session.run(for_file(part, network.preprocess, session.inputs))[0].argmax(1) for part in read]
    return int((np.concatenate(said) == [sample.label for sample in samples]).sum()), len(samples)


def timed(sessions: dict[str, Session], out: Path) -> dict[str, float]:
    """Return the median processor time of a query by file, in seconds, on a real text."""
    network, data = Artifact.load(out / "onnx"), load_dataset(out / "data.json")
    assert network.preprocess is not None
    one = next(frames(data.root, data.splits["test"][:1], network.preprocess, 1))
    taken: dict[str, list[float]] = {name: [] for name in sessions}
    for turn in range(QUERIES + 5):
        for name, session in sessions.items():
            feed = for_file(one, network.preprocess, session.inputs)
            assert not isinstance(feed, np.ndarray)
            began = time.process_time()
            session.run_once({key: np.ascontiguousarray(value) for key, value in feed.items()})
            if turn >= 5:
                taken[name].append(time.process_time() - began)
    return {name: statistics.median(values) for name, values in taken.items()}


if __name__ == "__main__":
    main()
