"""The speed record's CNN: its whitening is one, and everything else in it is as published."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harness.config.finetune import Full, Partial
from harness.config.schema import ScratchModel
from harness.models import ImageClassifier, apply_freezing, build_model
from harness.models.protocol import InitialisedFromImages
from harness.models.speed import WHITENING_EPS, DiracConv, SpeedNet, Whitening


@pytest.fixture
def images() -> Tensor:
    """Noise whose neighbouring pixels and channels are correlated, as those of photographs."""
    noise = torch.randn(300, 4, 11, 11, generator=torch.Generator().manual_seed(0))
    smooth = nn.functional.avg_pool2d(noise, 3, stride=1)
    return smooth[:, :3] * torch.tensor([1.0, 2.0, 0.5])[:, None, None] + smooth[:, 3:]


def speed_cnn(num_classes: int = 10) -> ImageClassifier:
    torch.manual_seed(0)
    return build_model(ScratchModel(kind="speed_cnn"), num_classes)


def test_whitened_patches_are_uncorrelated_with_unit_variance(images: Tensor) -> None:
    whiten = Whitening()
    whiten.init_from_images(images)
    with torch.no_grad():
        responses_BDHW = nn.functional.conv2d(images, whiten.weight[:12])
    responses_DN = responses_BDHW.transpose(0, 1).flatten(1).numpy()
    second_moments = responses_DN @ responses_DN.T / responses_DN.shape[1]
    variances = np.diag(second_moments)
    np.testing.assert_allclose(second_moments - np.diag(variances), 0.0, atol=1e-3)
    # variance v becomes v / (v + eps): 1, unless there was next to none
    raw = nn.functional.unfold(images, 2).transpose(0, 1).flatten(1).numpy()
    v = np.linalg.eigvalsh(raw @ raw.T / raw.shape[1])
    np.testing.assert_allclose(variances, v / (v + WHITENING_EPS), rtol=2e-3)


def test_every_whitening_filter_comes_in_both_signs(images: Tensor) -> None:
    whiten = Whitening()
    whiten.init_from_images(images)
    assert torch.equal(whiten.weight[:12], -whiten.weight[12:])


def test_only_the_bias_of_the_whitening_and_of_the_norms_learns() -> None:
    classifier = speed_cnn()
    apply_freezing(classifier, Full())
    learning = {name: p for name, p in classifier.network.named_parameters() if p.requires_grad}
    assert "whiten.bias" in learning
    assert "whiten.weight" not in learning
    norms = [name for name, m in classifier.network.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 6
    for name in norms:
        assert f"{name}.bias" in learning
        assert f"{name}.weight" not in learning
    # nothing of it is lost on the way into a checkpoint
    assert {"whiten.weight", *(f"{name}.weight" for name in norms)} <= set(classifier.network.state_dict())


def test_convolutions_start_by_handing_their_input_on() -> None:
    conv = DiracConv(5, 9)
    maps = torch.randn(2, 5, 6, 6)
    out = conv(maps)
    torch.testing.assert_close(out[:, :5], maps)
    assert not torch.allclose(out[:, 5:9], out[:, :4])


def test_forward_is_the_published_chain_of_operations() -> None:
    """Written out with torch's functions, from the source and not from the class."""
    network: Any = speed_cnn().network.eval()
    f = nn.functional
    images = torch.randn(2, 3, 32, 32)
    x = f.gelu(f.conv2d(images, network.whiten.weight, network.whiten.bias))
    for conv1, _, norm1, _, conv2, norm2, _ in network.groups:
        x = f.max_pool2d(f.conv2d(x, conv1.weight, padding="same"), 2)
        x = f.gelu(
            (x - norm1.running_mean[:, None, None]) / (norm1.running_var[:, None, None] + 1e-12).sqrt()
        )
        x = f.conv2d(x, conv2.weight, padding="same")
        x = f.gelu(
            (x - norm2.running_mean[:, None, None]) / (norm2.running_var[:, None, None] + 1e-12).sqrt()
        )
    expected = f.max_pool2d(x, 3).flatten(1) @ network.head.weight.T / 256
    with torch.no_grad():
        torch.testing.assert_close(network(images), expected)


def test_asks_to_be_shown_images_and_others_do_not() -> None:
    assert isinstance(speed_cnn().network, InitialisedFromImages)
    assert not isinstance(build_model(ScratchModel(kind="lenet"), 10).network, InitialisedFromImages)


def test_depth_groups_are_the_whitening_and_three_groups() -> None:
    report = apply_freezing(speed_cnn(), Partial(trainable_groups=4))
    assert report.trainable_groups == ("whiten", "groups.0", "groups.1", "groups.2")


def test_it_can_be_described_without_memory() -> None:
    with torch.device("meta"):
        assert SpeedNet(10).whiten.weight.is_meta
