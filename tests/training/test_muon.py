"""Muon against torch's own on matrices, its SGD against torch's SGD, and who is in which group."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.config.finetune import Full
from harness.config.schema import MuonOptim, ScheduleConfig, ScratchModel, TimmModel
from harness.models import apply_freezing, build_model
from harness.training.optimisation.muon import Muon, orthogonalise
from harness.training.optimisation.optim import build_optimizer, build_schedule


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def step_with(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, gradient: Tensor) -> None:
    parameter.grad = gradient.clone()
    optimizer.step()


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (16, 16)])
def test_orthogonalise_keeps_singular_vectors_and_levels_values(shape: tuple[int, int]) -> None:
    matrix = random(*shape)
    u, values, vt = torch.linalg.svd(matrix, full_matrices=False)
    assert values.max() / values.min() > 1.5
    inside = u.T @ orthogonalise(matrix, 6) @ vt.T  # diagonal where the singular vectors are the same
    levelled = inside.diagonal()
    assert (inside - levelled.diag()).abs().max() < 1e-4
    assert 0.6 < levelled.min() <= levelled.max() < 1.3


def test_orthogonalise_does_not_mind_the_scale() -> None:
    matrix = random(6, 20)
    torch.testing.assert_close(orthogonalise(1e-4 * matrix, 5), orthogonalise(1e4 * matrix, 5))


def test_steps_are_those_of_torchs_muon_at_fixed_norm() -> None:
    """torch's computes in bf16, and is given the norm by hand."""
    start = random(6, 20)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    muon = Muon(
        [{"params": [ours], "lr": 0.1, "momentum": 0.6, "orthogonalise": True, "num_newton_schulz_steps": 5}]
    )
    reference = torch.optim.Muon([theirs], lr=0.1, momentum=0.6, weight_decay=0.0, ns_steps=5)
    for step in range(1, 4):
        gradient = random(6, 20, seed=step)
        step_with(muon, ours, gradient)
        with torch.no_grad():
            theirs.mul_(6**0.5 / theirs.norm())
        step_with(reference, theirs, gradient)
        torch.testing.assert_close(ours, theirs, atol=5e-3, rtol=0)
        assert (ours - start).abs().max() > 0.05


def test_a_filter_bank_steps_as_the_matrix_of_its_outputs() -> None:
    bank, matrix = nn.Parameter(random(6, 5, 2, 2)), nn.Parameter(random(6, 5, 2, 2).flatten(1))
    bank.data = bank.data.to(memory_format=torch.channels_last)
    group = {"lr": 0.1, "momentum": 0.6, "orthogonalise": True, "num_newton_schulz_steps": 3}
    for parameter, gradient in (
        (bank, random(6, 5, 2, 2, seed=1)),
        (matrix, random(6, 5, 2, 2, seed=1).flatten(1)),
    ):
        step_with(Muon([{"params": [parameter], **group}]), parameter, gradient)
    torch.testing.assert_close(bank.flatten(1), matrix)


def test_the_other_groups_are_torchs_sgd() -> None:
    ours, theirs = nn.Parameter(random(7)), nn.Parameter(random(7))
    muon = Muon([{"params": [ours], "lr": 0.3, "momentum": 0.85, "weight_decay": 0.02}])
    sgd = torch.optim.SGD([theirs], lr=0.3, momentum=0.85, weight_decay=0.02, nesterov=True)
    for step in range(1, 5):
        for optimizer, parameter in ((muon, ours), (sgd, theirs)):
            step_with(optimizer, parameter, random(7, seed=step))
        torch.testing.assert_close(ours, theirs)


