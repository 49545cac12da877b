"""A teacher that is ready to answer: a checkpoint in torch, or an ONNX file; its logits in the data's order.

It knows no student and no loss. It may import errors, artifact, data, engines, latency's statistics and this
package.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from edgetune.artifact import Artifact, How, Tokens
from edgetune.data.folders import Dataset, list_some
from edgetune.data.reader import batches, example, for_file
from edgetune.data.tokens import IDS, MASK, bucket, filled
from edgetune.engines.onnxruntime import Session
from edgetune.errors import ArtifactError, ConfigError, nearest
from edgetune.latency.statistics import wilson
from edgetune.models import operations
from edgetune.progress import Progress
from edgetune.training.accelerator import Accelerator
from edgetune.training.checkpoint import load_network
from edgetune.training.distil import LOGITS, Answers
from edgetune.training.student import Catcher

BATCH = 32
# Images on which a teacher without class names is looked at.
LOOKED_AT = 1000


@dataclass(frozen=True)
class Teacher:
    """A frozen network.

    Attributes:
        answer: from images as `preprocess` says, on the accelerator, to logits [N, K] and chosen features.
        preprocess: how images become its input.
        classes: names of its logits; empty: nobody says.
        shapes: of what is answered, for two images.
        digest: of what it was read from.
        parameters: how many.
        operations: multiply-accumulates for one image; None: not counted.
        said: what a person should know.
    """

    answer: Callable[[Tensor], Answers]
    preprocess: How
    classes: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]
    digest: str
    parameters: int
    operations: int | None
    said: tuple[str, ...] = ()

    @property
    def logits(self) -> int:
        """How many it gives."""
        return self.shapes[LOGITS][1]


def load_teacher(
    artifact: Artifact, accelerator: Accelerator, layers: Sequence[str] = (), module: nn.Module | None = None
) -> Teacher:
    """Read a teacher and let it answer once.

    Args:
        artifact: of the kind `checkpoint` or `onnx`.
        accelerator: where it runs; an ONNX file on the CPU in any case.
        layers: whose features are answered as well.
        module: the user's own network, where the checkpoint was made of one.

    Raises:
        ArtifactError: of another kind, corrupt, or without preprocessing.
        ConfigError: it gives no logits, or has no such layers.
    """
    if artifact.kind not in ("checkpoint", "onnx"):
        raise ArtifactError(
            f"{artifact.path}: a {artifact.kind!r} artifact cannot teach",
            hint="name a checkpoint, or the exported network",
        )
    preprocess = artifact.preprocess
    if preprocess is None:
        raise ArtifactError(
            f"{artifact.path}: does not say how inputs are preprocessed", hint="make it again"
        )
    net = None
    if artifact.kind == "onnx":
        answer, parameters = _onnx(artifact, preprocess, layers)
    else:
        net = load_network(artifact, module)
        answer, parameters = _torch(net, accelerator, layers), sum(p.numel() for p in net.parameters())
    noise = torch.from_numpy(example(preprocess, 2))
    try:
        answers = answer(accelerator.move(noise))
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"{artifact.path}: the teacher does not take inputs {list(noise.shape)}: {error}"
        ) from error
    _check_logits(artifact, answers[LOGITS])
    shapes = {name: tuple(found.shape) for name, found in answers.items()}
    cost = operations(net, preprocess) if net is not None else None
    return Teacher(answer, preprocess, artifact.classes, shapes, artifact.digest, parameters, cost)


def _torch(net: nn.Module, accelerator: Accelerator, layers: Sequence[str]) -> Callable[[Tensor], Answers]:
    accelerator.place(net).eval().requires_grad_(False)
    layers = tuple(dict.fromkeys(layers))
    catcher = Catcher(net, layers, "teacher")

    @torch.no_grad()
    def answer(images: Tensor) -> Answers:
        with accelerator.mixed(), accelerator.guarded():
            logits = net(images)
        catcher.shapes("teacher")
        missing = set(layers) - set(catcher.caught)
        if missing:
            raise ConfigError(
                f"distill.features: layer {min(missing)!r} of the teacher takes no part in its answer"
            )
        found = {LOGITS: logits, **{layer: catcher.caught.pop(layer) for layer in layers}}
        return {name: made.float() if isinstance(made, Tensor) else made for name, made in found.items()}

    return answer


def _onnx(
    artifact: Artifact, preprocess: How, layers: Sequence[str]
) -> tuple[Callable[[Tensor], Answers], int]:
    if layers:
        raise ConfigError(
            f"distill.features: {artifact.path} is an ONNX file, whose layers cannot be matched",
            hint="name the checkpoint that it was exported from, or leave features out",
        )
    import onnx

    path = artifact.file("model.onnx")
    session = Session(path)
    graph = onnx.load(path, load_external_data=False).graph
    weights = sum(int(np.prod(tensor.dims)) for tensor in graph.initializer)
    if isinstance(preprocess, Tokens):
        return _reading(session, preprocess), weights
    spec = session.inputs[0]
    last = len(spec.shape) == 4 and spec.shape[1] != preprocess.channels
    scale = torch.tensor(preprocess.std).view(-1, 1, 1), torch.tensor(preprocess.mean).view(-1, 1, 1)

    def answer(images: Tensor) -> Answers:
        inputs = images.cpu()
        if spec.dtype == "uint8":
            inputs = ((inputs * scale[0] + scale[1]) * 255).round().clamp(0, 255).to(torch.uint8)
        inputs = inputs.permute(0, 2, 3, 1) if last else inputs
        return {LOGITS: torch.from_numpy(session.run(inputs.contiguous().numpy())[0]).to(images.device)}

    return answer, weights


def _reading(session: Session, how: Tokens) -> Callable[[Tensor], Answers]:
    """Return what an ONNX file says of tokens, filled up to a length that it takes."""

    def answer(tokens: Tensor) -> Answers:
        ids = [text[IDS, text[MASK] > 0] for text in tokens.cpu().numpy()]
        given = for_file(filled(ids, how.pad, bucket(tokens.shape[2], how)), how, session.inputs)
        return {LOGITS: torch.from_numpy(session.run(given)[0]).to(tokens.device)}

    return answer


def _check_logits(artifact: Artifact, logits: object) -> None:
    """Refuse what cannot be a classifier's logits [N, K]."""
    what = list(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != 2 or logits.shape[1] < 2:
        raise ConfigError(
            f"{artifact.path}: the teacher gives no logits: {what} for two inputs, not [2, K]",
            hint="a teacher is a classifier with one value per class",
        )
    if not logits.is_floating_point() or not bool(torch.isfinite(logits).all()):
        raise ConfigError(f"{artifact.path}: the teacher gives values that are no finite numbers")
    sums = logits.double().sum(1)
    if bool((logits >= 0).all()) and bool(torch.allclose(sums, torch.ones_like(sums), atol=1e-3)):
        raise ConfigError(
            f"{artifact.path}: the teacher gives no logits but probabilities: its rows add up to 1",
            hint="export it without the softmax at its end",
        )


def in_order(teacher: Teacher, data: Dataset, progress: Progress) -> Teacher:
    """Put a teacher's logits into the order of the data's classes, by their names.

    A teacher without names is taken as it is only where images prove it: as many logits as classes, on
    validation images right more often than chance, and no other order of its logits would fit them better.

    Raises:
        ConfigError: it does not know one of the classes, or its order is not proven.
    """
    if teacher.classes:
        if len(teacher.classes) != teacher.logits:
            raise ConfigError(
                f"the teacher gives {teacher.logits} logits, and {len(teacher.classes)} names are known of them",
                hint="distill.teacher.classes: one name for each logit, in their order",
            )
        missing = [name for name in data.classes if name not in teacher.classes]
        if missing:
            raise ConfigError(
                f"the teacher does not know {len(missing)} of the data's {len(data.classes)} classes: "
                f"{', '.join(missing)}",
                hint=f"{nearest(missing[0], teacher.classes)}\n"
                "a network of edgetune models list can learn them first: distill.teacher.finetune",
            )
        columns = [teacher.classes.index(name) for name in data.classes]
    else:
        if teacher.logits != len(data.classes):
            raise ConfigError(
                f"the teacher gives {teacher.logits} logits without names, the data has {len(data.classes)} "
                "classes",
                hint="name its logits: distill.teacher.classes: [...]\n"
                "or let it learn the data's classes first: distill.teacher.finetune",
            )
        columns = list(range(teacher.logits))
        found = _proven(teacher, data, progress)
        progress.line(found)
        teacher = replace(teacher, said=(found,))
    shapes = teacher.shapes | {LOGITS: (2, len(columns))}
    if columns == list(range(teacher.logits)):
        return replace(teacher, classes=data.classes)
    places, own = torch.tensor(columns), teacher.answer

    def answer(images: Tensor) -> Answers:
        found = own(images)
        return found | {LOGITS: found[LOGITS][:, places.to(found[LOGITS].device)]}

    return replace(teacher, answer=answer, shapes=shapes, classes=data.classes)


def logits_of(
    teacher: Teacher, data: Dataset, split: str, progress: Progress, most: int = 0, device: str = "cpu"
) -> Tensor:
    """Return what a teacher says of a split's images as it sees them itself, [N, K] on the CPU."""
    samples = data.splits[split][:most] if most else data.splits[split]
    progress.begin("teacher", total=len(samples))
    try:
        found = [
            teacher.answer(torch.from_numpy(batch).to(device))[LOGITS].cpu()
            for batch in batches(data.root, samples, teacher.preprocess, BATCH, progress)
        ]
    finally:
        progress.end()
    return torch.cat(found)


def _proven(teacher: Teacher, data: Dataset, progress: Progress) -> str:
    """Refuse a teacher whose logits are not in the order of the data's classes; else say what proves it."""
    from edgetune.data.subset import interleaved

    samples = interleaved(data.splits["val"])
    looked = replace(data, splits={**data.splits, "val": samples})
    said = logits_of(teacher, looked, "val", progress, LOOKED_AT).argmax(1).numpy()
    truth = np.array([sample.label for sample in samples[:LOOKED_AT]])
    classes = len(data.classes)
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (truth, said), 1)
    rows, best = linear_sum_assignment(counts, maximize=True)
    right = int(counts.trace())
    share = f"{right} of {truth.size} validation {data.noun}s"
    hint = "name its logits in their order: distill.teacher.classes: [...]"
    if int(counts[rows, best].sum()) > right:
        moved = [
            f"its logit {there} rather means {data.classes[here]!r}"
            for here, there in enumerate(best)
            if here != there
        ]
        raise ConfigError(
            f"the teacher's logits have no names, and in the order of the data's classes they fit {share}; "
            f"another order fits better: {list_some(moved)}",
            hint=hint,
        )
    if wilson(right, truth.size).low <= 1 / classes:
        raise ConfigError(
            f"the teacher's logits have no names, and in the order of the data's classes they fit only {share}: "
            "no more than chance",
            hint=hint,
        )
    return (
        f"the teacher's {classes} logits have no names; they are taken in the order of the data's classes, "
        f"which fits best, and fits {share}"
    )
