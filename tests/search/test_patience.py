"""A database that is away for a moment: whatever Optuna asks of it is asked again."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import optuna
import pytest
import sqlalchemy as sa
from optuna.distributions import FloatDistribution
from optuna.exceptions import StorageInternalError
from optuna.storages import _CachedStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError

from harness.errors import StorageError
from harness.search.database import retrying_storage as patience
from harness.search.database.optuna_tables import DirectStorage
from harness.search.database.retrying_storage import RetryingStorage
from harness.search.database.storage import open_storage
from harness.search.trial import run as trial

# Of Optuna's cache, with their arguments: `s` is the study's id, `t` that of a running trial.
QUESTIONS: dict[str, Callable[[Any, int, int], Any]] = {
    "set_study_user_attr": lambda storage, s, t: storage.set_study_user_attr(s, "a", 1),
    "set_study_system_attr": lambda storage, s, t: storage.set_study_system_attr(s, "a", 1),
    "get_study_id_from_name": lambda storage, s, t: storage.get_study_id_from_name("mine"),
    "get_study_name_from_id": lambda storage, s, t: storage.get_study_name_from_id(s),
    "get_study_directions": lambda storage, s, t: storage.get_study_directions(s),
    "get_study_user_attrs": lambda storage, s, t: storage.get_study_user_attrs(s),
    "get_study_system_attrs": lambda storage, s, t: storage.get_study_system_attrs(s),
    "get_all_studies": lambda storage, s, t: storage.get_all_studies(),
    "set_trial_param": lambda storage, s, t: storage.set_trial_param(t, "x", 0.5, FloatDistribution(0, 1)),
    "get_trial_id_from_study_id_trial_number": lambda storage, s, t: _CachedStorage(
        storage._backend
    ).get_trial_id_from_study_id_trial_number(s, 0),
    "get_best_trial": lambda storage, s, t: storage.get_best_trial(s),
    "set_trial_state_values": lambda storage, s, t: storage.set_trial_state_values(t, TrialState.RUNNING),
    "set_trial_intermediate_value": lambda storage, s, t: storage.set_trial_intermediate_value(t, 1, 0.5),
    "set_trial_user_attr": lambda storage, s, t: storage.set_trial_user_attr(t, "a", 1),
    "set_trial_system_attr": lambda storage, s, t: storage.set_trial_system_attr(t, "a", 1),
    "get_trial": lambda storage, s, t: storage.get_trial(t),
    "get_all_trials": lambda storage, s, t: storage.get_all_trials(s),
    "record_heartbeat": lambda storage, s, t: storage.record_heartbeat(t),
    "_get_stale_trial_ids": lambda storage, s, t: storage._get_stale_trial_ids(s),
    "get_n_trials": lambda storage, s, t: storage.get_n_trials(s),
    "delete_study": lambda storage, s, t: storage.delete_study(s),
}

CREATES = {"create_new_study", "create_new_trial", "_create_new_trial"}  # would create twice


@pytest.fixture
def backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RetryingStorage:
    monkeypatch.setattr(patience, "wait_random_exponential", lambda **_: lambda state: 0.0)
    return open_storage(f"sqlite:///{tmp_path}/optuna.db", lease_seconds=60)


@pytest.fixture
def asked(backend: RetryingStorage) -> tuple[_CachedStorage, int, int]:
    """Return Optuna's cache, a study with a complete trial, and a running one's id."""
    study = optuna.create_study(storage=backend, study_name="mine")
    study.tell(study.ask(), 0.5)
    trial_id = study.ask()._trial_id
    assert isinstance(study._storage, _CachedStorage)
    return study._storage, study._study_id, trial_id


@contextmanager
def away_once(engine: sa.Engine) -> Iterator[list[str]]:
    """Lose the first statement within; yields what was lost."""
    lost: list[str] = []

    def lose(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if not lost:
            lost.append(statement)
            raise OperationalError(statement, {}, Exception("database is locked"))

    sa.event.listen(engine, "before_cursor_execute", lose)
    try:
        yield lost
    finally:
        sa.event.remove(engine, "before_cursor_execute", lose)


@pytest.mark.parametrize("name", QUESTIONS)
def test_what_optuna_asks_is_asked_again(asked: tuple[_CachedStorage, int, int], name: str) -> None:
    storage, study_id, trial_id = asked
    if name.startswith("get_study_"):
        storage = _CachedStorage(storage._backend)  # which knows no answer yet
    with away_once(storage._backend.engine) as lost:
        QUESTIONS[name](storage, study_id, trial_id)

    assert lost, "nothing was asked of the database"


def test_no_call_of_optunas_cache_is_left_out() -> None:
    tree = ast.parse(textwrap.dedent(inspect.getsource(_CachedStorage)))
    called = {
        node.func.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Attribute)
        and node.func.value.attr == "_backend"
    }
    asks_nothing = {"get_heartbeat_interval", "get_heartbeat_stale_trial_callback"}
    explicit = {*vars(RetryingStorage), *(name for name in vars(DirectStorage) if name.startswith("_"))}
    patient = called & explicit

    assert called - patient == asks_nothing | (CREATES & called)
    methods = {name for name, _ in inspect.getmembers(_CachedStorage, inspect.isfunction)}
    public = {name for name in methods if name in vars(_CachedStorage) and not name.startswith("_")}
    assert public - set(QUESTIONS) == asks_nothing | (CREATES & public)


def test_a_file_that_was_moved_is_away_and_not_another_users(
    backend: RetryingStorage, tmp_path: Path
) -> None:
    with backend.engine.connect() as connection:
        connection.execute(sa.text("CREATE TABLE t (x INTEGER)"))
        connection.commit()
        (tmp_path / "optuna.db").rename(tmp_path / "aside.db")
        (tmp_path / "optuna.db").mkdir()
        with pytest.raises(OperationalError, match="readonly") as error:
            connection.execute(sa.text("INSERT INTO t VALUES (1)"))
    assert not patience.is_read_only(error.value)
    assert patience.is_outage(error.value)


def test_what_creates_is_not_repeated_blindly(backend: RetryingStorage) -> None:
    with away_once(backend.engine), pytest.raises(StorageInternalError):
        backend.create_new_study([StudyDirection.MINIMIZE], "mine")
    assert backend.get_all_studies() == []


def test_an_outage_in_whatever_a_trial_asks_leaves_it_resumable(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*_: object, **__: object) -> None:
        raise StorageInternalError from OperationalError("SELECT", {}, Exception("database is locked"))

    for collaborator in (
        "SweepPlan",
        "database_exists",
        "open_storage",
        "Lease",
        "studies",
        "add_to_cache",
        "Attempt",
    ):
        monkeypatch.setattr(trial, collaborator, MagicMock())
    monkeypatch.setattr(optuna.trial, "Trial", MagicMock())
    with pytest.raises(StorageError, match="database is locked"):
        trial.run_attempt(MagicMock(), Path(), lambda: False, train)
