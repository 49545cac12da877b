from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from edgetune.training.accelerator import choose_accelerator
from edgetune.training.evaluate import predict_logits, score
from edgetune.training.features import Images, image_feed

CPU = choose_accelerator("cpu")


def test_score_is_plain_cross_entropy_and_accuracy_over_all_images(images: Images, tiny: Any) -> None:
    net = tiny()
    found = score(net.train(), image_feed(images, 7, CPU, seed=0, shuffled=False), CPU)
    inputs = next(image_feed(images, 31, CPU, seed=0, shuffled=False).batches(1))[0]
    with torch.no_grad():
        logits = net.eval()(inputs)
    assert found.loss == pytest.approx(functional.cross_entropy(logits, images.labels).item(), rel=1e-5)
    assert found.top1 == pytest.approx((logits.argmax(1) == images.labels).float().mean().item())


def test_logits_do_not_depend_on_the_batch(tiny: Any) -> None:
    net = tiny().train()
    inputs = np.random.default_rng(0).normal(size=(5, 3, 8, 8)).astype(np.float32)
    whole = predict_logits(net, [inputs])
    assert whole.shape == (5, 3)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(predict_logits(net, [inputs[:2], inputs[2:]]), whole, atol=1e-6)


def test_no_batches_give_no_logits(tiny: Any) -> None:
    assert predict_logits(tiny(), []).shape == (0, 0)
