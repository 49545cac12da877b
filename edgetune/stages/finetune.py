"""Fine-tune: a pretrained network learns the classes of a data folder.

It knows no ONNX and no hardware profile. It may import errors, artifact, recipe, progress, data, models
and training.
"""

import copy
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from edgetune.artifact import Artifact, Preprocess, library_versions
from edgetune.data.folders import Dataset, save_dataset
from edgetune.errors import ConfigError
from edgetune.models import build_model, model_row, preprocess_for
from edgetune.models.rows import TIMM
from edgetune.progress import Progress, Silent
from edgetune.recipe import FinetuneSection, ModelSection
from edgetune.training.accelerator import choose_accelerator
from edgetune.training.checkpoint import CUSTOM, MODEL_FILE, save_network
from edgetune.training.feeder import Feeder
from edgetune.training.loop import Course, Task, Watch, train
from edgetune.training.losses import objective
from edgetune.training.strategies import STRATEGIES, Layout, peak_rate

DATA_FILE = "data.json"
RESUME_FOLDER = ".resume"
CACHE_FOLDER = ".decoded"


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
    before the artifact is in its place must not cost the training.

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
        ConfigError: a strategy that the network cannot do, an empty split, wrong logits of `module`.
        MissingTool: `cuda` is asked for and there is no GPU.
        ArtifactError: the weights do not fit.
        StageError: training diverged, memory or disk do not do.
    """
    began = time.perf_counter()
    progress = progress or Silent()
    target = choose_accelerator(accelerator)
    for split in ("train", "val"):
        if not data.splits[split]:
            raise ConfigError(f"{data.root}: no images in the {split} split")
    into.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if target.name == "cuda" else []):
        if module is None:
            net, layout, preprocess, model = _known(model, data, settings.seed, weights)
        else:
            net, layout, preprocess, model = _own(module, model, preprocess, settings.strategy)
        phases = STRATEGIES[settings.strategy](settings, len(layout.groups))
        head = layout.head if any(phase.head_only for phase in phases) else ""
        _check_logits(net, preprocess, len(data.classes), head)
        feeder = Feeder(
            net, layout, data, preprocess, settings, target, progress, cache or into / CACHE_FOLDER
        )
        task = Task(
            layout=layout,
            phases=phases,
            feeds=feeder,
            loss=objective(settings, feeder.labels, len(data.classes)),
            settings=settings,
            accelerator=target,
            folder=into / RESUME_FOLDER,
            fingerprint=_fingerprint(model, data, settings, preprocess, net),
            watch=watch,
        )
        course = train(net, task, progress)
    save_network(net, into / MODEL_FILE)
    save_dataset(data, into / DATA_FILE)
    details = {
        "model": model.model_dump(mode="json"),
        "channels": preprocess.channels,
        "classes": len(data.classes),
        "settings": settings.model_dump(mode="json"),
        "training": _training(course, task, time.perf_counter() - began, feeder.decode_seconds),
    }
    made = Artifact(kind="checkpoint", classes=data.classes, preprocess=preprocess, details=details)
    return made.write(into)


def _known(
    model: ModelSection, data: Dataset, seed: int, weights: Path | None
) -> tuple[nn.Module, Layout, Preprocess, ModelSection]:
    """Build a network of `edgetune models list`."""
    if model.name == CUSTOM:
        raise ConfigError("model.name: custom needs your own torch module", hint="finetune(..., module=net)")
    row = model_row(model.name)
    channels = model.channels or (1 if data.gray else 3)
    preprocess = preprocess_for(model.name, channels, model.size_px)
    source: str | Path = weights or model.weights
    if source not in ("default", "none"):
        source = Path(source)
    net = build_model(
        model.name, len(data.classes), channels, source, model.adapter, preprocess.size_px, seed
    )
    return net, Layout(row.head, row.groups), preprocess, model


def _own(
    module: nn.Module, model: ModelSection, preprocess: Preprocess | None, strategy: str
) -> tuple[nn.Module, Layout, Preprocess, ModelSection]:
    """Take the user's network: its head is its last linear layer."""
    if preprocess is None:
        raise ConfigError(
            "a module of your own needs preprocess=Preprocess(...): how images become its input"
        )
    if strategy not in ("full", "feature-extractor"):
        raise ConfigError(
            f"finetune.strategy: {strategy!r} needs a network whose groups are known",
            hint="with a module of your own: full, or feature-extractor (its last linear layer learns)",
        )
    linear = [name for name, part in module.named_modules() if isinstance(part, nn.Linear) and name]
    if not linear and strategy == "feature-extractor":
        raise ConfigError(
            "finetune.strategy: feature-extractor needs a linear layer in your module", hint="full"
        )
    layout = Layout(linear[-1], (("",),)) if linear else Layout("", ())
    section = model.model_copy(
        update={"name": CUSTOM, "channels": preprocess.channels, "size_px": preprocess.size_px}
    )
    return copy.deepcopy(module).cpu(), layout, preprocess, section


