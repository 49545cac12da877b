"""Corrections of Q/DQ graphs: means are met, errors never grow, what is tied stays tied."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from onnx import ModelProto, helper, numpy_helper
from torch import Tensor

from edgetune.engines.onnxruntime import Session
from edgetune.quant import corrections
from edgetune.quant.bias import STEPS
from edgetune.quant.blocks import cut
from edgetune.quant.collect import Batch
from edgetune.quant.corrections import correct_bias, reconstruct_ranges, round_weights
from edgetune.quant.draft import RENDERINGS, Draft, draft
from edgetune.quant.parameters import tied_scales, weights_of
from edgetune.quant.prepare import prepare
from edgetune.quant.torch_graph import TorchGraph

Nets = Callable[..., Any]


def images(count: int = 12, seed: int = 3) -> np.ndarray:
    """Positive on average, as activations are, and alike in all channels, as those of images are."""
    noise = np.random.default_rng(seed)
    shape = (count, 16, 8, 8)
    return (0.5 + noise.standard_normal(shape) + noise.standard_normal((count, 1, 8, 8))).astype(np.float32)


def network(net: Nets, batch: int | str = 1) -> ModelProto:
    """A residual block, a depthwise one, a head; each with another kind of bias."""
    n = net(batch=batch, opset=19)
    six = [n.constant(np.array(value, np.float32)) for value in (0, 6)]
    a = n.op("Relu", n.conv("x", name="stem"))
    b = n.op("Clip", n.conv(a, group=16, name="depthwise"), *six)
    a = n.op("Add", n.conv(b, kernel=1, name="project"), a)
    a = n.op("Flatten", n.op("GlobalAveragePool", n.op("Relu", n.conv(a, name="late", strides=[2, 2]))))
    weight = n.constant(n.noise.standard_normal((16, 32)).astype(np.float32))
    product = n.op("MatMul", a, weight, name="product")
    a = n.op("Relu", n.op("Add", product, n.constant(n.noise.standard_normal(32).astype(np.float32))))
    return n.model(n.gemm(a, 32, 24, name="head"))


def drafted(model: ModelProto, how: str = "weak", x: Batch | None = None, ranges: str = "minmax") -> Draft:
    return draft(prepare(model), RENDERINGS[how], [images() if x is None else x], ranges, frozenset())


def inputs(count: int = 12, seed: int = 3) -> dict[str, Tensor]:
    return {"x": torch.from_numpy(images(count, seed))}


def noise_of(made: Draft, model: ModelProto, x: dict[str, Tensor]) -> float:
    """Mean squared error of the outputs over their mean square."""
    net, fp32 = TorchGraph(model), TorchGraph(made.graph.model)
    found, aim = net.run(x), fp32.run(x)
    return sum(float((found[name] - aim[name]).square().mean() / aim[name].square().mean()) for name in aim)


def weakened(made: Draft) -> Draft:
    """With every other integer weight rounded the wrong way: something to make good."""
    model = ModelProto()
    model.CopyFrom(made.model)
    for item in model.graph.initializer:
        value = numpy_helper.to_array(item)
        if value.dtype == np.int8 and value.ndim > 1:
            shifted = np.where(
                np.abs(value) < 120, value + 3 * (np.arange(value.size).reshape(value.shape) % 2), value
            )
            item.CopyFrom(numpy_helper.from_array(shifted.astype(np.int8), item.name))
    return replace(made, model=model)


@pytest.mark.parametrize("how", RENDERINGS)
def test_means_are_met_after_bias_correction(net: Nets, how: str) -> None:
    made = weakened(drafted(network(net), how))
    x = inputs()
    told: list[tuple[int, int]] = []
    model = correct_bias(made.model, made.graph, x, lambda done, total: told.append((done, total)))
    fp32 = TorchGraph(made.graph.model)
    weights = weights_of(TorchGraph(model), made.graph)
    assert told == [(place + 1, len(weights)) for place in range(len(weights))]
    assert {w.node.name for w in weights} == {"stem", "depthwise", "project", "late", "product", "head"}
    worse, better = [
        {weight.node.name: _mean_error(TorchGraph(m), fp32, weight.node.output[0], x) for weight in weights}
        for m in (made.model, model)
    ]
    for weight in weights:
        # An integer bias, or one behind a pair of its own, is off by a part of a step.
        scales = TorchGraph(model).constants
        behind = (
            scales.get("product_out/scale", torch.zeros(1))
            if weight.node.name == "product"
            else torch.zeros(1)
        )
        step = float(scales[weight.bias_scale].max() if weight.bias_scale else behind)
        if weight.node.name in ("project", "head"):
            assert better[weight.node.name] <= 0.6 * step + 2e-4
            assert worse[weight.node.name] > (2 if step else 10) * better[weight.node.name]
    # Behind an activation it is not the mean that counts; see test_bias.
    assert noise_of(made, model, x) < 0.5 * noise_of(made, made.model, x)


def _mean_error(net: TorchGraph, fp32: TorchGraph, name: str, x: dict[str, Tensor]) -> float:
    """How far the mean of a channel is off, of the tensor to which its bias has been added."""
    reader = fp32.graph.sole_consumer(name)
    wanted = (
        reader.output[0] if reader is not None and reader.op_type == "Add" and "product" in name else name
    )
    missing = net.run(x, [wanted])[wanted] - fp32.run(x, [wanted])[wanted]
    return float((missing.mean((0, 2, 3)) if missing.ndim == 4 else missing.mean(0)).abs().max())


@pytest.mark.parametrize("how", RENDERINGS)
@pytest.mark.parametrize("correct", [correct_bias, round_weights])
def test_what_is_corrected_loads_and_is_nearer_to_fp32(net: Nets, how: str, correct: Any) -> None:
    made = weakened(drafted(network(net), how))
    model = correct(made.model, made.graph, inputs())
    assert noise_of(made, model, inputs()) < 0.7 * noise_of(made, made.model, inputs())
    other = inputs(seed=9)
    assert noise_of(made, model, other) < 0.8 * noise_of(made, made.model, other)
    (found,) = Session(model.SerializeToString(), threads=1, exact=True).run(images())
    (right,) = TorchGraph(model).run(inputs()).values()
    np.testing.assert_allclose(found, right.numpy(), atol=0.05 * float(right.abs().max()))


def test_corrections_repeat_exactly(net: Nets) -> None:
    made = weakened(drafted(network(net)))
    for correct in (correct_bias, round_weights):
        assert correct(made.model, made.graph, inputs()) == correct(made.model, made.graph, inputs())


@pytest.mark.parametrize("how", RENDERINGS)
def test_reconstructed_ranges(net: Nets, how: str) -> None:
    # One outlier makes all min-max ranges too wide.
    x = images()
    x[0, 0, 0, 0] = 60
    made = drafted(network(net), how, x)
    half = RENDERINGS[how].half
    told: list[tuple[int, int]] = []
    model = reconstruct_ranges(
        made.model,
        made.graph,
        inputs(),
        made.plan.groups,
        half,
        lambda done, total: told.append((done, total)),
    )
    count = len(cut(made.graph, lambda node: node.name in made.plan.weighted))
    assert told == [(place + 1, count) for place in range(count)]
    assert noise_of(made, model, inputs()) < 0.9 * noise_of(made, made.model, inputs())
    before = {item.name: numpy_helper.to_array(item) for item in made.model.graph.initializer}
    after = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    ties = tied_scales(TorchGraph(made.model), made.plan.groups)
    scales = {name for tied in ties.values() for name in tied}
    changed = {name for name in after if not np.array_equal(before[name], after[name])}
    assert changed & scales
    for tied in ties.values():
        assert len({float(after[name]) for name in tied}) == 1
    for name in scales:
        ratio = float(after[name]) / float(before[name])
        assert 0.69 < ratio < 1.26
        if half:
            assert float(np.float16(after[name])) == float(after[name])
    if how != "cpu":
        assert changed <= scales
        return
    # Integer biases follow the scales of what is read, and stay what they are worth.
    net_before, net_after = TorchGraph(made.model), TorchGraph(model)
    followed = 0
    for weight in weights_of(net_after, made.graph):
        if not weight.bias_levels:
            continue
        expected = net_after.constants[weight.input_scale] * net_after.constants[weight.scale]
        torch.testing.assert_close(net_after.constants[weight.bias_scale], expected)
        worth, was = (
            n.constants[weight.bias_levels].double() * n.constants[weight.bias_scale]
            for n in (net_after, net_before)
        )
        assert float((worth - was).abs().max()) <= 1.1 * float(expected.max())
        followed += weight.input_scale in changed
    assert followed
    # Levels stay within the Clip that ONNX Runtime drops for them.
    assert float(after["clip3_out/scale"]) <= 6 / 255 * 1.0001


def test_a_block_never_gets_worse(net: Nets, monkeypatch: pytest.MonkeyPatch) -> None:
    made = drafted(network(net))
    errors: list[tuple[float, float]] = []
    inner = corrections._best_factor

    def watched(
        graph: Any, tied: Any, reading: Any, least: float, half: bool, error: Callable[[], float]
    ) -> float:
        left = inner(graph, tied, reading, least, half, error)
        errors.append((least, error()))
        assert errors[-1][1] == pytest.approx(left)
        return left

    monkeypatch.setattr(corrections, "_best_factor", watched)
    reconstruct_ranges(made.model, made.graph, inputs(), made.plan.groups)
    assert len(errors) == len(tied_scales(TorchGraph(made.model), made.plan.groups))
    assert all(after <= before for before, after in errors)


def two_inputs(net: Nets) -> ModelProto:
    n = net()
    a, b = n.conv("x", name="a"), n.conv("y", name="b")
    model = n.model(n.conv(n.op("Relu", n.op("Add", a, b)), name="c"), n.op("Mul", a, b))
    model.graph.input.append(helper.make_tensor_value_info("y", 1, [1, 16, 8, 8]))
    return model


def no_cuts(net: Nets) -> ModelProto:
    """Everything is read again at the end, and the first dimension is not always the batch."""
    n = net()
    every = [n.conv("x", name="c0")]
    for place in range(1, 14):
        every.append(n.op("Relu", n.conv(every[-1], name=f"c{place}")))
    gate = n.op("Transpose", n.op("GlobalAveragePool", every[0]), perm=[1, 0, 2, 3])
    mixed = n.op("Mul", n.op("Sum", *every), n.op("Transpose", n.op("Sigmoid", gate), perm=[1, 0, 2, 3]))
    return n.model(mixed)


@pytest.mark.slow
@pytest.mark.parametrize("build", [two_inputs, no_cuts])
def test_several_inputs_and_networks_without_a_place_to_cut(
    net: Nets, build: Callable[[Nets], ModelProto]
) -> None:
    model = build(net)
    x = {name: images(6, seed) for seed, name in enumerate([value.name for value in model.graph.input])}
    made = weakened(draft(prepare(model), RENDERINGS["weak"], [x], "minmax", frozenset()))
    fed = {name: torch.from_numpy(value) for name, value in x.items()}
    noise = noise_of(made, made.model, fed)
    for correct in (correct_bias, round_weights):
        assert noise_of(made, correct(made.model, made.graph, fed), fed) < 0.8 * noise
    assert (
        noise_of(made, reconstruct_ranges(made.model, made.graph, fed, made.plan.groups), fed) < 1.05 * noise
    )


def test_every_node_runs_once_and_every_layer_twice(net: Nets, monkeypatch: pytest.MonkeyPatch) -> None:
    """The work grows with the network, not with its square."""
    made = drafted(no_cuts(net))
    runs: dict[str, int] = {}
    inner = TorchGraph._execute

    def counted(self: Any, node: Any, values: Any, rows: int) -> Any:
        runs[node.name] = runs.get(node.name, 0) + 1
        return inner(self, node, values, rows)

    monkeypatch.setattr(TorchGraph, "_execute", counted)
    correct_bias(made.model, made.graph, inputs(8))
    # Probing for batch sizes takes three runs of each network; weighted nodes have one name in both, and
    # activations run once more for every step of the fit.
    assert max(runs.values()) <= 2 * 3 + 2 + 1 + STEPS + 1


def test_weights_that_two_nodes_share_stay(net: Nets) -> None:
    n = net()
    weight, bias = (
        n.constant(n.noise.standard_normal(s).astype(np.float32)) for s in ((16, 16, 3, 3), (16,))
    )
    first = n.op("Relu", n.op("Conv", "x", weight, bias, pads=[1] * 4, name="first"))
    model = n.model(
        n.op("Conv", n.op("Relu", n.conv(first, name="own")), weight, bias, pads=[1] * 4, name="second")
    )
    made = weakened(drafted(model))
    for correct in (correct_bias, round_weights):
        after = correct(made.model, made.graph, inputs())
        changed = {
            item.name
            for item, old in zip(after.graph.initializer, made.model.graph.initializer, strict=True)
            if item != old
        }
        assert changed
        assert not any(name.startswith((weight, bias)) for name in changed)


@pytest.mark.parametrize("count", [1, 5, 9])
def test_any_number_of_inputs(net: Nets, count: int) -> None:
    made = weakened(drafted(network(net, batch="N")))
    x = inputs(count)
    for correct in (correct_bias, round_weights):
        assert np.isfinite(noise_of(made, correct(made.model, made.graph, x), x))
    assert reconstruct_ranges(made.model, made.graph, x, made.plan.groups) is not None
