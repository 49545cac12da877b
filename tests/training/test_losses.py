import torch
from torch import Tensor

from edgetune.recipe import FinetuneSection
from edgetune.training.features import Batch
from edgetune.training.losses import balanced_weights, objective


def batch(targets: Tensor) -> Batch:
    return Batch(torch.empty(0), targets, torch.arange(len(targets)), 1)


def test_balanced_weights_make_classes_count_alike() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    weights = balanced_weights(labels, 2)
    torch.testing.assert_close(weights, torch.tensor([4 / 6, 4 / 2]))
    assert 3 * weights[0] == weights[1]


def test_a_class_without_images_does_not_divide_by_zero() -> None:
    assert torch.isfinite(balanced_weights(torch.tensor([0, 0]), 2)).all()


def test_rare_class_weighs_more() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    logits = torch.tensor([[2.0, 0.0]] * 4)
    plain = objective(FinetuneSection(label_smoothing=0.0), labels, 2)(logits, batch(labels))
    balanced = objective(FinetuneSection(label_smoothing=0.0, class_weights="balanced"), labels, 2)(
        logits, batch(labels)
    )
    assert balanced > plain, "the wrong one is the rare one"


def test_smoothing_asks_for_less_than_certainty() -> None:
    labels = torch.tensor([0])
    smooth = objective(FinetuneSection(label_smoothing=0.1), labels, 2)
    sure, modest = torch.tensor([[30.0, 0.0]]), torch.tensor([[3.0, 0.0]])
    assert smooth(sure, batch(labels)) > smooth(modest, batch(labels))


def test_class_numbers_and_shares_agree() -> None:
    labels = torch.tensor([0, 1, 1])
    logits = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    loss = objective(FinetuneSection(), labels, 2)
    torch.testing.assert_close(loss(logits, batch(labels)), loss(logits, batch(torch.eye(2)[labels])))
