"""One trial: the first stages of a run with some settings changed, judged on the validation split.

A trial works in the study's store. Nothing that it does judges by the test split, and what exports and quantizes
is not given it. It may import everything below the cli
but steps.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgetune import learned, pipeline
from edgetune.artifact import Artifact
from edgetune.data.folders import Dataset
from edgetune.data.reader import arranged, batches, for_file, frames
from edgetune.errors import ArtifactError
from edgetune.profile import Target
from edgetune.progress import Progress
from edgetune.recipe import Recipe
from edgetune.store import Store
from edgetune.tuning.space import Draft, Space
from edgetune.tuning.study import Outcome, Watch

BATCH = 64


class Search(NamedTuple):
    """All that every trial is given.

    Attributes:
        draft: the recipe whose settings are changed.
        space: what is searched.
        target: where the network must run.
        out: the study's folder.
        data: all splits.
        accelerator: `auto`, `cpu` or `cuda`.
        progress: who is told.
    """

    draft: Draft
    space: Space
    target: Target
    out: Path
    data: Dataset
    accelerator: str
    progress: Progress

    @property
    def limit_ms(self) -> float | None:
        """The latency that the winner keeps to."""
        return self.draft.recipe.tune.latency_ms


def work(search: Search, values: dict[str, Any], folder: Path, watch: Watch) -> Outcome:
    """Train with some settings; for `objective: int8` also export, quantize and time.

    Raises:
        EdgetuneError: the settings cannot be trained with.
    """
    recipe = search.draft.changed(values)
    pipeline.preflight(recipe, search.target, search.accelerator)

    def look_on(history: list[dict[str, Any]]) -> None:
        # Behind or not, after the last epoch there is nothing left to spare.
        if len(history) < recipe.finetune.epochs:
            watch(history)

    made = _make(search, recipe, folder, look_on)
    training = made["checkpoint"].details["training"]
    history = training["epochs"]
    figures = {
        "val_loss": history[training["best_epoch"] - 1]["val_loss"],
        "epoch": training["best_epoch"],
        "seconds": round(sum(entry["seconds"] for entry in history), 3),
    }
    if "int8" not in made:
        return Outcome(training["val_top1"], history, figures)
    right = _right(made["int8"], search.data, "val")
    figures |= {"fp32_top1": training["val_top1"], **_latency(made["int8"])}
    return Outcome(float(right.mean()), history, figures)


def tested(search: Search, values: dict[str, Any], folder: Path) -> NDArray[np.bool_]:
    """Return which test images a trial's network gets right, [N]; the network is made again if it is gone."""
    made = _make(search, search.draft.changed(values), folder)
    return _right(made.get("int8", made["checkpoint"]), search.data, "test")


def _make(search: Search, recipe: Recipe, folder: Path, watch: Watch | None = None) -> dict[str, Artifact]:
    """Make what a trial is judged by, or find it."""
    # One store for all trials: what images were decoded into lies in its folder, beside them.
    keep, name = Store(search.out), folder.relative_to(search.out).as_posix()
    data, bars = search.data, _Bars(search.progress)
    teacher = learned.make_teacher(keep, recipe, data, search.accelerator, bars)
    if teacher:
        unlabelled = learned.look_at_unlabelled(recipe, search.out, bars)
        checkpoint = learned.make_distilled(
            keep, recipe, teacher, data, unlabelled, search.accelerator, bars, f"{name}/checkpoint", watch
        )
    else:
        checkpoint = learned.make_checkpoint(
            keep, recipe, data, search.accelerator, bars, f"{name}/checkpoint", watch
        )
    if recipe.tune.objective != "int8":
        return {"checkpoint": checkpoint}
    data = replace(data, splits={**data.splits, "test": ()})
    network = pipeline.make_onnx(keep, recipe, checkpoint, search.target.runtime, data, bars, f"{name}/onnx")
    int8 = pipeline.make_int8(
        keep, recipe, network, search.target, data, search.accelerator, bars, f"{name}/int8"
    )
    return {"checkpoint": checkpoint, "int8": int8}


def _right(network: Artifact, data: Dataset, split: str) -> NDArray[np.bool_]:
    if network.preprocess is None:
        raise ArtifactError(f"{network.path}: does not say how inputs are preprocessed")
    samples = arranged(data.root, data.splits[split], network.preprocess)
    if network.kind == "checkpoint":
        from edgetune.training.checkpoint import load_network
        from edgetune.training.evaluate import predict_logits

        inputs = batches(data.root, samples, network.preprocess, BATCH)
        logits = predict_logits(load_network(network), inputs)
    else:
        from edgetune.engines.onnxruntime import Session

        exact = network.details.get("rendering") in ("weak", "strong")
        session = Session(network.file("model.onnx"), exact=exact)
        read = frames(data.root, samples, network.preprocess, BATCH)
        found = [session.run(for_file(part, network.preprocess, session.inputs))[0] for part in read]
        logits = np.concatenate([rows.reshape(len(rows), -1) for rows in found])
    right: NDArray[np.bool_] = logits.argmax(axis=1) == np.array([sample.label for sample in samples])
    return right


def _latency(network: Artifact) -> dict[str, Any]:
    """Time a network here, alone."""
    from edgetune.engines.feeds import random_feed
    from edgetune.engines.onnxruntime import Session
    from edgetune.latency.protocol import PRESETS, measure

    session = Session(network.file("model.onnx"))
    found = measure({"int8": partial(session.run_once, random_feed(session.inputs))}, PRESETS["quick"])
    model = found["models"]["int8"]
    return {
        "latency_ms": model["p50_ms"], "latency_low_ms": model["p50_low_ms"],
        "latency_high_ms": model["p50_high_ms"], "trusted": found["trusted"],
    }  # fmt: skip


class _Bars:
    """Passes bars on, and keeps a training's own lines back: a search has one line for each trial."""

    def __init__(self, progress: Progress) -> None:
        self.begin: Callable[..., None] = progress.begin
        self.advance: Callable[..., None] = progress.advance
        self.end: Callable[..., None] = progress.end

    def line(self, text: str) -> None:
        """Ignore it."""
