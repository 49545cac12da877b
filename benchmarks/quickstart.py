"""How long the first run takes, how much memory, and what it reaches, as whole processes.

    python benchmarks/quickstart.py [--runs 3]

Prints a Markdown table. A run is `edgetune quickstart` in an empty folder; a rerun is the same command again;
help is `edgetune --help`. Wall time and peak memory are the operating system's account of the process and
its children.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from machine import heading


def measure(arguments: list[str], stdout: Path) -> tuple[float, float]:
    """Run edgetune; return wall time in s and peak memory of the largest process in MB."""
    began = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        sink = os.open(stdout, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(sink, 1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.execv(sys.executable, [sys.executable, "-m", "edgetune", *arguments])
    _, status, usage = os.wait4(pid, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"edgetune {' '.join(arguments)}: exit {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - began, usage.ru_maxrss / 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    rows: dict[str, list[tuple[float, float]]] = {
        "quickstart": [],
        "rerun, nothing changed": [],
        "--help": [],
    }
    report = {}
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            for name in list(rows)[:2]:
                rows[name].append(
                    measure(["quickstart", "--json", "-q", "-o", str(out)], Path(folder) / "json")
                )
            report = json.loads((Path(folder) / "json").read_text())
            rows["--help"].append(measure(["--help"], Path(folder) / "help"))
    print(heading("torch", "onnx", "onnxruntime"))
    print(f"\n| command | median s | slowest s | peak MB |  ({runs} runs)\n|---|---|---|---|")
    for name, figures in rows.items():
        seconds = [s for s, _ in figures]
        peak = max(m for _, m in figures)
        print(f"| {name} | {statistics.median(seconds):.2f} | {max(seconds):.2f} | {peak:.0f} |")
    models, transfer = report["accuracy"]["models"], report["transfer"]
    print(f"\n| on {report['accuracy']['images']} test images | right | top-1 |\n|---|---|---|")
    for name, model in models.items():
        print(f"| {name} | {model['right']} | {100 * model['top1']:.2f}% |")
    print(
        f"\npretrained {100 * transfer['pretrained_top1']:.1f}%, from scratch {100 * transfer['scratch_top1']:.1f}% "
        f"on the same {transfer['images']} test images"
    )


if __name__ == "__main__":
    main()
