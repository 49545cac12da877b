"""Whole networks: torchvision's, untrained; and trained ones on photographs, where present."""

import io
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torchvision

from edgetune.artifact import Preprocess
from edgetune.data.images import load, normalise
from edgetune.engines.onnxruntime import Session
from edgetune.quant.quantizer import quantize_model

SHARED = Path(__file__).resolve().parents[3] / "shared"
PREPROCESS = Preprocess(
    resize_px=256, size_px=224, channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
NETWORKS = (
    "resnet18",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "squeezenet1_0",
    "shufflenet_v2_x1_0",
    "regnet_y_400mf",
)


def exported(net: torch.nn.Module, size: int) -> onnx.ModelProto:
    held = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net.eval(), (torch.zeros(1, 3, size, size),), held, dynamo=False, opset_version=17)
    return onnx.load_from_string(held.getvalue())


def similarity(model: onnx.ModelProto, made: onnx.ModelProto, inputs: np.ndarray, exact: bool) -> float:
    """SQNR in dB."""
    reference = Session(model.SerializeToString()).run(inputs)[0]
    found = Session(made.SerializeToString(), exact=exact).run(inputs)[0]
    return float(10 * np.log10(np.square(reference).sum() / np.square(reference - found).sum()))


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_of_network_in_both_renderings(name: str) -> None:
    torch.manual_seed(0)
    model = exported(torchvision.models.get_model(name), 64)
    inputs = np.random.default_rng(0).standard_normal((4, 3, 64, 64)).astype(np.float32)
    for rendering in ("weak", "cpu"):
        made, details = quantize_model(model, [inputs], rendering, "minmax")
        onnx.checker.check_model(made, full_check=True)
        assert similarity(model, made, inputs, rendering == "weak") > 12, rendering
        convolutions = [layer for layer in details["layers"] if layer["op"] == "Conv"]
        int8 = [layer for layer in convolutions if layer["precision"] == "INT8"]
        assert len(int8) > 0.7 * len(convolutions)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "ranges", "weak_db", "cpu_db"),
    [
        ("mobilenet_v2", "percentile", 18, 21.5),
        ("mobilenet_v2", "entropy", 17.5, 20),
        ("squeezenet1_0", "entropy", 21, 25),
    ],
)
def test_trained_networks_on_photographs(name: str, ranges: str, weak_db: float, cpu_db: float) -> None:
    weights = SHARED / "weights" / f"{name}-imagenet.pth"
    files = sorted((SHARED / "data" / "imagenet-samples").glob("*.jpg"))
    if not weights.is_file() or len(files) < 100:
        pytest.skip("the weights and photographs for this test are not here")
    net = torchvision.models.get_model(name)
    net.load_state_dict(torch.load(weights, weights_only=True))
    model = exported(net, 224)
    images = [normalise(load(path, PREPROCESS)[None], PREPROCESS) for path in files[::3]]
    for rendering, limit in (("weak", weak_db), ("cpu", cpu_db)):
        made, _ = quantize_model(model, images[::2], rendering, ranges)
        assert similarity(model, made, np.concatenate(images[1::2]), rendering == "weak") > limit
