"""Locks among all processes of one database: a server's advisory locks, or lock files beside SQLite's file.

The server or the operating system releases a lock when its holder dies. `retrying_storage.py` takes them.
"""

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
    """Another process holds the lock."""

    def __init__(self, name: str) -> None:
        super().__init__(f"another process holds the lock {name!r}")


class LostLockError(SweepError):
    """We held the lock, and another process has it now."""


class Lock(Protocol):
    """A lock among all processes that use one database."""

    def take(self, timeout_s: float) -> None:
        """Take the lock.

        Raises:
            LockedError: another process still holds it after `timeout_s` seconds (0: at once).
        """
        ...

    def keep(self) -> None:
        """Make sure that we still hold the lock, and take it again if it was lost.

        Raises:
            LostLockError: another process has it now.
        """
        ...

    def drop(self) -> None: ...


def build_lock(engine: sa.Engine, name: str) -> Lock:
    """Return a lock of that name, not taken yet: a file beside an SQLite database, or a server's lock."""
    if engine.dialect.name == "sqlite":
        return _FileLock(str(engine.url.database), name)
    return _ServerLock(engine, name)


class _FileLock:
    """A lock on a file; the operating system releases it when our process ends."""

    def __init__(self, database: str, name: str) -> None:
        self._name = name
        self._file = FileLock(f"{database}.{lock_key(name)}.lock")

    def take(self, timeout_s: float) -> None:
        try:
            self._file.acquire(timeout_s)
        except Timeout as error:
            raise LockedError(self._name) from error
        except OSError as error:
            raise SweepError(f"the lock {self._file.lock_file} cannot be taken: {error.strerror}") from error

    def keep(self) -> None:
        """Do nothing: a file lock cannot be lost."""

    def drop(self) -> None:
        self._file.release()


class _ServerLock:
    """An advisory lock. It belongs to one connection, and is lost if the server restarts or closes that one.

    Every method but `drop` raises DBAPIError if the server does not answer; then it can be called again.
    """

    def __init__(self, engine: sa.Engine, name: str) -> None:
        self._engine, self._name = engine, name
        self._take, self._drop = _statements(engine.dialect.name, name)
        self._connection: sa.Connection | None = None

    def take(self, timeout_s: float) -> None:
        # AUTOCOMMIT: else a transaction would stay open while the lock is held, and block vacuuming.
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        try:
            until = time.monotonic() + timeout_s
            while not connection.execute(self._take).scalar():
                if time.monotonic() >= until:
                    raise LockedError(self._name)
                time.sleep(0.02)
        except BaseException:  # also Ctrl-C: the pool must get its connection back
            connection.close()
            raise
        self._connection = connection

    def keep(self) -> None:
        if self._connection is not None:
            try:
                # If the server answers, the connection is still open, and so the lock is still ours.
                self._connection.execute(sa.select(1))
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
        connection.invalidate()  # closes the socket: the pool must not hand it out again
        connection.close()


@contextmanager
def queued_lock(connection: sa.Connection, name: str) -> Iterator[None]:
    """Hold a lock in this block, after waiting for it in the server's own queue, which needs no polling.

    Raises:
        OperationalError: the server does not answer, or (PostgreSQL) others hold the lock for too long.
        LockedError: (MySQL) others hold the lock for too long.
    """
    with connection.begin():
        if connection.dialect.name == "postgresql":
            patience = sa.func.set_config("lock_timeout", str(round(1000 * QUEUE_S)), True)
            connection.execute(sa.select(patience))
            connection.execute(sa.select(sa.func.pg_advisory_lock(signed_lock_key(name))))
        elif connection.scalar(sa.select(sa.func.get_lock(lock_key(name), round(QUEUE_S)))) != 1:
            raise LockedError(name)
    try:
        yield
    finally:
        _, drop = _statements(connection.dialect.name, name)
        with suppress(SQLAlchemyError), connection.begin():
            _let_go(connection, drop)


def _statements(dialect: str, name: str) -> tuple[sa.Select[Any], sa.Select[Any]]:
    """Return the statement that takes a lock without waiting, and the one that releases it."""
    match dialect:
        case "postgresql":
            key = signed_lock_key(name)
            return sa.select(sa.func.pg_try_advisory_lock(key)), sa.select(sa.func.pg_advisory_unlock(key))
        case "mysql" | "mariadb":
            return sa.select(sa.func.get_lock(lock_key(name), 0)), sa.select(
                sa.func.release_lock(lock_key(name))
            )
        case other:
            raise SweepError(
                f"sweep.storage: {other} has no lock that we know; use postgresql:// or mysql://"
            )


def _let_go(connection: sa.Connection, drop: sa.Select[Any]) -> None:
    try:
        connection.execute(drop)
    except SQLAlchemyError:  # the server was restarted: lock and connection are lost
        connection.invalidate()


def signed_lock_key(name: str) -> int:
    return int(lock_key(name), 16) - 2**63  # PostgreSQL's keys are signed 64-bit numbers


def lock_key(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16]
