"""One range for every quantized tensor: by one estimator, or the one with which its layers err least.

It knows nothing of placement or hardware. It may import errors, engines, machine, quant.graph, quant.plan,
quant.ranges and quant.collect.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from edgetune.engines.onnxruntime import Feed
from edgetune.errors import ConfigError, nearest
from edgetune.machine import cores
from edgetune.quant.collect import Batch, Collected, Tapped, collect
from edgetune.quant.graph import Graph
from edgetune.quant.large import open_model
from edgetune.quant.plan import Plan
from edgetune.quant.ranges import RANGES, Range, Statistics
from edgetune.quant.trials import Grid as Grid
from edgetune.quant.trials import open_scales, scales_fed, trials_of

AUTO = "auto"
METHODS = (*RANGES, AUTO)
# Inputs on which layers are tried.
TRIED = 16
# Inputs on which whole networks are tried, in rounds; after each, the worse half of them is left out.
ROUNDS = (8, 16, 32)
# Of two ranges closer than this, one is tried.
ALIKE = 0.01
# Ranges have settled when 19 of 20 scales stay within this share of the last ones.
SETTLED = 0.05


class Pick(NamedTuple):
    """Where a group's range comes from.

    Attributes:
        estimator: a key of `RANGES`.
        tensor: of whose statistics; empty: all of the group's, the widest range that is found.
    """

    estimator: str
    tensor: str = ""


@dataclass(frozen=True)
class Found:
    """Ranges, and what there is to tell of them.

    Attributes:
        ranges: of every quantized tensor; those of a group are equal.
        estimators: which one gave it, by tensor.
        collected: the statistics.
        convergence: after so many `images`, the relative distance of scales from their final values:
            `median` and `p95` over groups of tensors.
        enough_images: from how many images on the p95 stayed within `SETTLED`; None: it did not.
        warnings: what a person should know.
    """

    ranges: dict[str, Range]
    estimators: dict[str, str]
    collected: Collected
    convergence: list[dict[str, Any]]
    enough_images: int | None
    warnings: list[str]


def find_ranges(graph: Graph, plan: Plan, batches: Iterable[Batch], method: str, grid: Grid) -> Found:
    """Find a range for every quantized tensor.

    Args:
        graph: the prepared network.
        plan: what is quantized, and which tensors share a scale.
        batches: calibration inputs, see `collect.Batch`; gone through once.
        method: one of `METHODS`.
        grid: what ranges become.

    Raises:
        ConfigError: an unknown method, or an input does not fit the network.
        StageError: no input, or activations that are NaN or infinite.
    """
    if method not in METHODS:
        raise ConfigError(f"ranges: unknown {method!r}", hint=nearest(method, METHODS))
    counts = method not in ("minmax", "mean")
    collected = collect(
        graph, plan.reads, batches, counts=counts, keep=ROUNDS[-1] if method == AUTO else TRIED
    )
    groups = groups_of(plan)
    if method == AUTO:
        picks = pick(graph, plan, collected.statistics, collected.kept[:TRIED], grid)
        picks = _best_whole(graph, plan, collected, picks, grid)
    else:
        picks = dict.fromkeys(groups, Pick(method))
    ranges = {g: range_of(collected.statistics, groups[g], picks[g], grid.symmetric) for g in groups}
    convergence = _convergence(collected, groups, picks, ranges, grid)
    enough = _enough(convergence)
    return Found(
        ranges={tensor: ranges[plan.groups[tensor]] for tensor in plan.reads},
        estimators={tensor: picks[plan.groups[tensor]].estimator for tensor in plan.reads},
        collected=collected,
        convergence=convergence,
        enough_images=enough,
        warnings=[*_constant(collected.statistics), *_unsettled(collected.images, enough, convergence)],
    )


def groups_of(plan: Plan) -> dict[str, list[str]]:
    """Return the tensors that share a scale, by their representative."""
    groups: dict[str, list[str]] = {}
    for tensor in plan.reads:
        groups.setdefault(plan.groups[tensor], []).append(tensor)
    return groups


def range_of(statistics: dict[str, Statistics], members: list[str], pick: Pick, symmetric: bool) -> Range:
    """Return a group's range."""
    tensors = [pick.tensor] if pick.tensor else members
    found = [RANGES[pick.estimator](statistics[tensor], symmetric) for tensor in tensors]
    return min(low for low, _ in found), max(high for _, high in found)


def pick(
    graph: Graph, plan: Plan, statistics: dict[str, Statistics], inputs: list[Feed], grid: Grid
) -> dict[str, Pick]:
    """Choose for every group the range with the least error behind the layers that read it.

    Each layer is run with its input and its weights quantized, and its result (after its activation) compared
    with the FP32 network's: the mean over the inputs of the error's norm over the result's, several layers of
    a group taken together. (With squares summed over all inputs instead, a few inputs with extreme values
    decide for all: that cost squeezenet1_0 1.1 dB.)

    Args:
        graph: the prepared network.
        plan: what is quantized.
        statistics: of every quantized tensor.
        inputs: those that are tried.
        grid: what ranges become.
    """
    groups = groups_of(plan)
    candidates = {group: _candidates(statistics, groups[group], grid) for group in groups}
    trials = {g: trials_of(graph, plan, g, groups[g], grid) for g in groups if len(candidates[g]) > 1}
    if not trials:
        return {group: next(iter(candidates[group])) for group in groups}
    needed = {name for own in trials.values() for trial in own for name in (*trial.inputs, trial.result)}
    network = Tapped(graph, sorted(needed - set(graph.inputs)))
    errors = {group: np.zeros(len(candidates[group])) for group in trials}

    def run(group: str, values: Feed) -> None:
        scales = [grid.scales({group: found})[group] for found in candidates[group].values()]
        noise = np.zeros(len(scales))
        for trial in trials[group]:
            power = float(np.square(values[trial.result], dtype=np.float64).sum())
            if power:  # a layer that gives nothing but zeros has no say
                noise += [trial.error(values, scale, grid.symmetric) / power for scale in scales]
        errors[group] += np.sqrt(noise)

    with ThreadPoolExecutor(cores()) as pool:
        for feed in inputs:
            list(pool.map(partial(run, values=network.run(feed)), trials))
    chosen = {group: int(np.argmin(errors[group])) if group in errors else 0 for group in groups}
    return {group: list(candidates[group])[chosen[group]] for group in groups}


