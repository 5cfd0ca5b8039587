"""Opens the database of sweeps: an SQLite file beside the runs, or a database on a server.

Every process of a sweep calls `open_storage`, which returns a `RetryingStorage` (`retrying_storage.py`).
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, ProgrammingError, SQLAlchemyError

from harness.credentials import shown
from harness.errors import ConfigError, SweepError, first_line
from harness.files import create_database
from harness.search.database.optuna_private import check_version
from harness.search.database.retrying_storage import PATIENCE_S, RetryingStorage, is_server

DATABASE = "optuna.db"
BUSY_TIMEOUT_S = 60  # how long SQLite waits for another process's write: milliseconds, longer on slow disks
BEATS_PER_LEASE = 6  # so that a few lost heartbeats do not end a claim
DRIVERS = {"postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}  # if the URL names none
LIBPQ = ("postgresql+psycopg", "postgresql+psycopg2", "postgresql")
# TCP keepalive: a dead server is noticed within a minute, not after hours. The first two values are in
# seconds, the third is a number of probes, and the last is in milliseconds.
KEPT_ALIVE = {
    "keepalives_idle": 20,
    "keepalives_interval": 10,
    "keepalives_count": 4,
    "tcp_user_timeout": 60_000,
}


def storage_url(tracking_dir: str, storage: str | None = None) -> str:
    """Return the URL of the sweeps' database: `storage`, with a driver, or an SQLite file beside the runs.

    Raises:
        ConfigError: `storage` is no URL.
    """
    if storage is not None:
        try:
            url = make_url(storage)
        except (ArgumentError, ValueError) as error:  # ValueError: a port that is no number
            raise ConfigError(
                f"sweep.storage={shown(storage)}: write postgresql://user@host/database"
            ) from error
        named = url.set(drivername=DRIVERS.get(url.drivername, url.drivername))
        return named.render_as_string(hide_password=False)
    return f"sqlite:///{Path(tracking_dir).expanduser().resolve().as_posix()}/{DATABASE}"


def database_exists(url: str) -> bool:
    """Return whether an SQLite database's file exists; True for a server, which is not asked.

    Opening an SQLite database creates its file, so call this first where none should be created.
    """
    return is_server(url) or Path(str(make_url(url).database)).is_file()


def open_storage(url: str, lease_seconds: float = 120.0, *, trusted: bool = False) -> RetryingStorage:
    """Open the database; its file, and unless `trusted` its tables, are created if they are missing.

    Args:
        lease_seconds: after how long without a heartbeat a trial counts as stale.
        trusted: do not create or check tables; the coordinator that placed this trial has done so.

    Raises:
        SweepError: the database cannot be opened, or the file is no database.
        HarnessError: the installed version of Optuna is not the one whose private names we use.
    """
    check_version()
    quiet_optuna()
    try:
        if not database_exists(url):
            _create_file(Path(str(make_url(url).database)))
        return _connect(url, lease_seconds, trusted)
    except (SQLAlchemyError, StorageInternalError, OSError, RuntimeError, ImportError) as error:
        raise SweepError(_cannot_open(url, error)) from error


def _connect(url: str, lease_seconds: float, trusted: bool) -> RetryingStorage:
    def connect() -> RetryingStorage:
        return RetryingStorage(
            url,
            engine_kwargs=_engine_options(url),
            skip_table_creation=trusted,
            skip_compatibility_check=trusted,
            heartbeat_interval=max(1, round(lease_seconds / BEATS_PER_LEASE)),
            grace_period=max(1, round(lease_seconds)),
        )

    try:
        return connect()
    except (ProgrammingError, IntegrityError):
        return connect()  # another machine made the server's tables at the same moment


def _create_file(database: Path) -> None:
    lock = FileLock(f"{database}.create.lock", timeout=PATIENCE_S)
    create_database(database, lock, lambda path: RDBStorage(f"sqlite:///{path.as_posix()}").engine.dispose())


def _engine_options(url: str) -> dict[str, Any]:
    if not is_server(url):
        return {"connect_args": {"timeout": BUSY_TIMEOUT_S}}
    # An idle process keeps one connection, since a server allows a hundred by default.
    options: dict[str, Any] = {"pool_size": 1, "max_overflow": 4}
    if make_url(url).drivername in LIBPQ:
        options["connect_args"] = KEPT_ALIVE
    return options


def _cannot_open(url: str, error: Exception) -> str:
    if isinstance(error, ImportError):
        return f"{shown(url)} needs a driver: install the Python package of your database"
    return f"the database of sweeps {shown(url)} cannot be opened: {first_line(error)}"


def quiet_optuna() -> None:
    """Silence Optuna's progress messages, and its warnings that features we use are experimental."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed to be used")
