"""Mixup and cutmix: fair and independent draws, applied as torchvision does to one pair at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import v2

from harness.config.compose import compose_run
from harness.config.schema import AugmentConfig
from harness.data.augment.mixing import BatchMix, MixDraws, blend_images, draw_mix, mix_labels, paste_boxes
from harness.data.augment.transforms import box_mask

UNLIKELY = 1e-5  # the seeds are fixed: a fair draw that fails here fails for ever
BATCH, HEIGHT, WIDTH, CLASSES = 16, 12, 10, 5
MIXUP, CUTMIX = AugmentConfig(mixup_alpha=0.4), AugmentConfig(cutmix_alpha=1.0)
BOTH = AugmentConfig(mixup_alpha=0.4, cutmix_alpha=1.0)


def draws_of(config: AugmentConfig, batch: int = BATCH, seed: int = 0) -> MixDraws:
    return draw_mix(batch, (HEIGHT, WIDTH), config, np.random.default_rng(seed))


@pytest.fixture
def photos() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (BATCH, 3, HEIGHT, WIDTH), dtype=torch.uint8, generator=generator)
    return images.contiguous(memory_format=torch.channels_last)


@pytest.fixture
def labels() -> Tensor:
    return torch.arange(BATCH) % CLASSES


# ── what is applied ───────────────────────────────────────────────────────────────────────────────


def test_mixup_equals_torchvision_per_image(photos: Tensor, labels: Tensor) -> None:
    draws = draws_of(MIXUP)
    images, targets = blend_images(photos, draws), mix_labels(labels, draws, CLASSES, HEIGHT * WIDTH)
    reference = v2.MixUp(num_classes=CLASSES)
    for row, (partner, weight) in enumerate(zip(draws.partners.tolist(), draws.weights, strict=True)):
        pair, pair_labels = photos[[row, partner]] / 255, labels[[row, partner]]
        how = {"lam": float(weight), "labels": pair_labels, "batch_size": 2}
        torch.testing.assert_close(images[row], reference.transform(pair, how)[0])
        torch.testing.assert_close(targets[row], reference.transform(pair_labels, how)[0])


def test_cutmix_equals_torchvision_per_image(photos: Tensor, labels: Tensor) -> None:
    draws = draws_of(CUTMIX)
    images, targets = paste_boxes(photos, draws), mix_labels(labels, draws, CLASSES, HEIGHT * WIDTH)
    assert images.dtype == torch.uint8
    reference = v2.CutMix(num_classes=CLASSES)
    for row, (partner, box) in enumerate(zip(draws.partners.tolist(), draws.boxes.tolist(), strict=True)):
        top, left, bottom, right = box
        share = 1 - (bottom - top) * (right - left) / (HEIGHT * WIDTH)
        pair, pair_labels = photos[[row, partner]], labels[[row, partner]]
        how = {"box": (left, top, right, bottom), "lam_adjusted": share, "labels": pair_labels}
        how["batch_size"] = 2
        assert torch.equal(images[row], reference.transform(pair, how)[0])
        torch.testing.assert_close(targets[row], reference.transform(pair_labels, how)[0])


def test_with_both_on_each_image_takes_one_of_them(photos: Tensor) -> None:
    draws = draws_of(BOTH)
    together = blend_images(photos, draws)
    assert together.dtype == torch.float32
    is_cut = draws.weights == 1
    assert 0 < int(is_cut.sum()) < BATCH
    pasted = paste_boxes(photos, draws).float() / 255
    assert torch.equal(together[is_cut], pasted[is_cut])
    areas = (draws.boxes[:, 2:] - draws.boxes[:, :2]).prod(1)
    assert (areas[~is_cut] == 0).all()


@pytest.mark.parametrize("config", [MIXUP, CUTMIX, BOTH])
def test_label_weights_sum_to_one(config: AugmentConfig, labels: Tensor) -> None:
    targets = mix_labels(labels, draws_of(config), CLASSES, HEIGHT * WIDTH)
    torch.testing.assert_close(targets.sum(1), torch.ones(BATCH))
    assert float(targets.min()) >= 0


@pytest.mark.parametrize("config", [MIXUP, CUTMIX, BOTH])
def test_each_label_weighs_what_its_image_does(config: AugmentConfig, labels: Tensor) -> None:
    """Independent of the formula: paint every image in its own class's channel and look at the mean."""
    painted = torch.eye(CLASSES)[labels][:, :, None, None].expand(-1, -1, HEIGHT, WIDTH)
    draws = draws_of(config, seed=3)
    seen = blend_images(painted, draws).mean(dim=(2, 3))
    torch.testing.assert_close(mix_labels(labels, draws, CLASSES, HEIGHT * WIDTH), seen)


