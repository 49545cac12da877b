"""Fine-tune a network on a folder of images and quantize it for this CPU: accuracy, seconds, memory.

    python benchmarks/finetune_host.py --data ants-bees --model mobilenet_v2 --weights mobilenet_v2.pth

The folder holds train/ and val/ with one folder of images per class; val decides. Each stage is timed as a
run makes it, imports excluded. Prints a Markdown table.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import heading

import edgetune
from edgetune import learned, pipeline
from edgetune.progress import Silent
from edgetune.store import Store


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="mobilenet_v2")
    parser.add_argument("--weights", default="default")
    parser.add_argument("--strategy", default="feature-extractor")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--profile", default="host-cpu")
    args = parser.parse_args()
    weights = args.weights if args.weights in ("default", "none") else str(Path(args.weights).absolute())
    recipe = edgetune.recipe_from({
        "data": {"path": str(args.data.absolute())},
        "model": {"name": args.model, "weights": weights},
        "finetune": {"strategy": args.strategy, "epochs": args.epochs},
    })  # fmt: skip
    target = edgetune.load_target(args.profile)
    pipeline.preflight(recipe, target)
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = work()
        seconds[name] = time.perf_counter() - began
        return result

    quiet = Silent()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        keep = Store(out)
        data = timed("scan", lambda: pipeline.look(recipe, out, quiet))
        trained = timed("finetune", lambda: learned.make_checkpoint(keep, recipe, data, "auto", quiet))
        exported = timed(
            "export", lambda: pipeline.make_onnx(keep, recipe, trained, target.runtime, data, quiet)
        )
        int8 = timed(
            "quantize", lambda: pipeline.make_int8(keep, recipe, exported, target, data, "auto", quiet)
        )
        timed("check", lambda: pipeline.make_check(keep, recipe, trained, exported, int8, data, quiet))
        if target.is_host:
            timed("bench", lambda: pipeline.make_bench(keep, recipe, target, exported, int8, quiet))
        report = pipeline.run(recipe, target, out).report
    print(heading("torch", "onnx", "onnxruntime"))
    print(f"{args.model}, {args.strategy}, {args.epochs} epochs, {args.profile}\n")
    print("| stage | s |\n|---|---|")
    for name, value in seconds.items():
        print(f"| {name} | {value:.1f} |")
    print(f"| all | {sum(seconds.values()):.1f} |")
    print(f"\n| {report['accuracy']['images']} test images | right | top-1 |\n|---|---|---|")
    for name, model in report["accuracy"]["models"].items():
        print(f"| {name} | {model['right']} | {100 * model['top1']:.2f}% |")
    parity = report["parity"]["int8_vs_fp32"]
    print(f"\nINT8 against FP32: agreement {100 * parity['agreement']:.1f}%, SQNR {parity['sqnr_db']:.1f} dB")
    if report["latency"]:
        print(f"speed-up on this CPU: {report['latency']['speedup']['value']:.2f}")
    print(f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
