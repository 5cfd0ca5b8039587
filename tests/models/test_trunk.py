"""Taking a network apart at the frozen boundary must not change what it computes or learns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from harness.config.finetune import LinearProbe, Partial
from harness.config.schema import EfficientNetLite0, ModelConfig, ScratchModel, TimmModel
from harness.models import ImageClassifier, apply_freezing, build_model
from harness.models.convolutions import speed_up_convolutions
from harness.models.trunk import find_boundaries, trunk_activations, trunk_digest

CHAINS = (
    EfficientNetLite0(image_size=32, pretrained=False),
    TimmModel(name="test_efficientnet", image_size=32),
    TimmModel(name="test_resnet", image_size=32),
    TimmModel(name="test_convnext", image_size=32),
    ScratchModel(kind="lenet"),
)


def _images(count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)


def _entered(classifier: ImageClassifier, depth: int) -> Tensor:
    boundary = find_boundaries(classifier, _images(), [depth])[depth]
    activations = trunk_activations(classifier, _images(), [boundary])[depth]
    classifier.enter_at(boundary.entry, boundary.passed)
    return activations


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("config", CHAINS, ids=lambda config: getattr(config, "name", config.kind))
def test_trunk_and_tail_are_the_whole_network(config: ModelConfig, depth: int) -> None:
    classifier = build_model(config, 7).eval()
    torch.nn.init.normal_(next(classifier.network.get_classifier().parameters()))  # type: ignore[operator]
    whole = classifier(_images())
    names = list(classifier.state_dict())

    parts = classifier(_entered(classifier, depth))

    assert torch.allclose(parts, whole, atol=1e-5)
    assert list(classifier.state_dict()) == names
    classifier.enter_at_pixels()
    assert torch.equal(classifier(_images()), whole)


@pytest.mark.parametrize("finetune", [LinearProbe(), Partial(trainable_groups=2)], ids=lambda f: f.kind)
def test_the_tail_learns_what_the_whole_network_would(finetune: LinearProbe | Partial) -> None:
    torch.manual_seed(0)
    whole = build_model(EfficientNetLite0(image_size=32, pretrained=False), 7)
    parts = build_model(EfficientNetLite0(image_size=32, pretrained=False), 7)
    parts.load_state_dict(whole.state_dict())
    for classifier in (whole, parts):
        apply_freezing(classifier, finetune)
    activations = _entered(parts, getattr(finetune, "trainable_groups", 0))

    for classifier, inputs in ((whole, _images()), (parts, activations)):
        classifier.train()
        torch.manual_seed(0)
        F.cross_entropy(classifier(inputs), torch.tensor([0, 1, 2])).backward()

    trained = {name: p.grad for name, p in whole.named_parameters() if p.requires_grad}
    assert trained
    for name, parameter in parts.named_parameters():
        if name in trained:
            assert torch.allclose(parameter.grad, trained[name], atol=1e-5), name  # type: ignore[arg-type]
        else:
            assert parameter.grad is None
    for (name, ours), theirs in zip(parts.named_buffers(), whole.buffers(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5), name


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "efficientnet_lite0"])
def test_looking_for_boundaries_leaves_every_module_and_every_bit_as_it_was(name: str) -> None:
    """Once it took the fast path from convolutions that train, in the process that made the cache."""
    classifier = build_model(TimmModel(name=name, image_size=64), 7).eval()
    torch.nn.init.normal_(next(classifier.network.get_classifier().parameters()))  # type: ignore[operator]
    speed_up_convolutions(classifier.network)
    before = [(module, dict(vars(module))) for module in classifier.modules() if module is not classifier]
    whole = classifier(_images())

    assert set(find_boundaries(classifier, _images(), [0, 1, 2])) == {0, 1, 2}

    for module, attributes in before:
        assert vars(module) == attributes, module
    assert torch.equal(classifier(_images()), whole)


def test_a_forward_of_a_modules_own_is_given_back() -> None:
    network = build_model(ScratchModel(kind="lenet"), 7).eval()
    first = network.network.get_submodule(find_boundaries(network, _images(), [0])[0].passed[0])
    own = first.forward = lambda images: type(first).forward(first, images)  # type: ignore[method-assign]

    network.enter_at("network", [next(n for n, m in network.network.named_modules() if m is first)])
    network.enter_at_pixels()

    assert first.forward is own


def test_a_tensor_outside_of_any_module_keeps_a_vit_from_being_entered_midway() -> None:
    classifier = build_model(TimmModel(name="test_vit"), 7)

    assert list(find_boundaries(classifier, _images(), [0, 1, 2])) == [0]


def test_a_depth_that_trains_something_before_its_entry_is_left_out() -> None:
    classifier = build_model(TimmModel(name="test_vit"), 7)
    all_groups = 30

    assert find_boundaries(classifier, _images(), [all_groups]) == {}


def test_looking_leaves_mode_weights_and_random_numbers_alone() -> None:
    classifier = build_model(TimmModel(name="test_resnet", image_size=32), 7).train()
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    state = torch.get_rng_state()

    find_boundaries(classifier, _images(), [0, 1])

    assert classifier.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in classifier.state_dict().items())


def test_the_digest_sees_the_backbone_and_not_the_head() -> None:
    classifier = build_model(ScratchModel(kind="lenet"), 7)
    digest = trunk_digest(classifier)

    with torch.no_grad():
        next(classifier.network.get_classifier().parameters()).add_(1)  # type: ignore[operator]
        assert trunk_digest(classifier) == digest
        next(classifier.network.parameters()).add_(1)
        assert trunk_digest(classifier) != digest
