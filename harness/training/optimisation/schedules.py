"""The learning rate over a run: the factor of each optimiser step, and the schedule that watches validation.

`optim.py` builds a run's schedule from these; `lr_curve.py` draws it. A new kind of schedule is a name in
`harness.config.optim` and a case in `_shape`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from harness.config.optim import ScheduleConfig

_ONE_CYCLE_START = 1 / 25  # the one-cycle schedule's first learning rate, as a fraction of its peak
_ONE_CYCLE_RISE = 0.3  # the fraction of the run in which it rises, if warmup_epochs is 0


def group_factor(
    step: int, group: Mapping[str, Any], schedule: ScheduleConfig, steps_per_epoch: int, max_epochs: int
) -> float:
    """Return the learning rate of a parameter group in optimiser step `step` as a factor of its base rate.

    Args:
        group: Its entries may be `max_epochs` (its own end of the schedule), `joins` (the epoch in which it
            begins to train; the rate is 0 before), `join_warmup` (the epochs in which its rate then rises
            linearly to the schedule's) and `phases` (first epoch and scale of each part of the run over which
            the schedule is laid out anew). A parameter group has none of them unless the finetuning policy or
            Muon's stem asks for it.
    """
    since = step - group.get("joins", 0) * steps_per_epoch
    if since < 0:
        return 0.0
    begin, scale, end = 0, 1.0, group.get("max_epochs", max_epochs)
    for first, of_phase in group.get("phases", []):
        if step < first * steps_per_epoch:
            end = first
            break
        begin, scale = first, of_phase
    factor = scale * lr_factor(step - begin * steps_per_epoch, schedule, steps_per_epoch, end - begin)
    warmup_steps = round(group.get("join_warmup", 0.0) * steps_per_epoch)
    return factor * min(1.0, (since + 1) / (warmup_steps + 1))


def lr_factor(step: int, schedule: ScheduleConfig, steps_per_epoch: int, max_epochs: float) -> float:
    """Return the learning rate of optimiser step `step` (from 0) as a factor of the base rate.

    Warm-up is linear. It starts above 0, or the first step would change nothing. Schedules that fall end at
    `final_lr_ratio`; steps past the end keep the last factor. For a plateau this is the warm-up alone, which
    `PlateauLR` multiplies by the level.
    """
    total_steps = math.ceil(steps_per_epoch * max_epochs)
    warmup_steps = round(schedule.warmup_epochs * steps_per_epoch)
    if schedule.kind == "one_cycle":
        return _one_cycle(step, warmup_steps, total_steps, schedule.final_lr_ratio)
    warmup = min(1.0, (step + 1) / (warmup_steps + 1))
    return warmup * _shape(step, schedule, steps_per_epoch, total_steps, warmup_steps)


def _shape(
    step: int, schedule: ScheduleConfig, steps_per_epoch: int, total_steps: int, warmup_steps: int
) -> float:
    """Return the factor without the warm-up; schedules that fall do so in the steps after it."""
    final, factor = schedule.final_lr_ratio, 1.0
    after_warmup = max(1, total_steps - warmup_steps)
    place = min(max(0, step - warmup_steps), after_warmup)
    progress = place / after_warmup
    match schedule.kind:
        case "cosine":
            # Multiplied first: where a cycle begins, the quotient is a whole number, exactly.
            cycles = place * schedule.cycles / after_warmup
            begun = min(int(cycles), schedule.cycles - 1)
            factor = _cosine(schedule.cycle_decay**begun, final, cycles - begun)
        case "linear":
            factor = 1.0 - (1.0 - final) * progress
        case "exponential":
            factor = math.pow(final, progress)
        case "polynomial":
            factor = final + (1.0 - final) * (1.0 - progress) ** schedule.power
        case "trapezoid":
            falling = round(schedule.decay_share * total_steps)
            factor = 1.0 - (1.0 - final) * min(
                1.0, max(0.0, (step - total_steps + falling) / max(1, falling))
            )
        case "step":
            factor = schedule.step_gamma ** (step // steps_per_epoch // schedule.step_epochs)
        case "multi_step":
            ends = [round(epochs * steps_per_epoch) for epochs in schedule.milestones]
            factor = schedule.step_gamma ** bisect_right(ends, step)
    return factor


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


class PlateauLR(LambdaLR):
    """Warm-up, then a level that falls when the monitored metric gets no better.

    torch's ReduceLROnPlateau decides, at the end of an epoch. It sets learning rates itself, and would undo
    the warm-up and the groups' own rates; so it is given a stand-in optimiser, whose rate is the level. The
    level and what it decides from are part of the state, so that a resumed run goes on as it would have.
    """

    def __init__(
        self, optimizer: Optimizer, factors: list[Callable[[int], float]], schedule: ScheduleConfig
    ) -> None:
        """
        Args:
            factors: of each parameter group, from the number of the step (from 0).
        """
        self._stand_in = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        self._plateau = ReduceLROnPlateau(
            self._stand_in,
            mode="max",
            factor=schedule.step_gamma,
            patience=schedule.patience - 1,  # torch's is the number of epochs that it tolerates
            threshold=0.0,
            threshold_mode="abs",
            min_lr=schedule.final_lr_ratio,
            eps=0.0,
        )
        super().__init__(optimizer, [self._at_level(factor) for factor in factors])

    def _at_level(self, factor: Callable[[int], float]) -> Callable[[int], float]:
        return lambda step: factor(step) * self.level

    @property
    def level(self) -> float:
        """The factor that the plateaus so far have left."""
        return float(self._stand_in.param_groups[0]["lr"])

    def end_epoch(self, goodness: float) -> None:
        """Take note of an epoch's score; the next step then has the rate that follows from it.

        Args:
            goodness: the monitored metric; higher is better.
        """
        self._plateau.step(goodness)
        rates = [
            base * factor(self.last_epoch)
            for base, factor in zip(self.base_lrs, self.lr_lambdas, strict=True)
        ]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self._last_lr = rates

    def state_dict(self) -> dict[str, Any]:
        own = {
            key: value for key, value in super().state_dict().items() if key not in ("_stand_in", "_plateau")
        }
        return {**own, "level": self.level, "plateau": self._plateau.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        rest = dict(state_dict)
        self._stand_in.param_groups[0]["lr"] = rest.pop("level")
        self._plateau.load_state_dict(rest.pop("plateau"))
        super().load_state_dict(rest)
