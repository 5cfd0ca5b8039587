"""Estimates at a sweep's end how much of the best score comes from choosing it, and stores that in the study.

`parent_run.py` calls `measure_optimism`; the reports show what `stored_optimism` returns. The method is in
`harness/analysis/optimism.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import optuna

from harness.analysis.optimism import Optimism
from harness.config.compose import SweepPlan
from harness.errors import TrackingError
from harness.search.study import keys
from harness.search.study.trials import TrialRow, searched

if TYPE_CHECKING:
    import numpy as np

logger = logging.getLogger(__name__)

METRIC = "val/accuracy"  # the one score that is a mean over images of something that each run keeps


def measure_optimism(study: optuna.Study, plan: SweepPlan, rows: Sequence[TrialRow]) -> Optimism | None:
    """Estimate the optimism of the best score, unless that is known, and store it in the study.

    Returns:
        None where it cannot be estimated: another metric than the accuracy, fewer than two complete trials,
        or a trial without recorded predictions, which is logged.
    """
    complete = _complete(rows)
    if plan.sweep.metric != METRIC or len(complete) < 2:
        return None
    if (known := stored_optimism(study, rows)) is not None:
        return known
    from harness.analysis.optimism import estimate_optimism

    try:
        answers = _answers(plan, study.user_attrs[keys.PARENT_RUN_ID], complete)
    except TrackingError as error:
        logger.warning("how much of the best score is due to its choice is not estimated: %s", error)
        return None
    found = estimate_optimism(answers)
    assert found is not None
    study.set_user_attr(keys.OPTIMISM, {"trials": sorted(complete), **asdict(found)})
    return found


def stored_optimism(study: optuna.Study, rows: Sequence[TrialRow]) -> Optimism | None:
    """Return the estimate that was stored for these trials; None if there is none."""
    known = dict(study.user_attrs.get(keys.OPTIMISM, {}))
    return Optimism(**known) if known.pop("trials", None) == sorted(_complete(rows)) and known else None


def _complete(rows: Sequence[TrialRow]) -> set[int]:
    return {row.number for row in searched(rows) if row.state == "complete"}


def _answers(plan: SweepPlan, parent_run_id: str, complete: set[int]) -> dict[int, np.ndarray]:
    """Return for each complete trial whether each validation image was predicted right.

    Raises:
        TrackingError: a trial kept no predictions, or those of other images.
    """
    from harness.tracking.artifacts import load_predictions
    from harness.tracking.choice import trials_of
    from harness.tracking.runs import get_run

    tracking = plan.base.tracking
    runs = {run.trial: run for run in trials_of(tracking, get_run(tracking, parent_run_id))}
    if missing := sorted(complete - runs.keys()):
        raise TrackingError(f"the run of trial {missing[0]} is gone")
    kept = {number: load_predictions(tracking, runs[number]) for number in sorted(complete)}
    if len({predictions.digest for predictions in kept.values()}) > 1:
        raise TrackingError("the trials were validated on different images")
    return {number: predictions.correct for number, predictions in kept.items()}
