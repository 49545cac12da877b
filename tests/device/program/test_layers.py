"""What the inspector tells, in the words of several versions."""

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgetune.device.program import layers


def tensor(text: str) -> dict[str, Any]:
    return {"Name": "t", "Location": "Device", "Dimensions": [1, 3, 8, 8], "Format/Datatype": text}


def layer(name: str, kind: str, reads: str, writes: str, **more: Any) -> dict[str, Any]:
    return {"Name": name, "LayerType": kind, "Inputs": [tensor(reads)], "Outputs": [tensor(writes)], **more}


V8 = {
    "int8": "Thirty-two wide channel vectorized row major Int8 format.",
    "fp16": "Channel major FP16 format where channel % 8 == 0",
    "fp32": "Row major linear FP32",
}
V10 = {"int8": "Int8 NC/32HW32", "fp16": "Half NHWC8", "fp32": "Float"}


@pytest.mark.parametrize("words", [V8, V10])
def test_an_int8_engine(words: dict[str, str]) -> None:
    fp32, fp16, int8 = words["fp32"], words["fp16"], words["int8"]
    weights = {"Weights": {"Type": "Int8", "Count": 864}, "ParameterType": "Convolution"}
    half = {"Weights": {"Type": "Half", "Count": 640}, "ParameterType": "Convolution"}
    both = "[ONNX Layer: /stem/Conv]\x1e[ONNX Layer: /stem/Relu [a]]"
    raw = [
        layer("Reformatting CopyNode for Input Tensor 0 to stem", "Reformat", fp32, int8),
        layer("stem", "CaskConvolution", int8, int8, Metadata=both, **weights),
        layer("last int8", "CaskConvolution", int8, fp16, **weights),
        layer("head", "CaskConvolution", fp16, fp16, **half),
        layer("hidden", "gemm", fp16, fp32),
        layer("softmax", "SoftMax", fp16, fp32),
        layer("bias", "Constant", fp32, fp32),
        layer("nothing", "NoOp", fp32, fp32),
        layer("stem [profile 1]", "CaskConvolution", int8, int8, **weights),
    ]
    found = layers.summary({"Layers": raw, "Bindings": ["x", "y"]}, ["/stem/Conv", "last int8", "hidden"])
    assert found["counts"] == {"int8": 2, "fp16": 3}
    assert found["reformats"] == 1
    assert found["detailed"]
    # The head is in float because the graph says so.
    assert found["fallbacks"] == ["hidden"]
    stem = found["layers"][1]
    assert stem["onnx"] == ["/stem/Conv", "/stem/Relu [a]"]
    assert stem["precision"] == "int8"
    assert stem["kind"] == "Convolution"
    assert not stem["fallback"]
    assert (stem["reads"], found["layers"][2]["writes"]) == (["int8"], ["fp16"])
    assert layers.summary(raw)["fallbacks"] == [], "nothing was to run in INT8"


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("/a/Conv", {}),
        ("/w + /a/Conv + PWN(/b/Sigmoid, /c/Mul)", {}),
        ("PWN(/a/Conv)", {}),
        ("fused 7", {"Metadata": "[ONNX Layer: /b/Relu]\x1e[ONNX Layer: /a/Conv]"}),
    ],
)
@pytest.mark.parametrize("words", [V8, V10])
def test_a_quantized_node_that_runs_wider_is_a_fallback_whatever_its_layer_is_called(
    name: str, more: dict[str, str], words: dict[str, str]
) -> None:
    for wide in ("fp16", "fp32"):
        raw = [layer(name, "CaskConvolution", words[wide], words[wide], **more)]
        assert layers.summary(raw, {"/a/Conv"})["fallbacks"] == [name]
        assert layers.summary(raw, {"/a/Con", "/a", "Conv"})["fallbacks"] == []
    narrow = [layer(name, "CaskConvolution", words["int8"], words["fp16"], **more)]
    assert layers.summary(narrow, {"/a/Conv"})["fallbacks"] == []


