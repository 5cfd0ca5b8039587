"""`sweep.enqueue`: points that a sweep tries before its sampler proposes any.

`study/locate.py` calls this with every call of the sweep.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import optuna
from optuna.trial import FrozenTrial, TrialState

from harness.config.space import FloatRange, Scalar
from harness.config.sweep import SweepConfig
from harness.search.database.optuna_private import change_enqueued_point, enqueued_point

logger = logging.getLogger(__name__)


def enqueue_points(study: optuna.Study, sweep: SweepConfig) -> None:
    """Make the waiting trials of the study those of `sweep.enqueue`, in their order.

    A repeated command changes nothing. If a point has left the configuration, its waiting trial gets a new
    point, or the sampler's values if there is none. Added points come last, as far as `sweep.num_trials`
    allows. A trial that has begun keeps its point, and a message names it.
    """
    trials = study.get_trials(deepcopy=False)
    wanted = [{path: _exact(sweep, path, value) for path, value in point.items()} for point in sweep.enqueue]
    unwanted: list[FrozenTrial] = []
    for trial in trials:
        point = enqueued_point(trial)
        if point in wanted:
            wanted.remove(point)  # a point may be there twice, to see how far a result can be relied on
        elif point and not trial.state.is_finished():
            unwanted.append(trial)
    for trial in unwanted:
        before = _shown(enqueued_point(trial) or {})
        if trial.state != TrialState.WAITING:
            logger.info("trial %d began at %s, which enqueue has no more: it goes on", trial.number, before)
            continue
        point = wanted.pop(0) if wanted else {}
        change_enqueued_point(study, trial, point)
        now = _shown(point) if point else "what the sampler proposes"
        logger.info("trial %d begins at %s, no more at %s", trial.number, now, before)
    room = max(0, sweep.num_trials - len(trials))
    for point in wanted[:room]:
        study.enqueue_trial(point)
    for point in wanted[room:]:
        logger.warning("no trial is left to begin at %s: raise sweep.num_trials", _shown(point))


def _shown(point: Mapping[str, Scalar]) -> str:
    return ", ".join(f"{path}={value}" for path, value in point.items()) or "any place"


def _exact(sweep: SweepConfig, path: str, value: Scalar) -> Scalar:
    if isinstance(sweep.space[path], FloatRange) and isinstance(value, int | float):
        return float(value)
    return value
