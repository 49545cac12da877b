"""INT8 quantizers side by side: the same ONNX file, the same images, the same machine and judge.

    python benchmarks/int8_peers.py --weights DIR --images DIR --modelopt PYTHON --nncf PYTHON -o results
    python benchmarks/int8_peers.py --cifar DIR --checkpoints DIR --modelopt PYTHON --nncf PYTHON -o results

`--weights` holds state dicts of torchvision's networks by their names (mobilenet_v2*.pth, squeezenet1_0*.pth),
`--images` photographs: of each draw 128 calibrate and all others judge. `--cifar` holds CIFAR-10 as images,
train/ and test/ with a folder for each class: of the network that ships with edgetune, and of those that
`--checkpoints` holds as pretrain_cifar10.py wrote them (NETWORK.safetensors), 512 training images calibrate and
all 10,000 test images judge. Labels are used for top-1 alone.

Peers live in environments of their own, because they ask for other versions:

    python -m venv peer-modelopt && peer-modelopt/bin/pip install 'nvidia-modelopt[onnx]' requests huggingface_hub
    python -m venv peer-nncf && peer-nncf/bin/pip install nncf onnx onnxruntime

and are named by their interpreters: --modelopt peer-modelopt/bin/python. A peer that is not named is left out.

Every run is a process of its own: its seconds and its largest resident memory include the start of Python,
imports and the calibration inputs. Results are added to results/results.jsonl as they come; what is there
already, of the same versions and files, is not run again. Leads are over the best peer whose file TensorRT
takes (by edgetune's lint), chosen by its mean over the same draws, with an interval at 95% over images and
draws. Files for TensorRT are judged with ONNX Runtime's optimisations off, files for CPUs with them on.
"""

import argparse
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import heading
from peers import material
from peers.judge import BOARD, Case, judge
from peers.table import table

SCRIPTS = Path(__file__).parent / "peers"
NETWORKS = ("mobilenet_v2", "squeezenet1_0")
SCRIPT_LIMIT_SECONDS = 3600
# Agreement to which the ladder climbs in one row, layers in float if it must.
GOAL = 0.985


@dataclass(frozen=True)
class Tool:
    """One row of the table.

    Attributes:
        home: whose environment; a script `with_HOME.py` runs in it.
        options: of the script.
        on_cpu: writes for ONNX Runtime's CPU kernels.
    """

    home: str
    options: tuple[str, ...] = ()
    on_cpu: bool = False


def _ours(ranges: str, method: str, *last: str) -> Tool:
    return Tool("edgetune", (BOARD, ranges, method, *last))


TOOLS: dict[str, Tool] = {
    "onnxruntime minmax int8": Tool("onnxruntime", ("int8",)),
    "modelopt max": Tool("modelopt", ("max",)),
    "modelopt entropy": Tool("modelopt", ("entropy",)),
    "nncf": Tool("nncf", on_cpu=True),
    "onnxruntime minmax uint8": Tool("onnxruntime", ("uint8",), on_cpu=True),
    "edgetune plain": _ours("preset", "plain"),
    "edgetune default": _ours("preset", "preset"),
    "edgetune best, untrained": _ours("preset", "best", "untrained"),
    f"edgetune {GOAL:.1%}, untrained": _ours("preset", "auto", "untrained", str(GOAL)),
    "edgetune best": _ours("preset", "best"),
    "edgetune CPU file": Tool("edgetune", ("host-cpu", "preset", "plain"), on_cpu=True),
    **{
        f"edgetune plain, {ranges}": _ours(ranges, "plain")
        for ranges in ("minmax", "mean", "percentile", "entropy", "mse", "auto")
    },
}


@dataclass(frozen=True)
class Setup:
    """One network with its images; `weights` None: the one that ships with edgetune."""

    network: str
    weights: Path | None
    images: material.Images
    calibrate: int
    judge: int

    @property
    def title(self) -> str:
        """What the table is called."""
        return f"{self.network} on CIFAR-10" if self.images.labels else self.network


@dataclass(frozen=True)
class Prepared:
    """A network as ONNX, with what judges it."""

    setup: Setup
    onnx: Path
    digest: str
    inputs: Path
    logits: Path


