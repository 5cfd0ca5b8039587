"""A sweep's constraints, as Optuna and people are told of them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import optuna
from optuna.trial import FrozenTrial

from harness.config.sweep import SweepConfig
from harness.search.study import keys


def tell_costs(trial: optuna.Trial, sweep: SweepConfig, costs: Mapping[str, float]) -> None:
    """Note what a trial costs, and how far that is beyond each constraint; what is told stays."""
    if not costs:
        return
    trial.set_user_attr(keys.COSTS, {**trial.user_attrs.get(keys.COSTS, {}), **costs})
    told = trial.constraints
    for constraint in sweep.parsed_constraints():
        if constraint.cost in costs and str(constraint) not in told:
            trial.set_constraint(str(constraint), constraint.excess(costs[constraint.cost]))


def broken_constraints(trial: optuna.Trial | FrozenTrial) -> str | None:
    """Return which constraints a trial does not keep, in words; None if it keeps them all."""
    costs = trial.user_attrs.get(keys.COSTS, {})
    broken = [text for text, excess in trial.constraints.items() if excess > 0]
    words = [f"{text} does not hold ({costs.get(text.split()[0], math.nan):.3g})" for text in broken]
    return ", ".join(words) or None
