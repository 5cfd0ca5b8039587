"""Builds the optimiser and its learning-rate schedule, which counts in optimiser steps.

`module.py` calls `build_optimizer` and `build_schedule` when Lightning starts to train. The shapes of the
schedules are in `schedules.py`, Muon's parameter groups and update rule in `muon.py`; optimisers of timm come
from `harness.models.timm_parts`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from harness.config.schema import FinetuneConfig, MuonOptim, OptimConfig, ScheduleConfig, TimmOptim
from harness.models.classifier import ImageClassifier
from harness.models.freezing import parameter_parts
from harness.models.timm_parts import timm_optimizer
from harness.training.optimisation.muon import Muon, muon_groups
from harness.training.optimisation.schedules import PlateauLR, group_factor


def build_optimizer(classifier: ImageClassifier, optim: OptimConfig, finetune: FinetuneConfig) -> Optimizer:
    """Return the optimiser of all parameters that train.

    Backbone and head have groups of their own, each divided into parameters with and without weight decay; so
    has each part of the backbone that has a learning rate of its own (`finetune.layer_decay`), or joins in an
    epoch of its own (`finetune=gradual`).
    For the groups of Muon see `muon_groups`.
    """
    if isinstance(optim, MuonOptim):
        return Muon(muon_groups(classifier, optim, finetune))
    groups = [
        group | part.timing
        for part in parameter_parts(classifier, finetune)
        for group in _split_by_decay(part.role, part.parameters, optim.lr * part.lr_scale, optim.weight_decay)
    ]
    assert groups, "nothing trains: even a linear probe trains its head"
    if isinstance(optim, TimmOptim):
        return timm_optimizer(optim, groups)
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
    epochs, and keeps the last rate for the rest of the run. The entry is a part of every checkpoint. For
    other entries see `group_factor`.
    """

    def factor_of(group: dict[str, Any]) -> Callable[[int], float]:
        return lambda step: group_factor(step, group, schedule, steps_per_epoch, max_epochs)

    factors = [factor_of(dict(group)) for group in optimizer.param_groups]
    if schedule.kind == "plateau":
        return PlateauLR(optimizer, factors, schedule)
    return LambdaLR(optimizer, factors)


def parameters_at_rest(optimizer: Optimizer) -> list[nn.Parameter]:
    """Return the parameters whose learning rate is 0: their schedule has ended, or has not begun.

    If this is called at the start of an epoch, they all belong to groups with a `max_epochs` of their own
    (see `build_schedule`), as other schedules end with the run, or to groups that join in a later epoch.
    """
    return [
        parameter for group in optimizer.param_groups if group["lr"] <= 0 for parameter in group["params"]
    ]


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
