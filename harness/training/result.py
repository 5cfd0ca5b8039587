"""What a run says to whoever started it: after each epoch, and at its end. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Decision = Literal["continue", "prune", "interrupt"]
Status = Literal["finished", "pruned", "interrupted"]


@dataclass(frozen=True)
class EpochReport:
    """One finished epoch, as shown to whoever decides about the run."""

    epoch: int  # 0-based
    max_epochs: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class RunResult:
    """What a run hands back."""

    run_id: str
    status: Status
    score: float  # of the kept epoch, by trainer.monitor; NaN if no epoch ended
    best_epoch: int  # 0-based; -1 if no epoch ended
    metrics: dict[str, float]  # of the best epoch's checkpoint
    checkpoint: Path | None  # of the best epoch
    seconds: float
    costs: dict[str, float] = field(default_factory=dict)  # see harness.training.costs; none if interrupted
