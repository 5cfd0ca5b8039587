"""Optuna's private names and conventions, each behind a function or class with a name of our own.

Only this file and `optuna_tables.py` (our queries on the tables of Optuna's database) may use what Optuna
does not document. The other modules of `harness/search` call these two. Each name has a test that fails when
Optuna changes it (`tests/search/test_optuna_private.py`). As any minor version may change them, sweeps
require one minor version of Optuna.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.samplers import QMCSampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial
from sqlalchemy.orm import Session

from harness.errors import HarnessError

REQUIRED = "5.0"  # also in pyproject.toml

# Keys of a trial's system attributes, which Optuna writes and reads.
FIXED_PARAMS = "fixed_params"  # the values that a trial was enqueued with; empty: the sampler proposes them
CONSTRAINT_PREFIX = "constraints:"  # a constraint's text follows; the value is how far it is exceeded
CMA_ES_PATTERN = "cma:%"  # the state of CMA-ES, as SQL's LIKE finds it

IN_TRANSACTION = "in_transaction"  # marks a session that belongs to optuna_in_one_transaction


def check_version() -> None:
    """Refuse a version of Optuna whose private names may differ from those that we use.

    Raises:
        HarnessError: another minor version is installed.
    """
    if not optuna.__version__.startswith(f"{REQUIRED}."):
        raise HarnessError(
            f"Optuna {optuna.__version__} is installed, but sweeps need Optuna {REQUIRED}: "
            f"run `pip install 'optuna=={REQUIRED}.*'`"
        )


# ── studies and trials ────────────────────────────────────────────────────────────────────────────


def study_id(study: optuna.Study) -> int:
    """Return the key of a study in its database."""
    return study._study_id


def trial_id(trial: optuna.Trial | FrozenTrial) -> int:
    """Return the key of a trial in its database; unlike its number, it is unique over all studies."""
    return trial._trial_id


def storage_beneath(study: optuna.Study) -> BaseStorage:
    """Return the storage that a study uses: Optuna's cache in front of the database, if it has one."""
    return study._storage


def database_beneath(study: optuna.Study) -> BaseStorage:
    """Return the storage that was given to the study, beneath Optuna's cache."""
    backend: BaseStorage = study._storage._backend  # type: ignore[attr-defined]
    return backend


def enqueued_point(trial: FrozenTrial) -> dict[str, Any] | None:
    """Return the values that a trial was enqueued with; None or empty if the sampler proposes them."""
    point: dict[str, Any] | None = trial.system_attrs.get(FIXED_PARAMS)
    return point


def change_enqueued_point(study: optuna.Study, trial: FrozenTrial, point: Mapping[str, Any]) -> None:
    """Give a waiting trial other values to begin with; if none are given, the sampler proposes them."""
    study._storage.set_trial_system_attr(trial._trial_id, FIXED_PARAMS, dict(point))


def add_to_cache(trial: optuna.Trial) -> FrozenTrial:
    """Return a trial as it was when it was opened, and put it into Optuna's cache.

    Optuna's cache refuses to set a parameter of a trial that it does not hold. Reading all trials would fill
    the cache too, but takes seconds if there are thousands; samplers and pruners do so when they need them.
    """
    study, found = trial.study, trial._cached_frozen_trial
    study._storage._add_trials_to_cache(study._study_id, [found])  # type: ignore[attr-defined]
    return found


class QmcSamplerAt(QMCSampler):
    """A quasi-random sequence read at one given position.

    Optuna keeps the position as a counter in the database, which two processes may read at once; they would
    then train the same point.
    """

    def __init__(self, position: int, seed: int) -> None:
        super().__init__(scramble=True, seed=seed)
        self._position = position

    def _find_sample_id(self, study: optuna.Study, search_space: Mapping[str, Any]) -> int:
        return self._position


# ── sessions and transactions ─────────────────────────────────────────────────────────────────────


def tables() -> Any:
    """Return the module of Optuna's tables; its import takes as long as SQLAlchemy's own, so it is lazy."""
    from optuna.storages._rdb import models

    return models


def session_of(storage: RDBStorage, *, ignore_conflicts: bool = False) -> AbstractContextManager[Session]:
    """Return Optuna's own session context: it commits at the end and wraps errors as Optuna's methods do.

    Args:
        ignore_conflicts: a row that another process has written at the same moment is not an error.
    """
    from optuna.storages._rdb.storage import _create_scoped_session

    return _create_scoped_session(storage.scoped_session, ignore_conflicts)


@contextmanager
def optuna_in_one_transaction(storage: RDBStorage, connection: sa.Connection) -> Iterator[None]:
    """Let every method of Optuna that this thread calls within be part of one connection's transaction.

    Each method of RDBStorage opens a session, writes and commits by itself. Claiming a trial takes several of
    them. If a process dies or a server restarts between two, none of them must remain. Optuna has no
    interface for that. But all its methods take their session from `storage.scoped_session`, which
    holds one session per thread. So we register, for this thread, a session that is bound to a connection
    on which a transaction has begun already. SQLAlchemy then treats the session's commit as the end of its
    own part only: nothing is written until the caller commits the connection's transaction, and a rollback
    there undoes all of it. The mark in `info` tells RetryingStorage not to repeat a single method, because
    the earlier ones of the same transaction would be lost.
    """
    storage.scoped_session.remove()  # a session may be left over, bound to the engine
    storage.scoped_session(bind=connection, info={IN_TRANSACTION: True})
    try:
        yield
    finally:
        storage.scoped_session.remove()


def is_in_transaction(storage: RDBStorage) -> bool:
    """Return whether this thread is within :func:`optuna_in_one_transaction`."""
    sessions = storage.scoped_session
    return sessions.registry.has() and IN_TRANSACTION in sessions().info
