"""Augmentation: the draws are independent and fair, and what is applied equals torchvision image by image.

AugMix, blur and noise: `test_augmix.py`, `test_blur.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from harness.config.schema import AugmentConfig
from harness.data.augment import auto_augment, ops, transforms
from harness.data.augment.transforms import BatchAugment
from harness.errors import ConfigError

UNLIKELY = 1e-5  # the seeds are fixed: a fair draw that fails here fails for ever


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def photos() -> Tensor:
    """Smooth random images, uint8 (16, 3, 20, 24) in channels_last, one of them grey and one of them flat."""
    coarse = torch.rand(16, 3, 5, 6, generator=generator())
    smooth = torch.nn.functional.interpolate(coarse, (20, 24), mode="bilinear") * 255
    smooth[3] = smooth[3, :1]
    smooth[4] = 77
    return smooth.to(torch.uint8).contiguous(memory_format=torch.channels_last)


def assert_fair(counts: Tensor) -> None:
    assert stats.chisquare(counts.numpy()).pvalue > UNLIKELY


# ── crop and flip ─────────────────────────────────────────────────────────────────────────────────


def test_crop_and_flip_equal_torchvision_per_image(photos: Tensor) -> None:
    offsets = transforms.draw_offsets(16, 6, generator())
    flips = transforms.draw_flips(16, 0.5, generator())
    result = transforms.crop_and_flip(photos, offsets, flips)
    for image, (down, right), flip, ours in zip(photos, offsets.tolist(), flips, result, strict=True):
        padded = tv.pad(image, [6], padding_mode="reflect")
        expected = tv.crop(padded, 6 + down, 6 + right, 20, 24)
        assert torch.equal(ours, tv.horizontal_flip(expected) if flip else expected)


def test_offsets_are_uniform_and_independent() -> None:
    offsets = transforms.draw_offsets(20_000, 2, generator()) + 2
    pairs = offsets[:, 0] * 5 + offsets[:, 1]
    assert_fair(pairs.bincount(minlength=25))
    assert_fair((pairs[:-1] * 25 + pairs[1:]).bincount(minlength=625))  # of neighbours in a batch


def test_flips_are_fair_and_independent() -> None:
    flips = transforms.draw_flips(20_000, 0.5, generator()).long()
    assert_fair((flips[:-1] * 2 + flips[1:]).bincount(minlength=4))


def test_a_border_wider_than_the_image_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"augment\.crop_padding=32"):
        transforms.check_fits(AugmentConfig(crop_padding=32), 32, 40)
    transforms.check_fits(AugmentConfig(crop_padding=31), 32, 40)


# ── rotation and scale ────────────────────────────────────────────────────────────────────────────


def test_rotation_and_scale_equal_torchvision_per_image(photos: Tensor) -> None:
    degrees, scales = torch.linspace(-180, 170, 16), torch.linspace(1.6, 0.4, 16)
    result = ops.rotate_and_scale(photos, degrees, scales)
    for image, angle, scale, ours in zip(photos, degrees.tolist(), scales.tolist(), result, strict=True):
        bilinear = v2.InterpolationMode.BILINEAR
        expected = tv.affine(image, -angle, [0, 0], scale, [0.0, 0.0], interpolation=bilinear)
        assert (ours.int() - expected.int()).abs().max() <= 1


def test_angles_and_factors_fill_their_ranges() -> None:
    turns = transforms.draw_turns(5000, AugmentConfig(rotation=30, scale=0.2), generator()).numpy()
    for drawn, low, high in zip(turns, (-30, 0.8), (30, 1.2), strict=True):
        assert stats.kstest(drawn, "uniform", (low, high - low)).pvalue > UNLIKELY
    assert abs(np.corrcoef(turns)[0, 1]) < 0.06


# ── colour ────────────────────────────────────────────────────────────────────────────────────────


def test_jitter_equals_torchvision_per_image(photos: Tensor) -> None:
    config = AugmentConfig(brightness=0.8, contrast=0.8, saturation=0.9, hue=0.5)
    factors = transforms.draw_jitter(photos, config, generator())
    images = photos / 255
    result = transforms.jitter_colours(images, factors)
    for image, (brightness, contrast, saturation, hue), ours in zip(
        images, factors.T.tolist(), result, strict=True
    ):
        expected = tv.adjust_brightness(image, brightness)
        expected = tv.adjust_contrast(expected, contrast)
        expected = tv.adjust_saturation(expected, saturation)
        torch.testing.assert_close(ours, tv.adjust_hue(expected, hue), atol=2e-4, rtol=0)


def test_jitter_factors_fill_their_range() -> None:
    config = AugmentConfig(brightness=0.4, contrast=0.2, saturation=0.0, hue=0.1)
    factors = transforms.draw_jitter(torch.empty(5000, 3, 1, 1), config, generator())
    for drawn, low, high in zip(factors, (0.6, 0.8, 1.0, -0.1), (1.4, 1.2, 1.0, 0.1), strict=True):
        if low == high:
            assert (drawn == low).all()
        else:
            assert stats.kstest(drawn.numpy(), "uniform", (low, high - low)).pvalue > UNLIKELY
    assert abs(float(torch.corrcoef(factors[[0, 1, 3]])[0, 1])) < 0.1


# ── the operations of the policies ────────────────────────────────────────────────────────────────


def by_torchvision(name: str) -> Callable[[Tensor, float], Tensor]:
    """Apply an operation to one image as torchvision's own policies do."""
    policy = v2.TrivialAugmentWide()
    nearest = v2.InterpolationMode.NEAREST
    return lambda image, magnitude: policy._apply_image_or_video_transform(
        image, name, magnitude, nearest, {}
    )


