"""Builds the optimiser and its learning-rate schedule, which counts in optimiser steps.

`module.py` calls `build_optimizer` and `build_schedule` when Lightning starts to train. Muon's parameter
groups and update rule are in `muon.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from harness.config.schema import FinetuneConfig, MuonOptim, OptimConfig, ScheduleConfig
from harness.models.classifier import ImageClassifier
from harness.models.freezing import parameter_groups_by_role
from harness.training.muon import Muon, muon_groups

_ONE_CYCLE_START = 1 / 25  # the one-cycle schedule's first learning rate, as a fraction of its peak
_ONE_CYCLE_RISE = 0.3  # the fraction of the run in which it rises, if warmup_epochs is 0


def build_optimizer(classifier: ImageClassifier, optim: OptimConfig, finetune: FinetuneConfig) -> Optimizer:
    """Return the optimiser of all parameters that train.

    Backbone and head have groups of their own, each divided into parameters with and without weight decay.
    For the groups of Muon see `muon_groups`.
    """
    if isinstance(optim, MuonOptim):
        return Muon(muon_groups(classifier, optim, finetune))
    backbone, head = parameter_groups_by_role(classifier)
    groups = [
        *_split_by_decay("backbone", backbone, optim.lr * finetune.backbone_rate, optim.weight_decay),
        *_split_by_decay("head", head, optim.lr, optim.weight_decay),
    ]
    assert groups, "nothing trains: even a linear probe trains its head"
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    fused = devices <= {"cpu", "cuda", "mps"}  # one pass over each tensor; the meta device has no kernels
    match optim.kind:
        case "sgd":
            return SGD(groups, lr=optim.lr, momentum=optim.momentum, nesterov=optim.nesterov, fused=fused)
        case "adam":
            return Adam(groups, lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps, fused=fused)
        case "adamw":
            return AdamW(groups, lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps, fused=fused)


def build_schedule(
    optimizer: Optimizer, schedule: ScheduleConfig, steps_per_epoch: int, max_epochs: int
) -> LambdaLR:
    """Return the schedule, to be stepped after every optimiser step.

    A parameter group with an entry `max_epochs` (Muon's stem) runs through the whole schedule in that many
    epochs, and keeps the last rate for the rest of the run. The entry is a part of every checkpoint.
    """

    def factor_over(epochs: float) -> Callable[[int], float]:
        return lambda step: lr_factor(step, schedule, steps_per_epoch, epochs)

    return LambdaLR(
        optimizer, [factor_over(group.get("max_epochs", max_epochs)) for group in optimizer.param_groups]
    )


def parameters_at_rest(optimizer: Optimizer) -> list[nn.Parameter]:
    """Return the parameters whose schedule has ended at a learning rate of 0, before the end of the run.

    If this is called at the start of an epoch, they all belong to groups with a `max_epochs` of their own
    (see `build_schedule`): other schedules end with the run.
    """
    return [
        parameter for group in optimizer.param_groups if group["lr"] <= 0 for parameter in group["params"]
    ]


def lr_factor(step: int, schedule: ScheduleConfig, steps_per_epoch: int, max_epochs: float) -> float:
    """Return the learning rate of optimiser step `step` (from 0) as a factor of the base rate.

    Warm-up is linear. It starts above 0, or the first step would change nothing. Cosine and linear schedules
    end at `final_lr_ratio`; steps past the end keep the last factor.
    """
    total_steps = math.ceil(steps_per_epoch * max_epochs)
    warmup_steps = round(schedule.warmup_epochs * steps_per_epoch)
    if schedule.kind == "one_cycle":
        return _one_cycle(step, warmup_steps, total_steps, schedule.final_lr_ratio)
    warmup = min(1.0, (step + 1) / (warmup_steps + 1))
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    match schedule.kind:
        case "constant":
            return warmup
        case "cosine":
            return warmup * _cosine(1.0, schedule.final_lr_ratio, progress)
        case "linear":
            return warmup * (1.0 - (1.0 - schedule.final_lr_ratio) * min(1.0, max(0.0, progress)))
        case "step":
            epoch = step // steps_per_epoch
            return warmup * schedule.step_gamma ** (epoch // schedule.step_epochs)


def _one_cycle(step: int, warmup_steps: int, total_steps: int, final_ratio: float) -> float:
    """Return the factor of Smith's one-cycle policy: up, then down, along cosines, as in torch's OneCycleLR.

    Momentum is not cycled, unlike in the paper.
    Source: https://arxiv.org/abs/1708.07120
    """
    peak = max(0, (warmup_steps or round(_ONE_CYCLE_RISE * total_steps)) - 1)
    if step < peak:
        return _cosine(_ONE_CYCLE_START, 1.0, step / peak)
    return _cosine(1.0, final_ratio, (step - peak) / max(1, total_steps - 1 - peak))


def _cosine(start: float, end: float, progress: float) -> float:
    """Return the value at `progress` (0 to 1, clipped) of half a cosine from `start` to `end`."""
    progress = min(1.0, max(0.0, progress))
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def _split_by_decay(
    role: str, parameters: list[nn.Parameter], lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Return up to two groups: weights, which decay, and norms and biases (one dimension), which do not."""
    training = [parameter for parameter in parameters if parameter.requires_grad]
    weights = [parameter for parameter in training if parameter.ndim > 1]
    others = [parameter for parameter in training if parameter.ndim <= 1]
    groups = [
        {"params": weights, "lr": lr, "weight_decay": weight_decay, "name": f"{role}/decay"},
        {"params": others, "lr": lr, "weight_decay": 0.0, "name": f"{role}/no_decay"},
    ]
    return [group for group in groups if group["params"]]
