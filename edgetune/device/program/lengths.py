"""Engines that take texts of several lengths: by TensorRT's bindings one with an optimization profile each.

By `trtexec` it is an engine for each length: 8.x builds one profile alone, and which later version first chooses
among several when it runs is not written down. Both ways the kernels are tuned to each length; with an engine
each the weights lie on disk, and in memory where several are loaded, once per length. Standard library only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .plan import Build, Tensor
from .problem import Problem


def profiles_of(engine: Any, inputs: list[Tensor], plan: str) -> dict[int, dict[str, tuple[int, ...]]]:
    """Return the shapes of an engine's inputs by length, in the order of its profiles; empty: sizes are fixed.

    Raises:
        Problem: a profile is of a range of sizes.
    """
    if all(size >= 0 for tensor in inputs for size in tensor.shape):
        return {}
    found: dict[int, dict[str, tuple[int, ...]]] = {}
    for index in range(engine.num_optimization_profiles):
        shapes = {}
        for tensor in inputs:
            least, _, most = (tuple(shape) for shape in engine.get_tensor_profile_shape(tensor.name, index))
            if least != most:
                raise Problem(
                    f"{plan}: {tensor.name!r} takes sizes from {list(least)} to {list(most)}, which is not run here",
                    code=5,
                )
            shapes[tensor.name] = most
        found[shapes[inputs[0].name][-1]] = shapes
    return found


def apart(job: Build) -> list[Build]:
    """Return an engine's jobs, one for each length; the longest, which is last, has the engine's own name."""
    if not job.lengths:
        return [job]
    return [job._replace(plan=plan_at(job, length), lengths=(length,)) for length in job.lengths]


def plan_at(job: Build, length: int) -> str:
    """Return where the engine of one length lies; 0: the network takes one alone."""
    if length in (0, job.lengths[-1] if job.lengths else 0):
        return job.plan
    return str(Path(job.plan).with_name(f"{job.name}-{length}.plan"))
