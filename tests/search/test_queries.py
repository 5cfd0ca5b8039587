"""The small queries answer what Optuna's own answers do, and cost the same however many trials there are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.engine import Dialect

from harness.search.database.optuna_tables import UtcNow
from harness.search.database.retrying_storage import RetryingStorage
from harness.search.database.storage import open_storage
from harness.search.ownership.claims import Claims
from harness.search.ownership.process_id import ProcessId
from harness.search.study import keys


@pytest.fixture
def storage(tmp_path: Path) -> RetryingStorage:
    return open_storage(f"sqlite:///{tmp_path}/optuna.db", lease_seconds=60)


@pytest.fixture
def study(storage: RetryingStorage) -> optuna.Study:
    return optuna.create_study(storage=storage, study_name="a", direction="maximize")


def _end_some(study: optuna.Study, count: int) -> None:
    """Add trials of every state, with everything that a trial can have."""
    for number in range(count):
        trial = study.ask()
        trial.suggest_float("x", 1e-3, 1.0, log=True)
        if trial.suggest_categorical("kind", ["b", "a"]) == "a":
            trial.suggest_int("n", 1, 4)
        for step, value in enumerate([0.5, math.nan, math.inf]):
            trial.report(value, step)
        trial.set_user_attr("note", {"of": [number]})
        if number % 4 != 3:  # else it stays RUNNING
            states = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]
            study.tell(trial, 0.1 * number if number % 4 == 0 else None, state=states[number % 4])
    study.enqueue_trial({"x": 0.5})
    other = optuna.create_study(storage=study._storage, study_name="b")
    other.ask().suggest_float("x", 0.0, 1.0)


@pytest.mark.parametrize("states", [None, (TrialState.RUNNING, TrialState.WAITING)])
@pytest.mark.parametrize(("included", "above"), [(set(), -1), ({1, 4}, 5), (set(), 5)])
def test_trials_are_read_as_optuna_reads_them(
    storage: RetryingStorage,
    study: optuna.Study,
    states: tuple[TrialState, ...] | None,
    included: set[int],
    above: int,
) -> None:
    _end_some(study, 9)
    expected = RDBStorage._get_trials(storage, 1, states, included, above)
    found = storage._get_trials(1, states, included, above)
    assert expected
    assert [_comparable(trial) for trial in found] == [_comparable(trial) for trial in expected]
    assert _comparable(storage.get_trial(2)) == _comparable(RDBStorage.get_trial(storage, 2))


def _comparable(trial: FrozenTrial) -> tuple[str, list[str]]:
    return repr(trial), list(trial.params)  # NaN is not itself, but is written as such


def test_an_unknown_trial_is_a_key_error(storage: RetryingStorage) -> None:
    with pytest.raises(KeyError):
        storage.get_trial(7)


def test_a_survey_counts_all_trials_and_names_the_unfinished(
    storage: RetryingStorage, study: optuna.Study
) -> None:
    _end_some(study, 8)
    storage.set_trial_user_attr(4, keys.OWNER, "me")
    survey = storage.get_open_trials(study._study_id, keys.OWNER)
    assert survey.num_trials == 9
    assert [(trial.number, trial.state, trial.attr) for trial in survey.unfinished] == [
        (3, TrialState.RUNNING, "me"),
        (7, TrialState.RUNNING, None),
        (8, TrialState.WAITING, None),
    ]


def test_a_taken_trial_is_never_seen_without_its_owner(storage: RetryingStorage, study: optuna.Study) -> None:
    study.ask()
    claim = Claims(study, storage).take(num_trials=5)  # trial 0 has no owner: it is free
    assert claim is not None
    assert claim.number == 0
    created = storage.create_taken_trial(study._study_id, {keys.OWNER: "me", keys.ATTEMPT: 1})
    assert created.number == 1
    trial = storage.get_trial(created.trial_id)
    assert trial.state == TrialState.RUNNING
    assert trial.user_attrs == {keys.OWNER: "me", keys.ATTEMPT: 1}
    assert study.ask().number == 2


def test_a_trial_is_stale_once_its_last_beat_is_older_than_the_lease(
    storage: RetryingStorage, study: optuna.Study
) -> None:
    claims = Claims(study, storage)
    claim = claims.take(num_trials=1)
    assert claim is not None
    assert claims.stale() == set()
    with storage.engine.begin() as connection:
        old = sa.func.datetime("now", "-61 seconds")
        connection.execute(sa.update(models.TrialHeartbeatModel).values(heartbeat=old))
    assert claims.stale() == {claim.trial_id}
    claims.renew(claim)
    assert claims.stale() == set()


def test_several_attributes_are_set_at_once_or_not_at_all(
    storage: RetryingStorage, study: optuna.Study
) -> None:
    trial_id = study.ask()._trial_id
    with pytest.raises(TypeError):
        storage.set_trial_user_attrs(trial_id, {"first": 1, "second": object()})
    assert storage.get_trial(trial_id).user_attrs == {}
    storage.set_trial_user_attrs(trial_id, {"first": 1, "second": 2})
    assert storage.get_trial(trial_id).user_attrs == {"first": 1, "second": 2}


def test_taking_a_trial_asks_as_much_of_a_long_study_as_of_a_short_one(
    storage: RetryingStorage, study: optuna.Study
) -> None:
    claims = Claims(study, storage)
    assert claims.take(100) is not None  # whoever is asked first looks at the tables
    with _counted(storage) as first:
        assert claims.take(100) is not None
    for _ in range(20):
        study.tell(study.ask(), 0.5)
    with _counted(storage) as later:
        assert claims.take(100) is not None
        assert claims.has_more(100)
    assert len(later) == len(first) + 2  # the second question


@contextmanager
def _counted(storage: RetryingStorage) -> Iterator[list[str]]:
    """Collect the statements that are sent within."""
    statements: list[str] = []

    def note(_: object, __: object, statement: str, *___: object) -> None:
        statements.append(statement)

    sa.event.listen(storage.engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        sa.event.remove(storage.engine, "before_cursor_execute", note)


def test_the_owner_of_a_claim_is_this_process(storage: RetryingStorage, study: optuna.Study) -> None:
    claim = Claims(study, storage).take(1)
    assert claim is not None
    text = storage.get_trial_head(claim.trial_id, keys.OWNER).attr
    assert ProcessId.from_json(text) == ProcessId.current()


@pytest.mark.parametrize(
    ("dialect", "clock"),
    [
        (sqlite.dialect(), "CURRENT_TIMESTAMP"),
        (postgresql.dialect(), "TIMEZONE('UTC', CURRENT_TIMESTAMP)"),
        (mysql.dialect(), "UTC_TIMESTAMP()"),
    ],
)
def test_every_database_tells_one_time_in_all_time_zones(dialect: Dialect, clock: str) -> None:
    assert f"SELECT {clock}" in str(sa.select(UtcNow()).compile(dialect=dialect))
