"""The short way through a depthwise convolution must be torch's own, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from harness.config.schema import EfficientNetLite0
from harness.models import build_model, depthwise
from harness.models.depthwise import depthwise_as_sum, speed_up_small_maps


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 2), (1, 4), (4, 1), (3, 2)])
def test_it_is_the_convolution(height: int, width: int, kernel: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 6, height, width, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 1, kernel, kernel, generator=generator, dtype=torch.float64, requires_grad=True)
    gradient = torch.randn(3, 6, height, width, generator=generator, dtype=torch.float64)

    expected = F.conv2d(images, weight, padding=kernel // 2, groups=6)
    found = depthwise_as_sum(images, weight)

    assert torch.allclose(found, expected)
    for ours, theirs in zip(
        torch.autograd.grad(found, (images, weight), gradient),
        torch.autograd.grad(expected, (images, weight), gradient),
        strict=True,
    ):
        assert torch.allclose(ours, theirs)


def test_it_is_taken_on_small_maps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
    sizes = []
    monkeypatch.setattr(
        depthwise, "depthwise_as_sum", lambda images, weight: sizes.append(images.shape[-1]) or images
    )
    speed_up_small_maps(conv)

    for size in (1, 2, 3):
        conv(torch.zeros(1, 4, size, size))

    assert sizes == [1, 2]


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 3, padding=1, bias=False),
        nn.Conv2d(4, 8, 3, padding=1, groups=4, bias=False),
        nn.Conv2d(4, 4, 3, padding=1, groups=4),
        nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False, stride=2),
        nn.Conv2d(4, 4, 3, padding=0, groups=4, bias=False),
        nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False, padding_mode="reflect"),
    ],
    ids=["dense", "multiplier", "bias", "stride", "padding", "reflect"],
)
def test_other_convolutions_are_left_alone(conv: nn.Conv2d) -> None:
    speed_up_small_maps(conv)

    assert "forward" not in vars(conv)


def test_a_network_computes_the_same() -> None:
    classifier = build_model(EfficientNetLite0(image_size=64, pretrained=False), 10).eval()
    torch.nn.init.normal_(next(classifier.network.get_classifier().parameters()))  # type: ignore[operator]
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        before = classifier(images)
        speed_up_small_maps(classifier.network)
        after = classifier(images)

    assert sum("forward" in vars(module) for module in classifier.network.modules()) > 3
    assert torch.allclose(before, after, atol=1e-4)