Row = dict[str, Any]


def main() -> None:
    """Run what is missing, then print the tables."""
    given = _parse()
    given.out.mkdir(parents=True, exist_ok=True)
    versions = installed(given)
    for prepared in prepare(given):
        for draw in range(given.draws):
            for name in given.tools:
                if TOOLS[name].home in versions:
                    run(prepared, name, draw, versions, given)
                    print(".", end="", flush=True, file=sys.stderr)
        print(file=sys.stderr)
        print(report(prepared, versions, given), flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, help="folder of state dicts")
    parser.add_argument("--images", type=Path, help="folder of photographs, labels not needed")
    parser.add_argument("--cifar", type=Path, help="folder of CIFAR-10 as images")
    parser.add_argument("--checkpoints", type=Path, help="folder of networks trained on CIFAR-10")
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--tools", nargs="+", default=[*TOOLS], choices=[*TOOLS], metavar="TOOL")
    parser.add_argument("--modelopt", type=Path, help="Python of an environment with nvidia-modelopt")
    parser.add_argument("--nncf", type=Path, help="Python of an environment with nncf")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--calibrate", type=int, default=0, help="0: 128, of CIFAR-10 512")
    parser.add_argument("--judge", type=int, default=0, help="images that judge; 0: all others")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    parser.add_argument(
        "-o", "--out", type=Path, required=True, help="folder of results; goes on where it is"
    )
    given = parser.parse_args()
    if not given.cifar and not (given.weights and given.images):
        parser.error("name --weights and --images, or --cifar")
    return given


def installed(given: argparse.Namespace) -> dict[str, str]:
    """Return what each environment at hand has, as one line that names versions."""
    ours = f"edgetune {importlib.metadata.version('edgetune')} (code {_code()})"
    own = (sys.executable, ("onnx", "onnxruntime"))
    homes = {
        "edgetune": (*own, ours),
        "onnxruntime": (*own, ""),
        "modelopt": (given.modelopt, ("nvidia-modelopt", "onnx", "onnxruntime"), ""),
        "nncf": (given.nncf, ("nncf", "onnx", "onnxruntime"), ""),
    }
    found = {}
    for home, (python, packages, first) in homes.items():
        if python:
            code = f"from importlib.metadata import version as v; print(', '.join(n + ' ' + v(n) for n in {packages}))"
            done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
            found[home] = ", ".join(filter(None, [first, done.stdout.strip()]))
    return found


def _code() -> str:
    """Return a digest of edgetune's sources: its version alone does not tell changes apart."""
    import edgetune

    whole = hashlib.sha256()
    for path in sorted(Path(str(edgetune.__file__)).parent.rglob("*.py")):
        whole.update(path.read_bytes())
    return whole.hexdigest()[:8]


def setups(given: argparse.Namespace) -> Iterator[Setup]:
    """Give the networks to quantize."""
    if given.weights and given.images:
        images = material.imagenet(given.images)
        for network in given.networks:
            found = sorted(given.weights.glob(f"{network}*.pth"))
            if not found:
                sys.exit(f"no {network}*.pth in {given.weights}")
            yield Setup(network, found[0], images, given.calibrate or 128, given.judge)
    if given.cifar:
        trained = sorted(given.checkpoints.glob("*.safetensors")) if given.checkpoints else []
        for network, weights in [(material.CIFAR10_MODEL, None), *((path.stem, path) for path in trained)]:
            images = material.cifar10(given.cifar, network)
            yield Setup(network, weights, images, given.calibrate or 512, given.judge)


def prepare(given: argparse.Namespace) -> Iterator[Prepared]:
    """Export each network and run it in FP32."""
    for setup in setups(given):
        fp32 = given.out / setup.title.replace(" ", "-") / "fp32.onnx"
        size_px = setup.images.preprocess.size_px
        digest = alone(material.export, setup.network, setup.weights, size_px, fp32)
        inputs = alone(
            material.decoded,
            list(setup.images.judges),
            setup.images.preprocess,
            fp32.parent.parent / "inputs",
        )
        logits = fp32.with_name(f"logits-{digest}-{inputs.stem.rpartition('-')[2]}.npy")
        yield Prepared(setup, fp32, digest, inputs, alone(material.reference, fp32, inputs, logits))


