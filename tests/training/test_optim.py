"""Optimiser groups, and schedules against torch's own."""

from __future__ import annotations

import io
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import pytest
import torch
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.optim import lr_scheduler

from harness.config.finetune import Full, LinearProbe, Partial
from harness.config.optim import Kind
from harness.config.schema import Adam, AdamW, OptimConfig, ScheduleConfig, ScratchModel, Sgd
from harness.models import ImageClassifier, apply_freezing, build_model
from harness.training.optimisation.optim import build_optimizer, build_schedule
from harness.training.optimisation.schedules import PlateauLR, lr_factor

STEPS_PER_EPOCH, EPOCHS = 7, 6
TOTAL = STEPS_PER_EPOCH * EPOCHS
KINDS = get_args(Kind)
NEEDED: dict[str, dict[str, Any]] = {"multi_step": {"milestones": (2.0, 4.5)}}  # by kind


def resnet18() -> ImageClassifier:
    torch.manual_seed(0)
    return build_model(ScratchModel(kind="resnet18", image_size=8), 10)


def factors(**schedule: Any) -> list[float]:
    config = ScheduleConfig(**schedule)
    return [lr_factor(step, config, STEPS_PER_EPOCH, EPOCHS) for step in range(TOTAL)]


def torch_factors(make_scheduler: Any, num_steps: int = TOTAL) -> list[float]:
    """Return the learning rates that a scheduler of torch gives to a base rate of 1."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make_scheduler(optimizer)
    rates = []
    for _ in range(num_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


# ── optimisers ────────────────────────────────────────────────────────────────────────────────────


def test_weights_decay_and_norms_and_biases_do_not() -> None:
    classifier = resnet18()
    optimizer = build_optimizer(classifier, AdamW(lr=0.01, weight_decay=0.3), Full(backbone_lr_scale=0.5))
    names = {id(parameter): name for name, parameter in classifier.named_parameters()}
    norms = {
        f"{name}.{leaf}"
        for name, module in classifier.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for leaf in ("weight", "bias")
    }
    settings = {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert set(settings) == set(names.values())
    for name, (lr, weight_decay) in settings.items():
        assert lr == (0.01 if name.startswith("network.fc.") else 0.005)
        assert weight_decay == (0.0 if name in norms or name.endswith(".bias") else 0.3)


def test_only_what_trains_is_optimised() -> None:
    classifier = resnet18()
    for finetune in (LinearProbe(), Partial(trainable_groups=2), Full()):
        apply_freezing(classifier, finetune)
        optimizer = build_optimizer(classifier, Sgd(), finetune)
        optimised = [id(p) for group in optimizer.param_groups for p in group["params"]]
        assert sorted(optimised) == sorted(id(p) for p in classifier.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("optim", "expected"),
    [
        (Sgd(momentum=0.8, nesterov=False), (torch.optim.SGD, {"momentum": 0.8, "nesterov": False})),
        (Adam(beta1=0.8, eps=1e-7), (torch.optim.Adam, {"betas": (0.8, 0.999), "eps": 1e-7})),
        (AdamW(beta2=0.95, eps=0.1), (torch.optim.AdamW, {"betas": (0.9, 0.95), "eps": 0.1})),
    ],
)
def test_settings_reach_the_optimiser(optim: OptimConfig, expected: tuple[type, dict[str, Any]]) -> None:
    optimizer = build_optimizer(resnet18(), optim, Full())
    assert type(optimizer) is expected[0]
    assert all(optimizer.defaults[key] == value for key, value in expected[1].items())


# ── schedules ─────────────────────────────────────────────────────────────────────────────────────


def test_constant() -> None:
    assert factors(kind="constant") == [1.0] * TOTAL


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_cosine_is_torchs(final: float) -> None:
    expected = torch_factors(lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=TOTAL, eta_min=final))
    assert factors(kind="cosine", final_lr_ratio=final) == pytest.approx(expected)


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_linear_is_torchs(final: float) -> None:
    expected = torch_factors(
        lambda o: lr_scheduler.LinearLR(o, start_factor=1.0, end_factor=final, total_iters=TOTAL)
    )
    assert factors(kind="linear", final_lr_ratio=final) == pytest.approx(expected)


def test_cosine_after_warm_up_is_torchs_over_what_remains() -> None:
    warm = 11  # 1.5 epochs of 7 steps, rounded up
    expected = torch_factors(lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=TOTAL - warm), TOTAL - warm)
    ours = factors(kind="cosine", warmup_epochs=11 / 7)
    assert ours[warm:] == pytest.approx(expected)
    assert ours[:warm] == pytest.approx([(step + 1) / 12 for step in range(warm)])


def test_step_is_torchs() -> None:
    expected = torch_factors(lambda o: lr_scheduler.StepLR(o, step_size=2 * STEPS_PER_EPOCH, gamma=0.3))
    assert factors(kind="step", step_epochs=2, step_gamma=0.3) == pytest.approx(expected)


@pytest.mark.parametrize(("warmup_epochs", "rise"), [(2.0, 14 / TOTAL), (0.0, 0.3)])
def test_one_cycle_is_torchs(warmup_epochs: float, rise: float) -> None:
    final = 0.01
    expected = torch_factors(
        lambda o: lr_scheduler.OneCycleLR(
            o,
            max_lr=1.0,
            total_steps=TOTAL,
            pct_start=round(rise * TOTAL) / TOTAL,
            final_div_factor=1 / 25 / final,
            cycle_momentum=False,
        )
    )
    ours = factors(kind="one_cycle", warmup_epochs=warmup_epochs, final_lr_ratio=final)
    assert ours == pytest.approx(expected)
    assert max(ours) == ours[round(rise * TOTAL) - 1] == 1.0


@pytest.mark.parametrize("power", [1.0, 0.9, 2.0])
def test_polynomial_is_torchs(power: float) -> None:
    expected = torch_factors(lambda o: lr_scheduler.PolynomialLR(o, total_iters=TOTAL, power=power))
    assert factors(kind="polynomial", power=power) == pytest.approx(expected)


def test_exponential_is_torchs() -> None:
    expected = torch_factors(lambda o: lr_scheduler.ExponentialLR(o, gamma=0.02 ** (1 / TOTAL)))
    assert factors(kind="exponential", final_lr_ratio=0.02) == pytest.approx(expected)


def test_multi_step_is_torchs() -> None:
    expected = torch_factors(lambda o: lr_scheduler.MultiStepLR(o, milestones=[14, 32], gamma=0.3))
    assert factors(kind="multi_step", milestones=(2.0, 32 / 7), step_gamma=0.3) == pytest.approx(expected)


@pytest.mark.parametrize("cycles", [2, 3, 6])
def test_cosine_restarts_are_torchs(cycles: int) -> None:
    expected = torch_factors(
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=TOTAL // cycles, eta_min=0.1)
    )
    assert factors(kind="cosine", cycles=cycles, final_lr_ratio=0.1) == pytest.approx(expected)


def test_each_cycle_peaks_lower_and_timm_agrees() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    timms = CosineLRScheduler(
        optimizer, t_initial=TOTAL // 3, cycle_decay=0.5, cycle_limit=3, t_in_epochs=False
    )
    expected = []
    for step in range(TOTAL):
        timms.step_update(step)
        expected.append(optimizer.param_groups[0]["lr"])
    assert factors(kind="cosine", cycles=3, cycle_decay=0.5) == pytest.approx(expected)


def test_trapezoid_is_torchs_pieces() -> None:
    warm, falling = 7, round(0.25 * TOTAL)

    def pieces(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
        rising = lr_scheduler.LinearLR(optimizer, start_factor=1 / 8, total_iters=7)
        flat = lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=1)
        down = lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.05, total_iters=falling)
        return lr_scheduler.SequentialLR(optimizer, [rising, flat, down], [warm, TOTAL - falling])

    ours = factors(kind="trapezoid", warmup_epochs=1.0, decay_share=0.25, final_lr_ratio=0.05)
    assert ours == pytest.approx(torch_factors(pieces))


def plateau(**schedule: Any) -> tuple[torch.optim.Optimizer, PlateauLR]:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 0.25)]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    found = build_schedule(optimizer, ScheduleConfig(kind="plateau", **schedule), STEPS_PER_EPOCH, EPOCHS)
    assert isinstance(found, PlateauLR)
    return optimizer, found


def train_epochs(
    optimizer: torch.optim.Optimizer, schedule: PlateauLR, scores: list[float]
) -> list[list[float]]:
    """Return the rates of both groups in each step."""
    rates = []
    for score in scores:
        for _ in range(STEPS_PER_EPOCH):
            rates.append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
            schedule.step()
        schedule.end_epoch(score)
    return rates


SCORES = [0.5, 0.6, 0.6, 0.55, 0.7, 0.69, 0.7, 0.3, 0.2, 0.1]


def test_plateau_is_torchs_with_a_warm_up_and_a_rate_for_each_group() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    torchs = lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max", factor=0.5, patience=1, threshold=0.0, min_lr=0.2
    )
    levels = []
    for score in SCORES:
        levels.append(optimizer.param_groups[0]["lr"])
        torchs.step(score)
    assert levels == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.2]
    rates = train_epochs(*plateau(step_gamma=0.5, patience=2, final_lr_ratio=0.2, warmup_epochs=1.0), SCORES)
    rising = [min(1.0, (step + 1) / 8) for step in range(len(rates))]
    expected = [
        [level * up, 0.25 * level * up] for level, up in zip(np.repeat(levels, 7), rising, strict=True)
    ]
    assert np.allclose(rates, expected)


def test_a_plateau_that_is_resumed_goes_on_as_it_would_have() -> None:
    how = {"step_gamma": 0.5, "patience": 2, "warmup_epochs": 2.0}
    whole = train_epochs(*plateau(**how), SCORES)
    first, second = plateau(**how), plateau(**how)
    rates = train_epochs(*first, SCORES[:4])
    file = io.BytesIO()
    torch.save([part.state_dict() for part in first], file)
    file.seek(0)
    for part, state in zip(second, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    assert rates + train_epochs(*second, SCORES[4:]) == whole


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "one_cycle"])
@pytest.mark.parametrize("warmup_epochs", [0.3, 1.0, 2.0])
def test_warm_up_rises_evenly_to_one(kind: Any, warmup_epochs: float) -> None:
    warm = round(warmup_epochs * STEPS_PER_EPOCH)
    ours = factors(kind=kind, warmup_epochs=warmup_epochs, final_lr_ratio=0.01, **{"milestones": (4.0, 5.0)})
    rises = {round(b - a, 9) for a, b in pairwise(ours[: warm + 1])}
    assert rises == {round(1 / (warm + 1), 9)}
    assert ours[0] > 0
    assert ours[warm] == 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_factors_stay_between_zero_and_one_even_past_the_end(kind: Any) -> None:
    config = ScheduleConfig(kind=kind, warmup_epochs=1.0, final_lr_ratio=0.05, **NEEDED.get(kind, {}))
    for steps_per_epoch, epochs in ((1, 2), (1, 3), (5, 4)):
        rates = [
            lr_factor(step, config, steps_per_epoch, epochs) for step in range(3 * steps_per_epoch * epochs)
        ]
        assert all(0 < rate <= 1 for rate in rates)
        if kind in ("cosine", "linear", "one_cycle", "exponential", "polynomial", "trapezoid"):
            assert rates[-1] == pytest.approx(0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_resuming_from_state_dicts_is_exact(kind: Any) -> None:
    def start() -> tuple[ImageClassifier, torch.optim.Optimizer, Any]:
        torch.manual_seed(0)
        classifier = build_model(ScratchModel(kind="lenet"), 10)
        finetune = Full(backbone_lr_scale=0.5)
        optimizer = build_optimizer(classifier, AdamW(weight_decay=0.1), finetune)
        config = ScheduleConfig(
            kind=kind, warmup_epochs=1.5, step_epochs=2, final_lr_ratio=0.01, **NEEDED.get(kind, {})
        )
        return classifier, optimizer, build_schedule(optimizer, config, STEPS_PER_EPOCH, EPOCHS)

    def run(parts: tuple[ImageClassifier, torch.optim.Optimizer, Any], steps: range) -> list[list[float]]:
        classifier, optimizer, schedule = parts
        rates = []
        for step in steps:
            images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            classifier(images).square().mean().backward()
            optimizer.step()
            rates.append([group["lr"] for group in optimizer.param_groups])
            schedule.step()
        return rates

    uninterrupted, interrupted, resumed = start(), start(), start()
    expected = run(uninterrupted, range(TOTAL))
    first = run(interrupted, range(17))
    file = io.BytesIO()
    torch.save([part.state_dict() for part in interrupted], file)
    file.seek(0)
    for part, state in zip(resumed, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    assert first + run(resumed, range(17, TOTAL)) == expected
    ours, theirs = resumed[0].state_dict(), uninterrupted[0].state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
