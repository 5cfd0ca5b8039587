"""Decides which sweep is meant, and which of its trials is best, for compare, export, evaluate and ui.

Both are read from the recorded runs. The database of sweeps is not read, as it may be out of reach where the
run store is not. The tags of a trial's run say how the trial ended and with which score (`harness.outcome`,
`harness.score`); those of the sweep's parent run say what it optimises. So the ranking here is that of the
sweep's own leaderboard, even if the sweep was killed before it recorded its best trial.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from harness.analysis.seeds import winner
from harness.config.schema import TrackingConfig
from harness.errors import TrackingError, did_you_mean
from harness.tracking import names
from harness.tracking.moved import found_path
from harness.tracking.runs import RunRecord, activity, get_run, search_runs

ORDER = ("complete", "finished", "pruned", "running", "killed", "infeasible", "failed")  # best first
COMPLETE = ("complete", "finished")  # "finished": a trial of an earlier version, which set no outcome tag


@dataclass(frozen=True)
class RecordedSweep:
    """One sweep, as recorded in the runs of its trials and in its parent run."""

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

    @property
    def _space(self) -> list[str]:
        return self.parent.tags.get(names.SPACE, "").split(",")

    def is_searched(self, setting: str) -> bool:
        """Whether the sweep's space has this setting."""
        return self.place(setting) < len(self._space)

    def place(self, setting: str) -> int:
        """Return a setting's position in the sweep's space; a setting that is not searched comes last."""
        # A space may choose among the files of a group (`finetune`), which a run records as `finetune.kind`.
        meant = (setting, setting.removesuffix(".kind"), setting.removesuffix(".name"))
        return next((place for place, path in enumerate(self._space) if path in meant), len(self._space))

    def score(self, trial: RunRecord) -> float | None:
        """Return the score that the sweep received from a trial, otherwise the recorded metric, if any."""
        told = trial.tags.get(names.SCORE)
        value = float(told) if told is not None else trial.results.get(self.metric)
        return None if value is None or math.isnan(value) else value

    @cached_property
    def searched(self) -> list[RunRecord]:
        """The trials that the search proposed: all but the replicates."""
        return [trial for trial in self.trials if names.REPLICATE_OF not in trial.tags]

    @cached_property
    def fresh(self) -> dict[int, dict[int, float]]:
        """The scores of complete replicates: number of the replicated trial -> seed -> score."""
        found: dict[int, dict[int, float]] = {}
        for trial in self.trials:
            score = self.score(trial)
            if names.REPLICATE_OF in trial.tags and trial.outcome in COMPLETE and score is not None:
                scores = found.setdefault(int(trial.tags[names.REPLICATE_OF]), {})
                scores[int(trial.params.get("seed", trial.trial or 0))] = score
        return found

    def is_replicated(self, trial: RunRecord) -> bool:
        """Return whether the trial is one that was trained again with fresh seeds."""
        return names.REPLICATE_OF not in trial.tags and trial.trial is not None and trial.trial in self.fresh

    def has_own_validation(self, trial: RunRecord) -> bool:
        """Return whether the trial is a replicate with other validation images than the trial it repeats."""
        if names.REPLICATE_OF not in trial.tags or trial.val_digest is None:
            return False
        first = int(trial.tags[names.REPLICATE_OF])
        known = {other.val_digest for other in self.searched if other.trial == first} - {None}
        return bool(known) and trial.val_digest not in known

    @cached_property
    def ranked(self) -> list[RunRecord]:
        """The trials as in the sweep's leaderboard: the best, complete ones, the rest, replicates."""

        def key(trial: RunRecord) -> tuple[bool, bool, int, bool, float, float]:
            place = ORDER.index(trial.outcome) if trial.outcome in ORDER else len(ORDER)
            score = self.score(trial)
            signed = 0.0 if score is None else score if self.minimizes else -score  # the better, the lower
            return (
                names.REPLICATE_OF in trial.tags,
                trial is not self.best,
                0 if trial.outcome in COMPLETE else place,
                score is None,
                signed,
                math.inf if trial.trial is None else trial.trial,
            )

        return sorted(self.trials, key=key)

    @cached_property
    def best(self) -> RunRecord | None:
        """The best complete trial, see `harness.analysis.seeds.winner`; None where none is complete."""
        complete = {
            trial.trial: trial
            for trial in self.searched
            if trial.outcome in COMPLETE and trial.trial is not None
        }
        scores = {
            number: score for number, trial in complete.items() if (score := self.score(trial)) is not None
        }
        fresh = {number: list(of_seeds.values()) for number, of_seeds in self.fresh.items()}
        number = winner(scores, fresh, minimizes=self.minimizes)
        return None if number is None else complete[number]

    @property
    def num_judged(self) -> int:
        """How many trials the best one was chosen from: those that completed or were pruned."""
        return sum(trial.outcome in (*COMPLETE, "pruned") for trial in self.searched)

    def describe_best(self) -> str:
        """Return a line that names the best trial, its score and how the sweep's trials ended.

        Raises:
            TrackingError: the sweep has no best trial.
        """
        best, counts = self.best, Counter(trial.outcome for trial in self.searched)
        what = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items(), key=_order))
        if best is None:
            trials = (
                f"of {len(self.searched)} recorded trials, {what}" if self.trials else "no trial is recorded"
            )
            is_answered = set(counts) == {"infeasible"}
            fix = (
                "widen its space or loosen its constraints"
                if is_answered
                else "let it run on, or see its log"
            )
            raise TrackingError(f"sweep {self.name} has no best trial ({trials}): {fix}")
        extreme = "lowest" if self.minimizes else "highest"
        scores = list(self.fresh.get(best.trial or 0, {}).values())
        mean = f"mean {self.metric} over {len(scores)} fresh seeds, {sum(scores) / max(1, len(scores)):.4f}"
        score = mean if len(scores) > 1 else f"{self.metric}, {self.score(best):.4f}"
        return (
            f"sweep {self.name} (run {self.parent.run_id[:12]}): trial {best.trial} has the {extreme} "
            f"{score}, of {len(self.searched)} trials ({what})"
        )


