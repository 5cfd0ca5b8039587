"""`harness sweep --extend`: a sweep gets a larger space or further constraints and keeps its trials.

`sweep.py` calls `extend_sweep` while no process works on the sweep. The trials so far must be rewritten:
Optuna refuses a choice whose values differ from those of earlier trials, TPE keeps to the ranges of the
oldest trial, and a constraint can be set on running trials only. Optuna's interface would only allow copying
every trial into a new study, under new ids, but claims, folders and MLflow runs refer to the old ones. So
`optuna_tables.redeclare_trials` writes the wider distributions and the new constraints into the earlier
trials' rows, in one transaction; the trials' values stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial

from harness.config.sweep import SweepConfig
from harness.errors import SweepError
from harness.search.database.optuna_private import study_id
from harness.search.database.optuna_tables import redeclare_trials
from harness.search.database.storage import open_storage
from harness.search.report.status import read_status
from harness.search.study import identity, keys
from harness.search.study.locate import SweepContext
from harness.search.study.trials import find_study, read_rows
from harness.search.suggest.samplers import distribution_of


def extend_sweep(home: SweepContext) -> str:
    """Give the sweep the plan's larger space and constraints; call it while no process works on the sweep.

    Returns:
        One line that says what has changed.

    Raises:
        SweepError: there is no such sweep, a trial of it is running, or the plan is not a larger sweep.
    """
    storage = open_storage(home.storage)
    study = find_study(storage, home.name)
    if study is None:
        raise SweepError(f"there is no sweep {home.name!r} to extend: name one with sweep.name=…")
    if at_work := read_status(study).at_work:
        raise SweepError(
            f"trial {at_work[0].number} of sweep {home.name!r} is running: stop it first (sweep --stop)"
        )
    before = study.user_attrs.get(keys.IDENTITY, {})
    changes = identity.differences(before, home.identity)
    if not changes:
        return f"sweep {home.name} asks for this already: nothing to extend"
    _check_wider(home, before, changes)
    storage.retry(widen_trials, storage, study_id(study), home.plan.sweep)
    _record_infeasible(home)
    num_trials = storage.get_n_trials(study_id(study))
    when = datetime.now(UTC).isoformat(timespec="seconds")
    note = {"at": when, "after_trials": num_trials, "changes": changes}
    study.set_user_attr(keys.EXTENSIONS, [*study.user_attrs.get(keys.EXTENSIONS, []), note])
    study.set_user_attr(keys.IDENTITY, home.identity)
    return f"sweep {home.name} is extended after {num_trials} trials: {', '.join(changes)}"


def _record_infeasible(home: SweepContext) -> None:
    """Tag the MLflow runs of trials that a new constraint has made infeasible."""
    from harness.tracking import names
    from harness.tracking.store import open_store

    # The study is opened again, because an open one caches ended trials as they were before.
    study = find_study(open_storage(home.storage), home.name)
    assert study is not None
    store = open_store(home.plan.base.tracking)
    for row in read_rows(study):
        if row.state == "infeasible" and row.run_id is not None:
            store.note(row.run_id, {names.OUTCOME: "infeasible"})


def _check_wider(home: SweepContext, before: Mapping[str, Any], changes: Sequence[str]) -> None:
    narrower = identity.differences(before, home.identity, but_wider=True)
    if narrower:
        raise SweepError(
            f"sweep {home.name!r} can only be widened (ranges, values of choices, constraints): "
            f"{identity.shorten(narrower)} is another question: give it another sweep.name"
        )
    is_space_wider = any(change.startswith("sweep.space.") for change in changes)
    if home.plan.sweep.sampler.kind == "grid" and is_space_wider:
        raise SweepError("a grid cannot be widened, as its order would change: give the new one another name")


def widen_trials(storage: RDBStorage, number: int, sweep: SweepConfig) -> None:
    """Rewrite the trials of the study with this id for the larger space and the new constraints."""
    told_of = sweep.parsed_constraints()

    def excess_of(trial: FrozenTrial) -> dict[str, float]:
        costs = trial.user_attrs.get(keys.COSTS, {})
        new = (constraint for constraint in told_of if str(constraint) not in trial.constraints)
        return {str(constraint): constraint.excess(costs[constraint.cost]) for constraint in new}

    distributions = {path: distribution_of(dimension) for path, dimension in sweep.space.items()}
    redeclare_trials(storage, number, distributions, excess_of)
