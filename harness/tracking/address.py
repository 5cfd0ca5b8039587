"""The run store's address, and an identity that tells one store from another.

`store.py` and `runs.py` use it; each store has a folder of spools that is named by its identity.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from harness.config.schema import TrackingConfig
from harness.credentials import shown

DATABASE = "mlflow.db"
OWN = "own"  # the identity of the database in the folder of runs; it stays when that folder is moved


def store_uri(tracking: TrackingConfig) -> str:
    """Return MLFLOW_TRACKING_URI where it is set, else the address of the database under `tracking.dir`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or database_uri(Path(tracking.dir).expanduser().resolve())


def store_exists(tracking: TrackingConfig) -> bool:
    """Return whether there is a store, without creating one.

    Only the database under `tracking.dir` is looked for; any other address counts as a store that exists.
    """
    uri = store_uri(tracking)
    database = Path(tracking.dir).expanduser().resolve() / DATABASE
    return uri != database_uri(database.parent) or database.exists()


def database_uri(directory: Path) -> str:
    return f"sqlite:///{directory.as_posix()}/{DATABASE}"


def store_identity(uri: str, directory: Path) -> str:
    """Return a store's identity as a folder's name; it does not depend on user, password or driver."""
    if uri == database_uri(directory):
        return OWN
    address = _address(uri)
    if address == _address(database_uri(directory)):
        return OWN
    readable = re.sub(r"[^\w.-]+", "-", address)[:60].strip("-")
    return f"{readable}-{hashlib.sha256(address.encode()).hexdigest()[:8]}"


def _address(uri: str) -> str:
    """Return where a store is, without user, password, driver and options."""
    try:
        url = make_url(uri)
    except (ArgumentError, ValueError):  # such as "databricks"
        return shown(uri)
    backend = url.drivername.partition("+")[0]
    if backend == "sqlite":
        return f"sqlite:{Path(url.database or '').resolve()}"
    port = f":{url.port}" if url.port else ""
    return f"{backend}://{(url.host or '').lower()}{port}/{url.database or ''}".rstrip("/")
