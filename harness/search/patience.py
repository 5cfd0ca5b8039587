"""A database that outlives its server's restarts, and the locks of a sweep in it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, TypeVar

import sqlalchemy as sa
from filelock import FileLock, Timeout
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DatabaseError, DBAPIError, OperationalError, SQLAlchemyError
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from harness.errors import StorageError, SweepError
from harness.search.queries import DirectStorage

logger = logging.getLogger(__name__)

PATIENCE_S = 120.0  # how long a server may be away before those who need it give up, resumably
ASKED = (  # beside what every storage of Optuna's has
    "record_heartbeat",
    "_get_trials",
    "get_survey",
    "get_standing",
    "set_trial_user_attrs",
)
CREATES = ("create_new_trial", "create_new_study")  # not repeated: once more might be one too many
Result = TypeVar("Result")
_GIVES_UP_AT_ONCE: ContextVar[bool] = ContextVar("gives up at once", default=False)


def is_server(url: str) -> bool:
    """Return whether several machines can share the database."""
    return not url.startswith("sqlite")


def shown(url: str) -> str:
    """Return an address for people, without its password."""
    return make_url(url).render_as_string(hide_password=True)


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
        if _GIVES_UP_AT_ONCE.get():
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
            raise StorageError(f"{where} {what} ({cause}): repeat the command when it is back") from error

    def _what_is_wrong(self, error: Exception) -> str | None:
        if is_outage(error):
            return f"has not answered for {self.patience_s:.0f} s"
        is_damaged = type(_cause(error)) is DatabaseError  # its subclasses are questions that were wrong
        return "is damaged" if is_damaged else None

    @contextmanager
    def exclusive(self, name: str, timeout_s: float = PATIENCE_S) -> Iterator[None]:
        """Hold the lock `name` among everything that uses this database; the system lets go with us.

        Raises:
            LockedError: another holds it still after the time (0: at once).
            StorageError: the database does not answer.
        """
        if is_server(self.url):
            with self._locked(name, timeout_s) as connection, self._all_on(connection):
                yield
            return
        lock = FileLock(f"{make_url(self.url).database}.{_short(name)}.lock", timeout=timeout_s)
        try:
            lock.acquire()
        except Timeout as error:
            raise LockedError(f"another process holds the lock {name!r}") from error
        try:
            yield
        finally:
            lock.release()

    def exclusively(self, name: str, call: Callable[[], Result]) -> Result:
        """Return what `call` returns while we hold the lock `name`.

        An outage takes a server's lock away, and somebody else may hold it before we hear of that: then all
        is done again, from the lock on.

        Raises:
            As `exclusive`.
        """

        def locked() -> Result:
            with self.exclusive(name):
                token = _GIVES_UP_AT_ONCE.set(is_server(self.url))
                try:
                    return call()
                finally:
                    _GIVES_UP_AT_ONCE.reset(token)

        return self.patiently(locked)

    @contextmanager
    def _locked(self, name: str, timeout_s: float) -> Iterator[sa.Connection]:
        """Hold an advisory lock on a server: it ends with the connection, whatever becomes of us."""
        key = _short(name)
        connection = self.patiently(lambda: self._connect_and_lock(key, timeout_s))
        if connection is None:
            raise LockedError(f"another process holds the lock {name!r}")
        with connection:
            try:
                yield connection
            finally:
                _drop_lock(connection, key)

    def _connect_and_lock(self, key: str, timeout_s: float) -> sa.Connection | None:
        """Return a connection that holds a lock; None if others hold it for longer than we wait."""
        connection = self.engine.connect()
        try:
            with connection.begin():
                is_held = _take_lock(connection, key, timeout_s)
        except BaseException:
            connection.close()
            raise
        if not is_held:
            connection.close()
        return connection if is_held else None

    @contextmanager
    def _all_on(self, connection: sa.Connection) -> Iterator[None]:
        """Let this thread ask everything on one connection; a second would have to be made each time."""
        self.scoped_session.remove()
        self.scoped_session(bind=connection)
        try:
            yield
        finally:
            self.scoped_session.remove()


class LockedError(SweepError):
    """Somebody else holds the lock."""


def _take_lock(connection: sa.Connection, key: str, timeout_s: float) -> bool:
    """Wait in the server's own queue, which is fair, and costs nobody a question."""
    match connection.dialect.name:
        case "postgresql":
            milliseconds = max(1, round(1000 * timeout_s))  # 0 would be for ever
            connection.execute(sa.select(sa.func.set_config("lock_timeout", str(milliseconds), True)))
            try:
                connection.execute(sa.select(sa.func.pg_advisory_lock(_signed(key))))
            except OperationalError as error:
                if error.connection_invalidated:
                    raise
                return False
            return True
        case "mysql" | "mariadb":
            return connection.scalar(sa.select(sa.func.get_lock(key, round(timeout_s)))) == 1
        case other:
            raise SweepError(
                f"sweep.storage: {other} has no lock that we know; use postgresql:// or mysql://"
            )


def _drop_lock(connection: sa.Connection, key: str) -> None:
    is_postgres = connection.dialect.name == "postgresql"
    drop = sa.func.pg_advisory_unlock(_signed(key)) if is_postgres else sa.func.release_lock(key)
    try:
        with connection.begin():
            connection.execute(sa.select(drop))
    except SQLAlchemyError:
        connection.invalidate()  # no connection with a lock may go back into the pool


def _signed(key: str) -> int:
    return int(key, 16) - 2**63  # PostgreSQL's keys are signed 64-bit numbers


def _short(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def is_outage(error: BaseException) -> bool:
    """Return whether the database is away or busy, rather than asked for something wrong."""
    cause = _cause(error)
    return isinstance(cause, OperationalError) or (
        isinstance(cause, DBAPIError) and bool(cause.connection_invalidated)
    )


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


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