@pytest.mark.parametrize("name", v2.TrivialAugmentWide._AUGMENTATION_SPACE)
def test_operations_equal_torchvision_per_image(name: str, photos: Tensor) -> None:
    position = list(v2.TrivialAugmentWide._AUGMENTATION_SPACE).index(name)
    choice = auto_augment.trivial_augment_ops()[position]
    signs = torch.tensor([1.0, -1.0]).repeat(8) if choice.is_signed else torch.ones(16)
    magnitudes = torch.linspace(choice.weakest, choice.strongest, 16) * signs
    if name == "Posterize":
        magnitudes = magnitudes.round()
    result = choice.apply(photos, magnitudes)
    assert result.dtype == torch.uint8
    for image, magnitude, ours in zip(photos, magnitudes.tolist(), result, strict=True):
        as_they_want = magnitude / 255 if name == "Solarize" else magnitude
        expected = by_torchvision(name)(image, as_they_want)
        gaps = (ours.int() - expected.int()).abs()
        if name in ("ShearX", "ShearY", "Rotate"):  # rounding decides between two nearest pixels
            assert (gaps > 1).float().mean() < 0.01
        else:
            assert gaps.max() <= 1


@pytest.mark.parametrize("policy", ["trivial", "rand"])
def test_magnitude_spaces_are_torchvisions(policy: str) -> None:
    theirs = (v2.TrivialAugmentWide if policy == "trivial" else v2.RandAugment)._AUGMENTATION_SPACE
    ours = (
        auto_augment.trivial_augment_ops() if policy == "trivial" else auto_augment.rand_augment_ops(20, 24)
    )
    bins = torch.arange(31)
    for index, (name, (space, is_signed)) in enumerate(theirs.items()):
        expected = space(31, 20, 24)
        drawn = auto_augment.magnitudes_of(ours, torch.full_like(bins, index), bins, torch.ones(31))
        assert ours[index].is_signed == is_signed
        if expected is None:
            continue
        if name == "Posterize":
            drawn = drawn.round().int()
        scale = 255 if name == "Solarize" else 1
        torch.testing.assert_close(drawn, expected * scale, atol=1e-4, rtol=1e-5)


def test_each_image_draws_its_own_operation_and_sign() -> None:
    drawn, signs = auto_augment.draw_ops(20_000, 14, generator())
    assert_fair(drawn.bincount(minlength=14))
    assert_fair((drawn[:-1] * 14 + drawn[1:]).bincount(minlength=196))
    assert_fair((drawn * 2 + (signs > 0)).bincount(minlength=28))


def test_images_are_grouped_without_being_mixed_up(photos: Tensor) -> None:
    choices = auto_augment.trivial_augment_ops()
    drawn = torch.arange(16) % len(choices)
    bins, signs = torch.arange(16) * 2, torch.ones(16)
    magnitudes = auto_augment.magnitudes_of(choices, drawn, bins, signs)
    together = auto_augment.apply_ops(photos, choices, drawn, magnitudes)
    for row, index in enumerate(drawn.tolist()):
        alone = choices[index].apply(photos[row : row + 1], magnitudes[row : row + 1])
        assert torch.equal(together[row], alone[0])


