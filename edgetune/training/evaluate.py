"""Logits, loss and top-1 of a network, without learning anything.

It knows no optimizer and no files. It may import this package's accelerator, features and ranks.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from edgetune.training import ranks
from edgetune.training.accelerator import Accelerator
from edgetune.training.features import Feed


@dataclass(frozen=True)
class Score:
    """How good a network is on a split.

    Attributes:
        loss: mean cross-entropy in nats, without smoothing and weights.
        top1: share of inputs whose class gets the largest logit.
    """

    loss: float
    top1: float


@torch.inference_mode()
def predict_logits(
    net: nn.Module, batches: Iterable[NDArray[Any]], device: torch.device | str = "cpu"
) -> NDArray[np.float32]:
    """Run a network in eval mode over batches.

    Args:
        net: on `device`.
        batches: preprocessed inputs [N, ...].
        device: where the network is.

    Returns:
        Logits [images, K], float32; [0, 0] where there are no batches.
    """
    net.eval()
    found = [net(torch.from_numpy(batch).to(device)).float().cpu().numpy() for batch in batches]
    return np.concatenate(found) if found else np.zeros((0, 0), np.float32)


@torch.inference_mode()
def score(net: nn.Module, feed: Feed, accelerator: Accelerator) -> Score:
    """Evaluate a network, put in eval mode, on all of a feed; of several processes each takes its share."""
    net.eval()
    found = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
    for batch in feed.batches(1):
        if not len(batch.inputs):
            continue
        with accelerator.mixed(), accelerator.guarded():
            logits: Tensor = net(batch.inputs).flatten(1).float()
        found[0] += functional.cross_entropy(logits, batch.targets, reduction="sum")
        found[1] += (logits.argmax(1) == batch.targets).sum()
    loss, right = ranks.total(found).tolist()
    return Score(loss / feed.images, right / feed.images)
