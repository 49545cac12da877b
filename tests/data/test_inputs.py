"""What calibrates and what judges: gone through as often as needed, counted, and never the same images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgetune.artifact import Preprocess, TensorSpec
from edgetune.data.inputs import Inputs, from_arrays, from_samples
from edgetune.data.unlabelled import gather
from edgetune.errors import ConfigError
from edgetune.progress import Silent
from edgetune.recipe import QuantizeSection

HOW = Preprocess(resize_px=8, size_px=6, channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)
PLANES = TensorSpec(name="x", dtype="float32", shape=("n", 3, 6, 6))
LAST = TensorSpec(name="x", dtype="float32", shape=(1, 6, 6, 3))
RAW = TensorSpec(name="x", dtype="uint8", shape=(1, 6, 6, 3))


class Counter(Silent):
    """Keeps what a bar would show."""

    def __init__(self) -> None:
        self.bars: list[tuple[str, int]] = []
        self.done = 0
        self.lines: list[str] = []

    def begin(self, what: str, total: int, unit: str = "image") -> None:
        self.bars.append((what, total))
        self.done = 0

    def advance(self, count: int = 1, **shown: float) -> None:
        self.done += count

    def line(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for index in range(12):
        Image.fromarray(np.full((9, 10, 3), 20 * index, np.uint8)).save(tmp_path / f"{index}.png")
    return tmp_path


def test_each_pass_begins_anew_and_is_counted() -> None:
    shown = Counter()
    inputs = Inputs(lambda: [np.zeros((3, 2)), np.zeros((2, 2)), {"a": np.zeros((4, 2))}], 9, "look", shown)
    for passes in (1, 2):
        assert len(list(inputs)) == 3
        assert shown.bars == [("look", 9)] * passes
        assert shown.done == 9


def test_images_calibrate_or_judge(pictures: Path) -> None:
    shown = Counter()
    found = from_samples(gather(pictures), QuantizeSection(images=5), None, HOW, [PLANES], shown)
    calibration, judges = (np.concatenate(list(part)) for part in (found.calibration, found.judges))
    assert (calibration.shape, judges.shape) == ((5, 3, 6, 6), (7, 3, 6, 6))
    assert not {float(image.mean()) for image in calibration} & {float(image.mean()) for image in judges}
    assert (found.judged_on, len(found.samples), shown.lines) == ("held-out", 5, [])
    for takes, right in ((LAST, calibration), (RAW, np.rint(255 * (calibration * HOW.std[0] + HOW.mean[0])))):
        other = from_samples(gather(pictures), QuantizeSection(images=5), None, HOW, [takes], shown)
        given = np.concatenate(list(other.calibration))
        assert given.dtype == takes.dtype
        np.testing.assert_array_equal(given, right.transpose(0, 2, 3, 1))


def test_where_all_calibrate_it_is_said(pictures: Path) -> None:
    shown = Counter()
    found = from_samples(gather(pictures), QuantizeSection(images=100), None, HOW, [PLANES], shown)
    assert found.judged_on == "calibration"
    assert found.judges.total == 12
    assert "all 12 images calibrate" in shown.lines[0]


def test_arrays_are_taken_as_they_are_and_hashed() -> None:
    one = [np.ones((2, 3), np.float32)]
    named = [{"a": np.ones((2, 3), np.float32), "b": np.zeros(2, np.float32)}]
    made = {
        name: from_arrays(data, None, Silent()).details["calibration_sha256"]
        for name, data in (
            ("one", one),
            ("named", named),
            ("swapped", [dict(reversed(named[0].items()))]),
            ("double", [one[0].astype(np.float64)]),
            ("shape", [one[0].reshape(3, 2)]),
        )
    }
    assert made["named"] == made["swapped"]
    assert len(set(made.values())) == 4
    found = from_arrays(one, named, Silent())
    assert (found.judged_on, found.judges.total, found.calibration.total) == ("held-out", 2, 2)


@pytest.mark.parametrize("wrong", [[], iter([np.ones((1, 2))]), np.ones((1, 2))])
def test_what_cannot_be_gone_through_twice_is_refused(wrong: object) -> None:
    with pytest.raises(ConfigError, match="a list of batches is needed"):
        from_arrays(wrong, None, Silent())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="a list of batches is needed"):
        from_arrays([np.ones((1, 2))], wrong, Silent())  # type: ignore[arg-type]
