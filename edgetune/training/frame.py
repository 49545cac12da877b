"""What stands around a training: the network before it, and the artifact after it.

Every stage that trains shares it. It knows no files of images. It may import errors, artifact, recipe, data
(for the types), models and this package.
"""

import copy
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import nn

from edgetune.artifact import Artifact, How, Preprocess, Tokens, library_versions
from edgetune.data.folders import DATA_FILE, Dataset, save_dataset
from edgetune.data.reader import example
from edgetune.errors import ConfigError
from edgetune.learning import HF
from edgetune.models import build_model, model_row, preprocess_for
from edgetune.models.rows import TIMM
from edgetune.recipe import FinetuneSection, ModelSection
from edgetune.training import ranks
from edgetune.training.checkpoint import CONFIG_FILE, CUSTOM, MODEL_FILE, save_network
from edgetune.training.course import Course
from edgetune.training.loop import Diverged, Task
from edgetune.training.strategies import STRATEGIES, Layout, Phase, peak_rate

RESUME_FOLDER = ".resume"
CACHE_FOLDER = ".decoded"


class Begun(NamedTuple):
    """A network before its training.

    Attributes:
        net: on the CPU.
        layout: its parts.
        preprocess: how images or texts become its input.
        model: the section that tells how to build it again.
        phases: which parts learn in which epochs.
        settings: how it learns, with the rate that its kind of network takes.
    """

    net: nn.Module
    layout: Layout
    preprocess: How
    model: ModelSection
    phases: tuple[Phase, ...]
    settings: FinetuneSection


def begin_network(
    model: ModelSection,
    data: Dataset,
    settings: FinetuneSection,
    module: nn.Module | None = None,
    preprocess: Preprocess | None = None,
    weights: Path | None = None,
) -> Begun:
    """Build a network of `edgetune models list`, or take a copy of the user's own; arguments as `finetune`'s.

    Raises:
        ConfigError: a split without images, an unknown network, wrong logits, or a strategy that it cannot do.
        ArtifactError: the weights do not fit.
    """
    for split in ("train", "val"):
        if not data.splits[split]:
            raise ConfigError(f"{data.root}: no {data.noun}s in the {split} split")
    how: How
    if module is None:
        net, layout, how, model, settings = _known(model, data, settings, weights)
    else:
        net, layout, how, model = _own(module, model, preprocess, settings.strategy)
    phases = STRATEGIES[settings.strategy](settings, len(layout.groups))
    head = layout.head if any(phase.head_only for phase in phases) else ""
    _check_logits(net, how, len(data.classes), head)
    return Begun(net, layout, how, model, phases, settings)


def _known(
    model: ModelSection, data: Dataset, settings: FinetuneSection, weights: Path | None
) -> tuple[nn.Module, Layout, How, ModelSection, FinetuneSection]:
    """Build a network of `edgetune models list`, or of a folder that `weights` names."""
    if model.name == CUSTOM:
        raise ConfigError("model.name: custom needs your own torch module", hint="finetune(..., module=net)")
    name, given = model.name, weights or model.weights
    if weights is not None and weights.is_dir():
        fewer = "".join(model.name.partition("#")[1:])
        name, given = (
            f"{HF}{weights.absolute()}{fewer}",
            "default" if model.weights == "file" else model.weights,
        )
    row = model_row(name)
    channels = model.channels or (1 if data.gray else 3)
    how = preprocess_for(name, channels, model.size_px, model.length)
    noun = "text" if isinstance(how, Tokens) else "image"
    if data.noun != noun:
        raise ConfigError(
            f"model.name: {model.name} takes {noun}s, and the data holds {data.noun}s",
            hint="data.task says which; texts take hf:NAME",
        )
    # The leader's weights go to all processes: the others need no file and no download of their own.
    source: str | Path = "none" if ranks.rank() else given
    if source not in ("default", "none"):
        source = Path(source)
    size_px = 0 if isinstance(how, Tokens) else how.size_px
    net = build_model(name, len(data.classes), channels, source, model.adapter, size_px, settings.seed)
    rate = peak_rate(settings, net, 1.0 if given == "none" else row.rate)
    settings = settings.model_copy(update={"learning_rate": rate})
    return net, Layout(row.head, row.groups), how, model, settings


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
def _check_logits(net: nn.Module, how: How, classes: int, head: str) -> None:
    """Refuse a network that does not give logits [N, K], or whose `head`, where one is named, does not."""
    given = torch.from_numpy(example(how, 1))
    calls: list[tuple[Any, Any]] = []
    hook = net.get_submodule(head).register_forward_hook(lambda _, given, made: calls.append((given, made)))
    try:
        # Not zeros: of those a head without biases makes zeros, as anything behind it does.
        logits = net.eval()(given)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"the network does not take inputs {list(given.shape)}: {error}") from error
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


