"""Fine-tune: a pretrained network learns the classes of a data folder.

It knows no ONNX and no hardware profile. It may import artifact, recipe, progress, data and training.
"""

import time
from pathlib import Path

import torch
from torch import nn

from edgetune.artifact import Artifact, Preprocess
from edgetune.data.folders import Dataset
from edgetune.progress import Progress, Silent
from edgetune.recipe import FinetuneSection, ModelSection
from edgetune.training import ranks
from edgetune.training.accelerator import choose_accelerator
from edgetune.training.feeder import Feeder
from edgetune.training.frame import (
    CACHE_FOLDER,
    RESUME_FOLDER,
    begin_network,
    fingerprint,
    keeping_best,
    training_told,
    write_checkpoint,
)
from edgetune.training.loop import Task, Watch, train
from edgetune.training.losses import objective


@ranks.together
def finetune(
    model: ModelSection,
    data: Dataset,
    settings: FinetuneSection,
    *,
    into: Path,
    accelerator: str = "auto",
    module: nn.Module | None = None,
    preprocess: Preprocess | None = None,
    weights: Path | None = None,
    watch: Watch | None = None,
    progress: Progress | None = None,
    cache: Path | None = None,
) -> Artifact:
    """Train a network on the training split and keep the epoch that is best on the validation split.

    Called again with the same arguments after an interrupt or a kill, it goes on after the last complete
    epoch and ends with the same weights. What that takes stays in `.resume`, no part of the artifact: a kill
    before the artifact is in its place must not cost the training. Where the loss is suddenly no number, the
    best epoch before is kept as an artifact beside `into`, named after it with `-diverged` behind.

    Under torchrun all processes train, each on its share of every batch, and the first one writes.

    Args:
        model: which network, or `custom` with `module`.
        data: the images; the test split is not touched.
        settings: how it learns.
        into: where the files go.
        accelerator: `auto`, `cpu` or `cuda`.
        module: your own network, float32 [N, C, H, W] to logits [N, K]; a copy of it is trained. Strategy
            `full` trains all of it, `feature-extractor` its last linear layer, which must make the logits.
        preprocess: how images become the input of `module`.
        weights: the file that `model.weights` names, where that is relative to something else.
        watch: told the history after each epoch; what it raises ends the training.
        progress: who is told how far it is.
        cache: folder of decoded images, found again by whoever names it; None: `.decoded` in `into`, no part
            of the artifact.

    Returns:
        A `checkpoint` artifact: model.safetensors and data.json.

    Raises:
        ConfigError: a strategy that the network cannot do, an empty split, wrong logits of `module`, more
            processes than images.
        MissingTool: `cuda` is asked for and there is no GPU.
        ArtifactError: the weights do not fit.
        StageError: training diverged, memory or disk do not do.
    """
    began = time.perf_counter()
    progress = progress or Silent()
    target = choose_accelerator(accelerator)
    ranks.check_enough(len(data.splits["train"]), settings.batch)
    if ranks.rank() == 0:
        into.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if target.name == "cuda" else []):
        begun = begin_network(model, data, settings, module, preprocess, weights)
        feeder = Feeder(
            begun.net, begun.layout, data, begun.preprocess, begun.settings, target, progress,
            cache or into / CACHE_FOLDER,
        )  # fmt: skip
        task = Task(
            layout=begun.layout,
            phases=begun.phases,
            feeds=feeder,
            loss=objective(settings, feeder.labels, len(data.classes)),
            settings=begun.settings,
            accelerator=target,
            folder=into / RESUME_FOLDER,
            fingerprint=fingerprint(begun, data, settings),
            watch=watch,
        )
        with keeping_best(begun, data, task, into):
            course = train(begun.net, task, progress)
    told = training_told(
        course, task, begun.net, time.perf_counter() - began,
        feeder.decode_seconds, feeder.features_earlier, feeder.cut,
    )  # fmt: skip
    return write_checkpoint(begun, data, into, told, settings=settings.model_dump(mode="json"))
