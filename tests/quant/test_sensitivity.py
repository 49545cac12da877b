"""Which layers hurt: every quantized layer is heard, the one that is the output too."""

from collections.abc import Callable
from typing import Any

import numpy as np

from edgetune.quant.quantizer import quantize_model
from edgetune.quant.sensitivity import CEILING_DB


def test_the_layer_that_is_the_output_is_compared_too(net: Callable[..., Any]) -> None:
    n = net()
    pooled = n.op("GlobalAveragePool", n.op("Relu", n.conv("x", name="first"), name="act"), name="pool")
    out = n.gemm(n.op("Flatten", pooled, name="flat"), 16, 20, name="last")
    _, details = quantize_model(n.model(out), [n.inputs()], "weak", "minmax")
    heard = {layer["name"]: layer["sqnr_db"] for layer in details["layers"] if "sqnr_db" in layer}
    assert set(heard) == {"first", "last"}
    assert all(np.isfinite(sqnr) and sqnr < CEILING_DB for sqnr in heard.values())