def fingerprint(begun: Begun, data: Dataset, settings: FinetuneSection, *more: Any) -> str:
    """Hash everything that the trained weights depend on, the accelerator aside.

    The weights to begin with count by their values, wherever they came from.

    Args:
        begun: the network before its training.
        data: the images.
        settings: how it learns.
        more: values that JSON knows, of what else the weights depend on.
    """
    model = begun.model
    if model.weights not in ("default", "none"):
        model = model.model_copy(update={"weights": "file"})
    # Copies: safetensors takes neither tensors that share memory nor other layouts.
    values = {name: t.detach().contiguous().clone() for name, t in begun.net.state_dict().items()}
    parts: list[Any] = [
        [section.model_dump(mode="json") for section in (model, settings, begun.preprocess)],
        data.digest,
        hashlib.sha256(save(values)).hexdigest(),
        library_versions(
            "edgetune",
            "torch",
            "torchvision",
            "pillow",
            "numpy",
            *["timm"] * model.name.startswith(TIMM),
            *["transformers", "tokenizers"] * model.name.startswith(HF),
        ),
        *more,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def training_told(
    course: Course,
    task: Task,
    net: nn.Module,
    seconds: float,
    decode_seconds: float,
    features_earlier: bool = False,
    texts_cut: int = 0,
) -> dict[str, Any]:
    """Say how the training went, for the report.

    Args:
        course: of the training.
        task: what it was given.
        net: the network that is kept; what was trained beside it does not count.
        seconds: that all of it took.
        decode_seconds: of these, until images were decoded.
        features_earlier: whether a frozen network's features were there already.
        texts_cut: texts of the training split that are longer than what the network takes.
    """
    best = course.history[course.best_epoch - 1]
    kept = {id(parameter) for parameter in net.parameters()}
    learned = (p for name, p in course.net.named_parameters() if name in course.names and id(p) in kept)
    return {
        "strategy": task.settings.strategy,
        "optimizer": task.settings.optimizer,
        "peak_learning_rate": peak_rate(task.settings, net),
        "accelerator": task.accelerator.name,
        "processes": ranks.size(),
        "batch": task.settings.batch * task.settings.accumulate,
        "micro_batch": course.micro_batch,
        "deterministic": task.settings.deterministic,
        "compile": {phase: verdict.why for phase, verdict in course.compiled.items()},
        "seconds": round(seconds, 2),
        "decode_seconds": round(decode_seconds, 2),
        "features_earlier": features_earlier,
        **({"texts_cut": texts_cut} if texts_cut else {}),
        "stopped_early": len(course.history) < task.epochs,
        "best_epoch": course.best_epoch,
        "val_top1": best["val_top1"],
        "parameters": sum(p.numel() for p in net.parameters()),
        "trained_parameters": sum(p.numel() for p in learned),
        "epochs": course.history,
    }


def write_checkpoint(
    begun: Begun,
    data: Dataset,
    into: Path,
    training: dict[str, Any],
    parents: dict[str, str] | None = None,
    **details: Any,
) -> Artifact:
    """Write the network as it is now as a `checkpoint` artifact: model.safetensors and data.json.

    Args:
        begun: holds the network.
        data: the images it was trained with.
        into: a folder.
        training: of `training_told`.
        parents: digests of what it was made from.
        details: more of what the artifact's description tells.

    Returns:
        The artifact; of several processes only the first one writes it.
    """
    told = {
        "model": begun.model.model_dump(mode="json"),
        "channels": 0 if isinstance(begun.preprocess, Tokens) else begun.preprocess.channels,
        "classes": len(data.classes),
        "training": training,
        **details,
    }
    made = Artifact(
        kind="checkpoint",
        classes=data.classes,
        preprocess=begun.preprocess,
        parents=parents or {},
        details=told,
    )
    if ranks.rank():
        return made
    save_network(begun.net, into / MODEL_FILE)
    if isinstance(begun.preprocess, Tokens):
        # The folder of its weights may be gone when it is built again.
        (into / CONFIG_FILE).write_text(str(begun.net.config), encoding="utf-8")
    save_dataset(data, into / DATA_FILE)
    return made.write(into)


@contextmanager
def keeping_best(begun: Begun, data: Dataset, task: Task, into: Path) -> Iterator[None]:
    """Keep the best epoch of a training that diverges, as an artifact of its own beside `into`.

    Other settings would begin in an empty folder, and what was learned would be gone.
    """
    try:
        yield
    except Diverged as stop:
        if not stop.course.best_epoch or ranks.rank():
            raise
        folder = into.with_name(f"{into.name.removesuffix('.partial')}-diverged")
        folder.mkdir(exist_ok=True)
        write_checkpoint(begun, data, folder, training_told(stop.course, task, begun.net, 0.0, 0.0))
        best = stop.course.history[stop.course.best_epoch - 1]
        kept = (
            f"epoch {best['epoch']} ({100 * best['val_top1']:.1f}% on val), the best before it, is kept in "
        )
        raise Diverged(
            stop.message,
            f"{stop.hint}\n{kept}{folder}: edgetune predict, export and so on take it",
            stop.course,
        ) from stop
