"""A sweep's question made larger on purpose (`harness sweep --extend`), its trials kept.

Optuna takes a study's distributions for fixed: it refuses a choice that has other values than before, and
TPE goes on in the ranges of the oldest trial. So what the trials so far were drawn from is declared anew,
in one transaction, as if it had been the larger space; their values stay.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.storages import RDBStorage
from optuna.storages._rdb.models import TrialModel, TrialParamModel, TrialSystemAttributeModel
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.orm import Session

from harness.config.sweep import SweepConfig
from harness.errors import SweepError
from harness.search.report.status import read_status
from harness.search.study import identity as question
from harness.search.study import keys
from harness.search.study.locate import SweepHome
from harness.search.study.storage import open_storage
from harness.search.study.trials import find_study, read_rows
from harness.search.suggest.samplers import distribution_of


def extend_sweep(home: SweepHome) -> str:
    """Make the sweep's question the plan's; to be called while nothing works on the sweep.

    Returns:
        What has changed, for people.

    Raises:
        SweepError: there is no such sweep, or the plan asks for something else than for more.
    """
    storage = open_storage(home.storage)
    study = find_study(storage, home.name)
    if study is None:
        raise SweepError(f"there is no sweep {home.name!r} to extend: name one with sweep.name=…")
    if at_work := read_status(study).at_work:
        raise SweepError(
            f"trial {at_work[0].number} of sweep {home.name!r} is running: stop it first (sweep --stop)"
        )
    before = study.user_attrs.get(keys.QUESTION, {})
    changes = question.differences(before, home.question)
    if not changes:
        return f"sweep {home.name} asks for this already: nothing to extend"
    _check_wider(home, before, changes)
    storage.patiently(lambda: redeclare_trials(storage, study._study_id, home.plan.sweep))
    _record_infeasible(home)
    num_trials = storage.get_n_trials(study._study_id)
    when = datetime.now(UTC).isoformat(timespec="seconds")
    note = {"at": when, "after_trials": num_trials, "changes": changes}
    study.set_user_attr(keys.EXTENSIONS, [*study.user_attrs.get(keys.EXTENSIONS, []), note])
    study.set_user_attr(keys.QUESTION, home.question)
    return f"sweep {home.name} is extended after {num_trials} trials: {', '.join(changes)}"


def _record_infeasible(home: SweepHome) -> None:
    """Let the runs of trials say so that a new constraint has made infeasible."""
    from harness.tracking import names
    from harness.tracking.store import open_store

    study = find_study(open_storage(home.storage), home.name)  # anew: what was read before is outdated
    assert study is not None
    store = open_store(home.plan.base.tracking)
    for row in read_rows(study):
        if row.state == "infeasible" and row.run_id is not None:
            store.note(row.run_id, {names.OUTCOME: "infeasible"})


def _check_wider(home: SweepHome, before: Mapping[str, Any], changes: Sequence[str]) -> None:
    narrower = question.differences(before, home.question, but_wider=True)
    if narrower:
        raise SweepError(
            f"sweep {home.name!r} can only be widened (ranges, values of choices, constraints): "
            f"{question.shorten(narrower)} is another question: give it another sweep.name"
        )
    is_space_wider = any(change.startswith("sweep.space.") for change in changes)
    if home.plan.sweep.sampler.kind == "grid" and is_space_wider:
        raise SweepError("a grid cannot be widened, as its order would change: give the new one another name")


def redeclare_trials(storage: RDBStorage, study_id: int, sweep: SweepConfig) -> None:
    """Let a study's trials be of the larger space and under the new constraints; to do so twice is harmless.

    Who has the study open keeps what it has read, and must open it anew.
    """
    trials = storage.get_all_trials(study_id, deepcopy=False)
    with Session(storage.engine) as session, session.begin():
        ids = session.query(TrialModel.trial_id).filter(TrialModel.study_id == study_id)
        param: Any
        for param in session.query(TrialParamModel).filter(TrialParamModel.trial_id.in_(ids)):
            wider = distribution_of(sweep.space[param.param_name])
            value = json_to_distribution(param.distribution_json).to_external_repr(param.param_value)
            param.param_value = wider.to_internal_repr(value)  # of a choice: its place among the values
            param.distribution_json = distribution_to_json(wider)
        session.query(TrialSystemAttributeModel).filter(
            TrialSystemAttributeModel.trial_id.in_(ids),
            TrialSystemAttributeModel.key.like(keys.CMA_ES_PATTERN),
        ).delete(synchronize_session=False)
        session.add_all(_excesses(trials, sweep))


def _excesses(trials: Sequence[FrozenTrial], sweep: SweepConfig) -> list[TrialSystemAttributeModel]:
    """Return how far earlier trials are beyond the constraints that they were not told of."""
    return [
        TrialSystemAttributeModel(
            trial_id=trial._trial_id,
            key=f"{keys.CONSTRAINT_PREFIX}{constraint}",
            value_json=json.dumps(constraint.excess(trial.user_attrs[keys.COSTS][constraint.cost])),
        )
        for trial in trials
        for constraint in sweep.parsed_constraints()
        if trial.state == TrialState.COMPLETE and str(constraint) not in trial.constraints
    ]
