"""A new head on pretrained features starts at zero and can learn, whatever its layers are."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch.nn import functional as F

from harness.config.finetune import Full, LinearProbe, Partial
from harness.config.schema import TimmModel
from harness.errors import ModelError
from harness.models import ImageClassifier, apply_freezing, build_model

HEADS = {  # head type: a small model, pixels, the weights of the layers that yield logits
    "linear": ("test_resnet", 32, {"fc.weight"}),
    "norm and linear, distilled": ("repvit_m0_9", 32, {"head.head.l.weight", "head.head_dist.l.weight"}),
    "distilled pair": ("levit_128s", 224, {"head.linear.weight", "head_dist.linear.weight"}),
    "distilled ViT": ("deit_tiny_distilled_patch16_224", 32, {"head.weight", "head_dist.weight"}),
    "ClassifierHead": ("regnetx_002", 32, {"head.fc.weight"}),
    "NormMlpClassifierHead": ("test_convnext", 32, {"head.fc.weight"}),
    "MLP in the head": ("caformer_s18", 64, {"head.fc.fc2.weight"}),
    "convolution before it": ("mobilenetv3_small_050", 32, {"classifier.weight"}),
    "convolution as the head": ("visformer_tiny", 224, {"head.weight"}),
}


def pretrained(name: str, size: int, folder: Path, num_classes: int = 4) -> ImageClassifier:
    torch.manual_seed(0)
    options = {"img_size": size} if timm.get_pretrained_cfg(name).fixed_input_size else {}
    torch.save(timm.create_model(name, **options).state_dict(), folder / "weights.pth")
    return build_model(
        TimmModel(name=name, weights=str(folder / "weights.pth"), image_size=size), num_classes
    )


def learns(classifier: ImageClassifier, size: int) -> bool:
    """Take two steps of the head; tell whether two images then get logits of their own."""
    apply_freezing(classifier, LinearProbe())
    images = torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(1))
    trained = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.5)
    classifier.train()
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(classifier(images), torch.arange(4)).backward()
        optimizer.step()
    first, second = classifier.eval()(images)[:2]
    return not torch.equal(first, second)


@pytest.mark.slow
@pytest.mark.parametrize("kind", HEADS)
def test_only_the_layer_that_yields_logits_starts_at_zero_and_it_learns(kind: str, tmp_path: Path) -> None:
    name, size, last = HEADS[kind]
    classifier = pretrained(name, size, tmp_path)
    with torch.no_grad():
        assert not classifier.eval()(torch.rand(2, 3, size, size)).any()
    parameters = dict(classifier.network.named_parameters())
    assert not any(parameters[weight].any() for weight in last)
    in_head = [n for n in parameters if n.startswith(("head", "classifier", "fc")) and parameters[n].ndim > 1]
    assert {n for n in in_head if not parameters[n].any()} == last
    assert learns(classifier, size)


def test_a_head_of_a_norm_and_a_linear_layer_learns(tmp_path: Path) -> None:
    classifier = pretrained("repvit_m0_9", 32, tmp_path)
    assert learns(classifier, 32)


def test_features_that_are_the_same_for_every_image_are_refused(tmp_path: Path) -> None:
    state = timm.create_model("test_resnet").state_dict()
    torch.save({name: torch.zeros_like(tensor) for name, tensor in state.items()}, tmp_path / "zeros.pth")
    with pytest.raises(ModelError, match="same for two different images"):
        build_model(TimmModel(name="test_resnet", weights=str(tmp_path / "zeros.pth"), image_size=32), 4)


# ── several heads, and networks without depth groups ──────────────────────────────────────────────


@pytest.mark.parametrize("name", ["poolformer_s12", "pit_ti_224", "rdnet_tiny", "caformer_s18"])
def test_without_depth_groups_two_policies_hold_and_the_third_says_why_not(name: str) -> None:
    with torch.device("meta"):
        classifier = build_model(TimmModel(name=name), 4, load_weights=False)
    assert apply_freezing(classifier, Full()).frozen_parameters == 0
    report = apply_freezing(classifier, LinearProbe())
    assert 0 < report.trainable_parameters < report.frozen_parameters
    with pytest.raises(ModelError, match="finetune=full or finetune=linear_probe") as caught:
        apply_freezing(classifier, Partial())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["levit_128s", "efficientformer_l1", "swiftformer_xs"])
def test_all_of_several_heads_train(name: str) -> None:
    with torch.device("meta"):
        classifier = build_model(TimmModel(name=name), 4, load_weights=False)
    apply_freezing(classifier, LinearProbe())
    trained = {n.split(".")[0] for n, p in classifier.network.named_parameters() if p.requires_grad}
    assert trained == {"head", "head_dist"}