# ── what is drawn ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixup_shares_follow_the_beta_distribution(alpha: float) -> None:
    shares = draws_of(AugmentConfig(mixup_alpha=alpha), 20_000).weights.double().numpy()
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > UNLIKELY
    assert shares.mean() == pytest.approx(0.5, abs=0.01)
    assert shares.var() == pytest.approx(1 / (8 * alpha + 4), rel=0.03)


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_cutmix_boxes_are_distributed_as_torchvisions(alpha: float) -> None:
    torch.manual_seed(0)
    reference, image = v2.CutMix(alpha=alpha, num_classes=CLASSES), torch.empty(1, 3, 64, 48)
    drawn = [reference.make_params([image]) for _ in range(4000)]
    boxes = draw_mix(20_000, (64, 48), AugmentConfig(cutmix_alpha=alpha), np.random.default_rng(0)).boxes
    top, left, bottom, right = boxes.numpy().T
    theirs = np.array([(y1, x1, y2, x2) for x1, y1, x2, y2 in (params["box"] for params in drawn)])
    for our_edge, their_edge in zip((top, left, bottom, right), theirs.T, strict=True):
        assert stats.ks_2samp(our_edge, their_edge).pvalue > UNLIKELY
    shares = 1 - (bottom - top) * (right - left) / (64 * 48)
    assert stats.ks_2samp(shares, [params["lam_adjusted"] for params in drawn]).pvalue > UNLIKELY


def test_cutmix_labels_weigh_the_area_after_clipping(labels: Tensor) -> None:
    draws = draws_of(CUTMIX, seed=5)
    labels = torch.arange(BATCH)  # all different, so that a share can be read off
    targets = mix_labels(labels, draws, BATCH, HEIGHT * WIDTH)
    covered = box_mask(torch.empty(BATCH, 3, HEIGHT, WIDTH), draws.boxes).float().mean(dim=(1, 2, 3))
    moved = draws.partners != labels
    torch.testing.assert_close(targets[labels, labels][moved], 1 - covered[moved])
    touches_border = (draws.boxes == 0).any() or (draws.boxes[:, 2] == HEIGHT).any()
    assert touches_border, "some box must be clipped for this test to mean anything"


def test_multi_hot_labels_are_mixed_label_by_label(labels: Tensor) -> None:
    """One-hot rows give what their classes give, and sums of one-hot rows the sums."""
    draws = draws_of(BOTH)
    other = labels.roll(1)
    hot = [torch.nn.functional.one_hot(one, CLASSES).float() for one in (labels, other)]
    mixed = [mix_labels(one, draws, CLASSES, HEIGHT * WIDTH) for one in (labels, other)]
    assert torch.equal(mix_labels(hot[0], draws, CLASSES, HEIGHT * WIDTH), mixed[0])
    both = mix_labels(hot[0] + hot[1], draws, CLASSES, HEIGHT * WIDTH)
    torch.testing.assert_close(both, mixed[0] + mixed[1])


def test_draws_are_independent_between_images() -> None:
    draws = draws_of(BOTH, 20_000)
    is_cut = (draws.weights == 1).long()
    pairs = (is_cut[:-1] * 2 + is_cut[1:]).bincount(minlength=4)
    assert stats.chisquare(pairs.numpy()).pvalue > UNLIKELY
    shares = draws_of(MIXUP, 20_000).weights.numpy()
    assert abs(np.corrcoef(shares[:-1], shares[1:])[0, 1]) < 0.03
    centres = draws_of(CUTMIX, 20_000).boxes.double().numpy()
    assert abs(np.corrcoef(centres[:-1, 0], centres[1:, 0])[0, 1]) < 0.03


def test_partners_are_a_uniform_permutation() -> None:
    partners = [draws_of(MIXUP, 4, seed=seed).partners for seed in range(2000)]
    assert all(sorted(one.tolist()) == [0, 1, 2, 3] for one in partners)
    counts = torch.stack([one[0] for one in partners]).bincount(minlength=4)
    assert stats.chisquare(counts.numpy()).pvalue > UNLIKELY


# ── the whole ─────────────────────────────────────────────────────────────────────────────────────


def test_nothing_on_returns_the_input_itself(photos: Tensor, labels: Tensor) -> None:
    images, same = BatchMix(AugmentConfig(), CLASSES)(photos, labels, seed=0)
    assert images is photos
    assert same is labels


@pytest.mark.parametrize("config", [MIXUP, CUTMIX, BOTH])
def test_the_seed_decides_everything(config: AugmentConfig, photos: Tensor, labels: Tensor) -> None:
    untouched = photos.clone()
    mix = BatchMix(config, CLASSES)
    (one, its), (two, same), (other, _) = (mix(photos, labels, seed) for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert torch.equal(its, same)
    assert not torch.equal(one, other)
    assert torch.equal(photos, untouched)
    assert one.is_contiguous(memory_format=torch.channels_last)


def test_the_shipped_alternative_mixes() -> None:
    augment = compose_run(["augment=mix"]).augment
    assert augment.mixup_alpha > 0
    assert augment.cutmix_alpha > 0
