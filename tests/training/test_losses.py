"""Losses, class weights and penalties against torch, timm and torchvision; dropout; checkpointing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm.loss
import torch
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from harness.config.compose import compose_run
from harness.config.loss import BinaryCrossEntropy, CrossEntropy, Focal
from harness.config.schema import EfficientNetLite0, RunConfig, ScratchModel, TimmModel
from harness.errors import ConfigError, ModelError
from harness.models import ImageClassifier, build_model
from harness.models.timm_parts import recompute_activations
from harness.training.checkpoints.checkpoint import load_checkpoint
from harness.training.flops import count_forward_flops, count_image_flops
from harness.training.module import ClassifierModule
from harness.training.optimisation.losses import TrainingLoss, class_weights, penalty
from harness.training.optimisation.optim import build_optimizer
from tests.training.conftest import stop_after

Config = Callable[..., RunConfig]
Run = Callable[..., tuple]
GENERATOR = torch.Generator().manual_seed(0)
LOGITS = 3 * torch.randn(12, 5, generator=GENERATOR)
LABELS = torch.arange(12) % 5
SOFT = torch.rand(12, 5, generator=GENERATOR).softmax(1)
RESNET = ("model=timm", "model.name=test_resnet", "model.image_size=32")


@pytest.mark.parametrize("labels", [LABELS, SOFT], ids=["labels", "soft"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_and_focal_without_focus_are_torchs(labels: torch.Tensor, smoothing: float) -> None:
    expected = F.cross_entropy(LOGITS, labels, label_smoothing=smoothing)
    assert torch.equal(TrainingLoss(CrossEntropy(), smoothing)(LOGITS, labels), expected)
    assert torch.allclose(TrainingLoss(Focal(gamma=0.0), smoothing)(LOGITS, labels), expected)
    alike = TrainingLoss(CrossEntropy(), smoothing, torch.ones(5))(LOGITS, labels)
    assert torch.allclose(alike, expected)


def test_focal_is_torchvisions_for_two_classes() -> None:
    scores, labels = LOGITS[:, 0], (LABELS > 2).long()
    logits = torch.stack([torch.zeros_like(scores), scores], dim=1)
    expected = sigmoid_focal_loss(scores, labels.float(), alpha=-1, gamma=1.7, reduction="mean")
    assert torch.allclose(TrainingLoss(Focal(gamma=1.7))(logits, labels), expected)


def test_focal_has_finite_gradients_where_a_class_is_certain() -> None:
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
    TrainingLoss(Focal(gamma=0.5))(logits, torch.tensor([0, 0])).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("sum_classes", [False, True])
@pytest.mark.parametrize("threshold", [None, 0.2])
def test_binary_is_timms(sum_classes: bool, threshold: float | None) -> None:
    config = BinaryCrossEntropy(sum_classes=sum_classes, target_threshold=threshold)
    theirs = timm.loss.BinaryCrossEntropy(smoothing=0.1, target_threshold=threshold, sum_classes=sum_classes)
    assert torch.allclose(TrainingLoss(config, 0.1)(LOGITS, LABELS), theirs(LOGITS, LABELS))
    assert torch.allclose(TrainingLoss(config)(LOGITS, SOFT), theirs(LOGITS, SOFT))  # soft: as they are


def test_balanced_classes_weigh_the_same_and_an_image_one_on_average() -> None:
    labels = np.repeat([0, 1, 3], [6, 3, 1])
    weights = class_weights(CrossEntropy(class_weights="balanced"), labels, 5)
    assert weights is not None
    assert torch.allclose(weights, torch.tensor([10 / 18, 10 / 9, 0.0, 10 / 3, 0.0]))
    assert float(weights[torch.from_numpy(labels)].mean()) == pytest.approx(1.0)
    assert class_weights(CrossEntropy(), labels, 5) is None
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    expected = F.cross_entropy(LOGITS, LABELS, weights, reduction="sum") / len(LABELS)
    assert torch.allclose(TrainingLoss(CrossEntropy(), 0.0, weights)(LOGITS, LABELS), expected)


def test_logit_adjustment_is_equation_10_of_its_paper() -> None:
    """log(1 + Σ (π_j / π_y)^τ · e^(f_j - f_y)), over the other classes j."""
    counts, tau = np.array([50, 20, 10, 15, 5]), 1.5
    priors = torch.from_numpy(counts / counts.sum()).float()
    of_label = LOGITS.gather(1, LABELS[:, None])
    ratios = (priors[None] / priors[LABELS][:, None]) ** tau * (LOGITS - of_label).exp()
    expected = torch.log(ratios.sum(1)).mean()  # the class itself is the 1
    adjusted = CrossEntropy(logit_adjustment=tau)
    assert torch.allclose(TrainingLoss(adjusted, counts_K=counts)(LOGITS, LABELS), expected)
    targets = F.one_hot(LABELS, 5).float()
    assert torch.allclose(TrainingLoss(adjusted, counts_K=counts)(LOGITS, targets), expected)
    focal = Focal(gamma=0.0, logit_adjustment=tau)
    assert torch.allclose(TrainingLoss(focal, counts_K=counts)(LOGITS, LABELS), expected)
    even = TrainingLoss(adjusted, counts_K=np.full(5, 7))(LOGITS, LABELS)
    assert torch.allclose(even, F.cross_entropy(LOGITS, LABELS))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss=binary", "loss.logit_adjustment=1"], r"loss\.logit_adjustment"),
        (["loss.logit_adjustment=1", "loss.class_weights=balanced"], "choose one of them"),
        (["loss.logit_adjustment=-1"], "greater than or equal to 0"),
        (["data=multilabel", "loss=focal", "loss.logit_adjustment=1"], "which gives an image one class"),
    ],
)
def test_a_logit_adjustment_that_makes_no_sense_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose_run(overrides)


def test_penalties_have_the_gradients_of_their_formulas() -> None:
    network = build_model(ScratchModel(kind="lenet"), 10).network
    network.stages[0].requires_grad_(False)
    assert penalty(CrossEntropy(), network.parameters()) is None
    added = penalty(CrossEntropy(l1=0.3, l2=0.05), network.parameters())
    assert added is not None
    added.backward()
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1 or name.startswith("stages.0."):
            assert parameter.grad is None, name
        else:
            weight = parameter.detach()
            assert parameter.grad is not None
            assert torch.allclose(parameter.grad, 0.3 * weight.sign() + 2 * 0.05 * weight), name


def test_an_l2_penalty_trains_as_sgds_weight_decay_and_the_loss_that_is_shown_is_without_it() -> None:
    torch.manual_seed(0)
    start = build_model(ScratchModel(kind="lenet"), 10)
    batches = [(torch.rand(20, 3, 32, 32), torch.randint(10, (20,))) for _ in range(3)]
    ended: list[dict[str, torch.Tensor]] = []
    shown: list[float] = []
    for how in (("optim.weight_decay=0.2",), ("optim.weight_decay=0", "loss.l2=0.1")):
        config = compose_run(
            ["data=digits", "model=lenet", "finetune=full", "optim=sgd", "optim.lr=0.05", *how]
        )
        classifier = copy.deepcopy(start).train()
        module = ClassifierModule(classifier, config, facts=None, num_batches=3)  # type: ignore[arg-type]
        optimizer = build_optimizer(classifier, config.optim, config.finetune)
        for number, batch in enumerate(batches):
            optimizer.zero_grad()
            module.training_step(batch, number).backward()
            optimizer.step()
        ended.append(classifier.state_dict())
        shown.append(module.train_means.compute()[0])
    for name, tensor in start.state_dict().items():
        assert torch.allclose(ended[0][name], ended[1][name], atol=1e-6), name
        if name.endswith("weight"):
            assert not torch.allclose(tensor, ended[0][name], atol=1e-3), name
    assert shown[0] == pytest.approx(shown[1], rel=1e-5)


# ── dropout ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["lenet", "resnet18"])
def test_dropout_acts_on_what_enters_the_head_in_training_alone(kind: str) -> None:
    torch.manual_seed(0)
    network = build_model(ScratchModel(kind=kind, drop_rate=0.4), 10).network  # type: ignore[arg-type]
    plain = build_model(ScratchModel(kind=kind), 10).network  # type: ignore[arg-type]
    plain.load_state_dict(network.state_dict())
    images = torch.rand(4, 3, 32, 32)
    assert torch.equal(network.eval()(images), plain.eval()(images))
    features = plain.forward_head(plain.train().forward_features(images), pre_logits=True)
    torch.manual_seed(1)
    expected = plain.get_classifier()(F.dropout(features, 0.4))
    torch.manual_seed(1)
    assert torch.allclose(network.train()(images), expected, atol=1e-6)


def test_dropout_and_stochastic_depth_reach_efficientnet_lite() -> None:
    config = EfficientNetLite0(pretrained=False, drop_rate=0.3, drop_path_rate=0.2, image_size=32)
    network = build_model(config, 4).network
    assert network.drop_rate == 0.3
    depths = [module.drop_prob for module in network.modules() if hasattr(module, "drop_prob")]
    assert max(depths) == pytest.approx(0.2, rel=0.1)
    with pytest.raises(ConfigError, match="speed_cnn has no dropout: set"):
        compose_run(["data=digits", "model=speed_cnn", "model.drop_rate=0.1"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [("model.drop_rate=0.4",), ("loss=focal", "augment=mix", "loss.l1=1e-4", "loss.class_weights=balanced")],
)
def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    run: Run, tiny_config: Config, tmp_path: Path, how: tuple[str, ...]
) -> None:
    config = tiny_config("trainer.max_epochs=3", *how)
    run(config, "whole")
    run(config, **stop_after(1))
    run(config)
    whole, parts = (load_checkpoint(tmp_path / name / "last.ckpt").state_dict for name in ("whole", "run"))
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []


# ── gradient checkpointing ────────────────────────────────────────────────────────────────────────


def test_recomputed_activations_change_neither_weights_nor_statistics() -> None:
    """Stochastic depth must draw the same again, and batch norms track each batch once."""
    torch.manual_seed(0)
    model = TimmModel(name="test_resnet", image_size=32, drop_path_rate=0.3)
    start = build_model(model, 4)
    ended: list[ImageClassifier] = []
    for recomputes in (False, True):
        classifier = copy.deepcopy(start).train()
        if recomputes:
            recompute_activations(classifier.network, "test_resnet")
        config = compose_run(["data=digits", *RESNET, f"trainer.gradient_checkpointing={recomputes}"])
        module = ClassifierModule(classifier, config, facts=None, num_batches=1)  # type: ignore[arg-type]
        optimizer = torch.optim.SGD(classifier.parameters(), lr=0.1)
        torch.manual_seed(1)
        for _ in range(2):
            optimizer.zero_grad()
            loss = classifier(torch.rand(8, 3, 32, 32)).square().mean()
            module.on_before_backward(loss)
            loss.backward()
            module.on_after_backward()
            optimizer.step()
        ended.append(classifier)
    one, other = (classifier.state_dict() for classifier in ended)
    assert int(one["network.bn1.num_batches_tracked"]) == 2
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_what_is_computed_again_counts() -> None:
    plain = compose_run(["data=digits", *RESNET])
    again = compose_run(["data=digits", *RESNET, "trainer.gradient_checkpointing=true"])
    extra = count_image_flops(again, 10, None).step - count_image_flops(plain, 10, None).step
    assert 0.5 * count_forward_flops(plain, 10) < extra < count_forward_flops(plain, 10)


def test_a_network_that_cannot_recompute_is_one_clear_line(run: Run, tiny_config: Config) -> None:
    with pytest.raises(
        ModelError, match=r"lenet cannot compute its activations again: set trainer\.gradient"
    ):
        run(tiny_config("trainer.gradient_checkpointing=true"))


# ── multi-label ───────────────────────────────────────────────────────────────────────────────────

MULTI_HOT = (SOFT > 0.2).float()


@pytest.mark.parametrize(
    "targets", [MULTI_HOT, torch.rand(12, 5, generator=GENERATOR)], ids=["hard", "mixed"]
)
def test_multilabel_loss_is_torchs_with_positive_weights_and_smoothing_towards_a_half(
    targets: torch.Tensor,
) -> None:
    weights = torch.tensor([1.0, 2.0, 0.5, 9.0, 1.0])
    loss = TrainingLoss(BinaryCrossEntropy(), 0.1, weights, is_multilabel=True)
    expected = F.binary_cross_entropy_with_logits(LOGITS, 0.9 * targets + 0.05, pos_weight=weights)
    assert torch.allclose(loss(LOGITS, targets), expected)
    plain = F.binary_cross_entropy_with_logits(LOGITS, targets)
    assert torch.allclose(TrainingLoss(BinaryCrossEntropy(), is_multilabel=True)(LOGITS, targets), plain)
    summed = TrainingLoss(BinaryCrossEntropy(sum_classes=True), is_multilabel=True)
    assert torch.allclose(summed(LOGITS, targets), 5 * plain)


def test_multilabel_focal_is_torchvisions() -> None:
    expected = sigmoid_focal_loss(LOGITS, MULTI_HOT, alpha=-1, gamma=1.7, reduction="mean")
    assert torch.allclose(TrainingLoss(Focal(gamma=1.7), is_multilabel=True)(LOGITS, MULTI_HOT), expected)
    certain = torch.tensor([[200.0, -200.0]], requires_grad=True)
    TrainingLoss(Focal(gamma=0.5), is_multilabel=True)(certain, torch.tensor([[0.0, 0.0]])).backward()
    assert certain.grad is not None
    assert certain.grad.isfinite().all()


def test_balanced_multilabel_weights_let_yes_count_as_much_as_no() -> None:
    labels = np.array([[1, 1], [0, 1], [0, 1], [0, 0]], dtype=np.float32)
    weights = class_weights(BinaryCrossEntropy(class_weights="balanced"), labels, 2)
    assert weights is not None
    assert weights.tolist() == pytest.approx([3.0, 1 / 3])
