"""Trials that a sweep begins with, because somebody wants to see them."""

from __future__ import annotations

import optuna

from harness.config.space import FloatRange, Scalar
from harness.config.sweep import SweepConfig
from harness.search.samplers import FIXED


def enqueue_points(study: optuna.Study, sweep: SweepConfig) -> None:
    """Make a waiting trial of every point of `sweep.enqueue` that has none yet, in their order.

    A repeated command adds nothing; points that were added to the configuration since then come last, as far
    as the budget (`sweep.num_trials`) has room for them.
    """
    trials = study.get_trials(deepcopy=False)
    known = [trial.system_attrs.get(FIXED) for trial in trials]
    room = sweep.num_trials - len(trials)
    for point in sweep.enqueue:
        exact = {path: _exact(sweep, path, value) for path, value in point.items()}
        if exact in known:
            known.remove(exact)  # a point may be there twice, to see how far a result can be relied on
        elif room > 0:
            study.enqueue_trial(exact)
            room -= 1


def _exact(sweep: SweepConfig, path: str, value: Scalar) -> Scalar:
    if isinstance(sweep.space[path], FloatRange) and isinstance(value, int | float):
        return float(value)
    return value
