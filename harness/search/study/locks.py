"""The locks of a sweep, in its database or beside it: whatever ends who holds one, the system lets go."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import sqlalchemy as sa
from filelock import FileLock, Timeout
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from harness.errors import SweepError

QUEUE_S = 120.0  # how long a transaction waits for its turn


class LockedError(SweepError):
    """Somebody else holds the lock."""

    def __init__(self, name: str) -> None:
        super().__init__(f"another process holds the lock {name!r}")


class LostLockError(SweepError):
    """We held the lock, and another process does by now."""


class Lock(Protocol):
    """A lock among everything that uses one database."""

    def take(self, timeout_s: float) -> None:
        """Hold it from now on.

        Raises:
            LockedError: another holds it still after the time (0: at once).
        """
        ...

    def keep(self) -> None:
        """Make sure that it is held still, and take it again where it was lost.

        Raises:
            LostLockError: another holds it by now.
        """
        ...

    def drop(self) -> None: ...


def build_lock(engine: sa.Engine, name: str) -> Lock:
    """Return a lock of that name, not held yet: a file beside SQLite's, else one that the server keeps."""
    if engine.dialect.name == "sqlite":
        return _Beside(str(engine.url.database), name)
    return _OnServer(engine, name)


class _Beside:
    """A lock on a file; the system keeps it for as long as our process lives."""

    def __init__(self, database: str, name: str) -> None:
        self._name = name
        self._file = FileLock(f"{database}.{_short(name)}.lock")

    def take(self, timeout_s: float) -> None:
        try:
            self._file.acquire(timeout_s)
        except Timeout as error:
            raise LockedError(self._name) from error
        except OSError as error:
            raise SweepError(f"the lock {self._file.lock_file} cannot be taken: {error.strerror}") from error

    def keep(self) -> None:
        """Do nothing: nobody can take it from us."""

    def drop(self) -> None:
        self._file.release()


class _OnServer:
    """An advisory lock, which is that of a connection: it ends with the server, or with an idle connection.

    Every method but `drop` raises DBAPIError where the server is away; then it can be called again.
    """

    def __init__(self, engine: sa.Engine, name: str) -> None:
        self._engine, self._name = engine, name
        self._take, self._drop = _statements(engine.dialect.name, name)
        self._connection: sa.Connection | None = None

    def take(self, timeout_s: float) -> None:
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        try:
            until = time.monotonic() + timeout_s
            while not connection.execute(self._take).scalar():
                if time.monotonic() >= until:
                    raise LockedError(self._name)
                time.sleep(0.02)
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def keep(self) -> None:
        if self._connection is not None:
            try:
                self._connection.execute(sa.select(1))  # it answers, so it has never ended
                return
            except DBAPIError:
                self._lose(self._connection)
        try:
            self.take(0.0)
        except LockedError as error:
            raise LostLockError(f"another process has taken the lock {self._name!r} meanwhile") from error

    def drop(self) -> None:
        if self._connection is not None:
            _let_go(self._connection, self._drop)
            self._connection.close()
            self._connection = None

    def _lose(self, connection: sa.Connection) -> None:
        self._connection = None
        connection.invalidate()
        connection.close()


@contextmanager
def queued_lock(connection: sa.Connection, name: str) -> Iterator[None]:
    """Wait for a lock in the server's own queue, which is fair and asks nothing, and hold it.

    Raises:
        OperationalError: the server is away, or others hold the lock for too long.
    """
    with connection.begin():
        if connection.dialect.name == "postgresql":
            patience = sa.func.set_config("lock_timeout", str(round(1000 * QUEUE_S)), True)
            connection.execute(sa.select(patience))
            connection.execute(sa.select(sa.func.pg_advisory_lock(_signed(name))))
        elif connection.scalar(sa.select(sa.func.get_lock(_short(name), round(QUEUE_S)))) != 1:
            raise LockedError(name)
    try:
        yield
    finally:
        _, drop = _statements(connection.dialect.name, name)
        with suppress(SQLAlchemyError), connection.begin():
            _let_go(connection, drop)


def _statements(dialect: str, name: str) -> tuple[sa.Select[Any], sa.Select[Any]]:
    """Return what takes a lock without waiting, and what lets go of it."""
    match dialect:
        case "postgresql":
            key = _signed(name)
            return sa.select(sa.func.pg_try_advisory_lock(key)), sa.select(sa.func.pg_advisory_unlock(key))
        case "mysql" | "mariadb":
            return sa.select(sa.func.get_lock(_short(name), 0)), sa.select(sa.func.release_lock(_short(name)))
        case other:
            raise SweepError(
                f"sweep.storage: {other} has no lock that we know; use postgresql:// or mysql://"
            )


def _let_go(connection: sa.Connection, drop: sa.Select[Any]) -> None:
    try:
        connection.execute(drop)
    except SQLAlchemyError:  # the server was restarted: the lock is gone, and the connection no good
        connection.invalidate()


def _signed(name: str) -> int:
    return int(_short(name), 16) - 2**63  # PostgreSQL's keys are signed 64-bit numbers


def _short(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16]
