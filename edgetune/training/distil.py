"""What a student learns from a teacher: its answers, their shape, its features; mixed with labels or without.

It knows no teacher and no files. It may import errors, recipe, and this package's features (for the type), losses and
student.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from edgetune.errors import ConfigError
from edgetune.recipe import DistillSection, FinetuneSection
from edgetune.training.features import Batch
from edgetune.training.losses import objective
from edgetune.training.student import Student

# What a teacher says of a batch: its logits by this name, features by the names of their layers.
LOGITS = "logits"
Answers = dict[str, Tensor]
# Labels of images that have none; cross-entropy passes over them.
UNLABELLED = -100

# Hinton et al. worked with 1 to 20, and 4 has been usual since; standardised logits are small, so theirs is 2
# (Sun et al. 2024, section 4).
TEMPERATURES = {"soft": 4.0, "standardised": 2.0}


def soft_targets(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Match the teacher's softened distribution (Hinton et al. 2015, section 2, arXiv:1503.02531).

    Args:
        student: logits [N, K].
        teacher: logits [N, K], no gradient.
        temperature: softens both; the term is scaled by its square to keep the gradient's size.

    Returns:
        Scalar: the Kullback-Leibler divergence in nats times the temperature's square.
    """
    said = functional.log_softmax(student.float() / temperature, 1)
    wanted = functional.log_softmax(teacher.float() / temperature, 1)
    return functional.kl_div(said, wanted, reduction="batchmean", log_target=True) * temperature**2


def standardised(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Match the teacher's distribution after logits are standardised (Sun et al. 2024, CVPR, arXiv:2403.01993).

    Each row gets mean 0 and standard deviation 1, so that a small student need not reach the teacher's range of
    logits, only their relation. Of two classes nothing but their order is left.

    Args:
        student: logits [N, K], K at least 3.
        teacher: logits [N, K], no gradient.
        temperature: the base temperature.

    Returns:
        As `soft_targets`.
    """
    return soft_targets(_standard(student.float()), _standard(teacher.float()), temperature)


def _standard(logits: Tensor) -> Tensor:
    # As the paper's code: the sample's standard deviation, and its epsilon.
    return (logits - logits.mean(1, keepdim=True)) / (logits.std(1, keepdim=True) + 1e-7)


def matched_features(student: Tensor, teacher: Tensor) -> Tensor:
    """Match a layer's features, after FitNets (Romero et al. 2015, section 2.2, arXiv:1412.6550).

    Relative to the size of the teacher's, so that one weight does for any layer. Image by image: what an image
    adds to the loss does not depend on the batch, or the part of one, that it is in.

    Args:
        student: [N, C, H, W] or [N, C], projected to the teacher's width.
        teacher: the same; where heights and widths differ, the larger is averaged to the smaller.

    Returns:
        Scalar: the mean over images of the squared distance over the teacher's squared length, 0 where they are equal.
    """
    student, teacher = student.float(), teacher.float()
    if student.ndim == 4:
        height, width = (min(student.shape[axis], teacher.shape[axis]) for axis in (2, 3))
        student, teacher = (functional.adaptive_avg_pool2d(x, (height, width)) for x in (student, teacher))
    apart, length = ((x.square().flatten(1).mean(1)) for x in (student - teacher, teacher))
    return (apart / length.clamp(min=1e-12)).mean()


LOSSES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "soft": soft_targets,
    "standardised": standardised,
}


def check_loss(distil: DistillSection, classes: int) -> None:
    """Refuse a loss that tells nothing of so many classes.

    Raises:
        ConfigError: standardised logits of two classes.
    """
    if distil.loss == "standardised" and classes < 3:
        raise ConfigError(
            "distill.loss: standardised logits of two classes tell no more than their order",
            hint="loss: soft",
        )


def distilling(
    distil: DistillSection,
    settings: FinetuneSection,
    labels: Tensor,
    classes: int,
    student: Student,
    answers: Callable[[Batch], Answers],
) -> Callable[[Tensor, Batch], Tensor]:
    """Return the loss of a student's logits [N, K]; a scalar in nats.

    `labels` times what fine-tuning minimises, the rest times the distance to the teacher's answers, and
    `feature_weight` times that of features. Every image counts alike: where some have no label, theirs is 0.

    Args:
        distil: the losses and their weights.
        settings: of the loss on labels.
        labels: of the training split [N], `UNLABELLED` where there is none.
        classes: K.
        student: has the features of the batch that it was given last.
        answers: what the teacher says of a batch.
    """
    known = labels >= 0
    some, all_known = bool(known.any()), bool(known.all())
    on_labels = objective(settings, labels[known], classes)
    on_answers = LOSSES[distil.loss]
    temperature = distil.temperature or TEMPERATURES[distil.loss]

    def labelled(logits: Tensor, batch: Batch) -> Tensor:
        if all_known:
            return on_labels(logits, batch)
        rows = batch.targets >= 0
        if not rows.any():
            return logits.sum() * 0.0
        return on_labels(logits[rows], batch._replace(targets=batch.targets[rows])) * rows.float().mean()

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        said = answers(batch)
        total = logits.new_zeros((), dtype=torch.float32)
        if distil.labels < 1:
            total = total + (1 - distil.labels) * on_answers(logits, said[LOGITS], temperature)
        if distil.labels and some:
            total = total + distil.labels * labelled(logits, batch)
        for layer, feature in student.features().items():
            matched = matched_features(feature, said[distil.features[layer]])
            total = total + distil.feature_weight / len(distil.features) * matched
        return total

    return loss