def test_what_runs_inside_of_a_block_is_not_guessed() -> None:
    nodes = {"Metadata": "[ONNX Layer: /a/Conv]\x1e[ONNX Layer: /z/Gemm]"}
    for name, kind in (("{ForeignNode[/a/Conv.../z/Gemm]}", "Myelin"), ("{ForeignNode[/a/Conv]}", "")):
        assert layers.summary([layer(name, kind, "Half", "Half", **nodes)], ["/a/Conv"])["fallbacks"] == []


def test_names_alone() -> None:
    raw = {"Layers": ["Reformatting CopyNode for Input Tensor 0 to conv1", "conv1 + relu1", "fc"]}
    found = layers.summary(json.dumps(raw), ["fc"])
    assert found["counts"] == {"unknown": 2}
    assert found["reformats"] == 1
    assert found["fallbacks"] == []
    assert not found["detailed"]


def test_control_characters_in_names_are_read() -> None:
    text = '{"Layers": [{"Name": "a\x1eb", "LayerType": "Myelin", "Outputs": [{"Format/Datatype": "Half"}]}]}'
    assert layers.summary(text)["layers"][0]["name"] == "a\x1eb"


@pytest.mark.parametrize(
    "raw", [None, "", "{", "null", {}, [], {"Layers": None}, {"Layers": [None, 3]}, b"\xff"]
)
def test_nothing_to_read(raw: Any) -> None:
    found = layers.summary(raw)
    assert (found["layers"], found["counts"], found["reformats"]) == ([], {}, 0)
    assert not found["detailed"]


@pytest.mark.parametrize(
    ("text", "precision"),
    [
        *((text, name) for words in (V8, V10) for name, text in words.items()),
        ("UInt8 linear", "uint8"),
        ("BFloat16", "bf16"),
        ("BF16 NHWC8", "bf16"),
        ("Float16", "fp16"),
        ("FP8", "fp8"),
        ("Int64", "int64"),
        ("N/A due to dynamic shapes", ""),
        ("", ""),
    ],
)
def test_words(text: str, precision: str) -> None:
    assert layers.precision_in(text) == precision == layers.precision_in(text.upper())


junk = st.recursive(
    st.none() | st.integers() | st.text(max_size=5), lambda x: st.lists(x, max_size=3), max_leaves=5
)
keys = st.sampled_from(["Name", "LayerType", "ParameterType", "Inputs", "Outputs", "Weights", "Metadata"])


@settings(max_examples=60)
@given(st.lists(st.dictionaries(keys, junk | st.just([{"Format/Datatype": "Half"}])) | junk, max_size=5))
@example([{"Inputs": 1, "Outputs": [1, {"Format/Datatype": "Half", "Dimensions": ["n"]}]}])
def test_whatever_there_is_is_read(raw: list[Any]) -> None:
    found = layers.summary({"Layers": raw}, ["a"])
    assert sum(found["counts"].values()) + found["reformats"] == len(found["layers"]) <= len(raw)


def test_bytes_of_a_layer() -> None:
    def tensor(kind: str, *sizes: int) -> dict[str, object]:
        return {"Name": "t", "Dimensions": list(sizes), "Format/Datatype": kind}

    layer = {
        "Name": "conv", "LayerType": "CaskConvolution", "Inputs": [tensor("Int8 NC/32HW32", 1, 4, 8, 8)],
        "Outputs": [tensor("Half NHWC8", 1, 2, 8, 8)], "Weights": {"Type": "Int8", "Count": 72},
    }  # fmt: skip
    found = layers.summary({"Layers": [layer]})["layers"][0]
    assert found["bytes"] == 256 + 2 * 128 + 72
    layer["Outputs"] = [{"Name": "t", "Format/Datatype": "Half NHWC8"}]
    assert layers.summary({"Layers": [layer]})["layers"][0]["bytes"] is None
    assert layers.summary({"Layers": ["conv"]})["layers"][0]["bytes"] is None
