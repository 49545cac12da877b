"""Which nodes become one kernel, as TensorRT's guide lists its fusions, and what is refused."""

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto
from small_networks import conv, network, node, residual

from edgetune.errors import ArtifactError
from edgetune.estimates.fusing import kernels_of
from edgetune.estimates.kernels import Kernel
from edgetune.estimates.network import read_network


def fused(model: ModelProto) -> list[Kernel]:
    """The kernels but for the reformats of inputs."""
    return [kernel for kernel in kernels_of(read_network(model)) if kernel.nodes]


def kinds(*nodes: NodeProto, side: int = 8, **weights: tuple[int, ...]) -> list[tuple[str, int]]:
    """Kind and number of nodes of each kernel, of a network from x to y."""
    made = fused(network(nodes, {"x": (1, 16, side, side)}, ["y"], dict(weights)))
    return [(kernel.kind, len(kernel.nodes)) for kernel in made]


W = (16, 16, 3, 3)


def test_convolution_takes_along_bias_sum_and_activation() -> None:
    found = fused(residual())
    assert [(k.kind, k.nodes) for k in found] == [
        ("conv", ("conv_a", "relu_b")),
        ("conv", ("conv_c", "add_d", "relu_e")),
        ("pool", ("globalaveragepool_f",)),
        ("gemm", ("gemm_y",)),
    ]


def test_batch_normalization_goes_with_the_convolution() -> None:
    norm = node("BatchNormalization", "a s b m v", "y")
    assert kinds(conv("x", "w", "a"), norm, w=W, s=(16,), b=(16,), m=(16,), v=(16,)) == [("conv", 2)]


def test_silu_is_one_kernel_behind_its_convolution() -> None:
    nodes = conv("x", "w", "a"), node("Sigmoid", "a", "b"), node("Mul", "a b", "y")
    assert kinds(*nodes, w=W) == [("conv", 1), ("pointwise", 2)]


def test_gelu_is_one_pointwise_kernel() -> None:
    nodes = [
        node("MatMul", "x w", "a"), node("Div", "a two", "b"), node("Erf", "b", "c"), node("Add", "c two", "d"),
        node("Mul", "a d", "e"), node("Mul", "e two", "y"),
    ]  # fmt: skip
    assert kinds(*nodes, w=(8, 8), two=()) == [("gemm", 1), ("pointwise", 5)]


def test_a_result_that_others_read_is_not_swallowed() -> None:
    nodes = conv("x", "w", "a"), node("Relu", "a", "b"), node("MaxPool", "a", "c", kernel_shape=[1, 1])
    assert kinds(*nodes, node("Concat", "b c", "y", axis=1), w=W) == [
        ("conv", 1),
        ("pointwise", 1),
        ("pool", 1),
    ]


def test_squeeze_and_excitation() -> None:
    nodes = [
        conv("x", "w", "a", group=16), node("Relu", "a", "b"), node("GlobalAveragePool", "b", "c"),
        conv("c", "v", "d", kernel=1), node("HardSigmoid", "d", "e"), node("Mul", "b e", "y"),
    ]  # fmt: skip
    found = kinds(*nodes, w=(16, 1, 3, 3), v=(16, 16, 1, 1))
    assert found == [("depthwise", 2), ("pool", 1), ("conv", 2), ("pointwise", 1)]


def test_concatenation_of_channels_costs_nothing() -> None:
    nodes = conv("x", "w", "a"), conv("x", "w", "b"), node("Concat", "a b", "c", axis=1), conv("c", "v", "y")
    made = fused(network(nodes, {"x": (1, 16, 8, 8)}, ["y"], {"w": W, "v": (16, 32, 3, 3)}))
    assert [kernel.kind for kernel in made] == ["conv"] * 3
    assert made[2].reads == {"a": 1024, "b": 1024}


def test_concatenation_of_something_else_is_a_copy() -> None:
    nodes = conv("x", "w", "a"), conv("x", "w", "b"), node("Concat", "a b", "y", axis=2)
    assert kinds(*nodes, w=W)[-1] == ("copy", 1)


def test_layer_normalization_written_out_is_one_kernel() -> None:
    nodes = [
        node("ReduceMean", "x", "m", axes=[-1]), node("Sub", "x m", "d"), node("Pow", "d two", "q"),
        node("ReduceMean", "q", "v", axes=[-1]), node("Add", "v eps", "e"), node("Sqrt", "e", "r"),
        node("Div", "d r", "y"),
    ]  # fmt: skip
    assert kinds(*nodes, two=(), eps=()) == [("reduce", 7)]


def test_reshapes_and_transposes_beside_products_cost_nothing() -> None:
    nodes = [
        node("Reshape", "x shape", "a"), node("Transpose", "a", "b", perm=[0, 2, 1]), node("MatMul", "a b", "c"),
        node("Softmax", "c", "y", axis=-1),
    ]  # fmt: skip
    made = fused(network(nodes, {"x": (1, 16, 8, 8)}, ["y"], values={"shape": np.array([1, 16, 64])}))
    assert [kernel.kind for kernel in made] == ["matmul", "reduce"]
    assert made[0].operations == 2 * 16 * 16 * 64


