"""Tells Optuna how far a trial exceeds the sweep's constraints, and describes that in words for reports.

`trial/attempt.py` calls `tell_costs` when a cost of the trial is known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import optuna
from optuna.trial import FrozenTrial

from harness.config.sweep import SweepConfig
from harness.search.study import keys


def tell_costs(trial: optuna.Trial, sweep: SweepConfig, costs: Mapping[str, float]) -> None:
    """Store a trial's costs, and tell Optuna how far each constraint is exceeded, once per constraint."""
    if not costs:
        return
    trial.set_user_attr(keys.COSTS, {**trial.user_attrs.get(keys.COSTS, {}), **costs})
    told = trial.constraints
    for constraint in sweep.parsed_constraints():
        if constraint.cost in costs and str(constraint) not in told:
            trial.set_constraint(str(constraint), constraint.excess(costs[constraint.cost]))


def broken_constraints(trial: optuna.Trial | FrozenTrial) -> str | None:
    """Return in words which constraints a trial exceeds; None if it satisfies all."""
    costs = trial.user_attrs.get(keys.COSTS, {})
    broken = [text for text, excess in trial.constraints.items() if excess > 0]
    words = [f"{text} does not hold ({costs.get(text.split()[0], math.nan):.3g})" for text in broken]
    return ", ".join(words) or None
