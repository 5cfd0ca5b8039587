"""The test ledger: how often the test split was read. Each reading is a tag, which nothing overwrites.

A reading is recorded before it happens, on the run whose model is tested and on the parent run of its sweep.
`harness.training.evaluate` and `harness.search` record readings; the leaderboard and the model card show how
many there were.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from harness.tracking import names

if TYPE_CHECKING:
    from harness.tracking.runs import RunRecord
    from harness.tracking.store import RunStore


@dataclass(frozen=True)
class Reading:
    """One reading of the test split."""

    at: str  # UTC
    run: str  # the id of the run whose model was tested
    command: str
    before: int | None  # how many readings were recorded before; None: unknown
    split: str = "test"

    @property
    def when(self) -> str:
        """The date and the time, in UTC, to the second."""
        day, _, time = self.at.partition("T")
        return f"{day} {':'.join(time.split('.')[:3])} UTC"

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


def readings_in(tags: Mapping[str, str]) -> list[Reading]:
    """Return the readings of the test split in the tags of a run or of a sweep's parent, in order."""
    found = [json.loads(value) for key, value in tags.items() if key.startswith(names.READING)]
    known = {field.name for field in fields(Reading)}
    readings = [Reading(**{key: value for key, value in one.items() if key in known}) for one in found]
    return sorted(readings, key=lambda reading: reading.at)


def number_of_last(tags: Mapping[str, str], run_id: str) -> int:
    """Return which reading of all in the tags was the last of this run's model, from 1; 0: none was."""
    runs = [reading.run for reading in readings_in(tags)]
    return len(runs) - runs[::-1].index(run_id) if run_id in runs else 0


@dataclass(frozen=True)
class Noted:
    """A reading in the ledger."""

    reading: Reading
    owner: str  # the sweep or the run for which readings are counted together
    owner_id: str  # of its run
    number: int  # which reading of its owner that was, from 1
    of: int  # how many its owner has in all


def ledger(runs: Iterable[RunRecord]) -> list[Noted]:
    """Return every reading of the test split that is recorded with these runs, in order.

    A sweep's parent holds the readings of all its trials, so the runs of trials are passed over.
    """
    noted = []
    for run in runs:
        if run.kind in names.BELOW_SWEEP and run.parent_run_id:
            continue
        readings = readings_in(run.tags)
        owner = f"sweep {run.sweep or run.name}" if run.kind == "sweep" else f"run {run.name}"
        noted += [
            Noted(reading, owner, run.run_id, number, len(readings))
            for number, reading in enumerate(readings, start=1)
        ]
    return sorted(noted, key=lambda one: one.reading.at)


def describe_ledger(noted: Sequence[Noted]) -> str:
    """Return the ledger, a line for each reading."""
    if not noted:
        return "the test split was never read"
    widest = max(len(one.owner) for one in noted)
    lines = [
        f"{one.reading.when}  {one.owner:<{widest}}  reading {one.number} of {one.of}  "
        f"model of run {one.reading.run[:12] or 'unknown'}: {one.reading.command}"
        for one in noted
    ]
    repeated = len({one.owner_id for one in noted if one.of > 1})
    many = f"; {repeated} of them read it more than once" if repeated else ""
    owners = len({one.owner_id for one in noted})
    what = "sweep or run" if owners == 1 else "sweeps and runs"
    return "\n".join([*lines, f"{len(noted)} readings of the test split by {owners} {what}{many}"])


def count_readings(tags: Mapping[str, str]) -> int:
    """Return how many readings of the test split the tags of a run, or of a sweep's parent, hold."""
    return sum(key.startswith(names.READING) for key in tags)


def describe_reading(number: int, total: int, of_what: str) -> str:
    """Return a sentence: how often the test split was read, and which of the readings this one is."""
    if total == 1:
        return f"the test split was read once for this {of_what}"
    return f"the test split was read {total} times for this {of_what}; this is reading {number}"
