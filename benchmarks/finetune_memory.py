"""Does fine-tuning need more memory when there are more images? Private memory at its peak, for two numbers of them.

    python benchmarks/finetune_memory.py

Draws small JPEGs, 1,000 and 20,000, and fine-tunes the small network that ships with edgetune for one epoch on
each, in a process of its own: scan, decode, train, validate, save. Private is what the system cannot take back
without losing it: resident pages that are no file's (RssAnon of /proc/self/status, looked at every 20 ms). Prints a
Markdown table.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from machine import heading
from PIL import Image

CLASSES = 4


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="+", default=[1_000, 20_000])
    parser.add_argument("--strategies", nargs="+", default=["feature-extractor", "full"])
    parser.add_argument("--augment", default="standard")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(measured(**json.loads(args.worker))))
        return
    print(heading("torch", "pillow"))
    print(
        "| strategy | images | private at its peak, MB | file-backed then, MB | seconds |\n|---|---|---|---|---|"
    )
    growth = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in args.images:
            draw(Path(folder) / str(count), count)
        for strategy in args.strategies:
            peaks = []
            for count in args.images:
                job = {"folder": f"{folder}/{count}", "strategy": strategy, "augment": args.augment}
                command = [sys.executable, __file__, "--worker", json.dumps(job)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    sys.exit(done.stderr)
                found = json.loads(done.stdout)
                peaks.append(found["private_mb"])
                print(
                    f"| {strategy} | {count} | {found['private_mb']:.1f} | {found['file_mb']:.1f} "
                    f"| {found['seconds']:.0f} |",
                    flush=True,
                )
            growth[strategy] = peaks[-1] / peaks[0] - 1
    print()
    for strategy, share in growth.items():
        print(f"{strategy}: {share:+.1%} from {args.images[0]} to {args.images[-1]} images")


def draw(root: Path, count: int) -> None:
    """Write class folders of noisy pictures of several shapes, each class with a colour of its own."""
    random = np.random.default_rng(0)
    for label in range(CLASSES):
        (root / f"class-{label}").mkdir(parents=True)
    for number in range(count):
        label = number % CLASSES
        coarse = random.integers(0, 150, (6, 6, 3), np.uint8)
        coarse[:, :, label % 3] += 40 + 60 * (label // 3)
        size = (48, 64) if number % 2 else (64, 48)
        Image.fromarray(coarse).resize(size).save(root / f"class-{label}" / f"{number}.jpg")


def measured(folder: str, strategy: str, augment: str) -> dict[str, float]:
    """Fine-tune in this process and say what its memory came to."""
    import edgetune
    from edgetune.data.folders import scan
    from edgetune.stages.finetune import finetune

    recipe = edgetune.recipe_from({
        "data": {"path": folder},
        "model": {"name": "mobilenet_v2_035_cifar10"},
        "finetune": {
            "strategy": strategy, "epochs": 1, "views": 2, "augment": {"preset": augment},
        },
    })  # fmt: skip
    peak = {"RssAnon": 0, "RssFile": 0}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            now = memory_kb()
            if now["RssAnon"] > peak["RssAnon"]:
                peak.update(now)

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as out:
            data = scan(recipe.data, Path(folder))
            finetune(recipe.model, data, recipe.finetune, into=Path(out) / "checkpoint", accelerator="cpu")
    finally:
        over.set()
        watcher.join()
    return {
        "private_mb": peak["RssAnon"] / 1e3,
        "file_mb": peak["RssFile"] / 1e3,
        "seconds": time.perf_counter() - began,
    }


def memory_kb() -> dict[str, int]:
    """Return how much of this process's memory is resident: its own, and files'."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if line.startswith("Rss"))
    return {name: int(fields[name].split()[0]) for name in ("RssAnon", "RssFile")}


if __name__ == "__main__":
    main()
