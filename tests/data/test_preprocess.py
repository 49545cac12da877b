"""Preprocessing as given: whole or in parts, never guessed, and fitting the network."""

import pytest

from edgetune.artifact import Preprocess, TensorSpec
from edgetune.data.preprocess import PRESETS, Given, given_as, image_input, preprocess_as
from edgetune.errors import ConfigError

IMAGENET = Preprocess(
    resize_px=256, size_px=224, channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)


def taking(*shape: int | str, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name="x", dtype=dtype, shape=shape)


COLOUR = image_input([taking(1, 3, 224, 224)])


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_preset_is_whole_or_says_what_it_lacks(name: str, channels: int) -> None:
    wanted = image_input([taking("n", channels, 64, 64)])
    sizes = Given(preset=name, resize_px=64, size_px=64)
    if channels == 1 and len(PRESETS[name]["mean"]) == 3:
        with pytest.raises(ConfigError, match=r"\[N, 3, 64, 64\]"):
            preprocess_as(sizes, wanted)
    else:
        found = preprocess_as(sizes, wanted)
        assert (found.size_px, found.channels, len(found.mean)) == (64, channels, channels)
    if "size_px" not in PRESETS[name]:
        with pytest.raises(ConfigError, match=f"--preprocess {name} .* --resize and --crop missing"):
            preprocess_as(name, wanted)


def test_the_two_ways_give_the_same() -> None:
    parts = given_as("", 256, 224, "0.485,0.456,0.406", "0.229,0.224,0.225", "")
    assert preprocess_as("imagenet", COLOUR) == preprocess_as(parts, COLOUR) == IMAGENET
    assert preprocess_as(IMAGENET, COLOUR) is IMAGENET
    assert preprocess_as("imagenet-bicubic", COLOUR).interpolation == "bicubic"
    other = preprocess_as(given_as("imagenet", 232, 0, "", "", "bicubic"), COLOUR)
    assert (other.resize_px, other.size_px, other.interpolation) == (232, 224, "bicubic")


@pytest.mark.parametrize("nothing", [None, Given(), ""])
def test_nothing_is_guessed_and_both_ways_are_shown(nothing: Given | str | None) -> None:
    with pytest.raises(ConfigError, match="does not guess") as caught:
        preprocess_as(nothing, COLOUR)
    assert "--preprocess imagenet" in caught.value.hint
    assert "--resize 256 --crop 224 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225" in caught.value.hint


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Given(resize_px=256, size_px=224), "--mean and --std missing"),
        (Given(preset="imagnet"), "unknown preset 'imagnet'"),
        (Given(preset="imagenet", resize_px=200), "resize_px must not be below size_px"),
        (Given(preset="imagenet", std=(0.0,)), "std must be above 0"),
        (Given(preset="imagenet", mean=(0.1, 0.2)), "mean and std need 3 values each"),
    ],
)
def test_mistakes_are_named(given: Given, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        preprocess_as(given, COLOUR)


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("--mean", ("", 0, 0, "0.5;0.5", "", "")),
        ("--std", ("", 0, 0, "", "a,b", "")),
        ("--interpolation", ("", 0, 0, "", "", "cubic")),
        ("--resize", ("", 9000, 0, "", "", "")),
        ("--crop", ("", 0, -1, "", "", "")),
        ("--mean", ("", 0, 0, "nan,0,0", "", "")),
    ],
)
def test_a_wrong_option_is_named(option: str, values: tuple[str, int, int, str, str, str]) -> None:
    with pytest.raises(ConfigError, match=f"^{option}"):
        given_as(*values)


@pytest.mark.parametrize(
    ("shape", "given", "message", "hint"),
    [
        ((1, 3, 299, 299), "imagenet", r"\[1, 3, 299, 299\].*gives \[N, 3, 224, 224\]", "--crop 299"),
        ((1, 299, 299, 3), "imagenet", r"\[1, 299, 299, 3\].*gives \[N, 224, 224, 3\]", "--crop 299"),
        ((1, 1, 224, 224), "imagenet", r"\[1, 1, 224, 224\].*gives \[N, 3, 224, 224\]", "per channel"),
        ((1, 3, 480, 640), "imagenet", r"\[1, 3, 480, 640\]", "quantize_onnx"),
    ],
)
def test_what_does_not_fit_is_refused_naming_both(
    shape: tuple[int, ...], given: str, message: str, hint: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        preprocess_as(given, image_input([taking(*shape)]))
    assert hint in caught.value.hint


def test_a_dynamic_channel_count_needs_a_value_per_channel() -> None:
    wanted = image_input([taking("n", "c", "h", "w")])
    assert preprocess_as("imagenet", wanted) == IMAGENET
    with pytest.raises(ConfigError, match="nothing says how many channels"):
        preprocess_as(Given(preset="zero-one", resize_px=64, size_px=64), wanted)


@pytest.mark.parametrize(
    ("shape", "last"),
    [((1, 3, 8, 8), False), ((1, 8, 8, 3), True), ((1, 1, 8, 3), False), (("n", "c", "h", "w"), False)],
)
def test_layouts_are_told_apart(shape: tuple[int | str, ...], last: bool) -> None:
    assert image_input([taking(*shape)]).channels_last is last


@pytest.mark.parametrize(
    ("inputs", "message", "hint"),
    [
        ([taking(1, 3, 8, 8), taking(1, 7)], r"2 inputs \(x \[1, 3, 8, 8\], x \[1, 7\]\)", "{name: array"),
        ([], "0 inputs", "quantize_onnx"),
        ([taking(1, 8, 8, 3, dtype="uint8")], "uint8, not float32: it scales pixels itself", "quantize_onnx"),
        ([taking(1, 3, 8, 8, dtype="float16")], "float16, not float32: it is no FP32 network", "FP32"),
        ([taking(1, 10)], r"\[1, 10\]: no images", "quantize_onnx"),
        ([taking(1, 4, 8, 8)], r"\[1, 4, 8, 8\]: no images", "quantize_onnx"),
    ],
)
def test_what_takes_no_images_is_refused_with_the_reason(
    inputs: list[TensorSpec], message: str, hint: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        image_input(inputs)
    assert hint in caught.value.hint


def test_uint8_is_taken_where_the_network_says_how_it_is_made() -> None:
    known = image_input([taking(1, 8, 8, 3, dtype="uint8")], known=True)
    assert (known.channels, known.height_px, known.channels_last) == (3, 8, True)
    with pytest.raises(ConfigError, match="float16, not float32"):
        image_input([taking(1, 3, 8, 8, dtype="float16")], known=True)
