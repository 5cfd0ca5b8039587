"""How often the test split was looked at: each reading is a tag of its own, which nothing overwrites.

A reading is noted before it happens, on the run whose model meets the test split and on its sweep's.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from harness.tracking import names


@dataclass(frozen=True)
class Reading:
    """One look at the test split."""

    at: str  # UTC
    run: str  # whose model it was for
    command: str
    before: int | None  # readings that were known of; None: nobody asked
    split: str = "test"

    def to_tag(self) -> dict[str, str]:
        """Return the tag that keeps it; no two readings share one."""
        return {f"{names.READING}{self.at}.{uuid.uuid4().hex[:6]}": json.dumps(asdict(self))}


def next_reading(tags: Mapping[str, str] | None, run_id: str, command: str) -> Reading:
    """Return the reading that follows those which a run's, or its sweep's, tags tell of.

    Args:
        tags: None where they are not known.
    """
    at = datetime.now(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00").replace(":", ".")
    return Reading(at, run_id, command, None if tags is None else count_readings(tags))


def count_readings(tags: Mapping[str, str]) -> int:
    """Return how often the test split was read, as a run's, or its sweep's, tags tell."""
    return sum(key.startswith(names.READING) for key in tags)


def describe_reading(number: int, total: int, of_what: str) -> str:
    """Return which reading a figure is of, in words."""
    if total == 1:
        return f"the test split was read once for this {of_what}"
    return f"the test split was read {total} times for this {of_what}; this is reading {number}"
