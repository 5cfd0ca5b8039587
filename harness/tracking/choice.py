"""Which sweep is meant, and which of its trials is best: the one answer of compare, export, evaluate and ui.

It is read from the runs alone, since only they are at hand wherever a run store is: each trial's run says
what its sweep took it for and was told (`harness.outcome`, `harness.score`), and the parent what it
optimises. So it is the study's own leaderboard at any moment, also where a sweep was killed before it could
note its best.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from harness.config.schema import TrackingConfig
from harness.errors import TrackingError, did_you_mean
from harness.tracking import names
from harness.tracking.moved import found_path
from harness.tracking.runs import RunRecord, activity, get_run, search_runs

ORDER = ("complete", "finished", "pruned", "running", "killed", "infeasible", "failed")  # best first
COMPLETE = ("complete", "finished")  # a trial of an earlier version has no outcome of its own


@dataclass(frozen=True)
class RecordedSweep:
    """One sweep as its runs tell of it."""

    parent: RunRecord
    trials: tuple[RunRecord, ...]

    @property
    def name(self) -> str:
        return self.parent.sweep or self.parent.name

    @property
    def metric(self) -> str:
        return self.parent.tags.get(names.METRIC, names.VAL_ACCURACY)

    @property
    def minimizes(self) -> bool:
        return self.parent.tags.get(names.DIRECTION) == "minimize"

    def place(self, setting: str) -> int:
        """Return where a setting stands in the sweep's space; of what is not searched, behind it all."""
        paths = self.parent.tags.get(names.SPACE, "").split(",")
        meant = (setting, setting.removesuffix(".kind"), setting.removesuffix(".name"))  # a choice of a group
        return next((place for place, path in enumerate(paths) if path in meant), len(paths))

    def score(self, trial: RunRecord) -> float | None:
        """Return what the sweep was told of a trial, otherwise what is recorded of its metric."""
        told = trial.tags.get(names.SCORE)
        value = float(told) if told is not None else trial.results.get(self.metric)
        return None if value is None or math.isnan(value) else value

    @cached_property
    def ranked(self) -> list[RunRecord]:
        """The trials best first, as the leaderboard has them: what did not complete follows what did."""

        def key(trial: RunRecord) -> tuple[int, bool, float, float]:
            place = ORDER.index(trial.outcome) if trial.outcome in ORDER else len(ORDER)
            score = self.score(trial)
            signed = 0.0 if score is None else score if self.minimizes else -score
            return (
                0 if trial.outcome in COMPLETE else place,
                score is None,
                signed,
                math.inf if trial.trial is None else trial.trial,
            )

        return sorted(self.trials, key=key)

    @property
    def best(self) -> RunRecord | None:
        """The best complete trial, the earlier of equals; None where none is complete."""
        first = self.ranked[0] if self.trials else None
        is_best = first is not None and first.outcome in COMPLETE and self.score(first) is not None
        return first if is_best else None

    @property
    def num_judged(self) -> int:
        """How many trials the best was chosen among: those that completed or were pruned."""
        return sum(trial.outcome in (*COMPLETE, "pruned") for trial in self.trials)

    def describe_best(self) -> str:
        """Return why the best trial is the best, in a line.

        Raises:
            TrackingError: there is none.
        """
        best, counts = self.best, Counter(trial.outcome for trial in self.trials)
        what = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items(), key=_order))
        if best is None:
            trials = (
                f"of {len(self.trials)} recorded trials, {what}" if self.trials else "no trial is recorded"
            )
            is_answered = set(counts) == {"infeasible"}
            fix = (
                "widen its space or loosen its constraints"
                if is_answered
                else "let it run on, or see its log"
            )
            raise TrackingError(f"sweep {self.name} has no best trial ({trials}): {fix}")
        extreme = "lowest" if self.minimizes else "highest"
        return (
            f"sweep {self.name} (run {self.parent.run_id[:12]}): trial {best.trial} has the {extreme} "
            f"{self.metric}, {self.score(best):.4f}, of {len(self.trials)} trials ({what})"
        )


@dataclass(frozen=True)
class ChosenRun:
    """A run whose checkpoint is at hand, and why it is this one."""

    run: RunRecord
    checkpoint: Path
    sweep: RecordedSweep | None  # that the run belongs to
    why: str

    @property
    def is_best_of_sweep(self) -> bool:
        best = None if self.sweep is None else self.sweep.best
        return best is not None and best.run_id == self.run.run_id


def read_sweep(tracking: TrackingConfig, parent: RunRecord) -> RecordedSweep:
    """Return a sweep with its trials."""
    return RecordedSweep(parent, tuple(trials_of(tracking, parent)))


