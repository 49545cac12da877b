"""Made-up inputs: of the declared shapes and types, the same for the same seed; open sizes are asked for."""

import numpy as np
import pytest

from edgetune.artifact import TensorSpec
from edgetune.engines.feeds import closed_shapes, random_feed, shapes_from
from edgetune.errors import ConfigError


def spec(name: str, dtype: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def test_random_pixels_take_every_value() -> None:
    feed = random_feed([spec("x", "uint8", 1, 64, 64, 3)])
    assert (feed["x"].dtype, set(feed["x"].ravel().tolist())) == (np.uint8, set(range(256)))


def test_random_feed_fits_and_repeats() -> None:
    inputs = [
        spec("x", "float32", "n", 3),
        spec("ids", "int64", 1, 7),
        spec("mask", "bool", 1, 7),
        spec("s", "float16"),
    ]
    feed = random_feed(inputs, seed=1)
    assert {name: (value.shape, value.dtype.name) for name, value in feed.items()} == {
        "x": ((1, 3), "float32"), "ids": ((1, 7), "int64"), "mask": ((1, 7), "bool"), "s": ((), "float16"),
    }  # fmt: skip
    # A place in any table, however small.
    assert set(feed["ids"].ravel().tolist()) <= {0, 1}
    for name, value in random_feed(inputs, seed=1).items():
        np.testing.assert_array_equal(feed[name], value)
    assert random_feed(inputs, shapes={"x": (5, 3)})["x"].shape == (5, 3)


def test_only_numbers_are_made_up() -> None:
    with pytest.raises(ConfigError, match="takes string"):
        random_feed([spec("text", "string", 1)])


def test_an_open_batch_is_one_or_what_is_asked_for() -> None:
    inputs = [spec("x", "float32", "N", 3, 8, 8), spec("y", "float32", "N", 2)]
    assert closed_shapes(inputs, "m") == {"x": (1, 3, 8, 8), "y": (1, 2)}
    assert closed_shapes(inputs, "m", batch=4) == {"x": (4, 3, 8, 8), "y": (4, 2)}


def test_other_open_sizes_are_asked_for_with_an_example() -> None:
    inputs = [spec("x", "float32", "N", 3, "H", "W")]
    with pytest.raises(ConfigError, match="free dimensions: H, W") as caught:
        closed_shapes(inputs, "m.onnx")
    assert "--shape x=1x3x224x224" in caught.value.hint
    assert closed_shapes(inputs, "m", given={"x": (2, 3, 32, 64)}) == {"x": (2, 3, 32, 64)}


@pytest.mark.parametrize(
    ("batch", "given", "message"),
    [
        (0, {"x": (1, 4)}, "takes \\['N', 3\\], not \\[1, 4\\]"),
        (0, {"x": (1, 3, 1)}, "not \\[1, 3, 1\\]"),
        (0, {"z": (1, 3)}, "has no input 'z'"),
        (8, {"x": (4, 3)}, "batch size is fixed: 4, not 8"),
    ],
)
def test_what_does_not_fit_is_refused(batch: int, given: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        closed_shapes([spec("x", "float32", "N", 3)], "m", batch, given)


def test_a_fixed_batch_is_not_another() -> None:
    with pytest.raises(ConfigError, match="fixed: 2, not 4"):
        closed_shapes([spec("x", "float32", 2, 3)], "m", 4)


def test_shapes_are_read_from_the_command_line() -> None:
    assert shapes_from(["x=1x3x224X224", "a=b=7"]) == {"x": (1, 3, 224, 224), "a=b": (7,)}
    for wrong in ("x", "x=", "=1x2", "x=1x0", "x=1xb", "x=-1"):
        with pytest.raises(ConfigError, match="write NAME=1x3x224x224"):
            shapes_from([wrong])
