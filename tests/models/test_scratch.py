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
from harness.models.scratch import SMALLEST_IMAGE_SIZES

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


def test_the_given_statistics_normalise_the_input() -> None:
    classifier = build_model(ScratchModel(kind="lenet"), 10, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2))
    grey = torch.full((1, 3, 32, 32), 0.5)
    torch.testing.assert_close(classifier.preprocess(grey)[0, :, 0, 0], torch.tensor([0.8, 1.2, 1.0]))
