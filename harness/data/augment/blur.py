"""Gaussian blur and noise of whole batches, with a strength of its own for each image.

`transforms.py` calls these after the colour jitter. Both are what torchvision's functions compute for one
image; a torchvision transform draws one strength for a batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from harness.data.augment.ops import reflect


def draw_strengths(count: int, strongest: float, generator: torch.Generator) -> Tensor:
    """Draw a standard deviation for each image, float (B,), uniform from 0 to the strongest."""
    return strongest * torch.rand(count, generator=generator, device=generator.device)


def blur_radius(strongest: float) -> int:
    """Return how many pixels far the widest blur looks: three standard deviations."""
    return math.ceil(3 * strongest)


def blur(images_BCHW: Tensor, sigmas_B: Tensor, radius: int) -> Tensor:
    """Convolve each image with a Gaussian of its own width; borders are reflected.

    The convolution is separable, and along each axis it is one product with a matrix per image, which holds
    the kernel at every position, the reflection included. For 32 pixels that takes half the time of a grouped
    convolution, and for 224 as long.

    Args:
        images_BCHW: float.
        sigmas_B: Standard deviations in pixels; at 0 an image stays as it is.
        radius: The kernels have 2 · radius + 1 weights.
    """
    offsets = torch.arange(-radius, radius + 1, device=sigmas_B.device)
    ratios = offsets / sigmas_B.clamp(min=1e-3)[:, None]
    kernels_BK = torch.softmax(-0.5 * ratios**2, dim=1)
    height, width = images_BCHW.shape[-2:]
    down, across = _placed(kernels_BK, height)[:, None], _placed(kernels_BK, width)[:, None]
    return down @ images_BCHW @ across.transpose(2, 3)


def _placed(kernels_BK: Tensor, size: int) -> Tensor:
    """Return the matrices (B, size, size) that apply the kernels along an axis of that many pixels."""
    (batch, taps), radius = kernels_BK.shape, kernels_BK.shape[1] // 2
    offsets = torch.arange(-radius, radius + 1, device=kernels_BK.device)
    sources = torch.arange(size, device=kernels_BK.device)[:, None] + offsets
    weights = kernels_BK[:, None].expand(batch, size, taps)
    sources = reflect(sources, size).expand(batch, size, taps)
    return kernels_BK.new_zeros(batch, size, size).scatter_add_(2, sources, weights)


def draw_noise(images_BCHW: Tensor, strongest: float, generator: torch.Generator) -> Tensor:
    """Draw Gaussian noise for each pixel and channel, of a deviation of its own for each image, float."""
    deviations = draw_strengths(len(images_BCHW), strongest, generator)
    noise = torch.randn(images_BCHW.shape, generator=generator, device=generator.device)
    return noise * deviations[:, None, None, None]


def add_noise(images_BCHW: Tensor, noise: Tensor) -> Tensor:
    """Add noise to float images in [0, 1], and clip them to it, as torchvision does."""
    return (images_BCHW + noise).clamp(0.0, 1.0)
