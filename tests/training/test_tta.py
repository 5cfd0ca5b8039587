"""Test-time augmentation against views made by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.training.tta import predict_logits


def network(images_BCHW: Tensor) -> Tensor:
    """Not linear and not symmetric, so that no view can stand in for another."""
    pixels = images_BCHW.float().flatten(1)
    weights = torch.randn(pixels.shape[1], 4, generator=torch.Generator().manual_seed(1))
    return (pixels @ weights / 1000).tanh()


IMAGES = torch.randint(0, 256, (5, 3, 9, 9), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def test_none_is_the_network_itself() -> None:
    averaged, plain = predict_logits(network, IMAGES, "none")
    assert torch.equal(averaged, network(IMAGES))
    assert torch.equal(plain, averaged)


def test_flip_is_the_mean_over_both_mirror_images() -> None:
    averaged, plain = predict_logits(network, IMAGES, "flip")
    torch.testing.assert_close(averaged, (network(IMAGES) + network(IMAGES.flip(3))) / 2)
    assert torch.equal(plain, network(IMAGES))


def test_flip_shift_weighs_six_views() -> None:
    padded = F.pad(IMAGES.float(), (1, 1, 1, 1), mode="reflect")
    expected = torch.zeros(5, 4)
    for shift, weight in ((0, 0.5), (-1, 0.25), (1, 0.25)):
        window = padded[:, :, 1 + shift : 10 + shift, 1 + shift : 10 + shift]
        expected += weight * (network(window) + network(window.flip(3))) / 2
    averaged, plain = predict_logits(network, IMAGES, "flip_shift")
    torch.testing.assert_close(averaged, expected)
    assert torch.equal(plain, network(IMAGES))
