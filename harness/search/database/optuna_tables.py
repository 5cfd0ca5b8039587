"""Our queries on the tables of Optuna's database, which read only what is needed.

Optuna's own methods read whole trials, with every parameter, attribute and reported score, to count them or
to look at one attribute. With 10,000 trials that takes seconds, while every other process waits for the lock.
`retrying_storage.py` adds retries to the class here; `ownership/claims.py` is its main caller.
`redeclare_trials` rewrites a study's trials for `harness sweep --extend`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from types import SimpleNamespace
from typing import Any, ParamSpec, TypeVar

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session, aliased
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from harness.search.database.optuna_private import CMA_ES_PATTERN, CONSTRAINT_PREFIX, session_of, tables

UNFINISHED = (TrialState.RUNNING, TrialState.WAITING)
P = ParamSpec("P")
Result = TypeVar("Result")


class UtcNow(FunctionElement[datetime]):
    """The time by the database's clock, whatever time zone a session is in."""

    type = sa.DateTime()
    inherit_cache = True


@compiles(UtcNow)
def _utc_now(element: UtcNow, compiler: SQLCompiler, **_: Any) -> str:
    match compiler.dialect.name:
        case "postgresql":
            return "TIMEZONE('UTC', CURRENT_TIMESTAMP)"
        case "mysql" | "mariadb":
            return "UTC_TIMESTAMP()"
        case _:
            return "CURRENT_TIMESTAMP"  # SQLite's is UTC


@dataclass(frozen=True)
class TrialHead:
    """The few facts about a trial that decide which process may work on it."""

    trial_id: int
    number: int
    state: TrialState
    attr: Any  # the user attribute that was asked for; None: there is none
    is_stale: bool  # it is running and its last heartbeat is older than the lease


@dataclass(frozen=True)
class OpenTrials:
    """The trials of a study that have not ended."""

    num_trials: int  # in the study, ended ones included
    unfinished: list[TrialHead]  # the oldest first