def _best_whole(
    graph: Graph, plan: Plan, collected: Collected, picks: dict[str, Pick], grid: Grid
) -> dict[str, Pick]:
    """Return what was picked, or one estimator for all where that errs less at the network's outputs.

    What is best for each layer need not be best for all of them together: on squeezenet1_0 one estimator is
    sometimes ahead by 1 to 2 dB, and which one differs from draw to draw.
    """
    groups = groups_of(plan)
    floats = [index for index, name in enumerate(graph.outputs) if graph.is_float(name)]
    if not floats:
        return picks
    network, whole = open_model(graph.model), open_scales(graph, plan, grid)
    sets = [picks, *(dict.fromkeys(groups, Pick(estimator)) for estimator in RANGES)]
    fed = []
    for chosen in sets:
        ranges = {g: range_of(collected.statistics, groups[g], chosen[g], grid.symmetric) for g in groups}
        fed.append(scales_fed(grid.scales({t: ranges[plan.groups[t]] for t in plan.reads}), grid.symmetric))
    alive = list(range(len(sets)))
    errors = np.zeros(len(sets))
    for start, stop in zip((0, *ROUNDS), ROUNDS, strict=False):
        for feed in collected.kept[start:stop]:
            wanted = network.run_once(feed)
            powers = {index: float(np.square(wanted[index], dtype=np.float64).sum()) for index in floats}
            for place in alive:
                given = whole.run_once(feed | fed[place])
                noise = [
                    float(np.square(given[index] - wanted[index], dtype=np.float64).sum()) / power
                    for index, power in powers.items()
                    if power
                ]
                errors[place] += np.sqrt(sum(noise))
        # Of equal ones the first, which is what was picked for each layer.
        alive = sorted(alive, key=lambda place: errors[place])[: (len(alive) + 1) // 2]
    return sets[alive[0]]


def _candidates(statistics: dict[str, Statistics], members: list[str], grid: Grid) -> dict[Pick, Range]:
    """Return what is tried for a group, without what makes no difference."""
    kept: dict[Pick, Range] = {}
    for tensor in ["", *members] if len(members) > 1 else [""]:
        for estimator in RANGES:
            low, high = range_of(statistics, members, Pick(estimator, tensor), grid.symmetric)
            near = ALIKE * max(high - low, abs(low), abs(high))
            if not any(abs(low - a) <= near and abs(high - b) <= near for a, b in kept.values()):
                kept[Pick(estimator, tensor)] = low, high
    return kept


def _convergence(
    collected: Collected,
    groups: dict[str, list[str]],
    picks: dict[str, Pick],
    final: dict[str, Range],
    grid: Grid,
) -> list[dict[str, Any]]:
    last = grid.scales(final)
    settling = []
    for images, statistics in collected.earlier.items():
        ranges = {g: range_of(statistics, groups[g], picks[g], grid.symmetric) for g in groups}
        scales = grid.scales(ranges)
        away = [abs(float(scales[g].scale) / float(last[g].scale) - 1) for g in groups]
        median, p95 = np.percentile(away, [50, 95])
        settling.append({"images": images, "median": float(median), "p95": float(p95)})
    if collected.images not in collected.earlier:
        settling.append({"images": collected.images, "median": 0.0, "p95": 0.0})
    return settling


def _enough(convergence: list[dict[str, Any]]) -> int | None:
    """Return the first count from which on all earlier scales stayed near the final ones."""
    enough = None
    for entry in reversed(convergence[:-1]):
        if entry["p95"] > SETTLED:
            break
        enough = int(entry["images"])
    return enough


def _constant(statistics: dict[str, Statistics]) -> list[str]:
    constant = [name for name, item in statistics.items() if item.low == item.high]
    if not constant:
        return []
    more = f" and {len(constant) - 3} more" if len(constant) > 3 else ""
    return [f"one and the same value on every calibration input: {', '.join(constant[:3])}{more}"]


def _unsettled(images: int, enough: int | None, convergence: list[dict[str, Any]]) -> list[str]:
    if enough is not None:
        return []
    if len(convergence) < 2:
        return ["ranges come from one input, and cannot be said to have settled; use more"]
    before, moved = convergence[-2]["images"], convergence[-2]["p95"]
    return [
        f"{images} inputs are not enough for ranges to settle: from {before} to {images} inputs, "
        f"5% of the scales moved by more than {moved:.0%}; use more"
    ]
