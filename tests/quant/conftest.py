"""Small networks, built node by node, on which placement and rendering can be read off."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper


class Net:
    """Builds a model by calls; every method returns the name of the tensor that it makes."""

    def __init__(self, channels: int = 16, size: int = 8, batch: int | str = 1, opset: int = 17) -> None:
        self.noise = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.batch, self.channels, self.size, self.opset = batch, channels, size, opset

    def op(self, kind: str, *inputs: str, name: str = "", domain: str = "", **attributes: Any) -> str:
        name = name or f"{kind.lower()}{len(self.nodes)}"
        node = helper.make_node(kind, list(inputs), [f"{name}_out"], name=name, domain=domain, **attributes)
        self.nodes.append(node)
        return f"{name}_out"

    def constant(self, value: np.ndarray, name: str = "") -> str:
        name = name or f"c{len(self.constants)}"
        self.constants[name] = value
        return name

    def conv(
        self,
        x: str,
        out: int = 16,
        into: int = 16,
        kernel: int = 3,
        group: int = 1,
        name: str = "",
        **more: Any,
    ) -> str:
        weight = self.noise.standard_normal((out, into // group, kernel, kernel)) / np.sqrt(into // group)
        bias = self.noise.standard_normal(out)
        names = [self.constant(v.astype(np.float32)) for v in (weight, bias)]
        pads = [kernel // 2] * 4
        return self.op("Conv", x, *names, name=name, group=group, pads=pads, **more)

    def gemm(self, x: str, into: int, out: int, name: str = "") -> str:
        weight = self.constant(self.noise.standard_normal((out, into)).astype(np.float32))
        bias = self.constant(self.noise.standard_normal(out).astype(np.float32))
        return self.op("Gemm", x, weight, bias, name=name, transB=1)

    def model(self, *outputs: str) -> ModelProto:
        shape = [self.batch, self.channels, self.size, self.size]
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        imports = [helper.make_opsetid("", self.opset)]
        imports += [helper.make_opsetid(d, 1) for d in sorted({n.domain for n in self.nodes} - {""})]
        return helper.make_model(graph, opset_imports=imports, ir_version=8)

    def inputs(self, count: int = 4) -> np.ndarray:
        shape = (count, self.channels, self.size, self.size)
        return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="session")
def net() -> Callable[..., Net]:
    return Net
