"""Helpers for files that every layer shares: a file's SHA-256, the free space of a disk, rows as CSV.

`harness.tracking`, `harness.training`, `harness.export` and `harness.search` call them. Checkpoints have a
writer of their own, in `harness.training.durable`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


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
