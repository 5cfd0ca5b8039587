"""From-scratch networks against their published sizes."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from torch import nn

from harness.config.schema import ScratchKind, ScratchModel
from harness.errors import ModelError
from harness.models import build_model
from harness.models.scratch import SMALLEST_IMAGE_SIZES, _initialise

PARAMETERS = {
    "lenet": 62_006,
    "keras_cnn": 122_570,
    "wide_cnn": 8_475_530,
    "vgg16": 14_728_266,  # torchvision's vgg16_bn features (14,723,136) and a linear layer 512→10
    "resnet18": 11_173_962,
    "speed_cnn": 1_971_352,  # the published net without its constants: 24·12 filters, 2·(64+256+256) scales
}


@pytest.mark.parametrize("kind", get_args(ScratchKind))
def test_parameter_count(kind: Any) -> None:
    with torch.device("meta"):
        classifier = build_model(ScratchModel(kind=kind), 10)
    assert sum(parameter.numel() for parameter in classifier.parameters()) == PARAMETERS[kind]


@pytest.mark.parametrize("kind", get_args(ScratchKind))
@pytest.mark.parametrize("image_size", [32, 45])
def test_maps_images_to_logits(kind: Any, image_size: int) -> None:
    classifier = build_model(ScratchModel(kind=kind, image_size=image_size), 3).eval()
    logits_BK = classifier(torch.zeros(2, 3, 40, 40, dtype=torch.uint8))
    assert logits_BK.shape == (2, 3)
    assert logits_BK.isfinite().all()


@pytest.mark.parametrize("kind", get_args(ScratchKind))
def test_the_smallest_image_size_works_and_one_less_is_refused(kind: Any) -> None:
    smallest = max(8, SMALLEST_IMAGE_SIZES[kind])  # the schema allows nothing below 8
    classifier = build_model(ScratchModel(kind=kind, image_size=smallest), 10).eval()
    assert classifier(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    if SMALLEST_IMAGE_SIZES[kind] > 8:
        with pytest.raises(ModelError, match=f"use model.image_size={smallest} or more"):
            build_model(ScratchModel(kind=kind, image_size=smallest - 1), 10)


@pytest.mark.parametrize("kind", ["lenet", "keras_cnn", "wide_cnn", "vgg16"])
def test_weights_are_drawn_after_he(kind: Any) -> None:
    torch.manual_seed(0)
    network: Any = build_model(ScratchModel(kind=kind), 10).network
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module.weight.numel() > 1000:
            fan_in = module.weight[0].numel()
            gain = 1.0 if module is network.get_classifier() else math.sqrt(2)
            assert module.weight.std().item() == pytest.approx(gain / math.sqrt(fan_in), rel=0.1)
            assert not module.bias.any()


@pytest.mark.parametrize("kind", ["lenet", "keras_cnn", "wide_cnn", "vgg16", "resnet18"])
def test_glorots_weights_keep_within_their_bound_and_fill_it(kind: Any) -> None:
    torch.manual_seed(0)
    network = build_model(ScratchModel(kind=kind, init="glorot_uniform"), 10).network
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            out, into, *window = module.weight.shape
            bound = math.sqrt(6 / ((into + out) * math.prod(window)))
            assert bound * 0.9 < module.weight.abs().max() <= bound
            assert module.bias is None or not module.bias.any()


def test_pytorchs_init_draws_what_pytorch_draws() -> None:
    """The network of PyTorch's tutorial, built by PyTorch from the same seed."""
    network = build_model(ScratchModel(kind="lenet"), 10).network
    torch.manual_seed(3)
    _initialise(network, "torch")
    torch.manual_seed(3)
    tutorial = nn.ModuleList(
        [nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5), nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)]
    )
    for ours, theirs in zip(network.parameters(), tutorial.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_an_init_that_would_replace_a_computed_layer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"use model.init=default"):
        ScratchModel(kind="speed_cnn", init="torch")


@pytest.mark.parametrize(
    ("normalisation", "expected"), [("data", [0.8, 1.2, 1.0]), ("half", [0.0] * 3), ("none", [0.5] * 3)]
)
def test_pixels_are_normalised_as_asked(normalisation: Any, expected: list[float]) -> None:
    config = ScratchModel(kind="lenet", normalisation=normalisation)
    classifier = build_model(config, 10, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2))
    grey = torch.full((1, 3, 32, 32), 0.5)
    torch.testing.assert_close(classifier.preprocess(grey)[0, :, 0, 0], torch.tensor(expected))
