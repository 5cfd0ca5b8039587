"""The maps must lie where the class is decided; a network without a usable layer gets a reason, not a map."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from harness.config.schema import ModelConfig, ScratchKind, ScratchModel, TimmModel
from harness.models import ImageClassifier, build_model
from harness.models.protocol import heads
from harness.pictures.gradcam import (
    NoMapError,
    choose_layer,
    evidence_for,
    overlay,
    right_examples_figure,
    wrong_examples_figure,
)
from harness.pictures.layers import Probed, maps_of, to_device
from tests.helpers.drawing import drawn
from tests.pictures.conftest import assert_no_overlap, noise, note_of, some_predictions

SCRATCH: tuple[ScratchKind, ...] = ("lenet", "keras_cnn", "wide_cnn", "vgg16", "resnet18", "speed_cnn")
TIMM = (
    ("resnet18", 64, "layer3", (4, 4)),  # the last map is 2×2
    ("tf_efficientnet_lite0", 128, "last features", (4, 4)),
    ("tf_efficientnet_lite0", 32, "blocks.2", (4, 4)),  # the last map is 1×1
    ("convnext_atto", 128, "last features", (4, 4)),
    ("vit_tiny_patch16_224", 64, "blocks.11.norm1", (4, 4)),
    ("swin_tiny_patch4_window7_224", 128, "last features", (4, 4)),
    ("mixer_s32_224", 128, "last features", (4, 4)),
)


def built(config: ModelConfig, num_classes: int = 3) -> ImageClassifier:
    torch.manual_seed(0)
    classifier = build_model(config, num_classes)
    for head in heads(classifier.network):
        for parameter in head.parameters():
            nn.init.normal_(parameter)  # some start at zero, and zero speaks for nothing
    return classifier


def some_noise(count: int, size: int) -> np.ndarray:
    return noise(np.arange(count), size)


def cornered(count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return grey noise with a white square anywhere; the class is the colour of the upper left corner.

    The corner is 8×8 of 32×32 pixels: 6 % of the area.
    """
    images = generator.integers(108, 148, (count, 32, 32, 3)).astype(np.uint8)
    labels = np.arange(count) % 2
    for image, (row, column) in zip(images, generator.integers(10, 24, (count, 2)), strict=True):
        image[row : row + 8, column : column + 8] = 250
    images[labels == 1, :8, :8] = (230, 60, 60)
    images[labels == 0, :8, :8] = (60, 60, 230)
    return images, labels


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        (ScratchModel(kind="wide_cnn"), 6),
        pytest.param(TimmModel(name="test_resnet", image_size=128), 12, marks=pytest.mark.slow),
        # The last map is 2×2: these are of an earlier layer.
        (TimmModel(name="test_resnet", image_size=64), 40),
        pytest.param(TimmModel(name="test_efficientnet", image_size=64), 40, marks=pytest.mark.slow),
    ],
    ids=["wide_cnn", "test_resnet", "earlier layer", "earlier layer of test_efficientnet"],
)
def test_the_map_lies_at_the_corner_that_decides_the_class(config: ModelConfig, steps: int) -> None:
    torch.manual_seed(0)
    generator = np.random.default_rng(3)
    classifier = build_model(config, 2, mean=(0.5,) * 3, std=(0.25,) * 3)
    optimizer = torch.optim.Adam(classifier.parameters(), 1e-3)
    for _ in range(steps):
        images, labels = cornered(16, generator)
        optimizer.zero_grad()
        logits = classifier(to_device(classifier, images))
        nn.functional.cross_entropy(logits, torch.from_numpy(labels)).backward()
        optimizer.step()
    classifier.eval()
    images, labels = cornered(32, generator)
    with torch.no_grad():
        assert (classifier(to_device(classifier, images)).argmax(1).numpy() == labels).mean() > 0.95

    maps = evidence_for(classifier, images, labels).maps
    rows, columns = maps.shape[1] // 4 + 1, maps.shape[2] // 4 + 1  # a cell sees a little beyond its place
    shares = maps[:, :rows, :columns].sum((1, 2)) / maps.sum((1, 2)).clip(min=1e-12)
    assert np.median(shares) > 0.7  # of 14 % of the area (3×3 of 8×8 cells) or 25 % (2×2 of 4×4)


@pytest.mark.parametrize("kind", SCRATCH)
def test_every_network_of_the_harness_has_a_map(kind: ScratchKind) -> None:
    maps = evidence_for(built(ScratchModel(kind=kind)), some_noise(4, 32), np.array([0, 1, 2, 0])).maps
    assert min(maps.shape[1:]) >= 4
    assert np.isfinite(maps).all()
    assert (maps >= 0).all()
    assert maps.any()


