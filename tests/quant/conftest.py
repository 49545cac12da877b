"""Small networks, built node by node, on which placement and rendering can be read off."""

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgetune.engines.onnxruntime import Session
from edgetune.profile import load_target
from edgetune.quant import cpu, half, placement, tensorrt
from edgetune.quant.graph import Graph
from edgetune.quant.lint_view import reader_of, view_of
from edgetune.quant.plan import WEIGHTED, Plan, is_copy
from edgetune.quant.trace import needed_by

READER = reader_of(load_target("jetson-agx-orin-64gb@6.2"), dla=True)


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


def feeds(model: ModelProto, seed: int = 1) -> dict[str, np.ndarray]:
    """Normally distributed input for every input of a model, dynamic dimensions taken as 2."""
    noise = np.random.default_rng(seed)
    constant = {item.name for item in model.graph.initializer}
    return {
        value.name: noise.standard_normal(
            [dim.dim_value or 2 for dim in value.type.tensor_type.shape.dim]
        ).astype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
        for value in model.graph.input
        if value.name not in constant
    }


def peaks(
    graph: Graph, tensors: Iterable[str], feed: dict[str, np.ndarray]
) -> dict[str, tuple[float, float]]:
    """The extremes of tensors on one input."""
    model = ModelProto()
    model.CopyFrom(graph.model)
    computed = [name for name in tensors if name not in feed]
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in computed
    )
    values = feed
    if computed:
        found = Session(model.SerializeToString(), threads=1).run_once(feed)
        values = feed | dict(zip(computed, found[-len(computed) :], strict=True))
    return {name: (float(values[name].min()), float(values[name].max())) for name in tensors}


