"""`sweep.enqueue`: points that a sweep tries before its sampler proposes any.

`study/locate.py` calls this whenever `harness sweep` opens the study.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import optuna
from optuna.trial import FrozenTrial, TrialState

from harness.config.space import FloatRange, Scalar
from harness.config.sweep import SweepConfig
from harness.search.database.optuna_private import change_enqueued_point, enqueued_point
from harness.search.study import keys

logger = logging.getLogger(__name__)


def enqueue_points(study: optuna.Study, sweep: SweepConfig) -> None:
    """Enqueue the points of `sweep.enqueue` as waiting trials, unless they were enqueued before.

    A repeated command changes nothing. If a point was removed from the configuration, its waiting trial gets
    an added point, or the sampler's values if no point was added. Further added points get new trials, as
    far as `sweep.num_trials` allows. A running trial keeps a removed point, and a message says so.
    """
    trials = study.get_trials(deepcopy=False)
    trials = [trial for trial in trials if keys.REPLICATE_OF not in trial.user_attrs]  # enqueued by the sweep
    wanted = [{path: _exact(sweep, path, value) for path, value in point.items()} for point in sweep.enqueue]
    unwanted: list[FrozenTrial] = []
    for trial in trials:
        point = enqueued_point(trial)
        if point in wanted:
            wanted.remove(point)  # only one: a point may be listed twice, to see how its score varies
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
