"""Keeps recorded paths valid when the folder of runs is moved.

Checkpoints are recorded relative to that folder (`recorded_path`, `found_path`). MLflow records absolute
addresses of artifacts; `open_store` has them corrected (`follow_move`).
"""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from harness.tracking.address import DATABASE

logger = logging.getLogger(__name__)

PARTS = ("sweeps", "checkpoints")  # folders in the folder of runs that hold checkpoints
PLACES = (  # tables and columns of MLflow's database that hold addresses of artifacts
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
)


def recorded_path(path: Path, folder: str | Path) -> str:
    """Return a path relative to the folder of runs if it lies in it, otherwise absolute."""
    whole, runs = path.resolve(), Path(folder).expanduser().resolve()
    return whole.relative_to(runs).as_posix() if whole.is_relative_to(runs) else str(whole)


def found_path(recorded: str | Path, folder: str | Path) -> Path:
    """Return where a recorded path is now.

    Earlier versions recorded absolute paths. If the folder of runs was moved since, the file is looked for in
    its present place, below the same subfolders.
    """
    path, runs = Path(recorded), Path(folder).expanduser().resolve()
    if not path.is_absolute():
        return runs / path
    for index, part in enumerate(path.parts):
        here = runs.joinpath(*path.parts[index:])
        if part in PARTS and here.parent.is_dir():
            return here
    return path


def follow_move(directory: Path) -> None:
    """Correct the addresses of artifacts in a run store's database after its folder was moved.

    MLflow records absolute addresses: without this it would create the old folder again and write there. An
    address that somebody chose for an experiment on purpose stays: it exists, and no run store lies beside
    it.
    """
    new = (directory / "artifacts").as_uri()
    with closing(sqlite3.connect(directory / DATABASE, timeout=20)) as database, database:
        known = database.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
        for (old,) in known:
            if old and old != new and _was_ours(old):
                for table, column in PLACES:
                    database.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                        f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                        (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
                    )
                logger.info("the folder of runs was moved to %s: its artifacts are found there", directory)


def _was_ours(location: str) -> bool:
    if not (location.startswith("file:") and location.endswith("/artifacts")):
        return False
    path = Path(unquote(urlsplit(location).path))
    return not path.exists() or (path.parent / DATABASE).exists()