class DirectStorage(RDBStorage):
    """Optuna's database with small queries of our own."""

    def retry(self, call: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Result:
        """Return what `call` returns; RetryingStorage repeats it while the database does not answer."""
        return call(*args, **kwargs)

    def get_trial_head(self, trial_id: int, key: str) -> TrialHead:
        """Return the head of one trial, with one of its user attributes."""
        with session_of(self) as session:
            rows = session.execute(_trial_head_query(), {"trial_id": trial_id, "key": key})
            return self._trial_head(rows.one())

    def get_open_trials(self, study_id: int, key: str) -> OpenTrials:
        """Return the trials of a study that have not ended, each with one user attribute."""
        with session_of(self) as session:
            count = session.execute(_count_query(), {"study_id": study_id}).scalar_one()
            rows = session.execute(_unfinished_query(), {"study_id": study_id, "key": key})
            return OpenTrials(count, [self._trial_head(row) for row in rows])

    def get_attr_where(self, study_id: int, key: str, other: str, value: Any) -> list[Any]:
        """Return the user attribute `key` of each trial of a study whose attribute `other` has this value.

        A trial without `key` gives None. The database compares the values, so that the attributes of no other
        trial are read.
        """
        trials, attrs = tables().TrialModel, tables().TrialUserAttributeModel
        wanted = aliased(attrs)
        query = (
            sa.select(attrs.value_json, wanted.value_json)
            .join(trials, trials.trial_id == attrs.trial_id)
            .outerjoin(wanted, (wanted.trial_id == attrs.trial_id) & (wanted.key == key))
            .where(trials.study_id == study_id, attrs.key == other, attrs.value_json == json.dumps(value))
        )
        with session_of(self) as session:
            rows = session.execute(query).all()
        # Compared once more, because MySQL's default collation ignores upper and lower case.
        return [found and json.loads(found) for text, found in rows if text == json.dumps(value)]

    def create_taken_trial(self, study_id: int, attrs: Mapping[str, Any]) -> TrialHead:
        """Create a running trial together with its attributes and first heartbeat.

        No process ever sees the trial without them, so none takes it for a trial without an owner.
        """
        models = tables()
        with session_of(self) as session:
            # Locks the study's row, as Optuna does, so that no two trials get the same number.
            models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
            trial: Any = self._get_prepared_new_trial(study_id, None, session)
            session.add(models.TrialHeartbeatModel(trial_id=trial.trial_id, heartbeat=UtcNow()))
            session.add_all(
                models.TrialUserAttributeModel(trial_id=trial.trial_id, key=key, value_json=json.dumps(value))
                for key, value in attrs.items()
            )
            return TrialHead(trial.trial_id, trial.number, trial.state, None, is_stale=False)

    def record_heartbeat(self, trial_id: int) -> None:
        """Record a heartbeat in UTC; Optuna would write the local time of the database session."""
        beats = tables().TrialHeartbeatModel
        with session_of(self, ignore_conflicts=True) as session:
            beat = sa.update(beats).where(beats.trial_id == trial_id).values(heartbeat=UtcNow())
            # Usually there is a row to update; before the first heartbeat of a trial there is none.
            if session.execute(beat).rowcount == 0:  # type: ignore[attr-defined]
                session.add(beats(trial_id=trial_id, heartbeat=UtcNow()))

    def get_trial(self, trial_id: int) -> FrozenTrial:
        found = self._read_trials(tables().TrialModel.trial_id == trial_id)
        if not found:
            raise KeyError(f"no trial has the id {trial_id}")
        return found[0]

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        """Return the trials with ids above `trial_id_greater_than`, and the included ones below.

        Optuna's cache calls this; it includes the trials that had not ended when it last read them.
        """
        trials = tables().TrialModel
        known = {trial_id for trial_id in included_trial_ids if trial_id <= trial_id_greater_than}
        condition = trials.study_id == study_id
        condition &= (trials.trial_id > trial_id_greater_than) | trials.trial_id.in_(known)
        if states is not None:
            condition &= trials.state.in_([state for state in TrialState if state in states])
        return self.retry(self._read_trials, condition)

    # Optuna's cache calls these three, although they are private.

    def _get_best_trial_id(self, study_id: int, direction: StudyDirection) -> int:
        return self.retry(super()._get_best_trial_id, study_id, direction)

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        return self.retry(super()._get_stale_trial_ids, study_id)

    def _set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
        previous_distribution: BaseDistribution | None,
    ) -> None:
        # A repeated write may find the row that its first try has written. That is no error, because Optuna
        # opens this session with `ignore_integrity_error`.
        self.retry(
            super()._set_trial_param,
            trial_id,
            param_name,
            param_value_internal,
            distribution,
            previous_distribution,
        )

    def _read_trials(self, condition: sa.ColumnElement[bool]) -> list[FrozenTrial]:
        """Return the same trials as Optuna would, but faster: their parts are plain rows, not ORM objects."""
        models = tables()
        meant = sa.select(models.TrialModel.trial_id).where(condition)
        part_tables = {
            "params": models.TrialParamModel,
            "values": models.TrialValueModel,
            "user_attributes": models.TrialUserAttributeModel,
            "system_attributes": models.TrialSystemAttributeModel,
            "intermediate_values": models.TrialIntermediateValueModel,
        }
        with session_of(self) as session:
            query = sa.select(models.TrialModel).where(condition).order_by(models.TrialModel.trial_id)
            # Read the trials before their parts. An ended trial gets no further parts, so whatever we read as
            # ended is complete; Optuna's cache keeps it and never reads it again.
            trials = session.scalars(query).all()
            parts = {
                name: _by_trial(session.execute(sa.select(table.__table__).where(table.trial_id.in_(meant))))
                for name, table in part_tables.items()
            }
            return [
                # Optuna's method only reads attributes, so it accepts plain rows in place of ORM objects.
                self._build_frozen_trial_from_trial_model(
                    SimpleNamespace(  # type: ignore[arg-type]
                        trial_id=trial.trial_id,
                        number=trial.number,
                        state=trial.state,
                        datetime_start=trial.datetime_start,
                        datetime_complete=trial.datetime_complete,
                        **{name: rows.get(trial.trial_id, ()) for name, rows in parts.items()},
                    )
                )
                for trial in trials
            ]

    def set_trial_user_attrs(self, trial_id: int, attrs: Mapping[str, Any]) -> None:
        """Set several user attributes in one transaction."""
        with session_of(self, ignore_conflicts=True) as session:
            for key, value in attrs.items():
                self._set_trial_attr_without_commit(
                    session, tables().TrialUserAttributeModel, trial_id, key, value
                )

    def _trial_head(self, row: sa.Row[Any]) -> TrialHead:
        return TrialHead(
            row.trial_id,
            row.number,
            row.state,
            attr=None if row.value_json is None else json.loads(row.value_json),
            is_stale=row.state == TrialState.RUNNING and self._is_old(row.heartbeat, row.now),
        )

    def _is_old(self, beat: datetime | None, now: datetime) -> bool:
        lease = timedelta(seconds=self.grace_period or 0)
        return beat is not None and now - beat > lease


