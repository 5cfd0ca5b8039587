"""What is recorded survives a move of the folder of runs: paths are relative to it, or found in it again."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from harness.tracking.address import DATABASE

logger = logging.getLogger(__name__)

PARTS = ("sweeps", "checkpoints")  # of the folder of runs, where checkpoints lie
PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
)


def recorded_path(path: Path, folder: str | Path) -> str:
    """Return how to record a path: relative to the folder of runs where it lies in it."""
    whole, runs = path.resolve(), Path(folder).expanduser().resolve()
    return whole.relative_to(runs).as_posix() if whole.is_relative_to(runs) else str(whole)


def found_path(recorded: str | Path, folder: str | Path) -> Path:
    """Return where a recorded path is now; an absolute one may be of before a move."""
    path, runs = Path(recorded), Path(folder).expanduser().resolve()
    if not path.is_absolute():
        return runs / path
    for index, part in enumerate(path.parts):
        here = runs.joinpath(*path.parts[index:])
        if part in PARTS and here.parent.is_dir():
            return here
    return path


def follow_move(directory: Path) -> None:
    """Have the database in a folder of runs name the artifacts beside it, should the folder have been moved.

    MLflow records absolute addresses, and would write into the old folder, created anew. A place that
    somebody chose for an experiment on purpose stays: it exists, and no run store lies beside it.
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
