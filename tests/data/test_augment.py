"""Augmentation: each knob does what it says, to whole batches; a draw hangs on seed, version and image alone."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.data import augment as module
from edgetune.data.augment import PRESETS, Augment, Knobs, build_augment, build_mix, knobs, uniform
from edgetune.data.rand_augment import OPERATIONS, rand_augment
from edgetune.recipe import AugmentSection

SINGLE = {
    "rotation_deg": 30.0, "crop_scale": 0.3, "flip": 1.0, "colour": 0.5, "rand_augment": 2, "erase": 1.0,
}  # fmt: skip


def noise(count: int, channels: int, height: int = 40, width: int = 48) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, channels, height, width), np.uint8)


def done(augment: Augment, images: Any, key: int = 1, numbers: list[int] | None = None) -> torch.Tensor:
    """Augment images of one size or several; batches are put together as training does."""
    found = np.array(range(len(images)) if numbers is None else numbers)
    sizes = np.array([image.shape[1:] for image in images])
    plan = augment.plan(key, found, sizes, images[0].shape[0])
    canvas = np.zeros((len(images), images[0].shape[0], *plan.boxes[:, 2:].max(0)), np.uint8)
    for own, image, (top, left, height, width) in zip(canvas, images, plan.boxes, strict=True):
        own[:, :height, :width] = image[:, top : top + height, left : left + width]
    return augment.apply(torch.from_numpy(canvas), plan, plan.numbers)


def test_the_recipe_offers_exactly_these_presets() -> None:
    assert set(AugmentSection.model_fields["preset"].annotation.__args__) == set(PRESETS)  # type: ignore[union-attr]
    assert {f for f in AugmentSection.model_fields if f != "preset"} <= set(Knobs.__dataclass_fields__)


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("channels", [1, 3])
def test_every_preset_repeats_with_its_key(preset: str, channels: int) -> None:
    augment = build_augment(knobs(AugmentSection(preset=preset)), 32)  # type: ignore[arg-type]
    if preset == "none":
        assert augment is None
        return
    assert augment is not None
    images = noise(5, channels)
    first, again, other = (done(augment, images, key) for key in (1, 1, 2))
    assert first.shape == (5, channels, 32, 32)
    assert first.dtype == torch.float32
    assert 0 <= first.min() <= first.max() < 255.01
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("knob", sorted(SINGLE))
@pytest.mark.parametrize("channels", [1, 3])
def test_every_knob_alone_changes_every_image_its_own_way(knob: str, channels: int) -> None:
    augment = build_augment(knobs(AugmentSection(**{knob: SINGLE[knob]})), 40)
    assert augment is not None
    same = np.repeat(noise(1, channels), 16, 0)
    plain = torch.from_numpy(same[:, :, :, 4:44]).float()
    found = done(augment, same)
    changed = [not torch.allclose(a, b, atol=1) for a, b in zip(found, plain, strict=True)]
    # Some of RandAugment's operations leave some images as they are.
    assert sum(changed) >= (12 if knob == "rand_augment" else 15)
    assert knob == "flip" or not torch.allclose(found[0], found[1], atol=1)


@settings(max_examples=40, deadline=None)
@given(
    st.fixed_dictionaries({
        "rotation_deg": st.sampled_from([0.0, 20.0, 180.0]), "crop_scale": st.sampled_from([0.1, 0.5, 1.0]),
        "shift": st.sampled_from([0.0, 0.1, 0.5]), "flip": st.sampled_from([0.0, 0.5]),
        "colour": st.sampled_from([0.0, 0.3]), "erase": st.sampled_from([0.0, 0.5]),
    }),
    st.lists(st.tuples(st.integers(12, 40), st.integers(12, 90)), min_size=2, max_size=5),
    st.integers(0, 2**64 - 1),
)  # fmt: skip
def test_the_rest_of_a_batch_changes_no_image(
    chosen: dict[str, float], sizes: list[tuple[int, int]], key: int
) -> None:
    augment = Augment(Knobs(**chosen), 12)  # type: ignore[arg-type]
    images = [noise(1, 3, height, width)[0] for height, width in sizes]
    together = done(augment, images, key)
    for number, image in enumerate(images):
        (alone,) = done(augment, [image], key, [number])
        # Where a place is counted from changes its last bits, and with them the mixture of two pixels.
        torch.testing.assert_close(alone, together[number], rtol=0, atol=0.1)
    assert together.min() >= 0, "nothing from outside of the images"


def test_shifts_and_flips_move_whole_pixels_and_reflect_at_the_border() -> None:
    image = noise(1, 3, 16, 16)
    most = 8
    padded = np.pad(image[0], ((0, 0), (most, most), (most, most)), mode="reflect")
    allowed = {
        np.ascontiguousarray(padded[:, top : top + 16, left : left + 16][:, :, ::turn]).tobytes()
        for top in range(2 * most + 1) for left in range(2 * most + 1) for turn in (1, -1)
    }  # fmt: skip
    found = done(Augment(Knobs(shift=0.5, flip=0.5), 16), image.repeat(200, 0))
    torch.testing.assert_close(found, found.round(), rtol=0, atol=0.05)
    seen = {part.round().to(torch.uint8).numpy().tobytes() for part in found}
    assert seen <= allowed
    assert len(seen) > 100


def test_a_turn_is_as_far_as_it_says_and_shows_what_is_there() -> None:
    image = np.zeros((1, 1, 33, 33), np.uint8)
    image[:, :, 16, 16:] = 255  # a ray from the middle to the right
    found = done(Augment(Knobs(rotation_deg=90.0), 33), image.repeat(400, 0))
    y, x = np.mgrid[-16:17, -16:17]
    weight = found[:, 0].numpy() * (np.hypot(x, y) > 4)
    angles = np.degrees(np.arctan2((weight * y).sum((1, 2)), (weight * x).sum((1, 2))))
    assert np.abs(angles).max() <= 91
    assert abs(angles.mean()) < 8
    assert angles.min() < -80
    assert angles.max() > 80


def test_crops_keep_the_share_and_shape_they_may() -> None:
    sizes = np.array([[40, 40], [40, 60], [40, 320], [90, 30]] * 250)
    plan = Augment(Knobs(crop_scale=0.3), 16).plan(7, np.arange(1000), sizes, 3)
    affine = plan.numbers[:, :6].numpy()
    width, height = affine[:, 1] * 16, affine[:, 5] * 16
    share, ratio = width * height / sizes.prod(1), width / height
    assert ratio.min() > 0.749
    assert ratio.max() < 1.334
    ordinary = np.arange(1000) % 4 < 2
    assert share[ordinary].min() > 0.299
    assert share[ordinary].max() <= 1.001
    assert 0.55 < share[::4].mean() < 0.65, "evenly between its ends"
    assert np.allclose(share[2::4], 40 * 40 * 4 / 3 / (40 * 320)), "where nothing fits: the middle"
    assert (plan.boxes >= 0).all()
    assert (plan.boxes[:, :2] + plan.boxes[:, 2:] <= sizes).all()


def test_a_network_with_another_size_sees_the_same_crop() -> None:
    small, large = (
        Augment(Knobs(crop_scale=0.3, flip=0.5), size).plan(3, np.arange(50), sizes, 3).numbers[:, :6].numpy()
        for size, sizes in ((32, np.array([[40, 60]] * 50)), (64, np.array([[80, 120]] * 50)))
    )
    assert np.allclose(small[:, [1, 5]], large[:, [1, 5]], atol=1e-5)


def test_colours_of_gray_stay_gray_and_the_knob_bounds_brightness() -> None:
    gray = np.full((300, 3, 4, 4), 100, np.uint8)
    found = done(Augment(Knobs(colour=0.2), 4), gray)
    torch.testing.assert_close(found[:, 0], found[:, 2], rtol=0, atol=0.3)
    assert 79 < found.min() < 84
    assert 116 < found.max() < 121


def test_hue_and_saturation_keep_the_luma() -> None:
    images = np.clip(noise(64, 3, 8, 8), 96, 160)
    chances = np.random.default_rng(1).random((64, 4))
    chances[:, :2] = 0.5  # brightness and contrast as they are
    offset, matrix = module._colours(chances, 0.4, 3)
    assert np.abs(offset).max() == 0
    flat = images.reshape(64, 3, -1).astype(float)
    found = matrix @ flat
    assert not np.allclose(found, flat, atol=3)
    assert np.allclose(module.YIQ[0] @ found, module.YIQ[0] @ flat, atol=0.5)


def test_contrast_keeps_the_mean_of_each_image() -> None:
    images = np.clip(noise(32, 1, 8, 8), 64, 192)
    chances = np.full((32, 4), 0.5)
    chances[:, 1] = np.linspace(0, 1, 32)
    offset, matrix = module._colours(chances, 0.3, 1)
    flat = images.reshape(32, 1, -1).astype(float)
    found = matrix @ flat + offset[:, None, None] * flat.mean(2, keepdims=True)
    assert np.allclose(found.mean(2), flat.mean(2))
    assert np.allclose(found[0].std() / flat[0].std(), 0.7)
    assert np.allclose(found[-1].std() / flat[-1].std(), 1.3)


def test_erasing_leaves_a_black_rectangle_as_often_as_it_says() -> None:
    images = np.full((400, 1, 20, 20), 255, np.uint8)
    black = done(Augment(Knobs(erase=0.5), 20), images)[:, 0] == 0
    erased = [part for part in black if part.any()]
    assert 150 < len(erased) < 250
    for part in erased:
        rows, columns = part.any(1).sum(), part.any(0).sum()
        assert part.sum() == rows * columns
        assert rows * columns <= 0.33 * 400 + 40


def test_every_operation_of_rand_augment_treats_images_one_by_one() -> None:
    images = torch.from_numpy(noise(3, 3, 24, 24))
    images[1] //= 2
    unchanged = 0
    for drawn in range(2 * OPERATIONS):
        together = rand_augment(images, np.full((3, 1), drawn))
        assert together.shape == images.shape
        assert together.dtype == torch.uint8
        for number in range(3):
            (alone,) = rand_augment(images[number : number + 1], np.array([[drawn]]))
            assert torch.equal(alone, together[number])
        unchanged += torch.equal(together, images)
    assert unchanged == 2, "but for the one that does nothing, with either sign"


def test_operations_follow_each_other_and_gray_stays_gray() -> None:
    image = torch.from_numpy(noise(2, 1, 16, 16))
    layers = np.array([[24, 20], [20, 24]])
    both = rand_augment(image, layers)
    assert both.shape == image.shape
    one_by_one = rand_augment(rand_augment(image, layers[:, :1]), layers[:, 1:])
    assert torch.equal(both, one_by_one)


@given(st.integers(0, 2**64 - 1), st.lists(st.integers(0, 2**40), min_size=1, max_size=8, unique=True))
def test_chance_hangs_on_key_image_and_column_alone(key: int, images: list[int]) -> None:
    together = uniform(key, np.array(images), 6)
    assert ((together >= 0) & (together < 1)).all()
    for number, image in enumerate(images):
        assert (uniform(key, np.array([image]), 9)[0, :6] == together[number]).all()


def test_chance_is_even_and_neighbours_are_strangers() -> None:
    found = uniform(12345, np.arange(20_000), 4)
    counts = np.histogram(found, 64, (0, 1))[0]
    expected = found.size / 64
    assert ((counts - expected) ** 2 / expected).sum() < 63 + 5 * math.sqrt(2 * 63), "chi-squared"
    flat = found - 0.5
    for one, other in (
        (flat[:-1], flat[1:]),
        (flat[:, :-1], flat[:, 1:]),
        (flat, uniform(12346, np.arange(20_000), 4) - 0.5),
    ):
        assert abs((one * other).mean() * 12) < 5 / math.sqrt(one.size)


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