def test_rand_augment_applies_several_operations(photos: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    applied = []

    def count(images: Tensor, *rest: object) -> Tensor:
        applied.append(rest)
        return images

    monkeypatch.setattr(auto_augment, "apply_ops", count)
    auto_augment.RandAugment(num_ops=3, magnitude=9)(photos, generator())
    assert len(applied) == 3


def test_a_translation_of_a_known_image() -> None:
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    images[:, :, 2, 3] = 200
    moved = ops.translate_x(images, torch.tensor([2.7, -3.0]))
    assert moved[0, 0].nonzero().tolist() == [[2, 5]]
    assert moved[1, 0].nonzero().tolist() == [[2, 0]]


# ── cutout and erasing ────────────────────────────────────────────────────────────────────────────


def test_cutout_covers_one_square_clipped_at_the_border() -> None:
    images = torch.zeros(3, 3, 12, 10, dtype=torch.uint8)
    centres = torch.tensor([[6, 5], [0, 0], [11, 9]])
    result = transforms.cut_out(images, centres, 4)
    for image, rows, columns in zip(
        result,
        (slice(4, 8), slice(0, 2), slice(9, 12)),
        (slice(3, 7), slice(0, 2), slice(7, 10)),
        strict=True,
    ):
        expected = torch.zeros(3, 12, 10, dtype=torch.uint8)
        expected[:, rows, columns] = 128
        assert torch.equal(image, expected)


def test_cutout_centres_are_uniform() -> None:
    centres = transforms.draw_centres(torch.empty(20_000, 3, 5, 4), generator())
    assert_fair((centres[:, 0] * 4 + centres[:, 1]).bincount(minlength=20))


def test_erased_boxes_have_the_papers_shapes() -> None:
    boxes = transforms.draw_boxes(torch.empty(5000, 3, 64, 64), 0.25, generator())
    tall, wide = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    erased = tall > 0
    assert stats.binomtest(int(erased.sum()), 5000, 0.25).pvalue > UNLIKELY
    assert torch.equal(erased, wide > 0)
    assert boxes.min() >= 0
    assert boxes.max() <= 64
    area = (tall * wide)[erased] / 64**2
    ratio = tall[erased] / wide[erased]
    assert 0.015 < area.min() < 0.04
    assert 0.3 < area.max() < 0.345
    assert 0.26 < ratio.min() < 0.4
    assert 2.5 < ratio.max() < 3.8
    assert abs(float(ratio.log().mean())) < 0.1


def test_erased_boxes_are_distributed_as_torchvisions() -> None:
    torch.manual_seed(0)
    reference = v2.RandomErasing(p=1.0, scale=transforms.ERASED_AREA, ratio=transforms.ERASED_RATIO)
    drawn = [reference.make_params([torch.empty(3, 32, 24)]) for _ in range(5000)]
    boxes = transforms.draw_boxes(torch.empty(20_000, 3, 32, 24), 1.0, generator())
    boxes = boxes[boxes[:, 2] > 0].numpy()  # of ten tries, each may have been too large
    theirs = np.array(
        [(p["i"], p["j"], p["i"] + p["h"], p["j"] + p["w"]) for p in drawn if p["v"] is not None]
    )
    for ours, other in zip(numbers_of(boxes), numbers_of(theirs), strict=True):
        assert stats.ks_2samp(ours, other).pvalue > UNLIKELY


def numbers_of(boxes: np.ndarray) -> list[np.ndarray]:
    tall, wide = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    return [boxes[:, 0], boxes[:, 1], tall, wide, tall * wide]


def test_erasing_touches_the_box_alone(photos: Tensor) -> None:
    boxes = torch.zeros(16, 4, dtype=torch.int64)
    boxes[5] = torch.tensor([2, 3, 9, 20])
    result = transforms.erase(photos, boxes, generator())
    changed = (result != photos).any(dim=1)
    assert changed[5, 2:9, 3:20].float().mean() > 0.95
    changed[5, 2:9, 3:20] = False
    assert not changed.any()


# ── the whole ─────────────────────────────────────────────────────────────────────────────────────

EVERYTHING = AugmentConfig(
    flip=True, crop_padding=3, policy="rand", brightness=0.2, hue=0.1, cutout_size=5, erasing_probability=0.5
)


def test_nothing_on_returns_the_input_itself(photos: Tensor) -> None:
    assert BatchAugment(AugmentConfig())(photos, generator()) is photos


NEWER = AugmentConfig(policy="augmix", rotation=10, scale=0.1, blur_sigma=1.0, noise_std=0.1)


@pytest.mark.parametrize(
    "config", [EVERYTHING, NEWER, AugmentConfig(flip=True, policy="trivial", cutout_size=4)]
)
def test_the_seed_decides_everything(config: AugmentConfig, photos: Tensor) -> None:
    untouched = photos.clone()
    augment = BatchAugment(config)
    one, two, other = (augment(photos, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(photos, untouched)
    assert one.shape == photos.shape
    assert one.is_contiguous(memory_format=torch.channels_last)


def test_types_and_ranges(photos: Tensor) -> None:
    geometric = BatchAugment(AugmentConfig(flip=True, crop_padding=4, cutout_size=3, policy="trivial"))
    assert geometric(photos, generator()).dtype == torch.uint8
    jittered = BatchAugment(EVERYTHING)(photos, generator())
    assert jittered.dtype == torch.float32
    assert float(jittered.min()) >= 0.0
    assert 0.5 < float(jittered.max()) <= 1.0


def test_equal_images_are_augmented_differently(photos: Tensor) -> None:
    same = photos[:1].expand(64, -1, -1, -1)
    result = BatchAugment(AugmentConfig(flip=True, crop_padding=4))(same, generator())
    assert len({image.numpy().tobytes() for image in result}) > 40
