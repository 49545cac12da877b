"""Building: deterministic, with a head and an adapter that keep what the weights knew."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from edgetune.errors import ConfigError
from edgetune.models import build as building
from edgetune.models import build_model, head_of, model_row, preprocess_for

SIZE = 64


def colour_and_gray(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The same random gray images as normalised colour [2, 3, H, W] and as normalised gray [2, 1, H, W]."""
    values = torch.rand(2, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    both = []
    for channels in (3, 1):
        preprocess = preprocess_for(name, channels, SIZE)
        mean, std = (torch.tensor(x).view(1, -1, 1, 1) for x in (preprocess.mean, preprocess.std))
        both.append((values - mean) / std)
    return both[0], both[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_0", "mobilenet_v2_035_cifar10", "timm:repvgg_a0"])
def test_a_convolution_in_front_gives_exactly_what_colour_gave(name: str) -> None:
    colour, gray = colour_and_gray(name)
    three = build_model(name, 5, 3, "none", seed=3).eval()
    one = build_model(name, 5, 1, "none", "conv", seed=3).eval()
    with torch.inference_mode():
        assert torch.allclose(three(colour), one(gray), atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_0", "mobilenet_v2_035_cifar10"])
def test_summed_kernels_give_what_colour_gave_inside_the_border(name: str) -> None:
    colour, gray = colour_and_gray(name)
    stem = model_row(name).stems[0]
    three = build_model(name, 5, 3, "none", "sum", seed=3).get_submodule(stem)
    one = build_model(name, 5, 1, "none", "sum", seed=3).get_submodule(stem)
    with torch.inference_mode():
        expected, got = three(colour)[..., 2:-2, 2:-2], one(gray)[..., 2:-2, 2:-2]
    assert torch.allclose(expected, got, atol=1e-5)
    assert expected.std() > 0.01


def test_three_channels_are_left_as_they_were() -> None:
    plain = build_model("mobilenet_v2_035_cifar10", 5, 3, "none", "conv")
    assert isinstance(plain.get_submodule("features.0.0"), nn.Conv2d)


def test_equal_seeds_give_equal_networks_and_leave_the_generator_alone() -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first, same, other = (build_model("squeezenet1_1", 3, weights="none", seed=seed) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    pairs = list(zip(first.state_dict().values(), same.state_dict().values(), strict=True))
    assert len(pairs) == 52
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(
        head_of(first, "squeezenet1_1")[1].weight, head_of(other, "squeezenet1_1")[1].weight
    )


def test_the_new_head_follows_the_seed_and_not_the_weights(tmp_path: Path) -> None:
    path = weights_of("mobilenet_v2_035_cifar10", 9, tmp_path)
    heads = [
        head_of(
            build_model("mobilenet_v2_035_cifar10", 4, weights=path, seed=seed), "mobilenet_v2_035_cifar10"
        )[1].weight
        for seed in (0, 0, 1)
    ]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_file_keeps_its_head_where_the_classes_are_as_many(tmp_path: Path) -> None:
    name = "mobilenet_v2_035_cifar10"
    path = weights_of(name, 4, tmp_path)
    said: list[str] = []
    kept = build_model(name, 4, weights=path, seed=1, say=said.append)
    original = build_model(name, 4, weights="none", seed=7)
    assert torch.equal(head_of(kept, name)[1].weight, head_of(original, name)[1].weight)
    build_model(name, 6, weights=path, say=said.append)
    assert "taken over" in said[0]
    assert "head (4 classes) is left out" in said[1]


def test_default_weights_never_bring_their_head(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "mobilenet_v2_035_cifar10"
    original = build_model(name, 10, weights="none", seed=7)
    row = model_row(name)
    fetched = {n: t for n, t in original.state_dict().items() if "num_batches" not in n}
    changed = type(row)(**{**vars(row), "fetch": lambda: fetched})
    monkeypatch.setattr(building, "model_row", lambda _: changed)
    net = build_model(name, 10, seed=1)
    assert torch.equal(net.features[3].conv[0][0].weight, original.features[3].conv[0][0].weight)
    assert not torch.equal(net.classifier[1].weight, original.classifier[1].weight)


@pytest.mark.parametrize("adapter", ["sum", "conv"])
def test_weights_of_an_adapted_network_fit_it_again(tmp_path: Path, adapter: str) -> None:
    name = "mobilenet_v2_035_cifar10"
    net = build_model(name, 4, 1, "none", adapter, seed=7)
    path = tmp_path / "gray.safetensors"
    save_file(net.state_dict(), str(path))
    again = build_model(name, 4, 1, path, adapter, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


def weights_of(name: str, classes: int, folder: Path) -> Path:
    path = folder / f"{classes}.safetensors"
    save_file(build_model(name, classes, weights="none", seed=7).state_dict(), str(path))
    return path


@given(size_px=st.integers(32, 4096))
def test_the_resize_keeps_its_proportion(size_px: int) -> None:
    own, other = preprocess_for("mobilenet_v2", 3), preprocess_for("mobilenet_v2", 3, size_px)
    assert other.size_px == size_px
    assert other.resize_px / size_px == pytest.approx(own.resize_px / own.size_px, abs=0.5 / size_px)


def test_gray_preprocess_averages_mean_and_deviation() -> None:
    gray = preprocess_for("resnet18", 1)
    assert gray.channels == 1
    assert gray.mean == pytest.approx((0.449,), abs=1e-6)
    assert gray.std == pytest.approx((0.226,), abs=1e-6)


@pytest.mark.parametrize(
    ("name", "channels", "size_px", "message"),
    [
        ("mobilenet_v2", 3, 16, "at least 32 px"),
        ("vgg11_bn", 3, 64, "multiples of 224 px"),
        ("mobilenet_v2", 2, 0, "1 or 3 channels"),
    ],
)
def test_impossible_inputs_are_refused(name: str, channels: int, size_px: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        preprocess_for(name, channels, size_px)


@pytest.mark.parametrize("name", [n for n in building.MODELS if not n.startswith("vgg")])
def test_the_smallest_size_is_one_that_the_network_takes(name: str) -> None:
    net = build_model(name, 3, weights="none").eval()
    least = model_row(name).least_px
    with torch.inference_mode():
        assert net(torch.zeros(1, 3, least, least)).shape == (1, 3)


@pytest.mark.parametrize(
    ("options", "message"), [({"classes": 0}, "class"), ({"adapter": "mean"}, "adapter")]
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model("resnet18", **{"classes": 3, "weights": "none", **options})