def find_sweeps(tracking: TrackingConfig) -> list[RunRecord]:
    """Return the parent run of every sweep, the one that ran last at the end, whenever it was created."""
    return sorted(search_runs(tracking, f"tags.`{names.KIND}` = 'sweep'"), key=activity)


def newest_sweep(tracking: TrackingConfig) -> RunRecord | None:
    """Return the parent run of the sweep that ran last, or None if there was none."""
    return next(reversed(find_sweeps(tracking)), None)


def find_sweep(tracking: TrackingConfig, reference: str) -> RunRecord:
    """Return a sweep's parent run by its name or run id; of several of one name, the one that ran last.

    Raises:
        TrackingError: there is no such sweep.
    """
    sweeps = find_sweeps(tracking)
    for parent in reversed(sweeps):
        is_meant = len(reference) >= 4 and parent.run_id.startswith(reference)
        if parent.sweep == reference or is_meant:
            return parent
    raise TrackingError(
        f"no sweep {reference!r} is recorded{did_you_mean(reference, {parent.name for parent in sweeps})}"
    )


def trials_of(
    tracking: TrackingConfig, parent: RunRecord, filter_string: str | None = None
) -> list[RunRecord]:
    """Return the trials of one sweep, by its parent run: another sweep may bear the same name."""
    is_child = f"tags.`{names.PARENT}` = '{parent.run_id}'"
    found = search_runs(tracking, f"{filter_string} and {is_child}" if filter_string else is_child)
    return [record for record in found if record.kind == "trial"]


def rivals_of(tracking: TrackingConfig, last: RunRecord) -> list[RunRecord]:
    """Return the sweeps that were running when the last call of this one was: they may be meant too."""
    others = [run for run in find_sweeps(tracking) if run.run_id != last.run_id]
    return [run for run in others if run.active_s > last.called_s]


def choose(tracking: TrackingConfig, reference: str | None = None) -> ChosenRun:
    """Return the run asked for, or of a sweep its best trial; by default of the sweep that ran last.

    Where there is no sweep, the default is the last run that has kept a checkpoint.

    Raises:
        TrackingError: there is no such run, it kept no checkpoint, its sweep has no best trial, or several
            sweeps ran at the same time, so that it is in doubt which is meant.
    """
    run = get_run(tracking, reference) if reference else _default_run(tracking)
    if run.kind == "sweep":
        sweep = read_sweep(tracking, run)
        why = sweep.describe_best()
        assert sweep.best is not None
        return ChosenRun(sweep.best, _checkpoint_of(tracking, sweep.best), sweep, why)
    parent = get_run(tracking, run.parent_run_id) if run.kind == "trial" and run.parent_run_id else None
    sweep_of_run = None if parent is None else read_sweep(tracking, parent)
    of_sweep = f", a trial of sweep {run.sweep} ({run.outcome})" if run.sweep else ""
    asked = "as asked for" if reference else "the last run, as there is no sweep"
    return ChosenRun(
        run,
        _checkpoint_of(tracking, run),
        sweep_of_run,
        f"run {run.run_id[:12]} ({run.name}){of_sweep}: {asked}",
    )


def _default_run(tracking: TrackingConfig) -> RunRecord:
    last = newest_sweep(tracking)
    if last is not None:
        if rivals := rivals_of(tracking, last):
            sweeps = ", ".join(f"{run.sweep} (--run {run.run_id[:12]})" for run in (*rivals, last))
            raise TrackingError(f"sweeps ran at the same time, so say which is meant: {sweeps}")
        return last
    alone = search_runs(tracking, f"tags.`{names.KIND}` = 'train'")
    with_checkpoint = [run for run in alone if run.checkpoint]
    if not with_checkpoint:
        raise TrackingError(
            f"no run in {tracking.dir} has kept a checkpoint: run `harness train` or `harness sweep`"
        )
    return with_checkpoint[-1]


def _checkpoint_of(tracking: TrackingConfig, run: RunRecord) -> Path:
    if run.checkpoint_was_removed:
        raise TrackingError(
            f"run {run.run_id} ({run.name}): {names.CHECKPOINT_REMOVED}; choose a better trial of its sweep"
        )
    if run.checkpoint is None:
        raise TrackingError(
            f"run {run.run_id} ({run.name}, {run.status}) kept no checkpoint: choose another run"
        )
    path = found_path(run.checkpoint, tracking.dir)
    if not path.is_file():
        raise TrackingError(f"the checkpoint of run {run.run_id} is gone: {path} was moved or deleted")
    return path


def _order(item: tuple[str, int]) -> int:
    return ORDER.index(item[0]) if item[0] in ORDER else len(ORDER)
