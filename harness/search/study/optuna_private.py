"""What is asked of the database all the time, each in one small query.

Optuna's own answers read whole trials, every parameter, attribute and report of theirs, to count them or to
look at one attribute. With 10,000 trials that is seconds, under the lock that everybody waits for.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa
from optuna.storages import RDBStorage
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

UNFINISHED = (TrialState.RUNNING, TrialState.WAITING)


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
class Standing:
    """How a trial stands, as far as who may work on it depends on it."""

    trial_id: int
    number: int
    state: TrialState
    attr: Any  # the user attribute that was asked for; None: there is none
    is_stale: bool  # it runs and has beaten, but not within the lease


@dataclass(frozen=True)
class Survey:
    """What there is to do in a study."""

    num_trials: int  # that exist
    unfinished: list[Standing]  # the oldest first


class DirectStorage(RDBStorage):
    """A database that can be asked directly."""

    def get_standing(self, trial_id: int, key: str) -> Standing:
        """Return how one trial stands, with one of its user attributes."""
        with _create_scoped_session(self.scoped_session) as session:
            rows = session.execute(_standing_query(), {"trial_id": trial_id, "key": key})
            return self._standing(rows.one())

    def get_survey(self, study_id: int, key: str) -> Survey:
        """Return what there is to do in a study, with one user attribute of each unfinished trial."""
        with _create_scoped_session(self.scoped_session) as session:
            count = session.execute(_count_query(), {"study_id": study_id}).scalar_one()
            rows = session.execute(_unfinished_query(), {"study_id": study_id, "key": key})
            return Survey(count, [self._standing(row) for row in rows])

    def get_attrs(self, study_id: int, key: str) -> dict[int, Any]:
        """Return one user attribute of every trial of a study that has it, by trial id."""
        trials, attrs = _models().TrialModel, _models().TrialUserAttributeModel
        query = sa.select(attrs.trial_id, attrs.value_json).join(trials, trials.trial_id == attrs.trial_id)
        with _create_scoped_session(self.scoped_session) as session:
            rows = session.execute(query.where(trials.study_id == study_id, attrs.key == key))
            return {trial_id: json.loads(value) for trial_id, value in rows}

    def create_taken_trial(self, study_id: int, attrs: Mapping[str, Any]) -> Standing:
        """Create a trial that somebody works on: it never exists without its attributes and a heartbeat."""
        models = _models()
        with _create_scoped_session(self.scoped_session) as session:
            models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
            trial: Any = self._get_prepared_new_trial(study_id, None, session)
            session.add(models.TrialHeartbeatModel(trial_id=trial.trial_id, heartbeat=UtcNow()))
            session.add_all(
                models.TrialUserAttributeModel(trial_id=trial.trial_id, key=key, value_json=json.dumps(value))
                for key, value in attrs.items()
            )
            return Standing(trial.trial_id, trial.number, trial.state, None, is_stale=False)

    def record_heartbeat(self, trial_id: int) -> None:
        """Note that a trial lives, by the database's clock; Optuna would write the session's own hours."""
        beats = _models().TrialHeartbeatModel
        with _create_scoped_session(self.scoped_session, True) as session:
            beat = sa.update(beats).where(beats.trial_id == trial_id).values(heartbeat=UtcNow())
            if session.execute(beat).rowcount == 0:  # type: ignore[attr-defined]
                session.add(beats(trial_id=trial_id, heartbeat=UtcNow()))

    def get_trial(self, trial_id: int) -> FrozenTrial:
        found = self._read_trials(_models().TrialModel.trial_id == trial_id)
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
        """Return the trials of a study above an id, and some below; it is what Optuna's cache asks for."""
        trials = _models().TrialModel
        known = {trial_id for trial_id in included_trial_ids if trial_id <= trial_id_greater_than}
        condition = trials.study_id == study_id
        condition &= (trials.trial_id > trial_id_greater_than) | trials.trial_id.in_(known)
        if states is not None:
            condition &= trials.state.in_([state for state in TrialState if state in states])
        return self._read_trials(condition)

    def _read_trials(self, condition: sa.ColumnElement[bool]) -> list[FrozenTrial]:
        """Return trials as Optuna builds them, but of plain rows: an object for each takes far longer."""
        models = _models()
        meant = sa.select(models.TrialModel.trial_id).where(condition)
        tables = {
            "params": models.TrialParamModel,
            "values": models.TrialValueModel,
            "user_attributes": models.TrialUserAttributeModel,
            "system_attributes": models.TrialSystemAttributeModel,
            "intermediate_values": models.TrialIntermediateValueModel,
        }
        with _create_scoped_session(self.scoped_session) as session:
            query = sa.select(models.TrialModel).where(condition).order_by(models.TrialModel.trial_id)
            trials = session.scalars(query).all()  # first: what is read of a finished trial is complete
            parts = {
                name: _by_trial(session.execute(sa.select(table.__table__).where(table.trial_id.in_(meant))))
                for name, table in tables.items()
            }
            return [
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
        """Set several user attributes at once: all of them, or none if we die meanwhile."""
        with _create_scoped_session(self.scoped_session, True) as session:
            for key, value in attrs.items():
                self._set_trial_attr_without_commit(
                    session, _models().TrialUserAttributeModel, trial_id, key, value
                )

    def _standing(self, row: sa.Row[Any]) -> Standing:
        return Standing(
            row.trial_id,
            row.number,
            row.state,
            attr=None if row.value_json is None else json.loads(row.value_json),
            is_stale=row.state == TrialState.RUNNING and self._is_old(row.heartbeat, row.now),
        )

    def _is_old(self, beat: datetime | None, now: datetime) -> bool:
        lease = timedelta(seconds=self.grace_period or 0)
        return beat is not None and now - beat > lease


# Putting a query together takes as long as its answer, so each is put together once.


@cache
def _count_query() -> sa.Select[Any]:
    return sa.select(sa.func.count()).where(_models().TrialModel.study_id == sa.bindparam("study_id"))


@cache
def _standing_query() -> sa.Select[Any]:
    return _standings().where(_models().TrialModel.trial_id == sa.bindparam("trial_id"))


@cache
def _unfinished_query() -> sa.Select[Any]:
    trials = _models().TrialModel
    is_meant = (trials.study_id == sa.bindparam("study_id")) & trials.state.in_(UNFINISHED)
    return _standings().where(is_meant).order_by(trials.trial_id)


def _standings() -> sa.Select[Any]:
    models = _models()
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


def _models() -> Any:
    """Return Optuna's tables, whose import takes as long as SQLAlchemy's own."""
    from optuna.storages._rdb import models

    return models