def test_a_slice_reads_what_it_gives() -> None:
    values = {"from": np.array([0]), "to": np.array([4]), "axis": np.array([1])}
    model = network([node("Slice", "x from to axis", "y")], {"x": (1, 16, 8, 8)}, ["y"], values=values)
    assert fused(model)[0].reads == {"x": 256}


def quantized(scale: str) -> ModelProto:
    """A convolution behind Q and DQ, a second one whose data is not quantized."""
    nodes = [
        node("QuantizeLinear", f"x {scale} zero", "q"), node("DequantizeLinear", f"q {scale} zero", "d"),
        node("DequantizeLinear", "wq s zero", "w"), conv("d", "w", "a"), conv("a", "v", "y"),
    ]  # fmt: skip
    values = {
        "zero": np.array(0, np.int8), "wq": np.zeros(W, np.int8), "s": np.array(0.1, np.float32),
        "t": np.array(0.2, np.float32),
    }  # fmt: skip
    return network(nodes, {"x": (1, 16, 8, 8)}, ["y"], {"v": W}, values)


def test_q_and_dq_become_types() -> None:
    first, second = fused(quantized("s"))
    assert (first.nodes, second.nodes) == (("conv_a",), ("conv_y",))
    assert (first.int8, second.int8) == (True, False)
    assert first.bytes_read("int8") == 1024
    assert first.bytes_written("int8") == 2048  # nothing quantizes it behind
    assert first.weight_bytes("int8") * 2 == second.weight_bytes("int8") == first.weight_bytes("fp16")


def test_a_float_network_is_taken_as_if_it_were_quantized() -> None:
    first, second, pool, last = fused(residual())
    assert first.int8
    assert second.int8
    assert last.int8
    assert not pool.int8
    assert second.bytes_read("int8") * 2 == second.bytes_read("fp16")
    assert pool.bytes_read("int8") == pool.reads["e"]  # what follows is quantized, so the pool moves integers


def test_operators_without_an_estimate_are_counted_and_named() -> None:
    nodes = [
        node("Relu", "x", "a"), node("Bent", "a", "b", domain="com.acme"), node("Bent", "a", "c", domain="com.acme"),
        node("NonZero", "x", "y"),
    ]  # fmt: skip
    with pytest.raises(ArtifactError) as caught:
        fused(network(nodes, {"x": (1, 3)}, ["y", "b", "c"]))
    assert "1 NonZero (nonzero_y), 2 com.acme::Bent (bent_b, bent_c)" in caught.value.message
    assert "edgetune bench" in caught.value.hint


def test_shapes_that_depend_on_values_are_refused() -> None:
    nodes = [
        node("ReduceSum", "x", "n", keepdims=0), node("Cast", "n", "m", to=7), node("Unsqueeze", "m zero", "u"),
        node("Expand", "x u", "y"),
    ]  # fmt: skip
    with pytest.raises(ArtifactError, match="known only when the network runs"):
        fused(network(nodes, {"x": (1,)}, ["y"], values={"zero": np.array([0])}))


def test_weights_that_do_not_fit_are_refused() -> None:
    wrong = network([conv("x", "w", "y")], {"x": (1, 3, 8, 8)}, ["y"], {"w": (8, 4, 3, 3)})
    with pytest.raises(ArtifactError, match="weights for 4 channels and is given 3"):
        fused(wrong)


def test_an_einsum_counts_what_it_multiplies_and_with_an_ellipsis_it_is_refused() -> None:
    def made(equation: str) -> Kernel:
        nodes = [node("Einsum", "x w", "y", equation=equation)]
        return fused(network(nodes, {"x": (2, 8, 32)}, ["y"], {"w": (32, 64)}))[0]

    product = fused(network([node("MatMul", "x w", "y")], {"x": (2, 8, 32)}, ["y"], {"w": (32, 64)}))[0]
    summed = made("b i k, k j -> b i j")
    assert summed.operations == product.operations == 2 * 2 * 8 * 32 * 64
    assert (summed.kind, summed.depth, summed.inner, summed.outer) == ("gemm", 32, 32, 64)
    with pytest.raises(ArtifactError, match="1 Einsum"):
        made("...k,kj->...j")


def test_no_node_runs_twice_and_none_is_forgotten() -> None:
    read = read_network(residual())
    names = [name for kernel in kernels_of(read) for name in kernel.nodes]
    assert len(names) == len(set(names))
    assert set(names) == {item.name for item in read.nodes} - {"flatten_g"}


@pytest.mark.parametrize(
    ("kind", "width"), [(TensorProto.FLOAT, 4), (TensorProto.FLOAT16, 2), (TensorProto.UINT8, 1)]
)
def test_an_input_is_read_as_it_is_given(kind: int, width: int) -> None:
    model = network(
        [node("Cast", "x", "a", to=1), conv("a", "w", "y")], {"x": (1, 16, 8, 8)}, ["y"], {"w": W}
    )
    model.graph.input[0].type.tensor_type.elem_type = kind
    first = kernels_of(read_network(model))[0]
    assert first.nodes == ()
    assert first.bytes_read("fp16") == width * 1024
    assert first.bytes_written("fp16") == 2 * 1024
