"""The device program's command line: `python3 edgetune.pyz [run | probe] …`.

Results go to the folder `results` beside the plan of work, and in short to stdout; what happens goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import bindings, clocks, cuda, plan, power, probe, sidecar, spoilers, tools, trtexec
from .problem import Problem, of_system
from .work import RESULT_FILE, STEPS, Tool, do, locked

STOPPED = 130
# Layers that are named in a line.
NAMED = 8


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says; return the exit code."""
    options = _options(sys.argv[1:] if arguments is None else arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        # What was detached ignores that its terminal went away.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        if options.what == "probe":
            return _probe(options)
        if options.what == "build-one":
            return _build_one(options)
        return _run(options)
    except (Problem, OSError) as error:
        problem = of_system(error) if isinstance(error, OSError) else error
        say(f"error: {problem.message}")
        if problem.hint:
            say(f"  {problem.hint}")
        return problem.code
    except KeyboardInterrupt:
        say("stopped; the same command goes on from here")
        return STOPPED


def say(text: str) -> None:
    """Tell what happens; whoever listened may be gone."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="edgetune.pyz",
        description="Builds TensorRT engines on this device, compares them with what they should give, and times them.",
        epilog="What was done before is not done again. Exit codes: 0 all done, 2 wrong options, 3 wrong request, "
        "4 a tool is missing, 5 a file cannot be used, 6 a step failed, 130 stopped.",
    )
    parser.add_argument(
        "what", nargs="?", default="run", choices=["run", "probe", "build-one"], metavar="run|probe"
    )
    parser.add_argument("more", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="the bundle (default: where this program lies)")
    parser.add_argument(
        "--lock-clocks", action="store_true", help="lock clocks meanwhile, with sudo; put back after"
    )
    parser.add_argument(
        "--set-mode", action="store_true", help="with --lock-clocks: choose the bundle's power mode"
    )
    parser.add_argument(
        "--trtexec", action="store_true", help="use trtexec even where the Python bindings are"
    )
    parser.add_argument("--only", choices=STEPS, default="", help="one step, and the builds that it needs")
    parser.add_argument("--seconds", type=float, help="of recorded inferences per engine")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args(arguments)
    if options.more and options.what != "build-one":
        parser.error(f"unrecognized arguments: {' '.join(options.more)}")
    if options.seconds is not None and not options.seconds > 0:
        parser.error("--seconds must be above 0")
    # A whole path: tools run in other folders.
    options.folder = (options.folder or Path(sys.argv[0]).resolve().parent).absolute()
    return options


def _probe(options: argparse.Namespace) -> int:
    found = examine(options.folder)
    wanted = plan.load(options.folder).wanted if (options.folder / plan.WORK_FILE).is_file() else {}
    spoiled = spoilers.warnings(found, wanted)
    if options.json:
        print(json.dumps({"found": found, "warnings": spoiled}, indent=1))
    else:
        print("\n".join(shown(found, spoiled)))
    return 0


def examine(folder: Path) -> dict[str, Any]:
    """Find out what this device is, its GPU included where the driver answers."""
    found = probe.probe(folder=str(folder))
    found["gpu"] = cuda.answer()
    return found


def shown(found: dict[str, Any], warnings: list[dict[str, str]]) -> list[str]:
    """Return what a look at a device found, for people."""
    module, mode = found.get("module") or {}, found.get("power_mode") or {}
    rows = {
        "module": module.get("model"),
        "GPU": (found.get("gpu") or {}).get("name"),
        "JetPack": found.get("jetpack"),
        "L4T": found.get("l4t"),
        "TensorRT": (found.get("tensorrt") or {}).get("version"),
        "CUDA": found.get("cuda"),
        "power mode": mode.get("name"),
        "memory": "{available_mb} of {total_mb} MiB available".format(**found["memory"])
        if found.get("memory")
        else None,
        "Python": found.get("python"),
    }
    lines = [f"{name:<11} {value if value is not None else 'not known'}" for name, value in rows.items()]
    return lines + [f"warning: {warning['message']}\n  {warning['remedy']}" for warning in warnings]


def _run(options: argparse.Namespace) -> int:
    work = plan.load(options.folder)
    if options.seconds:
        limit = max(work.timing["limit_s"], 2 * options.seconds * len(work.builds))
        timing = {**work.timing, "seconds": options.seconds, "queries": 1, "limit_s": limit}
        work = work._replace(timing=timing)
    with locked(work.results):
        empty(work)
        tool = _tool(options, work)
        mode = work.wanted.get("power_mode_id") if options.set_mode else None
        _tell_left(options, work)
        with clocks.locked(options.lock_clocks, str(work.results), mode, say=say) as held:
            # Asked now, since locking may have changed the power mode.
            found = {**_used(examine(options.folder), tool), "locked": held}
            spoiled = spoilers.warnings(found, work.wanted)
            for warning in spoiled:
                say(f"warning: {warning['message']}")
                say(f"  {warning['remedy']}")
            result = do(work, tool, found, spoiled, say, power.Sampler, options.only)
        if result["finished"]:
            empty(work)
    print(json.dumps(result) if options.json else "\n".join(_summary(result, work)))
    return 0 if result["finished"] else 6


def _used(found: dict[str, Any], tool: Tool) -> dict[str, Any]:
    """Name the TensorRT in use, where that is not the one that is installed: in a container, or first on PATH."""
    used, installed = ".".join(map(str, tool.version)), (found.get("tensorrt") or {}).get("version")
    if sidecar.same_version(used, str(installed or "")):
        return found
    return {**found, "tensorrt": {"version": used, "source": tool.name}}


def empty(work: plan.Work) -> None:
    """Throw away what was needed meanwhile, or what a run that was killed left half done."""
    for path in [work.scratch, *work.results.glob("*.partial")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink() if path.exists() else None


def _tell_left(options: argparse.Namespace, work: plan.Work) -> None:
    if (work.results / clocks.NOTE).is_file() and not options.lock_clocks:
        say("warning: a run that was killed has left clocks locked")
        say("  run again with --lock-clocks, which puts back what it found; or restart the device")


def _tool(options: argparse.Namespace, work: plan.Work) -> Tool:
    """Choose the bindings where they import, else trtexec.

    Raises:
        Problem: neither is here.
    """
    trt = None if options.trtexec else bindings.load(say)
    if trt is not None and cuda.libraries():
        aside = tools.build_aside(os.path.realpath(sys.argv[0]), work)
        return tools.Bindings(trt, cuda.Runtime, say, aside)
    path = trtexec.find(os.environ)
    if path is None:
        raise Problem(
            "neither TensorRT's Python bindings nor trtexec are here",
            "on a Jetson: sudo apt install nvidia-jetpack (or tensorrt); in a container: use NVIDIA's image for it",
            4,
        )
    say(f"using {path}")
    return tools.Trtexec(path, say, work.trtexec_samples)


def _build_one(options: argparse.Namespace) -> int:
    """Build one engine in this process: what the program calls of itself."""
    folder, name, workspace, level = (*options.more, "")[:4]
    trt = bindings.load(say)
    if trt is None:
        raise Problem("TensorRT's Python bindings do not import here", code=4)
    tools.build_one(trt, plan.load(Path(folder)), name, workspace, level, say)
    return 0


def _summary(result: dict[str, Any], work: plan.Work) -> list[str]:
    core = work.wanted.get("dla_core")
    where = "" if core is None else f", on DLA {core}"
    rows = [f"{result['tool']}, TensorRT {result['tensorrt']}{where}"]
    for name, engine in result["engines"].items():
        built, outputs = engine["build"], engine.get("outputs")
        compared = f", as expected on {outputs['agreed']} of {outputs['samples']} samples" if outputs else ""
        rows.append(
            f"  {name}: built in {built['seconds']:.0f} s, {built['plan_bytes'] / 1e6:.1f} MB{compared}"
        )
        if built.get("fallback_layers"):
            rows.append(f"  {name}: {fell_back(built)}: {', '.join(built['fallback_names'][:NAMED])}")
    for name, timed in result["timing"].items():
        kind, _, length = name.partition("-")
        what = f"{kind}, {length} tokens" if length else kind
        for name in result["engines"]:
            times = sorted(ms for block in timed["blocks"] if block["name"] == name for ms in block["ms"])
            if times:
                rows.append(
                    f"  {name}: median {times[len(times) // 2]:.3f} ms over {len(times)} inferences ({what})"
                )
    rows += [f"  {name}: {problem['message']}" for name, problem in result["errors"].items()]
    rows.append(f"results: {work.results / RESULT_FILE}")
    return rows


def fell_back(built: dict[str, Any]) -> str:
    """Say how much of an engine for a DLA runs on the GPU."""
    count, there = built["fallback_layers"], built.get("dla_layers")
    all_of = "" if there is None else f" of {count + there}"
    return f"{count}{all_of} {'layer' if count == 1 and not all_of else 'layers'} fell back to the GPU"


def _stop(_signal: int, _frame: Any) -> None:
    raise KeyboardInterrupt
