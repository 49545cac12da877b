"""The stage: which targets, in which order, which is the cheapest, and the fit to a user's runs."""

import json
import time
from pathlib import Path

import onnx
import pytest
from small_networks import network, node, residual, saved

import edgetune
from edgetune.errors import ArtifactError, ConfigError
from edgetune.stages.estimate import fit

BIG = residual(256, 112)


def test_every_mode_of_every_module_is_estimated_or_says_why() -> None:
    found = edgetune.estimate(residual(), limit_ms=5.0)
    named = {(row["target"], row["precision"]) for row in found["estimates"]}
    left = {(row["target"], row["precision"]) for row in found["not_estimated"]}
    wanted = {
        (f"{name}:{mode}", precision)
        for name in edgetune.profile.names()
        if (profile := edgetune.load_profile(name)).kind != "host"
        for mode in profile.modes
        for precision in ("int8", "fp16")
    }
    assert {(target.split("@")[0], precision) for target, precision in named | left} == wanted
    assert not named & left
    times = [row["ms"] for row in found["estimates"]]
    assert times == sorted(times)
    assert all(row["low_ms"] < row["ms"] < row["high_ms"] for row in found["estimates"])
    assert all(row["why"] for row in found["not_estimated"])
    json.dumps(found)


def test_a_mode_is_named_with_a_jetpack_that_has_it() -> None:
    found = edgetune.estimate(residual(), precision="fp16")
    for row in found["estimates"]:
        assert edgetune.load_target(row["target"]).label == row["target"]


def test_one_target_shows_its_kernels_costliest_first() -> None:
    found = edgetune.estimate(residual(), "jetson-agx-orin-64gb:MAXN", precision="int8")
    (row,) = found["estimates"]
    kernels = row["kernels"]
    assert [kernel["ms"] for kernel in kernels] == sorted((kernel["ms"] for kernel in kernels), reverse=True)
    assert sum(kernel["ms"] for kernel in kernels) == pytest.approx(row["ms"], abs=1e-3)
    assert len(kernels) == found["kernel_count"]
    assert {"conv", "pool", "gemm", "copy"} == {kernel["kind"] for kernel in kernels}


