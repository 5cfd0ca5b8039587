"""The reports of a run to its caller: one after each epoch, one at the end.

`train.py` makes them; `command.py`, `harness.api` and a sweep's trial read them. This module imports no
torch, so that a sweep's coordinator can import it quickly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Decision = Literal["continue", "prune", "interrupt"]
Status = Literal["finished", "pruned", "interrupted"]


@dataclass(frozen=True)
class EpochReport:
    """One finished epoch, handed to `on_epoch`, which decides whether the run goes on."""

    epoch: int  # 0-based
    max_epochs: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class RunResult:
    """The result of a run."""

    run_id: str
    status: Status
    score: float  # of the kept epoch, by trainer.monitor; NaN if no epoch ended
    best_epoch: int  # 0-based; -1 if no epoch ended
    metrics: dict[str, float]  # of the best epoch's checkpoint
    checkpoint: Path | None  # of the best epoch
    seconds: float
    costs: dict[str, float] = field(default_factory=dict)  # see harness.training.costs; none if interrupted
