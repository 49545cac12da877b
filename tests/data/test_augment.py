"""Augmentation: every preset and knob keeps size and type, repeats with its seed, and changes something."""

import pytest
import torch

from edgetune.data.augment import PRESETS, Knobs, build_augment, build_mix, knobs
from edgetune.recipe import AugmentSection

SINGLE = {
    "rotation_deg": 30.0, "crop_scale": 0.3, "flip": 1.0, "colour": 0.5, "rand_augment": 2, "erase": 1.0,
}  # fmt: skip


def image(channels: int) -> torch.Tensor:
    return torch.randint(0, 256, (channels, 40, 48), generator=torch.Generator().manual_seed(0)).to(
        torch.uint8
    )


def test_the_recipe_offers_exactly_these_presets() -> None:
    assert set(AugmentSection.model_fields["preset"].annotation.__args__) == set(PRESETS)  # type: ignore[union-attr]
    assert {f for f in AugmentSection.model_fields if f != "preset"} <= set(Knobs.__dataclass_fields__)


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("channels", [1, 3])
def test_every_preset_keeps_size_and_type(preset: str, channels: int) -> None:
    augment = build_augment(knobs(AugmentSection(preset=preset)), 32)  # type: ignore[arg-type]
    if preset == "none":
        assert augment is None
        return
    assert augment is not None
    outcomes = []
    for seed in (1, 1, 2, 3, 4):
        torch.manual_seed(seed)
        out = augment(image(channels))
        assert out.shape == (channels, 32, 32)
        assert out.dtype == torch.uint8
        outcomes.append(out)
    assert torch.equal(outcomes[0], outcomes[1]), "a seed repeats it"
    assert any(not torch.equal(outcomes[0], other) for other in outcomes[2:])


@pytest.mark.parametrize("knob", sorted(SINGLE))
@pytest.mark.parametrize("channels", [1, 3])
def test_every_knob_alone_changes_the_image(knob: str, channels: int) -> None:
    augment = build_augment(knobs(AugmentSection(**{knob: SINGLE[knob]})), 40)
    assert augment is not None
    plain = image(channels)[:, :, 4:44]
    torch.manual_seed(3)
    assert any(not torch.equal(augment(image(channels)), plain) for _ in range(8))


def test_a_knob_overrides_its_preset() -> None:
    found = knobs(AugmentSection(preset="strong", flip=0.0, mixup=0.0))
    assert (found.flip, found.mixup, found.cutmix) == (0.0, 0.0, PRESETS["strong"].cutmix)
    assert build_augment(knobs(AugmentSection(preset="light", flip=0.0)), 32) is not None


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_mixing_keeps_the_sum_of_labels(mixup: float, cutmix: float) -> None:
    mix = build_mix(Knobs(mixup=mixup, cutmix=cutmix), 5)
    assert mix is not None
    torch.manual_seed(0)
    images, labels = torch.randn(6, 3, 16, 16), torch.tensor([0, 1, 2, 3, 4, 0])
    mixed, soft = mix(images, labels)
    assert mixed.shape == images.shape
    assert soft.shape == (6, 5)
    assert torch.allclose(soft.sum(1), torch.ones(6))


def test_no_mixing_where_none_is_asked_for() -> None:
    assert build_mix(Knobs(), 5) is None


def test_mixing_repeats_with_its_seed_and_takes_a_single_image() -> None:
    mix = build_mix(Knobs(mixup=0.4, cutmix=1.0), 3)
    assert mix is not None
    images, labels = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    outcomes = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outcomes.append([mix(images, labels)[0] for _ in range(6)])
    assert torch.equal(torch.stack(outcomes[0]), torch.stack(outcomes[1]))
    assert not torch.equal(torch.stack(outcomes[0]), torch.stack(outcomes[2]))
    assert mix(images[:1], labels[:1])[1].tolist() == [[1.0, 0.0, 0.0]]