@pytest.mark.parametrize(("name", "size", "layer", "grid"), TIMM)
def test_timm_networks_of_each_kind_have_a_map(
    name: str, size: int, layer: str, grid: tuple[int, int]
) -> None:
    classifier = built(TimmModel(name=name, image_size=size))
    evidence = evidence_for(classifier, some_noise(2, size), np.array([0, 1]))
    assert evidence.layer == layer
    assert evidence.maps.shape == (2, *grid)
    assert np.isfinite(evidence.maps).all()
    assert evidence.maps.any()


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext"])
def test_behind_average_pooling_it_is_the_map_of_grad_cam(name: str) -> None:
    from captum.attr import LayerGradCam

    classifier = built(TimmModel(name=name, image_size=160)).eval()
    images, classes = some_noise(3, 160), np.array([0, 1, 2])
    found = evidence_for(classifier, images, classes)
    assert found.layer == "last features"
    probed = Probed(classifier)
    reference = LayerGradCam(probed, probed.probe).attribute(
        to_device(classifier, images).float() / 255, target=torch.from_numpy(classes), relu_attributions=True
    )
    theirs = reference.detach().numpy()[:, 0]
    assert theirs.any()
    if name == "test_convnext":  # its norm after the pooling bends the gradient a little, alike in all cells
        assert np.corrcoef(found.maps.ravel(), theirs.ravel())[0, 1] > 0.99
    else:
        np.testing.assert_allclose(found.maps, theirs, rtol=1e-3, atol=1e-4 * theirs.max())


def test_the_tokens_of_a_vit_lie_at_their_patches() -> None:
    classifier = built(TimmModel(name="vit_tiny_patch16_224", image_size=64)).eval()
    plain = np.full((1, 64, 64, 3), 128, np.uint8)
    marked = plain.copy()
    marked[0, 16:32, 48:64] = 255  # row 1, column 3 of 4×4 patches
    probed = Probed(classifier)
    first, second = (next(iter(maps_of(probed, to_device(classifier, x)).values())) for x in (plain, marked))
    change_HW = (second - first)[0].abs().sum(0)
    assert divmod(int(change_HW.argmax()), 4) == (1, 3)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("cait_xxs24_224", "reads a class token"), ("levit_128s", "No layer of this network")],
)
def test_a_network_without_a_usable_layer_gets_a_reason(name: str, reason: str) -> None:
    classifier = built(TimmModel(name=name, image_size=224))
    with pytest.raises(NoMapError, match=reason):
        choose_layer(Probed(classifier), to_device(classifier, some_noise(1, 224)))


def test_a_picture_without_a_map_says_why() -> None:
    classifier = built(TimmModel(name="test_resnet", image_size=16), 4)  # its maps are 4×4, 2×2, 1×1
    classifier.network.feature_info = []
    figure = right_examples_figure(classifier, some_predictions(), lambda p: noise(p, 16))
    assert "Not drawn: No layer of this network" in note_of(figure)


def test_modes_gradients_and_frozen_parameters_are_left_as_they_were() -> None:
    classifier = built(TimmModel(name="test_efficientnet", image_size=64))
    classifier.train()
    classifier.network.get_submodule("conv_stem").eval()
    classifier.requires_grad_(False)
    modes = {name: module.training for name, module in classifier.named_modules()}
    state = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    images, classes = some_noise(2, 64), np.array([0, 1])

    frozen = evidence_for(classifier, images, classes).maps
    assert {name: module.training for name, module in classifier.named_modules()} == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in classifier.state_dict().items())
    assert not any(parameter.requires_grad for parameter in classifier.parameters())

    classifier.requires_grad_(True)
    assert np.array_equal(evidence_for(classifier, images, classes).maps, frozen)
    assert all(parameter.grad is None for parameter in classifier.parameters())
    assert not any(module._forward_hooks for module in classifier.modules())


def test_an_image_without_evidence_is_all_dark_and_not_nan() -> None:
    dark = overlay(np.full((32, 32, 3), 100, np.uint8), np.zeros((4, 4), np.float32))
    assert dark.shape == (128, 128, 3)
    assert len(np.unique(dark.reshape(-1, 3), axis=0)) == 1


@pytest.mark.parametrize("draw", [right_examples_figure, wrong_examples_figure])
def test_the_picture_names_the_layer(draw) -> None:  # type: ignore[no-untyped-def]
    figure = draw(built(ScratchModel(kind="lenet"), 4), some_predictions(), noise)
    assert "Gradient × activation at stages.1.2 (5×5 cells)" in note_of(figure)
    assert_no_overlap(figure)
    drawn(figure)
