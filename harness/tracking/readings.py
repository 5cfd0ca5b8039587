"""Counts how often the test split was read: each reading is a tag of its own, which nothing overwrites.

A reading is recorded before it happens, on the run whose model is tested and on the parent run of its sweep.
`harness.training.evaluate` and `harness.search` record readings; the leaderboard and the model card show how
many there were.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from harness.tracking import names

if TYPE_CHECKING:
    from harness.tracking.store import RunStore


@dataclass(frozen=True)
class Reading:
    """One reading of the test split."""

    at: str  # UTC
    run: str  # the id of the run whose model was tested
    command: str
    before: int | None  # how many readings were recorded before; None: unknown
    split: str = "test"

    def to_tag(self) -> dict[str, str]:
        """Return the reading as a tag whose name is unique."""
        return {f"{names.READING}{self.at}.{uuid.uuid4().hex[:6]}": json.dumps(asdict(self))}


def next_reading(tags: Mapping[str, str] | None, run_id: str, command: str) -> Reading:
    """Return a new reading, made now.

    Args:
        tags: of the run, or of its sweep's parent run; the readings among them are counted. None: unknown.
        run_id: of the run whose model is tested.
        command: what the user typed, or would type.
    """
    at = datetime.now(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00").replace(":", ".")
    return Reading(at, run_id, command, None if tags is None else count_readings(tags))


def note_reading(
    store: RunStore, tags: Mapping[str, str] | None, parent_run_id: str, run_id: str, command: str
) -> Reading:
    """Record a new reading, made now, with the tested run and with the parent run of its sweep.

    Args:
        tags: see `next_reading`.
        parent_run_id: of the sweep; of a run without a sweep, its own id.
        run_id: of the run whose model is tested; empty if it is not known.
    """
    reading = next_reading(tags, run_id, command)
    for noted in dict.fromkeys(filter(None, (parent_run_id, run_id))):
        store.note(noted, reading.to_tag())
    return reading


def count_readings(tags: Mapping[str, str]) -> int:
    """Return how many readings of the test split the tags of a run, or of a sweep's parent, hold."""
    return sum(key.startswith(names.READING) for key in tags)


def describe_reading(number: int, total: int, of_what: str) -> str:
    """Return a sentence: how often the test split was read, and which of the readings this one is."""
    if total == 1:
        return f"the test split was read once for this {of_what}"
    return f"the test split was read {total} times for this {of_what}; this is reading {number}"
