"""Freezing: which groups there are, and that what is frozen does not move by a bit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from harness.config.finetune import Full, LinearProbe, Partial
from harness.config.schema import EfficientNetLite0, FinetuneConfig, ModelConfig, ScratchModel, TimmModel
from harness.errors import ModelError
from harness.models import ImageClassifier, apply_freezing, build_model
from harness.models.classifier import set_frozen_eval
from harness.models.freezing import depth_groups, parameter_parts
from harness.models.protocol import head_names, named_tensors

POLICIES = [LinearProbe(), Partial(trainable_groups=1), Partial(trainable_groups=2), Full()]
TIMM_NAMES = [
    "cait_xxs24_224",
    "convnext_atto",
    "deit_tiny_distilled_patch16_224",
    "densenet121",
    "mobilenetv3_small_050",
    "resnet18",
    "swin_tiny_patch4_window7_224",
    "tf_efficientnet_lite0",
    "vgg11_bn",
    "vit_tiny_patch16_224",
]
LITE0 = EfficientNetLite0(image_size=32, pretrained=False)


def small_lite0() -> ImageClassifier:
    torch.manual_seed(0)
    return build_model(LITE0, 10)


def train_a_little(classifier: ImageClassifier) -> None:
    """Take three SGD steps in train mode, weight decay and momentum included."""
    classifier.train()
    trainable = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=0.1, momentum=0.9, weight_decay=0.01)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=generator)
        loss = F.cross_entropy(classifier(images), torch.arange(8))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("finetune", POLICIES, ids=str)
@pytest.mark.parametrize(
    "config",
    [LITE0, TimmModel(name="test_vit", image_size=32, drop_rate=0.5), ScratchModel(kind="lenet")],
    ids=["lite0", "test_vit", "lenet"],
)
def test_frozen_tensors_are_bit_identical_after_training(
    config: ModelConfig, finetune: FinetuneConfig
) -> None:
    torch.manual_seed(0)
    classifier = build_model(config, 10)
    apply_freezing(classifier, finetune)
    network = classifier.network
    groups = depth_groups(network)
    frozen_groups = {
        "linear_probe": groups,
        "partial": groups[: -getattr(finetune, "trainable_groups", 1)],
        "full": [],
    }
    frozen = {name for group in frozen_groups[finetune.kind] for name in group}
    before = {name: tensor.clone() for name, tensor in named_tensors(network)}
    train_a_little(classifier)
    changed = {name for name, tensor in named_tensors(network) if not torch.equal(tensor, before[name])}
    assert changed == set(before) - frozen


@pytest.mark.parametrize("name", TIMM_NAMES)
def test_groups_and_head_hold_every_tensor_once_in_order_of_depth(name: str) -> None:
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=10)
    groups = depth_groups(network)
    placed = [tensor for group in groups for tensor in group] + sorted(head_names(network))
    assert sorted(placed) == sorted(tensor for tensor, _ in named_tensors(network))
    parameters = dict(network.named_parameters())
    assert all(any(n in parameters and parameters[n].ndim > 1 for n in group) for group in groups)
    first_parameter = next(iter(parameters))
    assert first_parameter in groups[0]


def test_what_follows_the_last_stage_belongs_to_the_last_group() -> None:
    with torch.device("meta"):
        lite0 = depth_groups(timm.create_model("tf_efficientnet_lite0"))
        convnext = depth_groups(timm.create_model("convnext_atto"))
    assert len(lite0) == 8
    assert {"blocks.6.0.conv_pw.weight", "conv_head.weight", "bn2.running_mean"} <= set(lite0[-1])
    assert {"stages.3.blocks.0.conv_dw.weight", "head.norm.weight"} <= set(convnext[-1])


@pytest.mark.parametrize(
    ("kind", "num_groups"), [("lenet", 4), ("keras_cnn", 4), ("wide_cnn", 3), ("vgg16", 5), ("resnet18", 5)]
)
def test_from_scratch_networks_have_one_group_per_stage(kind: Any, num_groups: int) -> None:
    with torch.device("meta"):
        assert len(depth_groups(build_model(ScratchModel(kind=kind), 10).network)) == num_groups


def test_report_counts_what_trains() -> None:
    report = apply_freezing(small_lite0(), Partial(trainable_groups=1))
    head, last_group = 1280 * 10 + 10, 1_017_600  # blocks.6, conv_head and their batch norms
    assert report.trainable_parameters == head + last_group
    assert report.trainable_parameters + report.frozen_parameters == 3_383_818
    assert (report.num_groups, report.trainable_groups) == (8, ("blocks.6+conv_head+bn2",))
    assert str(report) == (
        "partial: 1,030,410 of 3,383,818 parameters train (30.5%): "
        "the head and 1 of 8 depth groups (blocks.6+conv_head+bn2)"
    )


def test_linear_probe_trains_the_head_alone() -> None:
    classifier = small_lite0()
    report = apply_freezing(classifier, LinearProbe())
    trainable = {name for name, p in classifier.network.named_parameters() if p.requires_grad}
    assert trainable == {"classifier.weight", "classifier.bias"}
    assert report.trainable_groups == ()


def test_all_groups_are_the_same_as_full() -> None:
    report = apply_freezing(small_lite0(), Partial(trainable_groups=8))
    assert report.frozen_parameters == 0


def test_more_groups_than_there_are_names_the_largest() -> None:
    with pytest.raises(ModelError, match=r"trainable_groups=9 .* use 8"):
        apply_freezing(small_lite0(), Partial(trainable_groups=9))


def test_a_second_policy_replaces_the_first() -> None:
    classifier = small_lite0()
    apply_freezing(classifier, LinearProbe())
    apply_freezing(classifier.train(), Full())
    assert all(parameter.requires_grad for parameter in classifier.parameters())
    assert all(module.training for module in classifier.modules())


def test_no_switch_to_train_mode_reaches_frozen_modules() -> None:
    classifier = small_lite0()
    apply_freezing(classifier, Partial(trainable_groups=1))
    owner = nn.ModuleDict({"classifier": classifier})  # as a LightningModule owns it
    owner.eval()
    owner.train()
    copy.deepcopy(classifier).train()
    norms = {n: m for n, m in classifier.network.named_modules() if isinstance(m, nn.BatchNorm2d)}
    training = {name for name, norm in norms.items() if norm.training}
    assert training == {"blocks.6.0.bn1", "blocks.6.0.bn2", "blocks.6.0.bn3", "bn2"}
    classifier.network.train()  # behind the classifier's back
    set_frozen_eval(classifier)
    assert {name for name, norm in norms.items() if norm.training} == training


def test_stochastic_depth_is_off_in_frozen_groups_and_on_in_training_ones() -> None:
    classifier = build_model(TimmModel(name="test_resnet", image_size=32, drop_path_rate=0.5), 10)
    apply_freezing(classifier, Partial(trainable_groups=1))
    classifier.train()
    drops = {n: m.training for n, m in classifier.network.named_modules() if type(m).__name__ == "DropPath"}
    assert drops
    assert {name for name, training in drops.items() if training} == {"layer4.0.drop_path"}


def test_roles_hold_every_parameter_once() -> None:
    classifier = small_lite0()
    backbone, head = (part.parameters for part in parameter_parts(classifier, Full()))
    assert [p.shape for p in head] == [(10, 1280), (10,)]
    assert {id(p) for p in [*backbone, *head]} == {id(p) for p in classifier.parameters()}
    assert len(backbone) + len(head) == len(list(classifier.parameters()))
