"""A database that outlives its server's restarts."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

import sqlalchemy as sa
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage
from sqlalchemy.exc import DatabaseError, DBAPIError, OperationalError
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from harness.credentials import shown
from harness.errors import StorageError, first_line
from harness.search.study.locks import build_lock, queued_lock
from harness.search.study.optuna_private import DirectStorage

logger = logging.getLogger(__name__)

PATIENCE_S = 120.0  # how long a server may be away before those who need it give up, resumably
ASKED = (  # beside what every storage of Optuna's has
    "record_heartbeat",
    "get_n_trials",
    "get_trial_id_from_study_id_trial_number",
    "_get_best_trial_id",
    "_get_stale_trial_ids",
    "_get_trials",
    "_set_trial_param",  # twice the same value is once
    "transact",
    "get_survey",
    "get_standing",
    "get_attrs",
    "set_trial_user_attrs",
)
PART = "part"  # marks a session that is part of a transaction
# Not repeated alone, as once more might be one too many: who creates asks again what there is.
CREATES = ("create_new_study", "create_new_trial", "_create_new_trial")
Result = TypeVar("Result")


def is_server(url: str) -> bool:
    """Return whether several machines can share the database."""
    return not url.startswith("sqlite")


class PatientStorage(DirectStorage):
    """A database whose server may be restarted: what can be repeated without harm is, for a while."""

    patience_s = PATIENCE_S

    @property
    def lease_seconds(self) -> float:
        """Return after how long without a heartbeat a trial counts as stale."""
        return float(self.grace_period or 0)

    def patiently(self, call: Callable[[], Result]) -> Result:
        """Return what `call` returns, repeating it while the database is away.

        Raises:
            StorageError: it was away for too long.
        """
        if self._is_part:
            return call()
        retrying = Retrying(
            retry=retry_if_exception(is_outage),
            stop=stop_after_delay(self.patience_s),
            wait=wait_random_exponential(multiplier=0.2, max=5.0),
            before_sleep=_say_away,
            reraise=True,
        )
        try:
            return retrying(call)
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
        is_damaged = type(_cause(error)) is DatabaseError  # its subclasses are questions that were wrong
        return "is damaged" if is_damaged else None

    @contextmanager
    def exclusive(self, name: str, timeout_s: float = PATIENCE_S) -> Iterator[Callable[[], None]]:
        """Hold the lock `name` among everything that uses this database; the system lets go with us.

        Yields:
            What makes sure that we hold it still, to be called now and then where it is held for long: a
            server that is restarted, or closes an idle connection, forgets the lock. It takes it again, or
            raises LostLockError where another process was quicker.

        Raises:
            LockedError: another holds it still after the time (0: at once).
            StorageError: the database does not answer.
        """
        lock = build_lock(self.engine, name)
        self.patiently(lambda: lock.take(timeout_s))
        try:
            yield lambda: self.patiently(lock.keep)
        finally:
            lock.drop()

    def transact(self, name: str, call: Callable[[], Result]) -> Result:
        """Return what `call` returns, under the lock `name`; on a server all it asks is one transaction.

        If the server goes away meanwhile, the lock is lost, and so is everything that was written under it;
        then the whole call is repeated.
        """
        if not is_server(self.url):
            with self.exclusive(name):
                return call()
        with (
            self.engine.connect() as connection,
            queued_lock(connection, name),
            connection.begin(),  # under the lock: within a transaction the server's clock stands still
            self._all_on(connection),
        ):
            return call()

    @contextmanager
    def _all_on(self, connection: sa.Connection) -> Iterator[None]:
        """Let all that this thread asks be part of a connection's transaction."""
        self.scoped_session.remove()
        self.scoped_session(bind=connection, info={PART: True})
        try:
            yield
        finally:
            self.scoped_session.remove()

    @property
    def _is_part(self) -> bool:
        """Return whether this thread is within a transaction, of which nothing can be repeated alone."""
        return self.scoped_session.registry.has() and PART in self.scoped_session().info


def is_outage(error: BaseException) -> bool:
    """Return whether the database is away or busy, rather than asked for something wrong."""
    cause = _cause(error)
    is_away = isinstance(cause, OperationalError) or (
        isinstance(cause, DBAPIError) and bool(cause.connection_invalidated)
    )
    return is_away and not is_read_only(error)


def is_read_only(error: BaseException) -> bool:
    """Return whether an SQLite file was asked to be written that belongs to another user."""
    cause = _cause(error)
    code = getattr(cause.orig, "sqlite_errorcode", 0) if isinstance(cause, DBAPIError) else 0
    return code & 0xFF == sqlite3.SQLITE_READONLY  # the lower byte; the others say why


def _cause(error: BaseException) -> BaseException | None:
    return error.__cause__ if isinstance(error, StorageInternalError) else error


def _patiently(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let a method be repeated while the database is away."""

    @wraps(method)
    def call(self: PatientStorage, *args: Any, **kwargs: Any) -> Any:
        return self.patiently(lambda: method(self, *args, **kwargs))

    return call


def _say_away(state: RetryCallState) -> None:
    if state.attempt_number == 3:
        logger.warning("the database of sweeps does not answer; waiting for it")


for _name in (*BaseStorage.__abstractmethods__, *ASKED):
    if _name not in CREATES:
        setattr(PatientStorage, _name, _patiently(getattr(PatientStorage, _name)))
