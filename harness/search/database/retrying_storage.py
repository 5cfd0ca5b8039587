"""Optuna's storage with retries while a server does not answer, with locks and with transactions.

`storage.py` opens it; claims, leases and the modules of `study/` use it. The queries that it repeats stand in
`optuna_tables.py`.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import DatabaseError, DBAPIError, OperationalError
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from harness.credentials import shown
from harness.errors import StorageError, first_line
from harness.search.database.locks import build_lock, queued_lock
from harness.search.database.optuna_private import is_in_transaction, optuna_in_one_transaction
from harness.search.database.optuna_tables import DirectStorage, OpenTrials, TrialHead

logger = logging.getLogger(__name__)

# How long a method is repeated while a server does not answer. Then StorageError is raised; a sweep or
# trial that ends with that error can be resumed.
PATIENCE_S = 120.0
P = ParamSpec("P")
Result = TypeVar("Result")


def is_server(url: str) -> bool:
    """Return whether several machines can share the database."""
    return not url.startswith("sqlite")


class RetryingStorage(DirectStorage):
    """Optuna's storage, whose methods are repeated while the database does not answer, if that does no harm.

    `create_new_study` and `create_new_trial` are not repeated: if only the answer was lost, a second try
    would create a second study or trial. Their callers look at the database before they try again.
    """

    patience_s = PATIENCE_S

    @property
    def lease_seconds(self) -> float:
        """Return after how long without a heartbeat a trial counts as stale."""
        return float(self.grace_period or 0)

    def retry(self, call: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Result:
        """Return what `call` returns, repeating it while the database does not answer.

        Raises:
            StorageError: it did not answer for too long, is damaged, or cannot be written.
        """
        if is_in_transaction(self):
            # The server has lost the transaction's earlier statements too: transact repeats them all.
            return call(*args, **kwargs)
        retrying = Retrying(
            retry=retry_if_exception(is_outage),
            stop=stop_after_delay(self.patience_s),
            wait=wait_random_exponential(multiplier=0.2, max=5.0),
            before_sleep=_say_away,
            reraise=True,
        )
        try:
            return retrying(call, *args, **kwargs)
        except (StorageInternalError, DBAPIError) as error:
            what = self._what_is_wrong(error)
            if what is None:
                raise
            cause = first_line(error.__cause__ or error)
            where = f"the database of sweeps {shown(self.url)}"
            then = "" if is_read_only(error) else ": repeat the command when it is back"
            raise StorageError(f"{where} {what} ({cause}){then}") from error

    def _what_is_wrong(self, error: Exception) -> str | None:
        if is_outage(error):
            return f"has not answered for {self.patience_s:.0f} s"
        if is_read_only(error):
            return "cannot be written by this user"
        is_damaged = type(_cause(error)) is DatabaseError  # its subclasses mean wrong queries
        return "is damaged" if is_damaged else None

    @contextmanager
    def exclusive(self, name: str, timeout_s: float = PATIENCE_S) -> Iterator[Callable[[], None]]:
        """Hold the lock `name` among all processes of this database; it is also released if our process dies.

        Yields:
            A function that makes sure that we still hold the lock; call it regularly while you hold it. A
            server that restarts or closes an idle connection forgets the lock. The function takes it again,
            or raises LostLockError if another process was quicker.

        Raises:
            LockedError: another process still holds it after `timeout_s` seconds (0: at once).
            StorageError: the database does not answer.
        """
        # Taking the lock is retried. The caller's block is not, as it may have done half of its work.
        lock = build_lock(self.engine, name)
        self.retry(lock.take, timeout_s)
        try:
            yield lambda: self.retry(lock.keep)
        finally:
            lock.drop()

    def transact(self, name: str, call: Callable[[], Result]) -> Result:
        """Return what `call` returns, under the lock `name`; on a server its writes are one transaction.

        If the server restarts meanwhile, the lock is lost and the writes are undone; then `call` is repeated.
        """
        return self.retry(self._transact_once, name, call)

    def _transact_once(self, name: str, call: Callable[[], Result]) -> Result:
        # A file lock cannot be lost while we live. A server's can, so there a transaction undoes the writes.
        if not is_server(self.url):
            with self.exclusive(name):
                return call()
        with (
            self.engine.connect() as connection,
            queued_lock(connection, name),
            # The transaction must begin after the lock is taken. CURRENT_TIMESTAMP is the time at which a
            # transaction began, so heartbeats would otherwise be compared with a time before the wait.
            connection.begin(),
            optuna_in_one_transaction(self, connection),
        ):
            return call()

    # ── Optuna's methods, each with retries ───────────────────────────────────────────────────────────

    def delete_study(self, study_id: int) -> None:
        self.retry(super().delete_study, study_id)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self.retry(super().set_study_user_attr, study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self.retry(super().set_study_system_attr, study_id, key, value)

    def get_study_id_from_name(self, study_name: str) -> int:
        return self.retry(super().get_study_id_from_name, study_name)

    def get_study_name_from_id(self, study_id: int) -> str:
        return self.retry(super().get_study_name_from_id, study_id)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self.retry(super().get_study_directions, study_id)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return self.retry(super().get_study_user_attrs, study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self.retry(super().get_study_system_attrs, study_id)

    def get_all_studies(self) -> list[Any]:
        return self.retry(super().get_all_studies)

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        self.retry(super().set_trial_param, trial_id, param_name, param_value_internal, distribution)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        return self.retry(super().set_trial_state_values, trial_id, state, values)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        self.retry(super().set_trial_intermediate_value, trial_id, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self.retry(super().set_trial_user_attr, trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self.retry(super().set_trial_system_attr, trial_id, key, value)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return self.retry(super().get_trial, trial_id)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        return self.retry(super().get_all_trials, study_id, deepcopy, states)

    def get_n_trials(self, study_id: int, state: tuple[TrialState, ...] | TrialState | None = None) -> int:
        return self.retry(super().get_n_trials, study_id, state)

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        return self.retry(super().get_trial_id_from_study_id_trial_number, study_id, trial_number)

    def record_heartbeat(self, trial_id: int) -> None:
        self.retry(super().record_heartbeat, trial_id)

    # ── our own queries, each with retries ────────────────────────────────────────────────────────────

    def get_trial_head(self, trial_id: int, key: str) -> TrialHead:
        return self.retry(super().get_trial_head, trial_id, key)

    def get_open_trials(self, study_id: int, key: str) -> OpenTrials:
        return self.retry(super().get_open_trials, study_id, key)

    def get_attr_where(self, study_id: int, key: str, other: str, value: Any) -> list[Any]:
        return self.retry(super().get_attr_where, study_id, key, other, value)

    def set_trial_user_attrs(self, trial_id: int, attrs: Mapping[str, Any]) -> None:
        self.retry(super().set_trial_user_attrs, trial_id, attrs)


def is_outage(error: BaseException) -> bool:
    """Return whether the error means that the database does not answer or is busy, not a wrong query."""
    cause = _cause(error)
    is_away = isinstance(cause, OperationalError) or (
        isinstance(cause, DBAPIError) and bool(cause.connection_invalidated)
    )
    return is_away and not is_read_only(error)


def is_read_only(error: BaseException) -> bool:
    """Return whether a write failed because this user may not write the SQLite file."""
    cause = _cause(error)
    code = getattr(cause.orig, "sqlite_errorcode", 0) if isinstance(cause, DBAPIError) else 0
    # The lower byte is the error, the others are details. SQLite also calls a file read-only that was moved
    # since it was opened. That is an outage, which may end.
    return code & 0xFF == sqlite3.SQLITE_READONLY and code != sqlite3.SQLITE_READONLY_DBMOVED


def _cause(error: BaseException) -> BaseException | None:
    return error.__cause__ if isinstance(error, StorageInternalError) else error


def _say_away(state: RetryCallState) -> None:
    if state.attempt_number == 3:  # warn once, after the third failed try
        logger.warning("the database of sweeps does not answer; waiting for it")