def key(prepared: Prepared, name: str, draw: int, versions: dict[str, str]) -> Row:
    """Return what tells one run from every other."""
    return {
        "network": prepared.setup.title,
        "tool": name,
        "draw": draw,
        "calibrate": prepared.setup.calibrate,
        "judge": prepared.setup.judge,
        "model": prepared.digest,
        "inputs": prepared.inputs.stem,
        "versions": versions[TOOLS[name].home],
    }


def rows(out: Path) -> list[Row]:
    """Return the results that there are."""
    path = out / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def find(known: list[Row], wanted: Row) -> Row | None:
    """Return the newest result of a run."""
    return next((row for row in reversed(known) if wanted.items() <= row.items()), None)


def run(
    prepared: Prepared, name: str, draw: int, versions: dict[str, str], given: argparse.Namespace
) -> None:
    """Quantize with one tool on one draw, judge, and add the result; nothing where it is there already."""
    wanted = key(prepared, name, draw, versions)
    if find(rows(given.out), wanted):
        return
    setup, tool = prepared.setup, TOOLS[name]
    fitted, judges = setup.images.draw(draw, setup.calibrate, setup.judge)
    files = [setup.images.pool[index] for index in fitted]
    inputs = alone(material.decoded, files, setup.images.preprocess, given.out / "calibration")
    stem = f"{name.replace(' ', '-').replace(',', '')}-{draw}"
    made = prepared.onnx.parent / f"{stem}.onnx"
    made.unlink(missing_ok=True)
    pythons = {"modelopt": given.modelopt, "nncf": given.nncf}
    command = [
        pythons.get(tool.home) or sys.executable,
        SCRIPTS / f"with_{tool.home}.py",
        prepared.onnx,
        inputs,
    ]
    account = timed([*map(str, command), str(made), *tool.options], made.with_suffix(".log"))
    if account is None or not made.exists():
        print(f"\n{name}, draw {draw}: failed, see {made.with_suffix('.log')}", file=sys.stderr)
        return
    # Named by all that tells the run from others, for results that are kept of earlier versions.
    told = hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:12]
    arrays = made.with_name(f"{stem}-{told}.npz")
    labels = setup.images.labels
    case = Case(
        prepared.onnx, made, tool.on_cpu, prepared.inputs, tuple(judges), prepared.logits, labels, arrays
    )
    row = wanted | account | {"arrays": str(arrays.relative_to(given.out))} | alone(judge, case)
    with (given.out / "results.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def timed(command: list[str], log: Path) -> dict[str, float] | None:
    """Run a script; return what it took, or None where it failed. Its output goes to a file."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        timeout=SCRIPT_LIMIT_SECONDS, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    log.write_text(done.stdout)
    if done.returncode:
        return None
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    told = [line for line in done.stdout.splitlines() if line.startswith('{"peak_gb"')]
    more = json.loads(told[-1])
    return {"seconds": seconds, "cpu_seconds": cpu, "gb": more.pop("peak_gb"), **more}


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def report(prepared: Prepared, versions: dict[str, str], given: argparse.Namespace) -> str:
    """Return machine, versions and the table of one network."""
    known, setup = rows(given.out), prepared.setup
    found: dict[str, list[Row]] = {}
    for name in given.tools:
        if TOOLS[name].home in versions:
            each = [find(known, key(prepared, name, draw, versions)) for draw in range(given.draws)]
            found[name] = [row for row in each if row]
    _, judges = setup.images.draw(0, setup.calibrate, setup.judge)
    lines = [
        heading("torch", "numpy"),
        *(f"{home}: {line}" for home, line in versions.items()),
        f"{setup.title}: {setup.calibrate} images calibrate, {len(judges)} judge, draws: {given.draws}; "
        f"legal: for {BOARD}",
    ]
    return "\n".join(["", *lines, "", table(found, given.out, given.markdown), ""])


if __name__ == "__main__":
    main()
