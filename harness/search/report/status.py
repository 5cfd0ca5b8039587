"""Reads how far sweeps are, for `sweep list` and `--status`, from any machine that reaches their database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from rich.box import SIMPLE_HEAD
from rich.table import Table

from harness.config.sweep import SweepConfig
from harness.credentials import shown
from harness.errors import SweepError, did_you_mean
from harness.search.coordinator.completion import num_wanted
from harness.search.database.retrying_storage import RetryingStorage
from harness.search.database.storage import database_exists, open_storage
from harness.search.ownership.claims import Claims
from harness.search.ownership.process_id import ProcessId
from harness.search.report.progress import format_score, short_params
from harness.search.study import keys
from harness.search.study.trials import (
    TrialRow,
    best_row,
    find_study,
    read_rows,
    storage_of,
)


@dataclass(frozen=True)
class SweepStatus:
    """How far a sweep is, and which processes work on it."""

    name: str
    num_trials: int | None  # the budget, replicates included; None: written by an earlier version
    metric: str
    direction: str
    rows: list[TrialRow]
    silent: frozenset[int]  # ids of trials whose last heartbeat is older than their lease

    @property
    def num_ended(self) -> int:
        return sum(row.has_ended for row in self.rows)

    @property
    def at_work(self) -> list[TrialRow]:
        """The running trials that have a live owner."""
        return [
            row
            for row in self.rows
            if row.state == "running" and row.trial_id not in self.silent and is_owned(row)
        ]

    @property
    def state(self) -> str:
        if self.num_trials is not None and self.num_ended >= self.num_trials:
            return "complete"
        return "running" if self.at_work else "stopped"

    @property
    def best(self) -> TrialRow | None:
        return best_row(self.rows, self.direction)


def is_owned(row: TrialRow) -> bool:
    """Return whether the trial has an owner that is not known to be dead; remote ones count as alive."""
    owner = None if row.owner is None else ProcessId.from_json(row.owner)
    return owner is not None and (not owner.is_here or owner.process() is not None)


def open_sweeps(url: str) -> RetryingStorage:
    """Open the database of sweeps without creating one.

    Raises:
        SweepError: there is none.
    """
    if not database_exists(url):
        raise SweepError(f"no sweep has been run yet: {shown(url)} does not exist")
    return open_storage(url)


def find_sweep(storage: RetryingStorage, name: str | None, file: str | None = None) -> optuna.Study:
    """Return the sweep of that name; by default the one that ran last, of this sweep file if possible.

    Raises:
        SweepError: there is none.
    """
    studies = sorted(storage.get_all_studies(), key=lambda study: study.user_attrs.get(keys.CALLED, 0.0))
    names = [study.study_name for study in studies]
    if not names:
        raise SweepError(f"no sweep has been run yet in {shown(storage.url)}")
    of_file = [known for known in names if file is not None and known.startswith(f"{file}-")]
    found = find_study(storage, (of_file or names)[-1] if name is None else name)
    if found is None:
        raise SweepError(f"no sweep {name!r}{did_you_mean(str(name), names)}")
    return found


def read_status(study: optuna.Study) -> SweepStatus:
    """Return how far the sweep is."""
    plan = study.user_attrs.get(keys.PLAN, {})
    rows = read_rows(study)
    return SweepStatus(
        name=study.study_name,
        num_trials=_budget(plan, rows),
        metric=plan.get("metric", "score"),
        direction=study.directions[0].name.lower(),
        rows=rows,
        silent=frozenset(Claims(study, storage_of(study)).stale()),
    )


def _budget(plan: Mapping[str, Any], rows: Sequence[TrialRow]) -> int | None:
    """Return how many trials the sweep will have, by what its last command has stored."""
    if plan.get("num_trials") is None:
        return None
    known = {key: plan[key] for key in ("num_trials", "metric", "replicate") if key in plan}
    return num_wanted(rows, SweepConfig.model_validate({"space": {}, **known}))


def read_statuses(storage: RetryingStorage) -> list[SweepStatus]:
    """Return how far every sweep of the database is, the newest last."""
    return [read_status(find_sweep(storage, known.study_name)) for known in storage.get_all_studies()]


def sweeps_table(statuses: Sequence[SweepStatus]) -> Table:
    """Return sweeps as a table."""
    table = Table(box=SIMPLE_HEAD, padding=0, header_style="bold")
    for title in ("sweep", "state", "trials", "running", "best", "metric"):
        table.add_column(title, justify="right" if title in ("trials", "running", "best") else "left")
    for status in statuses:
        best = format_score(status.best.score) if status.best else "–"
        trials = f"{status.num_ended}/{status.num_trials or '?'}"
        table.add_row(status.name, status.state, trials, str(len(status.at_work)), best, status.metric)
    return table


def status_table(status: SweepStatus) -> Table:
    """Return the running trials as a table, with the process that works on each."""
    table = Table(box=SIMPLE_HEAD, padding=0, header_style="bold")
    for title in ("trial", "epoch", status.metric, "by", "parameters"):
        table.add_column(title)
    for row in status.rows:
        if row.state == "running":
            epoch = f"{row.epochs_done}/{row.max_epochs or '?'}"
            score, by = format_score(row.last_score), _by(row, status)
            table.add_row(str(row.number), epoch, score, by, short_params(row.params))
    return table


def _by(row: TrialRow, status: SweepStatus) -> str:
    if row.owner is None:
        return "nobody: interrupted"
    owner = ProcessId.from_json(row.owner)
    name = f"{owner.host.partition('/')[0]}, process {owner.pid}"
    if row.trial_id in status.silent:
        return f"{name}: not heard of for longer than its lease"
    return name if is_owned(row) else f"{name}: dead"


def status_line(status: SweepStatus) -> str:
    """Return how far a sweep is, in one line."""
    best = status.best
    score = f", best {status.metric} {format_score(best.score)} (trial {best.number})" if best else ""
    budget = f" of {status.num_trials}" if status.num_trials is not None else ""
    return f"sweep {status.name}: {status.state}, {status.num_ended}{budget} trials have ended{score}"
