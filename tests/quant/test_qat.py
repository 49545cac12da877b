"""Training of Q/DQ graphs: what is written is what was trained, and stops and goes on without a trace."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import ModelProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import Tensor

from edgetune.engines.onnxruntime import Session
from edgetune.errors import ConfigError, StageError
from edgetune.quant import qat
from edgetune.quant.draft import RENDERINGS, Draft, draft
from edgetune.quant.parameters import tied_scales
from edgetune.quant.prepare import prepare
from edgetune.quant.qat import Training, mixed, train
from edgetune.quant.torch_graph import TorchGraph

Nets = Callable[..., Any]
QUICK = Training(epochs=3, batch=8, weight_rate=0.02, scale_rate=0.01)


def images(count: int = 24, seed: int = 3) -> np.ndarray:
    noise = np.random.default_rng(seed)
    return (0.3 + noise.standard_normal((count, 16, 8, 8))).astype(np.float32)


def inputs(count: int = 24, seed: int = 3) -> dict[str, Tensor]:
    return {"x": torch.from_numpy(images(count, seed))}


def network(net: Nets) -> ModelProto:
    n = net(opset=19)
    six = [n.constant(np.array(value, np.float32)) for value in (0, 6)]
    a = n.op("Relu", n.conv("x", kernel=1, name="stem"))
    b = n.op("Clip", n.conv(a, group=16, name="depthwise"), *six)
    a = n.op("Concat", n.op("Add", n.conv(b, kernel=1, name="project"), a), a, axis=1)
    pooled = n.op("GlobalAveragePool", n.op("Relu", n.conv(a, into=32, kernel=1, name="late")))
    return n.model(n.gemm(n.op("Flatten", pooled), 16, 24, name="head"))


def drafted(model: ModelProto, how: str = "weak") -> Draft:
    """Quantized with ranges that one outlier has made far too wide: something to learn."""
    x = images(4)
    x[0, 0, 0, 0] = 40
    return draft(prepare(model), RENDERINGS[how], [x], "minmax", frozenset())


def distance(made: Draft, model: ModelProto, x: dict[str, Tensor]) -> float:
    found, aim = TorchGraph(model).run(x), TorchGraph(made.graph.model).run(x)
    return sum(float((found[n] - aim[n]).square().mean() / aim[n].square().mean()) for n in aim)


def trained(
    made: Draft, how: str = "weak", settings: Training = QUICK, **more: Any
) -> tuple[ModelProto, list[Any]]:
    half = RENDERINGS[how].half
    return train(made.model, made.graph, inputs(), made.plan.groups, settings, half=half, **more)


@pytest.mark.parametrize("how", RENDERINGS)
def test_training_helps_and_onnx_runtime_computes_what_was_trained(
    net: Nets, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = drafted(network(net), how)
    ends: list[Tensor] = []
    inner = qat._Learned.settle

    def settled(self: Any) -> None:
        with torch.no_grad():
            ends.extend(self.net.run(inputs(5, 7), replaced=self.replaced()).values())
        inner(self)

    monkeypatch.setattr(qat._Learned, "settle", settled)
    model, history = trained(made, how)
    assert [entry["epoch"] for entry in history] == [0, 1, 2, 3]
    assert history[3]["loss"] < history[1]["loss"]
    assert distance(made, model, inputs(seed=8)) < 0.85 * distance(made, made.model, inputs(seed=8))
    (found,) = Session(model.SerializeToString(), threads=1, exact=True).run(images(5, 7))
    (end,) = ends
    error = np.abs(found - end.numpy())
    # Sums in another order make single values fall on the other side of a step.
    assert error.max() <= 0.02 * np.abs(found).max()
    assert np.median(error) <= 1e-3 * np.abs(found).max()
    assert [n.SerializeToString() for n in model.graph.node] == [
        n.SerializeToString() for n in made.model.graph.node
    ]
    values = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    ties = tied_scales(TorchGraph(made.model), made.plan.groups)
    assert any(len(tied) > 1 for tied in ties.values())
    for tied in ties.values():
        assert len({float(values[name]) for name in tied}) == 1
        assert how != "strong" or float(np.float16(values[tied[0]])) == float(values[tied[0]])
    changed = {
        item.name
        for item in made.model.graph.initializer
        if not np.array_equal(values[item.name], numpy_helper.to_array(item))
    }
    assert {name.rsplit("/", 1)[-1] for name in changed} >= {"scale", "quantized"}
    if how == "cpu":
        # Integer biases have the scale of the products, which ONNX Runtime takes for granted.
        graph = TorchGraph(model)
        for weight in qat.weights_of(graph, made.graph):
            product = graph.constants[weight.input_scale] * graph.constants[weight.scale]
            torch.testing.assert_close(graph.constants[weight.bias_scale], product)
        assert float(values["clip3_out/scale"]) <= 6 / 255 * 1.0001


def test_stopped_and_continued_is_as_if_never_stopped(net: Nets, tmp_path: Path) -> None:
    made = drafted(network(net))
    held = inputs(6, 9)
    whole, history = trained(made, held=held)
    file = tmp_path / "state.safetensors"

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 4:
            raise Stop

    with pytest.raises(Stop):
        trained(made, held=held, resume=file, told=stop)
    told: list[int] = []
    again, continued = trained(made, held=held, resume=file, told=lambda done, total: told.append(done))
    assert told == [4, 5, 6, 7, 8, 9]
    assert again == whole
    assert continued == history
    # Done already: nothing is left to do.
    assert trained(made, held=held, resume=file, told=lambda *_: pytest.fail("trains again")) == (
        whole,
        history,
    )
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize("what", ["text", "empty", "settings", "network", "half of it"])
def test_another_state_is_refused(net: Nets, tmp_path: Path, what: str) -> None:
    made = drafted(network(net))
    file = tmp_path / "state.safetensors"
    short = replace(QUICK, epochs=1)
    if what == "text":
        file.write_text("no state")
    elif what == "empty":
        save_file({}, file)
    elif what == "settings":
        trained(made, settings=replace(short, weight_rate=0.5), resume=file)
    elif what == "network":
        other = network(net)
        for item in other.graph.initializer:
            item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item) * 2, item.name))
        trained(drafted(other), settings=short, resume=file)
    else:
        trained(made, settings=short, resume=file)
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(StageError, match="is not the state of this training") as caught:
        trained(made, settings=short, resume=file)
    assert "remove it" in caught.value.hint


def test_the_best_epoch_is_kept_and_a_bad_training_changes_nothing(net: Nets) -> None:
    made = drafted(network(net))
    held = inputs(6, 9)
    model, history = trained(made, held=held)
    best = min(entry["held"] for entry in history)
    assert best < history[0]["held"]
    assert distance(made, model, held) == pytest.approx(best, rel=0.05)
    wild = replace(QUICK, weight_rate=5.0, scale_rate=0.5)
    model, history = trained(made, settings=wild, held=held)
    assert min(entry["held"] for entry in history) == history[0]["held"]
    assert distance(made, model, held) == pytest.approx(distance(made, made.model, held), rel=0.05)


def test_labels_are_optional_and_pull(net: Nets) -> None:
    made = drafted(network(net))
    labels = torch.randint(0, 24, (24,), generator=torch.Generator().manual_seed(0))
    settings = replace(QUICK, label_weight=0.9, weight_rate=0.1)
    entropies = []
    for given in (None, labels):
        model, _ = trained(made, settings=settings, labels=given)
        (found,) = TorchGraph(model).run(inputs()).values()
        entropies.append(float(torch.nn.functional.cross_entropy(found, labels)))
    assert entropies[1] < entropies[0] - 0.2


def test_augmented_inputs_are_what_both_networks_see(net: Nets) -> None:
    made = drafted(network(net))
    seen: list[tuple[int, ...]] = []

    def mirrored(feeds: dict[str, Tensor], noise: torch.Generator) -> dict[str, Tensor]:
        seen.append(tuple(feeds["x"].shape))
        flip = torch.rand(len(feeds["x"]), generator=noise) < 0.5
        return {"x": torch.where(flip[:, None, None, None], feeds["x"].flip(3), feeds["x"])}

    first, second = (trained(made, augment=mirrored) for _ in range(2))
    assert first == second
    assert seen == 18 * [(8, 16, 8, 8)]
    assert first[0] != trained(made)[0]
    assert distance(made, first[0], inputs(seed=8)) < distance(made, made.model, inputs(seed=8))


def test_outputs_alone_may_teach(net: Nets) -> None:
    made = drafted(network(net))
    model, history = trained(made, settings=replace(QUICK, inner_weight=0.0))
    assert history[-1]["loss"] < history[1]["loss"]
    assert distance(made, model, inputs()) < distance(made, made.model, inputs())


def test_several_inputs_and_outputs(net: Nets) -> None:
    n = net()
    a, b = n.conv("x", name="a"), n.conv("y", name="b")
    mixed = n.op("Relu", n.op("Add", a, b))
    model = n.model(n.conv(mixed, name="c"), n.op("ArgMax", n.conv(mixed, name="d"), axis=1, name="kinds"))
    model.graph.output[1].type.tensor_type.elem_type = 7
    model.graph.input.append(helper.make_tensor_value_info("y", 1, [1, 16, 8, 8]))
    both = {"x": images(8, 1), "y": images(8, 2)}
    made = draft(prepare(model), RENDERINGS["weak"], [both], "minmax", frozenset())
    fed = {name: torch.from_numpy(value) for name, value in both.items()}
    after, history = train(made.model, made.graph, fed, made.plan.groups, QUICK, held=fed)
    assert after != made.model
    assert all(math.isfinite(entry["held"]) for entry in history)
    with pytest.raises(ConfigError, match="labels are for networks with one output"):
        train(made.model, made.graph, fed, made.plan.groups, QUICK, labels=torch.zeros(8, dtype=torch.int64))


def test_without_a_float_output_there_is_nothing_to_learn(net: Nets) -> None:
    n = net()
    model = n.model(n.op("ArgMax", n.conv("x"), axis=1))
    model.graph.output[0].type.tensor_type.elem_type = 7
    made = draft(prepare(model), RENDERINGS["weak"], [images(2)], "minmax", frozenset())
    with pytest.raises(ConfigError, match="no output of the network is float"):
        train(made.model, made.graph, inputs(), made.plan.groups, QUICK)


def test_a_loss_that_is_no_number_stops(net: Nets) -> None:
    made = drafted(network(net))
    bad = {"x": torch.full((4, 16, 8, 8), math.nan)}
    with pytest.raises(StageError, match="the loss is not a number"):
        train(made.model, made.graph, bad, made.plan.groups, QUICK)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_trains_too(net: Nets) -> None:
    made = drafted(network(net))
    model, _ = trained(made, device="cuda")
    assert distance(made, model, inputs(seed=8)) < 0.85 * distance(made, made.model, inputs(seed=8))


def test_mixtures_lie_between_two_inputs_and_integers_stay() -> None:
    generator = torch.Generator().manual_seed(0)
    first = {"x": torch.randn(5, 3, 4, 4), "y": torch.randn(5, 2)}
    made = mixed(first, generator)
    assert {name: value.shape for name, value in made.items()} == {n: v.shape for n, v in first.items()}
    # The same share and the same partner for every input, and nearer to itself than to the partner.
    for row in range(5):
        found = []
        for other in range(5):
            shares = []
            for name, value in first.items():
                way = (value[other] - value[row]).flatten()
                step = (made[name][row] - value[row]).flatten()
                if (
                    float((step - (share := float(step @ way / (way @ way).clamp_min(1e-9))) * way).norm())
                    < 1e-4
                ):
                    shares.append(share)
            found += [shares[0]] if len(shares) == 2 and abs(shares[0] - shares[1]) < 1e-4 else []
        assert found
        assert all(-1e-5 <= share <= 0.5 + 1e-5 for share in found)
    tokens = {"x": torch.randn(3, 2), "ids": torch.ones(3, 2, dtype=torch.int64)}
    assert mixed(tokens, generator) is tokens