def test_the_cheapest_that_meets_a_limit() -> None:
    everything = edgetune.estimate(BIG)["estimates"]
    middle = everything[len(everything) // 2]["ms"]
    chosen = edgetune.estimate(BIG, limit_ms=middle)["answer"]
    surely, probably = chosen["surely"], chosen["probably"]
    assert surely["high_ms"] <= middle
    assert probably["ms"] <= middle
    memory = {name: edgetune.load_profile(name).memory_gb or 0 for name in edgetune.profile.names()}
    cheaper = [
        row
        for row in everything
        if row["profile"].startswith("jetson") and memory[row["profile"]] < memory[probably["profile"]]
    ]
    assert all(row["ms"] > middle for row in cheaper)
    assert memory[surely["profile"]] >= memory[probably["profile"]]
    assert edgetune.estimate(BIG, limit_ms=1e-6)["answer"]["probably"] is None


def test_several_profiles_and_given_shapes(tmp_path: Path) -> None:
    path = saved(network([node("Relu", "x", "y")], {"x": ("N", 3, 8, 8)}, ["y"]), tmp_path)
    found = edgetune.estimate(
        path, "jetson-tx2,jetson-agx-orin-64gb:MAXN", precision="fp16", shapes={"": (4, 3, 8, 8)}
    )
    assert {row["profile"] for row in found["estimates"]} == {"jetson-tx2", "jetson-agx-orin-64gb"}
    assert found["operations"] == 4 * 3 * 8 * 8
    assert found["model"] == str(path)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"profile": "host-cpu"}, "no estimate for host-cpu"),
        ({"profile": "jetson-tx2", "precision": "int8"}, "no INT8 path"),
        ({"profile": "jetson-tx3"}, "unknown profile"),
        ({"precision": "int4"}, "no estimate in 'int4'"),
        ({"limit_ms": -1.0}, "a limit is a positive number"),
    ],
)
def test_what_cannot_be_estimated_is_refused(changes: dict[str, object], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        edgetune.estimate(residual(), **changes)  # type: ignore[arg-type]


def test_a_fit_is_written_and_used(tmp_path: Path) -> None:
    from test_measured import run_folder

    run, mine = run_folder(tmp_path / "run"), tmp_path / "made" / "mine.json"
    fit([run], mine)
    target = "jetson-orin-nano-8gb:MAXN_SUPER"
    before = edgetune.estimate(residual(), target, precision="fp16")["estimates"][0]["ms"]
    found = edgetune.estimate(residual(), target, precision="fp16", parameters=mine)
    assert abs(found["estimates"][0]["ms"] - 0.9) < abs(before - 0.9)
    assert found["parameters"]["file"] == str(mine)
    with pytest.raises(ConfigError):
        fit([run], tmp_path / "run")


def test_a_large_network_takes_little_of_this_processor(tmp_path: Path) -> None:
    """The limit is 2 s on all profiles; what other processes take of the machine does not count."""
    nodes, weights = [], {}
    for place in range(200):
        nodes.append(node("Conv", f"t{place} w{place}", f"c{place}", kernel_shape=[3, 3], pads=[1] * 4))
        nodes.append(node("Relu", f"c{place}", f"t{place + 1}"))
        weights[f"w{place}"] = (64, 64, 3, 3)
    path = saved(network(nodes, {"t0": (1, 64, 56, 56)}, ["t200"], weights), tmp_path)
    edgetune.estimate(path)
    before = time.process_time()
    edgetune.estimate(path)
    assert time.process_time() - before < 2.0


def test_a_network_without_a_figure_gives_none(tmp_path: Path) -> None:
    path = saved(network([node("NonZero", "x", "y")], {"x": (1, 3)}, ["y"]), tmp_path)
    with pytest.raises(ArtifactError, match="1 NonZero"):
        edgetune.estimate(path)


def texts(lengths: list[int], length: int | str = "L") -> onnx.ModelProto:
    """An embedding of a large table, an attention's scores, a mean and a head, as edgetune exports them."""
    made = network(
        [
            node("Gather", "table ids", "looked"),
            node("Transpose", "looked", "turned", perm=[0, 2, 1]),
            node("MatMul", "looked turned", "scores"),
            node("Softmax", "scores", "shares"),
            node("MatMul", "shares looked", "seen"),
            node("ReduceMean", "seen", "mean", axes=[1], keepdims=0),
            node("MatMul", "mean head", "logits"),
        ],
        {"ids": [1, length]},
        ["logits"],
        {"table": [30_000, 64], "head": [64, 4]},
    )
    made.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT32
    onnx.helper.set_model_props(made, {"preprocess": json.dumps({"kind": "text", "lengths": lengths})})
    return made


def test_a_network_that_takes_texts_of_several_lengths_has_estimates_for_each() -> None:
    found = edgetune.estimate(texts([32, 64]), "jetson-orin-nano-8gb")
    short, long = found["lengths"]
    assert (short["length"], long["length"]) == (32, 64)
    assert short["operations"] < long["operations"] == found["operations"]
    assert long["estimates"] == found["estimates"]
    for row in found["estimates"]:
        assert row["high_ms"] / row["ms"] == pytest.approx(2.0, rel=0.01)
        assert any("no network that reads texts" in note for note in row["notes"])
    # Of a table what is looked up is read, and all of it is kept.
    (fp16,) = (row for row in found["estimates"] if row["precision"] == "fp16")
    assert fp16["engine_mb"] == pytest.approx(2 * (30_000 * 64 + 64 * 4) / 1e6, rel=0.01)
    gather = next(kernel for kernel in fp16["kernels"] if kernel["name"] == "gather_looked")
    assert gather["weight_bytes"] == 2 * 64 * 64


def test_one_length_may_be_chosen_and_other_open_sizes_are_refused() -> None:
    chosen = edgetune.estimate(texts([32, 64]), "jetson-orin-nano-8gb", shapes={"ids": (1, 48)})
    assert "lengths" not in chosen
    with pytest.raises(ConfigError, match="has no fixed size: 1xL"):
        edgetune.estimate(texts([]), "jetson-orin-nano-8gb")
