"""Helpers for files that every layer shares: atomic writes, new databases, SHA-256, free space, CSV.

`harness.tracking`, `harness.training`, `harness.export` and `harness.search` call them. Checkpoints have a
writer of their own, in `harness.training.checkpoints.checkpoint_io`, which also survives a power cut.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a file under another name beside its own, then rename it: readers see the old one or the new one.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")  # several processes may write one file
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain JSON types as indented JSON, atomically."""
    atomic_write(path, json.dumps(content, indent=2, ensure_ascii=False))


def create_database(
    database: Path, lock: AbstractContextManager[Any], create: Callable[[Path], object]
) -> None:
    """Create an SQLite file once, under another name until its tables are complete.

    A process that is killed meanwhile leaves no database with half of its tables, and no other process sees
    one: the migrations of MLflow and of Optuna fail on such a file for good.

    Args:
        lock: held meanwhile, so that only one of several processes creates the file.
        create: creates the tables in the file whose path it is given, and closes the file.
    """
    with lock:
        if database.exists():
            return
        unfinished = database.with_name(f"{database.name}.creating")
        for leftover in (unfinished, unfinished.with_name(f"{unfinished.name}-journal")):
            leftover.unlink(missing_ok=True)
        create(unfinished)
        unfinished.replace(database)


def slug(text: str, also: str = "") -> str:
    """Return a text as a folder's name: each run of other signs than letters, digits, `_.-` becomes one `-`.

    Args:
        also: further signs that stay, written as in a regular expression's set.
    """
    return re.sub(rf"[^\w.{also}-]+", "-", text).strip("-.")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def free_bytes(folder: Path) -> int:
    """Return how many bytes are free on a folder's disk, whether the folder exists yet or not."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    return shutil.disk_usage(existing).free


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV text with a header, quoted where a value holds a comma, a quote or a line break.

    Args:
        rows: at least one; each has the first one's keys, which become the columns.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