# SQLAlchemy takes as long to build a query as the database takes to answer it, so each is built once.


@cache
def _count_query() -> sa.Select[Any]:
    return sa.select(sa.func.count()).where(tables().TrialModel.study_id == sa.bindparam("study_id"))


@cache
def _trial_head_query() -> sa.Select[Any]:
    return _trial_heads().where(tables().TrialModel.trial_id == sa.bindparam("trial_id"))


@cache
def _unfinished_query() -> sa.Select[Any]:
    trials = tables().TrialModel
    is_meant = (trials.study_id == sa.bindparam("study_id")) & trials.state.in_(UNFINISHED)
    return _trial_heads().where(is_meant).order_by(trials.trial_id)


def _trial_heads() -> sa.Select[Any]:
    models = tables()
    trials, attrs, beats = models.TrialModel, models.TrialUserAttributeModel, models.TrialHeartbeatModel
    is_meant = (attrs.trial_id == trials.trial_id) & (attrs.key == sa.bindparam("key"))
    columns = (trials.trial_id, trials.number, trials.state, attrs.value_json, beats.heartbeat)
    return (
        sa.select(*columns, UtcNow().label("now"))
        .outerjoin(attrs, is_meant)
        .outerjoin(beats, beats.trial_id == trials.trial_id)
    )


def _by_trial(rows: Iterable[sa.Row[Any]]) -> dict[int, list[sa.Row[Any]]]:
    found: dict[int, list[sa.Row[Any]]] = defaultdict(list)
    for row in rows:
        found[row.trial_id].append(row)
    return found


# ── extending a study ─────────────────────────────────────────────────────────────────────────────


def redeclare_trials(
    storage: RDBStorage,
    study_id: int,
    distributions: Mapping[str, BaseDistribution],
    excess_of: Callable[[FrozenTrial], Mapping[str, float]],
) -> None:
    """Rewrite a study's trials as if they had been drawn from a larger space; repeating it is harmless.

    An open study keeps the trials that it has read, so it must be opened again afterwards.

    Args:
        distributions: the larger space, by parameter.
        excess_of: returns how far a complete trial exceeds each constraint for which it has no value yet.
    """
    models = tables()
    trials = storage.get_all_trials(study_id, deepcopy=False)
    with Session(storage.engine) as session, session.begin():
        ids = session.query(models.TrialModel.trial_id).filter(models.TrialModel.study_id == study_id)
        of_study = models.TrialParamModel.trial_id.in_(ids)
        for param in session.query(models.TrialParamModel).filter(of_study):
            wider = distributions[param.param_name]
            value = json_to_distribution(param.distribution_json).to_external_repr(param.param_value)
            # Optuna stores a choice as its index among the values, which the larger space may change.
            param.param_value = wider.to_internal_repr(value)
            param.distribution_json = distribution_to_json(wider)
        attrs = models.TrialSystemAttributeModel
        # The stored state of CMA-ES is scaled to the old ranges. Without it, CMA-ES starts again from the
        # trials' scores.
        session.query(attrs).filter(attrs.trial_id.in_(ids), attrs.key.like(CMA_ES_PATTERN)).delete(
            synchronize_session=False
        )
        session.add_all(_constraint_rows(trials, excess_of))


def _constraint_rows(
    trials: Sequence[FrozenTrial], excess_of: Callable[[FrozenTrial], Mapping[str, float]]
) -> list[Any]:
    return [
        tables().TrialSystemAttributeModel(
            trial_id=trial._trial_id, key=f"{CONSTRAINT_PREFIX}{text}", value_json=json.dumps(excess)
        )
        for trial in trials
        if trial.state == TrialState.COMPLETE
        for text, excess in excess_of(trial).items()
    ]
