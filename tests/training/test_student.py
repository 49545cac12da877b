"""Both see the same view, each as it is used to; features are caught, projected and thrown away."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from edgetune.artifact import Preprocess
from edgetune.errors import ConfigError
from edgetune.training.strategies import Layout
from edgetune.training.student import Catcher, Student, resized, seen_by, shared_view


def way(size: int, channels: int = 3, resize: int = 0, mean: float = 0.5, std: float = 0.25) -> Preprocess:
    return Preprocess(
        resize_px=resize or size,
        size_px=size,
        channels=channels,
        mean=(mean,) * channels,
        std=(std,) * channels,
    )


def test_views_have_the_larger_size_and_the_student_s_frame() -> None:
    small, large = way(32, resize=36), way(64, mean=0.4)
    assert shared_view(small, large) == way(64, resize=72)
    assert shared_view(large, small) == large, "where the student is the larger, its own"
    assert shared_view(small, small) == small
    gray = shared_view(way(32, 1), large)
    assert (gray.channels, gray.mean, gray.size_px) == (3, (0.5, 0.5, 0.5), 64)


@given(st.integers(0, 1000), st.floats(0, 1), st.floats(0.1, 2), st.floats(0, 1), st.floats(0.1, 2))
def test_each_gets_its_own_normalisation(seed: int, m1: float, s1: float, m2: float, s2: float) -> None:
    pixels = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    view, own = way(8, mean=m1, std=s1), way(8, mean=m2, std=s2)
    found = seen_by((pixels - m1) / s1, view, own)
    torch.testing.assert_close(found, (pixels - m2) / s2, atol=1e-4, rtol=1e-4)


def test_what_is_alike_already_is_left_as_it_is() -> None:
    images = torch.rand(1, 3, 8, 8)
    assert seen_by(images, way(8), way(8)) is images


def test_colours_become_gray_as_pillow_makes_them() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    gray = np.asarray(Image.fromarray(pixels).convert("L"), np.float32) / 255
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    found = seen_by((images - 0.5) / 0.25, way(16), way(16, 1, mean=0.3, std=0.2))
    assert found.shape == (1, 1, 16, 16)
    np.testing.assert_allclose(found[0, 0].numpy(), (gray - 0.3) / 0.2, atol=0.02)
    # And back: a gray view in a colour network's channels.
    back = seen_by(found, way(16, 1, mean=0.3, std=0.2), way(16))
    assert torch.equal(back[:, 0], back[:, 2])


def test_smaller_is_antialiased() -> None:
    stripes = torch.zeros(1, 3, 64, 64)
    stripes[..., ::2] = 1
    assert float((resized(stripes, 16) - 0.5).abs().max()) < 0.05


class Net(nn.Module):
    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 4, 3, padding=1)
        self.body = nn.Sequential(nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2))
        self.unused = nn.Linear(2, 2)
        self.head = nn.Linear(6, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.stem(images)).mean((2, 3)))


def test_a_student_takes_views_of_any_size() -> None:
    net = Net(1).eval()
    student = Student(net, way(16, 1), {}, {})
    views = torch.rand(2, 3, 40, 40)
    gray = (resized(views, 16) * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    torch.testing.assert_close(student(views), net(gray))
    own = torch.rand(2, 1, 16, 16)
    assert torch.equal(student(own), net(own))
    assert student.features() == {}


@pytest.mark.parametrize(
    ("layers", "words", "hint"),
    [
        ({"stam": "a"}, "the student has no layer 'stam'", "did you mean 'stem'?"),
        ({"": "a"}, "the student has no layer ''", ""),
        ({"unused": "a"}, "'unused' of the student takes no part", ""),
        ({"head": "a"}, "a map and a vector cannot be matched", ""),
    ],
)
def test_layers_that_cannot_be_matched_are_refused(layers: dict[str, str], words: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        Student(Net(), way(16), layers, {"a": (2, 9, 4, 4)})
    assert hint in caught.value.hint


def test_what_is_no_tensor_of_channels_is_refused() -> None:
    net = nn.Sequential(nn.LSTM(4, 4), nn.Identity())
    catcher = Catcher(net, ["0"], "teacher")
    net(torch.rand(3, 4))
    with pytest.raises(ConfigError, match="layer '0' of the teacher gives tuple"):
        catcher.shapes("teacher")


def test_projections_fit_widths_and_learn_with_the_last_group() -> None:
    student = Student(Net(), way(16), {"stem": "a", "body": "b"}, {"a": (2, 4, 16, 16), "b": (2, 9, 4, 4)})
    assert isinstance(student.projections["0"], nn.Identity), "equal widths need none"
    student(torch.rand(2, 3, 16, 16))
    features = student.features()
    assert [tuple(made.shape) for made in features.values()] == [(2, 4, 16, 16), (2, 9, 7, 7)]
    assert student.features() == {}, "each is told once"
    layout = student.layout(Layout("head", (("stem",), ("body",))))
    assert layout.part("net.stem.weight") == 0
    assert layout.part("net.body.1.weight") == layout.part("projections.1.weight") == 1
    assert layout.part("net.head.bias") == 2
    assert student.layout(Layout("head", (("",),))).part("projections.1.weight") == 0


def test_a_copy_catches_its_own() -> None:
    student = Student(Net(), way(16), {"body": "b"}, {"b": (2, 9, 4, 4)})
    other = copy.deepcopy(student)
    other(torch.rand(2, 3, 16, 16))
    assert student.features() == {}
    assert list(other.features()) == ["body"]


def test_vectors_are_projected_as_well() -> None:
    student = Student(Net(), way(16), {"head": "a"}, {"a": (2, 7)})
    student(torch.rand(2, 3, 16, 16))
    assert student.features()["head"].shape == (2, 7)