@dataclass(frozen=True)
class ChosenRun:
    """The run that a command is about, with its checkpoint."""

    run: RunRecord
    checkpoint: Path
    sweep: RecordedSweep | None  # the sweep of which the run is a trial
    why: str  # a line for people: which run it is, and why this one

    @property
    def is_best_of_sweep(self) -> bool:
        best = None if self.sweep is None else self.sweep.best
        return best is not None and best.run_id == self.run.run_id


def read_sweep(tracking: TrackingConfig, parent: RunRecord) -> RecordedSweep:
    """Return a sweep with its trials."""
    return RecordedSweep(parent, tuple(trials_of(tracking, parent)))


def find_sweeps(tracking: TrackingConfig) -> list[RunRecord]:
    """Return the parent run of every sweep, sorted by when it ran last, not by when it was created."""
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
    """Return the trials of one sweep, found by its parent run, as several sweeps may have one name."""
    is_child = f"tags.`{names.PARENT}` = '{parent.run_id}'"
    found = search_runs(tracking, f"{filter_string} and {is_child}" if filter_string else is_child)
    return [record for record in found if record.kind == "trial"]


def rivals_of(tracking: TrackingConfig, last: RunRecord) -> list[RunRecord]:
    """Return the other sweeps that were active since the last call of sweep `last` began.

    "The sweep that ran last" may then mean any of them.
    """
    others = [run for run in find_sweeps(tracking) if run.run_id != last.run_id]
    return [run for run in others if run.active_s > last.called_s]


def choose(tracking: TrackingConfig, reference: str | None = None) -> ChosenRun:
    """Return the run that a command is about.

    Args:
        reference: a run's id, prefix of an id or name; a sweep's name stands for its best trial. None stands
            for the sweep that ran last or, where there is no sweep, for the last run with a checkpoint.

    Raises:
        TrackingError: there is no such run, it kept no checkpoint, its sweep has no best trial, or several
            sweeps ran at the same time and none is named.
    """
    run = get_run(tracking, reference) if reference else _default_run(tracking)
    if run.kind == "sweep":
        sweep = read_sweep(tracking, run)
        why = sweep.describe_best()
        assert sweep.best is not None
        return ChosenRun(sweep.best, _checkpoint_of(tracking, sweep.best), sweep, why)
    is_of_sweep = run.kind in names.BELOW_SWEEP and run.parent_run_id
    parent = get_run(tracking, run.parent_run_id) if is_of_sweep and run.parent_run_id else None
    sweep_of_run = None if parent is None else read_sweep(tracking, parent)
    what = "a trial" if run.kind == "trial" else run.kind
    of_sweep = f", {what} of sweep {run.sweep} ({run.outcome})" if run.sweep else ""
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
