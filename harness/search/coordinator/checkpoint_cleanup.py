"""Removes checkpoints that a sweep no longer needs, and reports when the disk is nearly full.

When a trial ends, its last checkpoint, from which it would have been resumed, is removed at once unless the
trial failed. The best epoch's checkpoint stays. When all checkpoints together exceed `sweep.checkpoint_gb`,
those of the worst trials are removed. The scheduler calls `tick` whenever it has read the trials; `sweep.py`
calls `check_room` before the first trial.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from harness.config.sweep import SweepConfig
from harness.errors import SweepError
from harness.files import free_bytes
from harness.search.coordinator.completion import has_ended
from harness.search.report.pareto import pareto_front
from harness.search.study.locate import SweepContext
from harness.search.study.trials import REMOVED_NOTE, TrialRow, ranked

if TYPE_CHECKING:
    from harness.tracking.store import RunStore

log = logging.getLogger(__name__)

GB = 1e9  # bytes
BEST = "best.ckpt"  # in a trial's folder


def spare_checkpoints(
    ranking: Sequence[TrialRow], sizes: Mapping[int, int], limit: float, keep: int
) -> list[int]:
    """Return the trials whose checkpoints must be removed to keep within the limit, worst first.

    Trials that run or will be resumed, and the best ones, keep their checkpoints even if these alone exceed
    the limit.

    Args:
        ranking: the trials, best first.
        sizes: bytes of each trial's checkpoints; trials without any may be absent.
        limit: bytes.
        keep: how many of the best trials keep their checkpoints.
    """
    scored = [row.number for row in ranking if row.state in ("complete", "pruned")]
    spare = [row.number for row in ranking if row.has_ended and row.number not in scored[:keep]]
    excess, found = sum(sizes.values()) - limit, []
    for number in reversed(spare):
        if excess <= 0:
            break
        if sizes.get(number, 0) > 0:
            found.append(number)
            excess -= sizes[number]
    return found


@dataclass
class CheckpointCleanup:
    """Keeps a sweep's checkpoints within their budget.

    Several machines may clean up at once, and each process may be killed at any time: repeating a removal
    does no harm. Each removal leaves a note in the trial's own folder, since Optuna refuses to change a trial
    that has ended.

    Args:
        folder_of: a trial's folder by its number.
        store: the run store; a removal is also recorded in the trial's MLflow run.
        copies: how many copies of each best checkpoint the disk holds; 2 if MLflow keeps one too.
    """

    sweep: SweepConfig
    folder_of: Callable[[int], Path]
    store: RunStore
    copies: int = 1
    _sizes: dict[int, int] = field(default_factory=dict)  # bytes; only of trials that have ended

    @classmethod
    def of(cls, home: SweepContext, store: RunStore) -> CheckpointCleanup:
        """Return the cleanup of a sweep's own folder."""
        copies = 2 if home.plan.base.tracking.log_model else 1
        return cls(home.plan.sweep, home.trial_directory, store, copies)

    def check_room(self, rows: Sequence[TrialRow]) -> None:
        """Remove checkpoints that are not needed, before the sweep starts.

        Raises:
            SweepError: there is still too little free space.
        """
        if shortage := self.tick(rows):
            raise SweepError(
                f"{shortage}: free some space, choose another tracking.dir (MLRUNS_DIR), lower "
                "sweep.min_free_gb, or let sweep.checkpoint_gb remove checkpoints"
            )

    def tick(self, rows: Sequence[TrialRow]) -> str | None:
        """Remove what is not needed any more.

        Returns:
            Why the trials must stop: the disk is nearly full. None if it is not, or if all trials have ended.
        """
        has_news = False
        for row in rows:
            if row.has_ended and row.number not in self._sizes:
                has_news = True
                self._sizes[row.number] = self._settle(row)
        if has_news and self.sweep.checkpoint_gb is not None:
            self._keep_limit(rows, self.sweep.checkpoint_gb * GB)
        if has_ended(rows, self.sweep):
            return None
        free = free_bytes(self.folder_of(0)) / GB
        if free >= self.sweep.min_free_gb:
            return None
        return (
            f"only {free:.2g} GB are free on the disk of runs (sweep.min_free_gb={self.sweep.min_free_gb:g})"
        )

    def _settle(self, row: TrialRow) -> int:
        """Remove the checkpoint for resuming an ended trial; return the bytes of those that stay."""
        folder = self.folder_of(row.number)
        if row.state != "failed":  # the last checkpoint of a failed trial may show why it failed
            _remove(file for file in checkpoint_files(folder) if not _is_best(file))
        return self._size(folder)

    def _keep_limit(self, rows: Sequence[TrialRow], limit: float) -> None:
        running = {row.number: self._size(self.folder_of(row.number)) for row in rows if not row.has_ended}
        sizes = {**self._sizes, **running}
        for number in spare_checkpoints(
            kept_first(rows, self.sweep), sizes, limit, self.sweep.keep_checkpoints
        ):
            self._remove_checkpoints(next(row for row in rows if row.number == number))

    def _remove_checkpoints(self, row: TrialRow) -> None:
        folder = self.folder_of(row.number)
        # First the note, so that a missing checkpoint is explained even if we are killed in between.
        (folder / REMOVED_NOTE).write_text(
            f"trial {row.number} is not among the best {self.sweep.keep_checkpoints}: its checkpoints were "
            f"removed to keep within sweep.checkpoint_gb={self.sweep.checkpoint_gb:g}\n",
            encoding="utf-8",
        )
        _remove(checkpoint_files(folder))
        self._sizes[row.number] = 0  # even if a file could not be removed: that is logged and not retried
        if row.run_id is not None:
            self.store.forget_checkpoint(row.run_id)

    def _size(self, folder: Path) -> int:
        return sum(_bytes(file) * (self.copies if _is_best(file) else 1) for file in checkpoint_files(folder))


def kept_first(rows: Sequence[TrialRow], sweep: SweepConfig) -> list[TrialRow]:
    """Return the trials in the order in which their checkpoints are worth keeping.

    The result of a sweep with two objectives is its Pareto front, so the trials on the front come first.
    """
    front = pareto_front(rows, sweep)
    return [*front, *(row for row in ranked(rows, sweep.direction) if row not in front)]


def checkpoint_files(folder: Path) -> list[Path]:
    """Return the files of a trial's folder whose name contains `.ckpt`, temporary and damaged ones too."""
    return sorted(file for file in folder.glob("*") if ".ckpt" in file.name) if folder.is_dir() else []


def _is_best(file: Path) -> bool:
    return file.name == BEST


def _bytes(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:  # renamed meanwhile, as a running trial's are
        return 0


def _remove(files: Iterable[Path]) -> None:
    for file in files:
        try:
            file.unlink(missing_ok=True)
        except OSError as error:  # no reason to end the sweep
            log.warning("%s cannot be removed (%s)", file, error.strerror)
