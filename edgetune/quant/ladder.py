"""Climbs from plain ranges to training, rung by rung, and keeps what helps on inputs that decided nothing.

It may import errors, progress, engines and the rest of quant. What needs torch is imported where it is used:
a network that is good enough with ranges alone never loads it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from onnx import ModelProto

from edgetune.engines.onnxruntime import Feed
from edgetune.engines.profiling import node_seconds
from edgetune.errors import ConfigError, StageError
from edgetune.progress import Progress, Silent
from edgetune.quant.compare import compare
from edgetune.quant.draft import Draft, Rendering, draft
from edgetune.quant.graph import Graph
from edgetune.quant.held import tensors
from edgetune.quant.sensitivity import Layer, leave_out, noise_by_layer, rank, relieving, sqnr_of
from edgetune.recipe import Gates

# Ways to quantize: ranges alone; rungs until the limits are met; every rung that costs next to no speed.
METHODS = ("plain", "auto", "best")
FIRST = "ranges"
ATTENTION = "attention"
# Rungs that change the network or its ranges, and neither integers nor biases by what was computed with them.
UNCORRECTED = (FIRST, "equalization", "smoothing", "centering", "relief")
# A rung is kept for at least this much.
LEAST_GAIN_DB = 0.05
# Inputs that corrections look at; one number per tensor needs fewer.
CORRECTED_ON, RECONSTRUCTED_ON = 128, 32
# Of mixed precision: inputs on which single layers are tried, layers left in float at most, by share.
TRIED_ON, FLOAT_SHARE = 8, 0.25
# Of relief: the share of operations that may stay in float together, and what each layer has to gain.
RELIEF_SHARE, RELIEF_LEAST_DB = 0.02, 0.15


@dataclass(frozen=True)
class Limits:
    """When an INT8 network is good enough.

    Attributes:
        agreement: least share of inputs on which it is expected to name FP32's class, at the lower end of the
            interval that the held-out inputs leave; None: not looked at.
        cosine: least mean cosine with FP32's outputs; None: not looked at.
    """

    agreement: float | None = 0.95
    cosine: float | None = 0.99

    @classmethod
    def of(cls, gates: Gates) -> Self:
        """Return what the gates of a run ask of INT8, as far as it is known without labels."""
        share = gates.int8_agreement_percent_min
        return cls(None if share is None else share / 100, gates.int8_cosine_min)


@dataclass
class Climb:
    """Where a climb has got to.

    Attributes:
        fp32: the network that is right by definition.
        best: the draft that is kept.
        base: the last one kept of which no weights or biases are corrected.
        comparison: its figures on held-out inputs.
        rungs: what each rung gained and cost.
        layers: how much the layers of `best` hurt, where that was looked at.
    """

    fp32: ModelProto
    rendering: Rendering
    batches: Sequence[Feed]
    held: Sequence[Feed]
    ranges: str
    progress: Progress
    device: str
    resume: Path | None
    best: Draft
    base: Draft
    comparison: dict[str, Any] = field(default_factory=dict)
    rungs: list[dict[str, Any]] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)

    @property
    def where(self) -> str:
        """Where corrections and training run: the GPU, where there is one and nothing else is said."""
        import torch

        return self.device if self.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"

    def meets(self, limits: Limits) -> bool:
        """Say whether the network is good enough on held-out inputs."""
        found = self.comparison
        cosines = [entry["cosine_mean"] for entry in found["outputs"].values() if "cosine_mean" in entry]
        agrees = limits.agreement is None or found.get("agreement_at_least", 1.0) >= limits.agreement
        return agrees and (limits.cosine is None or min(cosines, default=1.0) >= limits.cosine)

    def offer(
        self, rung: str, made: Draft, seconds: float, told: str = "", least: float = LEAST_GAIN_DB
    ) -> bool:
        """Judge a draft; keep it where it is better by so many dB."""
        found = self.judge(made)
        better = not self.rungs or sqnr_of(found) >= sqnr_of(self.comparison) + least
        self.rungs.append(
            {
                "rung": rung, "kept": better, "seconds": seconds, "sqnr_db": sqnr_of(found),
                "agreement": found.get("agreement"), "agreement_expected": found.get("agreement_expected"),
                "agreement_at_least": found.get("agreement_at_least"), "why": told,
            }
        )  # fmt: skip
        if better:
            self.best, self.comparison = made, found
            self.base = made if rung in UNCORRECTED else self.base
        if rung != FIRST:
            self.progress.line(f"quantize: {_said(self.rungs[-1])}")
        return better

    def judge(self, made: Draft) -> dict[str, Any]:
        """Compare a draft with FP32 on held-out inputs."""
        return compare(self.fp32, made.model, self.held, exact=self.rendering.symmetric)

    def skip(self, rung: str, why: str) -> None:
        """Note a rung of which nothing came."""
        self.progress.line(f"quantize: {rung}: {why}")
        self.rungs.append(
            {
                "rung": rung, "kept": False, "seconds": 0.0, "sqnr_db": None, "agreement": None,
                "agreement_expected": None, "agreement_at_least": None, "why": why,
            }
        )  # fmt: skip


def _enough(state: Climb) -> str:
    last = [rung["rung"] for rung in state.rungs if rung["kept"]][-1]
    after = "ranges alone are" if last == FIRST else f"after {last} it is"
    return f"{after} good enough on {len(state.held)} held-out inputs; --method best goes on"


def _said(rung: dict[str, Any]) -> str:
    expected = rung["agreement_expected"]
    least = rung["agreement_at_least"]
    share = (
        ""
        if expected is None
        else f", same class expected for {100 * expected:.1f}%, at least {100 * least:.1f}%"
    )
    outcome = "kept" if rung["kept"] else "no better, dropped"
    return f"{rung['rung']}: {rung['sqnr_db']:.1f} dB{share} on held-out inputs, {outcome}"


def climb(
    first: Draft,
    rendering: Rendering,
    batches: Sequence[Feed],
    held: Sequence[Feed],
    ranges: str,
    method: str = "auto",
    limits: Limits | None = None,
    *,
    device: str = "auto",
    resume: Path | None = None,
    progress: Progress | None = None,
) -> Climb:
    """Improve a quantized network.

    Args:
        first: quantized with ranges alone.
        rendering: how it is written down.
        batches: calibration inputs, as the network takes them.
        held: inputs that decide which rungs are kept; they calibrate nothing.
        ranges: how the ranges of `first` were found.
        method: `auto` (until the limits are met) or `best` (all that costs next to no speed).
        limits: for `auto`.
        device: `auto`, `cpu` or `cuda`, for corrections and training.
        resume: a file in which training keeps its state.
        progress: is told how far it is.
    """
    state = Climb(
        first.graph.model, rendering, batches, held, ranges, progress or Silent(), device, resume, first,
        first,
    )  # fmt: skip
    state.offer(FIRST, first, 0.0)
    rungs = RUNGS if method == "auto" else {name: rung for name, rung in RUNGS.items() if name != "mixed"}
    for name, rung in rungs.items():
        if method == "auto" and state.meets(limits or Limits()):
            state.progress.line(f"quantize: {_enough(state)}")
            break
        started = time.perf_counter()
        try:
            made, told = rung(state, limits or Limits())
        except (ConfigError, StageError) as error:
            state.skip(name, error.message)
            continue
        if made is None:
            state.skip(name, told)
        else:
            state.offer(name, made, time.perf_counter() - started, told)
    _attend(state, limits or Limits())
    return state


Rung = Callable[[Climb, Limits], tuple[Draft | None, str]]


def _equalize(state: Climb, limits: Limits) -> tuple[Draft | None, str]:
    from edgetune.quant.equalize import channelwise, equalize

    best = state.best
    seen = channelwise(best.graph, list(best.plan.reads), state.batches[:CORRECTED_ON])
    model, factors = equalize(best.graph, seen)
    if not factors:
        return None, "no channels can be scaled: nothing but ReLU, pooling or additions may stand between"
    return _rescaled(state, model), f"{factors} channels scaled"


def _rescaled(state: Climb, model: ModelProto) -> Draft:
    return draft(Graph(model), state.rendering, state.batches, state.ranges, state.best.excluded)


def _smooth(state: Climb, limits: Limits) -> tuple[Draft | None, str]:
    from edgetune.quant.smooth import smoothed

    best = state.best
    model, factors = smoothed(best.graph, best.plan.reads, state.batches[:CORRECTED_ON])
    if not factors:
        return None, "no LayerNorm makes channels of unlike ranges for a product of weights"
    return _rescaled(state, model), f"{factors} channels behind LayerNorms scaled"


def _attend(state: Climb, limits: Limits) -> None:
    """Take attentions into INT8 once all else is decided: for speed, so it has to cost next to no accuracy."""
    from edgetune.quant import attention

    best, started = state.best, time.perf_counter()
    found = [
        block
        for block in attention.attentions(best.graph)
        if state.rendering.symmetric and not block & best.excluded
    ]
    if not found:
        return
    if not state.meets(limits):
        state.skip(ATTENTION, "INT8 is not good enough as it is: they stay in float")
        return
    few = state.held[:TRIED_ON]
    made, told = attention.attend(best, state.rendering, found, state.batches, few, state.ranges)
    if made is None:
        state.skip(ATTENTION, told)
    else:
        state.offer(ATTENTION, made, time.perf_counter() - started, told, -attention.COST_DB)


def _center(state: Climb, limits: Limits) -> tuple[Draft | None, str]:
    from edgetune.quant.center import center

    if not state.rendering.symmetric:
        return None, "unsigned integers with a zero point use all of their levels as they are"
    made, shifted = center(state.best, state.rendering)
    if not shifted:
        return None, "no tensor can be shifted: all are read by a convolution that pads, or by something else"
    return made, f"{shifted} of {len(made.plan.reads)} tensors shifted"


def _relieve(state: Climb, limits: Limits) -> tuple[Draft | None, str]:
    """Leave the few layers in float that gain much and cost next to nothing.

    Often it is the first depthwise convolution: what it reads has been through one layer only and has a wide
    range, and with 9 weights per channel nothing averages the rounding out.
    """
    base = state.base
    if not state.rendering.symmetric:
        return None, "a float layer among asymmetric integers slows down a CPU"
    few = list(state.held[:TRIED_ON])
    layers = noise_by_layer(base, few)
    budget = RELIEF_SHARE * sum(layer.operations for layer in layers)
    affordable = [layer for layer in layers if 0 < layer.operations <= budget]
    chosen = relieving(base, state.rendering, affordable, few, budget, RELIEF_LEAST_DB)
    if not chosen:
        return (
            None,
            f"no layer with less than {RELIEF_SHARE:.0%} of the operations gains {RELIEF_LEAST_DB} dB",
        )
    return leave_out(base, state.rendering, chosen), f"in float: {', '.join(chosen)}"


def _correct_bias(state: Climb, limits: Limits) -> tuple[Draft | None, str]:
    return _biased(state, state.best), ""


def _biased(state: Climb, made: Draft) -> Draft:
    from edgetune.quant.corrections import correct_bias

    inputs = tensors(state.batches[:CORRECTED_ON])
    model = correct_bias(made.model, made.graph, inputs, _bar(state, "correct biases"), state.where)
    return replace(made, model=model)


def _round(state: Climb, limits: Limits) -> tuple[Draft | None, str]:
    return _rounded(state, state.best), ""


def _rounded(state: Climb, made: Draft) -> Draft:
    from edgetune.quant.corrections import round_weights

    inputs = tensors(state.batches[:CORRECTED_ON])
    model = round_weights(made.model, made.graph, inputs, _bar(state, "round weights"), state.where)
    return replace(made, model=model)


def _reconstruct(state: Climb, limits: Limits) -> tuple[Draft | None, str]:
    from edgetune.quant.corrections import reconstruct_ranges

    best = state.best
    model = reconstruct_ranges(
        best.model, best.graph, tensors(state.batches[:RECONSTRUCTED_ON]), best.plan.groups,
        state.rendering.half, _bar(state, "reconstruct ranges"), state.where, best.shift,
    )  # fmt: skip
    return replace(best, model=model), ""


def _train(state: Climb, limits: Limits) -> tuple[Draft | None, str]:
    from edgetune.quant.qat import mixed, train

    best = state.best
    model, history = train(
        best.model, best.graph, tensors(state.batches), best.plan.groups, held=tensors(state.held),
        half=state.rendering.half, device=state.where, resume=state.resume, told=_bar(state, "train"),
        shift=best.shift, augment=mixed,
    )  # fmt: skip
    least = min(history, key=lambda entry: float(entry["held"]))
    told = (
        f"error on held-out inputs {history[0]['held']:.2g}, {least['held']:.2g} after epoch {least['epoch']}"
    )
    return (replace(best, model=model) if least["epoch"] else None), told


def _mix(state: Climb, limits: Limits) -> tuple[Draft | None, str]:
    """Leave layers in float, the most gain for its cost first, twice as many each time until limits are met.

    What was corrected behind a layer made good for its noise too, and is corrected anew without it.
    """
    base, rendering = state.base, state.rendering
    few = list(state.held[:TRIED_ON])
    seconds = node_seconds(base.graph.model.SerializeToString(), few[0])
    state.layers = rank(base, rendering, noise_by_layer(base, few), few, seconds)
    useful = [layer.name for layer in state.layers if (layer.gain_db or 0) > 0]
    if not useful:
        return None, "no layer gains anything by staying in float"
    most = min(len(useful), max(1, int(FLOAT_SHARE * len(state.layers))))
    kept = {rung["rung"] for rung in state.rungs if rung["kept"]}
    count = 1
    while True:
        made = leave_out(base, rendering, useful[:count])
        if "rounding" in kept:
            made = _rounded(state, made)
        elif "bias" in kept:
            made = _biased(state, made)
        if count == most or replace(state, comparison=state.judge(made)).meets(limits):
            return made, f"in float: {', '.join(sorted(made.excluded - base.excluded))}"
        count = min(2 * count, most)


# In the order in which they are tried: what costs least comes first.
RUNGS: dict[str, Rung] = {
    "equalization": _equalize,
    "smoothing": _smooth,
    "centering": _center,
    "relief": _relieve,
    "bias": _correct_bias,
    "rounding": _round,
    "reconstruction": _reconstruct,
    "mixed": _mix,
    "training": _train,
}


def _bar(state: Climb, what: str) -> Callable[[int, int], None]:
    """Return what shows how far a correction is."""

    def told(done: int, total: int) -> None:
        if done == 1:
            state.progress.begin(what, total, "step")
        state.progress.advance()
        if done == total:
            state.progress.end()

    return told