def merge_ranges(plan: Plan, ranges: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Widen the range of every quantized tensor to that of its group."""
    members: dict[str, list[tuple[float, float]]] = {}
    for tensor in plan.reads:
        members.setdefault(plan.groups[tensor], []).append(ranges[tensor])
    widest = {group: (min(r[0] for r in found), max(r[1] for r in found)) for group, found in members.items()}
    return {tensor: widest[plan.groups[tensor]] for tensor in plan.reads}


def magnitudes(graph: Graph, feed: dict[str, np.ndarray]) -> dict[str, float]:
    """The largest magnitude of every float tensor on one input."""
    tensors = [name for node in graph.nodes for name in node.output if graph.is_known_float(name)]
    return {name: max(abs(low), abs(high)) for name, (low, high) in peaks(graph, tensors, feed).items()}


def write(graph: Graph, how: str, feed: dict[str, np.ndarray]) -> ModelProto:
    """A prepared network with Q/DQ, scales from the extremes of one input: `weak`, `strong` or `cpu`."""
    plan = (cpu.place if how == "cpu" else placement.place)(graph)
    found = merge_ranges(plan, peaks(graph, plan.reads, feed))
    if how == "cpu":
        return cpu.render(graph, plan, cpu.scales_of(found))
    if how == "weak":
        return tensorrt.render(graph, plan, tensorrt.scales_of(found))
    made = tensorrt.render(graph, plan, tensorrt.half_scales_of(found), half=True)
    return half.to_half(made, magnitudes(graph, feed))[0]


def run(model: ModelProto, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs of a model, rounding where its Q nodes stand and nowhere else."""
    return Session(model.SerializeToString(), threads=1, exact=True).run_once(feed)


def check_scales(made: ModelProto, scales: dict[str, float], paired: ModelProto) -> None:
    """Whether what came of a Q/DQ network without Q/DQ has the scales that INT8 without takes."""
    bare, view = Graph(made), view_of(paired, READER)
    quantized = {s.tensor: float(s.scale) for s in view.stored if not s.weight and s.scale is not None}
    assert quantized
    assert {name: scales[name] for name in quantized} == quantized
    assert all(scale > 0 and np.isfinite(scale) for scale in scales.values())
    tensors = set(bare.inputs) | set(bare.producers)
    assert set(scales) <= {name for name in tensors if bare.is_float(name)}
    weights = frozenset(node.name for node in bare.nodes if node.op_type in WEIGHTED)
    needed = needed_by(bare, weights)
    for node in bare.nodes:
        if node.name in view.int8 and node.output[0] in needed:
            assert {node.input[0], node.output[0]} <= set(scales), node.name
        if node.name in weights - view.int8 and node.output[0] not in quantized:
            assert node.output[0] not in scales, node.name
        cuts = node.op_type in ("Relu", "Clip") and bare.sole_consumer(node.input[0]) is not None
        ends = {node.input[0], *node.output}
        if ends <= set(scales) and (cuts or is_copy(bare, node)) and not ends & set(quantized):
            assert len({scales[name] for name in ends}) == 1, node.name
        if cuts and node.output[0] in quantized and node.input[0] in set(scales) - set(quantized):
            assert scales[node.input[0]] == scales[node.output[0]]
    for name in bare.outputs:
        assert name in quantized or name in needed or name not in scales


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """What tests of graphs share."""
    return SimpleNamespace(
        feeds=feeds, peaks=peaks, magnitudes=magnitudes, write=write, run=run, check_scales=check_scales
    )


FINE, ZERO = np.float32(0.05), np.int8(0)


class QNet(Net):
    """Builds a model with Q/DQ written by hand, right ones or wrong ones."""

    def pair(
        self,
        x: str,
        scale: Any = FINE,
        zero: Any = ZERO,
        name: str = "",
        ahead: Any = None,
        **attributes: Any,
    ) -> str:
        """Put Q and DQ behind a tensor; `ahead` is the Q's own scale, where it is another one."""
        name = name or f"pair{len(self.nodes)}"
        scale = scale if isinstance(scale, str) else self.constant(np.asarray(scale), f"{name}_scale")
        first = scale if ahead is None else self.constant(np.asarray(ahead), f"{name}_ahead")
        rest = [] if zero is None else [self.constant(np.asarray(zero), f"{name}_zero")]
        levels = self.op("QuantizeLinear", x, first, *rest, name=f"{name}_q", **attributes)
        return self.op("DequantizeLinear", levels, scale, *rest, name=f"{name}_dq", **attributes)

    def stored(
        self, levels: np.ndarray, scale: Any, zero: Any = None, name: str = "", **attributes: Any
    ) -> str:
        """Return constants behind a DQ."""
        name = name or f"stored{len(self.nodes)}"
        zero = np.zeros(np.shape(scale), levels.dtype) if zero is None else zero
        values = (levels, np.asarray(scale), np.asarray(zero))
        names = [self.constant(v, f"{name}_{i}") for i, v in enumerate(values)]
        return self.op("DequantizeLinear", *names, name=name, **attributes)

    def qconv(
        self,
        x: str,
        out: int = 16,
        into: int = 16,
        kernel: int = 3,
        group: int = 1,
        name: str = "",
        scale: Any = None,
        axis: int = 0,
        bias: str = "",
        pads: int | None = None,
        **more: Any,
    ) -> str:
        """Return a convolution with weights behind DQ, per channel unless a scale is given, and a float bias."""
        name = name or f"conv{len(self.nodes)}"
        levels = self.noise.integers(-127, 128, (out, into // group, kernel, kernel)).astype(np.int8)
        scale = np.linspace(0.5, 1, levels.shape[axis], dtype=np.float32) / 1000 if scale is None else scale
        weight = self.stored(levels, scale, name=f"{name}_weight", axis=axis)
        bias = bias or self.constant(self.noise.standard_normal(out).astype(np.float32), f"{name}_bias")
        edge = kernel // 2 if pads is None else pads
        return self.op("Conv", x, weight, bias, name=name, group=group, pads=[edge] * 4, **more)


@pytest.fixture(scope="session")
def qnet() -> Callable[..., QNet]:
    return QNet
