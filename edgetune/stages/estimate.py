"""Says how long a network will take on devices that are not at hand, how much memory, and which one suffices.

It may import errors, artifact, profile and estimates.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnx import ModelProto

from edgetune.artifact import Artifact
from edgetune.errors import ConfigError, nearest
from edgetune.estimates.kernels import Precision
from edgetune.estimates.measured import fit_runs
from edgetune.estimates.network import Shapes, shapes_by_length
from edgetune.estimates.parameters import Parameters, load_parameters
from edgetune.estimates.predict import PRECISIONS, Estimate, Read, predict, read, why_not
from edgetune.profile import Target, load_profile, load_target, names

MODEL_FILE = "model.onnx"
ASSUMED = "batch as in the file, compute alone, no CUDA graph, clocks at the maximum of the mode"


def estimate(
    model: Path | ModelProto,
    profile: str | Sequence[str] = "all",
    *,
    precision: str | Sequence[str] = PRECISIONS,
    limit_ms: float = 0.0,
    shapes: Shapes | None = None,
    parameters: Path | None = None,
) -> dict[str, Any]:
    """Estimate latency, memory and fit without a device.

    Args:
        model: an ONNX file, the folder of an artifact that has one, or a loaded network.
        profile: `NAME[:MODE][@JETPACK]`, several of them, or `all`: every mode of every shipped module.
        precision: `int8`, `fp16` or both; with commas in one string, too.
        limit_ms: the latency that is asked for; 0: none.
        shapes: of inputs whose size the file leaves open; the name "" is the only input's.
        parameters: a file that `--fit` wrote, instead of the shipped ones.

    Returns:
        `estimates`, fastest first; `not_estimated` with reasons; `answer` where there is a limit; and, for one
        target, `kernels` of each estimate, costliest first. Of a network that takes texts of several lengths all that
        is of the longest, and `lengths` holds the estimates of each.

    Raises:
        ConfigError: unknown profile or precision, no such file, or open shapes that were not given.
        ArtifactError: no ONNX network, or operators and shapes that no figure can stand for.
    """
    path = Artifact.load(model).file(MODEL_FILE) if isinstance(model, Path) and model.is_dir() else model
    wanted, known = _precisions(precision), load_parameters(parameters)
    if limit_ms < 0:
        raise ConfigError(f"--limit-ms {limit_ms:g}: a limit is a positive number of milliseconds")
    targets = _every() if profile == "all" else [load_target(p) for p in _list(profile)]
    lengths = {} if shapes else shapes_by_length(path)
    if lengths:
        each = {
            length: estimate(
                path, profile, precision=precision, limit_ms=limit_ms, shapes=one, parameters=parameters
            )
            for length, one in lengths.items()
        }
        rows = [
            {"length": length, "operations": found["operations"], "estimates": found["estimates"]}
            for length, found in each.items()
        ]
        return each[max(each)] | {"lengths": rows}
    network = read(path, shapes)
    pairs = [(target, name, why_not(target, name)) for target in targets for name in wanted]
    made = sorted((predict(network, t, p, known) for t, p, why in pairs if not why), key=lambda e: e.ms)
    left = [{"target": t.label, "precision": p, "why": why} for t, p, why in pairs if why]
    if not made:
        raise ConfigError(
            f"no estimate for {left[0]['target']}: {left[0]['why']}",
            hint="edgetune profiles list names others",
        )
    rows = [item.dump() for item in made]
    if len(targets) == 1:
        for row, item in zip(rows, made, strict=True):
            row["kernels"] = _kernels(network, item)
    return {
        "model": str(path) if isinstance(path, Path) else "network",
        "operations": network.operations,
        "kernel_count": len(network.kernels),
        "weights": sum(kernel.weights + kernel.unread for kernel in network.kernels),
        "quantized": network.network.quantized,
        "assumed": ASSUMED,
        "parameters": {
            "made": known.made,
            "rows": known.rows,
            "file": str(parameters or ""),
            "errors": known.errors,
        },
        "estimates": rows,
        "not_estimated": left,
        "answer": _answer(made, limit_ms) if limit_ms else None,
    }


def fit(runs: Sequence[Path], out: Path, parameters: Path | None = None) -> Parameters:
    """Fit the parameters to runs that were timed on devices, and write them.

    Raises:
        ConfigError: no runs, none of them timed on a device, or the file cannot be written.
        ArtifactError: a measurement is damaged or not to be trusted.
    """
    import json

    made = fit_runs(runs, load_parameters(parameters))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(made.dump(), indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"{out}: {error.strerror or error}", hint="name another file: -o FILE") from error
    return made


def _list(given: str | Sequence[str]) -> list[str]:
    return [part.strip() for part in given.split(",")] if isinstance(given, str) else list(given)


def _precisions(given: str | Sequence[str]) -> list[Precision]:
    asked = _list(given)
    for name in asked:
        if name not in PRECISIONS:
            raise ConfigError(f"no estimate in {name!r}", hint=nearest(name, PRECISIONS))
    return [name for name in PRECISIONS if name in asked]


def _every() -> list[Target]:
    """Return every mode of every shipped module and GPU, with a JetPack that has it."""
    found = []
    for profile in map(load_profile, names()):
        if profile.kind == "host":
            continue
        for mode in profile.modes:
            having = [name for name, pack in profile.jetpacks.items() if not pack.modes or mode in pack.modes]
            default = profile.default_jetpack
            jetpack = default if default in having or not having else having[-1]
            found.append(Target(profile=profile, mode=mode, jetpack=jetpack))
    return found


def _kernels(network: Read, item: Estimate) -> list[dict[str, Any]]:
    """Return the kernels of an estimate, costliest first."""
    found = [
        {
            "name": kernel.name,
            "kind": kernel.kind,
            "precision": "int8" if kernel.runs_int8(item.precision) else "fp16",
            "nodes": list(kernel.nodes),
            "operations": kernel.operations,
            "bytes_read": kernel.bytes_read(item.precision),
            "bytes_written": kernel.bytes_written(item.precision),
            "weight_bytes": kernel.weight_bytes(item.precision),
            "ms": round(ms, 6),
            "share": round(ms / item.ms, 4),
        }
        for kernel, ms in zip(network.kernels, item.kernel_ms, strict=True)
    ]
    return sorted(found, key=lambda row: -float(row["ms"]))


def _cheapness(item: Estimate) -> tuple[float, float, float, str]:
    """Order modules: prices are not known, so by memory, then by the peak of the fastest mode, then by watts."""
    profile = item.target.profile
    peak = max((mode.fp16_dense_tflops or 0.0) for mode in profile.modes.values())
    watts = profile.modes[item.target.mode].power_w
    # A mode without a budget is the one that takes the most.
    return (profile.memory_gb or float("inf"), peak, watts or float("inf"), profile.name)


def _answer(made: Sequence[Estimate], limit_ms: float) -> dict[str, Any]:
    """Return the cheapest module and mode that meet a limit: for all of the interval, and for the estimate alone."""
    fitting = sorted((e for e in made if e.fits and e.target.profile.kind == "jetson"), key=_cheapness)

    def first(attribute: str) -> dict[str, Any] | None:
        chosen = [item for item in fitting if getattr(item, attribute) <= limit_ms]
        # The same module and mode in another precision costs the same: then the faster one.
        best = min(chosen, key=lambda item: (_cheapness(item), item.ms), default=None)
        return best.dump() if best else None

    return {
        "limit_ms": limit_ms,
        "surely": first("high_ms"),
        "probably": first("ms"),
        "order": "prices are not known: modules by memory, then by the peak of their fastest mode, then modes by watts",
    }
