"""A quantized network without Q/DQ: what its float part computes, and a scale for all that runs in INT8."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper
from standin_int8 import calibrated

from edgetune.profile import load_target
from edgetune.quant.graph import Graph
from edgetune.quant.implicit import render
from edgetune.quant.lint_view import reader_of
from edgetune.quant.plan import quantize_weights
from edgetune.quant.prepare import prepare
from edgetune.quant.quantizer import quantize_model

Nets = Callable[..., Any]
READER = reader_of(load_target("jetson-agx-orin-64gb@6.2"), dla=True)


def test_tensorrt_rounds_weights_to_the_same_integers(net: Nets, kit: SimpleNamespace) -> None:
    n = net()
    model = n.model(n.conv(n.op("Relu", n.conv("x", name="one")), name="two"))
    paired = kit.write(prepare(model), "weak", kit.feeds(model))
    stored = {item.name: numpy_helper.to_array(item) for item in paired.graph.initializer}
    made = Graph(render(paired, READER, [kit.feeds(model)["x"]])[0])
    seen = 0
    for node in made.nodes:
        if node.op_type == "Conv":
            levels, _ = quantize_weights(made.constants[node.input[1]], 0)
            name = node.input[1].replace("dequantized", "quantized")
            np.testing.assert_array_equal(levels, stored[name])
            seen += 1
    assert seen == 2


@pytest.mark.slow
@pytest.mark.parametrize("method", ["plain", "auto"])
def test_rounded_by_its_scales_it_gives_what_qdq_gives(net: Nets, kit: SimpleNamespace, method: str) -> None:
    n = net(size=16)
    skip = n.op("Relu", n.conv("x", name="stem"))
    low, high = (n.constant(np.float32(limit)) for limit in (0, 6))
    a = n.op("Clip", n.conv(skip, name="expand", kernel=1), low, high)
    a = n.op("Clip", n.conv(a, group=16, name="depthwise"), low, high)
    joined = n.op("Add", n.conv(a, name="project", kernel=1), skip, name="join")
    out = n.op("Relu", n.conv(joined, name="last"))
    head = n.gemm(n.op("Flatten", n.op("GlobalAveragePool", out)), 16, 24, name="head")
    model = n.model(head)
    noise = np.random.default_rng(0)
    batches = [noise.standard_normal((8, 16, 16, 16)).astype(np.float32) for _ in range(4)]
    paired, _ = quantize_model(model, batches, "weak", "mse", method=method)
    made, scales = render(paired, READER, batches[:2])
    kit.check_scales(made, scales, paired)
    assert {"expand_out", "project_out", "join_out"} <= set(scales)
    assert "head_out" not in scales
    assert made.graph.output[0].name == "head_out"
    engine, missing = calibrated(made, scales)
    assert "head_out" in missing
    errors = powers = lost = 0.0
    for row in np.random.default_rng(9).standard_normal((16, 1, 16, 16, 16)).astype(np.float32):
        right, found, fp32 = (kit.run(m, {"x": row})[0] for m in (paired, engine, model))
        errors += float(np.square(found - right).sum())
        lost += float(np.square(found - fp32).sum())
        powers += float(np.square(right).sum())
    assert 10 * np.log10(powers / errors) > 20
    assert 10 * np.log10(powers / lost) > 20


def test_what_stays_float_by_choice_gets_no_scale(net: Nets, kit: SimpleNamespace) -> None:
    n = net()
    a = n.op("Relu", n.conv("x", name="one"), name="relu")
    b = n.op("Tanh", n.conv(a, name="two"), name="tanh")
    model = n.model(n.conv(b, name="three"))
    batches = [n.inputs(4)]
    paired, _ = quantize_model(model, batches, "weak", "minmax", ["two"])
    _, scales = render(paired, READER, batches)
    # What "three" reads is quantized; what it makes leaves the network.
    assert set(scales) == {"x", "one_out", "relu_out", "tanh_out"}