def test_everything_that_trains_is_in_one_group_with_its_settings() -> None:
    classifier = build_model(ScratchModel(kind="speed_cnn"), 10)
    apply_freezing(classifier, Full(backbone_lr_scale=0.5))
    optim = MuonOptim(lr=0.2, head_lr=4.0, bias_lr=3.0, weight_decay=0.006, stem_epochs=1.5)
    optimizer = build_optimizer(classifier, optim, Full(backbone_lr_scale=0.5))
    names = {id(p): name for name, p in classifier.network.named_parameters()}
    groups: dict[str, Any] = {group["name"]: group for group in optimizer.param_groups}
    members = {name: {names[id(p)] for p in group["params"]} for name, group in groups.items()}
    assert members["stem/biases"] == {"whiten.bias"}
    assert members["head"] == {"head.weight"}
    assert {name.split(".")[-1] for name in members["backbone/biases"]} == {"bias"}
    assert {name.split(".")[-1] for name in members["backbone/weights"]} == {"weight"}
    assert sum(map(len, members.values())) == len(names) == len(set().union(*members.values()))
    assert (groups["backbone/weights"]["lr"], groups["backbone/weights"]["weight_decay"]) == (0.1, 0.0)
    assert (groups["head"]["lr"], groups["head"]["weight_decay"] * 4.0) == (4.0, pytest.approx(0.006))
    assert (groups["stem/biases"]["lr"], groups["stem/biases"]["weight_decay"] * 1.5) == (
        1.5,
        pytest.approx(0.006),
    )


def test_the_stem_ends_its_schedule_early() -> None:
    classifier = build_model(ScratchModel(kind="speed_cnn"), 10)
    optimizer = build_optimizer(
        classifier, MuonOptim(lr=1.0, bias_lr=1.0, head_lr=1.0, stem_epochs=1.5), Full()
    )
    schedule = build_schedule(optimizer, ScheduleConfig(kind="linear"), steps_per_epoch=4, max_epochs=3)
    rates: dict[str, list[float]] = {group["name"]: [] for group in optimizer.param_groups}
    for _ in range(13):
        for group in optimizer.param_groups:
            rates[group["name"]].append(group["lr"])
        optimizer.step()
        schedule.step()
    assert rates["head"] == pytest.approx([1 - step / 12 for step in range(13)])
    assert rates["stem/biases"] == pytest.approx([1 - step / 6 for step in range(6)] + [0.0] * 7)
    assert rates["stem/biases"][6] == 0.0, "exactly, so that its gradients are left out"


MUON_GROUP = {"momentum": 0.6, "orthogonalise": True, "num_newton_schulz_steps": 3}


def test_weights_of_norm_zero_stay_finite_and_move() -> None:
    weights = nn.Parameter(torch.zeros(4, 4))
    muon = Muon([{"params": [weights], "lr": 0.1, **MUON_GROUP}])
    for seed in range(3):
        step_with(muon, weights, random(4, 4, seed=seed))
        assert weights.isfinite().all()
        assert weights.any()


def test_pretrained_weights_keep_their_norm_and_a_tiny_rate_changes_nothing() -> None:
    start = 5 * random(6, 20)
    weights = nn.Parameter(start.clone())
    step_with(
        Muon([{"params": [weights], "lr": 1e-12, "keep_norm": True, **MUON_GROUP}]), weights, random(6, 20)
    )
    torch.testing.assert_close(weights.detach(), start)
    weights, muon = nn.Parameter(start.clone()), None
    muon = Muon([{"params": [weights], "lr": 0.1, "keep_norm": True, **MUON_GROUP}])
    for seed in range(4):
        step_with(muon, weights, random(6, 20, seed=seed))
    assert 0.8 < weights.norm() / start.norm() < 1.2
    assert not torch.allclose(weights, start, rtol=0.05)


def test_only_matrices_and_filters_are_orthogonalised() -> None:
    """BEiT's tables of biases and a ViT's position embeddings have two dimensions, and are no matrices."""
    with torch.device("meta"):
        classifier = build_model(TimmModel(name="beit_base_patch16_224"), 10, load_weights=False)
    optimizer = build_optimizer(classifier, MuonOptim(), Full())
    names = {id(p): name for name, p in classifier.network.named_parameters()}
    groups = {g["name"]: {names[id(p)] for p in g["params"]} for g in optimizer.param_groups}
    tables = {name for name in names.values() if "relative_position_bias_table" in name or "token" in name}
    assert len(tables) > 12
    assert tables <= groups["backbone/biases"]
    assert "blocks.0.attn.qkv.weight" in groups["backbone/weights"]
    assert set().union(*groups.values()) == set(names.values())
