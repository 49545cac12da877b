"""TensorRT engines, timed with the TensorRT of this machine: its Python bindings, else its `trtexec`.

An engine runs only under the TensorRT and on the kind of GPU that built it, so what the file beside it tells is
compared before anything is loaded. No library of NVIDIA's is loaded before the CUDA driver has answered. It may
import errors and device.program.
"""

import os
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from edgetune.device.program import bindings, cuda, layers, sidecar, trtexec
from edgetune.device.program.engine import Engine
from edgetune.device.program.problem import Problem
from edgetune.device.program.tools import PROFILED_RUNS, PROFILED_S
from edgetune.device.program.trtexec_files import read_layers
from edgetune.errors import ArtifactError, ConfigError, EdgetuneError, MissingTool, StageError

ENDINGS = (".plan", ".engine", ".trt")
# Each round loads the engine anew, which takes seconds.
ROUNDS = 6
_ERRORS = {kind.exit_code: kind for kind in (ConfigError, MissingTool, ArtifactError, StageError)}
Query = Callable[[], float]


def is_plan(path: Path) -> bool:
    """Whether a file is a TensorRT engine by its name."""
    return path.suffix.lower() in ENDINGS


@contextmanager
def told_plainly() -> Iterator[None]:
    """Turn what the device program raises into edgetune's own errors."""
    try:
        yield
    except Problem as problem:
        raise _ERRORS.get(problem.code, StageError)(problem.message, hint=problem.hint) from problem


class Plans:
    """Engines, loaded or ready to be.

    Attributes:
        engine: what runs them, with its version.
        engines: loaded ones by name; empty where only `trtexec` is here.
        facts: what the file beside each tells, by name.
        notes: what differs from where they were built, and may cost speed.
    """

    def __init__(self, plans: Mapping[str, Path], stack: ExitStack) -> None:
        """Load engines for as long as a stack of contexts is open.

        Args:
            plans: files by name.
            stack: closes them.

        Raises:
            MissingTool: no TensorRT is here.
            ArtifactError: a plan was built for another device or TensorRT, was cut, or is no plan.
        """
        self._plans, self.engines, self.notes = plans, dict[str, Engine](), list[str]()
        self.facts = facts = {name: _facts(path) for name, path in plans.items()}
        said: list[str] = []
        trt = bindings.load(said.append)
        self._trtexec = "" if trt is not None and cuda.libraries() else trtexec.find(os.environ) or ""
        if trt is None and not self._trtexec:
            raise _missing(plans, facts, said)
        with told_plainly():
            runtime = None if self._trtexec else cuda.Runtime()
            version = trtexec.version_of(self._trtexec) if runtime is None else bindings.version_of(trt)
            self._version = version
            shown = ".".join(map(str, version))
            tool = "trtexec" if runtime is None else "TensorRT's Python bindings"
            self.engine = f"TensorRT {shown} ({tool})"
            here = {"tensorrt": shown, "compute_capability": runtime.compute_capability if runtime else None}
            for name, path in plans.items():
                try:
                    self.notes += [f"{name}: {note}" for note in sidecar.preflight(facts[name], here)]
                except Problem as problem:
                    raise Problem(f"{path}: {problem.message}", problem.hint, problem.code) from problem
                if runtime is not None:
                    core = facts[name].get("dla_core")
                    self.engines[name] = stack.enter_context(Engine(trt, runtime, str(path), None, core))

    def memory_mb(self, name: str) -> float | None:
        """Return what running takes: the plan's weights and what flows between layers; None: it is not told."""
        engine = self.engines.get(name)
        if engine is None or engine.device_memory is None:
            return None
        return (engine.device_memory + self._plans[name].stat().st_size) / 1e6

    def query(self, name: str, copies: bool) -> Query:
        """Return a function that runs one inference and returns its milliseconds by the GPU's clock."""
        with told_plainly():
            engine = self.engines[name]
            try:
                return engine.query(copies, graph=True)
            except Problem:
                return engine.query(copies)

    def rounds(self, seconds: float, queries: int, warmup_s: float, copies: bool) -> dict[str, list[Any]]:
        """Time engines by `trtexec`, in rounds whose order is shuffled: milliseconds per engine and round."""
        order, found = random.Random(0), dict[str, list[Any]]({name: [] for name in self._plans})
        key = "latency_ms" if copies else "compute_ms"
        with tempfile.TemporaryDirectory() as folder, told_plainly():
            for _ in range(ROUNDS):
                for name in order.sample(list(self._plans), len(self._plans)):
                    taken = trtexec.times(
                        self._trtexec, str(self._plans[name].absolute()), self._version, seconds / ROUNDS,
                        1000 * warmup_s, copies, folder, -(-queries // ROUNDS), self.facts[name].get("dla_core"),
                        shapes=self.facts[name].get("shapes"),
                    )  # fmt: skip
                    found[name].append(np.array(taken[key], dtype=np.float64))
        return found

    def layers(self, name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Time every layer, after all other timing.

        Returns:
            What the engine tells of its layers, as `device.program.layers.summary` has it, and the times of each.
        """
        with told_plainly(), tempfile.TemporaryDirectory() as folder:
            if not self._trtexec:
                timed = self.engines[name].profile(PROFILED_RUNS)
                return layers.summary(self.engines[name].layers()), timed
            told = f"{folder}/layers.json"
            timed = trtexec.profile(
                self._trtexec, str(self._plans[name].absolute()), self._version, PROFILED_S, folder,
                self.facts[name].get("dla_core"), shapes=self.facts[name].get("shapes"), layers=told,
            )["layers"]  # fmt: skip
            return layers.summary(read_layers(told)), timed


def _facts(path: Path) -> dict[str, Any]:
    with told_plainly():
        return sidecar.read(str(path)) or {}


def _missing(
    plans: Mapping[str, Path], facts: Mapping[str, dict[str, Any]], said: list[str]
) -> EdgetuneError:
    """Say that no TensorRT is here, and what the plans were built for where that is known."""
    name, path = next(iter(plans.items()))
    known = facts[name]
    built = f", built by TensorRT {known['tensorrt']}" if known.get("tensorrt") else ""
    built += f" on {known['gpu']}" if known.get("gpu") else ""
    why = f": {said[0]}" if said else ""
    return MissingTool(
        f"{path}: a TensorRT engine{built}, and there is no TensorRT on this machine{why}",
        hint="engines run on the device that built them: edgetune bench RUN --on ssh://USER@HOST\n"
        "time the ONNX file here, or estimate: edgetune estimate MODEL.onnx --profile NAME",
    )
