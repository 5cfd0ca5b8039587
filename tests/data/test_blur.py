"""Blur and noise: a strength for each image, and what torchvision computes with it."""

from __future__ import annotations

import torch
from scipy import stats
from torchvision.transforms.v2 import functional as tv

from harness.data.augment import blur

UNLIKELY = 1e-5  # the seeds are fixed: a fair draw that fails here fails for ever


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_blur_equals_torchvision_per_image() -> None:
    photos = torch.rand(12, 3, 10, 14, generator=generator())
    sigmas, radius = torch.linspace(0.0, 2.4, 12), blur.blur_radius(2.4)
    result = blur.blur(photos, sigmas, radius)
    assert radius == 8
    assert torch.equal(result[0], photos[0])
    for image, sigma, ours in zip(photos[1:], sigmas.tolist()[1:], result[1:], strict=True):
        torch.testing.assert_close(ours, tv.gaussian_blur(image, [17, 17], [sigma]), atol=1e-6, rtol=1e-5)


def test_each_image_draws_its_own_strength() -> None:
    sigmas = blur.draw_strengths(5000, 1.5, generator())
    assert stats.kstest(sigmas.numpy(), "uniform", (0, 1.5)).pvalue > UNLIKELY


def test_noise_is_torchvisions_with_a_deviation_for_each_image() -> None:
    grey = torch.full((400, 3, 16, 16), 0.5)
    noise = blur.draw_noise(grey, 0.2, generator())
    deviations = noise.flatten(1).std(1)
    standard = (noise / deviations[:, None, None, None]).flatten()[::31]
    assert stats.kstest(standard.numpy(), "norm").pvalue > UNLIKELY
    assert stats.kstest(deviations.numpy(), "uniform", (0, 0.2)).pvalue > UNLIKELY
    torch.manual_seed(0)
    for row in range(3):
        theirs = tv.gaussian_noise(grey[row], sigma=float(deviations[row]))
        ours = blur.add_noise(grey[row], noise[row])
        assert stats.ks_2samp(ours.flatten().numpy(), theirs.flatten().numpy()).pvalue > UNLIKELY


def test_noise_stays_within_black_and_white() -> None:
    ends = torch.tensor([0.1, 0.9]).view(2, 1, 1, 1).expand(2, 3, 8, 8)
    noisy = blur.add_noise(ends, torch.randn(2, 3, 8, 8, generator=generator()))
    assert (float(noisy.min()), float(noisy.max())) == (0.0, 1.0)