@torch.no_grad()
def _check_logits(net: nn.Module, preprocess: Preprocess, classes: int, head: str) -> None:
    """Refuse a network that does not give logits [N, K], or whose `head`, where one is named, does not."""
    shape = (1, preprocess.channels, preprocess.size_px, preprocess.size_px)
    calls: list[tuple[Any, Any]] = []
    hook = net.get_submodule(head).register_forward_hook(lambda _, given, made: calls.append((given, made)))
    try:
        # Not zeros: of those a head without biases makes zeros, as anything behind it does.
        logits = net.eval()(torch.rand(shape, generator=torch.Generator().manual_seed(0)))
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"the network does not take inputs {list(shape)}: {error}") from error
    finally:
        hook.remove()
    if not isinstance(logits, torch.Tensor):
        raise ConfigError(f"the network gives a {type(logits).__name__}, not logits [N, {classes}]")
    if tuple(logits.shape) != (1, classes):
        raise ConfigError(f"the network gives {list(logits.shape)} for one input, not [1, {classes}]")
    if head:
        _check_head(head, calls, logits)


def _check_head(head: str, calls: list[tuple[Any, Any]], logits: torch.Tensor) -> None:
    """Refuse a head that cannot learn alone: its output must be the logits, of the one input it is given."""
    if len(calls) != 1:
        wrong = f"is called {len(calls)} times for one input"
    elif len(calls[0][0]) != 1:
        wrong = "is not given exactly one positional argument"
    elif not isinstance(calls[0][1], torch.Tensor) or not torch.equal(calls[0][1].flatten(1), logits):
        wrong = "does not make the network's logits"
    else:
        return
    raise ConfigError(
        f"finetune.strategy: the head of the network, {head!r}, {wrong}: it cannot learn alone",
        hint="finetune.strategy: full, or register the linear layer that makes the logits last",
    )


def _fingerprint(
    model: ModelSection,
    data: Dataset,
    settings: FinetuneSection,
    preprocess: Preprocess,
    net: nn.Module,
) -> str:
    """Hash everything that the trained weights depend on, the accelerator aside.

    The weights to begin with count by their values, wherever they came from.
    """
    if model.weights not in ("default", "none"):
        model = model.model_copy(update={"weights": "file"})
    # Copies: safetensors takes neither tensors that share memory nor other layouts.
    values = {name: t.detach().contiguous().clone() for name, t in net.state_dict().items()}
    parts: list[Any] = [
        [section.model_dump(mode="json") for section in (model, settings, preprocess)],
        data.digest,
        hashlib.sha256(save(values)).hexdigest(),
        library_versions(
            "edgetune", "torch", "torchvision", "pillow", "numpy", *["timm"] * model.name.startswith(TIMM)
        ),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _training(course: Course, task: Task, seconds: float, decode_seconds: float) -> dict[str, Any]:
    """Say how the training went, for the report."""
    best = course.history[course.best_epoch - 1]
    learning = sum(p.numel() for name, p in course.net.named_parameters() if name in course.names)
    return {
        "strategy": task.settings.strategy,
        "optimizer": task.settings.optimizer,
        "peak_learning_rate": peak_rate(task.settings),
        "accelerator": task.accelerator.name,
        "seconds": round(seconds, 2),
        "decode_seconds": round(decode_seconds, 2),
        "stopped_early": len(course.history) < task.epochs,
        "best_epoch": course.best_epoch,
        "val_top1": best["val_top1"],
        "parameters": sum(p.numel() for p in course.net.parameters()),
        "trained_parameters": learning,
        "epochs": course.history,
    }
