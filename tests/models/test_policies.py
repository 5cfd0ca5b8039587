"""Finetuning policies: rates as timm's, norms and biases alone, statistics by formula, new top groups."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.optim._param_groups import param_groups_layer_decay
from torch import nn

from harness.config.compose import compose_run
from harness.config.finetune import BitFit, FinetunePolicy, Full, LinearProbe, NormsOnly, Partial
from harness.config.schema import (
    AdamW,
    DigitsData,
    EfficientNetLite0,
    MuonOptim,
    OptimConfig,
    RunConfig,
    TimmModel,
)
from harness.data import load_splits
from harness.errors import ConfigError, ModelError
from harness.models import ImageClassifier, apply_freezing, build_model
from harness.models.freezing import depth_groups
from harness.models.pretrained import read_packaged
from harness.models.sync_norm import batch_norms
from harness.training.optimisation.optim import build_optimizer
from harness.training.prepare import prepare_model

LITE0 = EfficientNetLite0(image_size=32, pretrained=False)


def lite0() -> ImageClassifier:
    torch.manual_seed(0)
    return build_model(LITE0, 10)


def rates_of(classifier: ImageClassifier, finetune: FinetunePolicy, optim: OptimConfig) -> dict[str, float]:
    apply_freezing(classifier, finetune)
    names = {id(parameter): name for name, parameter in classifier.network.named_parameters()}
    groups = build_optimizer(classifier, optim, finetune).param_groups
    assert len({group["name"] for group in groups}) == len(groups) or isinstance(optim, MuonOptim)
    return {names[id(parameter)]: group["lr"] for group in groups for parameter in group["params"]}


# ── rates ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext", "tf_efficientnet_lite0"])
def test_layer_decay_is_timms(name: str) -> None:
    with torch.device("meta"):
        classifier = build_model(TimmModel(name=name), 10)
    ours = rates_of(classifier, Full(layer_decay=0.7), AdamW(lr=1.0, weight_decay=0.3))
    theirs = param_groups_layer_decay(classifier.network, weight_decay=0.3, layer_decay=0.7)
    names = {id(parameter): name for name, parameter in classifier.network.named_parameters()}
    expected = {names[id(p)]: group["lr_scale"] for group in theirs for p in group["params"]}
    assert len(set(expected.values())) > 4
    assert ours == pytest.approx(expected)


def test_discriminative_rates_fall_from_group_to_group() -> None:
    classifier = lite0()
    policy = Partial(trainable_groups=3, backbone_lr_scale=0.5, layer_decay=0.385, layer_decay_by="group")
    rates = rates_of(classifier, policy, AdamW(lr=0.01))
    groups = depth_groups(classifier.network)[-3:]
    for above, group in zip((3, 2, 1), groups, strict=True):
        (rate,) = {rates[name] for name in group if name in rates}
        assert rate == pytest.approx(0.005 * 0.385**above)
    assert rates["classifier.weight"] == rates["classifier.bias"] == 0.01


def test_muon_takes_the_rates_of_depth_too() -> None:
    optim = MuonOptim(lr=0.2, bias_lr=0.1, head_lr=0.3)
    plain, decayed = (rates_of(lite0(), Full(layer_decay=decay), optim) for decay in (1.0, 0.5))
    adam = rates_of(lite0(), Full(layer_decay=0.5), AdamW(lr=1.0))
    assert {name: decayed[name] / plain[name] for name in plain} == pytest.approx(adam)


# ── norms only, biases only ───────────────────────────────────────────────────────────────────────


def trained_a_little(classifier: ImageClassifier, finetune: FinetunePolicy) -> dict[str, torch.Tensor]:
    """Take two steps in training mode, and return the tensors as they were before."""
    apply_freezing(classifier, finetune)
    before = {name: tensor.clone() for name, tensor in classifier.network.state_dict().items()}
    optimizer = build_optimizer(classifier, AdamW(lr=0.01), finetune)
    classifier.train()
    for _ in range(2):
        classifier(torch.rand(4, 3, 32, 32)).square().mean().backward()
        optimizer.step()
    return before


def changed(classifier: ImageClassifier, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, t in classifier.network.state_dict().items() if not torch.equal(t, before[name])}


def test_norms_only_changes_the_norms_and_the_head() -> None:
    classifier = lite0()
    before = trained_a_little(classifier, NormsOnly())
    norms = {
        f"{name}.{tensor}"
        for name, module in classifier.network.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for tensor in module.state_dict()
    }
    assert changed(classifier, before) == norms | {"classifier.weight", "classifier.bias"}


def test_bitfit_changes_biases_and_the_head() -> None:
    classifier = build_model(TimmModel(name="test_vit", image_size=32), 10)
    before = trained_a_little(classifier, BitFit())
    found = changed(classifier, before)
    assert found == {name for name in before if name.endswith(".bias")} | {"head.weight"}
    assert "blocks.0.attn.qkv.bias" in found


# ── batch-norm statistics ─────────────────────────────────────────────────────────────────────────


def statistics(classifier: ImageClassifier) -> list[torch.Tensor]:
    return [norm.running_mean.clone() for norm in batch_norms(classifier.network)]  # type: ignore[union-attr, operator]


def moved(before: list[torch.Tensor], classifier: ImageClassifier) -> list[bool]:
    return [not torch.equal(*pair) for pair in zip(before, statistics(classifier), strict=True)]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (Full(), "all"),
        (Full(batch_norm="frozen"), "none"),
        (Partial(batch_norm="frozen"), "none"),
        (LinearProbe(), "none"),
        (LinearProbe(batch_norm="adapt"), "all"),
        (LinearProbe(batch_norm="recalibrate"), "none"),
        (Partial(trainable_groups=1), "last"),
        (Partial(trainable_groups=1, batch_norm="adapt"), "all"),
    ],
)
def test_a_policy_decides_which_statistics_follow_the_batches(policy: Any, expected: str) -> None:
    classifier = lite0()
    before = statistics(classifier)
    trained_a_little(classifier, policy)
    found = moved(before, classifier)
    last_group = sum("blocks.6" in name or name == "bn2" for name, m in classifier.network.named_modules()
                     if isinstance(m, nn.BatchNorm2d))  # fmt: skip
    assert (
        found
        == {
            "all": [True] * len(found),
            "none": [False] * len(found),
            "last": [False] * (len(found) - last_group) + [True] * last_group,
        }[expected]
    )
    classifier.eval()
    assert not any(norm.training for norm in batch_norms(classifier.network))


def test_frozen_statistics_normalise_a_training_batch_as_evaluation_does() -> None:
    classifier = lite0()
    apply_freezing(classifier, Full(batch_norm="frozen"))
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(classifier.train()(images), classifier.eval()(images))


def prepared(*overrides: str) -> ImageClassifier:
    config = compose_run(["data=digits", "data.max_train_samples=130", "model.image_size=32", *overrides])
    torch.manual_seed(0)
    return prepare_model(config, load_splits(config.data))[0]


def test_recalibrated_statistics_are_those_of_training_images() -> None:
    classifier = prepared("finetune=linear_probe", "finetune.batch_norm=recalibrate")
    images = load_splits(DigitsData(max_train_samples=130, dir="x", cache_dir="data/cache")).train
    inputs = classifier.preprocess(torch.from_numpy(images.gather(slice(0, 130))).permute(0, 3, 1, 2))
    with torch.no_grad():
        halves = [classifier.network.conv_stem(half) for half in inputs.split(65)]  # type: ignore[operator]
    expected = torch.stack([half.mean((0, 2, 3)) for half in halves]).mean(0)
    torch.testing.assert_close(classifier.network.bn1.running_mean, expected, rtol=1e-3, atol=1e-3)  # type: ignore[union-attr]
    assert classifier.network.bn1.momentum == 0.1  # type: ignore[union-attr]
    assert not classifier.network.bn1.training  # type: ignore[union-attr]


# ── new top groups ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("policy", ["partial", "full"])
def test_the_last_groups_start_anew_and_the_others_pretrained(policy: str) -> None:
    groups = ["finetune.trainable_groups=3"] if policy == "partial" else []
    classifier = prepared(f"finetune={policy}", "finetune.reinit_groups=2", *groups)
    packaged = read_packaged("efficientnet_lite0", classifier.network)
    state = classifier.network.state_dict()
    new = {name for group in depth_groups(classifier.network)[-2:] for name in group}
    differ = {name for name in state if not torch.equal(state[name], packaged[name])}
    new -= {name for name in new if name.endswith("num_batches_tracked")}  # 0 in the package, too
    assert differ - {"classifier.weight", "classifier.bias"} == new
    norms = ("running_mean", "running_var", "num_batches_tracked", "weight", "bias")
    fresh = timm.create_model("tf_efficientnet_lite0").state_dict()
    assert all(torch.equal(state[f"bn2.{name}"], fresh[f"bn2.{name}"]) for name in norms)


# ── bad input ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["finetune=partial", "finetune.reinit_groups=2"], r"would freeze random weights: use 1"),
        (["model=lenet", "finetune.batch_norm=frozen"], r"statistics of lenet at 0 and 1"),
        (["model=lenet", "finetune.reinit_groups=1"], r"all weights of lenet are random"),
        (["model=lenet", "finetune=bitfit"], r"finetune=bitfit would freeze random weights"),
    ],
)
def test_a_configuration_without_sense_is_refused(overrides: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        compose_run(["data=digits", *overrides])


@pytest.mark.parametrize(
    ("model", "policy", "problem"),
    [
        ("test_vit", Full(batch_norm="adapt"), r"has no batch norm; use finetune\.batch_norm=auto"),
        (
            "tf_efficientnet_lite0",
            Full(reinit_groups=9),
            r"reinit_groups=9 is more than the model has: use 8",
        ),
    ],
)
def test_a_policy_that_a_network_cannot_have_is_named(model: str, policy: Any, problem: str) -> None:
    with torch.device("meta"), pytest.raises(ModelError, match=problem):
        apply_freezing(build_model(TimmModel(name=model), 10), policy)


def test_adapting_statistics_needs_images_in_every_epoch() -> None:
    from harness.training.image_views import views_to_cache

    runs = [RunConfig(finetune=LinearProbe(batch_norm=b), augment={"flip": True}) for b in ("auto", "adapt")]  # type: ignore[arg-type]
    assert [views_to_cache(run) for run in runs] == [2, None]
