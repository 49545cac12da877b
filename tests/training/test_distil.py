"""What a student learns from a teacher: each loss against its formula, and the mix with labels."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from edgetune.artifact import Preprocess
from edgetune.errors import ConfigError
from edgetune.recipe import DistillSection, FinetuneSection
from edgetune.training.distil import (
    LOGITS,
    UNLABELLED,
    check_loss,
    distilling,
    matched_features,
    soft_targets,
    standardised,
)
from edgetune.training.features import Batch
from edgetune.training.student import Student

PREPROCESS = Preprocess(resize_px=8, size_px=8, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
SEEDS = st.integers(0, 10_000)


def logits(seed: int, rows: int = 5, classes: int = 4) -> torch.Tensor:
    return 3 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))


def softmax(values: np.ndarray) -> np.ndarray:
    raised = np.exp(values - values.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


@given(SEEDS, st.floats(0.5, 20))
def test_soft_targets_are_the_divergence_of_softened_answers(seed: int, temperature: float) -> None:
    student, teacher = logits(seed), logits(seed + 1)
    p, q = (softmax(x.double().numpy() / temperature) for x in (teacher, student))
    expected = temperature**2 * (p * (np.log(p) - np.log(q))).sum(1).mean()
    assert soft_targets(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert soft_targets(teacher, teacher, temperature).item() == pytest.approx(0, abs=1e-5)


def test_temperature_keeps_the_gradient_s_size() -> None:
    # Hinton et al. 2015, section 2: gradients of soft targets scale as 1/T^2, which the square makes good.
    sizes = []
    for temperature in (20.0, 40.0):
        student = (0.1 * logits(1)).requires_grad_()
        soft_targets(student, 0.1 * logits(2), temperature).backward()
        assert student.grad is not None
        sizes.append(float(student.grad.norm()))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)


@given(SEEDS, st.floats(0.1, 10), st.floats(-5, 5))
def test_standardised_logits_know_neither_scale_nor_shift(seed: int, scale: float, shift: float) -> None:
    student, teacher = logits(seed), logits(seed + 1)
    moved = standardised(student * scale + shift, teacher, 2.0)
    assert moved.item() == pytest.approx(standardised(student, teacher, 2.0).item(), rel=1e-3, abs=1e-5)
    assert standardised(teacher * scale + shift, teacher, 2.0).item() == pytest.approx(0, abs=1e-4)


def test_standardised_logits_of_two_classes_are_refused() -> None:
    distil = section(loss="standardised")
    check_loss(distil, 3)
    check_loss(section(), 2)
    with pytest.raises(ConfigError, match="two classes tell no more than their order"):
        check_loss(distil, 2)


def test_matched_features_are_relative_and_pooled_to_the_smaller() -> None:
    theirs = torch.rand(2, 5, 4, 4) + 1
    assert matched_features(theirs, theirs).item() == 0
    assert matched_features(torch.zeros_like(theirs), theirs).item() == pytest.approx(1)
    large = functional.interpolate(theirs, scale_factor=2)
    assert matched_features(large, theirs).item() == pytest.approx(0)
    assert matched_features(theirs, large).item() == pytest.approx(0)
    vectors = torch.rand(3, 7)
    assert matched_features(2 * vectors, vectors).item() == pytest.approx(1)


def test_what_an_image_adds_to_matching_does_not_depend_on_its_batch() -> None:
    ours, theirs = torch.rand(6, 5, 4, 4), torch.rand(6, 5, 4, 4) * torch.arange(1, 7).view(-1, 1, 1, 1)
    parts = [matched_features(ours[rows], theirs[rows]).item() for rows in (slice(2), slice(2, 6))]
    assert matched_features(ours, theirs).item() == pytest.approx((2 * parts[0] + 4 * parts[1]) / 6)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images).mean((2, 3)))


def section(**values: Any) -> DistillSection:
    return DistillSection.model_validate({"teacher": {"name": "x"}, **values})


def batch_of(targets: list[int]) -> Batch:
    count = len(targets)
    return Batch(torch.rand(count, 3, 8, 8), torch.tensor(targets), torch.arange(count), 1)


def loss_of(
    distil: DistillSection, labels: list[int], teacher: torch.Tensor, **settings: Any
) -> tuple[Any, Student]:
    student = Student(Net(), PREPROCESS, distil.features, {"their": (2, 6, 3, 3)})
    answers = {LOGITS: teacher, "their": torch.ones(len(labels), 6, 3, 3)}
    finetune = FinetuneSection.model_validate({"label_smoothing": 0.0, **settings})
    return distilling(distil, finetune, torch.tensor(labels), 3, student, lambda _: answers), student


def test_labels_and_answers_are_mixed_by_weight() -> None:
    labels, said, theirs = [0, 1, 2, 1], logits(1, 4, 3), logits(2, 4, 3)
    soft = soft_targets(said, theirs, 4.0).item()
    hard = functional.cross_entropy(said, torch.tensor(labels)).item()
    for weight in (0.0, 0.3):
        loss, _ = loss_of(section(labels=weight), labels, theirs)
        found = loss(said, batch_of(labels)).item()
        assert found == pytest.approx(weight * hard + (1 - weight) * soft, rel=1e-5)


def test_images_without_labels_count_by_their_answers_alone() -> None:
    labels, said, theirs = [0, UNLABELLED, 2, UNLABELLED], logits(1, 4, 3), logits(2, 4, 3)
    loss, _ = loss_of(section(labels=0.5), labels, theirs)
    each = functional.cross_entropy(said, torch.tensor(labels), reduction="sum").item() / 4
    expected = 0.5 * each + 0.5 * soft_targets(said, theirs, 4.0).item()
    assert loss(said, batch_of(labels)).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_a_batch_without_any_label_has_a_finite_loss(weights: str) -> None:
    theirs = logits(2, 2, 3)
    loss, _ = loss_of(section(labels=0.5), [0, 1, 2, UNLABELLED, UNLABELLED], theirs, class_weights=weights)
    said = logits(1, 2, 3).requires_grad_()
    found = loss(said, batch_of([UNLABELLED] * 2))
    assert found.item() == pytest.approx(0.5 * soft_targets(said, theirs, 4.0).item(), rel=1e-5)
    found.backward()
    assert said.grad is not None
    assert torch.isfinite(said.grad).all()


def test_features_pull_where_they_learn_and_nowhere_else() -> None:
    distil = section(features={"body": "their"}, feature_weight=2.0, labels=0)
    labels = [0, 1, 2]
    theirs = logits(2, 3, 3)
    loss, student = loss_of(distil, labels, theirs)
    batch = batch_of(labels)
    said = student(batch.inputs)
    body = student.projections["0"](student.net.body(batch.inputs))
    pulled = 2 * matched_features(body, torch.ones(3, 6, 3, 3))
    student(batch.inputs)
    found = loss(said, batch)
    assert found.item() == pytest.approx((soft_targets(said, theirs, 4.0) + pulled).item(), rel=1e-5)
    student.net.body.requires_grad_(False)
    said = student(batch.inputs)
    assert loss(said, batch).item() == pytest.approx(soft_targets(said, theirs, 4.0).item(), rel=1e-5)
