"""How stand-ins for trials misbehave, and the account that they keep of it.

It is read from `behaviour.json` in the folder of runs, as processes of a fork server share no environment
with a test.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import mlflow.store.db.utils

from harness.search.database import storage
from harness.search.trial import run as trial


@dataclass(frozen=True)
class Behaviour:
    """How trials and coordinators behave; keys are trial numbers as JSON has them."""

    pace: float = 0.01  # seconds of each epoch
    slow: list[int] = field(default_factory=list)  # these take a minute for their second epoch
    hang: list[int] = field(default_factory=list)  # these do so too, and hear no request to stop
    die: dict[str, int] = field(default_factory=dict)  # how often each dies in its first epoch
    lose_worker: dict[str, int] = field(default_factory=dict)  # how often each loses a process of its data's
    memory: float = math.inf  # the batch size from which on it runs out
    fail: list[int] = field(default_factory=list)
    diverge: list[int] = field(default_factory=list)
    bug: list[int] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    latency_ms: dict[str, float] = field(default_factory=dict)
    busy_s: float | None = None  # how long SQLite waits for a lock, in trials and coordinators
    patience_s: float | None = None  # how long those wait for a database that is away
    die_noting: str | None = None  # coordinators die when they are about to note this at the study
    # A trial's first process sends itself a signal at a moment: opened (of its run in MLflow, before that is
    # noted), start, epoch (in the second), report (before the second's checkpoint), checkpoint (while that is
    # written), end (before the study is told).
    faults: dict[str, tuple[str, int]] = field(default_factory=dict)

    def fault_of(self, folder: Path) -> tuple[str, int]:
        return self.faults.get(str(int(folder.name[-4:])), ("never", 0))

    @classmethod
    def of(cls, runs: Path) -> Behaviour:
        path = runs / "behaviour.json"
        return cls(**json.loads(path.read_text())) if path.is_file() else cls()

    def apply(self) -> None:
        """Set in this process how patient it is."""
        if self.busy_s is not None:
            storage.BUSY_TIMEOUT_S = self.busy_s  # type: ignore[assignment]
        if self.patience_s is not None:
            storage.RetryingStorage.patience_s = trial.PATIENCE_S = self.patience_s
            mlflow.store.db.utils.MAX_RETRY_COUNT = 2  # of its own, for minutes


def note(folder: Path, line: str) -> None:
    """Keep an account of what happened to a trial, over all its processes."""
    with (folder / "account.txt").open("a") as file:
        file.write(line + "\n")


def account(folder: Path) -> list[str]:
    path = folder / "account.txt"
    return path.read_text().splitlines() if path.is_file() else []
