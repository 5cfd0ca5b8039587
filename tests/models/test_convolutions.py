"""The short ways through a convolution must be torch's own, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from harness.config.schema import EfficientNetLite0
from harness.models import build_model, convolutions
from harness.models.convolutions import (
    DepthwiseConv2d,
    PointwiseConv2d,
    depthwise_as_sum,
    speed_up_convolutions,
)


def sped_up(conv: nn.Conv2d) -> nn.Module:
    network = nn.Sequential(conv)
    speed_up_convolutions(network)
    return network[0]


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


@pytest.mark.parametrize("bias", [True, False])
def test_a_pointwise_convolution_is_a_matrix_product(bias: bool) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 7, 1, bias=bias)
    images = torch.randn(2, 5, 3, 4).contiguous(memory_format=torch.channels_last)
    expected = conv(images)
    expected_gradients = torch.autograd.grad(expected.square().sum(), list(conv.parameters()))

    faster = sped_up(conv)
    found = faster(images)

    assert type(faster) is PointwiseConv2d
    assert list(faster.parameters()) == list(conv.parameters())

    assert torch.allclose(found, expected, atol=1e-6)
    assert found.is_contiguous(memory_format=torch.channels_last)
    gradients = torch.autograd.grad(found.square().sum(), list(conv.parameters()))
    assert all(torch.allclose(*pair, atol=1e-5) for pair in zip(gradients, expected_gradients, strict=True))


def test_it_is_taken_on_small_maps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
    sizes = []
    monkeypatch.setattr(
        convolutions, "depthwise_as_sum", lambda images, weight: sizes.append(images.shape[-1]) or images
    )
    faster = sped_up(conv)

    for size in (1, 2, 3):
        faster(torch.zeros(1, 4, size, size))

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
        nn.Conv2d(4, 8, 1, stride=2),
        nn.Conv2d(4, 8, 1, groups=2),
        nn.Conv2d(4, 8, 1, padding=1),
    ],
    ids=[
        "3x3",
        "multiplier",
        "bias",
        "stride",
        "padding",
        "reflect",
        "1x1 stride",
        "1x1 groups",
        "1x1 padding",
    ],
)
def test_other_convolutions_are_left_alone(conv: nn.Conv2d) -> None:
    assert sped_up(conv) is conv


def test_validating_first_does_not_keep_it_from_training() -> None:
    convolutions._taps_between.cache_clear()
    images, weight = torch.randn(2, 4, 2, 2), torch.randn(4, 1, 3, 3, requires_grad=True)
    with torch.inference_mode():
        depthwise_as_sum(images, weight)

    depthwise_as_sum(images, weight).sum().backward()

    assert weight.grad is not None


def test_a_network_computes_the_same() -> None:
    classifier = build_model(EfficientNetLite0(image_size=64, pretrained=False), 10).eval()
    torch.nn.init.normal_(next(classifier.network.get_classifier().parameters()))  # type: ignore[operator]
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    tensors, state = list(classifier.state_dict(keep_vars=True).items()), torch.get_rng_state()
    with torch.inference_mode():
        before = classifier(images)
        speed_up_convolutions(classifier.network)
        after = classifier(images)

    assert torch.equal(torch.get_rng_state(), state)
    for (name, tensor), (was, before_it) in zip(
        classifier.state_dict(keep_vars=True).items(), tensors, strict=True
    ):
        assert name == was
        assert tensor is before_it, name

    kinds = {type(module) for module in classifier.network.modules()}
    assert {PointwiseConv2d, DepthwiseConv2d} <= kinds
    assert torch.allclose(before, after, atol=1e-4)


def test_a_convolution_under_two_names_stays_one_and_keeps_its_mode() -> None:
    shared = nn.Conv2d(4, 4, 1)
    network = nn.Sequential(shared, nn.Sequential(shared)).eval()

    speed_up_convolutions(network)

    assert type(network[0]) is PointwiseConv2d
    assert network[0] is network[1][0]  # type: ignore[index]
    assert not network[0].training


def test_a_convolution_with_a_hook_stays() -> None:
    conv = nn.Conv2d(4, 4, 1)
    conv.register_forward_pre_hook(lambda *_: None)  # as weight norm, which makes the weight in one

    assert sped_up(conv) is conv
