"""Every operator in torch gives what ONNX Runtime gives."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgetune.engines.onnxruntime import Session
from edgetune.errors import StageError
from edgetune.quant.torch_graph import TorchGraph
from edgetune.quant.torch_ops import OPS

NOISE = np.random.default_rng(0)
Case = tuple[Sequence[Any], dict[str, Any]]


def floats(*shape: int) -> np.ndarray:
    return NOISE.standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    return np.abs(floats(*shape)) + np.float32(0.1)


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


X = floats(2, 4, 7, 9)
WIDE = floats(2, 4, 7, 9) * 3
ONE = floats(2, 4, 10)
CUBE = floats(1, 2, 5, 6, 4)
SMALL = floats(2, 3, 4)
WHOLE = np.arange(24, dtype=np.int64).reshape(2, 3, 4) - 9
TRUTH = SMALL > 0


def each(*inputs: Any) -> list[Case]:
    return [([x], {}) for x in inputs]


def scales(x: np.ndarray, *factors: float) -> list[Any]:
    return [x, None, f32(1, 1, *factors)]


def resizes() -> list[Case]:
    coordinates = ["half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners", "half_pixel_symmetric"]
    nearest = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]
    image = floats(1, 2, 4, 6)
    found: list[Case] = [
        (scales(image, *factors), {"coordinate_transformation_mode": place, **how})
        for place in coordinates
        for factors in ((2, 2), (3, 1.5), (0.5, 0.7))
        for how in ({"mode": "linear"}, *({"mode": "nearest", "nearest_mode": kind} for kind in nearest))
    ]
    found += [([image, None, None, i64(1, 2, 9, 3)], {"mode": mode}) for mode in ("nearest", "linear")]
    found += [([image, None, None, i64(1, 2, 1, 5)], {"coordinate_transformation_mode": "align_corners"})]
    found += [(scales(ONE, 2), {"mode": mode}) for mode in ("nearest", "linear")]
    return [*found, ([image, None, f32(2, 2)], {"mode": "nearest", "axes": [2, 3]})]


def pools(**more: Any) -> list[Case]:
    kinds: list[dict[str, Any]] = [
        {},
        {"strides": [2, 2], "pads": [1, 1, 1, 1]},
        {"strides": [2, 2], "pads": [0, 1, 1, 0]},
        {"strides": [2, 1], "pads": [2, 2, 2, 2]},
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
        {"strides": [2, 2], "auto_pad": "VALID"},
        {"strides": [2, 2], "ceil_mode": 1},
        {"strides": [3, 2], "ceil_mode": 1, "pads": [1, 1, 1, 1]},
        {"strides": [2, 3], "ceil_mode": 1, "pads": [0, 0, 1, 1]},
    ]
    found: list[Case] = [([X], {"kernel_shape": [3, 3], **kind, **more}) for kind in kinds]
    return [*found, ([ONE], {"kernel_shape": [3], **more}), ([CUBE], {"kernel_shape": [2, 3, 2], **more})]


def reductions() -> list[Case]:
    return [([X], {}), ([X], {"keepdims": 0})]


def reductions_by_attribute() -> list[Case]:
    """Opset 17: axes are an attribute of all but ReduceSum."""
    return [*reductions(), ([X], {"axes": [-1, 1]}), ([X], {"axes": [2], "keepdims": 0})]


def compared() -> list[Case]:
    return [([WHOLE, i64(2)], {}), ([f32(1, 2, 3), f32(2, 2, 2)], {})]


CASES: dict[str, list[Case]] = {
    "Abs": each(X),
    "Add": [([X, floats(4, 1, 1)], {}), ([WHOLE, i64(3)], {})],
    "And": [([TRUTH, ~TRUTH], {})],
    "ArgMax": [([X], {"axis": 1}), ([X], {"axis": -1, "keepdims": 0})],
    "ArgMin": [([X], {}), ([X], {"axis": 2})],
    "AveragePool": [*pools(), *pools(count_include_pad=1)],
    "BatchNormalization": [([X, floats(4), floats(4), floats(4), positive(4)], {"epsilon": 1e-3})],
    "Cast": [([WIDE], {"to": kind}) for kind in (1, 6, 7, 9, 10, 11)] + [([WHOLE], {"to": 3})],
    "Ceil": each(WIDE),
    "Celu": [*each(X), ([X], {"alpha": 0.5})],
    "Clip": [
        ([WIDE, np.float32(-1), np.float32(2)], {}), ([WIDE, None, np.float32(2)], {}),
        ([WIDE, np.float32(0)], {}), ([WIDE], {}),
    ],
    "Concat": [([X, floats(2, 3, 7, 9)], {"axis": 1}), ([SMALL, SMALL, SMALL], {"axis": -1})],
    "ConstantOfShape": [
        ([i64(2, 3)], {"value": numpy_helper.from_array(value)}) for value in (f32(2.5), i64(7))
    ] + [([i64(2, 3)], {})],
    "Conv": [
        ([X, floats(6, 4, 3, 3), floats(6)], {}),
        ([X, floats(6, 4, 3, 3)], {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ([X, floats(6, 4, 3, 3), floats(6)], {"pads": [0, 1, 2, 1]}),
        ([X, floats(6, 4, 3, 2)], {"dilations": [2, 3]}),
        ([X, floats(6, 2, 3, 3)], {"group": 2}),
        ([X, floats(4, 1, 3, 3)], {"group": 4, "pads": [1, 1, 1, 1]}),
        ([X, floats(6, 4, 3, 3)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ([X, floats(6, 4, 4, 4)], {"auto_pad": "SAME_LOWER", "strides": [1, 2]}),
        ([X, floats(6, 4, 3, 3)], {"auto_pad": "VALID"}),
        ([ONE, floats(6, 4, 3)], {"pads": [2, 0]}),
        ([CUBE, floats(3, 2, 2, 3, 2), floats(3)], {"strides": [1, 2, 1]}),
    ],
    "ConvTranspose": [
        ([X, floats(4, 6, 2, 2), floats(6)], {"strides": [2, 2]}),
        ([X, floats(4, 3, 3, 3)], {"group": 2, "pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ([X, floats(4, 6, 3, 3)], {"pads": [0, 1, 2, 1], "strides": [2, 2], "output_padding": [1, 1]}),
        ([X, floats(4, 6, 3, 3)], {"dilations": [2, 2]}),
        ([ONE, floats(4, 6, 3)], {}),
    ],
    "Cos": each(X),
    "DepthToSpace": [([floats(2, 8, 3, 4)], {"blocksize": 2, "mode": mode}) for mode in ("DCR", "CRD")],
    "Div": [([X, positive(9)], {}), ([WHOLE, i64(4)], {})],
    "Dropout": each(X),
    "Einsum": [([SMALL, floats(2, 5, 4)], {"equation": "bij,bkj->bik"})],
    "Elu": [*each(X), ([X], {"alpha": 0.5})],
    "Equal": compared(),
    "Erf": each(WIDE),
    "Exp": each(X),
    "Expand": [([floats(2, 1, 3), i64(2, 4, 3)], {}), ([floats(2, 1, 3), i64(1, 1)], {})],
    "Flatten": [*each(X), ([X], {"axis": 2}), ([X], {"axis": 0}), ([X], {"axis": -1})],
    "Floor": each(WIDE),
    "Gather": [
        ([X, i64(2, 0, -1)], {"axis": 1}), ([X, np.int64(1)], {"axis": -1}),
        ([X, np.array([[0, 1], [1, 0]])], {}),
    ],
    "Gelu": [([X], {"approximate": "none"}), ([X], {"approximate": "tanh"})],
    "Gemm": [
        ([floats(2, 5), floats(5, 3), floats(3)], {}),
        ([floats(2, 5), floats(3, 5)], {"transB": 1}),
        ([floats(5, 2), floats(5, 3), floats(2, 3)], {"transA": 1, "alpha": 0.5, "beta": 2.0}),
    ],
    "GlobalAveragePool": each(X, ONE),
    "GlobalMaxPool": each(X, ONE),
    "Greater": compared(),
    "GreaterOrEqual": compared(),
    "HardSigmoid": [*each(WIDE), ([WIDE], {"alpha": 1 / 6, "beta": 0.5})],
    "HardSwish": each(WIDE),
    "Identity": each(X),
    "InstanceNormalization": [([X, floats(4), floats(4)], {"epsilon": 1e-3})],
    "LRN": [([X], {"size": 3, "alpha": 0.1, "beta": 0.5, "bias": 2.0}), ([X], {"size": 5})],
    "LayerNormalization": [
        ([X, floats(9), floats(9)], {}), ([X, floats(7, 9)], {"axis": 2, "epsilon": 1e-2}),
        ([X, floats(1), floats(9)], {}),
    ],
    "LeakyRelu": [*each(X), ([X], {"alpha": 0.2})],
    "Less": compared(),
    "LessOrEqual": compared(),
    "Log": each(positive(2, 3)),
    "LogSoftmax": [*each(X), ([X], {"axis": 1})],
    "MatMul": [([SMALL, floats(4, 5)], {}), ([SMALL, floats(2, 4, 5)], {}), ([SMALL, floats(4)], {})],
    "Max": [([X, floats(9)], {}), ([X, floats(9), floats(4, 1, 1)], {}), ([X], {})],
    "MaxPool": [*pools(), ([X], {"kernel_shape": [2, 2], "dilations": [2, 3]})],
    "Min": [([X, floats(9)], {}), ([X, floats(9), floats(4, 1, 1)], {})],
    "Mish": each(WIDE),
    "Mul": [([X, floats(9)], {}), ([WHOLE, i64(3)], {})],
    "Neg": each(X),
    "Not": each(TRUTH),
    "Or": [([TRUTH, SMALL > 1], {})],
    "PRelu": [([X, floats(4, 1, 1)], {}), ([X, floats(1)], {})],
    "Pad": [
        ([X, i64(0, 0, 1, 2, 0, 1, 2, 0)], {}), ([X, i64(0, 0, 1, 2, 0, 0, 2, 0), np.float32(3)], {}),
        ([X, i64(0, 0, 1, 2, 0, 0, 2, 0)], {"mode": "reflect"}),
        ([X, i64(0, 0, 1, 2, 0, 0, 2, 0)], {"mode": "edge"}),
        ([X, i64(1, 2, 0, 1), None, i64(2, -1)], {}), ([X, i64(0, 0, -1, 0, 0, 0, 0, 0)], {}),
    ],
    "Pow": [([positive(2, 3), np.float32(1.5)], {}), ([X, np.float32(2)], {}), ([X, i64(2)], {})],
    "Reciprocal": each(positive(2, 3)),
    "ReduceL2": reductions_by_attribute(),
    "ReduceMax": reductions_by_attribute(),
    "ReduceMean": reductions_by_attribute(),
    "ReduceMin": reductions_by_attribute(),
    "ReduceSum": [
        *reductions(), ([X, i64(-1, 1)], {}), ([X, i64(2)], {"keepdims": 0}), ([X], {"noop_with_empty_axes": 1})
    ],
    "Relu": each(X),
    "Reshape": [
        ([X, i64(2, -1)], {}), ([X, i64(0, 2, -1, 0)], {}), ([X, i64(9, 7, 4, 2)], {"allowzero": 1}),
    ],
    "Resize": resizes(),
    "Round": each(f32(0.5, 1.5, 2.5, -0.5, 1.2)),
    "Selu": [*each(X), ([X], {"alpha": 1.2, "gamma": 0.9})],
    "Shape": [*each(X), ([X], {"start": 1, "end": -1})],
    "Sigmoid": each(WIDE),
    "Sign": each(f32(-2, 0, 3)),
    "Sin": each(X),
    "Slice": [
        ([X, i64(1), i64(3), i64(1)], {}), ([X, i64(-3), i64(-1), i64(-1)], {}),
        ([X, i64(5, 0), i64(0, 99), i64(2, 3), i64(-2, 4)], {}), ([X, i64(0, 1), i64(1, 2)], {}),
        ([X, i64(-1), i64(-99), i64(1), i64(-1)], {}),
    ],
    "Softmax": [*each(X), ([X], {"axis": 1})],
    "Softplus": each(WIDE),
    "Softsign": each(X),
    "SpaceToDepth": [([floats(2, 3, 4, 6)], {"blocksize": 2})],
    "Split": [([X, i64(1, 3)], {"axis": 1, "_outputs": 2}), ([X], {"axis": -3, "_outputs": 2})],
    "Sqrt": each(positive(2, 3)),
    "Squeeze": [([floats(2, 1, 3, 1), i64(1)], {}), ([floats(2, 1, 3, 1), i64(-1, 1)], {}), ([floats(2, 1, 3)], {})],
    "Sub": [([X, floats(9)], {})],
    "Sum": [([X, floats(9)], {}), ([X, floats(9), floats(4, 1, 1)], {}), ([X], {})],
    "Tanh": each(X),
    "ThresholdedRelu": [*each(WIDE), ([WIDE], {"alpha": 0.3})],
    "Tile": [([SMALL, i64(1, 2, 3)], {})],
    "Transpose": [([X], {"perm": [0, 3, 1, 2]}), *each(SMALL)],
    "Unsqueeze": [([SMALL, i64(1)], {}), ([SMALL, i64(-1, 0)], {})],
    "Where": [([TRUTH, SMALL, floats(4)], {}), ([SMALL > 1, np.float32(2), SMALL], {})],
}  # fmt: skip
OPSETS = {"Gelu": 20, "Mish": 18, "Resize": 19, "Pad": 18}


def network(
    kind: str, inputs: Sequence[Any], attributes: dict[str, Any], fixed: bool = True
) -> onnx.ModelProto:
    """One node; its first input is fed, the others are constants."""
    given = {f"i{place}": np.asarray(value) for place, value in enumerate(inputs) if value is not None}
    names = ["" if value is None else f"i{place}" for place, value in enumerate(inputs)]
    outputs = [f"o{place}" for place in range(attributes.get("_outputs", 1))]
    own = {key: value for key, value in attributes.items() if not key.startswith("_")}
    node = helper.make_node(kind, names, outputs, name="node", **own)
    shape = given["i0"].shape
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("i0", helper.np_dtype_to_tensor_dtype(given["i0"].dtype), shape)],
        [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in given.items() if name != "i0"],
    )
    imports = [helper.make_opsetid("", OPSETS.get(kind, 17))]
    return onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=imports, ir_version=8))


def test_every_operator_is_tried() -> None:
    assert CASES.keys() == OPS.keys()
    assert all(CASES.values())


@pytest.mark.parametrize(
    ("kind", "place"), [(kind, place) for kind, cases in CASES.items() for place in range(len(cases))]
)
def test_operator_is_onnx_runtimes(kind: str, place: int) -> None:
    inputs, attributes = CASES[kind][place]
    model = network(kind, inputs, attributes)
    right = Session(model.SerializeToString(), threads=1).run_once({"i0": inputs[0]})
    found = TorchGraph(model).run({"i0": torch.from_numpy(inputs[0])})
    for value, name in zip(right, model.graph.output, strict=True):
        made = found[name.name].numpy()
        assert (made.shape, made.dtype) == (value.shape, value.dtype)
        np.testing.assert_allclose(made, value, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("kind", "inputs", "attributes"),
    [
        ("Resize", scales(X, 2, 2), {"mode": "cubic"}),
        ("Resize", scales(X, 0.5, 0.5), {"mode": "linear", "antialias": 1}),
        ("Resize", scales(X, 2, 2), {"coordinate_transformation_mode": "tf_crop_and_resize"}),
        ("ConvTranspose", [X, floats(4, 6, 3, 3)], {"output_shape": [14, 18], "strides": [2, 2]}),
        ("Pad", [X, i64(0, 1, 0, 0, 0, 0, 0, 0)], {"mode": "edge"}),
        ("Pad", [X, i64(0, 0, 1, 1, 0, 0, 0, 0)], {"mode": "wrap"}),
        ("LRN", [X], {"size": 4}),
        ("Cast", [X], {"to": TensorProto.STRING}),
    ],
)
def test_what_is_not_done_is_refused(kind: str, inputs: Sequence[Any], attributes: dict[str, Any]) -> None:
    net = TorchGraph(network(kind, inputs, attributes))
    with pytest.raises(StageError, match=rf"node 'node' \({kind}\)"):
        net.run({"i0": torch.from_numpy(inputs[0])})


DIFFERENTIABLE = [
    kind
    for kind, cases in CASES.items()
    if kind
    not in {
        *(
            "And",
            "ArgMax",
            "ArgMin",
            "Cast",
            "Ceil",
            "ConstantOfShape",
            "Equal",
            "Floor",
            "Greater",
            "Not",
            "Or",
        ),
        *("GreaterOrEqual", "Less", "LessOrEqual", "Round", "Shape", "Sign", "Where"),
    }
]


@pytest.mark.parametrize("kind", DIFFERENTIABLE)
def test_gradients_reach_the_input(kind: str) -> None:
    inputs, attributes = CASES[kind][0]
    x = torch.from_numpy(inputs[0]).clone().requires_grad_()
    made = TorchGraph(network(kind, inputs, attributes)).run({"i0": x})
    sum(value.square().sum() for value in made.values()).backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert x.grad.abs().sum() > 0
