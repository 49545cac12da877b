"""What training minimises.

It knows no network and no loop. It may import recipe, and features for the types.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from edgetune.recipe import FinetuneSection
from edgetune.training.features import Batch


def balanced_weights(labels: Tensor, classes: int) -> Tensor:
    """Weigh classes by the inverse of their share, so that each counts alike.

    Args:
        labels: [N].
        classes: K.

    Returns:
        [K]: N / (K * images of the class), as scikit-learn's `balanced` (King and Zeng 2001).
    """
    counts = torch.bincount(labels, minlength=classes).clamp(min=1)
    return len(labels) / (classes * counts.float())


def objective(settings: FinetuneSection, labels: Tensor, classes: int) -> Callable[[Tensor, Batch], Tensor]:
    """Return the loss of logits [N, K] and a batch's targets; a scalar in nats.

    Label smoothing: Szegedy et al. 2016, section 7, arXiv:1512.00567.

    Args:
        settings: label smoothing and whether classes are weighed.
        labels: of the training split [N].
        classes: K.
    """
    weights = balanced_weights(labels, classes) if settings.class_weights == "balanced" else None

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        weight = weights.to(logits.device) if weights is not None else None
        smoothing = settings.label_smoothing
        return functional.cross_entropy(
            logits.float(), batch.targets, weight=weight, label_smoothing=smoothing
        )

    return loss
