"""Stems for small images: the published CIFAR network, maps at 32 pixels, and a line for each misfit."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

from harness.config.schema import EfficientNetLite0, ScratchModel, TimmModel
from harness.errors import ModelError
from harness.models import ImageClassifier, build_model
from harness.models.pretrained import read_packaged


def features_of(classifier: ImageClassifier) -> torch.Size:
    with torch.inference_mode():
        return classifier.network.eval().forward_features(torch.zeros(1, 3, 32, 32)).shape  # type: ignore[operator]


def test_it_is_the_resnet_that_he_et_al_train_on_cifar() -> None:
    ours = build_model(ScratchModel(kind="resnet18"), 10).network.eval()
    timms = build_model(TimmModel(name="resnet18", stem="small_image", image_size=32), 10).network.eval()
    timms.load_state_dict(ours.state_dict())
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(timms(images), ours(images))


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("resnet18", 1, 4),
        ("resnet50d", 1, 4),
        ("resnetv2_50", 1, 4),
        ("densenet121", 1, 4),
        ("regnety_004", 1, 2),
        ("mobilenetv3_small_050", 1, 2),
        ("convnext_atto", 1, 4),
    ],
)
def test_more_is_left_of_32_pixels(name: str, before: int, after: int) -> None:
    usual = build_model(TimmModel(name=name, image_size=32), 10)
    assert features_of(usual)[-2:] == (before, before)
    small = build_model(TimmModel(name=name, stem="small_image", image_size=32), 10)
    assert features_of(small)[-2:] == (after, after)


def test_a_pretrained_network_keeps_all_its_weights() -> None:
    small = build_model(EfficientNetLite0(stem="small_image", image_size=32), 10)
    usual = build_model(EfficientNetLite0(image_size=32), 10)
    packaged = read_packaged("efficientnet_lite0", small.network)
    state = small.network.state_dict()
    assert {name for name in state if not torch.equal(state[name], packaged[name])} == {
        "classifier.weight",
        "classifier.bias",
    }
    assert features_of(usual)[-2:] == (1, 1)
    assert features_of(small)[-2:] == (2, 2)
    # The same filters at twice as many places: every second of them is where the usual stem has its own.
    image = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        fine, coarse = (model.network.conv_stem(image) for model in (small, usual))  # type: ignore[operator]
    # TensorFlow pads an even size by one pixel at the end for stride 2, and on both sides for stride 1.
    torch.testing.assert_close(fine[:, :, 1:-1:2, 1:-1:2], coarse[:, :, :-1, :-1])


def test_a_pretrained_kernel_of_seven_pixels_stays(tmp_path) -> None:  # type: ignore[no-untyped-def]
    network = timm.create_model("resnet18")
    torch.save(network.state_dict(), tmp_path / "resnet18.pth")
    config = TimmModel(
        name="resnet18", weights=str(tmp_path / "resnet18.pth"), stem="small_image", image_size=32
    )
    small = build_model(config, 10).network
    assert torch.equal(small.conv1.weight, network.conv1.weight)  # type: ignore[union-attr]
    assert isinstance(small.maxpool, nn.Identity)
    rebuilt = build_model(config, 10, load_weights=False).network  # as a checkpoint's model is
    rebuilt.load_state_dict(copy.deepcopy(small.state_dict()))


@pytest.mark.parametrize(
    ("name", "weights", "problem"),
    [
        ("vit_tiny_patch16_224", None, r"vit_tiny_patch16_224 cuts its input into patches of 16×16 pixels"),
        ("repvgg_a0", None, r"repvgg_a0 does not begin with a single convolution"),
        ("vgg11", None, r"vgg11 begins with stride 1"),
        ("test_convnext", "here", r"test_convnext cuts its input into patches of 4×4 pixels"),
    ],
)
def test_a_network_without_such_a_stem_is_named(name: str, weights: str | None, problem: str) -> None:
    config = TimmModel(name=name, stem="small_image", weights=weights)
    with pytest.raises(ModelError, match=problem) as raised, torch.device("meta"):
        build_model(config, 10, load_weights=False)
    assert "use model.stem=default" in str(raised.value)
